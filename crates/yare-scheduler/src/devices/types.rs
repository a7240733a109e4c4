//! What drivers offer, read from the JSON of slices (`resource.k8s.io/v1`). With what claims ask for
//! ([`requests`](super::requests)) it is all that the allocator knows.

use std::{collections::BTreeMap, fmt, sync::Arc, sync::OnceLock};

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use yare_client::{Cached, ViewError};
use yare_kinds::devices::{self, Attribute};
use yare_schema::quantity::Quantity;

use crate::{
    selector::{Labels, NodeTerm},
    view::{self, nullable},
};

/// A pool of a driver.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PoolId {
    /// The driver's name.
    pub driver: Arc<str>,
    /// The pool's.
    pub pool: Arc<str>,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.pool)
    }
}

/// A device.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DeviceId {
    /// Its pool.
    pub pool: PoolId,
    /// Its name.
    pub device: Arc<str>,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.device)
    }
}

/// A node, as far as devices are reached from it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
}

/// A node selector: one of the terms must match.
#[derive(Debug)]
pub struct NodeSelector {
    terms: Vec<NodeTerm>,
    /// As it stands in the JSON.
    pub value: Value,
}

impl NodeSelector {
    /// Reads one. What cannot be read matches no node: the API server refused it.
    pub fn new(value: Value) -> Self {
        let selector: view::NodeSelector = Deserialize::deserialize(&value).unwrap_or_default();
        Self { terms: selector.node_selector_terms.iter().map(NodeTerm::new).collect(), value }
    }

    /// Whether a node matches.
    pub fn matches(&self, node: Node<'_>) -> bool {
        self.terms.iter().any(|term| term.matches(node.name, node.labels))
    }
}

/// From which nodes something can be reached.
#[derive(Debug, Default)]
pub enum Nodes {
    /// One.
    Named(Box<str>),
    /// Every one.
    All,
    /// Those that match.
    Matching(NodeSelector),
    /// Each device says it for itself.
    PerDevice,
    /// Nothing that is known here.
    #[default]
    Unknown,
}

impl Nodes {
    fn new(name: Option<Box<str>>, all: bool, selector: Option<Value>, per_device: bool) -> Self {
        match (name.filter(|n| !n.is_empty()), selector) {
            (Some(name), _) => Self::Named(name),
            (None, _) if all => Self::All,
            (None, Some(selector)) => Self::Matching(NodeSelector::new(selector)),
            (None, None) if per_device => Self::PerDevice,
            (None, None) => Self::Unknown,
        }
    }

    /// Whether it can be reached from the node.
    pub fn matches(&self, node: Node<'_>) -> bool {
        match self {
            Self::Named(name) => **name == *node.name,
            Self::All => true,
            Self::Matching(selector) => selector.matches(node),
            Self::PerDevice | Self::Unknown => false,
        }
    }
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
    Quantity::from_value(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn some_quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Quantity>, D::Error> {
    quantity(deserializer).map(Some)
}

/// An amount in the JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct Amount(#[serde(deserialize_with = "quantity")] pub Quantity);

/// Amounts by name.
pub type Amounts = BTreeMap<Box<str>, Amount>;

/// A capacity of a device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// How much there is.
    pub value: Amount,
    /// What may be asked of it.
    #[serde(default)]
    pub request_policy: Option<RequestPolicy>,
}

/// What may be asked of a capacity.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestPolicy {
    /// What who asks for nothing gets.
    #[serde(deserialize_with = "some_quantity")]
    pub default: Option<Quantity>,
    /// These only, in ascending order.
    #[serde(deserialize_with = "nullable")]
    pub valid_values: Vec<Amount>,
    /// What lies between these only.
    pub valid_range: Option<ValidRange>,
}

/// Bounds of what may be asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ValidRange {
    /// The least.
    #[serde(deserialize_with = "some_quantity")]
    pub min: Option<Quantity>,
    /// The most.
    #[serde(deserialize_with = "some_quantity")]
    pub max: Option<Quantity>,
    /// Steps from the least.
    #[serde(deserialize_with = "some_quantity")]
    pub step: Option<Quantity>,
}

/// Counters of one name, taken together by devices or offered to them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CounterSet {
    /// Its name; of what a device takes: the set that it takes from.
    #[serde(alias = "counterSet")]
    pub name: Box<str>,
    /// How much, by counter.
    #[serde(deserialize_with = "nullable")]
    pub counters: BTreeMap<Box<str>, Counter>,
}

/// One counter.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Counter {
    /// How much.
    pub value: Amount,
}

/// A taint of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: Box<str>,
    /// Its value.
    pub value: Box<str>,
    /// `None`, `NoSchedule` or `NoExecute`.
    pub effect: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AttributeView {
    int: Option<i64>,
    bool: Option<bool>,
    string: Option<Box<str>>,
    version: Option<Box<str>>,
}

