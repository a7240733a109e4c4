//! The task that owns the state: takes in changes, tries pods, binds them.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
};

use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::Instant,
};
use yare_client::{
    Change, Client, Informer, NAMESPACES, NODES, ObjectKey, POD_DISRUPTION_BUDGETS, PODS, RESOURCE_CLAIMS,
    Recorder,
};
use yare_schema::features::Gates;

use crate::{
    cluster::Cluster,
    cycle::{self, Unschedulable},
    device_events,
    devices::{
        bind::{self as claims, Work},
        state::Devices,
    },
    metrics::{Metrics, Outcome, Taken},
    plugins::{Events, State as PodState},
    pod::PodInfo,
    preemption::{self, Budget, Choice},
    queue::{Attempts, Queue},
    storage::{
        Decision,
        bind::{Sources, Waiting},
    },
    storage_events,
    writes::{self, Binding, Bound},
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
    /// Features.
    pub gates: Gates,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            seed: RandomState::new().hash_one(0_u8),
            metrics: Arc::default(),
            gates: Gates::default(),
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
    /// Pods whose claims for devices are being written.
    pub(crate) reserving: HashMap<ObjectKey, Work>,
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
    let mut storage = storage_events::watched(&client);
    let mut devices = device_events::watched(&client, &config.gates);
    tokio::join!(
        nodes.synced(),
        pods.synced(),
        namespaces.synced(),
        budgets.synced(),
        storage.synced(),
        devices.synced()
    );
    let mut node_changes = nodes.subscribe();
    let mut pod_changes = pods.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let (sender, mut bound) = mpsc::unbounded_channel();
    let recorder = Recorder::new(client.kube(), &config.scheduler_name, None);
    let mut state = State {
        waiting: HashMap::new(),
        reserving: HashMap::new(),
        sources: Arc::new(Sources::of(&client)),
        tie: config.seed,
        client,
        recorder,
        cluster: Cluster::new(Devices::new(&config.gates))
            .asking_for_features(config.gates.is_on("NodeDeclaredFeatures")),
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
        while let Some((kind, change)) = devices.try_recv() {
            state.devices_changed(kind, &change);
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
            Some((kind, change)) = devices.recv() => state.devices_changed(kind, &change),
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
                    (change.features, Events::NODE_FEATURES),
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
                self.cluster.devices.restore_extended(old.uid());
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
            match self.cluster.lacks_claims(&pod) {
                Some(_) => self.queue.hold(pod, Instant::now()),
                None => self.queue.set(pod, Instant::now()),
            }
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

    /// Notes for the metrics what an attempt came to.
    fn attempted(&self, attempts: Option<Attempts>, outcome: Outcome) {
        let Some(attempts) = attempts else { return };
        let (metrics, now) = (&self.config.metrics, Instant::now());
        metrics.attempted(&self.config.scheduler_name, outcome, now - attempts.this);
        if outcome == Outcome::Scheduled {
            metrics.scheduled(attempts.count, now - attempts.first);
        }
    }

    fn binding_done(&mut self, done: Bound, attempts: Option<Attempts>) {
        if done.placed || !done.settled {
            self.attempted(attempts, if done.placed { Outcome::Scheduled } else { Outcome::Error });
        }
        let waited = self.waiting.remove(&done.key);
        self.binding -= usize::from(!done.long);
        self.claims_written(&done);
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
                let Some((volumes, claims)) = self.reserve(&pod, &node) else {
                    self.attempted(attempts, Outcome::Error);
                    self.queue.retry(pod.key(), Instant::now());
                    return true;
                };
                self.cluster.assume(pod.clone(), &node);
                // What may take minutes does not count as a binding.
                let long = volumes.is_some() || claims.as_ref().is_some_and(Work::may_wait);
                self.binding += usize::from(!long);
                let binding = Binding {
                    client: self.client.kube(),
                    recorder: self.recorder.clone(),
                    sources: self.sources.clone(),
                    resource_claims: claims.as_ref().map(|_| self.client.informers().of(RESOURCE_CLAIMS)),
                    pod,
                    node,
                };
                let sender = self.bound.clone();
                tokio::spawn(async move {
                    let done = binding.run(volumes, claims).await;
                    // The receiver is gone only when the scheduler stops.
                    let _ = sender.send((Bound { long, ..done }, attempts));
                });
            }
            Err(why) => {
                self.attempted(attempts, if why.error { Outcome::Error } else { Outcome::Unschedulable });
                self.no_node(pod, why);
            }
        }
        true
    }

    /// Takes what the pod's claims need on its node; without any, there is nothing to write. `None`: what the node
    /// was chosen for is not there any more.
    fn reserve(&mut self, pod: &Arc<PodInfo>, node: &str) -> Option<(Option<Waiting>, Option<Work>)> {
        if pod.claims.is_empty() && !pod.needs_devices() {
            return Some((None, None));
        }
        // The same question got an answer a moment ago, from the same state.
        let state = PodState::new(pod, &self.cluster);
        let devices = state.decide_devices(&self.cluster, node)?;
        let volumes = state.decide(&self.cluster, node).filter(|d| !d.is_empty());
        let volumes = volumes.map(|decision| self.reserve_volumes(pod, node, decision));
        let told = Arc::new(Notify::new());
        let work = (!devices.is_empty()).then(|| {
            let mut claims = Vec::with_capacity(devices.claims.len());
            for (claim, allocation) in devices.claims {
                let new = allocation.map(|allocation| {
                    self.cluster.devices.assume(claim.object.key(), allocation.holdings.clone());
                    allocation.to_json(share_id)
                });
                claims.push((claim, new));
            }
            let extended = devices.extended.map(|(wish, allocation)| {
                let uid = pod.object.uid();
                self.cluster.devices.assume_extended(uid, allocation.holdings.clone());
                claims::ToMake { pod: uid.into(), wish, allocation: allocation.to_json(share_id) }
            });
            let dated = self.cluster.devices.features().bindings;
            Work { node: node.to_owned(), claims, extended, dated, told }
        });
        if let Some(work) = &work {
            self.reserving.insert(pod.key().clone(), work.clone());
        }
        Some((volumes, work))
    }

    fn reserve_volumes(&mut self, pod: &PodInfo, node: &str, decision: Decision) -> Waiting {
        self.cluster.storage.assume(&decision, node);
        let waiting = Waiting {
            pod: pod.key().clone(),
            node: node.to_owned(),
            decision,
            told: Arc::new(Notify::new()),
        };
        self.waiting.insert(pod.key().clone(), waiting.clone());
        waiting
    }

    /// What was decided for claims is written, or is not to be.
    fn claims_written(&mut self, done: &Bound) {
        let Some(work) = self.reserving.remove(&done.key) else { return };
        let devices = &mut self.cluster.devices;
        let mut freed = false;
        for (claim, _) in work.claims.iter().filter(|(_, new)| new.is_some()) {
            let key = claim.object.key();
            match done.written.claims.iter().find(|(written, _)| written == key) {
                Some((_, version)) => devices.settle(key, *version),
                None => freed |= devices.restore(key),
            }
        }
        // Once it is made, the watch tells what becomes of it.
        if let Some(to_make) = work.extended.filter(|_| !done.placed) {
            freed |= devices.restore_extended(&to_make.pod);
        }
        if let Some(made) = done.written.creation {
            self.config.metrics.made_claim(made);
        }
        if let Some(attachment) = &done.written.attachment {
            self.config.metrics.attached(&self.config.scheduler_name, attachment);
        }
        if freed {
            // Who shares one of the claims waits for what becomes of it.
            let events = Events::DEVICES_FREED.and(Events::RESOURCE_CLAIM);
            self.queue.event_for(events, Instant::now(), PodInfo::needs_devices);
        }
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
        if why.error {
            self.queue.retry(pod.key(), Instant::now());
            tokio::spawn(writes::fail(
                self.client.kube(),
                self.recorder.clone(),
                pod.object.clone(),
                message,
            ));
            return;
        }
        let mut nominate = None;
        // Somebody left meanwhile: there is room without a victim, and nobody's end to wait for.
        let mut freed = false;
        if why.nodes > 0 {
            let deallocation = self.deallocate(&pod, &why);
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
                    let evict = writes::evict(
                        self.client.kube(),
                        self.recorder.clone(),
                        self.config.scheduler_name.clone(),
                        pod.clone(),
                        choice,
                    );
                    tokio::spawn(evict);
                }
                Err(refusal) => {
                    message = format!("{message} {deallocation}, {}", refusal.message());
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
        tokio::spawn(writes::report(self.client.kube(), self.recorder.clone(), object, message, nominate));
    }

    /// Gives a claim's devices back that keep the pod from all nodes, so that others are tried; what is to be said of
    /// it.
    fn deallocate(&self, pod: &PodInfo, why: &Unschedulable) -> &'static str {
        if !pod.needs_devices() || why.refusal.is_some() {
            return "no new claims to deallocate";
        }
        let own = pod.object.uid();
        let claims = why.unavailable.iter().filter_map(|key| self.cluster.devices.claim(key));
        for claim in claims {
            // One that was made for this pod, and led nowhere.
            if claim.extended_for.as_deref() == Some(own) {
                tokio::spawn(claims::unmake(self.client.kube(), claim.object.key().clone()));
                return "deletion of ResourceClaim completed";
            }
            if claim.reserved_for.iter().all(|uid| **uid == *own) {
                tokio::spawn(claims::deallocate(self.client.kube(), claim.clone()));
                return "deallocation of ResourceClaim completed";
            }
        }
        "still not schedulable"
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
                writes::patch_status(client, &other.object, &patch).await;
            });
        }
    }
}

/// An id for a share of a device (UUID v4), from the keys that the process has hashed with from its start.
fn share_id() -> String {
    let half = |n: u8| u128::from(RandomState::new().hash_one(n));
    let bits = half(0) << 64 | half(1);
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let text = format!("{bits:032x}");
    let part = |from: usize, to: usize| &text[from..to];
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
