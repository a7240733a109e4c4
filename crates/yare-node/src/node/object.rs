//! The Node object: as it is registered, and the status that is kept up.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use yare_runtime::{ImageStatus, RuntimeStatus};
use yare_schema::release::architecture;

use crate::kubelet::Kubelet;
use crate::node::capacity;
use crate::view::{NodeCondition, Taint};

/// Names of one image that are listed.
const NAMES_MAX: usize = 5;

/// Features that a node declares where their gates are on (KEP-5328), sorted.
const DECLARED: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    RESTART_ALL,
];
/// The one that pods can need from their start.
pub(crate) const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";

/// What the scheduler goes by to keep pods off machines that cannot run them; put back when somebody removes it.
pub(crate) fn machine_labels() -> [(&'static str, &'static str); 2] {
    [("kubernetes.io/os", "linux"), ("kubernetes.io/arch", architecture())]
}

/// Labels every node has, and those it was given.
pub(crate) fn labels(node_name: &str, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), node_name.to_owned()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), architecture().to_owned()),
    ]);
    labels.extend(machine_labels().map(|(name, value)| (name.to_owned(), value.to_owned())));
    labels.extend(given.clone());
    labels
}

/// The object to create. It is not ready, so it says so with a taint that the node controller takes away.
pub(crate) fn registration(kubelet: &Kubelet, labels: &BTreeMap<String, String>, status: Value) -> Value {
    let mut all = vec![Taint {
        key: "node.kubernetes.io/not-ready".into(),
        value: String::new(),
        effect: "NoSchedule".into(),
    }];
    let settings = kubelet.config.settings();
    all.extend(settings.register_with_taints.iter().cloned());
    let mut spec = json!({ "taints": all });
    if !settings.provider_id.is_empty() {
        spec["providerID"] = json!(settings.provider_id);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": kubelet.node_name,
            "labels": labels,
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        },
        "spec": spec,
        "status": status,
    })
}

/// The whole status.
pub(crate) fn status(
    kubelet: &Kubelet,
    port: u16,
    runtime_version: &str,
    boot_id: &str,
    conditions: &[NodeCondition],
    images: Value,
) -> Value {
    let mut addresses: Vec<Value> =
        kubelet.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": kubelet.node_name}));
    let volumes_in_use = kubelet.volumes.in_use().borrow().clone();
    let (mut capacity, mut allocatable) = (kubelet.capacity.capacity(), kubelet.resources.allocatable());
    for (resource, (all, healthy)) in kubelet.managers.devices.counts() {
        capacity.insert(resource.clone(), all.to_string());
        allocatable.insert(resource, healthy.to_string());
    }
    let gates = kubelet.config.gates();
    let declared: Vec<&str> = DECLARED
        .into_iter()
        .filter(|name| gates.is_on("NodeDeclaredFeatures") && gates.is_on(name))
        .collect();
    let mut status = json!({
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": conditions,
        "addresses": addresses,
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        "nodeInfo": capacity::node_info(runtime_version, boot_id),
        "images": images,
        "volumesInUse": volumes_in_use,
    });
    if !declared.is_empty() {
        status["declaredFeatures"] = json!(declared);
    }
    status
}

/// `status.runtimeHandlers` and `status.features`: what the runtime can do. One that does not tell says nothing.
pub(crate) fn abilities(runtime: &RuntimeStatus, status: &mut Value) {
    let handlers: Vec<Value> = runtime
        .handlers
        .iter()
        .map(|h| {
            json!({ "name": h.name, "features": {
                "recursiveReadOnlyMounts": h.recursive_readonly_mounts,
                "userNamespaces": h.user_namespaces,
            }})
        })
        .collect();
    if !handlers.is_empty() {
        status["runtimeHandlers"] = Value::Array(handlers);
        status["features"] = json!({ "supplementalGroupsPolicy": runtime.supplemental_groups_policy });
    }
}

/// `status.images`, the largest first; `most` of them, all where it is negative.
pub(crate) fn images(mut list: Vec<ImageStatus>, most: i32) -> Value {
    list.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    let images: Vec<Value> = list
        .into_iter()
        .map(|image| {
            let names: Vec<String> =
                image.repo_digests.into_iter().chain(image.repo_tags).take(NAMES_MAX).collect();
            (names, image.size_bytes)
        })
        .filter(|(names, _)| !names.is_empty())
        .take(usize::try_from(most).unwrap_or(usize::MAX))
        .map(|(names, size)| json!({ "names": names, "sizeBytes": size }))
        .collect();
    Value::Array(images)
}
