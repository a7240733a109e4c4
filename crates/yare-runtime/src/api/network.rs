//! The pod network, as the runtime needs it: pods are connected and disconnected.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{PortMapping, SandboxId};

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
