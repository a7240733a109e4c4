//! What an object counts for in a ResourceQuota, and which quotas it falls under
//! (`k8s.io/kubernetes/pkg/quota/v1/evaluator/core`). Admission and the quota controller agree because both
//! ask here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use yare_schema::quantity::{Format, Quantity};

use crate::view::{View, same};

mod devices;
mod pods;
#[cfg(test)]
mod tests;

pub use devices::{DeviceClasses, of_pod, pod_with_extended_resources};
pub use pods::{
    is_best_effort, pod_limits_of_spec, pod_requests_of_spec, pod_resources, pod_resources_of_spec,
};

/// Amounts by resource: `pods`, `requests.cpu`, `count/deployments.apps`.
pub type Usage = BTreeMap<String, Quantity>;

/// Core resources that quotas know by their plain name as well, and nothing more.
const PLAIN_COUNTS: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
/// Resources that pods are counted by, beside huge pages and extended resources.
const OF_PODS: [&str; 11] = [
    "count/pods",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "pods",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const OF_SERVICES: [&str; 4] = ["count/services", "services", "services.loadbalancers", "services.nodeports"];
const OF_CLAIMS: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
/// Resources that every container must ask for where a quota bounds them.
const MUST_ASK: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const IMPLICIT_DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

/// Resources that quotas never count: what is not stored, and events.
const IGNORED: [(&str, &str); 10] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("events.k8s.io", "events"),
];

fn whole(n: i64) -> Quantity {
    Quantity::from_scaled(n, 0, Format::DecimalSi)
}

fn amount(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

fn add(usage: &mut Usage, name: impl Into<String>, value: Quantity) {
    let name = name.into();
    let sum = usage.get(&name).map_or(value, |have| have.plus(value));
    usage.insert(name, sum);
}

/// The amounts of a `ResourceList`.
pub fn amounts(list: &Value) -> Usage {
    list.entries("").filter_map(|(k, v)| Some((k.to_owned(), amount(v)?))).collect()
}

/// The name by which a quota counts objects of any resource.
pub fn count_name(group: &str, plural: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("count/{plural}{dot}{group}")
}

/// Whether a container's resource is one that only some nodes have (`example.com/gpu`).
pub fn is_extended_resource(name: &str) -> bool {
    let is_native = !name.contains('/') || name.contains("kubernetes.io/");
    !is_native && !name.starts_with("requests.")
}

/// What a write does, as far as quotas care.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub plural: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// The object as it shall be.
    pub new: &'a Value,
    /// As it was; `None` for a new one.
    pub old: Option<&'a Value>,
}

impl Change<'_> {
    /// Whether the write can take more than was taken.
    pub fn is_counted(&self) -> bool {
        if IGNORED.contains(&(self.group, self.plural)) {
            return false;
        }
        match (self.group, self.plural, self.subresource) {
            ("", "pods", "") => self.old.is_none_or(|old| {
                // Its scope changes.
                pods::is_terminating(old) != pods::is_terminating(self.new)
            }),
            ("", "pods", "resize") => true,
            ("", "persistentvolumeclaims", "status") => self.old.is_some_and(|old| {
                let allocated = "status.allocatedResources.storage";
                !same(old.at(allocated), self.new.at(allocated))
                    || attributes_classes(old) != attributes_classes(self.new)
            }),
            ("", "services" | "persistentvolumeclaims", "") | ("resource.k8s.io", "resourceclaims", "") => {
                true
            }
            (_, _, "") => self.old.is_none(),
            _ => false,
        }
    }
}

/// Which of the names of a quota's resources the objects of a resource are counted by.
pub fn matching<'a>(group: &str, plural: &str, names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let count = count_name(group, plural);
    let is_ours = |name: &str| match (group, plural) {
        ("", "pods") => {
            OF_PODS.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || name
                    .strip_prefix("requests.")
                    .is_some_and(|of| is_extended_resource(of) || of.starts_with(IMPLICIT_DEVICE_CLASS))
        }
        ("", "services") => OF_SERVICES.contains(&name),
        ("", "persistentvolumeclaims") => {
            let by_class = name.split_once(BY_STORAGE_CLASS).map_or(name, |(_, of)| of);
            name == count || OF_CLAIMS.contains(&by_class)
        }
        ("resource.k8s.io", "resourceclaims") => name == count || devices::is_by_class(name),
        ("", plural) if PLAIN_COUNTS.contains(&plural) => name == count || name == plural,
        _ => name == count,
    };
    names.filter(|name| is_ours(name)).collect()
}

/// What the object counts for at a time.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Usage {
    let mut usage = Usage::from([(count_name(group, plural), whole(1))]);
    match (group, plural) {
        ("", "pods") if !has_ended(object, now) => pod(object, &mut usage),
        ("", "services") => service(object, &mut usage),
        ("", "persistentvolumeclaims") => claim(object, &mut usage),
        ("resource.k8s.io", "resourceclaims") => devices::of_claim(object, &mut usage),
        ("", plural) if PLAIN_COUNTS.contains(&plural) => {
            usage.insert(plural.to_owned(), whole(1));
        }
        _ => {}
    }
    usage
}

/// Whether the pod needs nothing any more: it is over, or should have been (its node is lost, say).
fn has_ended(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod.str_at("status.phase"), "Succeeded" | "Failed") {
        return true;
    }
    let deleted = pod.str_at("metadata.deletionTimestamp").parse::<Timestamp>();
    let grace = pod.int_opt("metadata.deletionGracePeriodSeconds").map(SignedDuration::from_secs);
    match (deleted, grace) {
        (Ok(deleted), Some(grace)) => deleted.checked_add(grace).is_ok_and(|end| now > end),
        _ => false,
    }
}

