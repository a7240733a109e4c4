//! A pod as scheduling needs it: requests added up, selectors compiled.

use std::{collections::BTreeSet, sync::Arc};

use yare_client::{Cached, ObjectKey, ViewError};
use yare_schema::quantity::Quantity;

use crate::{
    devices::extended::{self, Asking},
    plugins::NodeFeatures,
    resize,
    selector::{Labels, NodeTerm, Requirement, Selector, label},
    view,
};

/// CPU that a container without a request counts for in scoring, in thousandths.
const DEFAULT_CPU_MILLI: i64 = 100;
/// Memory that a container without a request counts for in scoring.
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources. CPU in thousandths of a core, the rest in units or bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, bytes.
    pub memory_bytes: i64,
    /// Local storage, bytes.
    pub ephemeral_bytes: i64,
    /// All others by name, sorted; few pods have any.
    pub other: Vec<(Box<str>, i64)>,
}

impl Amounts {
    /// Reads a resource list. A quantity that cannot be read counts as none: the API server refused it.
    pub fn read<'a>(list: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut out = Self::default();
        for (name, text) in list {
            let Ok(quantity) = Quantity::parse(text) else { continue };
            match name.as_str() {
                "cpu" => out.cpu_milli = quantity.milli_value(),
                "memory" => out.memory_bytes = quantity.value(),
                "ephemeral-storage" => out.ephemeral_bytes = quantity.value(),
                // Counted apart: it is a number of pods, not of a resource.
                "pods" => {}
                _ => out.other.push((name.as_str().into(), quantity.value())),
            }
        }
        out
    }

    /// The amount of a resource that is neither CPU, memory nor local storage.
    pub fn other(&self, name: &str) -> i64 {
        self.other.iter().find(|(n, _)| &**n == name).map_or(0, |(_, v)| *v)
    }

    /// Adds (`sign` 1) or takes away (`sign` -1) `more`.
    pub fn add(&mut self, more: &Self, sign: i64) {
        self.cpu_milli += sign * more.cpu_milli;
        self.memory_bytes += sign * more.memory_bytes;
        self.ephemeral_bytes += sign * more.ephemeral_bytes;
        for (name, value) in &more.other {
            match self.other.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += sign * value,
                None => self.other.push((name.clone(), sign * value)),
            }
        }
    }

    /// Whether this is less of anything.
    pub fn is_less_of_any(&self, other: &Self) -> bool {
        self.cpu_milli < other.cpu_milli
            || self.memory_bytes < other.memory_bytes
            || self.ephemeral_bytes < other.ephemeral_bytes
            || other.other.iter().any(|(name, amount)| self.other(name) < *amount)
    }

    /// The larger of each.
    fn max(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        for (name, value) in &other.other {
            match self.other.iter_mut().find(|(n, _)| n == name) {
                Some((_, most)) => *most = (*most).max(*value),
                None => self.other.push((name.clone(), *value)),
            }
        }
    }
}

/// What a pod needs at once: the sum of its containers and sidecars, or the init container that needs more
/// beside the sidecars started before it (KEP-753), plus the overhead.
pub fn requests(spec: &view::PodSpec, of: impl Fn(&view::Container) -> Amounts) -> Amounts {
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&of(container), 1);
    }
    let mut sidecars = Amounts::default();
    let mut init = Amounts::default();
    for container in &spec.init_containers {
        let mut now = of(container);
        if container.restart_policy == "Always" {
            sidecars.add(&now, 1);
            total.add(&now, 1);
            now = sidecars.clone();
        } else {
            now.add(&sidecars, 1);
        }
        init.max(&now);
    }
    total.max(&init);
    if let Some(whole) = &spec.resources {
        // Pod-level requests (KEP-2837) stand in for the containers' where they are given.
        let set = Amounts::read(&whole.requests);
        if whole.requests.contains_key("cpu") {
            total.cpu_milli = set.cpu_milli;
        }
        if whole.requests.contains_key("memory") {
            total.memory_bytes = set.memory_bytes;
        }
    }
    total.add(&Amounts::read(&spec.overhead), 1);
    total
}

/// A port on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Address; empty is all.
    pub ip: Box<str>,
    /// `TCP`, …
    pub protocol: Box<str>,
    /// Number.
    pub port: u16,
}

impl HostPort {
    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip.is_empty() || other.ip.is_empty() || self.ip == other.ip)
    }
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    /// Its name, in the pod's namespace.
    pub name: Box<str>,
    /// It is made for this pod, and belongs to it.
    pub ephemeral: bool,
}

