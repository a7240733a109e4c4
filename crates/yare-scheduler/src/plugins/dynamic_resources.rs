//! `DynamicResources`: the devices that a pod's claims name must be reachable from its node. A claim that is not
//! allocated yet gets devices there; which, is decided here, and written by [`crate::devices::bind`] before the pod
//! is bound.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use yare_client::ObjectKey;

use super::{Plugin, Rejection, State, normalize_to_max};
use crate::{
    cluster::{Cluster, NodeInfo},
    devices::{
        allocator::{self, Allocation, Failure},
        bind,
        claim::{Claim, Readiness},
        extended::{self, Asking, Wish},
        requests::ClaimSpec,
        state::Devices,
        types::Node,
    },
    pod::{ClaimName, PodInfo},
};

/// Entries that a list of alternatives may have.
const MAX_ALTERNATIVES: usize = 8;

pub struct DynamicResources;

/// Why a pod cannot be placed for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Something is not there yet, or not as it should be.
    Wait(String),
    /// Something is wrong.
    Error(String),
}

/// What a pod gets on a node.
#[derive(Debug, Default)]
pub struct Decision {
    /// All its claims, each with an allocation where that is new.
    pub claims: Vec<(Arc<Claim>, Option<Allocation>)>,
    /// The claim that is to be made for its extended resources.
    pub extended: Option<(Arc<Wish>, Allocation)>,
}

impl Decision {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.extended.is_none()
    }
}

/// What a pod asks for that devices stand behind.
struct Extended {
    containers: Arc<[Asking]>,
    pod: ObjectKey,
    /// Resources and their classes.
    resources: Vec<(Box<str>, Box<str>)>,
    /// The claim of an attempt that led nowhere, which must go first.
    stale: Option<Arc<Claim>>,
    /// By which of the resources are devices.
    wishes: RefCell<HashMap<Vec<bool>, Arc<Wish>>>,
}

impl Extended {
    /// `None`: no devices stand behind anything that the pod asks for.
    fn new(pod: &PodInfo, devices: &Devices) -> Option<Self> {
        let containers = pod.extended.clone()?;
        let of = |(name, amount): &(Box<str>, i64)| {
            let asked = *amount > 0 && extended::may_stand_behind(name);
            asked.then(|| devices.class_of_resource(name)).flatten().map(|class| (name.clone(), class.into()))
        };
        let resources: Vec<_> = pod.requests.other.iter().filter_map(of).collect();
        (!resources.is_empty()).then(|| Self {
            containers,
            pod: pod.key().clone(),
            resources,
            stale: devices.extended_claim(pod.object.uid()).cloned(),
            wishes: RefCell::default(),
        })
    }

    /// What the pod needs devices for on a node; `None`: plugins count all of it there.
    fn wish(&self, node: &NodeInfo) -> Option<Arc<Wish>> {
        let are: Vec<bool> =
            self.resources.iter().map(|(name, _)| node.allocatable.other(name) == 0).collect();
        if !are.contains(&true) {
            return None;
        }
        if let Some(wish) = self.wishes.borrow().get(&are) {
            return Some(wish.clone());
        }
        let chosen = self.resources.iter().zip(&are).filter(|(_, is)| **is);
        let classes: BTreeMap<&str, &str> = chosen.map(|((name, class), _)| (&**name, &**class)).collect();
        let wish = Arc::new(Wish::new(&self.pod, &self.containers, &classes));
        self.wishes.borrow_mut().insert(are, wish.clone());
        Some(wish)
    }
}

/// The pod's claims.
#[derive(Default)]
pub struct Prepared {
    claims: Vec<Wanted>,
    /// What those of them ask for that are not allocated.
    specs: Vec<Arc<ClaimSpec>>,
    /// What they get, by node. Filled in while nodes are looked at.
    decided: RefCell<HashMap<Box<str>, Arc<Vec<Allocation>>>>,
    /// Claims (by place) whose allocation keeps the pod off some node.
    unavailable: RefCell<Vec<usize>>,
    /// Its extended resources, where devices stand behind some.
    extended: Option<Extended>,
}

struct Wanted {
    claim: Arc<Claim>,
    /// What it asks for, where that matters: of a list, the earlier entries are better.
    spec: Arc<ClaimSpec>,
    /// It is to be allocated.
    allocate: bool,
}

