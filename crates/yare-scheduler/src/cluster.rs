//! What the scheduler knows of the cluster: nodes with what is taken of them, and pods that it placed but
//! whose binding has not come back yet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use yare_client::{Cached, ObjectKey, ViewError};
use yare_schema::quantity::Quantity;

use crate::{
    devices::state::Devices,
    plugins,
    plugins::NodeFeatures,
    pod::{Amounts, HostPort, PodInfo},
    selector::Labels,
    storage::Storage,
    view,
};

/// A node and what is taken of it.
#[derive(Debug)]
pub struct NodeInfo {
    /// The object.
    pub object: Cached,
    /// Cordon and taints.
    pub spec: view::NodeSpec,
    /// What pods may use.
    pub allocatable: Amounts,
    /// How many pods it takes.
    pub max_pods: i64,
    /// Sizes of the images that are there, bytes.
    pub images: HashMap<Box<str>, i64>,
    /// What its pods request.
    pub requested: Amounts,
    /// What its pods count for in scoring.
    pub scored: Amounts,
    /// Ports in use on the node.
    pub ports: Vec<HostPort>,
    /// Its pods.
    pub pods: HashMap<ObjectKey, Arc<PodInfo>>,
    /// How many of its pods have required anti-affinity or any preferred affinity to pods.
    pub pods_with_affinity: usize,
    /// What its agent declares that it can do.
    pub features: NodeFeatures,
}

impl NodeInfo {
    fn new(object: Cached) -> Result<Self, ViewError> {
        let mut out = Self {
            object,
            spec: view::NodeSpec::default(),
            allocatable: Amounts::default(),
            max_pods: 0,
            images: HashMap::new(),
            requested: Amounts::default(),
            scored: Amounts::default(),
            ports: Vec::new(),
            pods: HashMap::new(),
            pods_with_affinity: 0,
            features: NodeFeatures::default(),
        };
        let object = out.object.clone();
        out.update(object)?;
        Ok(out)
    }

    fn update(&mut self, object: Cached) -> Result<(), ViewError> {
        let node: view::Node = object.view()?;
        self.allocatable = Amounts::read(&node.status.allocatable);
        // A quantity like the others: a thousand is `1k`.
        let pods = node.status.allocatable.get("pods").and_then(|pods| Quantity::parse(pods).ok());
        self.max_pods = pods.map_or(0, Quantity::value);
        self.images = node
            .status
            .images
            .into_iter()
            .flat_map(|image| image.names.into_iter().map(move |n| (n.into(), image.size_bytes)))
            .collect();
        self.features = NodeFeatures::declared(&node.status.declared_features);
        self.spec = node.spec;
        self.object = object;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.object.name()
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        self.object.labels()
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests, 1);
        self.scored.add(&pod.scored, 1);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods_with_affinity += usize::from(has_affinity(&pod));
        if let Some(old) = self.pods.insert(pod.key().clone(), pod) {
            self.forget(&old);
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.forget(&pod);
        Some(pod)
    }

    fn forget(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests, -1);
        self.scored.add(&pod.scored, -1);
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        self.pods_with_affinity -= usize::from(has_affinity(pod));
    }
}

/// Whether other pods' placement depends on this pod's own terms.
fn has_affinity(pod: &PodInfo) -> bool {
    !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty())
}

/// What about a node changed, as plugins name it in their events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeChange {
    /// The node is new.
    pub added: bool,
    /// Labels differ.
    pub labels: bool,
    /// Taints or the cordon differ.
    pub taints: bool,
    /// Allocatable resources differ.
    pub allocatable: bool,
    /// Declared features differ.
    pub features: bool,
}

