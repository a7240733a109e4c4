//! Which nodes a pod template asks for.

use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::Cached;

use crate::views::nullable;

/// The parts of a pod's spec that choose nodes.
#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeChoice {
    /// Labels the node must have.
    #[serde(deserialize_with = "nullable")]
    pub node_selector: std::collections::BTreeMap<String, String>,
    affinity: Option<Affinity>,
    /// The node itself.
    pub node_name: String,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    node_affinity: Option<NodeAffinity>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<Required>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Required {
    #[serde(deserialize_with = "nullable")]
    node_selector_terms: Vec<Term>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Term {
    #[serde(deserialize_with = "nullable")]
    match_expressions: Vec<Requirement>,
    #[serde(deserialize_with = "nullable")]
    match_fields: Vec<Requirement>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    #[serde(deserialize_with = "nullable")]
    values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = |v: &str| v.parse::<i64>().ok();
        let compare = |f: fn(&i64, &i64) -> bool| {
            let limit = self.values.first().and_then(|v| number(v));
            value.and_then(number).zip(limit).is_some_and(|(v, l)| f(&v, &l))
        };
        match &*self.operator {
            "In" => value.is_some_and(|v| self.values.iter().any(|w| w == v)),
            "NotIn" => value.is_none_or(|v| self.values.iter().all(|w| w != v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => compare(i64::gt),
            "Lt" => compare(i64::lt),
            _ => false,
        }
    }
}

impl NodeChoice {
    /// Whether selector and required affinity allow a node.
    pub fn allows(&self, node: &Cached) -> bool {
        let selected = self.node_selector.iter().all(|(k, v)| node.label(k) == Some(v));
        selected && self.required().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }

    fn required(&self) -> Option<&[Term]> {
        Some(&self.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()?.node_selector_terms)
    }

    /// The node that a daemon's pod is meant for: bound there, or asked for by name.
    pub fn target(&self) -> Option<&str> {
        if !self.node_name.is_empty() {
            return Some(&self.node_name);
        }
        let fields = self.required()?.iter().flat_map(|t| &t.match_fields);
        let mut named =
            fields.filter(|f| f.key == "metadata.name" && f.operator == "In" && f.values.len() == 1);
        named.next().map(|f| &*f.values[0])
    }
}

impl Term {
    /// A term without requirements matches nothing.
    fn matches(&self, node: &Cached) -> bool {
        if self.match_expressions.is_empty() && self.match_fields.is_empty() {
            return false;
        }
        self.match_expressions.iter().all(|r| r.matches(node.label(&r.key)))
            && self.match_fields.iter().all(|r| r.matches((r.key == "metadata.name").then_some(node.name())))
    }
}

/// Makes the scheduler put a pod on one node and no other.
pub fn pin(pod_spec: &mut Value, node: &str) {
    pod_spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}],
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let node =
            Cached::new(r#"{"metadata":{"name":"n1","labels":{"disk":"ssd","cores":"8"}}}"#.into()).unwrap();
        let term = |e: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": e}}}});
        for (spec, expected) in [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (term(json!([])), false),
            (term(json!([{}])), false),
            (
                term(json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}])),
                true,
            ),
            (
                term(
                    json!([{"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                ),
                true,
            ),
        ] {
            let choice: NodeChoice = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(choice.allows(&node), expected, "{spec}");
        }
        let mut spec = json!({});
        pin(&mut spec, "n7");
        let choice: NodeChoice = serde_json::from_value(spec).unwrap();
        assert_eq!(choice.target(), Some("n7"));
    }
}
