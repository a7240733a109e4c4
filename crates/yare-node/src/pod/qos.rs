//! Quality of service: class, cgroup parent, limits of pod and containers, OOM score.
//!
//! In: resource requests and limits of a pod. Out: `yare_runtime::Resources`. Constants and rules are
//! upstream's (`pkg/kubelet/cm`, `pkg/kubelet/qos`).

use std::collections::BTreeMap;

use yare_runtime::Resources;

use crate::quantity;
use crate::view::{Container, Pod, ResourceRequirements};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const QUOTA_PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;
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

/// The pod's cgroup, relative to the hierarchy's root.
pub(crate) fn cgroup_parent(pod: &Pod) -> String {
    let uid = &pod.metadata.uid;
    match class(pod) {
        "Guaranteed" => format!("kubepods/pod{uid}"),
        "Burstable" => format!("kubepods/burstable/pod{uid}"),
        _ => format!("kubepods/besteffort/pod{uid}"),
    }
}

fn shares(milli_cpu: i64) -> u64 {
    let shares = u64::try_from(milli_cpu).unwrap_or(0) * 1024 / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

fn quota_us(milli_cpu: i64) -> i64 {
    (milli_cpu * i64::try_from(QUOTA_PERIOD_US).unwrap_or(100_000) / 1000).max(MIN_QUOTA_US)
}

fn hugepages(limits: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    limits
        .iter()
        .filter_map(|(name, amount)| {
            let size = quantity::value(name.strip_prefix("hugepages-")?);
            let page = match size {
                s if s >= 1 << 30 => format!("{}GB", s >> 30),
                s if s >= 1 << 20 => format!("{}MB", s >> 20),
                s => format!("{}KB", s >> 10),
            };
            Some((page, u64::try_from(quantity::value(amount)).unwrap_or(0)))
        })
        .collect()
}

/// Limits of one container; `memory_capacity_bytes` is the node's.
pub(crate) fn container(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> Resources {
    let limits = &container.resources.limits;
    let requests = &container.resources.requests;
    let cpu_limit = limits.get("cpu").map(|t| quantity::milli(t)).filter(|m| *m > 0);
    // A limit without a request asks for the limit.
    let cpu_request = requests.get("cpu").map(|t| quantity::milli(t)).or(cpu_limit).unwrap_or(0);
    let memory_limit = limits.get("memory").map(|t| quantity::value(t)).filter(|b| *b > 0);
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_period_us: cpu_limit.map(|_| QUOTA_PERIOD_US),
        cpu_quota_us: cpu_limit.map(quota_us),
        memory_limit_bytes: memory_limit,
        // No swap beyond the limit: upstream's default swap behaviour is NoSwap.
        memory_swap_limit_bytes: memory_limit,
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity_bytes)),
        hugepages: hugepages(limits),
        ..Resources::default()
    }
}

/// Limits of the pod's own cgroup: sums of requests, limits where every container has one, and the node's limit
/// of processes, which all containers of a pod share.
pub(crate) fn pod(pod: &Pod, pids_limit: Option<i64>) -> Resources {
    let level = pod.spec.resources.clone().unwrap_or_default();
    let requests = totals(pod, |r| &r.requests);
    let overhead = |name: &str| pod.spec.overhead.get(name).and_then(|t| quantity::nanos(t)).unwrap_or(0);
    let milli = |nanos: i128| i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX);
    let bytes = |nanos: i128| i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
    let limit = |name: &str| -> Option<i128> {
        if let Some(text) = level.limits.get(name) {
            return quantity::nanos(text);
        }
        let bounded =
            pod.spec.containers.iter().chain(&pod.spec.init_containers).all(|c| {
                c.resources.limits.get(name).is_some_and(|t| quantity::nanos(t).is_some_and(|n| n > 0))
            });
        bounded.then(|| totals(pod, |r| &r.limits).get(name).copied().unwrap_or(0) + overhead(name))
    };
    let request = level
        .requests
        .get("cpu")
        .and_then(|t| quantity::nanos(t))
        .unwrap_or_else(|| requests.get("cpu").copied().unwrap_or(0) + overhead("cpu"));
    let cpu_limit = limit("cpu").map(milli);
    Resources {
        cpu_shares: Some(if class(pod) == "BestEffort" { MIN_SHARES } else { shares(milli(request)) }),
        cpu_period_us: cpu_limit.map(|_| QUOTA_PERIOD_US),
        cpu_quota_us: cpu_limit.map(quota_us),
        memory_limit_bytes: limit("memory").map(bytes),
        pids_limit,
        ..Resources::default()
    }
}

/// What a pod needs at its peak, per resource in billionths: main containers and sidecars together, or the
/// hungriest init container with the sidecars that already run beside it.
pub(crate) fn totals(
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
    let mut total = totals(pod, |r| &r.requests);
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

/// Whether the pod is critical to the node or the cluster.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    pod.spec.priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY)
}

fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> i32 {
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
    let capacity = i64::try_from(memory_capacity_bytes).unwrap_or(i64::MAX).max(1);
    let score = |request: i64| {
        1000 - i32::try_from(i128::from(request) * 1000 / i128::from(capacity)).unwrap_or(1000)
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
    fn container_limits() {
        let pod = pod_with(serde_json::json!([{"name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "100Mi"}, "limits": {"cpu": "500m", "memory": "200Mi", "hugepages-2Mi": "4Mi"}}}]));
        let r = container(&pod, &pod.spec.containers[0], 1 << 30);
        assert_eq!(r.cpu_shares, Some(256));
        assert_eq!(r.cpu_quota_us, Some(50_000));
        assert_eq!(r.memory_limit_bytes, Some(200 << 20));
        assert_eq!(r.hugepages["2MB"], 4 << 20);
        assert_eq!(r.oom_score_adj, Some(1000 - 97));
        let whole = super::pod(&pod, Some(100));
        assert_eq!(whole.pids_limit, Some(100));
        assert_eq!((whole.cpu_shares, whole.cpu_quota_us), (Some(256), Some(50_000)));
    }

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
