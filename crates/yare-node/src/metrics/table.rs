//! The node agent's metrics: a row each, in the order of names, under upstream's names.
//!
//! **To add one**: its row here, in [`TABLE`] too, and a `count`, `set` or `observe` where it happens. What is only
//! known when somebody asks is set in [`super::now`].

use yare_metrics::table::Family;
use yare_metrics::table::Kind::{Counter, Gauge, Histogram};

/// Prometheus' usual bounds, seconds.
const USUAL_S: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How long starts of pods take, seconds.
const STARTS_S: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// How long pulls take, seconds.
const PULLS_S: &[f64] = &[
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0,
];
/// How long statuses are on their way, seconds.
const STATUSES_S: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// How long a runtime takes, seconds: each bound two and a half times the one before.
const OPERATIONS_S: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
/// How long drivers of devices take, seconds: from 0.1 to 40 in equal ratios.
const DRIVERS_S: &[f64] = &[
    0.1,
    0.153_412_740_463_439_1,
    0.235_354_689_365_024_96,
    0.361_064_078_764_099_5,
    0.553_918_298_061_075_2,
    0.849_781_240_983_936_3,
    1.303_672_689_737_678,
    2.0,
    3.068_254_809_268_781,
    4.707_093_787_300_503,
    7.221_281_575_281_985,
    11.078_365_961_221_5,
    16.995_624_819_678_717,
    26.073_453_794_753_55,
    40.0,
];
/// How long resizes take, milliseconds.
const RESIZES_MS: &[f64] = &[
    10.0, 50.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 30000.0, 60000.0, 120_000.0,
    300_000.0, 600_000.0,
];
/// How long admissions take, milliseconds: each bound twice the one before.
const ADMISSIONS_MS: &[f64] =
    &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];
const ALIGNMENT: &[&str] = &["boundary", "scope"];
const SERVED: &[&str] = &["server_api_version"];
const HTTP: &[&str] = &["long_running", "method", "path", "server_type"];
const CLAIM: &[&str] = &["namespace", "persistentvolumeclaim"];

