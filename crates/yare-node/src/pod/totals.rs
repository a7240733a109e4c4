//! What a pod asks for as a whole, and what it may have at most.
//!
//! In: resources of its containers, of the pod itself, and its overhead. Out: amounts by resource, in billionths.

use std::collections::BTreeMap;

use crate::quantity;
use crate::view::{Pod, ResourceRequirements};

/// What a pod needs at its peak, per resource in billionths: main containers and sidecars together, or the
/// hungriest init container with the sidecars that already run beside it.
pub(crate) fn peak(
    pod: &Pod,
    of: impl Fn(&ResourceRequirements) -> &BTreeMap<String, String>,
) -> BTreeMap<String, i128> {
    let read = |set: &BTreeMap<String, String>| -> BTreeMap<String, i128> {
        set.iter().map(|(k, v)| (k.clone(), quantity::nanos(v).unwrap_or(0))).collect()
    };
    let add = |into: &mut BTreeMap<String, i128>, more: &BTreeMap<String, i128>| {
        for (k, v) in more {
            *into.entry(k.clone()).or_default() += v;
        }
    };
    let mut main = BTreeMap::new();
    for container in &pod.spec.containers {
        add(&mut main, &read(of(&container.resources)));
    }
    let mut sidecars = BTreeMap::new();
    let mut peak: BTreeMap<String, i128> = BTreeMap::new();
    for container in &pod.spec.init_containers {
        let mut now = read(of(&container.resources));
        if container.is_sidecar() {
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        for (k, v) in now {
            let entry = peak.entry(k).or_default();
            *entry = (*entry).max(v);
        }
    }
    add(&mut main, &sidecars);
    for (k, v) in peak {
        let entry = main.entry(k).or_default();
        *entry = (*entry).max(v);
    }
    main
}

/// Effective requests with pod-level resources and overhead: what admission counts.
pub(crate) fn requests(pod: &Pod) -> BTreeMap<String, i128> {
    let mut total = peak(pod, |r| &r.requests);
    if let Some(level) = &pod.spec.resources {
        for (name, amount) in &level.requests {
            total.insert(name.clone(), quantity::nanos(amount).unwrap_or(0));
        }
    }
    for (name, amount) in &pod.spec.overhead {
        *total.entry(name.clone()).or_default() += quantity::nanos(amount).unwrap_or(0);
    }
    total
}

/// Effective limits with pod-level resources, and overhead where there is a limit.
pub(crate) fn limits(pod: &Pod) -> BTreeMap<String, i128> {
    let mut total = peak(pod, |r| &r.limits);
    if let Some(level) = &pod.spec.resources {
        for (name, amount) in &level.limits {
            total.insert(name.clone(), quantity::nanos(amount).unwrap_or(0));
        }
    }
    for (name, amount) in &pod.spec.overhead {
        if let Some(limit) = total.get_mut(name).filter(|n| **n > 0) {
            *limit += quantity::nanos(amount).unwrap_or(0);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_containers_peak() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                {"name": "i", "resources": {"requests": {"cpu": "5"}}}],
            "containers": [{"name": "m", "resources": {"requests": {"cpu": "2"}}}]}}))
        .unwrap();
        assert_eq!(requests(&pod)["cpu"], 6_000_000_000);
    }
}
