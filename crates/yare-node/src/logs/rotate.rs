//! Rotation: a log over its limit is renamed, the runtime opens a new one, older ones are compressed, some are kept.
//!
//! Nothing looks at logs that nobody writes to: each running container's log has a one-shot inotify watch; the
//! first write after a check arms the next check, `containerLogMonitorInterval` later.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};
use parking_lot::Mutex;
use yare_runtime::{ContainerState, ContainerStatus, Runtime};
use yare_schema::quantity::Quantity;

use super::watch::Watch;
use crate::config::Settings;

/// What the configuration says of logs.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// A log is rotated when it is larger.
    max_bytes: u64,
    /// Files per container, the current one included.
    max_files: usize,
    /// Logs that are rotated at once.
    workers: usize,
    /// From the first write to the check.
    check_after: Duration,
}

impl Limits {
    fn new(settings: &Settings) -> Self {
        // Validation has refused what does not fit.
        let size = Quantity::parse(&settings.container_log_max_size).map_or(i64::MAX, |size| size.value());
        Self {
            max_bytes: u64::try_from(size).unwrap_or(u64::MAX),
            max_files: usize::try_from(settings.container_log_max_files).unwrap_or(usize::MAX),
            workers: usize::try_from(settings.container_log_max_workers).unwrap_or(1).max(1),
            check_after: settings.container_log_monitor_interval.get(),
        }
    }
}

pub(crate) struct Rotator {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
    limits: Limits,
}

#[derive(Default)]
struct State {
    task: Option<tokio::task::AbortHandle>,
    watch: Option<Arc<Watch>>,
    /// Logs being watched, by container id.
    logs: HashMap<String, Log>,
}

struct Log {
    pod: String,
    path: PathBuf,
    armed: Option<WatchDescriptor>,
}

impl Drop for Rotator {
    fn drop(&mut self) {
        if let Some(task) = self.shared.state.lock().task.take() {
            task.abort();
        }
    }
}

impl Rotator {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, settings: &Settings) -> Self {
        let limits = Limits::new(settings);
        Rotator { shared: Arc::new(Shared { runtime, state: Mutex::default(), limits }) }
    }

    /// Watches the logs of a pod's running containers and lets go of the others.
    pub(crate) fn reconcile(&self, pod: &str, containers: &[ContainerStatus]) {
        let running = |id: &str| {
            containers.iter().any(|c| {
                c.id == id && c.state == ContainerState::Running && !c.log_path.as_os_str().is_empty()
            })
        };
        let mut state = self.shared.state.lock();
        let watch = state.watch.clone();
        state.logs.retain(|id, log| {
            let keep = log.pod != pod || running(id);
            if !keep && let (Some(watch), Some(descriptor)) = (&watch, log.armed) {
                watch.remove(descriptor);
            }
            keep
        });
        for container in containers.iter().filter(|c| running(&c.id)) {
            if state.logs.contains_key(&container.id) {
                continue;
            }
            let Some(watch) = self.instance(&mut state) else { return };
            let armed = arm(&watch, &container.log_path);
            let log = Log { pod: pod.to_owned(), path: container.log_path.clone(), armed };
            state.logs.insert(container.id.clone(), log);
        }
    }

    fn instance(&self, state: &mut State) -> Option<Arc<Watch>> {
        if state.watch.is_none() {
            match Watch::new() {
                Ok(watch) => {
                    let watch = Arc::new(watch);
                    state.watch = Some(watch.clone());
                    state.task = Some(tokio::spawn(run(self.shared.clone(), watch)).abort_handle());
                }
                Err(error) => {
                    tracing::warn!(%error, "logs are not rotated: inotify is not available");
                    return None;
                }
            }
        }
        state.watch.clone()
    }
}

fn arm(watch: &Watch, path: &Path) -> Option<WatchDescriptor> {
    watch.add(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONESHOT).ok()
}

async fn run(shared: Arc<Shared>, watch: Arc<Watch>) {
    loop {
        let events = match watch.next().await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "log rotation ends: inotify failed");
                return;
            }
        };
        // More logs are written to meanwhile; they are checked in the same round.
        tokio::time::sleep(shared.limits.check_after).await;
        let more = futures::FutureExt::now_or_never(watch.next()).and_then(Result::ok).unwrap_or_default();
        let fired: Vec<WatchDescriptor> = events.iter().chain(&more).map(|e| e.wd).collect();
        let due: Vec<(String, PathBuf)> = {
            let state = shared.state.lock();
            let hit = |log: &&Log| log.armed.is_some_and(|d| fired.contains(&d));
            state
                .logs
                .iter()
                .filter(|(_, log)| hit(log))
                .map(|(id, log)| (id.clone(), log.path.clone()))
                .collect()
        };
        let Limits { max_bytes, max_files, workers, .. } = shared.limits;
        let (shared, watch) = (&shared, &watch);
        futures::stream::iter(due)
            .for_each_concurrent(workers, |(id, path)| async move {
                let size = std::fs::metadata(&path).map_or(0, |m| m.len());
                if size > max_bytes
                    && let Err(error) = rotate(shared.runtime.as_ref(), &id, &path, max_files).await
                {
                    tracing::warn!(error, path = %path.display(), "rotating a container's log");
                }
                if let Some(log) = shared.state.lock().logs.get_mut(&id) {
                    log.armed = arm(watch, &path);
                }
            })
            .await;
    }
}

/// Rotates one log.
async fn rotate(runtime: &dyn Runtime, id: &str, path: &Path, max_files: usize) -> Result<(), String> {
    let rotated = rotated_logs(path);
    // The new one will be one more; the current log counts, too.
    let keep = max_files.saturating_sub(2);
    for old in rotated.iter().rev().skip(keep) {
        std::fs::remove_file(old).map_err(|e| format!("remove {}: {e}", old.display()))?;
    }
    for plain in rotated.iter().rev().take(keep).filter(|p| p.extension().is_none_or(|e| e != "gz")) {
        let plain = plain.clone();
        tokio::task::spawn_blocking(move || compress(&plain))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("compress a log: {e}"))?;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let target = PathBuf::from(format!("{}.{stamp}", path.display()));
    std::fs::rename(path, &target).map_err(|e| format!("rename {}: {e}", path.display()))?;
    if let Err(error) = runtime.reopen_log(id).await {
        // The container goes on writing to the renamed file: give it its name back.
        let _ = std::fs::rename(&target, path);
        return Err(error.to_string());
    }
    Ok(())
}

/// Earlier logs of `path`, the oldest first.
fn rotated_logs(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    found.retain(|p| {
        let leftover = p.extension().is_some_and(|e| e == "tmp");
        if leftover {
            let _ = std::fs::remove_file(p);
        }
        !leftover
    });
    found.sort();
    found
}

fn compress(path: &Path) -> io::Result<()> {
    let temporary = PathBuf::from(format!("{}.tmp", path.display()));
    let mut source = std::fs::File::open(path)?;
    let mut out = GzEncoder::new(std::fs::File::create(&temporary)?, Compression::default());
    io::copy(&mut source, &mut out)?;
    out.finish()?;
    std::fs::rename(&temporary, format!("{}.gz", path.display()))?;
    std::fs::remove_file(path)
}
