//! What the scheduler counts, under upstream's names (`scheduler_…`).

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
    timing::DOUBLING_S,
};

use crate::{
    devices::bind::Attachment,
    plugins::{Events, PLUGINS},
};

/// From 0.1 ms to 0.2 s.
const POINT_S: &[f64] =
    &[0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048];
/// From 10 ms to an hour and a half.
const SLI_S: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
    655.36, 1310.72, 2621.44, 5242.88,
];

/// From 0.1 s to a quarter of an hour.
const ATTACHING_S: &[f64] =
    &[0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];

static ATTEMPTS: Family = Family::labelled(
    "scheduler_schedule_attempts_total",
    Kind::Counter,
    &["profile", "result"],
    "[STABLE] Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem.",
);
static ATTEMPT_S: Family = Family::labelled(
    "scheduler_scheduling_attempt_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    &["profile", "result"],
    "[STABLE] Scheduling attempt latency in seconds (scheduling algorithm + binding)",
);
static ALGORITHM_S: Family = Family::plain(
    "scheduler_scheduling_algorithm_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    "[ALPHA] Scheduling algorithm latency in seconds",
);
static POINT: Family = Family::labelled(
    "scheduler_framework_extension_point_duration_seconds",
    Kind::Histogram(POINT_S),
    &["extension_point", "profile", "status"],
    "[STABLE] Latency for running all plugins of a specific extension point.",
);
static TRIES: Family = Family::plain(
    "scheduler_pod_scheduling_attempts",
    Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0]),
    "[STABLE] Number of attempts to successfully schedule a pod.",
);
static SLI: Family = Family::labelled(
    "scheduler_pod_scheduling_sli_duration_seconds",
    Kind::Histogram(SLI_S),
    &["attempts"],
    "[BETA] E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts.",
);
static INCOMING: Family = Family::labelled(
    "scheduler_queue_incoming_pods_total",
    Kind::Counter,
    &["event", "queue"],
    "[STABLE] Number of pods added to scheduling queues by event and queue type.",
);
static PREEMPTIONS: Family = Family::plain(
    "scheduler_preemption_attempts_total",
    Kind::Counter,
    "[STABLE] Total preemption attempts in the cluster till now",
);
static VICTIMS: Family = Family::plain(
    "scheduler_preemption_victims",
    Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
    "[STABLE] Number of selected preemption victims",
);
static UNSCHEDULABLE: Family = Family::labelled(
    "scheduler_unschedulable_pods",
    Kind::Gauge,
    &["plugin", "profile"],
    "[BETA] The number of unschedulable pods broken down by plugin name. A pod will increment the gauge for all plugins that caused it to not schedule and so this metric have meaning only when broken down by plugin.",
);
static EVALUATIONS: Family = Family::labelled(
    "scheduler_plugin_evaluation_total",
    Kind::Counter,
    &["extension_point", "plugin", "profile"],
    "[BETA] Number of attempts to schedule pods by each plugin and the extension point (available only in PreFilter, Filter, PreScore, and Score).",
);
/// Stays empty: no plugin of this scheduler lets a pod wait once it has a node.
static PERMIT_S: Family = Family::labelled(
    "scheduler_permit_wait_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    &["result"],
    "[BETA] Duration of waiting on permit.",
);
static CLAIMS_MADE: Family = Family::labelled(
    "scheduler_resourceclaim_creates_total",
    Kind::Counter,
    &["status"],
    "[ALPHA] Number of ResourceClaims creation requests within scheduler",
);
static ATTACHMENTS: Family = Family::labelled(
    "scheduler_dra_bindingconditions_allocations_total",
    Kind::Counter,
    &["driver", "profile", "status"],
    "[ALPHA] Number of allocations using devices with BindingConditions, counted per driver per scheduling attempt",
);
static ATTACHMENT_S: Family = Family::labelled(
    "scheduler_dra_bindingconditions_wait_duration_seconds",
    Kind::Histogram(ATTACHING_S),
    &["driver", "profile", "status"],
    "[ALPHA] Time in seconds spent waiting for BindingConditions to be satisfied during PreBind.",
);

