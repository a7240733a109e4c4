//! Whether a pod, or a volume, may be on this node by the node's name and labels.

use super::{Offer, Rejection, Used, reject};
use crate::view::Pod;

/// Refuses a pod whose node selector or required affinity names other nodes.
pub(super) fn node_affinity(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    let selected = pod.spec.node_selector.iter().all(|(k, v)| offer.labels.get(k) == Some(v));
    let required = pod
        .spec
        .affinity
        .as_ref()
        .and_then(|a| {
            a.pointer("/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")
        })
        .and_then(serde_json::Value::as_array)
        .is_none_or(|terms| terms.iter().any(|term| term_matches(term, offer)));
    if selected && required {
        None
    } else {
        reject(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        )
    }
}

/// Whether a node selector's term names this node.
pub(crate) fn term_matches(term: &serde_json::Value, offer: &Offer) -> bool {
    let list = |name: &str| term.get(name).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|e| requirement_matches(e, |key| offer.labels.get(key).map(String::as_str)))
        && fields
            .iter()
            .all(|e| requirement_matches(e, |key| (key == "metadata.name").then_some(offer.name.as_str())))
}

fn requirement_matches<'a>(
    requirement: &serde_json::Value,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let text = |name: &str| requirement.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let values: Vec<&str> = requirement
        .get("values")
        .and_then(serde_json::Value::as_array)
        .map(|list| list.iter().filter_map(serde_json::Value::as_str).collect())
        .unwrap_or_default();
    let actual = lookup(text("key"));
    let compare = |greater: bool| {
        let wanted = values.first().and_then(|v| v.parse::<i64>().ok());
        match (actual.and_then(|a| a.parse::<i64>().ok()), wanted) {
            (Some(a), Some(w)) => {
                if greater {
                    a > w
                } else {
                    a < w
                }
            }
            _ => false,
        }
    };
    match text("operator") {
        "In" => actual.is_some_and(|a| values.contains(&a)),
        "NotIn" => !actual.is_some_and(|a| values.contains(&a)),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}
