//! `/metrics/resources`: what each pod asks for, as upstream's scheduler tells it (KEP-1916).

use std::{mem, ops::Bound};

use serde_json::Value;
use yare_kinds::{
    quota::{Usage, pod_limits_of_spec, pod_requests_of_spec},
    view::View,
};
use yare_metrics::text::Page;

use crate::core::Core;

/// What a pod holds of each resource, in one sense.
type Of = fn(&Value) -> Usage;

const FAMILIES: [(&str, &str, Of); 2] = [
    (
        "kube_pod_resource_limit",
        "[STABLE] Resources limit for workloads on the cluster, broken down by pod. This shows the resource usage the scheduler and kubelet expect per pod for resources along with the unit for the resource if any.",
        pod_limits_of_spec,
    ),
    (
        "kube_pod_resource_request",
        "[STABLE] Resources requested by workloads on the cluster, broken down by pod. This shows the resource usage the scheduler and kubelet expect per pod for resources along with the unit for the resource if any.",
        pod_requests_of_spec,
    ),
];

/// The page, made of the pods that there are. Pods that have ended hold nothing.
pub fn render(core: &Core) -> String {
    let snapshot = core.store().snapshot("pods");
    // A page is one family after the other, and each pod is decoded once for all of them.
    let mut pages = FAMILIES.map(|_| Page::new());
    let mut begun = FAMILIES.map(|_| false);
    for object in snapshot.range(Bound::Unbounded, "") {
        let Ok(pod) = serde_json::from_slice(&object.bytes) else { continue };
        if has_ended(&pod) {
            continue;
        }
        for (((family, help, of), page), begun) in FAMILIES.iter().zip(&mut pages).zip(&mut begun) {
            for (resource, amount) in of(&pod).into_iter().filter(|(_, amount)| !amount.is_zero()) {
                if !mem::replace(begun, true) {
                    page.family(family, "gauge", help);
                }
                sample(page, family, &pod, &resource, amount.as_f64());
            }
        }
    }
    pages.map(Page::finish).concat()
}

fn sample(page: &mut Page, family: &str, pod: &Value, resource: &str, amount: f64) {
    let priority = pod.int_opt("spec.priority").map(|p| p.to_string()).unwrap_or_default();
    let labels = [
        ("namespace", pod.str_at("metadata.namespace")),
        ("node", pod.str_at("spec.nodeName")),
        ("pod", pod.str_at("metadata.name")),
        ("priority", &priority),
        ("resource", resource),
        ("scheduler", pod.str_at("spec.schedulerName")),
        ("unit", unit(resource)),
    ];
    page.sample(family, &labels, amount);
}

/// What was never on a node cannot have ended there.
fn has_ended(pod: &Value) -> bool {
    !pod.str_at("spec.nodeName").is_empty() && matches!(pod.str_at("status.phase"), "Succeeded" | "Failed")
}

fn unit(resource: &str) -> &'static str {
    match resource {
        "cpu" => "cores",
        "memory" | "storage" | "ephemeral-storage" => "bytes",
        other if other.starts_with("hugepages-") => "bytes",
        other if other.starts_with("attachable-volumes-") => "integer",
        _ => "",
    }
}