/// Nodes and pods.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Nodes in a fixed order, so that a scan can go on where the last one stopped. A node without an object
    /// is not listed, its pods wait in `strays`.
    nodes: Vec<NodeInfo>,
    index: HashMap<Box<str>, usize>,
    /// Node of each known pod that has one.
    placed: HashMap<ObjectKey, Box<str>>,
    /// Placed pods whose binding has not come back.
    assumed: HashSet<ObjectKey>,
    /// Pods without a node for which room was made on one.
    nominated: HashMap<ObjectKey, (Box<str>, Arc<PodInfo>)>,
    /// Pods whose node is not known (yet).
    strays: HashMap<Box<str>, HashMap<ObjectKey, Arc<PodInfo>>>,
    /// Labels of namespaces, for namespace selectors.
    namespaces: BTreeMap<Box<str>, Cached>,
    /// Nodes that carry pods with affinity terms.
    nodes_with_affinity: usize,
    /// Claims and volumes.
    pub storage: Storage,
    /// Claims for devices, and devices.
    pub devices: Devices,
    /// Whether nodes must declare what pods need.
    asks_for_features: bool,
    /// How many placed pods use a claim.
    claim_users: HashMap<ObjectKey, usize>,
}

impl Cluster {
    /// An empty cluster with these devices.
    pub fn new(devices: Devices) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Nodes must declare what pods need, or need not.
    pub fn asking_for_features(mut self, is_so: bool) -> Self {
        self.asks_for_features = is_so;
        self
    }

    /// How many pods are assumed, and how many have a node.
    pub fn counts(&self) -> (usize, usize) {
        (self.assumed.len(), self.placed.len())
    }

    /// Whether nodes must declare what pods need.
    pub fn asks_for_features(&self) -> bool {
        self.asks_for_features
    }

    /// All nodes.
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// Whether any placed pod has affinity terms of its own.
    pub fn any_affinity(&self) -> bool {
        self.nodes_with_affinity > 0
    }

    /// How many placed pods use a claim.
    pub fn claim_users(&self, claim: &ObjectKey) -> usize {
        self.claim_users.get(claim).copied().unwrap_or_default()
    }

