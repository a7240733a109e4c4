//! What every part of a node agent shares: configuration, clients, the runtime, registries.
//!
//! One of these exists per node. Pods, the HTTP API and the node's own status hold it by `Arc`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use yare_client::{Client, EventKind, Informer, ObjectRef, Recorder};
use yare_metrics::slis::Checks;
use yare_runtime::Runtime;

use crate::allocation::{Allocations, PERIODIC};
use crate::api::Api;
use crate::clock::Seams;
use crate::config::Configuration;
use crate::csi::Csi;
use crate::eviction::Pressure;
use crate::gc::images::ImageGc;
use crate::images::Images;
use crate::images::providers::Providers;
use crate::logs::rotate::Rotator;
use crate::managers::Managers;
use crate::manifests::Statics;
use crate::metrics::{Measured, Metrics, table};
use crate::node::NetworkReadiness;
use crate::node::capacity::Capacity;
use crate::objects::Objects;
use crate::pod::admission::{self, Claims, Offer, Rejection, Share, Used};
use crate::pod::id_ranges::IdRanges;
use crate::pod::mailbox::{Eviction, Mailbox};
use crate::pod::preemption;
use crate::pod::writer::StatusWriter;
use crate::resources::NodeResources;
use crate::trace::Tracer;
use crate::usage::rates::Rates;
use crate::view::Pod;
use crate::volumes::NodeVolumes;
use crate::volumes::local_path::LocalVolumes;

pub(crate) struct Kubelet {
    pub(crate) node_name: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) data_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    /// How the node was told to behave.
    pub(crate) config: Configuration,
    pub(crate) seams: Seams,
    pub(crate) api: Api,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) runtime_name: String,
    pub(crate) recorder: Recorder,
    pub(crate) objects: Objects,
    pub(crate) services: Informer,
    /// The pods bound to this node, as the API server has them.
    pub(crate) pods: Informer,
    pub(crate) writer: StatusWriter,
    /// The pods of this node's manifests.
    pub(crate) statics: Statics,
    pub(crate) capacity: Capacity,
    pub(crate) resources: NodeResources,
    /// What the node lacks, as last looked at.
    pub(crate) pressures: watch::Sender<BTreeSet<Pressure>>,
    pub(crate) image_gc: ImageGc,
    /// Pulls, and who may use what was pulled.
    pub(crate) images: Images,
    pub(crate) network: watch::Receiver<NetworkReadiness>,
    pub(crate) managers: Managers,
    /// What pods are given.
    pub(crate) allocations: Allocations,
    pub(crate) rotator: Rotator,
    pub(crate) metrics: Metrics,
    pub(crate) rates: Rates,
    /// Storage drivers.
    pub(crate) csi: Csi,
    /// Volumes that pods share.
    pub(crate) volumes: NodeVolumes,
    /// What the node offers to pods, as last read from its own object.
    pub(crate) offer: Mutex<Offer>,
    /// What the pods that were admitted take, by uid.
    admitted: Mutex<HashMap<String, Share>>,
    /// User ids of pods in user namespaces.
    id_ranges: Mutex<IdRanges>,
    /// Directories of the node that are volumes.
    pub(crate) local_volumes: LocalVolumes,
    /// Which pod to wake for a sandbox's events.
    routes: Mutex<HashMap<String, Arc<Mailbox>>>,
    /// What the HTTP API may know of each pod, by uid.
    pub(crate) published: Mutex<HashMap<String, Arc<Published>>>,
    /// Where each pod's task is told things, by uid.
    pub(crate) mailboxes: Mutex<HashMap<String, Arc<Mailbox>>>,
    /// Where the loop that takes pods in is asked whether it is there.
    pub(crate) pings: Pings,
    /// Whether the machine is going down.
    pub(crate) shutting_down: watch::Sender<bool>,
    pub(crate) tracer: Option<Tracer>,
    /// What health checks came to.
    pub(crate) checks: Mutex<Checks>,
}