/// A claim for devices that a pod names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodResourceClaim {
    /// The entry's name.
    pub name: Box<str>,
    /// The claim, in the pod's namespace.
    pub claim: ClaimName,
}

/// Which claim it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimName {
    /// The pod says it.
    Given(Box<str>),
    /// It was made for the pod, and belongs to it.
    Made(Box<str>),
    /// None was made, on purpose.
    NotNeeded,
    /// None was made yet.
    NotYet,
    /// The entry says nothing that is known here.
    Unknown,
}

/// Claims for devices of a pod.
fn resource_claims(pod: &view::Pod) -> Box<[PodResourceClaim]> {
    let read = |entry: &view::PodResourceClaim| {
        let made = pod.status.resource_claim_statuses.iter().find(|s| s.name == entry.name);
        let claim = match (&entry.resource_claim_name, &entry.resource_claim_template_name, made) {
            (Some(name), ..) => ClaimName::Given(name.as_str().into()),
            (None, None, _) => ClaimName::Unknown,
            (None, Some(_), None) => ClaimName::NotYet,
            (None, Some(_), Some(made)) => made
                .resource_claim_name
                .as_ref()
                .map_or(ClaimName::NotNeeded, |n| ClaimName::Made(n.as_str().into())),
        };
        PodResourceClaim { name: entry.name.as_str().into(), claim }
    };
    pod.spec.resource_claims.iter().map(read).collect()
}

/// A disk that a pod names itself and that cannot be shared as one likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Shared by readers only: the kind of disk, its name, whether it is only read.
    Named(&'static str, Box<str>, bool),
    /// Never shared: its identity.
    Exclusive(Box<str>),
    /// An image in a Ceph pool (`pool/image`), its monitors, whether it is only read.
    Rbd(Box<str>, Vec<String>, bool),
}

impl Disk {
    /// Whether one node cannot have both.
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Named(kind, name, read), Self::Named(other_kind, other_name, other_read)) => {
                kind == other_kind && name == other_name && !(*read && *other_read)
            }
            (Self::Exclusive(id), Self::Exclusive(other)) => id == other,
            (Self::Rbd(image, monitors, read), Self::Rbd(other, other_monitors, other_read)) => {
                image == other
                    && !(*read && *other_read)
                    && monitors.iter().any(|m| other_monitors.contains(m))
            }
            _ => false,
        }
    }
}

/// Claims and disks of a pod.
fn volumes(spec: &view::PodSpec, pod: &str) -> (Box<[PodClaim]>, Box<[Disk]>) {
    let (mut claims, mut disks) = (Vec::new(), Vec::new());
    for volume in &spec.volumes {
        if let Some(claim) = &volume.claim {
            claims.push(PodClaim { name: claim.as_str().into(), ephemeral: false });
        } else if volume.ephemeral {
            claims.push(PodClaim { name: format!("{pod}-{}", volume.name).into(), ephemeral: true });
        }
        let named = |kind: &'static str, disk: &view::Disk| {
            Disk::Named(kind, disk.name.as_str().into(), disk.read_only)
        };
        disks.extend(volume.gce.as_ref().map(|d| named("gce", d)));
        disks.extend(volume.iscsi.as_ref().map(|d| named("iscsi", d)));
        disks.extend(volume.aws.as_ref().map(|d| Disk::Exclusive(d.name.as_str().into())));
        disks.extend(
            volume
                .rbd
                .as_ref()
                .map(|d| Disk::Rbd(format!("{}/{}", d.pool, d.name).into(), d.monitors.clone(), d.read_only)),
        );
    }
    (claims.into(), disks.into())
}

/// A term of inter-pod affinity or anti-affinity.
#[derive(Clone, Debug)]
pub struct PodTerm {
    /// Pods; `None` matches none.
    pub selector: Option<Selector>,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub namespace_selector: Option<Selector>,
    /// The label that makes a topology.
    pub topology_key: Box<str>,
    /// How much it counts; 0 where it must hold.
    pub weight: i64,
}

impl PodTerm {
    fn new(term: &view::PodAffinityTerm, weight: i64, namespace: &str, labels: &Labels) -> Self {
        let mut selector = term.label_selector.as_ref().map(Selector::new);
        if let Some(selector) = &mut selector {
            for key in &term.match_label_keys {
                if let Some(value) = label(labels, key) {
                    selector.and(Requirement::one_of(key, value));
                }
            }
            for key in &term.mismatch_label_keys {
                if let Some(value) = label(labels, key) {
                    selector.and(Requirement::not(key, value));
                }
            }
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            selector,
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(Selector::new),
            topology_key: term.topology_key.as_str().into(),
            weight,
        }
    }

