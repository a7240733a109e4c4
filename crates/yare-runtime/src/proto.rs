//! What engine and shim say to each other, and the files they share.
//!
//! One packet is one JSON message over a sequenced-packet unix socket, with descriptors attached where a stream is
//! handed over, so that bulk data never passes through the shim. Big things (a container's specification) travel
//! as files in the container's directory, which also make both sides restartable:
//!
//! | file | written by | says |
//! |---|---|---|
//! | `spec.json` | engine, at creation | everything needed to run the container |
//! | `run.json` | shim, once it runs | pid, start time, resolved user |
//! | `exit.json` | shim, when it ended or could not start | exit code, time, reason |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::api::{ContainerUser, Device, MountPropagation, Resources, SeccompProfile};
use crate::ulimit::Ulimit;

/// One mount, ready to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpecMount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: MountPropagation,
    /// Make the source (as a directory) if it is missing, as container runtimes do for host paths.
    pub create_source: bool,
    /// Overlay layers instead of a source (image volumes): names below the layer root, uppermost first.
    pub layers: Vec<String>,
    /// More attributes of the mount, as `mount_setattr` takes them.
    #[serde(default)]
    pub attributes: u64,
}

/// A device node that is described in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpecNode {
    pub path: PathBuf,
    /// Bound instead, where nodes cannot be made.
    pub host: PathBuf,
    /// `c`, `b`, or `p`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Any of `rwm`.
    pub access: String,
}

/// A program of the node that runs at a moment of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    pub path: PathBuf,
    /// Its name first; empty: nothing but the name.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub timeout_s: Option<u64>,
}

/// Hooks by moment, in the order they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// The user a container asked for; names are looked up in its root filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpecUser {
    /// `uid`, `uid:gid`, `name`, `name:group`, or empty for root.
    pub user: String,
    pub gid: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Do not consult `/etc/group`.
    pub strict: bool,
}

/// Everything the shim needs to run a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub id: String,
    pub name: String,
    /// Directory that holds the layers.
    pub layer_root: PathBuf,
    /// Layer directories relative to `layer_root`, uppermost first.
    pub layers: Vec<String>,
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub user: SpecUser,
    /// Capability bits of the bounding set.
    pub capabilities: u64,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub seccomp: SeccompProfile,
    pub apparmor: String,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub mounts: Vec<SpecMount>,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub nodes: Vec<SpecNode>,
    #[serde(default)]
    pub hooks: Hooks,
    /// For hooks to see.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    pub resources: Resources,
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// Cgroup relative to the hierarchies' roots.
    pub cgroup: PathBuf,
    /// Absolute; empty: no log.
    pub log_path: PathBuf,
    pub stop_signal: i32,
    /// The pod's shared memory, on the host.
    pub shm: PathBuf,
    pub host_network: bool,
    pub pid: crate::api::NamespaceMode,
    /// The container of the same pod whose PID namespace it joins; empty: as `pid` says.
    #[serde(default)]
    pub pid_target: String,
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub pid: i32,
    pub started_at_ns: i64,
    pub user: ContainerUser,
    /// Home directory of the user, for `HOME` in an exec.
    pub home: String,
}

/// `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub exit_code: i32,
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
    pub reason: String,
    pub message: String,
}

/// What a new shim is told: one packet, through the spawner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    pub id: String,
    /// The sandbox's directory of state.
    pub dir: PathBuf,
    /// Directory of all containers' state.
    pub containers_dir: PathBuf,
    /// Where the shim listens.
    pub socket: PathBuf,
    /// Where the network namespace is to be found; none with the node's network.
    pub netns: Option<PathBuf>,
    /// Where shared memory is mounted; none with the node's IPC namespace.
    pub shm: Option<PathBuf>,
    pub hostname: String,
    pub sysctls: Vec<(String, String)>,
    pub namespaces: crate::api::NamespaceModes,
}

/// A question to the shim. Answers carry the same `seq`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub seq: u64,
    pub body: Ask,
}

/// What the engine may ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Run the container whose `spec.json` is in place. Answered with [`Answer::Started`] once it runs.
    Start { id: String },
    /// Ask it to stop, kill it after the grace. Answered at once; the end comes as [`Event::Exited`].
    Stop { id: String, grace_ms: u64 },
    /// Run a command. Descriptors: stdin, stdout, stderr as the flags say; with a tty none.
    Exec { exec: u64, id: String, argv: Vec<String>, tty: bool, stdin: bool },
    /// Kill an exec's process group.
    KillExec { exec: u64 },
    /// Connect to streams. Descriptors: stdout, stderr (without tty). Answered with the stdin or terminal.
    Attach { id: String, stdin: bool },
    /// Open the log file anew.
    ReopenLog { id: String },
    /// A socket connecting to `localhost:port` in the pod's network, as a descriptor.
    Dial { port: u16, v6: bool },
    /// Which containers run.
    List,
    /// Kill everything and end.
    Shutdown,
}

/// The shim's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The container or exec runs. For a tty exec the terminal is attached.
    Started(RunRecord),
    Running(Vec<String>),
    /// The request failed.
    Failed(String),
    /// The container ended already.
    NotRunning(String),
}

/// What the shim sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First packet of a new shim: it is ready (its process id), or why not.
    Ready {
        pid: i32,
        error: Option<String>,
    },
    Reply {
        seq: u64,
        answer: Answer,
    },
    Exited {
        id: String,
        exit_code: i32,
    },
    ExecExited {
        exec: u64,
        exit_code: i32,
    },
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> std::io::Result<T> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}

/// Writes a JSON file so that readers see the old or the new one. Not synced: after a power loss the containers
/// are gone anyway, and unreadable state is cleaned up.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(&temporary, path)
}
