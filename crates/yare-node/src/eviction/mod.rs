//! Node-pressure eviction: a node that runs short wins back what it can, and then ends one pod at a time.
//!
//! ```text
//! look ─► conditions (node status, admission) ─► thresholds to act upon ─► garbage ─► look again ─► one pod
//!   └─► pods with limits of ephemeral storage, walked when their time has come ─► those over a limit
//! ```
//! In: thresholds, an [`Observer`], the pods of this node. Out: the node's pressures, evictions handed to the pods'
//! own tasks, events. A look costs a few file reads; it happens every ten seconds, and at once when the kernel
//! tells of memory pressure. Rules, words and orders are upstream's (`pkg/kubelet/eviction`).

mod alarm;
mod local;
mod messages;
mod observe;
mod rank;
pub(crate) mod signals;
mod state;
pub(crate) mod thresholds;
pub(crate) mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use yare_client::EventKind;

pub use observe::Observer;
pub use signals::{Observation, Observations, Pressure, Signal};
pub use thresholds::Layout;

use crate::kubelet::{Kubelet, PodState};
use crate::metrics::table;
use crate::pod::mailbox::Eviction;
use crate::pod::qos;
use alarm::Alarms;
pub(crate) use messages::REASON;
pub(crate) use observe::Machine;
use rank::{Candidate, Garbage};
use state::State;
use thresholds::Threshold;
use usage::PodUsage;

/// What a pod gets to stop when nothing can wait.
const IMMEDIATE_GRACE_S: i64 = 1;
/// How long a pod may take at least, whatever its grace, before that is worth an event.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the next look waits for what an evicted pod gives back.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks, also when the kernel rings again and again.
const LOOK_GAP: Duration = Duration::from_secs(1);

pub(crate) struct Evictor {
    kubelet: Arc<Kubelet>,
    observer: Arc<dyn Observer>,
    state: State,
    /// Known once the runtime has said where it keeps things.
    layout: Option<Layout>,
    thresholds: Vec<Threshold>,
    walks: local::Walks,
    alarms: Option<Alarms>,
    last: Observations,
}

impl Evictor {
    pub(crate) fn new(kubelet: Arc<Kubelet>, observer: Arc<dyn Observer>) -> Self {
        let resources = &kubelet.resources;
        let tree = resources.tree.as_ref().filter(|_| resources.settings.eviction.kernel_notification);
        let alarms = tree.map(|tree| Alarms::new(tree.groups.clone(), resources.root_group()));
        Evictor {
            observer,
            state: State::default(),
            layout: None,
            thresholds: Vec::new(),
            walks: local::Walks::default(),
            alarms,
            last: Observations::new(),
            kubelet,
        }
    }