/// Questions to the loop that takes pods in; each is answered when the loop is free.
pub(crate) struct Pings {
    ask: mpsc::Sender<oneshot::Sender<()>>,
    asked: Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>,
}

impl Default for Pings {
    fn default() -> Self {
        let (ask, asked) = mpsc::channel(8);
        Pings { ask, asked: Mutex::new(Some(asked)) }
    }
}

impl Pings {
    /// The questions, for the one who answers them.
    pub(crate) fn take(&self) -> mpsc::Receiver<oneshot::Sender<()>> {
        // A second taker would get questions that nobody asks.
        self.asked.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Whether the loop is there. Waits for as long as it is busy.
    pub(crate) async fn answered(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.ask.send(answer).await.is_ok() && answered.await.is_ok()
    }
}

/// The parts of a kubelet that its constructor takes as they are.
pub(crate) struct Parts {
    pub(crate) node_name: String,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) data_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) config: Configuration,
    pub(crate) seams: Seams,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) runtime_name: String,
    pub(crate) credential_providers: Providers,
    pub(crate) capacity: Capacity,
    pub(crate) resources: NodeResources,
    pub(crate) network: watch::Receiver<NetworkReadiness>,
    pub(crate) managers: Managers,
    pub(crate) allocations: Allocations,
    pub(crate) offer: Offer,
    pub(crate) pods: Informer,
    pub(crate) tracer: Option<Tracer>,
    pub(crate) metrics: Metrics,
}

/// One pod's state for readers outside its task.
#[derive(Default)]
pub(crate) struct Published(pub(crate) Mutex<PodState>);

/// See [`Published`].
#[derive(Clone, Default)]
pub(crate) struct PodState {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: crate::view::PodStatus,
    pub(crate) containers: Vec<yare_runtime::ContainerStatus>,
    pub(crate) sandbox: Option<String>,
}

/// A pod that makes room, and how long that may take.
struct Going {
    ended: oneshot::Receiver<()>,
    patience: Duration,
}