    /// Whether the term speaks of a pod in `namespace` (whose own labels are `namespace_labels`).
    pub fn matches(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        (self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches(namespace_labels)))
            && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    /// How uneven it may be.
    pub max_skew: i64,
    /// The label that makes a topology.
    pub topology_key: Box<str>,
    /// Must hold, or only should.
    pub hard: bool,
    /// Which pods count.
    pub selector: Selector,
    /// Topologies that count as existing at least.
    pub min_domains: i64,
    /// Only nodes that the pod's node affinity allows count.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod tolerates count.
    pub honor_taints: bool,
}

/// A pod, ready to be scheduled or counted.
#[derive(Debug)]
pub struct PodInfo {
    /// The object.
    pub object: Cached,
    /// Its node; empty while it has none.
    pub node: Box<str>,
    /// Its scheduler.
    pub scheduler: Box<str>,
    /// Its phase is `Succeeded` or `Failed`.
    pub finished: bool,
    /// It waits behind scheduling gates.
    pub gated: bool,
    /// Its priority.
    pub priority: i32,
    /// It does not make others go.
    pub never_preempts: bool,
    /// The node where room was made for it, as its status says; empty for none.
    pub nominated: Box<str>,
    /// When it started.
    pub started: Option<jiff::Timestamp>,
    /// What must be free for it; what it holds, where it is being resized.
    pub requests: Amounts,
    /// What it counts for in scoring: as `requests`, with defaults for containers that name none.
    pub scored: Amounts,
    /// Its ports on the node.
    pub ports: Vec<HostPort>,
    /// Labels that the node must have.
    pub node_selector: Selector,
    /// One of these must match, where there are any.
    pub node_terms: Option<Vec<NodeTerm>>,
    /// These should.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// Taints that do not matter.
    pub tolerations: Vec<view::Toleration>,
    /// Spreading.
    pub spread: Vec<Spread>,
    /// Required affinity to pods.
    pub affinity: Vec<PodTerm>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<PodTerm>,
    /// Preferred affinity (weight above 0) and anti-affinity (below).
    pub preferred_pods: Vec<PodTerm>,
    /// Images of its containers.
    pub images: Vec<Box<str>>,
    /// Claims that it uses.
    pub claims: Box<[PodClaim]>,
    /// Disks that it names itself.
    pub disks: Box<[Disk]>,
    /// Claims for devices that it names.
    pub resource_claims: Box<[PodResourceClaim]>,
    /// What it needs of its node's agent.
    pub features: NodeFeatures,
    /// What its containers ask for that devices may stand behind.
    pub extended: Option<Arc<[Asking]>>,
}

