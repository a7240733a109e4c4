//! Sandboxes: the configuration of one, its namespaces, host ports and name resolution, and what is known of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Resources;

/// A sandbox's id: 64 hexadecimal digits.
pub type SandboxId = String;

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