    /// Why the pod need not be tried yet: claims for devices are missing.
    pub fn lacks_claims(&self, pod: &PodInfo) -> Option<String> {
        if pod.resource_claims.is_empty() { None } else { plugins::claims(pod, &self.devices).err() }
    }

    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        self.namespaces.get(namespace).map_or(&[], |n| n.labels())
    }

    /// Takes in a namespace.
    pub fn set_namespace(&mut self, object: Cached) {
        self.namespaces.insert(object.name().into(), object);
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Takes in a node and says what changed.
    pub fn set_node(&mut self, object: Cached) -> Result<NodeChange, ViewError> {
        if let Some(&at) = self.index.get(object.name()) {
            let node = &mut self.nodes[at];
            let (labels, spec) = (node.object.clone(), std::mem::take(&mut node.spec));
            let (allocatable, max_pods, features) = (node.allocatable.clone(), node.max_pods, node.features);
            node.update(object)?;
            return Ok(NodeChange {
                added: false,
                labels: labels.labels() != node.labels(),
                taints: spec != node.spec,
                allocatable: allocatable != node.allocatable || max_pods != node.max_pods,
                features: features != node.features,
            });
        }
        let name: Box<str> = object.name().into();
        let mut node = NodeInfo::new(object)?;
        for (_, pod) in self.strays.remove(&name).unwrap_or_default() {
            node.add(pod);
        }
        self.nodes_with_affinity += usize::from(node.pods_with_affinity > 0);
        self.index.insert(name, self.nodes.len());
        self.nodes.push(node);
        Ok(NodeChange { added: true, labels: true, taints: true, allocatable: true, features: true })
    }

    /// Forgets a node. Its pods stay known until they are deleted.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.remove(name) else { return };
        let node = self.nodes.swap_remove(at);
        self.nodes_with_affinity -= usize::from(node.pods_with_affinity > 0);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name().into(), at);
        }
        if !node.pods.is_empty() {
            self.strays.insert(name.into(), node.pods);
        }
    }

    /// Counts a pod on its node (`pod.node` or, for an assumed one, `node`).
    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(pod.key());
        self.placed.insert(pod.key().clone(), node.into());
        for claim in &pod.claims {
            *self.claim_users.entry(pod.claim_key(claim)).or_default() += 1;
        }
        match self.index.get(node) {
            Some(&at) => {
                let info = &mut self.nodes[at];
                let before = info.pods_with_affinity > 0;
                info.add(pod);
                self.nodes_with_affinity += usize::from(!before && info.pods_with_affinity > 0);
            }
            None => {
                self.strays.entry(node.into()).or_default().insert(pod.key().clone(), pod);
            }
        }
    }

    /// Takes in a pod that has a node; whether it holds less there than before.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> bool {
        self.assumed.remove(pod.key());
        let node = pod.node.clone();
        let info = self.index.get(&node).map(|&at| &self.nodes[at]);
        let before = info.and_then(|info| info.pods.get(pod.key()));
        let shrank = before.is_some_and(|before| pod.requests.is_less_of_any(&before.requests));
        self.place(pod, &node);
        shrank
    }

    /// Counts `pod` on `node` while its binding is under way.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.assumed.insert(pod.key().clone());
        self.place(pod, node);
    }

    /// Whether the pod was placed by us and its binding is under way.
    pub fn is_assumed(&self, key: &ObjectKey) -> bool {
        self.assumed.contains(key)
    }

    /// Takes back an assumption whose binding failed.
    pub fn unassume(&mut self, key: &ObjectKey) {
        if self.assumed.contains(key) {
            self.remove_pod(key);
        }
    }

    /// Forgets a pod; whether it had a node.
    pub fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        self.assumed.remove(key);
        let Some(node) = self.placed.remove(key) else { return false };
        let gone = match self.index.get(&node) {
            Some(&at) => {
                let info = &mut self.nodes[at];
                let before = info.pods_with_affinity > 0;
                let gone = info.remove(key);
                self.nodes_with_affinity -= usize::from(before && info.pods_with_affinity == 0);
                gone
            }
            None => match self.strays.get_mut(&node) {
                Some(pods) => {
                    let gone = pods.remove(key);
                    if pods.is_empty() {
                        self.strays.remove(&node);
                    }
                    gone
                }
                None => None,
            },
        };
        for claim in gone.iter().flat_map(|pod| pod.claims.iter().map(|c| pod.claim_key(c))) {
            if let Some(users) = self.claim_users.get_mut(&claim) {
                *users -= 1;
                if *users == 0 {
                    self.claim_users.remove(&claim);
                }
            }
        }
        true
    }

    /// Remembers where room was made for a pod; an empty name forgets it.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        if node.is_empty() {
            self.nominated.remove(pod.key());
        } else {
            self.nominated.insert(pod.key().clone(), (node.into(), pod.clone()));
        }
    }

    /// Forgets where room was made for a pod: it is bound or gone.
    pub fn forget_nomination(&mut self, key: &ObjectKey) {
        self.nominated.remove(key);
    }

    /// Where room was made for a pod.
    pub fn nomination(&self, key: &ObjectKey) -> Option<&str> {
        self.nominated.get(key).map(|(node, _)| &**node)
    }

    /// Pods of lower priority that were to get room on `node`.
    pub fn nominated_below(&self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        let there = self.nominated.values().filter(|(n, p)| **n == *node && p.priority < priority);
        there.map(|(_, pod)| pod.clone()).collect()
    }

    /// Counts other nominated pods, those at least as important as `pod`, on their nodes: the room is theirs.
    /// Give the answer to [`Self::remove_nominated`].
    pub fn add_nominated(&mut self, pod: &PodInfo) -> Vec<ObjectKey> {
        let others: Vec<_> = self
            .nominated
            .iter()
            .filter(|(key, (_, other))| {
                other.priority >= pod.priority && *key != pod.key() && !self.placed.contains_key(*key)
            })
            .map(|(_, entry)| entry.clone())
            .collect();
        for (node, other) in &others {
            self.place(other.clone(), node);
        }
        others.into_iter().map(|(_, other)| other.key().clone()).collect()
    }

    /// Takes back what [`Self::add_nominated`] did.
    pub fn remove_nominated(&mut self, added: Vec<ObjectKey>) {
        for key in added {
            self.remove_pod(&key);
        }
    }

    /// Puts a pod back as it was before it was taken away for a trial.
    pub(crate) fn restore(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        let key = pod.key().clone();
        self.place(pod, node);
        if assumed {
            self.assumed.insert(key);
        } else {
            self.assumed.remove(&key);
        }
    }
}