fn attributes<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<Box<str>, Attribute>, D::Error> {
    let views: BTreeMap<Box<str>, AttributeView> = nullable(d)?;
    let read = |view: AttributeView| match view {
        AttributeView { int: Some(value), .. } => Attribute::Int(value),
        AttributeView { bool: Some(value), .. } => Attribute::Bool(value),
        AttributeView { string: Some(text), .. } => Attribute::String(text),
        AttributeView { version: Some(text), .. } => Attribute::Version(text),
        _ => Attribute::Unknown,
    };
    Ok(views.into_iter().map(|(name, view)| (name, read(view))).collect())
}

/// A device as its driver describes it.
#[derive(Debug)]
pub struct Device {
    /// Which.
    pub id: DeviceId,
    /// What it is like.
    pub spec: DeviceSpec,
    /// From where it can be reached, if its slice leaves that to it.
    pub nodes: Nodes,
    /// What expressions see of it, made when one first looks.
    value: OnceLock<Result<yare_cel::Value<'static>, String>>,
}

/// What a driver says of a device.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceSpec {
    name: Arc<str>,
    /// Attributes by (perhaps qualified) name.
    #[serde(deserialize_with = "attributes")]
    pub attributes: BTreeMap<Box<str>, Attribute>,
    /// Capacities by (perhaps qualified) name.
    #[serde(deserialize_with = "nullable")]
    pub capacity: BTreeMap<Box<str>, Capacity>,
    /// What it takes from the pool's counters.
    #[serde(deserialize_with = "nullable")]
    pub consumes_counters: Vec<CounterSet>,
    node_name: Option<Box<str>>,
    node_selector: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    all_nodes: bool,
    /// Its taints.
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
    /// Allocating it ties the claim to the node.
    #[serde(deserialize_with = "nullable")]
    pub binds_to_node: bool,
    /// What must become true before its pod is bound.
    #[serde(deserialize_with = "nullable")]
    pub binding_conditions: Vec<String>,
    /// What says that this will not be.
    #[serde(deserialize_with = "nullable")]
    pub binding_failure_conditions: Vec<String>,
    /// Several claims may have it at once.
    #[serde(deserialize_with = "nullable")]
    pub allow_multiple_allocations: bool,
}

impl Device {
    fn new(pool: &PoolId, mut spec: DeviceSpec) -> Self {
        let nodes = Nodes::new(spec.node_name.take(), spec.all_nodes, spec.node_selector.take(), false);
        let id = DeviceId { pool: pool.clone(), device: spec.name.clone() };
        Self { id, nodes, spec, value: OnceLock::new() }
    }

    /// What expressions see of it. `Err`: an attribute that cannot be read.
    pub fn value(&self) -> &Result<yare_cel::Value<'static>, String> {
        self.value.get_or_init(|| {
            let spec = &self.spec;
            devices::value(
                &self.id.pool.driver,
                spec.allow_multiple_allocations,
                spec.attributes.iter().map(|(name, value)| (&**name, value)),
                spec.capacity.iter().map(|(name, capacity)| (&**name, capacity.value.0)),
            )
        })
    }

    /// An attribute by its full name. The driver's own may stand there without a domain.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.spec.attributes.get(name).or_else(|| {
            let (domain, id) = name.split_once('/')?;
            if *domain == *self.id.pool.driver { self.spec.attributes.get(id) } else { None }
        })
    }
}

/// A slice of a pool.
#[derive(Debug)]
pub struct Slice {
    /// Its name.
    pub name: Box<str>,
    /// Its pool.
    pub pool: PoolId,
    /// The generation of the pool that it belongs to.
    pub generation: i64,
    /// How many slices that has.
    pub slice_count: i64,
    /// From where its devices can be reached.
    pub nodes: Nodes,
    /// Its devices.
    pub devices: Vec<Device>,
    /// Counters that devices of the pool share.
    pub counters: Vec<CounterSet>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SliceView {
    spec: SliceSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SliceSpec {
    driver: Arc<str>,
    pool: PoolView,
    node_name: Option<Box<str>>,
    node_selector: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    all_nodes: bool,
    #[serde(deserialize_with = "nullable")]
    per_device_node_selection: bool,
    #[serde(deserialize_with = "nullable")]
    devices: Vec<DeviceSpec>,
    #[serde(deserialize_with = "nullable")]
    shared_counters: Vec<CounterSet>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PoolView {
    name: Arc<str>,
    generation: i64,
    resource_slice_count: i64,
}

impl Slice {
    /// Reads a ResourceSlice.
    pub fn new(object: &Cached) -> Result<Self, ViewError> {
        let SliceView { spec } = object.view()?;
        let pool = PoolId { driver: spec.driver, pool: spec.pool.name };
        Ok(Self {
            name: object.name().into(),
            generation: spec.pool.generation,
            slice_count: spec.pool.resource_slice_count,
            nodes: Nodes::new(
                spec.node_name,
                spec.all_nodes,
                spec.node_selector,
                spec.per_device_node_selection,
            ),
            devices: spec.devices.into_iter().map(|device| Device::new(&pool, device)).collect(),
            counters: spec.shared_counters,
            pool,
        })
    }
}
