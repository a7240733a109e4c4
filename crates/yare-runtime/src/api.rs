//! The types of the [`Runtime`](crate::Runtime) trait: CRI v1's messages as plain Rust structures.
//!
//! The kubelet fills in the configurations; the runtime answers with the statuses. Configurations are
//! serializable because the engine keeps them on disk to find its containers again after a restart.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A sandbox's id: 64 hexadecimal digits.
pub type SandboxId = String;
/// A container's id: 64 hexadecimal digits.
pub type ContainerId = String;
/// An image's id: the digest of its configuration, `sha256:…`.
pub type ImageId = String;

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

/// Which namespace a pod's containers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One namespace for the whole pod.
    #[default]
    Pod,
    /// Each container has its own (PID only).
    Container,
    /// The node's own namespace.
    Node,
}

/// One range of a user namespace mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id outside.
    pub host_id: u32,
    /// First id inside.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// A pod's user namespace (`hostUsers: false`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserNamespace {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// The namespaces of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceModes {
    /// `Pod` or `Node` (`hostNetwork`).
    pub network: NamespaceMode,
    /// `Container`, `Pod` (`shareProcessNamespace`) or `Node` (`hostPID`).
    pub pid: NamespaceMode,
    /// `Pod` or `Node` (`hostIPC`).
    pub ipc: NamespaceMode,
    /// Present: the pod runs in a user namespace with this mapping.
    pub user: Option<UserNamespace>,
}

impl Default for NamespaceModes {
    fn default() -> Self {
        Self {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            user: None,
        }
    }
}

/// What goes into a pod's `/etc/resolv.conf`. All empty: the node's file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Name servers' addresses.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// Transport of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A `hostPort`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: PortProtocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; absent: all.
    pub host_ip: Option<IpAddr>,
}

/// A pod sandbox to make (CRI `PodSandboxConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
    /// How often a sandbox was made for this pod before.
    pub attempt: u32,
    /// Host name inside the pod; empty: the node's (host network).
    pub hostname: String,
    /// Directory of the containers' logs; empty: none.
    pub log_directory: PathBuf,
    /// Name resolution.
    pub dns: DnsConfig,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, for finding the sandbox again.
    pub labels: BTreeMap<String, String>,
    /// Annotations (bandwidth shaping is read from `kubernetes.io/{ingress,egress}-bandwidth`).
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup, relative to the hierarchy's root: `kubepods/burstable/pod<uid>`. Empty: `yare/<sandbox id>`.
    pub cgroup_parent: String,
    /// Namespaced sysctls, `net.core.somaxconn` = `1024`.
    pub sysctls: BTreeMap<String, String>,
    /// Namespaces.
    pub namespaces: NamespaceModes,
    /// Limits of the sandbox as a whole (its overhead is the shim's, which lives outside the pod's cgroup).
    pub resources: Resources,
    /// Whether any container of the pod may be privileged.
    pub privileged: bool,
    /// The runtime's handler (of the pod's `RuntimeClass`); empty: the default.
    pub runtime_handler: String,
}

/// Is the sandbox usable?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Its shim runs and its namespaces stand.
    Ready,
    /// It was stopped or died.
    NotReady,
}

/// What is known of a sandbox (CRI `PodSandboxStatus`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Id.
    pub id: SandboxId,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
    /// Attempt.
    pub attempt: u32,
    /// State.
    pub state: SandboxState,
    /// When it was made, nanoseconds since 1970.
    pub created_at_ns: i64,
    /// The pod's addresses, the primary first; none with the node's network.
    pub ips: Vec<IpAddr>,
    /// Path of the network namespace; none with the node's network, and where the runtime keeps it to itself.
    pub netns: Option<PathBuf>,
    /// The shim's process id; 0 when it does not run or is not known.
    pub shim_pid: i32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Namespaces.
    pub namespaces: NamespaceModes,
    /// The pod's cgroup relative to the hierarchy's root.
    pub cgroup_parent: String,
    /// The handler that made it; empty for the default.
    pub runtime_handler: String,
}

