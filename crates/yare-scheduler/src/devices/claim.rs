//! A claim as it stands: whether it is allocated, from where it can be reached, and who has it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use yare_client::{Cached, ViewError};

use super::{
    extended::ANNOTATION,
    taken::Holding,
    types::{Amounts, DeviceId, Node, NodeSelector, PoolId},
};
use crate::view::nullable;

/// A ResourceClaim.
#[derive(Debug)]
pub struct Claim {
    /// The object.
    pub object: Cached,
    /// It is allocated.
    pub allocation: Option<Allocated>,
    /// Uids of those for whom it is reserved.
    pub reserved_for: Vec<Box<str>>,
    /// The pod for whose extended resources it was made, by uid.
    pub extended_for: Option<Box<str>>,
}

/// The allocation of a claim.
#[derive(Debug)]
pub struct Allocated {
    /// From where its devices can be reached; `None`: from everywhere.
    pub nodes: Option<NodeSelector>,
    /// What it holds.
    pub holdings: Vec<Holding>,
    /// Requests, or `request/entry`, that got devices.
    pub requests: Vec<Box<str>>,
    /// When it was made.
    pub at: Option<Timestamp>,
    /// Devices that must be attached before a pod is bound.
    attached: Vec<Attached>,
}

/// A device that takes time to be attached, and what is said of it.
#[derive(Debug)]
struct Attached {
    conditions: Vec<Box<str>>,
    failures: Vec<Box<str>>,
    /// Conditions by type; `None`: nothing is said yet.
    said: Option<BTreeMap<Box<str>, Condition>>,
}

