//! Settings of resources, named and defaulted as upstream's `KubeletConfiguration` v1beta1 has them.

use std::collections::BTreeMap;
use std::time::Duration;

use yare_schema::features::Gates;

use crate::config::Settings;

/// A resource, or an eviction signal, and an amount as text.
pub type Amounts = BTreeMap<String, String>;

/// What a node reserves, limits, evicts and collects.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceSettings {
    /// `systemReserved`: kept for the system; `cpu`, `memory`, `ephemeral-storage`, `pid`.
    pub system_reserved: Amounts,
    /// `kubeReserved`: kept for the node agent and the runtime.
    pub kube_reserved: Amounts,
    /// `systemReservedCgroup`: the group that the system's reservation is enforced on.
    pub system_reserved_cgroup: String,
    /// `kubeReservedCgroup`.
    pub kube_reserved_cgroup: String,
    /// `enforceNodeAllocatable`: `pods`, `system-reserved`, `kube-reserved`, `…-compressible`, or `none` alone.
    pub enforce_node_allocatable: Vec<String>,
    /// `cgroupsPerQOS`: pods live in groups by their class.
    pub cgroups_per_qos: bool,
    /// `cgroupRoot`: the group below which the pods' tree is; empty: the root.
    pub cgroup_root: String,
    /// `cpuCFSQuota`: CPU limits are enforced.
    pub cpu_cfs_quota: bool,
    /// `cpuCFSQuotaPeriod`.
    pub cpu_cfs_quota_period: Duration,
    /// `memorySwap.swapBehavior`.
    pub swap: SwapBehavior,
    /// Feature gate `MemoryQoS`: `memory.high` of containers, on v2 alone.
    pub memory_qos: bool,
    /// `memoryThrottlingFactor`: between request and limit (or the node's allocatable), where throttling begins.
    pub memory_throttling_factor: f64,
    /// `memoryReservationPolicy`: with `MemoryQoS`, whether requests are protected.
    pub memory_reservation: MemoryReservation,
    /// `singleProcessOOMKill`: out of memory costs one process and not the whole container. Absent: the kernel's
    /// way on v1, the whole container on v2.
    pub single_process_oom_kill: Option<bool>,
    /// Evictions.
    pub eviction: EvictionSettings,
    /// Images that nobody uses.
    pub image_gc: ImageGcSettings,
    /// Containers that have ended.
    pub dead_containers: DeadContainers,
    /// `volumeStatsAggPeriod`: the least time between two walks over one pod's local storage.
    pub volume_stats_period: Duration,
    /// `localStorageCapacityIsolation`: limits of ephemeral storage are kept.
    pub local_storage_isolation: bool,
}

/// `memorySwap.swapBehavior`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwapBehavior {
    /// Pods do not swap.
    #[default]
    NoSwap,
    /// Burstable pods swap in proportion to their memory requests; v2 alone.
    LimitedSwap,
}

/// `memoryReservationPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryReservation {
    /// Requests are not protected.
    #[default]
    None,
    /// `memory.min` for guaranteed pods, `memory.low` for burstable ones.
    TieredReservation,
}

/// When pods are evicted for what the node lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictionSettings {
    /// `evictionHard`: signal and least amount (a quantity or a percentage), acted upon at once.
    pub hard: Amounts,
    /// `evictionSoft`: acted upon after the signal's grace period.
    pub soft: Amounts,
    /// `evictionSoftGracePeriod`: as Go writes durations (`1m30s`).
    pub soft_grace_period: Amounts,
    /// `evictionMinimumReclaim`: how much more than the threshold has to be free again.
    pub minimum_reclaim: Amounts,
    /// `evictionPressureTransitionPeriod`: how long a condition stays after its cause is gone.
    pub pressure_transition_period: Duration,
    /// `evictionMaxPodGracePeriod`: the most that a pod gets in a soft eviction, seconds.
    pub max_pod_grace_period_s: i64,
    /// Whether the kernel tells of memory pressure between two looks.
    pub kernel_notification: bool,
    /// Between two looks.
    pub monitoring_period: Duration,
}

