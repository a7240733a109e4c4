//! The embedded engine: CRI's operations made from images, shims and a pod network.
//!
//! What it knows of sandboxes and containers is on disk before it is acted upon: a sandbox's directory exists
//! before its namespaces do, a container's before its cgroup. So a later engine can find what runs, and can clean
//! up what was only half made ([`recover`]). In memory there are only the records, and one connection per shim
//! ([`shim_client`]).

mod build;
mod container;
mod lock;
mod recover;
mod sandbox;
mod shim_client;
mod spawner;
mod state;
mod streams;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::Runtime;
use crate::api::*;
use crate::cgroup::Cgroups;
use crate::error::{IoContext, Result, RuntimeError};
use crate::image::ImageStore;
use crate::proto::{Answer, Ask};
use crate::ulimit::Ulimit;
use lock::RunLock;
use spawner::Spawner;
use state::{ContainerEntry, SandboxEntry};

/// How an engine is set up.
pub struct EngineConfig {
    /// Images and state live here.
    pub data_dir: PathBuf,
    /// Sockets and namespaces: `/run/yare`. Its path must be short, for the sockets' sake.
    pub run_dir: PathBuf,
    /// The command that becomes a shim spawner (see [`crate::shim::main`]): by default this very program with
    /// `shim`.
    pub shim_command: Vec<OsString>,
    /// Where the shims live, relative to every cgroup hierarchy's root; empty: where this process lives.
    pub shim_cgroup: String,
    /// Pod networking; absent: only pods with the node's network.
    pub network: Option<Arc<dyn PodNetwork>>,
    /// Sets `favordynmods` on cgroup v2, which makes starting containers 6 to 18 ms quicker.
    pub quick_cgroup_moves: bool,
    /// Registries spoken to without TLS, `host:port`. Loopback addresses always may.
    pub insecure_registries: Vec<String>,
    /// Directories of CDI spec files, the stronger ones last.
    pub cdi_directories: Vec<PathBuf>,
    /// Limits of each process in a container.
    pub ulimits: Vec<Ulimit>,
}

impl EngineConfig {
    /// The usual setup below two directories.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            shim_command: vec!["/proc/self/exe".into(), "shim".into()],
            shim_cgroup: CGROUPS[0].into(),
            network: None,
            quick_cgroup_moves: true,
            insecure_registries: Vec::new(),
            cdi_directories: crate::cdi::DIRECTORIES.map(PathBuf::from).into(),
            ulimits: Ulimit::usual(),
        }
    }
}

/// What the engine calls itself.
pub const ENGINE_NAME: &str = "yare";

/// Cgroups that the engine makes for all pods together, the inner ones first.
pub const CGROUPS: [&str; 2] = ["yare/shims", "yare"];

/// The embedded container runtime. Cheap to clone: all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: EngineConfig,
    cgroups: Cgroups,
    images: Arc<ImageStore>,
    events: broadcast::Sender<RuntimeEvent>,
    spawner: Spawner,
    lock: RunLock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Arc<SandboxEntry>>,
    containers: BTreeMap<ContainerId, Arc<ContainerEntry>>,
    /// One sandbox at a time per (uid, attempt).
    making: BTreeMap<(String, u32), Arc<tokio::sync::Mutex<()>>>,
}

impl Engine {
    /// Opens the engine: finds the sandboxes of an earlier one again and cleans up after it. Refuses while another
    /// engine uses the same run directory.
    pub async fn open(config: EngineConfig) -> Result<Self> {
        for dir in [
            config.data_dir.join("runtime/sandboxes"),
            config.data_dir.join("runtime/containers"),
            config.data_dir.join("runtime/trash"),
            config.run_dir.join("netns"),
            config.run_dir.join("shm"),
            config.run_dir.join("s"),
        ] {
            std::fs::create_dir_all(&dir).ctx(|| format!("create {}", dir.display()))?;
        }
        let lock = RunLock::take(&config.run_dir).await?;
        let images_dir = config.data_dir.join("images");
        let images = tokio::task::spawn_blocking(move || ImageStore::open(&images_dir))
            .await
            .map_err(|e| RuntimeError::io("open the image store", std::io::Error::other(e)))??;
        let cgroups = Cgroups::detect();
        if config.quick_cgroup_moves {
            cgroups.favor_moves();
        }
        let spawner = Spawner::new(config.shim_command.clone(), config.shim_cgroup.clone());
        let inner = Arc::new(Inner {
            config,
            cgroups,
            images: Arc::new(images),
            events: broadcast::channel(1024).0,
            spawner,
            lock,
            state: Mutex::default(),
        });
        inner.recover().await?;
        // Started now, so that the first pod need not wait for it.
        inner.spawner.warm_up(&inner.lock).await;
        Ok(Self { inner })
    }

