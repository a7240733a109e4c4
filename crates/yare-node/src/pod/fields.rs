//! The downward API: what a pod may learn about itself, for environment variables and volumes.
//!
//! In: a pod view, the node's addresses and allocatable resources. Out: text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use yare_schema::goprint::quote;

use crate::quantity;
use crate::view::{Pod, ResourceFieldRef};

/// What the downward API knows beyond the pod object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) host_ips: Vec<String>,
    pub(crate) pod_ips: Vec<String>,
    /// The node's allocatable `cpu`, `memory`, …: a limit that neither container nor pod sets is the node's.
    pub(crate) allocatable: BTreeMap<String, String>,
}

/// The value of `fieldRef.fieldPath`.
pub(crate) fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, String> {
    if let Some((base, key)) = subscript(path) {
        return match base {
            "metadata.annotations" => Ok(pod.metadata.annotations.get(key).cloned().unwrap_or_default()),
            "metadata.labels" => Ok(pod.metadata.labels.get(key).cloned().unwrap_or_default()),
            _ => Err(format!("fieldPath {path:?} does not support subscript")),
        };
    }
    Ok(match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "metadata.labels" => format_map(&pod.metadata.labels),
        "metadata.annotations" => format_map(&pod.metadata.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The value of a `resourceFieldRef`, asked by the container `own` (a volume names the container itself).
pub(crate) fn resource(
    pod: &Pod,
    facts: &Facts,
    reference: &ResourceFieldRef,
    own: &str,
) -> Result<String, String> {
    let name = if reference.container_name.is_empty() { own } else { &reference.container_name };
    let container = pod.container(name).ok_or_else(|| format!("container {name} not found"))?;
    let (side, resource) = reference
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", reference.resource))?;
    let known =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let amount = match side {
        _ if !known => return Err(format!("unsupported container resource : {}", reference.resource)),
        "limits" => {
            let set = container.resources.limits.get(resource).cloned();
            // Asked of by name, init containers have no limits but their own.
            let by_default =
                reference.container_name.is_empty() || pod.spec.containers.iter().any(|c| c.name == *name);
            match set {
                Some(set) if quantity::nanos(&set) != Some(0) => set,
                set if !by_default => set.unwrap_or_default(),
                set => default_limit(pod, facts, resource).or(set).unwrap_or_default(),
            }
        }
        "requests" => container.resources.requests.get(resource).cloned().unwrap_or_default(),
        _ => return Err(format!("unsupported container resource : {}", reference.resource)),
    };
    let nanos = quantity::nanos(&amount).unwrap_or(0);
    Ok(quantity::divided(nanos, reference.divisor.as_deref().unwrap_or("1")).to_string())
}

/// The limit of a container that sets none: its pod's, or all that the node has. Huge pages are never overcommitted,
/// so that no limit means none.
fn default_limit(pod: &Pod, facts: &Facts, resource: &str) -> Option<String> {
    if resource.starts_with("hugepages-") {
        return None;
    }
    let all = facts.allocatable.get(resource)?;
    let of_pod = pod.spec.resources.as_ref().filter(|_| matches!(resource, "cpu" | "memory"));
    let limit = of_pod.and_then(|r| r.limits.get(resource)).filter(|l| quantity::nanos(l) != Some(0));
    Some(limit.unwrap_or(all).clone())
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// One `key="value"` per line, sorted, quoted as Go's `%q`.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    for (key, value) in map {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = write!(out, "{key}={}", quote(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y\n"}, "annotations": {"k/x": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "250m"}, "requests": {"memory": "64Mi"}}}]}}))
        .unwrap();
        let facts = Facts {
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.42.0.2".into(), "fd00::2".into()],
            allocatable: BTreeMap::from([("memory".into(), "1Gi".into())]),
        };
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"x\\\"y\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['k/x']", "v"),
            ("metadata.annotations['none']", ""),
            ("status.podIPs", "10.42.0.2,fd00::2"),
            ("status.hostIP", "10.0.0.1"),
        ] {
            assert_eq!(field(&pod, &facts, path).as_deref(), Ok(want), "{path}");
        }
        assert!(field(&pod, &facts, "spec.containers").is_err());
        for (resource_name, divisor, want) in [
            ("limits.cpu", None, "1"),
            ("limits.cpu", Some("1m"), "250"),
            ("limits.memory", Some("1Mi"), "1024"),
            ("requests.memory", None, "67108864"),
            ("requests.cpu", Some("1m"), "0"),
        ] {
            let reference = ResourceFieldRef {
                resource: resource_name.into(),
                divisor: divisor.map(Into::into),
                ..Default::default()
            };
            assert_eq!(resource(&pod, &facts, &reference, "c").as_deref(), Ok(want), "{resource_name}");
        }
    }

    #[test]
    fn limits_by_default() {
        let pod = |resources: &serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"spec": {"resources": resources,
                "initContainers": [{"name": "init"}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "0"}}}]}}))
            .unwrap()
        };
        let all = [("cpu", "4"), ("memory", "1Gi"), ("ephemeral-storage", "9"), ("hugepages-2Mi", "4Mi")];
        let allocatable = all.iter().map(|(name, amount)| ((*name).into(), (*amount).into())).collect();
        let facts = Facts { allocatable, ..Facts::default() };
        let none = serde_json::json!(null);
        let some = serde_json::json!({"limits": {"cpu": "1250m", "memory": "64Mi", "hugepages-2Mi": "2Mi"}});
        let zero = serde_json::json!({"limits": {"memory": "0"}});
        for (resources, asked_of, own, name, want) in [
            (&none, "", "c", "limits.cpu", "4"),
            (&none, "", "c", "limits.ephemeral-storage", "9"),
            (&none, "", "c", "limits.hugepages-2Mi", "0"),
            (&none, "", "c", "requests.cpu", "0"),
            (&some, "", "c", "limits.cpu", "2"),
            (&some, "", "c", "limits.memory", "67108864"),
            (&some, "", "c", "limits.ephemeral-storage", "9"),
            (&some, "", "c", "limits.hugepages-2Mi", "0"),
            (&some, "", "init", "limits.memory", "67108864"),
            (&some, "c", "", "limits.memory", "67108864"),
            (&some, "init", "", "limits.memory", "0"),
            (&zero, "", "c", "limits.memory", "1073741824"),
        ] {
            let reference = ResourceFieldRef {
                container_name: asked_of.into(),
                resource: name.into(),
                ..Default::default()
            };
            let got = resource(&pod(resources), &facts, &reference, own);
            assert_eq!(got.as_deref(), Ok(want), "{resources} {asked_of} {own} {name}");
        }
    }
}
