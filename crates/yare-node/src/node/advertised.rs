//! Extended resources that somebody else advertises for this node: they stand in its capacity, and no plugin here
//! speaks for them. In: the node's status as it is. Out: what its allocatable resources have to become, as upstream's
//! kubelet derives them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use yare_kinds::pod::resources::is_extended;

use crate::view::NodeStatusView;

/// The resources, each with its amount; `own` knows those that this node counts itself.
pub(super) fn read(status: &NodeStatusView, own: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let others = status.capacity.iter().filter(|(name, _)| is_extended(name) && !own(name));
    others.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// What of `status.allocatable` is not as it has to be: the amount, or nothing for what is advertised no more.
pub(super) fn corrections(
    status: &NodeStatusView,
    advertised: &BTreeMap<String, String>,
    own: impl Fn(&str) -> bool,
) -> Map<String, Value> {
    let wrong = advertised.iter().filter(|(name, amount)| status.allocatable.get(*name) != Some(*amount));
    let gone = status
        .allocatable
        .keys()
        .filter(|name| is_extended(name) && !own(name) && !status.capacity.contains_key(*name));
    let amounts = wrong.map(|(name, amount)| (name.clone(), json!(amount)));
    amounts.chain(gone.map(|name| (name.clone(), Value::Null))).collect()
}

/// What takes all that is advertised for a node from it: a node that was made anew has none of it until it is
/// advertised again.
pub(super) fn none(status: &NodeStatusView) -> Option<Value> {
    let zeros: Map<String, Value> =
        read(status, |_| false).into_keys().map(|name| (name, json!("0"))).collect();
    (!zeros.is_empty()).then(|| json!({ "status": { "capacity": zeros, "allocatable": zeros } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_follows_what_is_advertised() {
        let mine = |name: &str| name == "vendor.com/gpu";
        for (status, want) in [
            (json!({}), json!({})),
            (
                json!({"capacity": {"cpu": "2", "a.com/x": "5"}, "allocatable": {"cpu": "1", "a.com/x": "5"}}),
                json!({}),
            ),
            (
                json!({"capacity": {"a.com/x": "5", "a.com/y": "1"}, "allocatable": {"a.com/x": "4"}}),
                json!({"a.com/x": "5", "a.com/y": "1"}),
            ),
            (
                json!({"capacity": {"cpu": "2"}, "allocatable": {"a.com/x": "4", "hugepages-1Gi": "0"}}),
                json!({"a.com/x": null}),
            ),
            // Of these only the node itself speaks.
            (json!({"capacity": {"vendor.com/gpu": "2"}, "allocatable": {"vendor.com/gpu": "1"}}), json!({})),
            (json!({"allocatable": {"vendor.com/gpu": "1"}}), json!({})),
            (json!({"capacity": {"example.kubernetes.io/x": "2"}}), json!({})),
        ] {
            let text = status.to_string();
            let status: NodeStatusView = serde_json::from_value(status).unwrap();
            let found = corrections(&status, &read(&status, mine), mine);
            assert_eq!(Value::Object(found), want, "{text}");
        }
    }

    #[test]
    fn a_node_made_anew_has_nothing_advertised() {
        let status = |capacity: Value| serde_json::from_value(json!({ "capacity": capacity })).unwrap();
        assert_eq!(none(&status(json!({"cpu": "2", "hugepages-2Mi": "0"}))), None);
        let zeros = json!({"a.com/x": "0"});
        assert_eq!(
            none(&status(json!({"cpu": "2", "a.com/x": "5"}))),
            Some(json!({"status": {"capacity": zeros, "allocatable": zeros}}))
        );
    }
}
