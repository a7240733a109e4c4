//! Whether this node takes a pod: the checks a kubelet repeats after the scheduler.
//!
//! In: the pod, what the pods admitted before take, the node's labels and allocatable resources.
//! Out: nothing, or the reason and message that go into the rejected pod's status.

mod affinity;

use std::collections::{BTreeMap, BTreeSet};

use self::affinity::node_affinity;
pub(crate) use self::affinity::term_matches;
use super::preemption::Shortage;
use super::{qos, totals};
use crate::eviction::{Pressure, REASON as EVICTED};
use crate::quantity;
use crate::view::{Pod, Taint};

/// Why a pod was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What the node offers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) allocatable: BTreeMap<String, String>,
    /// What others advertise for it.
    pub(crate) advertised: BTreeMap<String, String>,
    /// What it lacks.
    pub(crate) pressures: BTreeSet<Pressure>,
    /// Sysctls a pod may set beyond the safe ones.
    pub(crate) allowed_sysctls: Vec<String>,
    /// Whether the runtime can leave the image's own groups out.
    pub(crate) strict_groups: bool,
    /// Whether it restarts all containers of a pod where one's end asks for it.
    pub(crate) restarts_all: bool,
}

/// What a pod takes from its node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Share {
    /// Requests, billionths.
    requests: BTreeMap<String, i128>,
    ports: Vec<HostPort>,
    class: &'static str,
}

/// What pods of each class ask for together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) burstable_cpu_milli: i64,
    pub(crate) burstable_memory_bytes: i64,
    pub(crate) guaranteed_memory_bytes: i64,
}

impl Claims {
    /// The sum.
    pub(crate) fn sum<'a>(shares: impl Iterator<Item = &'a Share>) -> Self {
        let mut sum = Self::default();
        for share in shares {
            let of = |name: &str, unit: i128| {
                let nanos = share.requests.get(name).copied().unwrap_or(0);
                i64::try_from(nanos / unit).unwrap_or(i64::MAX)
            };
            let memory = of("memory", 1_000_000_000);
            match share.class {
                "Guaranteed" => {
                    sum.guaranteed_memory_bytes = sum.guaranteed_memory_bytes.saturating_add(memory)
                }
                "Burstable" => {
                    sum.burstable_memory_bytes = sum.burstable_memory_bytes.saturating_add(memory);
                    sum.burstable_cpu_milli = sum.burstable_cpu_milli.saturating_add(of("cpu", 1_000_000));
                }
                _ => {}
            }
        }
        sum
    }
}

/// A port on the node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    /// Empty: every address.
    ip: String,
    protocol: String,
    port: u16,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip.is_empty() || other.ip.is_empty() || self.ip == other.ip)
    }
}

impl Share {
    /// Of one pod. Host ports are those of the containers that run on, sidecars among them.
    pub(crate) fn of(pod: &Pod) -> Self {
        let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar());
        let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
        let ports = ports.filter(|p| p.host_port != 0).map(|p| HostPort {
            ip: if p.host_ip == "0.0.0.0" { String::new() } else { p.host_ip.clone() },
            protocol: if p.protocol.is_empty() { "TCP".into() } else { p.protocol.clone() },
            port: p.host_port,
        });
        Self { requests: requests(pod), ports: ports.collect(), class: qos::class(pod) }
    }
}

/// What the pods admitted before take together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    pods: u64,
    share: Share,
}

impl Used {
    /// The sum.
    pub(crate) fn sum<'a>(shares: impl Iterator<Item = &'a Share>) -> Self {
        let mut sum = Self::default();
        for share in shares {
            sum.pods += 1;
            for (name, amount) in &share.requests {
                *sum.share.requests.entry(name.clone()).or_default() += amount;
            }
            sum.share.ports.extend(share.ports.iter().cloned());
        }
        sum
    }
}

/// One check: the pod, what is used, what the node offers.
type Check = fn(&Pod, &Used, &Offer) -> Option<Rejection>;

/// Checks in the order their reasons are reported. A check is a row.
const CHECKS: &[Check] = &[
    pressures,
    os_label,
    os_field,
    groups,
    features,
    sysctls,
    resources,
    node_affinity,
    host_ports,
    no_execute_taints,
];

/// Decides.
pub(crate) fn admit(pod: &Pod, used: &Used, offer: &Offer) -> Result<(), Rejection> {
    match CHECKS.iter().find_map(|check| check(pod, used, offer)) {
        Some(rejection) => Err(rejection),
        None => Ok(()),
    }
}

