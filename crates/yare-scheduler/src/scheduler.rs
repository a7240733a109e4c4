//! The task that owns the state: takes in changes, tries pods, binds them.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::Instant,
};
use yare_client::{
    Cached, Change, Client, EventKind, Informer, NAMESPACES, NODES, ObjectKey, ObjectRef,
    POD_DISRUPTION_BUDGETS, PODS, Recorder,
};

use crate::{
    cluster::Cluster,
    cycle::{self, Unschedulable},
    metrics::{Metrics, Outcome, Taken},
    plugins::{Events, State as PodState},
    pod::PodInfo,
    preemption::{self, Budget, Choice},
    queue::{Attempts, Queue},
    storage::bind::{self, Sources, Waiting},
    storage_events::StorageEvents,
};

/// Bindings under way at once.
const MAX_BINDINGS: usize = 64;
/// Pods tried before changes are looked at again.
const BATCH: usize = 16;

/// How a scheduler runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `spec.schedulerName` it answers to.
    pub scheduler_name: String,
    /// Decides between equally good nodes; the same seed decides alike.
    pub seed: u64,
    /// What it counts.
    pub metrics: Arc<Metrics>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            seed: RandomState::new().hash_one(0_u8),
            metrics: Arc::default(),
        }
    }
}

/// A running scheduler; stops when dropped.
pub struct Scheduler {
    task: JoinHandle<()>,
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of a binding.
struct Bound {
    key: ObjectKey,
    /// The pod has its node, is gone or bound elsewhere: no retry.
    settled: bool,
    /// It has its node by us.
    placed: bool,
    /// Its volumes are bound, where there was something to bind.
    volumes: bool,
}

pub(crate) struct State {
    client: Client,
    recorder: Recorder,
    config: Config,
    pub(crate) cluster: Cluster,
    pub(crate) queue: Queue,
    /// Where in the list of nodes the next scan starts.
    start: usize,
    tie: u64,
    bound: mpsc::UnboundedSender<(Bound, Option<Attempts>)>,
    binding: usize,
    /// Pods whose volumes are being bound first. That may take minutes, so they do not count as bindings.
    pub(crate) waiting: HashMap<ObjectKey, Waiting>,
    sources: Arc<Sources>,
    /// Looked at only when somebody is to be preempted.
    budgets: Informer,
}

impl Scheduler {
    /// Starts scheduling.
    pub fn start(client: Client, config: Config) -> Self {
        Self { task: tokio::spawn(run(client, config)) }
    }
}

async fn run(client: Client, config: Config) {
    let informers = client.informers();
    let (nodes, pods, namespaces) = (informers.of(NODES), informers.of(PODS), informers.of(NAMESPACES));
    let budgets = informers.of(POD_DISRUPTION_BUDGETS);
    let mut storage = StorageEvents::new(&client);
    tokio::join!(nodes.synced(), pods.synced(), namespaces.synced(), budgets.synced(), storage.synced());
    let mut node_changes = nodes.subscribe();
    let mut pod_changes = pods.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let (sender, mut bound) = mpsc::unbounded_channel();
    let recorder = Recorder::new(client.kube(), &config.scheduler_name, None);
    let mut state = State {
        waiting: HashMap::new(),
        sources: Arc::new(Sources::of(&client)),
        tie: config.seed,
        client,
        recorder,
        cluster: Cluster::default(),
        queue: Queue::new(config.metrics.clone()),
        config,
        start: 0,
        bound: sender,
        binding: 0,
        budgets,
    };
    loop {
        // Changes first: a decision on old knowledge is the more likely to be wrong.
        while let Some(change) = namespace_changes.try_recv() {
            state.namespace_changed(change);
        }
        while let Some(change) = node_changes.try_recv() {
            state.node_changed(change);
        }
        while let Some((kind, change)) = storage.try_recv() {
            state.storage_changed(kind, change);
        }
        while let Some(change) = pod_changes.try_recv() {
            state.pod_changed(change);
        }
        while let Ok((done, attempts)) = bound.try_recv() {
            state.binding_done(done, attempts);
        }
        let mut tried = 0;
        while tried < BATCH && state.binding < MAX_BINDINGS && state.try_next() {
            tried += 1;
        }
        if tried == BATCH {
            tokio::task::yield_now().await;
            continue;
        }
        state.count();
        let timer = state.queue.next_timer();
        tokio::select! {
            Some(change) = namespace_changes.recv() => state.namespace_changed(change),
            Some(change) = node_changes.recv() => state.node_changed(change),
            Some(change) = pod_changes.recv() => state.pod_changed(change),
            Some((kind, change)) = storage.recv() => state.storage_changed(kind, change),
            Some((done, attempts)) = bound.recv() => state.binding_done(done, attempts),
            () = sleep_until(timer) => {}
            else => return,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl State {
    fn namespace_changed(&mut self, change: Change) {
        match (change.new, change.old) {
            (Some(new), _) => self.cluster.set_namespace(new),
            (None, Some(old)) => self.cluster.remove_namespace(old.name()),
            (None, None) => {}
        }
    }

    fn node_changed(&mut self, change: Change) {
        let Some(new) = change.new else {
            if let Some(old) = change.old {
                self.cluster.remove_node(old.name());
            }
            return;
        };
        match self.cluster.set_node(new) {
            Ok(change) => {
                let mut events = Events::NONE;
                for (happened, event) in [
                    (change.added, Events::NODE_ADDED),
                    (change.labels, Events::NODE_LABELS),
                    (change.taints, Events::NODE_TAINTS),
                    (change.allocatable, Events::NODE_ALLOCATABLE),
                ] {
                    if happened {
                        events = events.and(event);
                    }
                }
                if events != Events::NONE {
                    self.queue.event(events, Instant::now());
                }
            }
            Err(error) => tracing::warn!(%error, "node cannot be read, it takes no pods"),
        }
    }

    fn pod_changed(&mut self, change: Change) {
        let Some(new) = change.new else {
            if let Some(old) = change.old {
                self.pod_gone(old.key());
            }
            return;
        };
        let was_nominated =
            change.old.and_then(|o| PodInfo::new(o).ok()).is_some_and(|o| !o.nominated.is_empty());
        let pod = match PodInfo::new(new) {
            Ok(pod) => pod,
            Err(error) => return tracing::warn!(%error, "pod cannot be read, it is not scheduled"),
        };
        let key = pod.key().clone();
        if pod.finished {
            return self.pod_gone(&key);
        }
        if !pod.node.is_empty() {
            self.queue.remove(&key);
            self.cluster.forget_nomination(&key);
            let known = self.cluster.is_assumed(&key);
            if self.cluster.set_pod(pod) {
                self.queue.event(Events::POD_SHRANK, Instant::now());
            }
            if !known {
                self.queue.event(Events::POD_ADDED, Instant::now());
            }
            return;
        }
        let mine = *pod.scheduler == *self.config.scheduler_name;
        if !mine || pod.object.deletion_timestamp().is_some() {
            self.queue.remove(&key);
            self.cluster.forget_nomination(&key);
        } else if !self.cluster.is_assumed(&key) {
            // What we decided ourselves holds until the API says something else.
            let said = !pod.nominated.is_empty() || was_nominated;
            let node = if said { &*pod.nominated } else { self.cluster.nomination(&key).unwrap_or_default() };
            self.cluster.nominate(&pod, &Box::<str>::from(node));
            self.queue.set(pod, Instant::now());
        }
    }

    fn pod_gone(&mut self, key: &ObjectKey) {
        if let Some(waiting) = self.waiting.get(key) {
            waiting.told.notify_one();
        }
        self.cluster.forget_nomination(key);
        self.queue.remove(key);
        if self.cluster.remove_pod(key) {
            self.queue.event(Events::POD_REMOVED, Instant::now());
        }
    }

    /// Notes for the metrics what is known now.
    fn count(&self) {
        let (assumed, pods) = self.cluster.counts();
        self.config.metrics.knows(assumed, self.cluster.nodes().len(), pods, self.binding);
    }

    fn binding_done(&mut self, done: Bound, attempts: Option<Attempts>) {
        if let Some(attempts) = attempts.filter(|_| done.placed || !done.settled) {
            let now = Instant::now();
            let outcome = if done.placed { Outcome::Scheduled } else { Outcome::Error };
            let (metrics, profile) = (&self.config.metrics, &self.config.scheduler_name);
            metrics.attempted(profile, outcome, now - attempts.this);
            if done.placed {
                metrics.scheduled(attempts.count, now - attempts.first);
            }
        }
        let waited = self.waiting.remove(&done.key);
        if waited.is_none() {
            self.binding -= 1;
        }
        if let Some(waited) = waited.filter(|_| !done.volumes) {
            self.cluster.storage.restore(&waited.decision);
        }
        if done.settled {
            return;
        }
        self.cluster.unassume(&done.key);
        let now = Instant::now();
        self.queue.retry(&done.key, now);
        self.queue.event(Events::POD_REMOVED, now);
    }

    /// Tries the next pod; `false` where none is ready.
    fn try_next(&mut self) -> bool {
        let Some(pod) = self.queue.pop(Instant::now()) else { return false };
        // xorshift: a different choice between equal nodes for each pod, replayable from the seed.
        self.tie ^= self.tie << 13;
        self.tie ^= self.tie >> 7;
        self.tie ^= self.tie << 17;
        // The pod is in flight from here on; it may be forgotten before its binding comes back.
        let attempts = self.queue.attempts(pod.key());
        match self.schedule(&pod) {
            Ok(node) => {
                let volumes = self.reserve_volumes(&pod, &node);
                self.cluster.assume(pod.clone(), &node);
                self.binding += usize::from(volumes.is_none());
                let bind =
                    bind(self.client.kube(), self.recorder.clone(), self.sources.clone(), pod, node, volumes);
                let (sender, attempts) = (self.bound.clone(), attempts);
                tokio::spawn(async move {
                    // The receiver is gone only when the scheduler stops.
                    let _ = sender.send((bind.await, attempts));
                });
            }
            Err(why) => {
                if let Some(attempts) = attempts {
                    let took = attempts.this.elapsed();
                    self.config.metrics.attempted(&self.config.scheduler_name, Outcome::Unschedulable, took);
                }
                self.no_node(pod, why);
            }
        }
        true
    }

    /// Takes what the pod's claims need on its node; `None` where there is nothing to write.
    fn reserve_volumes(&mut self, pod: &PodInfo, node: &str) -> Option<Waiting> {
        if pod.claims.is_empty() {
            return None;
        }
        // The same question got an answer a moment ago, from the same state.
        let decision = PodState::new(pod, &self.cluster).decide(&self.cluster, node);
        let decision = decision.filter(|d| !d.is_empty())?;
        self.cluster.storage.assume(&decision, node);
        let waiting = Waiting {
            pod: pod.key().clone(),
            node: node.to_owned(),
            decision,
            told: Arc::new(Notify::new()),
        };
        self.waiting.insert(pod.key().clone(), waiting.clone());
        Some(waiting)
    }

    /// The node for a pod, with room left for those it was made for.
    fn schedule(&mut self, pod: &PodInfo) -> Result<String, Unschedulable> {
        let nominated = self.cluster.add_nominated(pod);
        let mut taken = Taken::default();
        let result = cycle::schedule_measured(pod, &self.cluster, &mut self.start, self.tie, &mut taken);
        self.config.metrics.cycle(&self.config.scheduler_name, &taken, result.is_ok());
        let alone = nominated.is_empty();
        self.cluster.remove_nominated(nominated);
        // A pod that wants the company of others must not count on ones that are not there yet.
        if !alone && result.is_ok() && !pod.affinity.is_empty() {
            return cycle::schedule(pod, &self.cluster, &mut self.start, self.tie);
        }
        result
    }

    /// Nothing fits: others go, or the pod waits.
    fn no_node(&mut self, pod: Arc<PodInfo>, why: Unschedulable) {
        let mut message = why.message();
        let mut nominate = None;
        // Somebody left meanwhile: there is room without a victim, and nobody's end to wait for.
        let mut freed = false;
        if why.nodes > 0 {
            let budgets = self.budgets.list();
            let budgets: Vec<Budget> = budgets.iter().filter_map(|b| Budget::new(b).ok().flatten()).collect();
            let start = self.tie as usize;
            let began = Instant::now();
            let choice = preemption::preempt(&pod, &mut self.cluster, &budgets, &why, start);
            let (metrics, found) = (&self.config.metrics, choice.is_ok());
            metrics.point("PostFilter", &self.config.scheduler_name, found, began.elapsed());
            metrics.preempted(choice.as_ref().ok().map(|c| c.victims.len()).filter(|n| *n > 0));
            match choice {
                Ok(choice) => {
                    self.cluster.nominate(&pod, &choice.node);
                    nominate = Some(choice.node.to_string());
                    freed = choice.victims.is_empty();
                    self.displace(&choice, &pod);
                    let evict = evict(
                        self.client.kube(),
                        self.recorder.clone(),
                        self.config.scheduler_name.clone(),
                        pod.clone(),
                        choice,
                    );
                    tokio::spawn(evict);
                }
                Err(refusal) => {
                    message = format!("{message} {}", refusal.message());
                    let had = self.cluster.nomination(pod.key()).is_some();
                    if had && matches!(refusal, preemption::Refusal::NotHelpful(_)) {
                        self.cluster.forget_nomination(pod.key());
                        nominate = Some(String::new());
                    }
                }
            }
        }
        self.queue.unschedulable(pod.key(), why.events, Instant::now());
        self.queue.turned_down(pod.key(), why.plugins);
        if freed {
            self.queue.retry(pod.key(), Instant::now());
        }
        let object = pod.object.clone();
        tokio::spawn(report(self.client.kube(), self.recorder.clone(), object, message, nominate));
    }

    /// Less important pods that were to get room on the chosen node look for another.
    fn displace(&mut self, choice: &Choice, pod: &PodInfo) {
        for other in self.cluster.nominated_below(&choice.node, pod.priority) {
            self.cluster.forget_nomination(other.key());
            let client = self.client.kube();
            self.queue.retry(other.key(), Instant::now());
            tokio::spawn(async move {
                let patch =
                    json!({"metadata": {"uid": other.object.uid()}, "status": {"nominatedNodeName": null}});
                patch_status(client, &other.object, &patch).await;
            });
        }
    }
}

/// Ends the victims: says why in their status, deletes them, and tells in an event.
async fn evict(
    client: kube::Client,
    recorder: Recorder,
    scheduler: String,
    pod: Arc<PodInfo>,
    choice: Choice,
) {
    for victim in &choice.victims {
        let object = &victim.object;
        if object.deletion_timestamp().is_some() {
            continue;
        }
        let patch = json!({"metadata": {"uid": object.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "observedGeneration": generation(object),
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": now(),
        }]}});
        patch_status(client.clone(), object, &patch).await;
        let pods: Api<Pod> = Api::namespaced(client.clone(), object.namespace());
        let preconditions = Preconditions { uid: Some(object.uid().to_owned()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match pods.delete(object.name(), &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                tracing::warn!(%error, pod = %object.key(), "preempted pod not deleted");
                continue;
            }
        }
        let message = format!("Preempted by pod {} on node {}", pod.object.uid(), choice.node);
        recorder.event(ObjectRef::of(&PODS, object), EventKind::Normal, "Preempted", message);
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Patches a pod's status; tries a few times.
async fn patch_status(client: kube::Client, pod: &Cached, patch: &serde_json::Value) {
    let pods: Api<Pod> = Api::namespaced(client, pod.namespace());
    for delay_ms in [0, 100, 1000] {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        match pods.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::debug!(%error, pod = %pod.key(), "status not written"),
        }
    }
}

/// Binds the pod's volumes, writes the binding and says so in an event.
async fn bind(
    client: kube::Client,
    recorder: Recorder,
    sources: Arc<Sources>,
    pod: Arc<PodInfo>,
    node: String,
    volumes: Option<Waiting>,
) -> Bound {
    let object = &pod.object;
    let (namespace, name) = (object.namespace(), object.name());
    if let Some(work) = volumes
        && let Err(why) = bind::volumes(client.clone(), &sources, &work).await
    {
        let message = format!("running PreBind plugin \"VolumeBinding\": {why}");
        let key = pod.key().clone();
        // A pod that is gone needs no words.
        if let Some(now) = sources.pod(&key).filter(|p| p.uid() == object.uid()) {
            fail(client, recorder, &now, message).await;
            return Bound { key, settled: false, placed: false, volumes: false };
        }
        return Bound { key, settled: true, placed: false, volumes: false };
    }
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace, "uid": object.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let result = pods
        .create_subresource::<_, serde_json::Value>("binding", name, &PostParams::default(), &binding)
        .await;
    let key = pod.key().clone();
    match result {
        Ok(_) => {
            let message = format!("Successfully assigned {namespace}/{name} to {node}");
            recorder.event(ObjectRef::of(&PODS, object), EventKind::Normal, "Scheduled", message);
            Bound { key, settled: true, placed: true, volumes: true }
        }
        // Gone, or bound by somebody else: the watch tells.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Bound { key, settled: status.code == 404, placed: false, volumes: true }
        }
        Err(error) => {
            let message = format!("binding rejected: {error}");
            recorder.event(ObjectRef::of(&PODS, object), EventKind::Warning, "FailedScheduling", message);
            Bound { key, settled: false, placed: false, volumes: true }
        }
    }
}

/// Says in an event and in the pod's condition that something went wrong that is not the pod's fault.
async fn fail(client: kube::Client, recorder: Recorder, pod: &Cached, message: String) {
    recorder.event(ObjectRef::of(&PODS, pod), EventKind::Warning, "FailedScheduling", message.clone());
    let condition = json!({
        "type": "PodScheduled",
        "observedGeneration": generation(pod),
        "status": "False",
        "reason": "SchedulerError",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": now(),
    });
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
    patch_status(client, pod, &patch).await;
}

/// Says in an event and in the pod's condition why it has no node, and where room is made for it.
async fn report(
    client: kube::Client,
    recorder: Recorder,
    pod: Cached,
    message: String,
    nominate: Option<String>,
) {
    recorder.event(ObjectRef::of(&PODS, &pod), EventKind::Warning, "FailedScheduling", message.clone());
    let current: Result<PodConditions, _> = pod.view();
    if nominate.is_none() && current.is_ok_and(|c| c.unschedulable_because(&message)) {
        return;
    }
    let mut status = json!({"conditions": [{
        "type": "PodScheduled",
        "observedGeneration": generation(&pod),
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": now(),
    }]});
    if let Some(node) = nominate {
        status["nominatedNodeName"] = if node.is_empty() { serde_json::Value::Null } else { node.into() };
    }
    patch_status(client, &pod, &json!({"metadata": {"uid": pod.uid()}, "status": status})).await;
}

/// The generation of a pod that is spoken of.
fn generation(pod: &Cached) -> i64 {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Generation {
        metadata: Metadata,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Metadata {
        generation: i64,
    }
    pod.view::<Generation>().map_or(0, |view| view.metadata.generation)
}

/// The conditions of a pod.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct PodConditions {
    status: ConditionList,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ConditionList {
    conditions: Vec<Condition>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

impl PodConditions {
    fn unschedulable_because(&self, message: &str) -> bool {
        self.status
            .conditions
            .iter()
            .any(|c| c.kind == "PodScheduled" && c.status == "False" && c.message == message)
    }
}