/// How mounts made later travel through a volume mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way (`None`).
    #[default]
    Private,
    /// From the host to the container (`HostToContainer`).
    HostToContainer,
    /// Both ways (`Bidirectional`).
    Bidirectional,
}

/// A mount of a container (CRI `Mount`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where it appears.
    pub container_path: PathBuf,
    /// What appears; a missing directory is an error.
    pub host_path: PathBuf,
    /// Mounted read-only.
    pub readonly: bool,
    /// Mounts below it read-only, too.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
    /// Ask for SELinux relabelling (ignored without SELinux).
    pub selinux_relabel: bool,
    /// An image volume: the image's id or reference; `host_path` is then ignored.
    pub image: Option<String>,
    /// The reference as the user wrote it.
    pub user_specified_image: String,
    /// Sub-path inside the image volume.
    pub image_sub_path: Option<PathBuf>,
}

/// A device node of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where it appears.
    pub container_path: PathBuf,
    /// The node's device.
    pub host_path: PathBuf,
    /// Any of `rwm`.
    pub permissions: String,
}

/// Limits. Absent: unlimited (or, in an update, unchanged).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period_us: Option<u64>,
    /// CFS quota, microseconds; -1: none.
    pub cpu_quota_us: Option<i64>,
    /// CPU shares (cgroup v1 scale; converted to weight for v2).
    pub cpu_shares: Option<u64>,
    /// Memory limit, bytes; -1: none.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap, bytes; -1: unlimited.
    pub memory_swap_limit_bytes: Option<i64>,
    /// OOM score adjustment, -1000..=1000; clamped to what the system allows.
    pub oom_score_adj: Option<i32>,
    /// CPUs, `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Process limit; -1: none.
    pub pids_limit: Option<i64>,
    /// Huge pages: page size (`2MB`) → bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Raw cgroup v2 files (`memory.min`, …), ignored where v2 does not have them.
    pub unified: BTreeMap<String, String>,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The runtime's own profile.
    RuntimeDefault,
    /// No filter.
    #[default]
    Unconfined,
    /// A profile file on the node (Docker's JSON format).
    Localhost(PathBuf),
}

/// Who the container is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// Everything allowed, all devices.
    pub privileged: bool,
    /// User id; absent: `username`, then the image's user, then 0.
    pub uid: Option<u32>,
    /// Group id; absent: the user's own group in the image, then 0.
    pub gid: Option<u32>,
    /// User name, looked up in the image's `/etc/passwd`.
    pub username: Option<String>,
    /// More groups (`fsGroup`, `supplementalGroups`).
    pub supplemental_groups: Vec<u32>,
    /// `supplementalGroupsPolicy: Strict`: the image's `/etc/group` is not consulted.
    pub supplemental_groups_strict: bool,
    /// Root filesystem read-only.
    pub readonly_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// Capabilities beyond the default set: `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    pub add_caps: Vec<String>,
    /// Capabilities taken from the default set.
    pub drop_caps: Vec<String>,
    /// System call filter.
    pub seccomp: SeccompProfile,
    /// AppArmor profile; empty or `unconfined`: none. Ignored where the kernel has no AppArmor.
    pub apparmor: String,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths read-only in the container.
    pub readonly_paths: Vec<String>,
}

/// A container to create (CRI `ContainerConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// The container's name in the pod.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
    /// Image id or reference. It must be present.
    pub image: String,
    /// The image as the pod names it, for the container's status; may be empty.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint (and then also its command).
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Working directory; empty: the image's, then `/`.
    pub working_dir: PathBuf,
    /// Environment, over the image's.
    pub env: Vec<(String, String)>,
    /// Mounts. `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` and `/dev/shm` are the runtime's unless given here.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Devices by their CDI names, `vendor.com/class=name`.
    pub cdi_devices: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's log directory. Empty: no log.
    pub log_path: PathBuf,
    /// Keep a standard input.
    pub stdin: bool,
    /// Close it after the first attach.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Security.
    pub security: SecurityContext,
    /// Signal that asks it to stop (`SIGTERM`, `15`); empty: the image's, then `SIGTERM`.
    pub stop_signal: String,
    /// The container whose PID namespace this one joins; absent: the sandbox's mode.
    pub pid_target: Option<ContainerId>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended.
    Exited,
    /// The runtime cannot tell.
    Unknown,
}

