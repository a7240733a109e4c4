//! Settings of the resource managers, named and defaulted as upstream's `KubeletConfiguration` v1beta1 has them.

use std::collections::BTreeMap;
use std::time::Duration;

use yare_schema::features::Gates;

use super::machine::Machine;
use crate::config::Settings;

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

impl ManagerSettings {
    /// As a `KubeletConfiguration` has them, which was validated.
    pub(crate) fn configured(config: &Settings, gates: &Gates) -> Self {
        let reserved = config.reserved_memory.iter();
        ManagerSettings {
            cpu_policy: config.cpu_manager_policy.clone(),
            cpu_options: config.cpu_manager_policy_options.clone(),
            cpu_reconcile_period: config.cpu_manager_reconcile_period.get(),
            reserved_cpus: config.reserved_system_cpus.clone(),
            memory_policy: config.memory_manager_policy.clone(),
            // No machine has a node below zero, nor one of the highest number: the memory manager says so.
            reserved_memory: reserved
                .map(|r| (u32::try_from(r.numa_node).unwrap_or(u32::MAX), r.limits.clone()))
                .collect(),
            topology_policy: config.topology_manager_policy.clone(),
            topology_scope: config.topology_manager_scope.clone(),
            topology_options: config.topology_manager_policy_options.clone(),
            alpha_options: gates.is_on("CPUManagerPolicyAlphaOptions"),
            beta_options: gates.is_on("CPUManagerPolicyBetaOptions"),
            ..ManagerSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn configured(fields: &str) -> ManagerSettings {
        let sources = Sources { inline: vec![fields.to_owned()], ..Sources::default() };
        let config = sources.load().unwrap();
        ManagerSettings::configured(config.settings(), config.gates())
    }

    #[test]
    fn fields_are_taken_over() {
        assert_eq!(configured("{}"), ManagerSettings::default());
        let got = configured(
            "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {full-pcpus-only: 'true'}\n\
             cpuManagerReconcilePeriod: 3s\nreservedSystemCPUs: 0-1\nmemoryManagerPolicy: Static\n\
             reservedMemory: [{numaNode: 1, limits: {memory: 1Gi}}]\ntopologyManagerPolicy: restricted\n\
             topologyManagerScope: pod\ntopologyManagerPolicyOptions: {prefer-closest-numa-nodes: 'true'}\n\
             featureGates: {CPUManagerPolicyAlphaOptions: true}",
        );
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let want = ManagerSettings {
            cpu_policy: "static".into(),
            cpu_options: one("full-pcpus-only", "true"),
            cpu_reconcile_period: Duration::from_secs(3),
            reserved_cpus: "0-1".into(),
            memory_policy: "Static".into(),
            reserved_memory: vec![(1, one("memory", "1Gi"))],
            topology_policy: "restricted".into(),
            topology_scope: "pod".into(),
            topology_options: one("prefer-closest-numa-nodes", "true"),
            alpha_options: true,
            ..ManagerSettings::default()
        };
        assert_eq!(got, want);
    }
}