static FAMILIES: &[&Family] = &[
    &ATTEMPTS,
    &ATTEMPT_S,
    &ALGORITHM_S,
    &POINT,
    &TRIES,
    &SLI,
    &INCOMING,
    &PREEMPTIONS,
    &VICTIMS,
    &UNSCHEDULABLE,
    &EVALUATIONS,
    &PERMIT_S,
    &CLAIMS_MADE,
    &ATTACHMENTS,
    &ATTACHMENT_S,
];

/// Where pods wait, in the order of the gauge's samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Ready.
    Active,
    /// After a failure.
    Backoff,
    /// Until something changes.
    Unschedulable,
    /// Until its gates are gone.
    Gated,
}

const WAITING: [&str; 4] = ["active", "backoff", "unschedulable", "gated"];
const CACHED: [&str; 3] = ["assumed_pods", "nodes", "pods"];

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The pod has its node.
    Scheduled,
    /// No node takes it.
    Unschedulable,
    /// Something went wrong that is not the pod's fault.
    Error,
}

/// What one cycle took, part by part.
#[derive(Clone, Copy, Default, Debug)]
pub struct Taken {
    /// To work out what holds for all nodes.
    pub pre_filter: Duration,
    /// To look at nodes.
    pub filter: Duration,
    /// To compare them, where there was more than one.
    pub score: Option<Duration>,
    /// Plugins that were asked to filter and to score, by their places in the table.
    pub asked: [u64; 2],
}

