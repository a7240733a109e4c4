//! The task that owns the state: takes in changes, tries pods, binds them.

use std::{collections::hash_map::RandomState, hash::BuildHasher as _, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use yare_client::{
    Cached, Change, Client, EventKind, NAMESPACES, NODES, ObjectKey, ObjectRef, PODS, Recorder,
};

use crate::{
    cluster::Cluster,
    cycle::{self, Unschedulable},
    plugins::Events,
    pod::PodInfo,
    queue::Queue,
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
}

impl Default for Config {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".into(), seed: RandomState::new().hash_one(0_u8) }
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
    /// The pod is gone or bound elsewhere: no retry.
    settled: bool,
}

struct State {
    client: Client,
    recorder: Recorder,
    config: Config,
    cluster: Cluster,
    queue: Queue,
    /// Where in the list of nodes the next scan starts.
    start: usize,
    tie: u64,
    bound: mpsc::UnboundedSender<Bound>,
    binding: usize,
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
    tokio::join!(nodes.synced(), pods.synced(), namespaces.synced());
    let mut node_changes = nodes.subscribe();
    let mut pod_changes = pods.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let (sender, mut bound) = mpsc::unbounded_channel();
    let recorder = Recorder::new(client.kube(), &config.scheduler_name, None);
    let mut state = State {
        tie: config.seed,
        client,
        recorder,
        config,
        cluster: Cluster::default(),
        queue: Queue::default(),
        start: 0,
        bound: sender,
        binding: 0,
    };
    loop {
        // Changes first: a decision on old knowledge is the more likely to be wrong.
        while let Some(change) = namespace_changes.try_recv() {
            state.namespace_changed(change);
        }
        while let Some(change) = node_changes.try_recv() {
            state.node_changed(change);
        }
        while let Some(change) = pod_changes.try_recv() {
            state.pod_changed(change);
        }
        while let Ok(done) = bound.try_recv() {
            state.binding_done(done);
        }
        let mut tried = 0;
        while tried < BATCH && state.binding < MAX_BINDINGS && state.try_next() {
            tried += 1;
        }
        if tried == BATCH {
            tokio::task::yield_now().await;
            continue;
        }
        let timer = state.queue.next_timer();
        tokio::select! {
            Some(change) = namespace_changes.recv() => state.namespace_changed(change),
            Some(change) = node_changes.recv() => state.node_changed(change),
            Some(change) = pod_changes.recv() => state.pod_changed(change),
            Some(done) = bound.recv() => state.binding_done(done),
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
            let known = self.cluster.is_assumed(&key);
            self.cluster.set_pod(pod);
            if !known {
                self.queue.event(Events::POD_ADDED, Instant::now());
            }
            return;
        }
        let mine = *pod.scheduler == *self.config.scheduler_name;
        if !mine || pod.object.deletion_timestamp().is_some() {
            self.queue.remove(&key);
        } else if !self.cluster.is_assumed(&key) {
            self.queue.set(pod, Instant::now());
        }
    }

    fn pod_gone(&mut self, key: &ObjectKey) {
        self.queue.remove(key);
        if self.cluster.remove_pod(key) {
            self.queue.event(Events::POD_REMOVED, Instant::now());
        }
    }

    fn binding_done(&mut self, done: Bound) {
        self.binding -= 1;
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
        match cycle::schedule(&pod, &self.cluster, &mut self.start, self.tie) {
            Ok(node) => {
                self.cluster.assume(pod.clone(), &node);
                self.binding += 1;
                let bind = bind(self.client.kube(), self.recorder.clone(), pod, node);
                let sender = self.bound.clone();
                tokio::spawn(async move {
                    // The receiver is gone only when the scheduler stops.
                    let _ = sender.send(bind.await);
                });
            }
            Err(why) => {
                self.queue.unschedulable(pod.key(), why.events, Instant::now());
                let report = report(self.client.kube(), self.recorder.clone(), pod.object.clone(), why);
                tokio::spawn(report);
            }
        }
        true
    }
}

/// Writes the binding and says so in an event.
async fn bind(client: kube::Client, recorder: Recorder, pod: Arc<PodInfo>, node: String) -> Bound {
    let object = &pod.object;
    let (namespace, name) = (object.namespace(), object.name());
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
            Bound { key, settled: true }
        }
        // Gone, or bound by somebody else: the watch tells.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Bound { key, settled: status.code == 404 }
        }
        Err(error) => {
            let message = format!("binding rejected: {error}");
            recorder.event(ObjectRef::of(&PODS, object), EventKind::Warning, "FailedScheduling", message);
            Bound { key, settled: false }
        }
    }
}

/// Says in an event and in the pod's condition why it has no node.
async fn report(client: kube::Client, recorder: Recorder, pod: Cached, why: Unschedulable) {
    let message = why.message();
    recorder.event(ObjectRef::of(&PODS, &pod), EventKind::Warning, "FailedScheduling", message.clone());
    let (namespace, name) = (pod.namespace(), pod.name());
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let current: Result<PodConditions, _> = pod.view();
    if current.is_ok_and(|c| c.unschedulable_because(&message)) {
        return;
    }
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": now,
    }]}});
    for delay_ms in [0, 100, 1000] {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::debug!(%error, pod = %pod.key(), "condition not written"),
        }
    }
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