fn reject(reason: &str, message: impl Into<String>) -> Option<Rejection> {
    Some(Rejection { reason: reason.to_owned(), message: message.into() })
}

/// Under memory pressure alone, pods that asked for something still come, and so do best-effort ones that tolerate
/// it; under any other no pod but a critical one.
fn pressures(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    if offer.pressures.is_empty() || qos::is_critical(pod) {
        return None;
    }
    let memory_alone = offer.pressures.iter().all(|p| *p == Pressure::Memory);
    let taint = Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        value: String::new(),
        effect: "NoSchedule".to_owned(),
    };
    if memory_alone && (qos::class(pod) != "BestEffort" || tolerates(pod, &taint)) {
        return None;
    }
    let names: Vec<&str> = offer.pressures.iter().map(|p| p.condition()).collect();
    reject(EVICTED, format!("The node had condition: [{}]. ", names.join(" ")))
}

fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    pod.spec.tolerations.iter().any(|t| {
        (t.effect.is_empty() || t.effect == taint.effect)
            && (t.key.is_empty() || t.key == taint.key)
            && (t.operator == "Exists" || (!t.key.is_empty() && t.value == taint.value))
    })
}

fn os_label(pod: &Pod, _: &Used, _: &Offer) -> Option<Rejection> {
    match pod.metadata.labels.get("kubernetes.io/os") {
        Some(os) if os != "linux" => reject(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ),
        _ => None,
    }
}

fn os_field(pod: &Pod, _: &Used, _: &Offer) -> Option<Rejection> {
    match &pod.spec.os {
        Some(os) if os.name != "linux" => {
            reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
        }
        _ => None,
    }
}

/// Whether the pod's processes must have no groups but those that it names.
pub(crate) fn wants_strict_groups(pod: &Pod) -> bool {
    let context = pod.spec.security_context.as_ref();
    context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict")
}

/// A runtime that does not know the policy would add the image's groups.
fn groups(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    if !wants_strict_groups(pod) || offer.strict_groups {
        return None;
    }
    reject(
        "SupplementalGroupsPolicyNotSupported",
        "SupplementalGroupsPolicy=Strict is not supported in this node",
    )
}

/// What the pod needs, the node has to declare (KEP-5328).
fn features(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    if offer.restarts_all || !super::restart_all::is_possible(pod) {
        return None;
    }
    reject(
        "PodFeatureUnsupported",
        format!("Pod requires node features that are not available: {}", crate::node::object::RESTART_ALL),
    )
}

/// Sysctls that are namespaced and harmless to neighbours.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    let context = pod.spec.security_context.as_ref()?;
    for sysctl in &context.sysctls {
        let name = sysctl.name.replace('/', ".");
        let allowed = SAFE_SYSCTLS.contains(&name.as_str())
            || offer.allowed_sysctls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *pattern == name,
            });
        let host = (name.starts_with("net.") && pod.spec.host_network)
            || ((name.starts_with("kernel.shm")
                || name.starts_with("kernel.msg")
                || name.starts_with("fs.mqueue."))
                && pod.spec.host_ipc);
        if !allowed || host {
            return reject("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
    }
    None
}

/// A critical pod is given room ([`shortages`]).
fn resources(pod: &Pod, used: &Used, offer: &Offer) -> Option<Rejection> {
    if qos::is_critical(pod) {
        return None;
    }
    let lack = lacks(pod, used, offer).next()?;
    insufficient(&lack.name, lack.want, lack.used, lack.capacity)
}

/// What a critical pod lacks.
pub(crate) fn shortages(pod: &Pod, used: &Used, offer: &Offer) -> Vec<Shortage> {
    if !qos::is_critical(pod) {
        return Vec::new();
    }
    let of = |lack: Lack| Shortage { resource: lack.name, amount: lack.want - (lack.capacity - lack.used) };
    lacks(pod, used, offer).map(of).collect()
}

/// What a pod asks for, less what a claim stands behind: of that the node's figures say nothing.
fn requests(pod: &Pod) -> BTreeMap<String, i128> {
    let mut requests = totals::requests(pod);
    requests.retain(|name, _| !pod.status.is_claimed(None, name));
    requests
}

/// A resource of which there is not enough: CPU in thousandths, anything else in whole units.
struct Lack {
    name: String,
    want: i128,
    used: i128,
    capacity: i128,
}