macro_rules! table {
    ($($id:ident: $name:literal, $kind:expr, $labels:expr, $help:literal;)*) => {
        $(#[doc = $help] pub(crate) static $id: Family = Family::row($name, $kind, $labels, $help);)*
        /// All rows.
        pub(crate) const TABLE: &[&Family] = &[$(&$id),*];
    };
}

#[rustfmt::skip]
table! {
    DRA_GRPC_DURATION: "dra_grpc_operations_duration_seconds", Histogram(DRIVERS_S), &["driver_name", "grpc_status_code", "method_name"], "[ALPHA] Duration in seconds of the DRA gRPC operations";
    DRA_DURATION: "dra_operations_duration_seconds", Histogram(DRIVERS_S), &["is_error", "operation_name"], "[ALPHA] Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by the success of the operation. The number of failed operations is provided through the histogram's overall count.";
    DRA_CLAIMS: "dra_resource_claims_in_use", Gauge, &["driver_name"], "[ALPHA] The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices from different drivers. Instead, use the count for the <any> driver_name.";
    ACTIVE_PODS: "kubelet_active_pods", Gauge, &["static"], "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.";
    ADMISSION_REJECTIONS: "kubelet_admission_rejections_total", Counter, &["reason"], "[ALPHA] Cumulative number pod admission rejections by the Kubelet.";
    CGROUP_VERSION: "kubelet_cgroup_version", Gauge, &[], "[ALPHA] cgroup version on the hosts.";
    LOG_BYTES: "kubelet_container_log_filesystem_used_bytes", Gauge, &["container", "namespace", "pod", "uid"], "[ALPHA] Bytes used by the container's logs on the filesystem.";
    REQUESTED_RESIZES: "kubelet_container_requested_resizes_total", Counter, &["operation", "requirement", "resource"], "[ALPHA] Number of requested resizes, counted at the container level. Different resources on the same container are counted separately. The 'requirement' label refers to 'memory' or 'limits'; the 'operation' label can be one of 'add', 'remove', 'increase' or 'decrease'.";
    ALIGNED: "kubelet_container_aligned_compute_resources_count", Counter, ALIGNMENT, "[ALPHA] Cumulative number of aligned compute resources allocated to containers by alignment type.";
    UNALIGNED: "kubelet_container_aligned_compute_resources_failure_count", Counter, ALIGNMENT, "[ALPHA] Cumulative number of failures to allocate aligned compute resources to containers by alignment type.";
    CONTAINERS_PER_POD: "kubelet_containers_per_pod_count", Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0]), &[], "[ALPHA] The number of containers per pod.";
    CPUS_BY_NODE: "kubelet_cpu_manager_allocation_per_numa", Gauge, &["numa_node"], "[ALPHA] Number of CPUs allocated per NUMA node";
    CPUS_EXCLUSIVE: "kubelet_cpu_manager_exclusive_cpu_allocation_count", Gauge, &[], "[ALPHA] The total number of CPUs exclusively allocated to containers running on this node";
    CPU_PINNING_ERRORS: "kubelet_cpu_manager_pinning_errors_total", Counter, &[], "[ALPHA] The number of cpu core allocations which required pinning failed.";
    CPU_PINNINGS: "kubelet_cpu_manager_pinning_requests_total", Counter, &[], "[ALPHA] The number of cpu core allocations which required pinning.";
    CPUS_SHARED: "kubelet_cpu_manager_shared_pool_size_millicores", Gauge, &[], "[ALPHA] The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.";
    DESIRED_PODS: "kubelet_desired_pods", Gauge, &["static"], "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.";
    DEVICE_ALLOCATION_DURATION: "kubelet_device_plugin_alloc_duration_seconds", Histogram(USUAL_S), &["resource_name"], "[ALPHA] Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.";
    DEVICE_REGISTRATIONS: "kubelet_device_plugin_registration_total", Counter, &["resource_name"], "[ALPHA] Cumulative number of device plugin registrations. Broken down by resource name.";
    EVICTION_AGE: "kubelet_eviction_stats_age_seconds", Histogram(USUAL_S), &["eviction_signal"], "[ALPHA] Time between when stats are collected, and when pod is evicted based on those stats by eviction signal";
    EVICTIONS: "kubelet_evictions", Counter, &["eviction_signal"], "[ALPHA] Cumulative number of pod evictions by eviction signal";
    SHUTDOWN_END: "kubelet_graceful_shutdown_end_time_seconds", Gauge, &[], "[ALPHA] Last graceful shutdown end time since unix epoch in seconds";
    SHUTDOWN_START: "kubelet_graceful_shutdown_start_time_seconds", Gauge, &[], "[ALPHA] Last graceful shutdown start time since unix epoch in seconds";
    HTTP_INFLIGHT: "kubelet_http_inflight_requests", Gauge, HTTP, "[ALPHA] Number of the inflight http requests";
    HTTP_DURATION: "kubelet_http_requests_duration_seconds", Histogram(USUAL_S), HTTP, "[ALPHA] Duration in seconds to serve http requests";
    HTTP_REQUESTS: "kubelet_http_requests_total", Counter, HTTP, "[ALPHA] Number of the http requests received since the server started";
    IMAGES_COLLECTED: "kubelet_image_garbage_collected_total", Counter, &["reason"], "[ALPHA] Total number of images garbage collected by the kubelet, whether through disk usage or image age.";
    IMAGE_REQUESTS: "kubelet_image_manager_ensure_image_requests_total", Counter, &["present_locally", "pull_policy", "pull_required"], "[ALPHA] Number of ensure-image requests processed by the kubelet.";
    IMAGE_PULL_DURATION: "kubelet_image_pull_duration_seconds", Histogram(PULLS_S), &["image_size_in_bytes"], "[ALPHA] Duration in seconds to pull an image.";
    IMAGE_VOLUMES_FAILED: "kubelet_image_volume_mounted_errors_total", Counter, &[], "[BETA] Number of failed image volume mounts.";
    IMAGE_VOLUMES_MOUNTED: "kubelet_image_volume_mounted_succeed_total", Counter, &[], "[BETA] Number of successful image volume mounts.";
    IMAGE_VOLUMES_REQUESTED: "kubelet_image_volume_requested_total", Counter, &[], "[BETA] Number of requested image volumes.";
    IMAGE_CHECKS: "kubelet_imagemanager_image_mustpull_checks_total", Counter, &["result"], "[ALPHA] Counter for how many times kubelet checked whether credentials need to be re-verified to access an image";
    IMAGE_RECORDS: "kubelet_imagemanager_ondisk_pulledrecords", Gauge, &[], "[ALPHA] Number of ImagePulledRecords stored on disk.";
    IMAGE_INTENTS: "kubelet_imagemanager_ondisk_pullintents", Gauge, &[], "[ALPHA] Number of ImagePullIntents stored on disk.";
    HOOK_FALLBACKS: "kubelet_lifecycle_handler_http_fallbacks_total", Counter, &[], "[ALPHA] The number of times lifecycle handlers successfully fell back to http from https.";
    EPHEMERAL_CONTAINERS: "kubelet_managed_ephemeral_containers", Gauge, &[], "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.";
    MEMORY_PINNING_ERRORS: "kubelet_memory_manager_pinning_errors_total", Counter, &[], "[ALPHA] The number of memory pages allocations which required pinning that failed.";
    MEMORY_PINNINGS: "kubelet_memory_manager_pinning_requests_total", Counter, &[], "[ALPHA] The number of memory pages allocations which required pinning.";
    MEMORY_QOS_LOW: "kubelet_memory_qos_node_memory_low_bytes", Gauge, &[], "[ALPHA] Total cgroup v2 memory.low in bytes for Burstable pods. This memory is soft-reserved and may be reclaimed under extreme pressure.";
    MEMORY_QOS_MIN: "kubelet_memory_qos_node_memory_min_bytes", Gauge, &[], "[ALPHA] Total cgroup v2 memory.min in bytes for Guaranteed pods. This memory is hard-reserved and never reclaimed by the kernel.";
    METRICS_PROVIDER: "kubelet_metrics_provider", Gauge, &["provider"], "[ALPHA] Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'";
    MIRROR_PODS: "kubelet_mirror_pods", Gauge, &[], "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    NODE_NAME: "kubelet_node_name", Gauge, &["node"], "[ALPHA] The node's name. The count is always 1.";
    STARTUP: "kubelet_node_startup_duration_seconds", Gauge, &[], "[ALPHA] Duration in seconds of node startup in total.";
    STARTUP_POST_REGISTRATION: "kubelet_node_startup_post_registration_duration_seconds", Gauge, &[], "[ALPHA] Duration in seconds of node startup after registration.";
    STARTUP_PRE_KUBELET: "kubelet_node_startup_pre_kubelet_duration_seconds", Gauge, &[], "[ALPHA] Duration in seconds of node startup before kubelet starts.";
    STARTUP_PRE_REGISTRATION: "kubelet_node_startup_pre_registration_duration_seconds", Gauge, &[], "[ALPHA] Duration in seconds of node startup before registration.";
    STARTUP_REGISTRATION: "kubelet_node_startup_registration_duration_seconds", Gauge, &[], "[ALPHA] Duration in seconds of node startup during registration.";
    ORPHAN_VOLUMES: "kubelet_orphan_pod_cleaned_volumes", Gauge, &[], "[ALPHA] The total number of orphaned Pods whose volumes were cleaned in the last periodic sweep.";
    ORPHAN_VOLUMES_ERRORS: "kubelet_orphan_pod_cleaned_volumes_errors", Gauge, &[], "[ALPHA] The number of orphaned Pods whose volumes failed to be cleaned in the last periodic sweep.";
    ORPHANED_RUNTIME_PODS: "kubelet_orphaned_runtime_pods_total", Counter, &[], "[ALPHA] Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.";
    POD_RELIST_DURATION: "kubelet_pleg_pod_relist_duration_seconds", Histogram(USUAL_S), &[], "[ALPHA] Duration in seconds for relisting a single pod in PLEG.";
    DEFERRED_RESIZES: "kubelet_pod_deferred_accepted_resizes_total", Counter, &["retry_trigger"], "[ALPHA] Cumulative number of resizes that were accepted after being deferred.";
    RESIZES_IN_PROGRESS: "kubelet_pod_in_progress_resizes", Gauge, &[], "[ALPHA] Number of in-progress resizes for pods.";
    INFEASIBLE_RESIZES: "kubelet_pod_infeasible_resizes_total", Counter, &["reason_detail"], "[ALPHA] Number of infeasible resizes for pods.";
    RESIZES_PENDING: "kubelet_pod_pending_resizes", Gauge, &["reason"], "[ALPHA] Number of pending resizes for pods.";
    RESIZE_DURATION: "kubelet_pod_resize_duration_milliseconds", Histogram(RESIZES_MS), &["success"], "[ALPHA] Duration in milliseconds to actuate a pod resize";
    POD_RESOURCES_ALLOCATABLE_ERRORS: "kubelet_pod_resources_endpoint_errors_get_allocatable", Counter, SERVED, "[ALPHA] Number of requests to the PodResource GetAllocatableResources endpoint which returned error. Broken down by server api version.";
    POD_RESOURCES_GET_ERRORS: "kubelet_pod_resources_endpoint_errors_get", Counter, SERVED, "[ALPHA] Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.";
    POD_RESOURCES_LIST_ERRORS: "kubelet_pod_resources_endpoint_errors_list", Counter, SERVED, "[ALPHA] Number of requests to the PodResource List endpoint which returned error. Broken down by server api version.";
    POD_RESOURCES_GETS: "kubelet_pod_resources_endpoint_requests_get", Counter, SERVED, "[ALPHA] Number of requests to the PodResource Get endpoint. Broken down by server api version.";
    POD_RESOURCES_ALLOCATABLES: "kubelet_pod_resources_endpoint_requests_get_allocatable", Counter, SERVED, "[ALPHA] Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.";
    POD_RESOURCES_LISTS: "kubelet_pod_resources_endpoint_requests_list", Counter, SERVED, "[ALPHA] Number of requests to the PodResource List endpoint. Broken down by server api version.";
    POD_RESOURCES_REQUESTS: "kubelet_pod_resources_endpoint_requests_total", Counter, SERVED, "[ALPHA] Cumulative number of requests to the PodResource endpoint. Broken down by server api version.";
    POD_START_DURATION: "kubelet_pod_start_duration_seconds", Histogram(STARTS_S), &[], "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
    POD_START_SLI_DURATION: "kubelet_pod_start_sli_duration_seconds", Histogram(STARTS_S), &[], "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    POD_START_TOTAL_DURATION: "kubelet_pod_start_total_duration_seconds", Histogram(STARTS_S), &[], "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    POD_STATUS_SYNC_DURATION: "kubelet_pod_status_sync_duration_seconds", Histogram(STATUSES_S), &[], "[ALPHA] Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.";
    POD_WORKER_DURATION: "kubelet_pod_worker_duration_seconds", Histogram(USUAL_S), &["operation_type"], "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync";
    POD_WORKER_START_DURATION: "kubelet_pod_worker_start_duration_seconds", Histogram(USUAL_S), &[], "[ALPHA] Duration in seconds from kubelet seeing a pod to starting a worker.";
    POD_CERTIFICATES: "kubelet_podcertificate_states", Gauge, &["signer_name", "state"], "[ALPHA] Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.";
    PREEMPTIONS: "kubelet_preemptions", Counter, &["preemption_signal"], "[ALPHA] Cumulative number of pod preemptions by preemption resource";
    RESTARTED_PODS: "kubelet_restarted_pods_total", Counter, &["static"], "[ALPHA] Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)";
    RUN_SANDBOX_DURATION: "kubelet_run_podsandbox_duration_seconds", Histogram(USUAL_S), &["runtime_handler"], "[ALPHA] Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.";
    RUN_SANDBOX_ERRORS: "kubelet_run_podsandbox_errors_total", Counter, &["runtime_handler"], "[ALPHA] Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.";
    RUNNING_CONTAINERS: "kubelet_running_containers", Gauge, &["container_state"], "[ALPHA] Number of containers currently running";
    RUNNING_PODS: "kubelet_running_pods", Gauge, &[], "[ALPHA] Number of pods that have a running pod sandbox";
    RUNTIME_DURATION: "kubelet_runtime_operations_duration_seconds", Histogram(OPERATIONS_S), &["operation_type"], "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.";
    RUNTIME_ERRORS: "kubelet_runtime_operations_errors_total", Counter, &["operation_type"], "[ALPHA] Cumulative number of runtime operation errors by operation type.";
    RUNTIME_OPERATIONS: "kubelet_runtime_operations_total", Counter, &["operation_type"], "[ALPHA] Cumulative number of runtime operations by operation type.";
    SLEEPS_CUT_SHORT: "kubelet_sleep_action_terminated_early_total", Counter, &[], "[ALPHA] The number of times lifecycle sleep handler got terminated before it finishes";
    STARTED_CONTAINERS_ERRORS: "kubelet_started_containers_errors_total", Counter, &["code", "container_type"], "[ALPHA] Cumulative number of errors when starting containers";
    STARTED_CONTAINERS: "kubelet_started_containers_total", Counter, &["container_type"], "[ALPHA] Cumulative number of containers started";
    STARTED_PODS_ERRORS: "kubelet_started_pods_errors_total", Counter, &[], "[ALPHA] Cumulative number of errors when starting pods";
    STARTED_PODS: "kubelet_started_pods_total", Counter, &[], "[ALPHA] Cumulative number of pods started";
    STARTED_USERNS_PODS: "kubelet_started_user_namespaced_pods_total", Counter, &[], "[ALPHA] Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.";
    STARTED_USERNS_PODS_ERRORS: "kubelet_started_user_namespaced_pods_errors_total", Counter, &[], "[ALPHA] Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.";
    TERMINATED_CONTAINERS: "kubelet_terminated_containers_total", Counter, &["container_type", "exit_code", "reason"], "[ALPHA] Cumulative number of container terminations.";
    TOPOLOGY_DURATION: "kubelet_topology_manager_admission_duration_ms", Histogram(ADMISSIONS_MS), &[], "[ALPHA] Duration in milliseconds to serve a pod admission request.";
    TOPOLOGY_ERRORS: "kubelet_topology_manager_admission_errors_total", Counter, &[], "[ALPHA] The number of admission request failures where resources could not be aligned.";
    TOPOLOGY_REQUESTS: "kubelet_topology_manager_admission_requests_total", Counter, &[], "[ALPHA] The number of admission requests where resources have to be aligned.";
    VOLUME_AVAILABLE: "kubelet_volume_stats_available_bytes", Gauge, CLAIM, "[ALPHA] Number of available bytes in the volume";
    VOLUME_CAPACITY: "kubelet_volume_stats_capacity_bytes", Gauge, CLAIM, "[ALPHA] Capacity in bytes of the volume";
    VOLUME_ABNORMAL: "kubelet_volume_stats_health_status_abnormal", Gauge, CLAIM, "[ALPHA] Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy";
    VOLUME_INODES: "kubelet_volume_stats_inodes", Gauge, CLAIM, "[ALPHA] Maximum number of inodes in the volume";
    VOLUME_INODES_FREE: "kubelet_volume_stats_inodes_free", Gauge, CLAIM, "[ALPHA] Number of free inodes in the volume";
    VOLUME_INODES_USED: "kubelet_volume_stats_inodes_used", Gauge, CLAIM, "[ALPHA] Number of used inodes in the volume";
    VOLUME_USED: "kubelet_volume_stats_used_bytes", Gauge, CLAIM, "[ALPHA] Number of used bytes in the volume";
    WORKING_PODS: "kubelet_working_pods", Gauge, &["config", "lifecycle", "static"], "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod has been removed from local configuration or force deleted in the API and consumes resources that are not otherwise visible.";
}

/// What probes say, which has a page of its own.
pub(crate) mod probes {
    use super::{Counter, Family, Histogram, USUAL_S};

    #[rustfmt::skip]
    table! {
        DURATION: "prober_probe_duration_seconds", Histogram(USUAL_S), &["container", "namespace", "pod", "probe_type"], "[ALPHA] Duration in seconds for a probe response.";
        TOTAL: "prober_probe_total", Counter, &["container", "namespace", "pod", "pod_uid", "probe_type", "result"], "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    }
}

#[cfg(test)]
mod tests {
    use yare_metrics::table::BOUNDS_MAX;

    use super::*;

    #[test]
    fn rows_are_well_formed() {
        for family in TABLE.iter().chain(probes::TABLE) {
            assert!(family.labels.is_sorted(), "{}", family.name);
            assert!(family.help.starts_with('['), "{}", family.name);
            if let Histogram(bounds) = family.kind {
                assert!(bounds.len() <= BOUNDS_MAX && bounds.is_sorted(), "{}", family.name);
            }
        }
        let names: std::collections::BTreeSet<&str> = TABLE.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), TABLE.len());
    }
}