impl PodInfo {
    /// Reads a pod.
    pub fn new(object: Cached) -> Result<Arc<Self>, ViewError> {
        let mut pod: view::Pod = object.view()?;
        if pod.metadata.generation > 1 && !pod.spec.node_name.is_empty() {
            resize::hold(&object, &mut pod.spec)?;
        }
        let spec = &pod.spec;
        let labels = object.labels();
        let namespace = object.namespace();
        let scored = |c: &view::Container| {
            let mut amounts = Amounts::read(&c.resources.requests);
            if !c.resources.requests.contains_key("cpu") {
                amounts.cpu_milli = DEFAULT_CPU_MILLI;
            }
            if !c.resources.requests.contains_key("memory") {
                amounts.memory_bytes = DEFAULT_MEMORY_BYTES;
            }
            amounts
        };
        let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let ports = spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
        let all_addresses = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        let terms = |terms: &[view::PodAffinityTerm]| {
            terms.iter().map(|t| PodTerm::new(t, 0, namespace, labels)).collect::<Vec<_>>()
        };
        let weighted = |terms: &[view::WeightedTerm], sign: i64| {
            terms
                .iter()
                .map(|t| PodTerm::new(&t.pod_affinity_term, sign * t.weight, namespace, labels))
                .collect::<Vec<_>>()
        };
        let affinity = &spec.affinity;
        let mut preferred_pods = weighted(&affinity.pod_affinity.preferred, 1);
        preferred_pods.extend(weighted(&affinity.pod_anti_affinity.preferred, -1));
        let equal = spec.node_selector.iter();
        let node_selector = view::LabelSelector {
            match_labels: equal.map(|(k, v)| (k.clone(), v.clone())).collect(),
            ..Default::default()
        };
        let (claims, disks) = volumes(spec, object.name());
        Ok(Arc::new(Self {
            claims,
            disks,
            resource_claims: resource_claims(&pod),
            extended: extended::asked(&object, spec)?,
            features: NodeFeatures::needed(spec),
            node: spec.node_name.as_str().into(),
            scheduler: spec.scheduler_name.as_str().into(),
            finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
            gated: !spec.scheduling_gates.is_empty(),
            priority: spec.priority,
            never_preempts: spec.preemption_policy == "Never",
            nominated: pod.status.nominated_node_name.as_str().into(),
            started: pod.status.start_time.parse().ok(),
            requests: requests(spec, |c| Amounts::read(&c.resources.requests)),
            scored: requests(spec, scored),
            ports: ports
                .filter(|p| p.host_port != 0)
                .map(|p| HostPort {
                    ip: if all_addresses(&p.host_ip) { "".into() } else { p.host_ip.as_str().into() },
                    protocol: if p.protocol.is_empty() { "TCP".into() } else { p.protocol.as_str().into() },
                    port: p.host_port,
                })
                .collect(),
            node_selector: Selector::new(&node_selector),
            node_terms: affinity
                .node_affinity
                .required
                .as_ref()
                .map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
            preferred_nodes: affinity
                .node_affinity
                .preferred
                .iter()
                .map(|t| (t.weight, NodeTerm::new(&t.preference)))
                .collect(),
            spread: spec.topology_spread_constraints.iter().map(|c| spread(c, labels)).collect(),
            affinity: terms(&affinity.pod_affinity.required),
            anti_affinity: terms(&affinity.pod_anti_affinity.required),
            preferred_pods,
            images: spec.containers.iter().map(|c| c.image.as_str().into()).collect(),
            tolerations: pod.spec.tolerations,
            object,
        }))
    }

    /// Its key.
    pub fn key(&self) -> &ObjectKey {
        self.object.key()
    }

    /// The key of one of its claims.
    pub fn claim_key(&self, claim: &PodClaim) -> ObjectKey {
        ObjectKey::new(self.object.namespace(), &claim.name)
    }

    /// Whether it uses the claim.
    pub fn uses_claim(&self, claim: &ObjectKey) -> bool {
        *claim.namespace == *self.object.namespace() && self.claims.iter().any(|c| c.name == claim.name)
    }

    /// Whether it wants devices, or what devices may stand behind.
    pub fn needs_devices(&self) -> bool {
        !self.resource_claims.is_empty() || self.extended.is_some()
    }

    /// Whether it uses the claim for devices.
    pub fn uses_resource_claim(&self, claim: &ObjectKey) -> bool {
        *claim.namespace == *self.object.namespace()
            && self.resource_claims.iter().any(|entry| match &entry.claim {
                ClaimName::Given(name) | ClaimName::Made(name) => *name == claim.name,
                _ => false,
            })
    }

    /// Whether some toleration covers `taint`.
    pub fn tolerates(&self, taint: &view::Taint) -> bool {
        self.tolerations.iter().any(|t| {
            (t.effect.is_empty() || t.effect == taint.effect)
                && (t.key == taint.key || (t.key.is_empty() && t.operator == "Exists"))
                && match t.operator.as_str() {
                    "Exists" => true,
                    "" | "Equal" => t.value == taint.value,
                    "Gt" | "Lt" => match (taint.value.parse::<i64>(), t.value.parse::<i64>()) {
                        (Ok(taint), Ok(own)) if t.operator == "Gt" => taint > own,
                        (Ok(taint), Ok(own)) => taint < own,
                        _ => false,
                    },
                    _ => false,
                }
        })
    }

    /// Whether the pod's node selector and required node affinity allow a node.
    pub fn allows_node(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector.matches(labels)
            && self.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(name, labels)))
    }
}

fn spread(constraint: &view::SpreadConstraint, labels: &Labels) -> Spread {
    let mut selector = constraint.label_selector.as_ref().map(Selector::new).unwrap_or_default();
    for key in &constraint.match_label_keys {
        if let Some(value) = label(labels, key) {
            selector.and(Requirement::one_of(key, value));
        }
    }
    Spread {
        max_skew: constraint.max_skew.max(1),
        topology_key: constraint.topology_key.as_str().into(),
        hard: constraint.when_unsatisfiable != "ScheduleAnyway",
        selector,
        min_domains: constraint.min_domains.unwrap_or(1),
        honor_affinity: constraint.node_affinity_policy != "Ignore",
        honor_taints: constraint.node_taints_policy == "Honor",
    }
}