fn pod(pod: &Value, usage: &mut Usage) {
    usage.insert("pods".into(), whole(1));
    compute(&pod_resources(pod, "requests"), &pod_resources(pod, "limits"), usage);
}

/// Requests and limits under the names that quotas have for them.
fn compute(requests: &Usage, limits: &Usage, usage: &mut Usage) {
    for (resource, value) in requests {
        let is_native = matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || resource.starts_with("hugepages-");
        if is_native {
            usage.insert(resource.clone(), *value);
        }
        if is_native || is_extended_resource(resource) || resource.starts_with(IMPLICIT_DEVICE_CLASS) {
            usage.insert(format!("requests.{resource}"), *value);
        }
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(value) = limits.get(resource) {
            usage.insert(format!("limits.{resource}"), *value);
        }
    }
}

fn service(service: &Value, usage: &mut Usage) {
    let kind = service.str_at("spec.type");
    let count = |n: usize| whole(i64::try_from(n).unwrap_or(i64::MAX));
    let ports = service.items("spec.ports");
    let allocate = service.bool_opt("spec.allocateLoadBalancerNodePorts").unwrap_or(true);
    let node_ports = match kind {
        "NodePort" => count(ports.len()),
        "LoadBalancer" if allocate => count(ports.len()),
        "LoadBalancer" => count(ports.iter().filter(|p| p.int_at("nodePort") != 0).count()),
        _ => whole(0),
    };
    usage.insert("services".into(), whole(1));
    usage.insert("services.nodeports".into(), node_ports);
    usage.insert("services.loadbalancers".into(), whole(i64::from(kind == "LoadBalancer")));
}

fn claim(claim: &Value, usage: &mut Usage) {
    usage.insert("persistentvolumeclaims".into(), whole(1));
    let class = match claim.at("metadata.annotations").get("volume.beta.kubernetes.io/storage-class") {
        Some(Value::String(class)) => class.as_str(),
        _ => claim.str_at("spec.storageClassName"),
    };
    // Whole bytes; a volume that did not grow as far as was asked for still has what it has.
    let storage = amount(claim.at("spec.resources.requests.storage")).map(|asked| {
        let allocated = amount(claim.at("status.allocatedResources.storage"));
        allocated.filter(|a| *a > asked).unwrap_or(asked).round_up(0).0
    });
    if let Some(storage) = storage {
        usage.insert("requests.storage".into(), storage);
    }
    if !class.is_empty() {
        usage.insert(format!("{class}{BY_STORAGE_CLASS}persistentvolumeclaims"), whole(1));
        if let Some(storage) = storage {
            usage.insert(format!("{class}{BY_STORAGE_CLASS}requests.storage"), storage);
        }
    }
}

/// A quota's scopes, all as selectors.
pub fn scopes(quota: &Value) -> Vec<Value> {
    let plain = quota.strings("spec.scopes").into_iter();
    plain
        .map(|scope| serde_json::json!({ "scopeName": scope, "operator": "Exists" }))
        .chain(quota.items("spec.scopeSelector.matchExpressions").iter().cloned())
        .collect()
}

/// Whether the quota's scopes take the object in.
pub fn matches(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    scopes(quota).iter().all(|scope| in_scope(scope, group, plural, object))
}

/// Whether the object is in a scope. Scopes are about pods, and one about claims.
pub fn in_scope(scope: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let name = scope.str_at("scopeName");
    match (group, plural) {
        ("", "pods") => match name {
            "Terminating" => pods::is_terminating(object),
            "NotTerminating" => !pods::is_terminating(object),
            "BestEffort" => is_best_effort(object),
            "NotBestEffort" => !is_best_effort(object),
            "PriorityClass" => {
                let class = object.str_at("spec.priorityClassName");
                selects(scope, Some(class).filter(|c| !c.is_empty()))
            }
            "CrossNamespacePodAffinity" => pods::crosses_namespaces(object),
            _ => false,
        },
        ("", "persistentvolumeclaims") if name == "VolumeAttributesClass" => {
            let classes = attributes_classes(object);
            if classes.is_empty() {
                return selects(scope, None);
            }
            classes.into_iter().any(|class| selects(scope, Some(class)))
        }
        _ => false,
    }
}

fn selects(scope: &Value, value: Option<&str>) -> bool {
    let values = scope.strings("values");
    let named = value.is_some_and(|v| values.contains(&v));
    match scope.str_at("operator") {
        "In" => named,
        "NotIn" => !named,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// The attributes classes that a claim has, wants, and is on its way to.
fn attributes_classes(claim: &Value) -> BTreeSet<&str> {
    [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ]
    .into_iter()
    .map(|path| claim.str_at(path))
    .filter(|class| !class.is_empty())
    .collect()
}

/// Of the resources that bound a pod, those that containers must ask for and do not: resource and containers.
pub fn unspecified(bounded: &BTreeSet<&str>, pod: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut missing: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let whole = pod.at("spec.resources");
    if whole.is_set("requests") || whole.is_set("limits") {
        return missing;
    }
    for name in MUST_ASK.into_iter().filter(|name| bounded.contains(name)) {
        let (field, resource) = match name.split_once('.') {
            Some((field, resource)) => (field, resource),
            None => ("requests", name),
        };
        for path in ["spec.containers", "spec.initContainers"] {
            for container in pod.items(path) {
                if container.at("resources").at(field).get(resource).is_none() {
                    let containers = missing.entry(name.to_owned()).or_default();
                    containers.insert(container.str_at("name").to_owned());
                }
            }
        }
    }
    missing
}