/// What there is not enough of, in upstream's order.
fn lacks<'a>(pod: &'a Pod, used: &'a Used, offer: &'a Offer) -> impl Iterator<Item = Lack> + 'a {
    let capacity = i128::from(offer.allocatable.get("pods").map_or(i64::MAX, |t| quantity::value(t)));
    let pods = i128::from(used.pods);
    let too_many =
        (pods + 1 > capacity).then(|| Lack { name: "pods".to_owned(), want: 1, used: pods, capacity });
    let requests = requests(pod);
    // cpu, memory, ephemeral-storage first, as upstream reports them.
    let first = ["cpu", "memory", "ephemeral-storage"].map(str::to_owned);
    let others: Vec<String> = requests.keys().filter(|name| !first.contains(name)).cloned().collect();
    let lack = move |name: String| {
        let want = requests.get(&name).copied().filter(|n| *n > 0)?;
        // A resource the node does not know is a cluster-level one: not the kubelet's to judge.
        let known = offer.allocatable.get(&name).or_else(|| offer.advertised.get(&name));
        let capacity = known.and_then(|t| quantity::nanos(t))?;
        let before = used.share.requests.get(&name).copied().unwrap_or(0);
        let unit = if name == "cpu" { 1_000_000 } else { 1_000_000_000 };
        (want + before > capacity).then(|| Lack {
            name,
            want: want / unit,
            used: before / unit,
            capacity: capacity / unit,
        })
    };
    too_many.into_iter().chain(first.into_iter().chain(others).filter_map(lack))
}

fn insufficient(name: &str, want: i128, used: i128, capacity: i128) -> Option<Rejection> {
    reject(
        &format!("OutOf{name}"),
        format!(
            "Node didn't have enough resource: {name}, requested: {want}, used: {used}, capacity: {capacity}"
        ),
    )
}

fn host_ports(pod: &Pod, used: &Used, _: &Offer) -> Option<Rejection> {
    let taken = |p: &HostPort| used.share.ports.iter().any(|u| u.conflicts(p));
    if !Share::of(pod).ports.iter().any(taken) {
        return None;
    }
    reject(
        "NodePorts",
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
    )
}

