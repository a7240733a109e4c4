//! Limits of containers' cgroups and of their pod's.
//!
//! In: a pod's requests and limits, and the node's [`Policy`]. Out: `yare_runtime::Resources`. Constants and rules are
//! upstream's (`pkg/kubelet/cm`).

use std::collections::BTreeMap;

use yare_runtime::{CgroupTree, Resources, hugepage_name};

use super::{qos, totals};
use crate::node::capacity::Capacity;
use crate::quantity;
use crate::resources::{MemoryReservation, ResourceSettings, SwapBehavior};
use crate::view::{Container, Pod};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const QUOTA_PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;
const PAGE_BYTES: i64 = 4096;

/// What becomes of requests and limits on this node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Policy {
    cfs_quota: bool,
    cfs_period_us: u64,
    memory_capacity_bytes: u64,
    memory_allocatable_bytes: i64,
    swap_capacity_bytes: u64,
    /// Whether v2 alone rules.
    unified: bool,
    limits_swap: bool,
    swap: SwapBehavior,
    /// `memory.high`, and with `protect` also `memory.min` and `memory.low`; on v2 alone.
    memory_qos: bool,
    protect: bool,
    throttling_factor: f64,
    /// Out of memory costs the whole container.
    oom_group: bool,
    /// Sizes of huge pages that can be limited.
    hugepage_sizes: Vec<String>,
}

impl Policy {
    pub(crate) fn new(
        settings: &ResourceSettings,
        capacity: &Capacity,
        allocatable: &BTreeMap<String, String>,
        groups: Option<&CgroupTree>,
    ) -> Self {
        let unified = groups.is_some_and(CgroupTree::unified);
        Policy {
            cfs_quota: settings.cpu_cfs_quota,
            cfs_period_us: u64::try_from(settings.cpu_cfs_quota_period.as_micros())
                .unwrap_or(QUOTA_PERIOD_US),
            memory_capacity_bytes: capacity.memory_bytes,
            memory_allocatable_bytes: allocatable.get("memory").map_or(0, |t| quantity::value(t)),
            swap_capacity_bytes: capacity.swap_bytes,
            unified,
            limits_swap: groups.is_none_or(CgroupTree::limits_swap),
            swap: settings.swap,
            memory_qos: settings.memory_qos && unified,
            protect: settings.memory_reservation == MemoryReservation::TieredReservation,
            throttling_factor: settings.memory_throttling_factor,
            oom_group: unified && !settings.single_process_oom_kill.unwrap_or(false),
            hugepage_sizes: groups.map(CgroupTree::hugepage_sizes).unwrap_or_default(),
        }
    }

    fn quota_us(&self, milli_cpu: i64) -> i64 {
        let period = i64::try_from(self.cfs_period_us).unwrap_or(i64::MAX);
        (milli_cpu.saturating_mul(period) / 1000).max(MIN_QUOTA_US)
    }
}

/// CPU shares of thousandths of a processor.
pub(crate) fn shares(milli_cpu: i64) -> u64 {
    let shares = u64::try_from(milli_cpu).unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

/// Bytes of huge pages by page size, as cgroup files name it.
fn hugepages<'a>(amounts: impl Iterator<Item = (&'a String, i128)>) -> BTreeMap<String, u64> {
    amounts
        .filter_map(|(name, bytes)| {
            let size = quantity::value(name.strip_prefix("hugepages-")?);
            let page = hugepage_name(u64::try_from(size).unwrap_or(0));
            Some((page, u64::try_from(bytes).unwrap_or(0)))
        })
        .collect()
}

/// The container's own limit, or the pod's where it has none.
fn effective_limit<'a>(pod: &'a Pod, container: &'a Container, name: &str) -> Option<&'a String> {
    let positive = |text: &&String| quantity::nanos(text).is_some_and(|n| n > 0);
    let own = container.resources.limits.get(name).filter(positive);
    own.or_else(|| pod.spec.resources.as_ref()?.limits.get(name).filter(positive))
}

