//! Between the versions of a built-in kind: objects are stored in one version and served in all.
//!
//! Most versions differ in their name only. Those that differ in shape have a function of their own here; it
//! takes the object as it is and leaves it in the other shape.

use serde_json::{Map, Value};

use crate::{
    table::Resource,
    view::{View, ViewMut},
};

mod autoscaling;

/// Brings an object of `resource` from any of its versions (as its `apiVersion` says) to the one it is
/// stored in.
pub fn to_storage(resource: &Resource, object: &mut Value) {
    let version = object.str_at("apiVersion").rsplit('/').next().unwrap_or_default().to_owned();
    match (resource.group, resource.kind, version.as_str()) {
        ("events.k8s.io", "Event", _) => event_to_core(object),
        ("autoscaling", "HorizontalPodAutoscaler", "v1") => autoscaling::v1_to_v2(object),
        ("resource.k8s.io", _, "v1beta1") => devices_from_beta(object),
        _ => {}
    }
    let group = resource.stored_as.map_or(resource.group, |(group, _)| group);
    object.set("apiVersion", api_version(group, resource.storage_version()));
}

/// Brings a stored object of `resource` to the `version` that a client asks for.
pub fn from_storage(resource: &Resource, object: &mut Value, version: &str) {
    match (resource.group, resource.kind, version) {
        ("events.k8s.io", "Event", _) => event_from_core(object),
        ("autoscaling", "HorizontalPodAutoscaler", "v1") => autoscaling::v2_to_v1(object),
        ("resource.k8s.io", _, "v1beta1") => devices_to_beta(object),
        _ => {}
    }
    object.set("apiVersion", api_version(resource.group, version));
}

/// Whether stored objects of `resource` have to be changed in more than their `apiVersion` to be served in
/// `version`; the bytes can be served otherwise.
pub fn changes_shape(resource: &Resource, version: &str) -> bool {
    resource.stored_as.is_some()
        || matches!(
            (resource.group, resource.plural, version),
            ("autoscaling", "horizontalpodautoscalers", "v1")
                | (
                    "resource.k8s.io",
                    "resourceclaims" | "resourceclaimtemplates" | "resourceslices",
                    "v1beta1"
                )
        )
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Fields of an event: core's name, and the name in `events.k8s.io`.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn event_to_core(object: &mut Value) {
    for (core, new) in EVENT_FIELDS {
        rename(object, new, core);
    }
}

fn event_from_core(object: &mut Value) {
    for (core, new) in EVENT_FIELDS {
        rename(object, core, new);
    }
}

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(map) = object.as_object_mut()
        && let Some(value) = map.remove(from)
    {
        map.insert(to.to_owned(), value);
    }
}

/// What `v1beta1` has beside a device request's name, and later versions in `exactly`.
const EXACTLY: &[&str] =
    &["deviceClassName", "selectors", "allocationMode", "count", "adminAccess", "tolerations", "capacity"];

fn devices_from_beta(object: &mut Value) {
    for request in requests(object) {
        let mut exactly = take(request, |field| EXACTLY.contains(&field));
        // Protobuf writes fields that were never set, too; a request with alternatives has none of these.
        if !exactly.values().all(is_unset) {
            exactly.retain(|_, value| !value.is_null());
            request.set("exactly", exactly);
        }
    }
    for device in object.items_mut("spec.devices") {
        if let Some(Value::Object(basic)) = device.remove("basic")
            && let Some(map) = device.as_object_mut()
        {
            map.extend(basic);
        }
    }
}

fn devices_to_beta(object: &mut Value) {
    for request in requests(object) {
        if let Some(Value::Object(exactly)) = request.remove("exactly")
            && let Some(map) = request.as_object_mut()
        {
            map.extend(exactly);
        }
    }
    for device in object.items_mut("spec.devices") {
        let basic = take(device, |field| field != "name");
        device.set("basic", basic);
    }
}

fn is_unset(value: &Value) -> bool {
    value.is_null() || value == "" || value == 0
}

/// The device requests of a claim, or of the claim in a template.
fn requests(object: &mut Value) -> &mut [Value] {
    let path = if object.has("spec.spec") { "spec.spec.devices.requests" } else { "spec.devices.requests" };
    // A slice has devices of its own at the first half of that path.
    if object.at("spec.devices").is_array() { &mut [] } else { object.items_mut(path) }
}

/// Takes the fields that `wanted` picks out of `object`.
fn take(object: &mut Value, wanted: impl Fn(&str) -> bool) -> Map<String, Value> {
    let Some(map) = object.as_object_mut() else { return Map::new() };
    let names: Vec<String> = map.keys().filter(|k| wanted(k)).cloned().collect();
    names.into_iter().filter_map(|name| map.remove(&name).map(|value| (name, value))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::find;

    #[track_caller]
    fn round_trip(group: &str, plural: &str, version: &str, object: Value, stored: Value) {
        let resource = find(group, plural).expect("a built-in resource");
        assert!(changes_shape(resource, version));
        let mut o = object.clone();
        to_storage(resource, &mut o);
        assert_eq!(o, stored);
        from_storage(resource, &mut o, version);
        assert_eq!(o, object);
    }

    #[test]
    fn events() {
        round_trip(
            "events.k8s.io",
            "events",
            "v1",
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"kind": "Pod"}, "reportingController": "c"}),
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"kind": "Pod"}, "reportingComponent": "c"}),
        );
    }

    #[test]
    fn devices() {
        round_trip(
            "resource.k8s.io",
            "resourceclaims",
            "v1beta1",
            json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": {"requests": [{"name": "a", "deviceClassName": "c", "count": 1}]}}}),
            json!({"apiVersion": "resource.k8s.io/v1", "spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "c", "count": 1}}]}}}),
        );
        // As protobuf brings it.
        let alternatives = json!([{"name": "b", "deviceClassName": "c"}]);
        let mut unset = json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": {"requests": [
            {"name": "a", "deviceClassName": "", "allocationMode": "", "count": 0, "firstAvailable": alternatives},
        ]}}});
        to_storage(find("resource.k8s.io", "resourceclaims").expect("a built-in resource"), &mut unset);
        let stored = json!([{"name": "a", "firstAvailable": alternatives}]);
        assert_eq!(unset["spec"]["devices"]["requests"], stored);
        round_trip(
            "resource.k8s.io",
            "resourceslices",
            "v1beta1",
            json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": [{"name": "a", "basic": {"attributes": {}}}]}}),
            json!({"apiVersion": "resource.k8s.io/v1", "spec": {"devices": [{"name": "a", "attributes": {}}]}}),
        );
    }
}