fn no_execute_taints(pod: &Pod, _: &Used, offer: &Offer) -> Option<Rejection> {
    // Only NoExecute counts here: NoSchedule is the scheduler's, and static or bound pods pass it.
    match offer.taints.iter().find(|t| t.effect == "NoExecute" && !tolerates(pod, t)) {
        Some(_) => reject(
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
        ),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let offer = Offer {
            name: "n1".into(),
            labels: BTreeMap::from([("disk".into(), "ssd".into()), ("gen".into(), "4".into())]),
            taints: vec![Taint { key: "gone".into(), value: String::new(), effect: "NoExecute".into() }],
            allocatable: BTreeMap::from([
                ("cpu".into(), "2".into()),
                ("memory".into(), "1Gi".into()),
                ("pods".into(), "3".into()),
            ]),
            advertised: BTreeMap::new(),
            pressures: BTreeSet::new(),
            allowed_sysctls: vec!["net.core.*".into()],
            strict_groups: false,
            restarts_all: false,
        };
        let tolerant = serde_json::json!([{"operator": "Exists"}]);
        let request = |cpu: &str| serde_json::json!([{"name": "a", "resources": {"requests": {"cpu": cpu}}}]);
        let port = |port: serde_json::Value| serde_json::json!([{"name": "a", "ports": [port]}]);
        let taken = || {
            let spec = serde_json::json!({"spec": {
                "containers": [{"name": "a", "ports": [
                    {"hostPort": 80, "protocol": "TCP"},
                    {"hostPort": 81, "hostIP": "10.0.0.1", "protocol": "TCP"},
                ]}],
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "ports": [{"hostPort": 82, "hostIP": "0.0.0.0"}]},
                    {"name": "i", "ports": [{"hostPort": 83}]},
                ],
            }});
            Share::of(&serde_json::from_value(spec).unwrap()).ports
        };
        let affinity = |expr: serde_json::Value| serde_json::json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [expr]}]}}});
        for (spec, pods, want) in [
            (serde_json::json!({"tolerations": tolerant, "containers": request("1")}), 0, ""),
            (serde_json::json!({"tolerations": tolerant, "containers": request("1500m")}), 0, "OutOfcpu"),
            (
                serde_json::json!({"tolerations": tolerant, "containers": [{"name": "a"}],
                    "securityContext": {"supplementalGroupsPolicy": "Strict"}}),
                0,
                "SupplementalGroupsPolicyNotSupported",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": [
                    {"name": "a", "restartPolicyRules": [{"action": "RestartAllContainers"}]}]}),
                0,
                "PodFeatureUnsupported",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": [
                    {"name": "a", "restartPolicyRules": [{"action": "Restart"}]}]}),
                0,
                "",
            ),
            (serde_json::json!({"tolerations": tolerant, "containers": request("1")}), 3, "OutOfpods"),
            (
                serde_json::json!({"tolerations": tolerant, "priority": 2_000_000_000, "containers": request("9")}),
                3,
                "",
            ),
            (serde_json::json!({"tolerations": tolerant, "nodeSelector": {"disk": "ssd"}}), 0, ""),
            (
                serde_json::json!({"tolerations": tolerant, "nodeSelector": {"disk": "hdd"}}),
                0,
                "NodeAffinity",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "affinity": affinity(serde_json::json!({"key": "gen", "operator": "Gt", "values": ["3"]}))}),
                0,
                "",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "affinity": affinity(serde_json::json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}))}),
                0,
                "NodeAffinity",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 80}))}),
                0,
                "NodePorts",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 80, "hostIP": "10.0.0.2"}))}),
                0,
                "NodePorts",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 80, "protocol": "UDP"}))}),
                0,
                "",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 81, "hostIP": "10.0.0.2"}))}),
                0,
                "",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 81, "hostIP": "10.0.0.1"}))}),
                0,
                "NodePorts",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 82}))}),
                0,
                "NodePorts",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"hostPort": 83}))}),
                0,
                "",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "containers": port(serde_json::json!({"containerPort": 80}))}),
                0,
                "",
            ),
            (serde_json::json!({}), 0, "TaintToleration"),
            (serde_json::json!({"tolerations": tolerant, "os": {"name": "windows"}}), 0, "PodOSNotSupported"),
            (
                serde_json::json!({"tolerations": tolerant, "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}}),
                0,
                "",
            ),
            (
                serde_json::json!({"tolerations": tolerant, "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                0,
                "SysctlForbidden",
            ),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
            let share = Share {
                requests: BTreeMap::from([("cpu".to_owned(), 1_000_000_000)]),
                ports: taken(),
                class: "",
            };
            let used = Used { pods, share };
            let got = admit(&pod, &used, &offer).err().map(|r| r.reason).unwrap_or_default();
            assert_eq!(got, want, "{spec}");
        }
    }

    #[test]
    fn pressure_turns_pods_away() {
        use Pressure::{Disk, Memory};
        let best_effort = serde_json::json!({"containers": [{"name": "a"}]});
        let tolerant = serde_json::json!({"containers": [{"name": "a"}], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
        let burstable =
            serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1m"}}}]});
        let critical = serde_json::json!({"containers": [{"name": "a"}], "priority": 2_000_001_000});
        for (spec, lacking, want) in [
            (&best_effort, vec![], None),
            (&best_effort, vec![Memory], Some("The node had condition: [MemoryPressure]. ")),
            (&tolerant, vec![Memory], None),
            (&burstable, vec![Memory], None),
            (&burstable, vec![Memory, Disk], Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&burstable, vec![Disk], Some("The node had condition: [DiskPressure]. ")),
            (&critical, vec![Memory, Disk], None),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
            let offer = Offer { pressures: lacking.into_iter().collect(), ..Offer::default() };
            let got = admit(&pod, &Used::default(), &offer).err();
            assert_eq!(got.as_ref().map(|r| r.message.as_str()), want, "{spec}");
            assert!(got.is_none_or(|r| r.reason == "Evicted"));
        }
    }

    #[test]
    fn claims_are_summed_by_class() {
        let share = |resources: serde_json::Value| {
            let pod = serde_json::json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            Share::of(&serde_json::from_value(pod).unwrap())
        };
        let shares = [
            share(serde_json::json!({"requests": {"cpu": "250m", "memory": "1Ki"}})),
            share(serde_json::json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})),
            share(
                serde_json::json!({"requests": {"cpu": "1", "memory": "4Ki"}, "limits": {"cpu": "1", "memory": "4Ki"}}),
            ),
            share(serde_json::json!({})),
        ];
        let want =
            Claims { burstable_cpu_milli: 1250, burstable_memory_bytes: 1024, guaranteed_memory_bytes: 4096 };
        assert_eq!(Claims::sum(shares.iter()), want);
    }
}
