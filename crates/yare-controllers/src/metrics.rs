//! What controllers count, under upstream's names.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use yare_client::Queues;
use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
};

/// Upper bounds of `job_controller_job_sync_duration_seconds`.
const SYNC_S: &[f64] = &[
    0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384, 32.768,
    65.536,
];

/// From 2 to 32768, for numbers of endpoints.
const POWERS: &[f64] = &[
    2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0,
];
/// Prometheus' own, where upstream says nothing.
const DEFAULT_S: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub(crate) static RUNNING: Family = Family::labelled(
    "running_managed_controllers",
    Kind::Gauge,
    &["manager", "name"],
    "[BETA] Indicates where instances of a controller are currently running",
);
pub(crate) static JOB_SYNCS: Family = Family::labelled(
    "job_controller_job_syncs_total",
    Kind::Counter,
    &["action", "completion_mode", "result"],
    "[STABLE] The number of job syncs",
);
pub(crate) static JOB_SYNC_S: Family = Family::labelled(
    "job_controller_job_sync_duration_seconds",
    Kind::Histogram(SYNC_S),
    &["action", "completion_mode", "result"],
    "[STABLE] The time it took to sync a job",
);
pub(crate) static JOBS_FINISHED: Family = Family::labelled(
    "job_controller_jobs_finished_total",
    Kind::Counter,
    &["completion_mode", "reason", "result"],
    "[STABLE] The number of finished jobs",
);
pub(crate) static JOB_PODS_FINISHED: Family = Family::labelled(
    "job_controller_job_pods_finished_total",
    Kind::Counter,
    &["completion_mode", "result"],
    "[STABLE] The number of finished Pods that are fully tracked",
);
pub(crate) static JOB_PODS_BY_POLICY: Family = Family::labelled(
    "job_controller_pod_failures_handled_by_failure_policy_total",
    Kind::Counter,
    &["action"],
    "[BETA] The number of failed Pods handled by failure policy with\n\t\t\trespect to the failure policy action applied based on the matched\n\t\t\trule. Possible values of the action label correspond to the\n\t\t\tpossible values for the failure policy rule action, which are:\n\t\t\t\"FailJob\", \"Ignore\" and \"Count\".",
);
pub(crate) static JOB_PODS_HELD: Family = Family::labelled(
    "job_controller_terminated_pods_tracking_finalizer_total",
    Kind::Counter,
    &["event"],
    "[BETA] The number of terminated pods (phase=Failed|Succeeded)\nthat have the finalizer batch.kubernetes.io/job-tracking\nThe event label can be \"add\" or \"delete\".",
);
pub(crate) static ENDPOINTS_ADDED: Family = Family::labelled(
    "endpoint_slice_controller_endpoints_added_per_sync",
    Kind::Histogram(POWERS),
    &[],
    "[BETA] Number of endpoints added on each Service sync",
);
pub(crate) static ENDPOINTS_REMOVED: Family = Family::labelled(
    "endpoint_slice_controller_endpoints_removed_per_sync",
    Kind::Histogram(POWERS),
    &[],
    "[BETA] Number of endpoints removed on each Service sync",
);
pub(crate) static ENDPOINTS_DESIRED: Family = Family::labelled(
    "endpoint_slice_controller_endpoints_desired",
    Kind::Gauge,
    &[],
    "[BETA] Number of endpoints desired",
);
pub(crate) static SLICES: Family = Family::labelled(
    "endpoint_slice_controller_num_endpoint_slices",
    Kind::Gauge,
    &[],
    "[BETA] Number of EndpointSlices",
);
pub(crate) static SLICES_DESIRED: Family = Family::labelled(
    "endpoint_slice_controller_desired_endpoint_slices",
    Kind::Gauge,
    &[],
    "[BETA] Number of EndpointSlices that would exist with perfect endpoint allocation",
);
pub(crate) static SLICE_CHANGES: Family = Family::labelled(
    "endpoint_slice_controller_changes",
    Kind::Counter,
    &["operation"],
    "[ALPHA] Number of EndpointSlice changes",
);
pub(crate) static SLICES_CHANGED: Family = Family::labelled(
    "endpoint_slice_controller_endpointslices_changed_per_sync",
    Kind::Histogram(&DEFAULT_S),
    &["topology", "traffic_distribution"],
    "[ALPHA] Number of EndpointSlices changed on each Service sync",
);
pub(crate) static SLICE_SYNCS: Family = Family::labelled(
    "endpoint_slice_controller_syncs",
    Kind::Counter,
    &["result"],
    "[ALPHA] Number of EndpointSlice syncs",
);
pub(crate) static SERVICES_BY_DISTRIBUTION: Family = Family::labelled(
    "endpoint_slice_controller_services_count_by_traffic_distribution",
    Kind::Gauge,
    &["traffic_distribution"],
    "[BETA] Number of Services using some specific trafficDistribution",
);
pub(crate) static SET_MAX_UNAVAILABLE: Family = Family::labelled(
    "statefulset_controller_statefulset_max_unavailable",
    Kind::Gauge,
    &["pod_management_policy", "statefulset_name", "statefulset_namespace"],
    "[ALPHA] Maximum number of unavailable pods allowed during StatefulSet rolling updates",
);
pub(crate) static SET_UNAVAILABLE: Family = Family::labelled(
    "statefulset_controller_statefulset_unavailable_replicas",
    Kind::Gauge,
    &["pod_management_policy", "statefulset_name", "statefulset_namespace"],
    "[ALPHA] Current number of unavailable pods in StatefulSet",
);
pub(crate) static CRON_JOB_SKEW_S: Family = Family::plain(
    "cronjob_controller_job_creation_skew_duration_seconds",
    Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
    "[STABLE] Time between when a cronjob is scheduled to be run, and when the corresponding job is created",
);
pub(crate) static EVICTIONS: Family = Family::labelled(
    "node_collector_evictions_total",
    Kind::Counter,
    &["zone"],
    "[STABLE] Number of Node evictions that happened since current instance of NodeController started.",
);
pub(crate) static ZONE_SIZE: Family = Family::labelled(
    "node_collector_zone_size",
    Kind::Gauge,
    &["zone"],
    "[ALPHA] Gauge measuring number of registered Nodes per zones.",
);
pub(crate) static ZONE_HEALTH: Family = Family::labelled(
    "node_collector_zone_health",
    Kind::Gauge,
    &["zone"],
    "[ALPHA] Gauge measuring percentage of healthy nodes per zone.",
);
pub(crate) static ZONE_UNHEALTHY: Family = Family::labelled(
    "node_collector_unhealthy_nodes_in_zone",
    Kind::Gauge,
    &["zone"],
    "[ALPHA] Gauge measuring number of not Ready Nodes per zones.",
);
pub(crate) static CLAIM_CREATES: Family = Family::labelled(
    "resourceclaim_controller_creates_total",
    Kind::Counter,
    &["admin_access", "status"],
    "[ALPHA] Number of ResourceClaims creation requests, categorized by creation status and admin access",
);
pub(crate) static CLAIMS: Family = Family::labelled(
    "resourceclaim_controller_resource_claims",
    Kind::Gauge,
    &["admin_access", "allocated", "source"],
    "[ALPHA] Number of ResourceClaims, categorized by allocation status, admin access, and source. Source can be 'resource_claim_template' (created from a template), 'extended_resource' (extended resources), or empty (manually created by a user).",
);
pub(crate) static DEVICE_EVICTIONS: Family = Family::plain(
    "device_taint_eviction_controller_pod_deletions_total",
    Kind::Counter,
    "[ALPHA] Total number of Pods deleted by DeviceTaintEvictionController since its start.",
);
pub(crate) static DEVICE_EVICTION_S: Family = Family::plain(
    "device_taint_eviction_controller_pod_deletion_duration_seconds",
    Kind::Histogram(&[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0]),
    "[ALPHA] Latency, in seconds, between the time when a device taint effect has been activated and a Pod's deletion via DeviceTaintEvictionController.",
);