/// Counts of a scheduler.
#[derive(Default)]
pub struct Metrics {
    table: Counts,
    waiting: [AtomicI64; WAITING.len()],
    cached: [AtomicI64; CACHED.len()],
    bindings: AtomicI64,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A pod left one place of the queue for another, because of an event.
    pub(crate) fn moved(&self, from: Option<Waiting>, to: Option<Waiting>, event: &str) {
        if let Some(from) = from {
            self.waiting[from as usize].fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(to) = to {
            self.waiting[to as usize].fetch_add(1, Ordering::Relaxed);
            // Upstream keeps pods with gates beside those that are unschedulable.
            let queue = if to == Waiting::Gated { Waiting::Unschedulable } else { to };
            self.table.count(&INCOMING, &[event, WAITING[queue as usize]]);
        }
    }

    /// Plugins turned a pod down, or it is not among those any more.
    pub(crate) fn turned_down(&self, plugins: &[&'static str], profile: &str, is_so: bool) {
        for plugin in plugins {
            self.table.add(&UNSCHEDULABLE, &[plugin, profile], if is_so { 1.0 } else { -1.0 });
        }
    }

    /// A cycle is through.
    pub(crate) fn cycle(&self, profile: &str, taken: &Taken, found: bool) {
        let status = if found { "Success" } else { "Unschedulable" };
        for (point, took, status) in [
            ("PreFilter", Some(taken.pre_filter), "Success"),
            ("Filter", Some(taken.filter), status),
            ("Score", taken.score, "Success"),
        ] {
            if let Some(took) = took {
                self.table.observe(&POINT, &[point, profile, status], took.as_secs_f64());
            }
        }
        let all = taken.pre_filter + taken.filter + taken.score.unwrap_or_default();
        self.table.observe(&ALGORITHM_S, &[], all.as_secs_f64());
        for (point, asked) in ["Filter", "Score"].into_iter().zip(taken.asked) {
            for (_, row) in PLUGINS.iter().enumerate().filter(|(place, _)| asked & (1 << place) != 0) {
                self.table.count(&EVALUATIONS, &[point, row.name, profile]);
            }
        }
    }

    /// An extension point beside those of a cycle is through.
    pub(crate) fn point(&self, point: &str, profile: &str, ok: bool, took: Duration) {
        let status = if ok { "Success" } else { "Unschedulable" };
        self.table.observe(&POINT, &[point, profile, status], took.as_secs_f64());
    }

    /// An attempt is over.
    pub(crate) fn attempted(&self, profile: &str, outcome: Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        };
        self.table.count(&ATTEMPTS, &[profile, result]);
        self.table.observe(&ATTEMPT_S, &[profile, result], took.as_secs_f64());
    }

    /// A pod was bound after that many attempts, the first of which began so long ago.
    pub(crate) fn scheduled(&self, attempts: u32, since: Duration) {
        self.table.observe(&TRIES, &[], f64::from(attempts));
        let label = if attempts >= 15 { "15+".into() } else { attempts.to_string() };
        self.table.observe(&SLI, &[&label], since.as_secs_f64());
    }

    /// Pods are asked to go for another. `victims`: how many were chosen, if that led anywhere.
    pub(crate) fn preempted(&self, victims: Option<usize>) {
        self.table.count(&PREEMPTIONS, &[]);
        if let Some(victims) = victims {
            self.table.observe(&VICTIMS, &[], victims as f64);
        }
    }

    /// A claim for extended resources was made, or could not be.
    pub(crate) fn made_claim(&self, ok: bool) {
        self.table.count(&CLAIMS_MADE, &[if ok { "success" } else { "failure" }]);
    }

    /// A wait for devices is over.
    pub(crate) fn attached(&self, profile: &str, attachment: &Attachment) {
        for (driver, had_to_be) in &attachment.drivers {
            let labels = [driver.as_str(), profile, attachment.status];
            self.table.observe(&ATTACHMENT_S, &labels, attachment.took.as_secs_f64());
            if *had_to_be {
                self.table.count(&ATTACHMENTS, &labels);
            }
        }
    }

    /// What is known, and how many bindings are under way.
    pub(crate) fn knows(&self, assumed: usize, nodes: usize, pods: usize, bindings: usize) {
        for (cell, n) in self.cached.iter().zip([assumed, nodes, pods]) {
            cell.store(n as i64, Ordering::Relaxed);
        }
        self.bindings.store(bindings as i64, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Adds everything.
    pub fn expose(&self, page: &mut Page) {
        self.table.expose(FAMILIES, page);
        for (name, label, help, values, cells) in [
            (
                "scheduler_pending_pods",
                "queue",
                "[STABLE] Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated.",
                &WAITING[..],
                &self.waiting[..],
            ),
            (
                "scheduler_cache_size",
                "type",
                "[ALPHA] Number of nodes, pods, and assumed (bound) pods in the scheduler cache.",
                &CACHED[..],
                &self.cached[..],
            ),
            (
                "scheduler_goroutines",
                "operation",
                "[BETA] Number of running goroutines split by the work they do such as binding.",
                &["binding"][..],
                std::slice::from_ref(&self.bindings),
            ),
        ] {
            page.family(name, "gauge", help);
            for (value, cell) in values.iter().zip(cells) {
                page.sample(name, &[(label, value)], cell.load(Ordering::Relaxed));
            }
        }
    }
}

/// What upstream calls an event that makes pods worth another try; of several the first.
pub(crate) fn label(events: Events) -> &'static str {
    const LABELS: [(Events, &str); 14] = [
        (Events::NODE_ADDED, "NodeAdd"),
        (Events::NODE_LABELS, "NodeUpdateNodeLabel"),
        (Events::NODE_TAINTS, "NodeUpdateNodeTaint"),
        (Events::NODE_ALLOCATABLE, "NodeUpdateNodeAllocatable"),
        (Events::NODE_FEATURES, "NodeUpdateNodeDeclaredFeature"),
        (Events::POD_ADDED, "AssignedPodAdd"),
        (Events::POD_REMOVED, "AssignedPodDelete"),
        (Events::CLAIM, "PersistentVolumeClaimUpdate"),
        (Events::VOLUME, "PersistentVolumeUpdate"),
        (Events::STORAGE_CLASS, "storage.k8s.io/StorageClassAdd"),
        (Events::CSI_NODE, "storage.k8s.io/CSINodeUpdate"),
        (Events::CSI_DRIVER, "storage.k8s.io/CSIDriverUpdate"),
        (Events::CSI_CAPACITY, "storage.k8s.io/CSIStorageCapacityUpdate"),
        (Events::DETACHED, "storage.k8s.io/VolumeAttachmentDelete"),
    ];
    LABELS.iter().find(|(event, _)| event.any_of(events)).map_or("*All", |(_, label)| label)
}
