//! Containers: created, started, stopped, removed, measured.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{ContainerEntry, ContainerLive, ContainerRecord};
use super::{Inner, blocking, new_id};
use crate::api::*;
use crate::error::{IoContext, Result, RuntimeError};
use crate::proto::{Answer, Ask, Hooks, Spec, read_json, write_json};

/// How long a writable layer's size stays good.
const USAGE_AGE: Duration = Duration::from_secs(30);
/// Longer graces are cut to this.
const MAX_GRACE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a killed container may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId> {
        let sandbox = self.sandbox_entry(sandbox_id)?;
        if sandbox.status().state != SandboxState::Ready {
            return Err(RuntimeError::FailedPrecondition(format!("sandbox {sandbox_id} is not ready")));
        }
        let (name, attempt) = (config.name.clone(), config.attempt);
        let same = |c: &ContainerEntry| c.record.config.name == name && c.record.config.attempt == attempt;
        if let Some(existing) = self.containers_of(sandbox_id).iter().find(|c| same(c)) {
            return Ok(existing.id.clone());
        }
        let image = self
            .images
            .get(&config.image)
            .ok_or_else(|| RuntimeError::NotFound { kind: "image", id: config.image.clone() })?;
        let id = new_id()?;
        let cgroup = Path::new(&sandbox.record.cgroup).join(&id);
        let log_path = match config.log_path.as_os_str().is_empty() {
            true => PathBuf::new(),
            false => sandbox.record.config.log_directory.join(&config.log_path),
        };
        let spec = self.build_spec(&id, &sandbox, &config, &image, &cgroup, &log_path)?;
        let record = ContainerRecord {
            sandbox_id: sandbox_id.to_owned(),
            created_at_ns: crate::sys::now_ns(),
            image_name: image.name(&config.user_specified_image),
            image_ref: image.image_ref(),
            image_id: image.id.clone(),
            log_path,
            cgroup,
            config,
        };
        let dir = self.container_dir(&id);
        let made = make_files(&dir, &spec, &record);
        if let Err(e) = made {
            self.discard(&dir);
            return Err(e);
        }
        let live = ContainerLive { resources: record.config.resources.clone(), ..ContainerLive::default() };
        let entry = Arc::new(ContainerEntry::new(id.clone(), record, live));
        {
            let mut state = self.state.lock();
            // A second request for the same container may have been quicker.
            let quicker = state
                .containers
                .values()
                .find(|c| c.record.sandbox_id == sandbox_id && same(c))
                .map(|c| c.id.clone());
            if let Some(quicker) = quicker {
                drop(state);
                self.discard(&dir);
                return Ok(quicker);
            }
            state.containers.insert(id.clone(), entry);
        }
        self.emit(RuntimeEvent::ContainerCreated { id: id.clone(), sandbox: sandbox_id.to_owned() });
        Ok(id)
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<()> {
        let c = self.container_entry(id)?;
        let _guard = c.lock.lock().await;
        match c.current() {
            ContainerState::Created => {}
            ContainerState::Running => return Ok(()),
            _ => {
                return Err(RuntimeError::FailedPrecondition(format!(
                    "container {id} has ended and cannot be started again"
                )));
            }
        }
        let reply = self.ask_shim(&c, Ask::Start { id: id.to_owned() }, Vec::new()).await;
        match reply.map(|r| r.answer) {
            Ok(Answer::Started(run)) => {
                c.live.lock().run = Some(run);
                // It may have ended meanwhile, which is then the last word.
                c.state.send_if_modified(|s| {
                    let created = *s == ContainerState::Created;
                    if created {
                        *s = ContainerState::Running;
                    }
                    created
                });
                let sandbox = c.record.sandbox_id.clone();
                self.emit(RuntimeEvent::ContainerStarted { id: id.to_owned(), sandbox });
                Ok(())
            }
            Ok(other) => Err(RuntimeError::CannotRun(format!("unexpected answer of the shim: {other:?}"))),
            Err(e) => {
                // The shim wrote down why it cannot run.
                self.read_exit(&c);
                Err(e)
            }
        }
    }

    pub(super) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let c = match self.container_entry(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if c.current() != ContainerState::Running {
            return Ok(());
        }
        let grace = grace.min(MAX_GRACE);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.ask_shim(&c, Ask::Stop { id: id.to_owned(), grace_ms }, Vec::new()).await {
            // The end is on its way, or the shim's death is noticed elsewhere.
            Ok(_) | Err(RuntimeError::FailedPrecondition(_) | RuntimeError::ShimGone(_)) => {}
            Err(e) => return Err(e),
        }
        if tokio::time::timeout(grace + KILL_PATIENCE, c.ended()).await.is_err() {
            self.cgroups.kill(&c.record.cgroup);
            return Err(RuntimeError::DeadlineExceeded(format!(
                "container {id} does not end, even when killed"
            )));
        }
        Ok(())
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let c = match self.container_entry(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let _guard = c.lock.lock().await;
        self.stop_container(id, Duration::ZERO).await?;
        let (inner, group) = (Arc::clone(self), c.record.cgroup.clone());
        // Usually gone since the container's end.
        if self.cgroups.remove(&group).is_err() {
            blocking(move || {
                inner
                    .cgroups
                    .destroy(&group, Duration::from_secs(5))
                    .ctx(|| format!("remove cgroup {}", group.display()))
            })
            .await?;
        }
        self.discard(&self.container_dir(id));
        self.state.lock().containers.remove(id);
        Ok(())
    }

    pub(super) async fn update_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let c = self.container_entry(id)?;
        if c.current() == ContainerState::Running {
            self.cgroups.apply(&c.record.cgroup, &resources).ctx(|| format!("update container {id}"))?;
        }
        let merged = merge(&c.live.lock().resources, resources);
        c.live.lock().resources = merged.clone();
        let path = self.container_dir(id).join("spec.json");
        let mut spec: Spec = read_json(&path).ctx(|| format!("read {}", path.display()))?;
        spec.resources = merged;
        write_json(&path, &spec).ctx(|| format!("write {}", path.display()))
    }

    pub(super) async fn stats(self: &Arc<Self>) -> Result<Vec<ContainerStats>> {
        let running: Vec<_> = {
            let state = self.state.lock();
            state.containers.values().filter(|c| c.current() == ContainerState::Running).cloned().collect()
        };
        self.measure(running).await
    }

    pub(super) async fn container_stats_of(
        self: &Arc<Self>,
        ids: &[ContainerId],
    ) -> Result<Vec<ContainerStats>> {
        let running = ids.iter().filter_map(|id| self.container_entry(id).ok());
        self.measure(running.filter(|c| c.current() == ContainerState::Running).collect()).await
    }

    async fn measure(self: &Arc<Self>, running: Vec<Arc<ContainerEntry>>) -> Result<Vec<ContainerStats>> {
        let inner = Arc::clone(self);
        blocking(move || Ok(running.iter().map(|c| inner.container_stats(c)).collect())).await
    }

    fn container_stats(&self, c: &ContainerEntry) -> ContainerStats {
        let mut stats = ContainerStats {
            id: c.id.clone(),
            sandbox_id: c.record.sandbox_id.clone(),
            name: c.record.config.name.clone(),
            cgroup: c.record.cgroup.clone(),
            timestamp_ns: crate::sys::now_ns(),
            ..ContainerStats::default()
        };
        self.cgroups.stats(&c.record.cgroup, &mut stats);
        let mut usage = c.layer_usage.lock();
        let (bytes, inodes) = match *usage {
            Some((at, bytes, inodes)) if at.elapsed() < USAGE_AGE => (bytes, inodes),
            _ => {
                let (bytes, inodes) = disk_usage(&self.container_dir(&c.id).join("upper"), 0);
                *usage = Some((Instant::now(), bytes, inodes));
                (bytes, inodes)
            }
        };
        stats.writable_layer_bytes = bytes;
        stats.writable_layer_inodes = inodes;
        stats
    }
}