    /// Ends the engine and its own process, and waits until that is gone. Sandboxes go on.
    pub async fn close(self) {
        self.inner.spawner.end().await;
    }

    /// The image store, for imports and built-in images.
    pub fn images(&self) -> Arc<ImageStore> {
        Arc::clone(&self.inner.images)
    }
}

/// Removes cgroups in which nothing is left: the parents of those that pods had. A process that was just told
/// to end may be in one for a moment, so it is tried for `patience`.
pub async fn remove_empty_cgroups(groups: &[&str], patience: Duration) {
    let cgroups = Cgroups::detect();
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let left = groups.iter().filter(|group| !cgroups.remove_empty(Path::new(group))).count();
        if left == 0 || tokio::time::Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Inner {
    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("runtime/sandboxes").join(id)
    }

    fn containers_dir(&self) -> PathBuf {
        self.config.data_dir.join("runtime/containers")
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.containers_dir().join(id)
    }

    /// Where a sandbox's shim listens. Half of the id is unique enough, and sockets' paths are short.
    fn socket_path(&self, id: &str) -> PathBuf {
        self.config.run_dir.join("s").join(id.chars().take(32).collect::<String>())
    }

    fn netns_path(&self, id: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(id)
    }

    fn shm_path(&self, id: &str) -> PathBuf {
        self.config.run_dir.join("shm").join(id)
    }

    fn sandbox_entry(&self, id: &str) -> Result<Arc<SandboxEntry>> {
        let state = self.state.lock();
        state
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    fn container_entry(&self, id: &str) -> Result<Arc<ContainerEntry>> {
        let state = self.state.lock();
        state
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: id.to_owned() })
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<ContainerEntry>> {
        self.state.lock().containers.values().filter(|c| c.record.sandbox_id == sandbox).cloned().collect()
    }

    fn emit(&self, event: RuntimeEvent) {
        // Nobody listening is fine: events are hints.
        let _ = self.events.send(event);
    }

    /// Takes a directory away at once and deletes it in its own time.
    fn discard(&self, dir: &Path) {
        let name = dir.file_name().unwrap_or_default();
        let trash = self.config.data_dir.join("runtime/trash").join(name);
        let target = if std::fs::rename(dir, &trash).is_ok() { trash } else { dir.to_path_buf() };
        tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_dir_all(target);
        });
    }

    /// Asks a container's shim something and translates its refusals.
    async fn ask_shim(
        &self,
        c: &ContainerEntry,
        ask: Ask,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<shim_client::Reply> {
        let sandbox = self.sandbox_entry(&c.record.sandbox_id)?;
        let shim = sandbox.shim().ok_or_else(|| RuntimeError::ShimGone(sandbox.id.clone()))?;
        let reply = shim.ask(ask, fds).await?;
        match reply.answer {
            Answer::Failed(message) => Err(RuntimeError::CannotRun(message)),
            Answer::NotRunning(_) => Err(not_running(c)),
            _ => Ok(reply),
        }
    }
}

fn not_running(c: &ContainerEntry) -> RuntimeError {
    RuntimeError::FailedPrecondition(format!("container {} ({}) is not running", c.record.config.name, c.id))
}

/// A new random id.
fn new_id() -> Result<String> {
    let mut bytes = [0; 32];
    let mut file = std::fs::File::open("/dev/urandom").ctx(|| "open /dev/urandom".into())?;
    std::io::Read::read_exact(&mut file, &mut bytes).ctx(|| "read /dev/urandom".into())?;
    Ok(crate::image::hex(&bytes))
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| RuntimeError::io("a blocking operation was abandoned", std::io::Error::other(e)))?
}

