//! Objects of storage as scheduling needs them, read straight from their JSON.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use yare_client::{Cached, ViewError};
use yare_schema::quantity::Quantity;

use crate::{
    selector::{Labels, NodeTerm, Selector, label},
    view::{LabelSelector, NodeSelector, nullable},
};

/// Says that a claim is bound for good.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Says that a controller bound it, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node that a claim's first consumer will run on.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";

/// Labels that place a volume in a zone or region, and what a node calls them if not that.
pub const ZONE_LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The object.
    pub object: Cached,
    /// Its class; empty for none.
    pub class: Box<str>,
    /// The volume that it names; empty for none.
    pub volume: Box<str>,
    /// It is bound, and both sides say so.
    pub bound: bool,
    /// Its volume is gone.
    pub lost: bool,
    /// Where a volume is to be made for it.
    pub selected_node: Option<Box<str>>,
    /// The size asked for.
    pub request: Option<Quantity>,
    /// How it is to be reachable.
    pub access_modes: Vec<Box<str>>,
    /// A device, not a file system.
    pub block: bool,
    /// `spec.volumeAttributesClassName`; empty for none.
    pub attributes_class: Box<str>,
    /// Which volumes may be bound to it.
    pub selector: Option<Selector>,
    /// The claim (in its namespace) that its content comes from.
    pub clone_of: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClaimView {
    metadata: Metadata,
    spec: ClaimSpec,
    status: PhaseOnly,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: String,
    #[serde(deserialize_with = "nullable")]
    access_modes: Vec<Box<str>>,
    resources: Requests,
    storage_class_name: Option<String>,
    volume_mode: String,
    volume_attributes_class_name: Option<String>,
    selector: Option<LabelSelector>,
    data_source: Option<Source>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Requests {
    #[serde(deserialize_with = "nullable")]
    requests: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Source {
    kind: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PhaseOnly {
    phase: String,
}

fn storage(list: &BTreeMap<String, Value>) -> Option<Quantity> {
    list.get("storage").and_then(|v| Quantity::from_value(v).ok())
}

impl Claim {
    /// Reads a claim.
    pub fn new(object: Cached) -> Result<Self, ViewError> {
        let ClaimView { metadata, spec, status } = object.view()?;
        let class = metadata.annotations.get(CLASS_BETA).or(spec.storage_class_name.as_ref());
        Ok(Self {
            class: class.map_or("", String::as_str).into(),
            bound: !spec.volume_name.is_empty() && metadata.annotations.contains_key(BIND_COMPLETED),
            volume: spec.volume_name.into(),
            lost: status.phase == "Lost",
            selected_node: metadata.annotations.get(SELECTED_NODE).map(|n| n.as_str().into()),
            request: storage(&spec.resources.requests),
            access_modes: spec.access_modes,
            block: spec.volume_mode == "Block",
            attributes_class: spec.volume_attributes_class_name.unwrap_or_default().into(),
            selector: spec.selector.as_ref().map(Selector::new),
            clone_of: spec.data_source.filter(|s| s.kind == "PersistentVolumeClaim").map(|s| s.name.into()),
            object,
        })
    }

    /// The same with a node chosen for its volume.
    pub fn selected(&self, node: &str) -> Self {
        Self { selected_node: Some(node.into()), ..self.clone() }
    }
}

/// Whose volume it is.
#[derive(Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(default)]
pub struct ClaimRef {
    /// Namespace of the claim.
    pub namespace: Box<str>,
    /// Name of the claim.
    pub name: Box<str>,
    /// Uid of the claim; empty where any claim of the name is meant.
    pub uid: Box<str>,
}

/// A PersistentVolume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The object.
    pub object: Cached,
    /// Its class; empty for none.
    pub class: Box<str>,
    /// Its size.
    pub capacity: Option<Quantity>,
    /// How it can be reached.
    pub access_modes: Vec<Box<str>>,
    /// A device, not a file system.
    pub block: bool,
    /// `spec.volumeAttributesClassName`; empty for none.
    pub attributes_class: Box<str>,
    /// Whose it is.
    pub claim: Option<ClaimRef>,
    /// Its phase is `Available`.
    pub available: bool,
    /// Nodes that reach it, where not all do: one of these must match.
    pub nodes: Option<Vec<NodeTerm>>,
    /// CSI driver and the driver's name for it.
    pub csi: Option<(Box<str>, Box<str>)>,
    /// Labels of zones and regions, with the values they allow.
    pub zones: Vec<(usize, Vec<Box<str>>)>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct VolumeView {
    metadata: Metadata,
    spec: VolumeSpec,
    status: PhaseOnly,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    #[serde(deserialize_with = "nullable")]
    capacity: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    access_modes: Vec<Box<str>>,
    claim_ref: Option<ClaimRef>,
    storage_class_name: String,
    volume_mode: String,
    volume_attributes_class_name: Option<String>,
    node_affinity: Option<Affinity>,
    csi: Option<Csi>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Affinity {
    required: Option<NodeSelector>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Csi {
    driver: Box<str>,
    volume_handle: Box<str>,
}

impl Volume {
    /// Reads a volume.
    pub fn new(object: Cached) -> Result<Self, ViewError> {
        let VolumeView { metadata, spec, status } = object.view()?;
        let class = metadata.annotations.get(CLASS_BETA).unwrap_or(&spec.storage_class_name);
        let required = spec.node_affinity.and_then(|a| a.required);
        Ok(Self {
            class: class.as_str().into(),
            capacity: storage(&spec.capacity),
            access_modes: spec.access_modes,
            block: spec.volume_mode == "Block",
            attributes_class: spec.volume_attributes_class_name.unwrap_or_default().into(),
            claim: spec.claim_ref,
            available: status.phase == "Available",
            nodes: required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
            csi: spec.csi.map(|c| (c.driver, c.volume_handle)),
            zones: zones(object.labels()),
            object,
        })
    }

    /// Whether a node reaches it.
    pub fn reachable_from(&self, node: &str, labels: &Labels) -> bool {
        self.nodes.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node, labels)))
    }

    /// Whether it names the claim.
    pub fn is_for(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|r| {
            *r.name == *claim.object.name()
                && *r.namespace == *claim.object.namespace()
                && (r.uid.is_empty() || *r.uid == *claim.object.uid())
        })
    }

    /// The same, bound to a claim.
    pub fn bound_to(&self, claim: &Claim) -> Self {
        let reference = ClaimRef {
            namespace: claim.object.namespace().into(),
            name: claim.object.name().into(),
            uid: claim.object.uid().into(),
        };
        Self { claim: Some(reference), ..self.clone() }
    }
}

/// Zones are listed in one label's value, with `__` between them.
fn zones(labels: &Labels) -> Vec<(usize, Vec<Box<str>>)> {
    let mut out = Vec::new();
    for (at, (name, _)) in ZONE_LABELS.iter().enumerate() {
        let Some(value) = label(labels, name) else { continue };
        let values: Vec<Box<str>> = value.split("__").map(|v| v.trim().into()).collect();
        // A list with a gap says nothing.
        if values.iter().all(|v| !v.is_empty()) {
            out.push((at, values));
        }
    }
    out
}

/// `TopologySelectorTerm`: labels with the values that a node may have.
#[derive(Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Topology {
    /// All must hold; none matches no node.
    #[serde(deserialize_with = "nullable")]
    match_label_expressions: Vec<TopologyLabel>,
}

