//! What claims ask for, read from their JSON and that of the classes they name (`resource.k8s.io/v1`).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use yare_client::{Cached, ViewError};

use super::{
    programs::{Compiled, Programs},
    types::{Amounts, Taint},
};
use crate::view::nullable;

/// A kind of devices that claims name.
#[derive(Debug)]
pub struct Class {
    /// Its name.
    pub name: Box<str>,
    /// Each must want a device.
    pub selectors: Vec<Arc<Compiled>>,
    /// `spec.config`, for drivers.
    pub config: Vec<Value>,
    /// The extended resource that stands for it in pods.
    pub extended_resource: Option<Box<str>>,
    /// When it was made, RFC 3339.
    pub created: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClassView {
    metadata: CreatedView,
    spec: ClassSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CreatedView {
    creation_timestamp: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClassSpec {
    #[serde(deserialize_with = "nullable")]
    selectors: Vec<SelectorView>,
    #[serde(deserialize_with = "nullable")]
    config: Vec<Value>,
    extended_resource_name: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SelectorView {
    cel: Option<Expression>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Expression {
    expression: Box<str>,
}

impl Class {
    /// Reads a DeviceClass.
    pub fn new(object: &Cached, programs: &mut Programs) -> Result<Self, ViewError> {
        let ClassView { metadata, spec } = object.view()?;
        Ok(Self {
            name: object.name().into(),
            selectors: compile(spec.selectors, programs),
            config: spec.config,
            extended_resource: spec.extended_resource_name.filter(|n| !n.is_empty()),
            created: metadata.creation_timestamp.unwrap_or_default(),
        })
    }
}

/// A selector without an expression is of a kind that is not known here, and wants nothing.
fn compile(selectors: Vec<SelectorView>, programs: &mut Programs) -> Vec<Arc<Compiled>> {
    let text = |s: SelectorView| s.cel.unwrap_or_default().expression;
    selectors.into_iter().map(|s| programs.get(&text(s))).collect()
}

/// A toleration in a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Empty: all keys.
    pub key: Box<str>,
    /// `Equal` (default) or `Exists`.
    pub operator: Box<str>,
    /// The value, for `Equal`.
    pub value: Box<str>,
    /// Empty: all effects.
    pub effect: Box<str>,
}

impl Toleration {
    /// Whether the taint does not matter.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match &*self.operator {
                "" | "Equal" => self.value == taint.value,
                "Exists" => true,
                _ => false,
            }
    }
}

/// How many devices a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many.
    Exactly(u64),
    /// All that there are, at least one.
    All,
}

/// One way to meet a request.
#[derive(Debug)]
pub struct Alternative {
    /// Its name: of a list's entry, `request/entry`.
    pub name: Box<str>,
    /// The class of its devices.
    pub class: Box<str>,
    /// Each must want a device.
    pub selectors: Vec<Arc<Compiled>>,
    /// How many.
    pub wanted: Wanted,
    /// Devices in use are as good.
    pub admin_access: bool,
    /// Taints that do not matter.
    pub tolerations: Vec<Toleration>,
    /// The same as they stand in the JSON.
    pub tolerations_value: Option<Value>,
    /// How much of each device's capacities; `None`: it does not say.
    pub capacity: Option<Amounts>,
}

/// A request of a claim.
#[derive(Debug)]
pub struct Request {
    /// Its name.
    pub name: Box<str>,
    /// The first that can be met is taken.
    pub alternatives: Vec<Alternative>,
    /// It is a list (`firstAvailable`), even if of one.
    pub listed: bool,
}

/// What devices of one claim must have in common, or must not.
#[derive(Debug)]
pub struct Constraint {
    /// Requests, or `request/entry`, that it is about; empty: all.
    pub requests: Vec<Box<str>>,
    /// The attribute's full name.
    pub attribute: Box<str>,
    /// All values differ; otherwise all are the same.
    pub distinct: bool,
}

/// What a claim asks for.
#[derive(Debug)]
pub struct ClaimSpec {
    /// `namespace/name`, for messages.
    pub name: Box<str>,
    /// Its requests.
    pub requests: Vec<Request>,
    /// Its constraints. `None`: of a kind that is not known here.
    pub constraints: Vec<Option<Constraint>>,
    /// `spec.devices.config`, for drivers.
    pub config: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClaimView {
    spec: SpecView,
}

/// `spec` of a claim.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SpecView {
    devices: DevicesView,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DevicesView {
    #[serde(deserialize_with = "nullable")]
    requests: Vec<RequestView>,
    #[serde(deserialize_with = "nullable")]
    constraints: Vec<ConstraintView>,
    #[serde(deserialize_with = "nullable")]
    config: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RequestView {
    name: Box<str>,
    exactly: Option<AlternativeView>,
    #[serde(deserialize_with = "nullable")]
    first_available: Vec<AlternativeView>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AlternativeView {
    name: Box<str>,
    device_class_name: Box<str>,
    #[serde(deserialize_with = "nullable")]
    selectors: Vec<SelectorView>,
    allocation_mode: Box<str>,
    count: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    admin_access: bool,
    tolerations: Option<Value>,
    capacity: Option<CapacityView>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CapacityView {
    #[serde(deserialize_with = "nullable")]
    requests: Amounts,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConstraintView {
    #[serde(deserialize_with = "nullable")]
    requests: Vec<Box<str>>,
    match_attribute: Option<Box<str>>,
    distinct_attribute: Option<Box<str>>,
}

impl ClaimSpec {
    /// Reads what a ResourceClaim asks for.
    pub fn read(object: &Cached, programs: &mut Programs) -> Result<Self, ViewError> {
        let claim: ClaimView = object.view()?;
        Ok(Self::new(object.key().to_string().into(), claim.spec, programs))
    }

    pub(super) fn new(name: Box<str>, spec: SpecView, programs: &mut Programs) -> Self {
        let devices = spec.devices;
        let constraint = |c: ConstraintView| {
            let (attribute, distinct) = match (c.match_attribute, c.distinct_attribute) {
                (Some(attribute), _) => (attribute, false),
                (None, Some(attribute)) => (attribute, true),
                (None, None) => return None,
            };
            Some(Constraint { requests: c.requests, attribute, distinct })
        };
        Self {
            name,
            requests: devices.requests.into_iter().map(|r| Request::new(r, programs)).collect(),
            constraints: devices.constraints.into_iter().map(constraint).collect(),
            config: devices.config,
        }
    }
}

impl Request {
    fn new(view: RequestView, programs: &mut Programs) -> Self {
        let listed = !view.first_available.is_empty();
        let name = view.name;
        let alternatives = if listed { view.first_available } else { view.exactly.into_iter().collect() };
        let mut read = |a: AlternativeView| Alternative {
            name: if listed { format!("{name}/{}", a.name).into() } else { name.clone() },
            class: a.device_class_name,
            selectors: compile(a.selectors, programs),
            wanted: match &*a.allocation_mode {
                "All" => Wanted::All,
                _ => Wanted::Exactly(a.count.unwrap_or(1)),
            },
            admin_access: a.admin_access,
            tolerations: a
                .tolerations
                .as_ref()
                .and_then(|value| Deserialize::deserialize(value).ok())
                .unwrap_or_default(),
            tolerations_value: a.tolerations.filter(|v| v.as_array().is_some_and(|l| !l.is_empty())),
            capacity: a.capacity.map(|c| c.requests),
        };
        Self { alternatives: alternatives.into_iter().map(&mut read).collect(), listed, name }
    }
}