/// Runs to its end even if the caller stops waiting: half a sandbox is worse than one too many.
async fn to_the_end<T: Send + 'static>(f: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(f)
        .await
        .map_err(|e| RuntimeError::io("an operation was abandoned", std::io::Error::other(e)))?
}

#[async_trait]
impl Runtime for Engine {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            name: ENGINE_NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let ready = |kind: &str| RuntimeCondition {
            kind: kind.to_owned(),
            holds: true,
            ..RuntimeCondition::default()
        };
        Ok(RuntimeStatus {
            conditions: vec![ready("RuntimeReady"), ready("NetworkReady")],
            handlers: vec![RuntimeHandler {
                name: String::new(),
                recursive_readonly_mounts: true,
                user_namespaces: true,
            }],
            supplemental_groups_policy: true,
        })
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId> {
        let inner = Arc::clone(&self.inner);
        to_the_end(async move { inner.run_sandbox(config).await }).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        to_the_end(async move { inner.stop_sandbox(&id).await }).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        to_the_end(async move { inner.remove_sandbox(&id).await }).await
    }

    async fn sandbox(&self, id: &str) -> Result<SandboxStatus> {
        Ok(self.inner.sandbox_entry(id)?.status())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.inner.state.lock().sandboxes.values().map(|s| s.status()).collect())
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<ContainerId> {
        self.inner.create_container(sandbox, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        to_the_end(async move { inner.start_container(&id).await }).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.inner.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        to_the_end(async move { inner.remove_container(&id).await }).await
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.inner.container_entry(id)?.status())
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>> {
        Ok(self.inner.state.lock().containers.values().map(|c| c.status()).collect())
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()> {
        self.inner.update_resources(id, resources).await
    }

    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let sandbox = self.inner.sandbox_entry(id)?;
        let group = PathBuf::from(&sandbox.record.cgroup);
        self.inner.cgroups.apply(&group, &resources).ctx(|| format!("update sandbox {id}"))
    }

    async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        self.inner.exec_sync(id, argv, timeout).await
    }

    async fn exec(&self, id: &str, argv: Vec<String>, tty: bool, stdin: bool) -> Result<ExecSession> {
        self.inner.exec(id, argv, tty, stdin).await
    }

    async fn attach(&self, id: &str, _tty: bool, stdin: bool) -> Result<ExecSession> {
        self.inner.attach(id, stdin).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.inner.port_forward(sandbox, port).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let c = self.inner.container_entry(id)?;
        self.inner.ask_shim(&c, Ask::ReopenLog { id: id.to_owned() }, Vec::new()).await.map(drop)
    }

    async fn stats(&self) -> Result<Vec<ContainerStats>> {
        self.inner.stats().await
    }

    async fn container_stats(&self, ids: &[ContainerId]) -> Result<Vec<ContainerStats>> {
        self.inner.container_stats_of(ids).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Option<ProgressFn>,
    ) -> Result<ImageId> {
        let images = Arc::clone(&self.inner.images);
        images.pull(reference, auth, progress, &self.inner.config.insecure_registries).await
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageStatus>> {
        Ok(self.inner.images.status(reference))
    }

    async fn images(&self) -> Result<Vec<ImageStatus>> {
        Ok(self.inner.images.list())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let reference = reference.to_owned();
        blocking(move || {
            inner.images.remove(&reference, |id| {
                let state = inner.state.lock();
                state.containers.values().find(|c| c.record.image_id == id).map(|c| c.id.clone())
            })
        })
        .await
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        let images = Arc::clone(&self.inner.images);
        blocking(move || images.usage()).await
    }

    async fn container_fs(&self) -> Result<Option<FsUsage>> {
        let mountpoint = self.inner.containers_dir();
        let stat =
            nix::sys::statvfs::statvfs(&mountpoint).ctx(|| format!("statvfs {}", mountpoint.display()))?;
        let block = stat.fragment_size();
        Ok(Some(FsUsage {
            mountpoint,
            capacity_bytes: stat.blocks() * block,
            available_bytes: stat.blocks_available() * block,
            inodes: stat.files(),
            inodes_free: stat.files_available(),
            timestamp_ns: crate::sys::now_ns(),
            ..FsUsage::default()
        }))
    }
}
