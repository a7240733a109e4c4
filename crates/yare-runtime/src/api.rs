//! The types of the [`Runtime`](crate::Runtime) trait: CRI v1's messages as plain Rust structures.
//!
//! The kubelet fills in the configurations; the runtime answers with the statuses. Configurations are
//! serializable because the engine keeps them on disk to find its containers again after a restart.
//!
//! Here: the runtime itself, sessions in its containers, their usage, events. What it is told and tells of each kind of
//! thing has a module of its own.

mod container;
mod image;
mod network;
mod sandbox;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use container::*;
pub use image::*;
pub use network::*;
pub use sandbox::*;

/// What [`Runtime::version`](crate::Runtime::version) answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVersion {
    /// The runtime's name, as in `containerRuntimeVersion: name://version`.
    pub name: String,
    /// The runtime's version.
    pub version: String,
    /// The version of the API it speaks: `v1`.
    pub api_version: String,
}

/// A condition of a runtime: `RuntimeReady`, `NetworkReady`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeCondition {
    /// Its type.
    pub kind: String,
    /// Whether it holds.
    pub holds: bool,
    /// Why not, in one word.
    pub reason: String,
    /// Why not.
    pub message: String,
}

/// A way in which a runtime can run pods (`RuntimeClass`' handler).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeHandler {
    /// Its name; empty: the default.
    pub name: String,
    /// Whether mounts below a read-only mount can be read-only, too.
    pub recursive_readonly_mounts: bool,
    /// Whether pods can have user namespaces.
    pub user_namespaces: bool,
}

/// What [`Runtime::status`](crate::Runtime::status) answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeStatus {
    /// What is ready.
    pub conditions: Vec<RuntimeCondition>,
    /// The handlers; none: an older runtime that does not tell.
    pub handlers: Vec<RuntimeHandler>,
    /// Whether `supplementalGroupsPolicy` is kept to.
    pub supplemental_groups_policy: bool,
}

impl RuntimeStatus {
    /// A condition.
    pub fn condition(&self, kind: &str) -> Option<&RuntimeCondition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// A handler.
    pub fn handler(&self, name: &str) -> Option<&RuntimeHandler> {
        self.handlers.iter().find(|h| h.name == name)
    }
}

/// What [`Runtime::exec_sync`](crate::Runtime::exec_sync) answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit code; 128 + signal when killed.
    pub exit_code: i32,
}

/// A readable stream.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// A writable stream.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A running exec or attach. Dropping `stdin` (or shutting it down) is end of file for the process.
pub struct ExecSession {
    /// Standard input, if asked for.
    pub stdin: Option<BoxWrite>,
    /// Standard output (the terminal's, with a tty).
    pub stdout: Option<BoxRead>,
    /// Standard error; none with a tty.
    pub stderr: Option<BoxRead>,
    /// New terminal sizes, (columns, rows).
    pub resize: mpsc::Sender<(u16, u16)>,
    /// The exit code of the exec's process. An attach ends with zero whatever its container ended with, which its status
    /// says. An error: it never began, or nobody can tell.
    pub exit: Pin<Box<dyn Future<Output = crate::error::Result<i32>> + Send>>,
}

/// Usage of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Container.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// Its name in the pod.
    pub name: String,
    /// Its cgroup relative to every hierarchy's root; empty: not known.
    pub cgroup: PathBuf,
    /// When this was read, nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// CPU time used, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory in use, bytes.
    pub memory_usage_bytes: u64,
    /// Memory that cannot be reclaimed easily, bytes.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// The limit, bytes; 0: none.
    pub memory_limit_bytes: u64,
    /// Processes.
    pub pids: u64,
    /// Writable layer, bytes.
    pub writable_layer_bytes: u64,
    /// Writable layer, inodes.
    pub writable_layer_inodes: u64,
}

/// A hint that something happened. Lists are the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container was created.
    ContainerCreated {
        /// Container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
    },
    /// A container's process runs.
    ContainerStarted {
        /// Container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
    },
    /// A container's process ended.
    ContainerExited {
        /// Container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
        /// Exit code.
        exit_code: i32,
    },
    /// A sandbox is no longer usable.
    SandboxGone {
        /// The sandbox.
        sandbox: SandboxId,
    },
}