/// What a pod that makes room gets at least.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl PodState {
    fn ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Kubelet {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let api = Api::new(parts.client.kube());
        let metrics = parts.metrics;
        let runtime: Arc<dyn Runtime> = Arc::new(Measured::new(
            parts.runtime,
            metrics.clone(),
            parts.tracer.is_some() && parts.runtime_name == yare_runtime::ENGINE_NAME,
        ));
        Arc::new(Kubelet {
            recorder: Recorder::new(parts.client.kube(), "kubelet", Some(&parts.node_name)),
            objects: Objects::new(parts.client.clone()),
            services: parts.client.informers().of(yare_client::SERVICES),
            writer: StatusWriter::new(api.clone(), metrics.clone()),
            statics: Statics::default(),
            rotator: Rotator::new(runtime.clone(), parts.config.settings()),
            metrics,
            rates: Rates::default(),
            csi: Csi::default(),
            volumes: NodeVolumes::restore(&parts.data_dir),
            pods: parts.pods,
            images: Images::new(&parts.config, &parts.data_dir, parts.credential_providers),
            node_name: parts.node_name,
            node_ips: parts.node_ips,
            data_dir: parts.data_dir,
            log_dir: parts.log_dir,
            config: parts.config,
            seams: parts.seams,
            api,
            runtime,
            runtime_name: parts.runtime_name,
            capacity: parts.capacity,
            image_gc: ImageGc::new(parts.resources.settings.image_gc.clone()),
            resources: parts.resources,
            pressures: watch::Sender::new(BTreeSet::new()),
            network: parts.network,
            managers: parts.managers,
            allocations: parts.allocations,
            offer: Mutex::new(parts.offer),
            admitted: Mutex::default(),
            id_ranges: Mutex::default(),
            local_volumes: LocalVolumes::default(),
            routes: Mutex::default(),
            published: Mutex::default(),
            mailboxes: Mutex::default(),
            pings: Pings::default(),
            shutting_down: watch::Sender::new(false),
            tracer: parts.tracer,
            checks: Mutex::default(),
        })
    }

    /// Processes per pod, all its containers together; none: unlimited.
    pub(crate) fn pids_limit(&self) -> Option<i64> {
        Some(self.config.settings().pod_pids_limit).filter(|limit| *limit > 0)
    }

    pub(crate) fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }

    /// An event about a pod, or about one of its containers.
    pub(crate) fn pod_event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: EventKind,
        reason: &str,
        message: String,
    ) {
        let regarding = Self::regarding(pod, container);
        self.recorder.event(regarding, kind, reason, message);
    }

    /// An event about a pod with annotations for whoever reads it by program.
    pub(crate) fn annotated_pod_event(
        &self,
        pod: &Pod,
        annotations: BTreeMap<String, String>,
        kind: EventKind,
        reason: &str,
        message: String,
    ) {
        self.recorder.annotated_event(Self::regarding(pod, None), annotations, kind, reason, message);
    }

    fn regarding(pod: &Pod, container: Option<&str>) -> ObjectRef {
        let mut regarding = ObjectRef {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: String::new(),
        };
        if let Some(name) = container {
            let list = if pod.spec.init_containers.iter().any(|c| c.name == name) {
                "initContainers"
            } else if pod.spec.ephemeral_containers.iter().any(|c| c.common.name == name) {
                "ephemeralContainers"
            } else {
                "containers"
            };
            regarding = regarding.with_field_path(&format!("spec.{list}{{{name}}}"));
        }
        regarding
    }

    /// An event about the node.
    pub(crate) fn node_event(&self, kind: EventKind, reason: &str, message: String) {
        let regarding = ObjectRef {
            api_version: String::new(),
            kind: "Node".into(),
            namespace: String::new(),
            name: self.node_name.clone(),
            uid: self.node_name.clone(),
            resource_version: String::new(),
            field_path: String::new(),
        };
        self.recorder.event(regarding, kind, reason, message);
    }

    /// Admits a pod and reserves what it takes, or says why not. A pod that runs already is not judged again.
    pub(crate) async fn admit(&self, pod: &Arc<Pod>, runs_already: bool) -> Result<(), Rejection> {
        if !runs_already {
            if *self.shutting_down.borrow() {
                let (reason, message) = crate::shutdown::REJECTED;
                return Err(Rejection { reason: reason.to_owned(), message: message.to_owned() });
            }
            self.managers.admit(pod).await?;
        }
        match self.admit_by_counts(pod, runs_already) {
            // A critical pod waits until others have made room.
            Ok(victims) => {
                for going in victims {
                    let _ = tokio::time::timeout(going.patience, going.ended).await;
                }
                Ok(())
            }
            Err(rejection) => {
                self.managers.release(&pod.metadata.uid);
                Err(rejection)
            }
        }
    }

    fn admit_by_counts(&self, pod: &Arc<Pod>, runs_already: bool) -> Result<Vec<Going>, Rejection> {
        let mut admitted = self.admitted.lock();
        let mut victims = Vec::new();
        if !admitted.contains_key(&pod.metadata.uid) && !runs_already {
            victims = self.fits(pod, &admitted)?;
        }
        admitted.insert(pod.metadata.uid.clone(), Share::of(&self.allocations.held(pod)));
        drop(admitted);
        self.claims_changed();
        Ok(self.preempt(&victims))
    }

    /// Counts a pod that runs already, before it is looked at.
    pub(crate) fn take_over(&self, pod: &Arc<Pod>) {
        self.allocations.recall(pod);
        let share = Share::of(&self.allocations.held(&self.allocations.apply(pod)));
        self.admitted.lock().insert(pod.metadata.uid.clone(), share);
    }

    /// Tells pods to make room for a critical one.
    fn preempt(&self, victims: &[Arc<Pod>]) -> Vec<Going> {
        let mut all = Vec::new();
        for pod in victims {
            self.pod_event(pod, None, EventKind::Warning, preemption::REASON, preemption::MESSAGE.to_owned());
            let (done, ended) = oneshot::channel();
            let grace_s = pod.grace_period_s();
            let eviction = Eviction {
                reason: preemption::REASON.to_owned(),
                message: preemption::MESSAGE.to_owned(),
                grace_s,
                disrupted: true,
                done: Some(done),
            };
            if self.evict(&pod.metadata.uid, eviction) {
                let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
                all.push(Going { ended, patience: (grace + grace / 2).max(KILL_PATIENCE) });
            }
        }
        all
    }

    /// Whether a pod has its place beside the others that were admitted; the pods that have to go for it.
    fn fits(&self, pod: &Pod, admitted: &HashMap<String, Share>) -> Result<Vec<Arc<Pod>>, Rejection> {
        let others = admitted.iter().filter(|(uid, _)| **uid != pod.metadata.uid).map(|(_, share)| share);
        let used = Used::sum(others);
        let devices = self.managers.devices.offered(&pod.metadata.uid);
        let short = {
            let offer = self.offer.lock();
            let mut with_devices = None;
            if !devices.is_empty() {
                let offer: &mut Offer = with_devices.insert(offer.clone());
                offer.allocatable.extend(devices.into_iter().map(|(name, n)| (name, n.to_string())));
            }
            let offer = with_devices.as_ref().unwrap_or(&offer);
            admission::admit(pod, &used, offer)?;
            admission::shortages(pod, &used, offer)
        };
        if short.is_empty() {
            return Ok(Vec::new());
        }
        let pods = self.active_pods(|state| state.pod.clone());
        let others: Vec<Arc<Pod>> = pods.into_iter().filter(|p| p.metadata.uid != pod.metadata.uid).collect();
        let victims = preemption::choose(pod, &others, &short).map_err(|error| Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a \
                 set of pods to preempt: {error}"
            ),
        })?;
        self.metrics.add(&table::PREEMPTIONS, &[&short[0].resource], victims.len() as f64);
        Ok(victims)
    }

    /// Sets aside what a pod that runs wants, beside what it has not given back, or says why not.
    pub(crate) fn admit_resize(&self, wants: &Arc<Pod>) -> Result<(), Rejection> {
        let mut admitted = self.admitted.lock();
        let victims = self.fits(wants, &admitted)?;
        admitted.insert(wants.metadata.uid.clone(), Share::of(&self.allocations.held(wants)));
        drop(admitted);
        self.claims_changed();
        self.preempt(&victims);
        Ok(())
    }

    /// What a pod holds has changed: what it gave back may be others' now.
    pub(crate) fn recharge(&self, pod: &Arc<Pod>) {
        if let Some(share) = self.admitted.lock().get_mut(&pod.metadata.uid) {
            *share = Share::of(&self.allocations.held(pod));
        }
        self.claims_changed();
        self.allocations.freed("pod_resized");
    }

    /// The API server knows a pod no more, and the scheduler may have given its place away: what of it still ends here
    /// keeps nobody out.
    pub(crate) fn disregard(&self, uid: &str) {
        self.admitted.lock().remove(uid);
        self.claims_changed();
    }

    /// Gives back what a pod took, its ids too.
    pub(crate) fn release(&self, uid: &str) {
        self.admitted.lock().remove(uid);
        self.id_ranges.lock().release(uid);
        self.managers.release(uid);
        self.allocations.end(uid);
        self.claims_changed();
        self.allocations.freed("pod_terminated");
    }

    fn claims_changed(&self) {
        if let Some(tree) = &self.resources.tree {
            tree.pods_changed();
        }
    }

    /// What the admitted pods ask for, by class.
    pub(crate) fn claims(&self) -> Claims {
        Claims::sum(self.admitted.lock().values())
    }

    /// The node lacks these now: told to its status and to admission.
    pub(crate) fn report_pressures(&self, pressures: BTreeSet<Pressure>) {
        self.offer.lock().pressures.clone_from(&pressures);
        self.pressures.send_if_modified(|before| {
            let news = *before != pressures;
            *before = pressures;
            news
        });
        self.allocations.freed(PERIODIC);
    }

    /// Something of each pod that uses this node: all but those that have ended.
    pub(crate) fn active_pods<T>(&self, of: impl Fn(&PodState) -> T) -> Vec<T> {
        let published = self.published.lock();
        let states = published.values().map(|p| p.0.lock());
        // One that was not looked at yet has no object.
        states.filter(|s| !s.pod.metadata.uid.is_empty() && !s.ended()).map(|s| of(&s)).collect()
    }

    /// Pods that have ended for good and are not deleted, by uid.
    pub(crate) fn finished_pods(&self) -> HashSet<String> {
        let published = self.published.lock();
        published
            .values()
            .map(|p| p.0.lock())
            .filter(|s| s.ended())
            .map(|s| s.pod.metadata.uid.clone())
            .collect()
    }

    /// Tells a pod's task that the pod has to go; whether there is such a pod.
    pub(crate) fn evict(&self, uid: &str, eviction: Eviction) -> bool {
        let mailbox = self.mailboxes.lock().get(uid).cloned();
        match mailbox {
            Some(mailbox) => {
                mailbox.evict(eviction);
                true
            }
            None => false,
        }
    }

    /// The first of the user ids that are a pod's alone.
    pub(crate) async fn id_range(&self, uid: &str) -> Result<u32, String> {
        let sandboxes = self.runtime.sandboxes().await.map_err(|e| e.to_string())?;
        let used = sandboxes.iter().filter_map(|sandbox| {
            let range = sandbox.namespaces.user.as_ref()?.uids.first()?;
            Some((sandbox.uid.as_str(), range.host_id))
        });
        let id = self.id_ranges.lock().take(uid, used);
        id.ok_or_else(|| "no range of user ids is free for a user namespace".to_owned())
    }

    pub(crate) fn route(&self, sandbox: &str, mailbox: &Arc<Mailbox>) {
        self.routes.lock().insert(sandbox.to_owned(), mailbox.clone());
    }

    pub(crate) fn unroute(&self, sandbox: &str) {
        self.routes.lock().remove(sandbox);
    }

    /// Wakes the pod of a sandbox.
    pub(crate) fn wake(&self, sandbox: &str) {
        let mailbox = self.routes.lock().get(sandbox).cloned();
        if let Some(mailbox) = mailbox {
            mailbox.wake();
        }
    }

    /// Wakes a pod that runs.
    pub(crate) fn wake_pod(&self, uid: &str) {
        let sandbox = self.published.lock().get(uid).and_then(|p| p.0.lock().sandbox.clone());
        if let Some(sandbox) = sandbox {
            self.wake(&sandbox);
        }
    }

    /// Wakes every pod: after events were lost.
    pub(crate) fn wake_all(&self) {
        let all: Vec<_> = self.routes.lock().values().cloned().collect();
        for mailbox in all {
            mailbox.wake();
        }
    }

    /// The pod of this name as the HTTP API sees it; with a uid, only that one.
    pub(crate) fn find_pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<PodState> {
        let published = self.published.lock();
        published
            .values()
            .map(|p| p.0.lock().clone())
            .filter(|s| s.pod.metadata.name == name && s.pod.metadata.namespace == namespace)
            .filter(|s| uid.is_none_or(|uid| s.pod.metadata.uid == uid))
            // Of two generations under one name the one that is not going away is meant.
            .min_by_key(|s| s.pod.is_deleting())
    }
}