/// The pod's claims, or what is wrong with them.
pub fn claims<'c>(pod: &PodInfo, devices: &'c Devices) -> Result<Vec<&'c Arc<Claim>>, String> {
    let (of, key) = (pod.object.namespace(), pod.key());
    let mut out = Vec::with_capacity(pod.resource_claims.len());
    for entry in &pod.resource_claims {
        let (name, made) = match &entry.claim {
            ClaimName::Given(name) => (name, false),
            ClaimName::Made(name) => (name, true),
            ClaimName::NotNeeded => continue,
            ClaimName::NotYet => return Err(format!("pod \"{key}\": ResourceClaim not created yet")),
            ClaimName::Unknown => {
                return Err(format!(
                    "pod \"{key}\", spec.resourceClaim \"{}\": none of the supported fields are set",
                    entry.name
                ));
            }
        };
        let claim_key = ObjectKey::new(of, name);
        let Some(claim) = devices.claim(&claim_key) else {
            return Err(format!("could not find claim \"{claim_key}\""));
        };
        if claim.object.deletion_timestamp().is_some() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        let owned = claim.object.controller().is_some_and(|o| *o.uid == *pod.object.uid());
        if made && !owned {
            return Err(format!(
                "ResourceClaim {claim_key} was not created for Pod {key} (Pod is not owner)"
            ));
        }
        out.push(claim);
    }
    Ok(out)
}

impl Prepared {
    /// `Err`: why no node will do.
    pub fn new(pod: &PodInfo, devices: &Devices) -> Result<Self, Obstacle> {
        let mut out = Self { extended: Extended::new(pod, devices), ..Self::default() };
        for claim in claims(pod, devices).map_err(Obstacle::Wait)? {
            let key = claim.object.key();
            let spec = devices.spec(key).map_err(|e| Obstacle::Error(e.to_string()))?;
            let spec = spec.ok_or_else(|| Obstacle::Wait(format!("could not find claim \"{key}\"")))?;
            let allocate = claim.allocation.is_none();
            if allocate {
                if devices.is_in_flight(key) {
                    let why = format!("resource claim {key} is in the process of being allocated");
                    return Err(Obstacle::Wait(why));
                }
                check(&spec, devices)?;
                out.specs.push(spec.clone());
            }
            out.claims.push(Wanted { claim: claim.clone(), spec, allocate });
        }
        Ok(out)
    }

    /// Whether the pod wants no devices.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.extended.is_none()
    }

    /// Claims whose allocation keeps the pod off some node.
    pub fn unavailable(&self) -> Vec<Arc<Claim>> {
        let stale = self.extended.as_ref().and_then(|e| e.stale.clone());
        self.unavailable.borrow().iter().map(|at| self.claims[*at].claim.clone()).chain(stale).collect()
    }

    /// What the pod gets on the node.
    pub fn decide(&self, devices: &Devices, node: &NodeInfo) -> Result<Decision, Rejection> {
        let (made, wish) = self.look(devices, node)?;
        let mut made = made.iter();
        let with = |w: &Wanted| {
            let allocation = if w.allocate { made.next().cloned() } else { None };
            (w.claim.clone(), allocation)
        };
        let claims = self.claims.iter().map(with).collect();
        let extended = wish.and_then(|wish| Some((wish, made.next().cloned()?)));
        Ok(Decision { claims, extended })
    }

    /// Allocations of the claims that have none, in their order, then one for what extended resources wish.
    fn look(&self, devices: &Devices, place: &NodeInfo) -> Result<Looked, Rejection> {
        let node = node_of(place);
        let wish = match &self.extended {
            Some(Extended { stale: Some(_), .. }) => {
                return Err(Rejection::lasting("cannot schedule extended resource claim"));
            }
            Some(extended) => extended.wish(place),
            None => None,
        };
        let unavailable = |w: &Wanted| {
            if !w.claim.is_available_on(node) {
                return true;
            }
            let Some(allocation) = w.claim.allocation.as_ref().filter(|_| devices.features().bindings) else {
                return false;
            };
            match allocation.readiness() {
                Readiness::Ready => false,
                Readiness::Failed(..) => true,
                Readiness::Waiting => {
                    allocation.at.is_some() && bind::deadline(allocation.at) < Timestamp::now()
                }
            }
        };
        let away: Vec<usize> = (0..self.claims.len()).filter(|at| unavailable(&self.claims[*at])).collect();
        let mut made = Arc::default();
        let with_wish: Vec<Arc<ClaimSpec>>;
        let specs = match &wish {
            Some(wish) => {
                with_wish = self.specs.iter().chain([&wish.spec]).cloned().collect();
                &with_wish
            }
            None => &self.specs,
        };
        if !specs.is_empty() {
            match allocator::allocate(&devices.world(), node, specs) {
                Ok(Some(allocations)) => made = Arc::new(allocations),
                Ok(None) => return Err(Rejection::lasting("cannot allocate all claims")),
                Err(Failure::Node(why)) => return Err(Rejection { lasting: true, ..why.into() }),
                Err(Failure::Fatal(why)) => return Err(Rejection::error(why)),
                Err(Failure::TooLong) => {
                    let why = format!("node {}: timed out trying to allocate devices", node.name);
                    return Err(Rejection::error(why));
                }
            }
        }
        if !away.is_empty() {
            let mut all = self.unavailable.borrow_mut();
            all.extend(away);
            all.sort_unstable();
            all.dedup();
            return Err(Rejection::lasting("resourceclaim not available on the node"));
        }
        Ok((made, wish))
    }
}