/// `imageGC…`, `image…GCAge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGcSettings {
    /// `imageGCHighThresholdPercent`: disk usage from which images are removed.
    pub high_percent: i32,
    /// `imageGCLowThresholdPercent`: disk usage down to which.
    pub low_percent: i32,
    /// `imageMinimumGCAge`: younger ones stay.
    pub minimum_age: Duration,
    /// `imageMaximumGCAge`: those unused for longer go in any case; zero: never.
    pub maximum_age: Duration,
    /// Between two looks.
    pub period: Duration,
}

/// `--maximum-dead-containers…`, `--minimum-container-ttl-duration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadContainers {
    /// Ended instances that are kept of each container; negative: all.
    pub per_container: i32,
    /// Ended containers that are kept in all; negative: any number.
    pub total: i32,
    /// Younger ones stay.
    pub minimum_age: Duration,
    /// Between two looks.
    pub period: Duration,
}

fn amounts(pairs: &[(&str, &str)]) -> Amounts {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

impl Default for ResourceSettings {
    fn default() -> Self {
        ResourceSettings {
            system_reserved: Amounts::new(),
            kube_reserved: Amounts::new(),
            system_reserved_cgroup: String::new(),
            kube_reserved_cgroup: String::new(),
            enforce_node_allocatable: vec!["pods".to_owned()],
            cgroups_per_qos: true,
            cgroup_root: String::new(),
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: Duration::from_millis(100),
            swap: SwapBehavior::NoSwap,
            memory_qos: false,
            memory_throttling_factor: 0.9,
            memory_reservation: MemoryReservation::None,
            single_process_oom_kill: None,
            eviction: EvictionSettings::default(),
            image_gc: ImageGcSettings::default(),
            dead_containers: DeadContainers::default(),
            volume_stats_period: Duration::from_secs(60),
            local_storage_isolation: true,
        }
    }
}

impl Default for EvictionSettings {
    fn default() -> Self {
        EvictionSettings {
            // Upstream's 10 % and 15 % of a disk mean 25 GB and more on an ordinary laptop; k3s chose 5 % too.
            hard: amounts(&[
                ("memory.available", "100Mi"),
                ("nodefs.available", "5%"),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", "5%"),
                ("imagefs.inodesFree", "5%"),
            ]),
            soft: Amounts::new(),
            soft_grace_period: Amounts::new(),
            minimum_reclaim: Amounts::new(),
            pressure_transition_period: Duration::from_secs(300),
            max_pod_grace_period_s: 0,
            kernel_notification: true,
            monitoring_period: Duration::from_secs(10),
        }
    }
}

impl Default for ImageGcSettings {
    fn default() -> Self {
        ImageGcSettings {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_secs(120),
            maximum_age: Duration::ZERO,
            period: Duration::from_secs(300),
        }
    }
}

impl Default for DeadContainers {
    fn default() -> Self {
        DeadContainers {
            per_container: 1,
            total: -1,
            minimum_age: Duration::ZERO,
            period: Duration::from_secs(60),
        }
    }
}

impl ResourceSettings {
    /// As a `KubeletConfiguration` has them, which was validated.
    pub(crate) fn configured(config: &Settings, gates: &Gates) -> Self {
        let defaults = Self::default();
        let mut hard = config.eviction_hard.clone();
        if hard.is_empty() || config.merge_default_eviction_settings {
            for (signal, amount) in defaults.eviction.hard.clone() {
                hard.entry(signal).or_insert(amount);
            }
        }
        ResourceSettings {
            system_reserved: config.system_reserved.clone(),
            kube_reserved: config.kube_reserved.clone(),
            system_reserved_cgroup: config.system_reserved_cgroup.clone(),
            kube_reserved_cgroup: config.kube_reserved_cgroup.clone(),
            enforce_node_allocatable: config.enforce_node_allocatable.clone(),
            cgroups_per_qos: config.cgroups_per_qos,
            cgroup_root: config.cgroup_root.clone(),
            cpu_cfs_quota: config.cpu_cfs_quota,
            cpu_cfs_quota_period: config.cpu_cfs_quota_period.get(),
            swap: match config.memory_swap.swap_behavior.as_str() {
                "LimitedSwap" => SwapBehavior::LimitedSwap,
                _ => SwapBehavior::NoSwap,
            },
            memory_qos: gates.is_on("MemoryQoS"),
            memory_throttling_factor: config.memory_throttling_factor,
            memory_reservation: match config.memory_reservation_policy.as_str() {
                "TieredReservation" => MemoryReservation::TieredReservation,
                _ => MemoryReservation::None,
            },
            single_process_oom_kill: config.single_process_oom_kill,
            eviction: EvictionSettings {
                hard,
                soft: config.eviction_soft.clone(),
                soft_grace_period: config.eviction_soft_grace_period.clone(),
                minimum_reclaim: config.eviction_minimum_reclaim.clone(),
                pressure_transition_period: config.eviction_pressure_transition_period.get(),
                max_pod_grace_period_s: i64::from(config.eviction_max_pod_grace_period),
                ..defaults.eviction
            },
            image_gc: ImageGcSettings {
                high_percent: config.image_gc_high_threshold_percent,
                low_percent: config.image_gc_low_threshold_percent,
                minimum_age: config.image_minimum_gc_age.get(),
                maximum_age: config.image_maximum_gc_age.get(),
                ..defaults.image_gc
            },
            volume_stats_period: config.volume_stats_agg_period.get(),
            local_storage_isolation: config.local_storage_capacity_isolation,
            dead_containers: defaults.dead_containers,
        }
    }

    /// Whether `enforceNodeAllocatable` has this word.
    pub(crate) fn enforces(&self, word: &str) -> bool {
        self.enforce_node_allocatable.iter().any(|w| w == word)
    }

    /// Between two looks; zero would mean to look without end.
    pub(crate) fn monitoring_period(&self) -> Duration {
        self.eviction.monitoring_period.max(Duration::from_millis(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Configuration, Sources};

    fn configured(fields: &str) -> ResourceSettings {
        let sources = Sources { inline: vec![fields.to_owned()], ..Sources::default() };
        let config: Configuration = sources.load().unwrap();
        ResourceSettings::configured(config.settings(), config.gates())
    }

    #[test]
    fn fields_are_taken_over() {
        assert_eq!(configured("{}"), ResourceSettings::default());
        let s = configured(
            "evictionHard: {nodefs.available: 1%}\nsystemReserved: {cpu: 200m}\nevictionPressureTransitionPeriod: 30s\n\
             memorySwap: {swapBehavior: LimitedSwap}\ncpuCFSQuota: false\nenforceNodeAllocatable: [none]\n\
             featureGates: {MemoryQoS: true}\nmemoryReservationPolicy: TieredReservation\ncgroupRoot: /a",
        );
        assert_eq!(s.eviction.hard, amounts(&[("nodefs.available", "1%")]));
        assert_eq!(s.system_reserved, amounts(&[("cpu", "200m")]));
        assert_eq!(s.eviction.pressure_transition_period, Duration::from_secs(30));
        assert_eq!((s.swap, s.cpu_cfs_quota), (SwapBehavior::LimitedSwap, false));
        assert!(s.enforces("none") && !s.enforces("pods") && s.memory_qos);
        assert_eq!(
            (s.memory_reservation, s.cgroup_root.as_str()),
            (MemoryReservation::TieredReservation, "/a")
        );
        let merged = configured("evictionHard: {nodefs.available: 1%}\nmergeDefaultEvictionSettings: true")
            .eviction
            .hard;
        assert_eq!(
            (merged["nodefs.available"].as_str(), merged["memory.available"].as_str()),
            ("1%", "100Mi")
        );
    }
}
