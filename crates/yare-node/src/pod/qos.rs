//! Quality of service: class, cgroup parent, OOM score, and whether a pod is critical.
//!
//! In: a pod. Constants and rules are upstream's (`pkg/kubelet/qos`).

use super::totals;
use crate::quantity;
use crate::view::{Container, Pod, ResourceRequirements};

const OOM_GUARANTEED: i32 = -997;
const OOM_BEST_EFFORT: i32 = 1000;
/// Priority from which a pod is critical for the system.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
const SYSTEM_NODE_CRITICAL: &str = "system-node-critical";

/// `Guaranteed`, `Burstable` or `BestEffort`: as the API server computed it, or computed here.
pub(crate) fn class(pod: &Pod) -> &'static str {
    match pod.status.qos_class.as_str() {
        "Guaranteed" => return "Guaranteed",
        "Burstable" => return "Burstable",
        "BestEffort" => return "BestEffort",
        _ => {}
    }
    let positive = |text: &String| quantity::nanos(text).is_some_and(|n| n > 0);
    let compute = |set: &ResourceRequirements| -> (bool, bool) {
        let any = ["cpu", "memory"]
            .iter()
            .any(|r| set.requests.get(*r).is_some_and(positive) || set.limits.get(*r).is_some_and(positive));
        let guaranteed = ["cpu", "memory"].iter().all(|r| {
            let limit = set.limits.get(*r).filter(|t| positive(t));
            let request = set.requests.get(*r).or(limit);
            matches!((limit, request), (Some(l), Some(q)) if quantity::nanos(l) == quantity::nanos(q))
        });
        (any, guaranteed)
    };
    let sets: Vec<(bool, bool)> = match &pod.spec.resources {
        Some(level) if !level.is_empty() => vec![compute(level)],
        _ => pod
            .spec
            .init_containers
            .iter()
            .chain(&pod.spec.containers)
            .map(|c| compute(&c.resources))
            .collect(),
    };
    if !sets.iter().any(|(any, _)| *any) {
        "BestEffort"
    } else if sets.iter().all(|(_, guaranteed)| *guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Cgroups of all pods of a class together, the inner ones first.
pub const CGROUPS: [&str; 3] = ["kubepods/burstable", "kubepods/besteffort", "kubepods"];

/// The pod's cgroup below the group of all pods, relative to the hierarchy's root.
pub(crate) fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let uid = &pod.metadata.uid;
    match class(pod) {
        "Guaranteed" => format!("{root}/pod{uid}"),
        "Burstable" => format!("{root}/burstable/pod{uid}"),
        _ => format!("{root}/besteffort/pod{uid}"),
    }
}

/// Whether the pod is critical to the node or the cluster, or is the node's own.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let annotation = |name: &str| pod.metadata.annotations.get(name);
    let is_static = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let is_mirror = annotation("kubernetes.io/config.mirror").is_some();
    is_static || is_mirror || pod.spec.priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY)
}

/// How ready the kernel is to kill a container for want of memory.
pub(super) fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> i32 {
    if pod.spec.priority_class_name == SYSTEM_NODE_CRITICAL {
        return OOM_GUARANTEED;
    }
    match class(pod) {
        "Guaranteed" => return OOM_GUARANTEED,
        "BestEffort" => return OOM_BEST_EFFORT,
        _ => {}
    }
    let request_of = |c: &Container| {
        let set = &c.resources;
        set.requests.get("memory").or(set.limits.get("memory")).map_or(0, |t| quantity::value(t))
    };
    // What the pod asks for beyond its containers' own requests is theirs in equal parts (KEP-2837).
    let level = pod.spec.resources.as_ref().and_then(|r| r.requests.get("memory"));
    let spare = level.map_or(0, |whole| {
        let asked = totals::peak(pod, |r| &r.requests).get("memory").copied().unwrap_or(0) / 1_000_000_000;
        let spare = i128::from(quantity::value(whole)) - asked;
        let parts = pod.spec.containers.len() + pod.spec.init_containers.len();
        let parts = i128::try_from(parts).unwrap_or(1).max(1);
        i64::try_from(spare.max(0) / parts).unwrap_or(0)
    });
    let capacity = i128::from(memory_capacity_bytes).max(1);
    let score = |request: i64| {
        let asked = i128::from(request.saturating_add(spare));
        1000 - i32::try_from(asked * 1000 / capacity).unwrap_or(1000)
    };
    let mut adjust = score(request_of(container));
    if pod.is_sidecar(&container.name) {
        // A sidecar must not be killed before the containers it serves.
        let smallest = pod.spec.containers.iter().map(request_of).min().unwrap_or(0);
        adjust = adjust.min(score(smallest));
    }
    adjust.clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_with(containers: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}}),
        )
        .unwrap()
    }

    #[test]
    fn classes() {
        for (containers, want) in [
            (serde_json::json!([{"name": "a"}]), "BestEffort"),
            (serde_json::json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (
                serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]),
                "Guaranteed",
            ),
            (
                serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}}]),
                "Burstable",
            ),
            (
                serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {"name": "b"}]),
                "Burstable",
            ),
        ] {
            assert_eq!(class(&pod_with(containers.clone())), want, "{containers}");
        }
    }

    #[test]
    fn the_nodes_own_pods_are_critical() {
        for (annotations, priority, want) in [
            (serde_json::json!({}), 0, false),
            (serde_json::json!({"kubernetes.io/config.source": "api"}), 0, false),
            (serde_json::json!({"kubernetes.io/config.source": "file"}), 0, true),
            (serde_json::json!({"kubernetes.io/config.mirror": "x"}), 0, true),
            (serde_json::json!({}), 2_000_000_000, true),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"annotations": annotations}, "spec": {"priority": priority}}))
            .unwrap();
            assert_eq!(is_critical(&pod), want);
        }
    }
}
