//! What must hold of a configuration beyond each value's form, in upstream's words
//! (`pkg/kubelet/apis/config/validation`). Rows whose other values are refused anyway need no rule here.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use yare_schema::features::Gates;

use super::settings::{Period, Settings};

const SECOND: i64 = 1_000_000_000;

/// Everything that is wrong.
pub(super) fn check(s: &Settings, gates: &Gates) -> Vec<String> {
    let mut errors = Vec::new();
    let mut refuse = |text: String| errors.push(format!("invalid configuration: {text}"));
    if s.node_lease_duration_seconds <= 0 {
        refuse("nodeLeaseDurationSeconds must be greater than 0".into());
    }
    for (name, value) in [
        ("eventBurst (--event-burst)", i64::from(s.event_burst)),
        ("eventRecordQPS (--event-qps)", s.event_record_qps.into()),
        ("kubeAPIBurst (--kube-api-burst)", s.kube_api_burst.into()),
        ("kubeAPIQPS (--kube-api-qps)", s.kube_api_qps.into()),
        ("maxOpenFiles (--max-open-files)", s.max_open_files),
        ("maxPods (--max-pods)", s.max_pods.into()),
        ("podsPerCore (--pods-per-core)", s.pods_per_core.into()),
        ("registryBurst (--registry-burst)", s.registry_burst.into()),
        ("registryPullQPS (--registry-qps)", s.registry_pull_qps.into()),
    ] {
        if value < 0 {
            refuse(format!("{name} {value} must not be a negative number"));
        }
    }
    const PORTS: RangeInclusive<i32> = 1..=65535;
    if s.healthz_port != 0 && !PORTS.contains(&s.healthz_port) {
        refuse(format!(
            "healthzPort (--healthz-port) {} must be between 1 and 65535, inclusive",
            s.healthz_port
        ));
    }
    // Upstream refuses port 0; here it takes a free one, as --kubelet-port does.
    if s.port != 0 && !PORTS.contains(&s.port) {
        refuse(format!("port (--port) {} must be between 1 and 65535, inclusive", s.port));
    }
    if s.read_only_port != 0 && !PORTS.contains(&s.read_only_port) {
        refuse(format!(
            "readOnlyPort (--read-only-port) {} must be between 0 and 65535, inclusive",
            s.read_only_port
        ));
    }
    for (name, value, range) in [
        (
            "imageGCHighThresholdPercent (--image-gc-high-threshold)",
            s.image_gc_high_threshold_percent,
            0..=100,
        ),
        ("imageGCLowThresholdPercent (--image-gc-low-threshold)", s.image_gc_low_threshold_percent, 0..=100),
        ("iptablesDropBit (--iptables-drop-bit)", s.iptables_drop_bit, 0..=31),
        ("iptablesMasqueradeBit (--iptables-masquerade-bit)", s.iptables_masquerade_bit, 0..=31),
        ("oomScoreAdj (--oom-score-adj)", s.oom_score_adj, -1000..=1000),
    ] {
        if !range.contains(&value) {
            let (low, high) = range.into_inner();
            refuse(format!("{name} {value} must be between {low} and {high}, inclusive"));
        }
    }
    if s.image_gc_low_threshold_percent >= s.image_gc_high_threshold_percent {
        refuse(format!(
            "imageGCLowThresholdPercent (--image-gc-low-threshold) {} must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) {}",
            s.image_gc_low_threshold_percent, s.image_gc_high_threshold_percent
        ));
    }
    let (minimum, maximum) = (s.image_minimum_gc_age, s.image_maximum_gc_age);
    for (name, age) in [("imageMinimumGCAge", minimum), ("imageMaximumGCAge", maximum)] {
        if age.nanos < 0 {
            refuse(format!("{name} {age} must not be negative"));
        }
    }
    if maximum.nanos > 0 && maximum <= minimum {
        refuse(format!("imageMaximumGCAge {maximum} must be greater than imageMinimumGCAge {minimum}"));
    }
    let cfs = s.cpu_cfs_quota_period;
    if !(1_000_000..=SECOND).contains(&cfs.nanos) {
        refuse(format!(
            "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {{{cfs}}} must be between 1ms and 1sec, inclusive"
        ));
    }
    if s.node_status_max_images < -1 {
        refuse(format!(
            "nodeStatusMaxImages (--node-status-max-images) {} must be -1 or greater",
            s.node_status_max_images
        ));
    }
    match s.max_parallel_image_pulls {
        Some(n) if n < 1 => refuse(format!("maxParallelImagePulls {n} must be a positive number")),
        Some(n) if n > 1 && s.serialize_image_pulls => refuse(
            "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set to false".into(),
        ),
        _ => {}
    }
    if s.server_tls_bootstrap && !gates.is_on("RotateKubeletServerCertificate") {
        refuse("serverTLSBootstrap true requires feature gate RotateKubeletServerCertificate".into());
    }
    if s.run_once {
        refuse("runOnce (--runOnce) true, Runonce mode has been deprecated and should not be set".into());
    }
    for taint in &s.register_with_taints {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if taint.key.is_empty() || !effects.contains(&taint.effect.as_str()) {
            errors.push(format!("invalid taint: {{{} {} {}}}", taint.key, taint.value, taint.effect));
        }
    }
    let mut refuse = |text: String| errors.push(format!("invalid configuration: {text}"));
    let policies = ["none", "best-effort", "restricted", "single-numa-node"];
    if !policies.contains(&s.topology_manager_policy.as_str()) {
        refuse(format!(
            "topologyManagerPolicy (--topology-manager-policy) {:?} must be one of: {}",
            s.topology_manager_policy,
            quoted(&policies)
        ));
    }
    if !["container", "pod"].contains(&s.topology_manager_scope.as_str()) {
        refuse(format!(
            "topologyManagerScope (--topology-manager-scope) {:?} must be one of: \"container\", or \"pod\"",
            s.topology_manager_scope
        ));
    }
    shutdown(s, gates, &mut refuse);
    if !["", "NoSwap", "LimitedSwap"].contains(&s.memory_swap.swap_behavior.as_str()) {
        refuse(format!(
            "memorySwap.swapBehavior {:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
            s.memory_swap.swap_behavior
        ));
    }
    match s.crash_loop_back_off.max_container_restart_period {
        Some(_) if !gates.is_on("KubeletCrashLoopBackOffMax") => refuse(
            "FeatureGate KubeletCrashLoopBackOffMax not enabled, CrashLoopBackOff.MaxContainerRestartPeriod must not be set".into(),
        ),
        Some(period) if !(SECOND..=300 * SECOND).contains(&period.nanos) => refuse(format!(
            "CrashLoopBackOff.MaxContainerRestartPeriod (got: {} seconds) must be set between 1s and 300s",
            period.nanos / SECOND
        )),
        _ => {}
    }
    allocatable(s, &mut refuse);
    if !["none", "hairpin-veth", "promiscuous-bridge"].contains(&s.hairpin_mode.as_str()) {
        refuse(format!(
            "option {:?} specified for hairpinMode (--hairpin-mode). Valid options are \"none\", \"hairpin-veth\" or \"promiscuous-bridge\"",
            s.hairpin_mode
        ));
    }
    let policies =
        ["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"];
    if gates.is_on("KubeletEnsureSecretPulledImages") {
        if !policies.contains(&s.image_pull_credentials_verification_policy.as_str()) {
            refuse(format!(
                "option {:?} specified for imagePullCredentialsVerificationPolicy. Valid options are \"NeverVerify\", \"NeverVerifyPreloadedImages\", \"NeverVerifyAllowlistedImages\" or \"AlwaysVerify\"",
                s.image_pull_credentials_verification_policy
            ));
        }
        if !s.preloaded_images_verification_allowlist.is_empty()
            && s.image_pull_credentials_verification_policy != "NeverVerifyAllowlistedImages"
        {
            refuse("can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVertificationPolicy` is not \"NeverVerifyAllowlistedImages\"".into());
        }
        for pattern in &s.preloaded_images_verification_allowlist {
            if let Err(why) = crate::images::verification::check_pattern(pattern) {
                refuse(format!("preloadedImagesVerificationAllowlist: {why}"));
            }
        }
    }
    let own_groups = [&s.system_reserved_cgroup, &s.kube_reserved_cgroup].iter().any(|g| !g.is_empty());
    if own_groups && !s.reserved_system_cpus.is_empty() {
        refuse("can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)".into());
    }
    reserved_memory(s, &mut refuse);
    let factor = s.memory_throttling_factor;
    if !(factor > 0.0 && factor <= 1.0) {
        refuse(format!(
            "memoryThrottlingFactor {factor} must be greater than 0 and less than or equal to 1.0"
        ));
    }
    match s.memory_reservation_policy.as_str() {
        "TieredReservation" if !gates.is_on("MemoryQoS") => refuse(
            "memoryReservationPolicy \"TieredReservation\" requires MemoryQoS feature gate to be enabled"
                .into(),
        ),
        "None" | "TieredReservation" => {}
        other => refuse(format!(
            "option {other:?} specified for memoryReservationPolicy. Valid options are \"None\" or \"TieredReservation\""
        )),
    }
    if s.enable_system_log_query && !s.enable_system_log_handler {
        refuse("enableSystemLogHandler is required for enableSystemLogQuery".into());
    }
    if s.container_log_max_workers < 1 {
        refuse("containerLogMaxWorkers must be greater than or equal to 1".into());
    }
    if s.container_log_monitor_interval.nanos < 3 * SECOND {
        refuse(
            "containerLogMonitorInterval must be a positive time duration greater than or equal to 3s".into(),
        );
    }
    if s.container_log_max_files <= 1 {
        refuse("containerLogMaxFiles must be greater than 1".into());
    }
    match yare_schema::quantity::Quantity::parse(&s.container_log_max_size) {
        Ok(size) if size.value() > 0 => {}
        // Upstream: of the log manager, when it starts.
        Ok(_) => errors.push("invalid container log max size, should be > 0".into()),
        Err(error) => errors
            .push(format!("failed to parse container log max size {:?}: {error}", s.container_log_max_size)),
    }
    if !["AlwaysAllow", "Webhook"].contains(&s.authorization.mode.as_str()) {
        // Upstream: when the authorizer is made.
        errors.push(format!("unknown authorization mode {}", s.authorization.mode));
    }
    if let Some(ids) = s.user_namespaces.ids_per_pod {
        let mut refuse =
            |text: &str| errors.push(format!("invalid configuration: userNamespaces.idsPerPod must {text}"));
        if ids < 65536 {
            refuse("not be less than 65536");
        } else if ids % 65536 != 0 {
            refuse("be a multiple of 65536");
        } else if ids > i64::from(u32::MAX) {
            refuse("not be more than 4294967295");
        }
    }
    errors.extend(s.tracing.problems("tracing"));
    errors
}

