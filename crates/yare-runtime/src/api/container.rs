//! Containers: the configuration of one, its mounts, devices, limits and identity, and what is known of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SandboxId;

/// A container's id: 64 hexadecimal digits.
pub type ContainerId = String;

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

/// A filter of system calls.
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