/// See [`Prepared::look`].
type Looked = (Arc<Vec<Allocation>>, Option<Arc<Wish>>);

/// Classes must be there, whatever the node.
fn check(spec: &ClaimSpec, devices: &Devices) -> Result<(), Obstacle> {
    for request in &spec.requests {
        let of = |why: &str| format!("resource claim {}, request {}: {why}", spec.name, request.name);
        if request.alternatives.is_empty() {
            return Err(Obstacle::Wait(of("unknown request type")));
        }
        if request.listed && !devices.features().lists {
            let why = "has subrequests, but the DRAPrioritizedList feature is disabled";
            return Err(Obstacle::Wait(of(why)));
        }
        for wish in &request.alternatives {
            if wish.class.is_empty() {
                return Err(Obstacle::Error(format!("request {}: unsupported request type", wish.name)));
            }
            if devices.class(&wish.class).is_none() {
                let why = format!("request {}: device class {} does not exist", wish.name, wish.class);
                return Err(Obstacle::Wait(why));
            }
        }
    }
    Ok(())
}

/// A node as the allocator sees it.
fn node_of(node: &NodeInfo) -> Node<'_> {
    Node { name: node.name(), labels: node.labels() }
}

impl Plugin for DynamicResources {
    fn filter(
        &self,
        _: &PodInfo,
        state: &State,
        cluster: &Cluster,
        node: &NodeInfo,
    ) -> Result<(), Rejection> {
        let prepared = &state.devices;
        let (made, _) = prepared.look(&cluster.devices, node)?;
        if !prepared.specs.is_empty() {
            prepared.decided.borrow_mut().insert(node.name().into(), made);
        }
        Ok(())
    }

    fn scores(&self, _: &PodInfo, state: &State) -> bool {
        state.devices.claims.iter().any(|w| w.spec.requests.iter().any(|r| r.listed))
    }

    /// The earlier the alternatives stand in their lists, the better.
    fn score(&self, _: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let prepared = &state.devices;
        let decided = prepared.decided.borrow();
        let mut made = decided.get(node.name()).map(|made| made.iter()).into_iter().flatten();
        let mut score = 0;
        for wanted in &prepared.claims {
            let new = if wanted.allocate { made.next() } else { None };
            for (place, request) in wanted.spec.requests.iter().enumerate().filter(|(_, r)| r.listed) {
                let chosen = match (new, &wanted.claim.allocation) {
                    (Some(allocation), _) => Some(allocation.chosen[place]),
                    (None, Some(there)) => {
                        request.alternatives.iter().position(|a| there.requests.contains(&a.name))
                    }
                    (None, None) => None,
                };
                score += chosen.map_or(0, |at| MAX_ALTERNATIVES.saturating_sub(at)) as i64;
            }
        }
        score
    }

    fn normalize(&self, _: &State, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}