/// What is known of a container (CRI `ContainerStatus`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// Name in the pod.
    pub name: String,
    /// Attempt.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since 1970.
    pub created_at_ns: i64,
    /// Nanoseconds since 1970; 0: not yet.
    pub started_at_ns: i64,
    /// Nanoseconds since 1970; 0: not yet.
    pub finished_at_ns: i64,
    /// The first process's exit code; 128 + signal when killed.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, or empty while it runs.
    pub reason: String,
    /// More about the reason.
    pub message: String,
    /// The image's name: the one it was asked for by, or another that it has.
    pub image: String,
    /// The image's digest reference (`name@sha256:…`) or id.
    pub image_id: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of the log; empty: none.
    pub log_path: PathBuf,
    /// Process id on the node; 0 when it does not run or is not known.
    pub pid: i32,
    /// The mounts that were asked for.
    pub mounts: Vec<Mount>,
    /// The limits in force.
    pub resources: Resources,
    /// The user the process was started as: uid, gid, supplementary groups.
    pub user: Option<ContainerUser>,
}

/// The identity of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub supplemental_groups: Vec<u32>,
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

/// How to authenticate with a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// A token got from the registry's identity service (exchanged for an access token).
    pub identity_token: String,
    /// A bearer token to send as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Layers there are; 0 until the manifest is known.
    pub layers: u32,
    /// Layers that are complete.
    pub layers_done: u32,
    /// Compressed bytes read so far.
    pub bytes: u64,
    /// Compressed bytes in all.
    pub total_bytes: u64,
}

/// Called as a pull goes on.
pub type ProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `sha256:…` of the configuration.
    pub id: ImageId,
    /// `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// Numeric user of the configuration.
    pub uid: Option<i64>,
    /// User name of the configuration, when it is not a number.
    pub username: String,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: PathBuf,
    /// Stop signal.
    pub stop_signal: String,
    /// Declared volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Never collected as garbage.
    pub pinned: bool,
    /// It is the running program itself: no registry has it.
    #[serde(default)]
    pub built_in: bool,
}

/// Space used by a filesystem's images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FsUsage {
    /// The directory.
    pub mountpoint: PathBuf,
    /// Bytes used by images and layers.
    pub used_bytes: u64,
    /// Inodes used by images and layers.
    pub inodes_used: u64,
    /// Size of the filesystem, bytes.
    pub capacity_bytes: u64,
    /// Free for us, bytes.
    pub available_bytes: u64,
    /// Inodes of the filesystem.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// When this was read, nanoseconds since 1970.
    pub timestamp_ns: i64,
}

/// A pod to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetworkRequest {
    /// The sandbox's id.
    pub sandbox_id: SandboxId,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Shaping.
    pub bandwidth: Bandwidth,
}

/// Shaping, bits per second; absent: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress_bps: Option<u64>,
    /// Out of the pod.
    pub egress_bps: Option<u64>,
}

/// The pod network, as the runtime needs it. The binary adapts the real one to this.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects a pod's network namespace and answers its addresses, the primary first.
    async fn attach(&self, pod: PodNetworkRequest) -> Result<Vec<IpAddr>, String>;
    /// Closes its ports on the node, so that the next pod can have them at once. Idempotent, quick.
    async fn close_ports(&self, sandbox_id: &str) -> Result<(), String>;
    /// Disconnects it and frees its addresses. Idempotent; the namespace may be gone already. The kernel takes
    /// tens of milliseconds for it, so nobody is made to wait.
    async fn detach(&self, sandbox_id: &str, netns: Option<&Path>) -> Result<(), String>;
}
