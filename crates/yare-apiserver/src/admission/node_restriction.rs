//! NodeRestriction: a kubelet changes only its own node, its own pods and its own lease, and labels itself
//! only with what nodes may say about themselves.

use serde_json::Value;
use yare_kinds::view::View;

use super::{Attributes, Operation};
use crate::status::ApiResult;

const RESTRICTED: [&str; 2] = ["node-restriction.kubernetes.io", "kubernetes.io"];
/// Labels under `kubernetes.io` that a kubelet may set on its node.
const ALLOWED_LABELS: [&str; 15] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "node.kubernetes.io/windows-build",
    "kubernetes.io/cluster-service",
];
const ALLOWED_SUFFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Refuses what a kubelet must not do. Other callers pass.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(node) = attributes.call.user.node_name() else { return Ok(()) };
    let stored = &attributes.served.stored;
    match (&*stored.group, &*stored.plural) {
        ("", "pods") => pods(attributes, node, object, old),
        ("", "nodes") => nodes(attributes, node, object, old),
        ("coordination.k8s.io", "leases") if attributes.namespace == "kube-node-lease" => {
            let name = object.map_or(attributes.name, |o| o.str_at("metadata.name"));
            if name == node {
                Ok(())
            } else {
                Err(attributes
                    .forbidden("can only access node lease with the same name as the requesting node"))
            }
        }
        ("storage.k8s.io", "csinodes") => {
            let name = object.map_or(attributes.name, |o| o.str_at("metadata.name"));
            if name == node {
                Ok(())
            } else {
                Err(attributes.forbidden("can only access CSINode with the same name as the requesting node"))
            }
        }
        _ => Ok(()),
    }
}

fn pods(
    attributes: &Attributes<'_>,
    node: &str,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, "") => {
            let Some(pod) = object else { return Ok(()) };
            if pod.at("metadata.annotations").get("kubernetes.io/config.mirror").is_none() {
                return Err(attributes.forbidden(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods")));
            }
            if pod.str_at("spec.nodeName") != node {
                return Err(attributes.forbidden(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                )));
            }
            if pod.is_set("spec.serviceAccountName") {
                return Err(attributes.forbidden(format!(
                    "node {node:?} can not create pods that reference a service account"
                )));
            }
            Ok(())
        }
        (Operation::Update, "status") => {
            if old.is_some_and(|p| p.str_at("spec.nodeName") != node) {
                return Err(attributes.forbidden(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                )));
            }
            if let (Some(new), Some(old)) = (object, old)
                && new.at("metadata.labels") != old.at("metadata.labels")
            {
                return Err(
                    attributes.forbidden(format!("node {node:?} cannot update labels through pod status"))
                );
            }
            Ok(())
        }
        (Operation::Delete, "") | (Operation::Create, "eviction") => {
            if old.is_some_and(|p| p.str_at("spec.nodeName") != node) {
                return Err(attributes.forbidden(format!(
                    "node {node:?} can only delete pods with spec.nodeName set to itself"
                )));
            }
            Ok(())
        }
        _ => Err(attributes.forbidden(format!("unexpected operation of node {node:?} on pods"))),
    }
}

fn nodes(
    attributes: &Attributes<'_>,
    node: &str,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    let name = object.map_or(attributes.name, |o| o.str_at("metadata.name"));
    if name != node {
        return Err(attributes.forbidden(format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let Some(new) = object else { return Ok(()) };
    let none = Value::Null;
    let before = old.unwrap_or(&none);
    if old.is_some() && new.at("spec.taints") != before.at("spec.taints") {
        return Err(attributes.forbidden(format!("node {node:?} is not allowed to modify taints")));
    }
    let mut changed: Vec<&str> = new
        .entries("metadata.labels")
        .filter(|(k, v)| before.at("metadata.labels").get(*k) != Some(*v))
        .map(|(k, _)| k)
        .chain(
            before
                .entries("metadata.labels")
                .filter(|(k, _)| new.at("metadata.labels").get(*k).is_none())
                .map(|(k, _)| k),
        )
        .filter(|k| !may_label(k))
        .collect();
    changed.sort_unstable();
    if !changed.is_empty() {
        return Err(attributes.forbidden(format!("is not allowed to modify labels: {}", changed.join(", "))));
    }
    Ok(())
}

fn may_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if within(RESTRICTED[0]) {
        return false;
    }
    let k8s = within(RESTRICTED[1]) || within("k8s.io");
    !k8s || ALLOWED_LABELS.contains(&key) || ALLOWED_SUFFIXES.iter().any(|s| within(s))
}
