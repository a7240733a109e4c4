//! What controllers read of nodes, and their taints.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::views::{Condition, Meta, condition, nullable};

/// What is read of a Node.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct NodeView {
    /// `metadata`
    pub metadata: Meta,
    /// `spec`
    pub spec: NodeSpec,
    /// `status`
    pub status: NodeStatus,
}

/// What is read of a Node's spec.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Whether new pods stay away.
    pub unschedulable: bool,
    /// Taints.
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
    /// Address ranges of the node's pods, one per family.
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    /// The first of them.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
}

/// What is read of a Node's status.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct NodeStatus {
    /// Conditions.
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

/// A taint.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    /// `node.kubernetes.io/not-ready`
    pub key: String,
    /// Value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`
    pub effect: String,
    /// When a `NoExecute` taint was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<Timestamp>,
}

impl Taint {
    /// Whether both are the same but for value and time.
    pub fn is(&self, key: &str, effect: &str) -> bool {
        self.key == key && self.effect == effect
    }
}

impl NodeView {
    /// The `Ready` condition.
    pub fn ready(&self) -> Option<&Condition> {
        condition(&self.status.conditions, "Ready")
    }

    /// Whether `Ready` is true.
    pub fn is_ready(&self) -> bool {
        self.ready().is_some_and(Condition::is_true)
    }
}

/// A toleration.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
    /// Seconds a `NoExecute` taint is tolerated; absent: for ever.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key == taint.key || self.key.is_empty();
        let value = match &*self.operator {
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            "Exists" => true,
            "Lt" => compare(&taint.value, &self.value).is_some_and(std::cmp::Ordering::is_lt),
            "Gt" => compare(&taint.value, &self.value).is_some_and(std::cmp::Ordering::is_gt),
            _ => false,
        };
        effect && key && value
    }
}

fn compare(taint: &str, toleration: &str) -> Option<std::cmp::Ordering> {
    Some(taint.parse::<i64>().ok()?.cmp(&toleration.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        let taint =
            Taint { key: "k".into(), value: "5".into(), effect: "NoExecute".into(), time_added: None };
        for (toleration, expected) in [
            (r#"{"operator":"Exists"}"#, true),
            (r#"{"key":"k","operator":"Exists","effect":"NoExecute"}"#, true),
            (r#"{"key":"k","operator":"Exists","effect":"NoSchedule"}"#, false),
            (r#"{"key":"k","value":"5"}"#, true),
            (r#"{"key":"k","value":"6"}"#, false),
            (r#"{"key":"x","operator":"Exists"}"#, false),
            (r#"{"key":"k","operator":"Lt","value":"6"}"#, true),
            (r#"{"key":"k","operator":"Gt","value":"6"}"#, false),
        ] {
            let parsed: Toleration = serde_json::from_str(toleration).unwrap();
            assert_eq!(parsed.tolerates(&taint), expected, "{toleration}");
        }
    }
}