fn make_files(dir: &Path, spec: &Spec, record: &ContainerRecord) -> Result<()> {
    for sub in ["upper", "work", "rootfs"] {
        let path = dir.join(sub);
        std::fs::create_dir_all(&path).ctx(|| format!("create {}", path.display()))?;
    }
    if spec.hooks != Hooks::default() {
        let path = dir.join("config.json");
        write_json(&path, &bundle(dir, spec)).ctx(|| format!("write {}", path.display()))?;
    }
    write_json(&dir.join("spec.json"), spec).ctx(|| format!("write {}", dir.join("spec.json").display()))?;
    // Last: a directory without it is half made.
    write_json(&dir.join("container.json"), record)
        .ctx(|| format!("write {}", dir.join("container.json").display()))
}

/// What hooks look up in a bundle's `config.json`.
fn bundle(dir: &Path, spec: &Spec) -> serde_json::Value {
    serde_json::json!({
        "ociVersion": "1.2.0",
        "root": { "path": dir.join("rootfs"), "readonly": spec.readonly_rootfs },
        "process": { "args": spec.argv, "env": spec.env, "cwd": spec.cwd, "terminal": spec.tty },
        "annotations": spec.annotations,
    })
}

/// What is present in `new` replaces what was.
fn merge(old: &Resources, new: Resources) -> Resources {
    let mut unified = old.unified.clone();
    unified.extend(new.unified);
    let mut hugepages = old.hugepages.clone();
    hugepages.extend(new.hugepages);
    Resources {
        cpu_period_us: new.cpu_period_us.or(old.cpu_period_us),
        cpu_quota_us: new.cpu_quota_us.or(old.cpu_quota_us),
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        memory_limit_bytes: new.memory_limit_bytes.or(old.memory_limit_bytes),
        memory_swap_limit_bytes: new.memory_swap_limit_bytes.or(old.memory_swap_limit_bytes),
        oom_score_adj: new.oom_score_adj.or(old.oom_score_adj),
        cpuset_cpus: new.cpuset_cpus.or_else(|| old.cpuset_cpus.clone()),
        cpuset_mems: new.cpuset_mems.or_else(|| old.cpuset_mems.clone()),
        pids_limit: new.pids_limit.or(old.pids_limit),
        hugepages,
        unified,
    }
}

/// Bytes and inodes below a directory.
pub(super) fn disk_usage(dir: &Path, depth: u32) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        bytes += meta.blocks() * 512;
        inodes += 1;
        if meta.is_dir() && depth < 128 {
            let (b, i) = disk_usage(&entry.path(), depth + 1);
            bytes += b;
            inodes += i;
        }
    }
    (bytes, inodes)
}