fn quoted(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("[{}]", names.join(" "))
}

fn shutdown(s: &Settings, gates: &Gates, refuse: &mut impl FnMut(String)) {
    let (all, critical) = (s.shutdown_grace_period, s.shutdown_grace_period_critical_pods);
    let by_priority = !s.shutdown_grace_period_by_pod_priority.is_empty();
    let is_set = all.nanos > 0 || critical.nanos > 0;
    let short = |period: Period| period.nanos < 0 || (period.nanos > 0 && period.nanos < SECOND);
    if gates.is_on("GracefulNodeShutdown") {
        if critical > all {
            refuse(format!(
                "shutdownGracePeriodCriticalPods {{{critical}}} must be <= shutdownGracePeriod {{{all}}}"
            ));
        }
        for (name, period) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
            if short(period) {
                refuse(format!("{name} {{{period}}} must be either zero or otherwise >= 1 sec"));
            }
        }
    } else if is_set {
        refuse("specifying shutdownGracePeriod or shutdownGracePeriodCriticalPods requires feature gate GracefulNodeShutdown".into());
    }
    if !by_priority {
        return;
    }
    if !gates.is_on("GracefulNodeShutdownBasedOnPodPriority") {
        refuse("Specifying shutdownGracePeriodByPodPriority requires feature gate GracefulNodeShutdownBasedOnPodPriority".into());
    } else if is_set {
        refuse(
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time"
                .into(),
        );
    }
}