    /// Runs for as long as the node.
    pub(crate) async fn run(mut self) {
        let settings = self.kubelet.resources.settings.clone();
        if self.kubelet.resources.thresholds.is_empty() && !settings.local_storage_isolation {
            return;
        }
        loop {
            let looked = Instant::now();
            let evicted = self.look().await;
            if !evicted.is_empty() {
                self.wait_for(evicted).await;
                continue;
            }
            let mut next = looked + settings.monitoring_period();
            if let Some(grace) = self.state.next_grace(looked) {
                next = next.min(grace.max(looked + LOOK_GAP));
            }
            let Some(alarms) = &mut self.alarms else {
                tokio::time::sleep_until(next).await;
                continue;
            };
            alarms.set(&self.thresholds, &self.last);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = alarms.rung() => tokio::time::sleep_until(looked + LOOK_GAP).await,
            }
        }
    }

    /// One look, and what follows from it. Answers whom it told to go.
    async fn look(&mut self) -> Vec<Going> {
        if self.layout.is_none() {
            match self.observer.layout().await {
                Ok(layout) => {
                    let configured = &self.kubelet.resources.thresholds;
                    let (thresholds, ignored) = thresholds::follow_layout(configured, layout);
                    for text in ignored {
                        tracing::warn!("{text}");
                    }
                    self.layout = Some(layout);
                    self.thresholds = thresholds;
                }
                Err(error) => {
                    tracing::warn!(error, "evictions wait: where the runtime keeps images is not known");
                    return Vec::new();
                }
            }
        }
        let layout = self.layout.unwrap_or_default();
        let observed = Instant::now();
        self.last = self.observer.observe().await;
        let transition = self.kubelet.resources.settings.eviction.pressure_transition_period;
        let outcome = self.state.look(&self.thresholds, &self.last, transition, Instant::now());
        self.kubelet.report_pressures(outcome.pressures);
        let over = self.over_limits(layout).await;
        if !over.is_empty() {
            return over;
        }
        let Some(threshold) = outcome.act.first().copied() else { return Vec::new() };
        self.act(threshold, &outcome.act, layout, observed).await.into_iter().collect()
    }

    /// Wins back what a threshold asks for: garbage first, then one pod. `observed`: when it was seen to be met.
    async fn act(
        &mut self,
        threshold: Threshold,
        all: &[Threshold],
        layout: Layout,
        observed: Instant,
    ) -> Option<Going> {
        let row = threshold.signal.row();
        tracing::info!(
            threshold = thresholds::describe(&threshold),
            "attempting to reclaim {}",
            row.starved.name()
        );
        let text = format!("Attempting to reclaim {}", row.starved.name());
        self.kubelet.node_event(EventKind::Warning, "EvictionThresholdMet", text);
        if self.collect(threshold.signal, layout).await {
            return None;
        }
        let pods = self.kubelet.active_pods(PodState::clone);
        let disk = !matches!(row.pressure, Pressure::Memory | Pressure::Pid);
        let mut uses = usage::of_pods(&self.kubelet, &pods, disk).await;
        let mut candidates: Vec<Candidate> = pods
            .into_iter()
            .map(|state| Candidate { usage: uses.remove(&state.pod.metadata.uid), pod: state.pod })
            .collect();
        rank::sort(threshold.signal, layout, &mut candidates);
        for met in all.iter().filter(|_| !candidates.is_empty()) {
            self.kubelet.metrics.took(&table::EVICTION_AGE, &[met.signal.row().name], observed.elapsed());
        }
        for candidate in &candidates {
            let grace_s = if threshold.is_hard() {
                IMMEDIATE_GRACE_S
            } else {
                let most = self.kubelet.resources.settings.eviction.max_pod_grace_period_s;
                candidate.pod.spec.termination_grace_period_seconds.map_or(most, |own| own.min(most))
            };
            let (message, annotations) = messages::explain(row.starved, candidate, all, &self.last);
            let order = Order { message, annotations, grace_s, disrupted: true };
            if let Some(going) = self.evict(candidate, order, row.name) {
                return Some(going);
            }
        }
        tracing::warn!("no pod can be evicted from this node");
        None
    }

    /// Removes garbage that may help; whether that was enough.
    async fn collect(&mut self, signal: Signal, layout: Layout) -> bool {
        let garbage = rank::garbage(signal, layout);
        if garbage.is_empty() {
            return false;
        }
        for kind in garbage {
            let outcome = match kind {
                Garbage::Containers => crate::gc::containers::collect_all_unused(&self.kubelet).await,
                Garbage::Images => self.kubelet.image_gc.delete_unused(&self.kubelet).await,
            };
            if let Err(error) = outcome {
                tracing::warn!(error, ?kind, "removing garbage");
            }
        }
        let now = self.observer.observe().await;
        thresholds::met(&self.thresholds, &now, true).is_empty()
    }

    /// Pods over a limit of ephemeral storage, told to go.
    async fn over_limits(&mut self, layout: Layout) -> Vec<Going> {
        let settings = &self.kubelet.resources.settings;
        if !settings.local_storage_isolation {
            return Vec::new();
        }
        let began = Instant::now();
        let pods = self.kubelet.active_pods(|s| s.pod.clone());
        let due = self.walks.due(pods.iter().map(AsRef::as_ref), began);
        if due.is_empty() {
            return Vec::new();
        }
        let mut walked = self.kubelet.active_pods(PodState::clone);
        walked.retain(|s| due.contains(&s.pod.metadata.uid));
        let period = settings.volume_stats_period;
        let uses = usage::of_pods(&self.kubelet, &walked, true).await;
        self.walks.done(&due, began.elapsed(), period, Instant::now());
        let mut going = Vec::new();
        for state in walked {
            let pod = state.pod;
            let Some(usage) = uses.get(&pod.metadata.uid) else { continue };
            let Some(message) = local::exceeded(&pod, usage, layout) else { continue };
            let order =
                Order { message, annotations: BTreeMap::new(), grace_s: IMMEDIATE_GRACE_S, disrupted: false };
            let candidate = Candidate { pod, usage: Some(PodUsage::default()) };
            going.extend(self.evict(&candidate, order, "ephemeralStorageLimit"));
        }
        going
    }

    /// Tells a pod to go; `None` where it must not.
    fn evict(&self, candidate: &Candidate, order: Order, signal: &str) -> Option<Going> {
        let pod = &candidate.pod;
        if qos::is_critical(pod) {
            tracing::warn!(pod = %pod.full_name(), "a critical pod is not evicted");
            return None;
        }
        let (done, ended) = oneshot::channel();
        let eviction = Eviction {
            reason: REASON.to_owned(),
            message: order.message.clone(),
            grace_s: order.grace_s,
            disrupted: order.disrupted,
            done: Some(done),
        };
        let kubelet = &self.kubelet;
        kubelet.annotated_pod_event(pod, order.annotations, EventKind::Warning, REASON, order.message);
        if !kubelet.evict(&pod.metadata.uid, eviction) {
            return None;
        }
        kubelet.metrics.count(&table::EVICTIONS, &[signal]);
        Some(Going { pod: candidate.pod.clone(), grace_s: order.grace_s, ended })
    }

    /// Waits until what was evicted is gone, for as long as that may take.
    async fn wait_for(&self, evicted: Vec<Going>) {
        for going in evicted {
            let grace = Duration::from_secs(u64::try_from(going.grace_s).unwrap_or(0));
            let patience = (grace + grace / 2).max(KILL_PATIENCE);
            let began = Instant::now();
            let mut ended = going.ended;
            if tokio::time::timeout_at(began + patience, &mut ended).await.is_ok() {
                continue;
            }
            let text = "Container runtime did not kill the pod within specified grace period.";
            self.kubelet.pod_event(
                &going.pod,
                None,
                EventKind::Warning,
                "ExceededGracePeriod",
                text.to_owned(),
            );
            if tokio::time::timeout_at(began + patience + CLEANUP_PATIENCE, ended).await.is_err() {
                tracing::warn!(pod = %going.pod.full_name(), "an evicted pod is still there");
            }
        }
    }
}

/// How a pod is to go, and what is said of it.
struct Order {
    message: String,
    annotations: BTreeMap<String, String>,
    grace_s: i64,
    /// The pod did nothing wrong: a Job may start it again.
    disrupted: bool,
}

/// A pod that was told to go.
struct Going {
    pod: Arc<crate::view::Pod>,
    grace_s: i64,
    /// Resolves once its containers and volumes are gone, or its task is.
    ended: oneshot::Receiver<()>,
}
