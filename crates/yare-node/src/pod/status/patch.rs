//! A pod's status on its way to the server: only what changed, so that what others write is left alone.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{allocation, view::PodStatus};

/// The strategic merge patch that turns the server's status into ours; `None` when nothing differs.
pub(crate) fn patch(uid: &str, server: &PodStatus, ours: &PodStatus) -> Option<Value> {
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map.into_iter().collect::<BTreeMap<_, _>>(),
        _ => BTreeMap::new(),
    };
    let (before, after) = (as_map(server), as_map(ours));
    let mut changed = Map::new();
    for (name, value) in &after {
        if before.get(name) == Some(value) {
            continue;
        }
        let value = match name.as_str() {
            // Merged by type: only what changed, so that others' conditions are left alone.
            "conditions" => {
                let old = before.get(name).and_then(|v| v.as_array()).cloned().unwrap_or_default();
                let new = value.as_array().into_iter().flatten();
                let mut changes: Vec<_> =
                    new.filter(|c| !old.contains(c)).map(|c| condition_patch(&old, c)).collect();
                // Of those that come and go, the ones that are over.
                let over = allocation::CONDITIONS
                    .iter()
                    .filter(|kind| server.condition(kind).is_some() && ours.condition(kind).is_none());
                changes.extend(over.map(|kind| json!({"$patch": "delete", "type": kind})));
                Value::Array(changes)
            }
            // Amounts that are not there any more have to go.
            "resources" | "allocatedResources" if before.contains_key(name) => {
                let mut whole = value.clone();
                whole["$patch"] = "replace".into();
                whole
            }
            // Merged by address: an old address has to be replaced, not added to.
            "podIPs" | "hostIPs" if before.contains_key(name) => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(value.as_array().into_iter().flatten().cloned());
                Value::Array(list)
            }
            _ => value.clone(),
        };
        changed.insert(name.clone(), value);
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        changed.insert(name.clone(), Value::Null);
    }
    if changed.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": uid}, "status": changed}))
}

/// A condition as it is now, and that what it said before and does not say any more has to go: why it was not met.
fn condition_patch(old: &[Value], new: &Value) -> Value {
    let mut patch = new.clone();
    let before = old.iter().find(|condition| condition["type"] == new["type"]);
    for name in before.and_then(|before| before.as_object()).into_iter().flat_map(|before| before.keys()) {
        if new.get(name).is_none() {
            patch[name] = Value::Null;
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: Value) -> PodStatus {
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn patches_say_only_what_changed() {
        let before = status(json!({
            "phase": "Pending", "podIP": "10.0.0.2",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [a]"},
            ],
        }));
        assert_eq!(patch("u", &before, &before), None);
        let after = status(json!({
            "phase": "Running", "podIP": "10.0.0.2",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        }));
        // What a condition does not say any more has to go, or it would stay for good: conditions are merged.
        let ready = json!({
            "type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null,
            "reason": null, "message": null,
        });
        let expected =
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "conditions": [ready]}});
        assert_eq!(patch("u", &before, &after), Some(expected));
        let back = patch("u", &after, &before).unwrap();
        assert_eq!(back["status"]["conditions"][0]["reason"], "ContainersNotReady");
    }
}