/// Limits of one container.
pub(crate) fn container(policy: &Policy, pod: &Pod, container: &Container) -> Resources {
    let requests = &container.resources.requests;
    let cpu_limit = effective_limit(pod, container, "cpu").map(|t| quantity::milli(t));
    // A limit without a request asks for the limit.
    let cpu_request = requests.get("cpu").map(|t| quantity::milli(t)).or(cpu_limit).unwrap_or(0);
    let memory_limit = effective_limit(pod, container, "memory").map(|t| quantity::value(t));
    let quota = cpu_limit.filter(|_| policy.cfs_quota);
    let mut made = Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_period_us: quota.map(|_| policy.cfs_period_us),
        cpu_quota_us: quota.map(|milli| policy.quota_us(milli)),
        memory_limit_bytes: memory_limit,
        oom_score_adj: Some(qos::oom_score_adj(pod, container, policy.memory_capacity_bytes)),
        hugepages: policy.hugepage_sizes.iter().map(|size| (size.clone(), 0)).collect(),
        ..Resources::default()
    };
    let level = pod.spec.resources.iter().flat_map(|r| &r.limits);
    let limits = level.chain(&container.resources.limits);
    made.hugepages.extend(hugepages(limits.map(|(name, text)| (name, i128::from(quantity::value(text))))));
    if policy.oom_group {
        made.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if policy.limits_swap {
        limit_swap(policy, pod, container, &mut made);
    }
    if policy.memory_qos {
        memory_qos(policy, pod, container, &mut made);
    }
    made
}

/// Memory of a request or limit of the container itself.
fn own_memory(set: &BTreeMap<String, String>) -> i64 {
    set.get("memory").map_or(0, |t| quantity::value(t))
}

/// No swap, or a share of the machine's in proportion to the container's request (KEP-2400).
fn limit_swap(policy: &Policy, pod: &Pod, container: &Container, made: &mut Resources) {
    if !policy.unified {
        // v1 counts both together: the same number leaves no swap beyond the limit.
        made.memory_swap_limit_bytes = made.memory_limit_bytes;
        return;
    }
    let request = own_memory(&container.resources.requests);
    let (request, capacity) = (i128::from(request), i128::from(policy.memory_capacity_bytes));
    let bytes = if may_swap(policy, pod, container) && capacity > 0 && request <= capacity {
        request * i128::from(policy.swap_capacity_bytes) / capacity
    } else {
        0
    };
    made.unified.insert("memory.swap.max".to_owned(), bytes.to_string());
}

/// Whether a container gets a share of the machine's swap.
pub(crate) fn may_swap(policy: &Policy, pod: &Pod, container: &Container) -> bool {
    let set = &container.resources;
    policy.limits_swap
        && policy.unified
        && policy.swap == SwapBehavior::LimitedSwap
        && !qos::is_critical(pod)
        && qos::class(pod) == "Burstable"
        && own_memory(&set.requests) != own_memory(&set.limits)
}

/// Memory quality of service (KEP-2570): throttled before the limit is reached, and requests protected.
fn memory_qos(policy: &Policy, pod: &Pod, container: &Container, made: &mut Resources) {
    let (request, limit) =
        (own_memory(&container.resources.requests), own_memory(&container.resources.limits));
    let mut set = |file: &str, bytes: i64| made.unified.insert(file.to_owned(), bytes.to_string());
    if request != 0 && policy.protect {
        set(if qos::class(pod) == "Guaranteed" { "memory.min" } else { "memory.low" }, request);
    } else {
        set("memory.min", 0);
        set("memory.low", 0);
    }
    if request == limit {
        return;
    }
    let ceiling = if limit == 0 { policy.memory_allocatable_bytes } else { limit };
    if ceiling > 0 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "cut down to whole pages; amounts of memory fit a double to far less than a page"
        )]
        let pages = ((request as f64 + (ceiling - request) as f64 * policy.throttling_factor)
            / PAGE_BYTES as f64)
            .floor() as i64;
        let high = pages * PAGE_BYTES;
        if high > request {
            set("memory.high", high);
        }
    }
}

/// Limits of the pod's own cgroup: sums of requests, limits where every container has one, and the node's limit
/// of processes, which all containers of a pod share.
pub(crate) fn pod(policy: &Policy, pod: &Pod, pids_limit: Option<i64>) -> Resources {
    let requests = totals::requests(pod);
    let limits = totals::limits(pod);
    let milli = |nanos: i128| i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX);
    let bytes = |nanos: i128| i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
    let class = qos::class(pod);
    let limit = |name: &str| {
        let declared = class == "Guaranteed" || declares(pod, name);
        limits.get(name).copied().filter(|n| *n > 0 && declared && class != "BestEffort")
    };
    let cpu_request = requests.get("cpu").copied().map_or(0, milli);
    let cpu_limit = limit("cpu").map(milli);
    let mut made = Resources {
        cpu_shares: Some(if class == "BestEffort" { MIN_SHARES } else { shares(cpu_request) }),
        cpu_period_us: cpu_limit.map(|_| policy.cfs_period_us),
        cpu_quota_us: cpu_limit.map(|m| if policy.cfs_quota { policy.quota_us(m) } else { -1 }),
        memory_limit_bytes: limit("memory").map(bytes),
        pids_limit,
        hugepages: hugepages(requests.iter().map(|(name, nanos)| (name, nanos / 1_000_000_000))),
        ..Resources::default()
    };
    let memory_request = requests.get("memory").copied().map_or(0, bytes);
    if policy.memory_qos && policy.protect && memory_request > 0 {
        let file = if class == "Guaranteed" { "memory.min" } else { "memory.low" };
        made.unified.insert(file.to_owned(), memory_request.to_string());
    }
    made
}

