//! `VolumeBinding`: the volumes of a pod must be reachable from its node. A claim that waits for its first
//! consumer gets a volume on that node, one that is there or one that is made for it; which, is decided here,
//! and written by [`crate::storage::bind`] before the pod is bound.

use std::sync::Arc;

use yare_schema::local_path;

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
    storage::{Claim, Class, Decision, Storage, Volume},
};

const OTHER_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";
const NO_SPACE: &str = "node(s) did not have enough free storage";
const VOLUME_GONE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub struct VolumeBinding;

/// The pod's claims, sorted by what is to be done for them.
#[derive(Default)]
pub struct Prepared {
    /// Volumes of bound claims; `None`: it is gone.
    bound: Vec<Option<Arc<Volume>>>,
    /// Claims that get a volume with the node, those that ask for least first.
    waiting: Vec<Waiting>,
}

struct Waiting {
    claim: Arc<Claim>,
    class: Arc<Class>,
    /// A volume that names the claim.
    own: Option<Arc<Volume>>,
    /// Volumes that would do on a node that reaches them, the smallest first.
    candidates: Vec<Arc<Volume>>,
    /// The volume whose content it gets, where only that volume's node can give it.
    copied: Option<Arc<Volume>>,
}

impl Prepared {
    /// `Err`: why no node will do.
    pub fn new(pod: &PodInfo, storage: &Storage) -> Result<Self, String> {
        let mut out = Self::default();
        let mut immediate = false;
        for wanted in &pod.claims {
            let key = pod.claim_key(wanted);
            let name = &key.name;
            let Some(claim) = storage.claim(&key) else {
                return Err(if wanted.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                });
            };
            if claim.lost {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                    claim.volume
                ));
            }
            if claim.object.deletion_timestamp().is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let owned = claim.object.controller().is_some_and(|o| *o.uid == *pod.object.uid());
            if wanted.ephemeral && !owned {
                let pod = pod.key();
                return Err(format!("PVC \"{key}\" was not created for pod \"{pod}\" (pod is not owner)"));
            }
            if claim.bound {
                out.bound.push(storage.volume(&claim.volume).cloned());
                continue;
            }
            match storage.class(&claim.class).filter(|class| class.waits && claim.volume.is_empty()) {
                Some(class) => out.waiting.push(Waiting::new(claim, class, storage)),
                None => immediate = true,
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        out.waiting.sort_by_key(|w| w.claim.request);
        Ok(out)
    }

    /// What the node would mean for the claims that wait.
    pub fn decide(&self, storage: &Storage, node: &NodeInfo) -> Result<Decision, Rejection> {
        let (name, labels) = (node.name(), node.labels());
        let mut reasons = Vec::new();
        if self.bound.iter().flatten().any(|v| !v.reachable_from(name, labels)) {
            reasons.push(OTHER_NODE.into());
        } else if self.bound.iter().any(Option::is_none) {
            reasons.push(VOLUME_GONE.into());
        }
        let mut out = Decision::default();
        let mut to_make = Vec::new();
        for waiting in &self.waiting {
            match &waiting.claim.selected_node {
                Some(selected) if **selected == *name => to_make.push(waiting),
                Some(_) => {
                    reasons.push(NONE_TO_BIND.into());
                    return Err(Rejection { reasons, lasting: true, error: false });
                }
                None => match waiting.find(node, &out) {
                    Some(volume) => out.bind.push((waiting.claim.clone(), volume)),
                    None => to_make.push(waiting),
                },
            }
        }
        for waiting in to_make {
            if let Err(reason) = waiting.may_be_made(storage, node) {
                reasons.push(reason.into());
                break;
            }
            out.provision.push(waiting.claim.clone());
        }
        if reasons.is_empty() { Ok(out) } else { Err(Rejection { reasons, lasting: true, error: false }) }
    }
}

impl Waiting {
    fn new(claim: &Arc<Claim>, class: &Arc<Class>, storage: &Storage) -> Self {
        let would_do = |v: &&Arc<Volume>| {
            v.capacity.is_some_and(|have| claim.request.is_none_or(|want| have >= want))
                && v.block == claim.block
                && v.attributes_class == claim.attributes_class
                && v.object.deletion_timestamp().is_none()
        };
        let own = storage.volumes_of(&claim.class).filter(would_do).find(|v| v.is_for(claim));
        let free = |v: &&Arc<Volume>| {
            v.claim.is_none()
                && v.available
                && claim.selector.as_ref().is_none_or(|s| s.matches(v.object.labels()))
                && claim.access_modes.iter().all(|m| v.access_modes.contains(m))
        };
        let mut candidates: Vec<Arc<Volume>> = Vec::new();
        if own.is_none() {
            candidates.extend(storage.volumes_of(&claim.class).filter(would_do).filter(free).cloned());
        }
        candidates.sort_by_key(|v| v.capacity);
        let copied = claim.clone_of.as_ref().filter(|_| *class.provisioner == *local_path::DRIVER).and_then(
            |source| {
                let key = yare_client::ObjectKey::new(claim.object.namespace(), source);
                storage.volume(&storage.claim(&key)?.volume).cloned()
            },
        );
        Self { claim: claim.clone(), class: class.clone(), own: own.cloned(), candidates, copied }
    }

    /// A volume on the node that no other claim of the pod has taken.
    fn find(&self, node: &NodeInfo, taken: &Decision) -> Option<Arc<Volume>> {
        let (name, labels) = (node.name(), node.labels());
        let free = |v: &&Arc<Volume>| {
            v.reachable_from(name, labels)
                && !taken.bind.iter().any(|(_, t)| t.object.name() == v.object.name())
        };
        self.own.iter().chain(&self.candidates).find(free).cloned()
    }

    /// Whether a volume can be made for the claim on the node.
    fn may_be_made(&self, storage: &Storage, node: &NodeInfo) -> Result<(), &'static str> {
        let (class, labels) = (&self.class, node.labels());
        if matches!(&*class.provisioner, "" | NO_PROVISIONER) || !class.allows(labels) {
            return Err(NONE_TO_BIND);
        }
        if self.copied.as_ref().is_some_and(|v| !v.reachable_from(node.name(), labels)) {
            return Err(OTHER_NODE);
        }
        let asks = storage.driver(&class.provisioner).is_some_and(|d| d.storage_capacity);
        let Some(size) = self.claim.request.filter(|_| asks) else { return Ok(()) };
        let size = size.value();
        let fits = storage.capacities().any(|c| c.class == class.name && c.has_room(size, labels));
        if fits { Ok(()) } else { Err(NO_SPACE) }
    }
}

impl Plugin for VolumeBinding {
    fn filter(
        &self,
        _: &PodInfo,
        state: &State,
        cluster: &Cluster,
        node: &NodeInfo,
    ) -> Result<(), Rejection> {
        let prepared = &state.binding;
        if prepared.bound.is_empty() && prepared.waiting.is_empty() {
            return Ok(());
        }
        prepared.decide(&cluster.storage, node).map(|_| ())
    }
}
