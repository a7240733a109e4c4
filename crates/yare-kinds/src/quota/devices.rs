//! What a ResourceClaim counts for: devices by their class, and what stands for the class in containers' requests.
//!
//! A class may name an extended resource, and every class is one by its own name. A quota of that resource is charged
//! for claims as well as for pods (KEP-5004), but not twice for a claim that was made for a pod's requests.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use super::{IMPLICIT_DEVICE_CLASS, Usage, add, usage, whole};
use crate::view::View;

const BY_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
const REQUESTS: &str = "requests.";
/// Devices that a request for all of them may come to.
const ALL_DEVICES: i64 = 32;

/// Marks a claim that the scheduler made for a pod's extended resources.
const MADE_FOR_POD: &str = "resource.kubernetes.io/extended-resource-claim";

pub(super) fn is_by_class(name: &str) -> bool {
    name.ends_with(BY_CLASS)
}

/// Devices by their class. Of alternatives the largest counts, for each class.
pub(super) fn of_claim(claim: &Value, usage: &mut Usage) {
    let wanted = |request: &Value| {
        let count = match request.str_at("allocationMode") {
            "ExactCount" => request.int_at("count"),
            "All" => ALL_DEVICES,
            _ => 0,
        };
        (format!("{}{BY_CLASS}", request.str_at("deviceClassName")), whole(count))
    };
    for request in claim.items("spec.devices.requests") {
        let mut most = Usage::new();
        let alternatives = request.items("firstAvailable");
        let exactly = request.has("exactly").then(|| request.at("exactly"));
        let requests = alternatives.iter().chain(exactly.filter(|_| alternatives.is_empty()));
        for (name, count) in requests.map(wanted) {
            if most.get(&name).is_none_or(|have| *have < count) {
                most.insert(name, count);
            }
        }
        for (name, count) in most {
            add(usage, name, count);
        }
    }
}

/// All device classes, each with the extended resource that it names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DeviceClasses(BTreeMap<String, Option<String>>);

impl DeviceClasses {
    /// The classes among DeviceClass objects.
    pub fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        let class = |object: Value| {
            let resource = object.str_opt("spec.extendedResourceName").filter(|name| !name.is_empty());
            (object.str_at("metadata.name").to_owned(), resource.map(str::to_owned))
        };
        DeviceClasses(objects.into_iter().map(class).collect())
    }

    /// Whether claims are counted by a name of a quota's resource because it stands for a class.
    fn stand_behind(&self, name: &str) -> bool {
        let Some(resource) = name.strip_prefix(REQUESTS) else { return false };
        match resource.strip_prefix(IMPLICIT_DEVICE_CLASS) {
            Some(class) => self.0.contains_key(class),
            None => self.0.values().any(|named| named.as_deref() == Some(resource)),
        }
    }

    /// Those names of a quota's resources by which claims are counted beyond [`super::matching`].
    pub fn matching<'a>(&self, names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
        names.filter(|name| self.stand_behind(name)).collect()
    }

    /// Adds to what a claim counts for what it counts for under its classes' extended resources, less what a pod
    /// (see [`of_pod`]) is charged for already.
    pub fn extend(&self, usage: &mut Usage, pod: &Usage) {
        let mut extended = Usage::new();
        for (name, count) in usage.iter() {
            let Some(class) = name.strip_suffix(BY_CLASS) else { continue };
            let Some(resource) = self.0.get(class) else { continue };
            extended.insert(format!("{REQUESTS}{IMPLICIT_DEVICE_CLASS}{class}"), *count);
            if let Some(resource) = resource {
                add(&mut extended, format!("{REQUESTS}{resource}"), *count);
            }
        }
        for (name, mut count) in extended {
            if let Some(charged) = pod.get(&name) {
                count -= *charged;
            }
            if count.signum() > 0 {
                usage.insert(name, count);
            }
        }
    }
}

fn controller(claim: &Value) -> Option<&Value> {
    claim.items("metadata.ownerReferences").iter().find(|owner| owner.bool_opt("controller") == Some(true))
}

/// The pod for whose extended resources the scheduler made the claim: its name and uid.
pub fn pod_with_extended_resources(claim: &Value) -> Option<(&str, &str)> {
    let mark = claim.at("metadata.annotations").get(MADE_FOR_POD).and_then(Value::as_str);
    let owner = controller(claim).filter(|_| mark == Some("true"))?;
    let is_pod = owner.str_at("kind") == "Pod" && owner.str_at("apiVersion") == "v1";
    is_pod.then(|| (owner.str_at("name"), owner.str_at("uid")))
}