/// Whether the pod as a whole is limited: by itself, or by every one of its containers.
fn declares(pod: &Pod, name: &str) -> bool {
    let positive = |set: &BTreeMap<String, String>| {
        set.get(name).is_some_and(|t| quantity::nanos(t).is_some_and(|n| n > 0))
    };
    pod.spec.resources.as_ref().is_some_and(|level| positive(&level.limits))
        || pod.spec.containers.iter().chain(&pod.spec.init_containers).all(|c| positive(&c.resources.limits))
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

    /// A node of 1 GiB of memory and as much swap, on v2 or not.
    fn policy(unified: bool, change: impl FnOnce(&mut ResourceSettings)) -> Policy {
        let mut settings = ResourceSettings::default();
        change(&mut settings);
        let capacity = Capacity {
            cpu_milli: 4000,
            memory_bytes: 1 << 30,
            ephemeral_storage_bytes: 1 << 40,
            hugepages: BTreeMap::new(),
            pods: 110,
            pids: 32768,
            swap_bytes: 1 << 30,
        };
        let allocatable = BTreeMap::from([("memory".to_owned(), "800Mi".to_owned())]);
        let mut policy = Policy::new(&settings, &capacity, &allocatable, None);
        policy.unified = unified;
        policy.memory_qos = settings.memory_qos && unified;
        policy.oom_group = unified && !settings.single_process_oom_kill.unwrap_or(false);
        policy.hugepage_sizes = vec!["1GB".into(), "2MB".into()];
        policy
    }

    #[test]
    fn container_limits() {
        let pod = pod_with(serde_json::json!([{"name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "100Mi", "hugepages-2Mi": "4Mi"},
            "limits": {"cpu": "500m", "memory": "200Mi", "hugepages-2Mi": "4Mi"}}}]));
        let first = |policy: &Policy| container(policy, &pod, &pod.spec.containers[0]);
        let r = first(&policy(false, |_| {}));
        assert_eq!(r.cpu_shares, Some(256));
        assert_eq!((r.cpu_period_us, r.cpu_quota_us), (Some(100_000), Some(50_000)));
        assert_eq!((r.memory_limit_bytes, r.memory_swap_limit_bytes), (Some(200 << 20), Some(200 << 20)));
        assert_eq!(r.hugepages, BTreeMap::from([("1GB".into(), 0), ("2MB".into(), 4 << 20)]));
        assert_eq!(r.oom_score_adj, Some(1000 - 97));
        assert_eq!(r.unified, BTreeMap::new());
        let whole = super::pod(&policy(false, |_| {}), &pod, Some(100));
        assert_eq!(whole.pids_limit, Some(100));
        assert_eq!((whole.cpu_shares, whole.cpu_quota_us), (Some(256), Some(50_000)));
        assert_eq!(whole.hugepages["2MB"], 4 << 20);
        // A period of its own; no quota at all.
        let r = first(&policy(false, |s| s.cpu_cfs_quota_period = std::time::Duration::from_millis(10)));
        assert_eq!((r.cpu_period_us, r.cpu_quota_us), (Some(10_000), Some(5_000)));
        let free = policy(false, |s| s.cpu_cfs_quota = false);
        assert_eq!((first(&free).cpu_period_us, first(&free).cpu_quota_us), (None, None));
        assert_eq!(super::pod(&free, &pod, None).cpu_quota_us, Some(-1));
    }

    /// What v2 alone can do: swap, throttling, protection, killing as one.
    #[test]
    fn files_of_v2() {
        let set = |request: &str, limit: &str| serde_json::json!([{"name": "a", "resources": {"requests": {"memory": request}, "limits": {"memory": limit}}}]);
        type Change = fn(&mut ResourceSettings);
        type Files = Vec<(&'static str, String)>;
        let limited: Change = |s| s.swap = SwapBehavior::LimitedSwap;
        let throttled: Change = |s| s.memory_qos = true;
        let protected: Change = |s| {
            s.memory_qos = true;
            s.memory_reservation = MemoryReservation::TieredReservation;
        };
        let mib = |n: i64| (n << 20).to_string();
        let none = || "0".to_owned();
        let cases: Vec<(&str, serde_json::Value, Change, Files)> = vec![
            (
                "no swap",
                set("128Mi", "256Mi"),
                |_| {},
                vec![("memory.oom.group", "1".into()), ("memory.swap.max", none())],
            ),
            (
                "one process",
                set("128Mi", "256Mi"),
                |s| s.single_process_oom_kill = Some(true),
                vec![("memory.swap.max", none())],
            ),
            (
                "an eighth of the memory, an eighth of the swap",
                set("128Mi", "256Mi"),
                limited,
                vec![("memory.oom.group", "1".into()), ("memory.swap.max", mib(128))],
            ),
            (
                "request and limit are the same",
                set("128Mi", "128Mi"),
                limited,
                vec![("memory.oom.group", "1".into()), ("memory.swap.max", none())],
            ),
            (
                "more than there is",
                set("2Gi", "3Gi"),
                limited,
                vec![("memory.oom.group", "1".into()), ("memory.swap.max", none())],
            ),
            (
                "throttled on the way to the limit",
                set("100Mi", "200Mi"),
                throttled,
                vec![
                    ("memory.high", mib(190)),
                    ("memory.low", none()),
                    ("memory.min", none()),
                    ("memory.oom.group", "1".into()),
                    ("memory.swap.max", none()),
                ],
            ),
            (
                "without a limit, on the way to the node's",
                set("300Mi", "0"),
                throttled,
                vec![
                    ("memory.high", mib(750)),
                    ("memory.low", none()),
                    ("memory.min", none()),
                    ("memory.oom.group", "1".into()),
                    ("memory.swap.max", none()),
                ],
            ),
            (
                "protected",
                set("100Mi", "200Mi"),
                protected,
                vec![
                    ("memory.high", mib(190)),
                    ("memory.low", mib(100)),
                    ("memory.oom.group", "1".into()),
                    ("memory.swap.max", none()),
                ],
            ),
        ];
        for (name, containers, change, want) in cases {
            let pod = pod_with(containers);
            let got = container(&policy(true, change), &pod, &pod.spec.containers[0]).unified;
            let want: BTreeMap<String, String> = want.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            assert_eq!(got, want, "{name}");
        }
        let pod = pod_with(set("100Mi", "200Mi"));
        assert_eq!(super::pod(&policy(true, protected), &pod, None).unified["memory.low"], mib(100));
        assert!(super::pod(&policy(true, throttled), &pod, None).unified.is_empty());
    }

    #[test]
    fn pods_have_limits_of_their_own() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {
            "containers": [
                {"name": "a", "resources": {"requests": {"memory": "64Mi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "100m"}}}],
            "resources": {"requests": {"cpu": "1", "memory": "192Mi"}, "limits": {"cpu": "2", "memory": "256Mi"}},
            "overhead": {"cpu": "500m", "memory": "16Mi"}}}))
        .unwrap();
        let node = policy(false, |_| {});
        let whole = super::pod(&node, &pod, None);
        assert_eq!((whole.cpu_shares, whole.cpu_quota_us), (Some(1536), Some(250_000)));
        assert_eq!(whole.memory_limit_bytes, Some(272 << 20));
        let [a, b] = [0, 1].map(|i| container(&node, &pod, &pod.spec.containers[i]));
        // Without a limit of its own a container has the pod's.
        assert_eq!(
            (a.cpu_shares, a.cpu_quota_us, a.memory_limit_bytes),
            (Some(2048), Some(200_000), Some(256 << 20))
        );
        assert_eq!(
            (b.cpu_shares, b.cpu_quota_us, b.memory_limit_bytes),
            (Some(102), Some(10_000), Some(256 << 20))
        );
        // 128 MiB that no container asks for, half of it each: 128 and 64 of 1024 MiB.
        assert_eq!((a.oom_score_adj, b.oom_score_adj), (Some(875), Some(938)));
    }

    #[test]
    fn one_container_without_a_limit_leaves_the_pod_unlimited() {
        let pod = pod_with(serde_json::json!([
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}},
            {"name": "b", "resources": {"limits": {"cpu": "1"}}}]));
        let whole = super::pod(&policy(false, |_| {}), &pod, None);
        assert_eq!((whole.cpu_quota_us, whole.memory_limit_bytes), (Some(200_000), None));
    }
}
