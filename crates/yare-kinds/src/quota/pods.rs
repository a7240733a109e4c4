//! What pods ask for: their containers together, or the largest initialization step, plus overhead
//! (`k8s.io/component-helpers/resource`).

use serde_json::Value;

use super::{Usage, add, amount, amounts};
use crate::view::View;

/// What a pod holds of each resource (`field`: `requests` or `limits`). A pod that is being resized holds the
/// larger of what it wants and what it has.
pub fn pod_resources(pod: &Value, field: &str) -> Usage {
    total(pod, field, true, true)
}

/// What a pod's specification asks for, without overhead.
pub fn pod_resources_of_spec(pod: &Value, field: &str) -> Usage {
    total(pod, field, false, false)
}

/// What a pod's specification requests, with overhead.
pub fn pod_requests_of_spec(pod: &Value) -> Usage {
    total(pod, "requests", false, true)
}

/// What a pod's specification is limited to, with overhead.
pub fn pod_limits_of_spec(pod: &Value) -> Usage {
    total(pod, "limits", false, true)
}

fn total(pod: &Value, field: &str, with_status: bool, with_overhead: bool) -> Usage {
    let infeasible = pod
        .items("status.conditions")
        .iter()
        .any(|c| c.str_at("type") == "PodResizePending" && c.str_at("reason") == "Infeasible");
    // What is wanted, what is in force, and what the node has set aside.
    let effective = |wanted: &Value, status: &Value, allocated: &Value| -> Usage {
        let in_force = status.at(field);
        let mut out = amounts(in_force);
        if field == "requests" {
            raise(&mut out, amounts(allocated));
        }
        if !infeasible {
            raise(&mut out, amounts(wanted));
        }
        out
    };
    let of = |container: &Value, statuses: &str, settled: bool| -> Usage {
        let wanted = container.at("resources").at(field);
        if !with_status || settled {
            return amounts(wanted);
        }
        let name = container.str_at("name");
        let status = pod.items(statuses).iter().find(|s| s.str_at("name") == name && s.has("resources"));
        match status {
            Some(status) => effective(wanted, status.at("resources"), status.at("allocatedResources")),
            None => amounts(wanted),
        }
    };
    let mut total = Usage::new();
    for container in pod.items("spec.containers") {
        for (k, v) in of(container, "status.containerStatuses", false) {
            add(&mut total, k, v);
        }
    }
    let mut peak = Usage::new();
    let mut sidecars = Usage::new();
    for container in pod.items("spec.initContainers") {
        let is_sidecar = container.str_at("restartPolicy") == "Always";
        let mut step = of(container, "status.initContainerStatuses", !is_sidecar);
        if is_sidecar {
            for (k, v) in &step {
                add(&mut total, k.clone(), *v);
                add(&mut sidecars, k.clone(), *v);
            }
            step = sidecars.clone();
        } else {
            for (k, v) in &sidecars {
                add(&mut step, k.clone(), *v);
            }
        }
        raise(&mut peak, step);
    }
    raise(&mut total, peak);
    // Resources of the pod as a whole take the place of its containers'.
    let whole = pod.at("spec.resources").at(field);
    let in_effect = (with_status && pod.has("status.resources"))
        .then(|| effective(whole, pod.at("status.resources"), pod.at("status.allocatedResources")));
    for (name, wanted) in whole.as_object().into_iter().flatten() {
        let is_pod_level = matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
        let value = in_effect.as_ref().and_then(|e| e.get(name)).copied().or_else(|| amount(wanted));
        if let Some(value) = value.filter(|_| is_pod_level) {
            total.insert(name.clone(), value);
        }
    }
    if with_overhead {
        for (k, v) in amounts(pod.at("spec.overhead")) {
            let limited = total.get(&k).is_some_and(|have| !have.is_zero());
            if field == "requests" || limited {
                add(&mut total, k, v);
            }
        }
    }
    total
}

fn raise(total: &mut Usage, other: Usage) {
    for (k, v) in other {
        if total.get(&k).is_none_or(|have| *have < v) {
            total.insert(k, v);
        }
    }
}

/// Whether the pod asks for neither processor nor memory.
pub fn is_best_effort(pod: &Value) -> bool {
    let class = pod.str_at("status.qosClass");
    if !class.is_empty() {
        return class == "BestEffort";
    }
    let asks = |resources: &Value| {
        ["requests", "limits"].iter().any(|field| {
            let have = amounts(resources.at(field));
            ["cpu", "memory"].iter().any(|r| have.get(*r).is_some_and(|v| v.signum() > 0))
        })
    };
    if pod.has("spec.resources") {
        return !asks(pod.at("spec.resources"));
    }
    let containers = pod.items("spec.containers").iter().chain(pod.items("spec.initContainers"));
    !containers.into_iter().any(|c| asks(c.at("resources")))
}

/// Whether the pod must end in time.
pub fn is_terminating(pod: &Value) -> bool {
    pod.int_opt("spec.activeDeadlineSeconds").is_some_and(|s| s >= 0)
}

/// Whether the pod wants to be near or away from pods of other namespaces.
pub fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = pod.at("spec.affinity").at(kind);
        let required = affinity.items("requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = affinity
            .items("preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .map(|p| p.at("podAffinityTerm"));
        required.chain(preferred).any(|term| term.is_set("namespaces") || term.has("namespaceSelector"))
    })
}