#[derive(Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(default)]
struct TopologyLabel {
    key: String,
    #[serde(deserialize_with = "nullable")]
    values: Vec<String>,
}

impl Topology {
    fn matches(&self, labels: &Labels) -> bool {
        let holds =
            |e: &TopologyLabel| label(labels, &e.key).is_some_and(|v| e.values.iter().any(|w| w == v));
        !self.match_label_expressions.is_empty() && self.match_label_expressions.iter().all(holds)
    }
}

/// A StorageClass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: Box<str>,
    /// Who makes its volumes.
    pub provisioner: Box<str>,
    /// Its claims are bound when the first pod that uses them is placed.
    pub waits: bool,
    /// Where its volumes may be; anywhere, where there are none.
    pub allowed_topologies: Vec<Topology>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClassView {
    provisioner: Box<str>,
    volume_binding_mode: String,
    #[serde(deserialize_with = "nullable")]
    allowed_topologies: Vec<Topology>,
}

impl Class {
    /// Reads a class.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let view: ClassView = object.view()?;
        Ok(Self {
            name: object.name().into(),
            provisioner: view.provisioner,
            waits: view.volume_binding_mode == "WaitForFirstConsumer",
            allowed_topologies: view.allowed_topologies,
        })
    }

    /// Whether its volumes may be made on a node with these labels.
    pub fn allows(&self, labels: &Labels) -> bool {
        self.allowed_topologies.is_empty() || self.allowed_topologies.iter().any(|t| t.matches(labels))
    }
}