/// Whether all devices of a claim are attached.
#[derive(Debug, PartialEq, Eq)]
pub enum Readiness {
    /// They are.
    Ready,
    /// Not yet.
    Waiting,
    /// They will not be: the reason and the message of the condition that says so.
    Failed(Box<str>, Box<str>),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Metadata,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<Box<str>, Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    allocation: Option<AllocationView>,
    #[serde(deserialize_with = "nullable")]
    reserved_for: Vec<Consumer>,
    #[serde(deserialize_with = "nullable")]
    devices: Vec<DeviceStatus>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Consumer {
    uid: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AllocationView {
    devices: Results,
    node_selector: Option<Value>,
    allocation_timestamp: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Results {
    #[serde(deserialize_with = "nullable")]
    results: Vec<ResultView>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ResultView {
    request: Box<str>,
    driver: Arc<str>,
    pool: Arc<str>,
    device: Arc<str>,
    #[serde(deserialize_with = "nullable")]
    admin_access: bool,
    #[serde(deserialize_with = "nullable")]
    binding_conditions: Vec<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    binding_failure_conditions: Vec<Box<str>>,
    #[serde(rename = "shareID")]
    share_id: Option<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    consumed_capacity: Amounts,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DeviceStatus {
    driver: Box<str>,
    pool: Box<str>,
    device: Box<str>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default, Debug, Clone)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: Box<str>,
    status: Box<str>,
    reason: Box<str>,
    message: Box<str>,
}

impl Claim {
    /// Reads a ResourceClaim.
    pub fn new(object: Cached) -> Result<Self, ViewError> {
        let View { metadata, status } = object.view()?;
        let is_extended = metadata.annotations.get(ANNOTATION).is_some_and(|v| **v == *"true");
        let devices = &status.devices;
        Ok(Self {
            allocation: status.allocation.map(|a| Allocated::new(a, devices)),
            reserved_for: status.reserved_for.into_iter().map(|c| c.uid).collect(),
            extended_for: object.controller().filter(|_| is_extended).map(|owner| (*owner.uid).into()),
            object,
        })
    }

    /// Whether it is reserved for somebody.
    pub fn is_reserved_for(&self, uid: &str) -> bool {
        self.reserved_for.iter().any(|r| **r == *uid)
    }

    /// Whether it can be reached from a node, as far as its allocation says.
    pub fn is_available_on(&self, node: Node<'_>) -> bool {
        let nodes = self.allocation.as_ref().and_then(|a| a.nodes.as_ref());
        nodes.is_none_or(|nodes| nodes.matches(node))
    }

    /// What it holds.
    pub fn holdings(&self) -> &[Holding] {
        self.allocation.as_ref().map_or(&[], |a| &a.holdings)
    }
}

impl Allocated {
    fn new(view: AllocationView, devices: &[DeviceStatus]) -> Self {
        let mut out = Self {
            nodes: view.node_selector.map(NodeSelector::new),
            holdings: Vec::new(),
            requests: Vec::new(),
            at: view.allocation_timestamp,
            attached: Vec::new(),
        };
        for result in view.devices.results {
            if !out.requests.contains(&result.request) {
                out.requests.push(result.request);
            }
            if !result.binding_conditions.is_empty() {
                let status = devices.iter().find(|d| {
                    *d.driver == *result.driver && *d.pool == *result.pool && *d.device == *result.device
                });
                let by_type = |d: &DeviceStatus| {
                    d.conditions.iter().map(|c| (c.kind.clone(), c.clone())).collect::<BTreeMap<_, _>>()
                };
                out.attached.push(Attached {
                    conditions: result.binding_conditions,
                    failures: result.binding_failure_conditions,
                    said: status.map(by_type),
                });
            }
            // Administrative access takes nothing from others.
            if !result.admin_access {
                let pool = PoolId { driver: result.driver, pool: result.pool };
                let share = result.share_id.map(|_| result.consumed_capacity);
                out.holdings.push(Holding { device: DeviceId { pool, device: result.device }, share });
            }
        }
        out
    }

    /// Whether any of its devices has to be attached first.
    pub fn must_be_attached(&self) -> bool {
        !self.attached.is_empty()
    }

    /// Whether its devices are attached.
    pub fn readiness(&self) -> Readiness {
        for device in &self.attached {
            let Some(said) = &device.said else { return Readiness::Waiting };
            let is_true = |kind: &str| said.get(kind).filter(|c| &*c.status == "True");
            if let Some(failure) = device.failures.iter().find_map(|kind| is_true(kind)) {
                return Readiness::Failed(failure.reason.clone(), failure.message.clone());
            }
            if !device.conditions.iter().all(|kind| is_true(kind).is_some()) {
                return Readiness::Waiting;
            }
        }
        Readiness::Ready
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn claim(status: Value) -> Claim {
        let object = json!({"metadata": {"name": "c", "namespace": "default"}, "status": status});
        Claim::new(Cached::new(Bytes::from(object.to_string())).unwrap()).unwrap()
    }

    #[test]
    fn devices_are_attached_when_all_conditions_say_so() {
        let ready = |conditions: Value| {
            let mut status = json!({"allocation": {"devices": {"results": [
                {"request": "r", "driver": "d", "pool": "p", "device": "x",
                 "bindingConditions": ["a", "b"], "bindingFailureConditions": ["f"]},
                {"request": "s", "driver": "d", "pool": "p", "device": "y", "adminAccess": true}]}}});
            if !conditions.is_null() {
                status["devices"] =
                    json!([{"driver": "d", "pool": "p", "device": "x", "conditions": conditions}]);
            }
            let claim = claim(status);
            assert_eq!(claim.holdings().len(), 1);
            claim.allocation.unwrap().readiness()
        };
        let is =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m"});
        let cases = [
            (Value::Null, Readiness::Waiting),
            (json!([is("a", "True")]), Readiness::Waiting),
            (json!([is("a", "True"), is("b", "False")]), Readiness::Waiting),
            (json!([is("a", "True"), is("b", "True"), is("f", "False")]), Readiness::Ready),
            (
                json!([is("a", "True"), is("b", "True"), is("f", "True")]),
                Readiness::Failed("R".into(), "m".into()),
            ),
        ];
        for (conditions, expected) in cases {
            assert_eq!(ready(conditions.clone()), expected, "{conditions}");
        }
    }
}