static FAMILIES: &[&Family] = &[
    &RUNNING,
    &JOB_SYNCS,
    &JOB_SYNC_S,
    &JOBS_FINISHED,
    &JOB_PODS_FINISHED,
    &JOB_PODS_BY_POLICY,
    &JOB_PODS_HELD,
    &ENDPOINTS_ADDED,
    &ENDPOINTS_REMOVED,
    &ENDPOINTS_DESIRED,
    &SLICES,
    &SLICES_DESIRED,
    &SLICE_CHANGES,
    &SLICES_CHANGED,
    &SLICE_SYNCS,
    &SERVICES_BY_DISTRIBUTION,
    &SET_MAX_UNAVAILABLE,
    &SET_UNAVAILABLE,
    &CRON_JOB_SKEW_S,
    &EVICTIONS,
    &ZONE_SIZE,
    &ZONE_HEALTH,
    &ZONE_UNHEALTHY,
    &CLAIM_CREATES,
    &DEVICE_EVICTIONS,
    &DEVICE_EVICTION_S,
];

/// Upstream's names of work queues that are not the controller's without `-controller`. Where upstream has
/// several, the one that holds what the controller is about.
const QUEUES: &[(&str, &str)] = &[
    ("bootstrap-signer-controller", "bootstrap_signer_queue"),
    ("certificatesigningrequest-approving-controller", "certificate"),
    ("certificatesigningrequest-signing-controller", "certificate"),
    ("clusterrole-aggregation-controller", "ClusterRoleAggregator"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpoint_slice"),
    ("endpointslice-mirroring-controller", "endpoint_slice_mirroring"),
    ("ephemeral-volume-controller", "ephemeral_volume"),
    (
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "ca_cert_publisher_cluster_trust_bundles",
    ),
    ("node-lifecycle-controller", "node_lifecycle_controller"),
    ("persistentvolume-attach-detach-controller", "pvcs"),
    ("persistentvolume-binder-controller", "claims"),
    ("persistentvolume-expander-controller", "volume_expand"),
    ("persistentvolume-protection-controller", "pvprotection"),
    ("persistentvolumeclaim-protection-controller", "pvcprotection"),
    ("pod-garbage-collector-controller", "orphaned_pods_nodes"),
    ("replicationcontroller-controller", "replicationmanager"),
    ("resourceclaim-controller", "resource_claim"),
    ("resourcequota-controller", "resourcequota_primary"),
    ("root-ca-certificate-publisher-controller", "root_ca_cert_publisher"),
    ("serviceaccount-token-controller", "serviceaccount_tokens_service"),
    ("taint-eviction-controller", "noexec_taint_pod"),
    ("token-cleaner-controller", "token_cleaner"),
    ("ttl-after-finished-controller", "ttl_jobs_to_delete"),
    ("validatingadmissionpolicy-status-controller", "validatingadmissionpolicy-status"),
    ("volumeattributesclass-protection-controller", "vacprotection"),
];

/// What upstream calls the queue of a controller.
pub(crate) fn queue(controller: &'static str) -> &'static str {
    let named = QUEUES.iter().find(|(name, _)| *name == controller);
    named.map_or_else(|| controller.strip_suffix("-controller").unwrap_or(controller), |(_, queue)| queue)
}

/// Counts a gauge's series anew, each time somebody asks.
type Teller = Box<dyn Fn(&Counts) + Send + Sync>;

/// Counts of all controllers of a process.
#[derive(Default)]
pub struct Metrics {
    /// Their work queues.
    pub queues: Queues,
    pub(crate) table: Counts,
    /// By the family's name: a controller that starts again tells in place of the one before.
    tellers: Mutex<BTreeMap<&'static str, (&'static Family, Teller)>>,
}

impl Metrics {
    /// What a gauge is at is for `tell` to count, from nothing, when somebody asks.
    pub(crate) fn tells(&self, family: &'static Family, tell: impl Fn(&Counts) + Send + Sync + 'static) {
        self.tellers.lock().insert(family.name, (family, Box::new(tell)));
    }

    /// A controller begins or ends.
    pub(crate) fn running(&self, controller: &str, is_so: bool) {
        self.table.set(&RUNNING, &["kube-controller-manager", controller], if is_so { 1.0 } else { 0.0 });
    }

    /// Adds everything.
    pub fn expose(&self, page: &mut Page) {
        self.queues.expose(page);
        self.table.expose(FAMILIES, page);
        for (family, tell) in self.tellers.lock().values() {
            let now = Counts::default();
            tell(&now);
            now.expose(&[family], page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::CONTROLLERS;

    #[test]
    fn queues_are_of_controllers_that_exist() {
        for (name, _) in QUEUES {
            // The allocation of devices comes with a controller of its own.
            let exists = CONTROLLERS.iter().any(|row| row.name == *name);
            assert!(exists || *name == "resourceclaim-controller", "{name}");
        }
        assert_eq!(queue("deployment-controller"), "deployment");
        assert_eq!(queue("endpointslice-controller"), "endpoint_slice");
    }
}
