//! Settings of the resource managers, named and defaulted as upstream's `KubeletConfiguration` v1beta1 has them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::Machine;

/// What the managers do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerSettings {
    /// `cpuManagerPolicy`: `none` or `static`.
    pub cpu_policy: String,
    /// `cpuManagerPolicyOptions`.
    pub cpu_options: BTreeMap<String, String>,
    /// `cpuManagerReconcilePeriod`.
    pub cpu_reconcile_period: Duration,
    /// `reservedSystemCPUs`: these processors and no others are the system's; empty: as many as are reserved.
    pub reserved_cpus: String,
    /// `memoryManagerPolicy`: `None` or `Static`.
    pub memory_policy: String,
    /// `reservedMemory`: NUMA node, and by resource what is reserved on it.
    pub reserved_memory: Vec<(u32, BTreeMap<String, String>)>,
    /// `topologyManagerPolicy`: `none`, `best-effort`, `restricted` or `single-numa-node`.
    pub topology_policy: String,
    /// `topologyManagerScope`: `container` or `pod`.
    pub topology_scope: String,
    /// `topologyManagerPolicyOptions`.
    pub topology_options: BTreeMap<String, String>,
    /// Feature gates `CPUManagerPolicyAlphaOptions` and `CPUManagerPolicyBetaOptions`.
    pub alpha_options: bool,
    /// See [`Self::alpha_options`].
    pub beta_options: bool,
    /// Time for a driver of dynamic resources to come back, before what it published is removed.
    pub dra_wiping_delay: Duration,
    /// The machine; none: it is looked at.
    pub machine: Option<Machine>,
}

impl Default for ManagerSettings {
    fn default() -> Self {
        ManagerSettings {
            cpu_policy: "none".to_owned(),
            cpu_options: BTreeMap::new(),
            cpu_reconcile_period: Duration::from_secs(10),
            reserved_cpus: String::new(),
            memory_policy: "None".to_owned(),
            reserved_memory: Vec::new(),
            topology_policy: "none".to_owned(),
            topology_scope: "container".to_owned(),
            topology_options: BTreeMap::new(),
            alpha_options: false,
            beta_options: true,
            dra_wiping_delay: Duration::from_secs(30),
            machine: None,
        }
    }
}
