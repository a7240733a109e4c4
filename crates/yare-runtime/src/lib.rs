//! Containers: the [`Runtime`] trait with CRI v1's semantics, the embedded [`Engine`] with its shim and its images on
//! disk, and the [`CriRuntime`] for runtimes behind a CRI socket.
//!
//! The kubelet calls [`Runtime`]; the engine makes images, snapshots and networks ready and asks one small
//! process per pod, the [shim](shim), to make and watch the containers. The shim outlives the engine's process:
//! restarting or upgrading it touches no container. State is under `<data-dir>/runtime`, images under
//! `<data-dir>/images`, sockets and namespaces under a run directory (`/run/yare`).

mod alloc;
mod api;
mod cdi;
mod cgroup;
mod cri;
mod engine;
mod error;
mod image;
pub mod machine;
mod proto;
pub mod shim;
mod sys;
pub mod ulimit;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

pub use alloc::NotInShims;
pub use api::*;
pub use cdi::DIRECTORIES as CDI_DIRECTORIES;
pub use cgroup::{
    CgroupTree, GroupCpu, GroupIo, GroupMemory, GroupMemoryUsage, GroupUsage, MemoryAlarm, Stall, StallTimes,
    hugepage_name,
};
pub use cri::{CgroupDriver, CriConfig, CriRuntime, socket_of};
pub use engine::{CGROUPS, ENGINE_NAME, Engine, EngineConfig, remove_empty_cgroups};
pub use error::{Result, RuntimeError};
pub use image::{ImageStore, Reference};

/// What `procMount: Default` hides.
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What `procMount: Default` makes read-only.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container runtime with the semantics of CRI v1.
///
/// Every operation may be repeated: making what is there answers its id, removing what is gone succeeds.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Name and version.
    async fn version(&self) -> Result<RuntimeVersion>;
    /// Whether it is ready, and what its handlers can do.
    async fn status(&self) -> Result<RuntimeStatus>;
    /// Makes and starts a sandbox: namespaces, network, shim. Answers the existing one for the same (uid, attempt).
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId>;
    /// Kills what runs in it and detaches its network.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes it and its containers, stopping them by force.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// One sandbox. `NotFound` when there is none.
    async fn sandbox(&self, id: &str) -> Result<SandboxStatus>;
    /// All sandboxes, also those made before a restart.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>>;
    /// Makes a container in a sandbox that is ready. Answers the existing one for the same (name, attempt).
    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<ContainerId>;
    /// Starts it. On failure the container is `Exited` with reason `ContainerCannotRun` (128; 127 for a missing executable).
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits `grace`, then kills. Returns when the container has ended.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container, killing it if it runs. Its log file stays.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// One container. `NotFound` when there is none.
    async fn container(&self, id: &str) -> Result<ContainerStatus>;
    /// All containers.
    async fn containers(&self) -> Result<Vec<ContainerStatus>>;
    /// Changes limits of a container; absent fields stay.
    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()>;
    /// Changes limits of a sandbox's own cgroup; absent fields stay.
    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()>;
    /// Runs a command in a container and collects its output.
    async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput>;
    /// Runs a command in a container with its streams connected.
    async fn exec(&self, id: &str, argv: Vec<String>, tty: bool, stdin: bool) -> Result<ExecSession>;
    /// Connects to the streams of a container's first process, to its input only if asked for (and if it has one). A
    /// runtime that does not know any more whether it was made with a terminal is told here.
    ///
    /// A container whose input ends with the first client (`stdinOnce`, without a terminal) has it closed with the
    /// session's, and the session goes on until the container ends. With any other the session ends with its input.
    async fn attach(&self, id: &str, tty: bool, stdin: bool) -> Result<ExecSession>;
    /// A TCP connection to `localhost:port` inside the pod's network namespace.
    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>>;
    /// Opens the log file anew, after it was rotated away.
    async fn reopen_log(&self, id: &str) -> Result<()>;
    /// Writes the state of a running container into a tar file. `timeout_s`: 0 is as long as the runtime likes.
    /// A runtime that cannot answers as one behind CRI would that has never heard of it.
    async fn checkpoint_container(&self, _id: &str, _location: &Path, _timeout_s: i64) -> Result<()> {
        let message = "unknown method CheckpointContainer for service runtime.v1.RuntimeService";
        Err(RuntimeError::Unimplemented(message))
    }
    /// Usage of all running containers.
    async fn stats(&self) -> Result<Vec<ContainerStats>>;
    /// Usage of some running containers, by id; those that do not run are left out.
    async fn container_stats(&self, ids: &[ContainerId]) -> Result<Vec<ContainerStats>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = self.stats().await?;
        all.retain(|s| ids.contains(&s.id));
        Ok(all)
    }
    /// Hints about what happens from now on. Lagging is harmless: list again.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
    /// Pulls an image; answers its id.
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Option<ProgressFn>,
    ) -> Result<ImageId>;
    /// One image by reference, digest reference or id.
    async fn image(&self, reference: &str) -> Result<Option<ImageStatus>>;
    /// All images.
    async fn images(&self) -> Result<Vec<ImageStatus>>;
    /// Removes an image by reference (only that tag, while others remain) or by id (all tags). Idempotent.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// Space used by images.
    async fn image_fs(&self) -> Result<FsUsage>;
    /// The file system of writable layers, where that is not the images'.
    async fn container_fs(&self) -> Result<Option<FsUsage>> {
        Ok(None)
    }
}