fn allocatable(s: &Settings, refuse: &mut impl FnMut(String)) {
    const FLAG: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
    let all = &s.enforce_node_allocatable;
    let has = |name: &str| all.iter().any(|given| given == name);
    for (whole, compressible) in
        [("system-reserved", "system-reserved-compressible"), ("kube-reserved", "kube-reserved-compressible")]
    {
        if has(whole) && has(compressible) {
            refuse(format!("both {whole:?} and {compressible:?} cannot be specified together in {FLAG}"));
        }
    }
    let mut seen = BTreeSet::new();
    for name in all {
        if !seen.insert(name) {
            refuse(format!("duplicated enforcements {name:?} in {FLAG}"));
            continue;
        }
        match name.as_str() {
            "pods" => {}
            "system-reserved" | "system-reserved-compressible" => {
                if s.system_reserved_cgroup.is_empty() {
                    refuse(format!(
                        "systemReservedCgroup (--system-reserved-cgroup) must be specified when \"system-reserved\" or \"system-reserved-compressible\" included in {FLAG}"
                    ));
                }
            }
            "kube-reserved" | "kube-reserved-compressible" => {
                if s.kube_reserved_cgroup.is_empty() {
                    refuse(format!(
                        "kubeReservedCgroup (--kube-reserved-cgroup) must be specified when \"kube-reserved\" or \"kube-reserved-compressible\" included in {FLAG}"
                    ));
                }
            }
            "none" => {
                if all.len() > 1 {
                    refuse(format!(
                        "{FLAG} may not contain additional enforcements when \"none\" is specified"
                    ));
                }
                continue;
            }
            other => {
                refuse(format!(
                    "option {other:?} specified for {FLAG}. Valid options are \"pods\", \"system-reserved\", \"system-reserved-compressible\", \"kube-reserved\", \"kube-reserved-compressible\" or \"none\""
                ));
                continue;
            }
        }
        if !s.cgroups_per_qos {
            refuse(format!(
                "cgroupsPerQOS (--cgroups-per-qos) must be set to true when {name:?} contained in {FLAG}"
            ));
        }
    }
}

fn reserved_memory(s: &Settings, refuse: &mut impl FnMut(String)) {
    let mut seen = BTreeSet::new();
    for reservation in &s.reserved_memory {
        let node = reservation.numa_node;
        for (name, amount) in &reservation.limits {
            if name != "memory" && !name.starts_with("hugepages-") {
                refuse(format!(
                    "the limit type {name:?} for NUMA node {node} is not supported, only [memory hugepages-<HugePageSize>] is accepted"
                ));
            }
            if yare_schema::quantity::Quantity::parse(amount).is_ok_and(|q| q.is_zero()) {
                refuse(format!("reserved memory may not be zero for NUMA node {node} and resource {name:?}"));
            }
            if !seen.insert((node, name)) {
                refuse(format!(
                    "the reserved memory has a duplicate value for NUMA node {node} and resource {name:?}"
                ));
            }
        }
    }
}