/// What the pod that a claim was made for is charged for; nothing, unless the two know each other. `claims`: those of
/// the namespace, the first of which is the pod's as long as the pod does not say.
pub fn of_pod<'c>(
    claim: &Value,
    pod: &Value,
    claims: impl Iterator<Item = &'c Value>,
    now: Timestamp,
) -> Usage {
    let Some((_, uid)) = pod_with_extended_resources(claim) else { return Usage::new() };
    let name = claim.str_at("metadata.name");
    let age = |claim: &Value| {
        let created = claim.str_at("metadata.creationTimestamp").parse::<Timestamp>();
        // What is being created comes after all that there is.
        (created.unwrap_or(Timestamp::MAX), claim.str_at("metadata.name").to_owned())
    };
    let told = pod.at("status.extendedResourceClaimStatus");
    let is_its = match told.str_opt("resourceClaimName") {
        Some(told) => told == name,
        None => {
            let of_pod = |other: &&Value| pod_with_extended_resources(other).is_some_and(|(_, of)| of == uid);
            !claims.filter(of_pod).any(|other| age(other) < age(claim))
        }
    };
    if !is_its || pod.str_at("metadata.uid") != uid {
        return Usage::new();
    }
    usage("", "pods", pod, now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn classes() -> DeviceClasses {
        DeviceClasses::new([
            json!({"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu"}}),
            json!({"metadata": {"name": "nic"}, "spec": {}}),
        ])
    }

    fn claim(class: &str, count: i64, owner: Option<&str>) -> Value {
        let mut claim = json!({
            "metadata": {"name": "c", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"devices": {"requests": [
                {"exactly": {"deviceClassName": class, "allocationMode": "ExactCount", "count": count}}]}},
        });
        if let Some(uid) = owner {
            claim["metadata"]["annotations"] = json!({MADE_FOR_POD: "true"});
            claim["metadata"]["ownerReferences"] = json!([
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        }
        claim
    }

    fn shown(claim: &Value, pod: &Usage) -> Vec<String> {
        let mut usage = usage("resource.k8s.io", "resourceclaims", claim, now());
        classes().extend(&mut usage, pod);
        usage.iter().skip(1).map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn claims_count_under_what_stands_for_their_classes() {
        let none = Usage::new();
        for (class, want) in [
            (
                "gpu",
                &[
                    "gpu.deviceclass.resource.k8s.io/devices=2",
                    "requests.deviceclass.resource.kubernetes.io/gpu=2",
                    "requests.example.com/gpu=2",
                ][..],
            ),
            (
                "nic",
                &[
                    "nic.deviceclass.resource.k8s.io/devices=2",
                    "requests.deviceclass.resource.kubernetes.io/nic=2",
                ],
            ),
            ("gone", &["gone.deviceclass.resource.k8s.io/devices=2"]),
        ] {
            assert_eq!(shown(&claim(class, 2, None), &none), want, "{class}");
        }
        let names = [
            "requests.example.com/gpu",
            "requests.example.com/other",
            "requests.deviceclass.resource.kubernetes.io/nic",
            "requests.deviceclass.resource.kubernetes.io/gone",
            "example.com/gpu",
            "requests.cpu",
        ];
        let matching: Vec<&str> = classes().matching(names.into_iter()).into_iter().collect();
        assert_eq!(matching, ["requests.deviceclass.resource.kubernetes.io/nic", "requests.example.com/gpu"]);
    }

    #[test]
    fn what_a_pod_is_charged_for_its_claim_is_not() {
        let pod = |status: Value| {
            json!({
                "metadata": {"name": "p", "uid": "u"},
                "spec": {"containers": [{"resources": {"requests": {"example.com/gpu": "2"}}}]},
                "status": status,
            })
        };
        let told = |name: &str| json!({"extendedResourceClaimStatus": {"resourceClaimName": name}});
        let mut later = claim("gpu", 1, Some("u"));
        later["metadata"]["name"] = json!("later");
        later["metadata"]["creationTimestamp"] = json!("2025-01-01T00:00:01Z");
        let mut first = later.clone();
        first["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
        let by_class = "gpu.deviceclass.resource.k8s.io/devices=3";
        let implicit = "requests.deviceclass.resource.kubernetes.io/gpu=3";
        for (what, owner, pod, others, rest) in [
            ("it says so", Some("u"), pod(told("c")), vec![], 1),
            ("it says nothing yet", Some("u"), pod(json!({})), vec![later], 1),
            ("another came first", Some("u"), pod(json!({})), vec![first], 3),
            ("it says otherwise", Some("u"), pod(told("other")), vec![], 3),
            ("another pod of that name", Some("before"), pod(told("c")), vec![], 3),
            ("a user's own claim", None, pod(told("c")), vec![], 3),
            ("the pod is over", Some("u"), pod(json!({"phase": "Failed"})), vec![], 3),
        ] {
            let claim = claim("gpu", 3, owner);
            let charged = of_pod(&claim, &pod, others.iter().chain([&claim]), now());
            let want = [by_class.to_owned(), implicit.to_owned(), format!("requests.example.com/gpu={rest}")];
            assert_eq!(shown(&claim, &charged), want, "{what}");
        }
    }
}