/// A CSINode: drivers on a node, each with the volumes it can attach there.
#[derive(Debug, Clone, Default)]
pub struct CsiNode {
    drivers: BTreeMap<Box<str>, Option<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CsiNodeView {
    spec: CsiNodeSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CsiNodeSpec {
    #[serde(deserialize_with = "nullable")]
    drivers: Vec<NodeDriver>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeDriver {
    name: Box<str>,
    allocatable: Option<Allocatable>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Allocatable {
    count: Option<i64>,
}

impl CsiNode {
    /// Reads a CSINode.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let view: CsiNodeView = object.view()?;
        let drivers = view.spec.drivers.into_iter();
        Ok(Self { drivers: drivers.map(|d| (d.name, d.allocatable.and_then(|a| a.count))).collect() })
    }

    /// Whether the driver runs there.
    pub fn has(&self, driver: &str) -> bool {
        self.drivers.contains_key(driver)
    }

    /// Whether any driver has a limit.
    pub fn has_limits(&self) -> bool {
        self.drivers.values().any(Option::is_some)
    }

    /// How many volumes of the driver the node can have.
    pub fn limit(&self, driver: &str) -> Option<i64> {
        self.drivers.get(driver).copied().flatten()
    }

    pub(super) fn offers_more_than(&self, before: &Self) -> bool {
        self.drivers.iter().any(|(name, count)| match before.drivers.get(name) {
            Some(had) => count.unwrap_or(0) > had.unwrap_or(0),
            None => true,
        })
    }
}

/// A CSIDriver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Driver {
    /// It says how much room it has, and no volume is to be asked for where there is none.
    pub storage_capacity: bool,
    /// Its volumes keep a pod off nodes where it does not run.
    pub prevents_if_missing: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DriverView {
    spec: DriverSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DriverSpec {
    storage_capacity: Option<bool>,
    prevent_pod_scheduling_if_missing: Option<bool>,
}

impl Driver {
    /// Reads a CSIDriver.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let DriverView { spec } = object.view()?;
        Ok(Self {
            storage_capacity: spec.storage_capacity == Some(true),
            prevents_if_missing: spec.prevent_pod_scheduling_if_missing == Some(true),
        })
    }
}

/// A CSIStorageCapacity: room for volumes of a class on some nodes.
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    /// The class.
    pub class: Box<str>,
    /// The largest volume that fits, bytes; none: nobody knows.
    pub limit_bytes: Option<i64>,
    nodes: Option<Selector>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CapacityView {
    storage_class_name: Box<str>,
    node_topology: Option<LabelSelector>,
    capacity: Option<Value>,
    maximum_volume_size: Option<Value>,
}

impl Capacity {
    /// Reads a CSIStorageCapacity.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let view: CapacityView = object.view()?;
        // The larger volume that fits is the more precise of the two.
        let limit = view.maximum_volume_size.or(view.capacity);
        Ok(Self {
            class: view.storage_class_name,
            limit_bytes: limit.and_then(|v| Quantity::from_value(&v).ok()).map(Quantity::value),
            nodes: view.node_topology.as_ref().map(Selector::new),
        })
    }

    /// Whether a volume of this size fits on a node with these labels.
    pub fn has_room(&self, size_bytes: i64, labels: &Labels) -> bool {
        self.limit_bytes.is_some_and(|l| l >= size_bytes)
            && self.nodes.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// A VolumeAttachment.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// The driver.
    pub attacher: Box<str>,
    /// The node.
    pub node: Box<str>,
    /// The volume; empty where it is one of a pod's own.
    pub volume: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AttachmentView {
    spec: AttachmentSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentSpec {
    attacher: Box<str>,
    node_name: Box<str>,
    source: AttachmentSource,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentSource {
    persistent_volume_name: Option<Box<str>>,
}

impl Attachment {
    /// Reads a VolumeAttachment.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let AttachmentView { spec } = object.view()?;
        Ok(Self {
            attacher: spec.attacher,
            node: spec.node_name,
            volume: spec.source.persistent_volume_name.unwrap_or_default(),
        })
    }
}
