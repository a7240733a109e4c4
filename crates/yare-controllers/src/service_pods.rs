//! What EndpointSlices and Endpoints have in common: the pods behind a service, and when either changes.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use yare_client::{Cached, Change, ChangeKind, ObjectKey, PODS, SERVICES};

use crate::{
    context::Context,
    selector::LabelSelector,
    views::{Condition, IntOrString, condition, nullable},
};

/// Label that marks the endpoints of services without a cluster IP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Zone of a node.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What is read of a Service.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct ServiceView {
    /// `spec`
    pub spec: ServiceSpec,
}

/// `spec` of a Service.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `ExternalName`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Absent: somebody else takes care of the endpoints.
    pub selector: Option<BTreeMap<String, String>>,
    /// Ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    /// `None` for headless services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// `IPv4`, `IPv6`
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    /// Pods that are not ready count as if they were.
    pub publish_not_ready_addresses: bool,
    /// `PreferSameZone`, `PreferSameNode`, `PreferClose`
    pub traffic_distribution: Option<String>,
}

/// One port of a Service.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name, empty for a single port.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`
    pub protocol: String,
    /// Hint for proxies.
    pub app_protocol: Option<String>,
    /// Port of the service.
    pub port: i32,
    /// Number or name of the pods' port.
    pub target_port: Option<IntOrString>,
}

impl ServiceSpec {
    /// Whether this controller looks after the endpoints.
    pub fn selector(&self) -> Option<LabelSelector> {
        let selector = self.selector.clone().filter(|s| !s.is_empty())?;
        (self.kind != "ExternalName").then(|| LabelSelector::labels(selector))
    }

    /// Whether it has no cluster IP.
    pub fn is_headless(&self) -> bool {
        self.cluster_ip.is_empty() || self.cluster_ip == "None"
    }
}

/// What is read of a pod.
#[derive(Deserialize, Default, PartialEq)]
#[serde(default)]
pub struct EndpointPod {
    spec: EndpointPodSpec,
    status: EndpointPodStatus,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct EndpointPodSpec {
    hostname: String,
    subdomain: String,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<Container>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_policy: String,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    container_port: i32,
    protocol: String,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct EndpointPodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(default)]
struct PodIp {
    ip: String,
}

/// A port of an endpoint, in both kinds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the service's port.
    pub name: String,
    /// Number.
    pub port: i32,
    /// `TCP`, `UDP`, `SCTP`
    pub protocol: String,
    /// Hint for proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

impl EndpointPod {
    /// Whether it can be an endpoint: it has an address and has not run to its end.
    pub fn has_address(&self) -> bool {
        let ended = matches!(&*self.status.phase, "Failed" | "Succeeded");
        !ended && (!self.status.pod_ip.is_empty() || !self.status.pod_ips.is_empty())
    }

    /// Its `Ready` condition.
    pub fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready").is_some_and(Condition::is_true)
    }

    /// Its addresses of one family, spelled canonically.
    pub fn addresses(&self, ipv6: bool) -> Vec<String> {
        let ips = self.status.pod_ips.iter().map(|p| &p.ip);
        let all: Vec<&String> =
            if self.status.pod_ips.is_empty() { vec![&self.status.pod_ip] } else { ips.collect() };
        all.into_iter()
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .filter(|ip| ip.is_ipv6() == ipv6)
            .map(|ip| ip.to_string())
            .collect()
    }

    /// Its host name, if the service is the one that publishes it.
    pub fn hostname_for(&self, service: &Cached) -> Option<&str> {
        let published = !self.spec.hostname.is_empty() && self.spec.subdomain == service.name();
        published.then_some(&*self.spec.hostname)
    }

    /// Where the service's ports lead in this pod; a named port that the pod does not have is left out.
    pub fn ports(&self, service: &ServiceSpec) -> Vec<EndpointPort> {
        let resolve = |port: &ServicePort| match &port.target_port {
            None => Some(port.port),
            Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::Text(name)) => self.named_port(name, &port.protocol),
        };
        service
            .ports
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone(),
                    port: resolve(port)?,
                    protocol: or_tcp(&port.protocol).to_owned(),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect()
    }

    fn named_port(&self, name: &str, protocol: &str) -> Option<i32> {
        let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let mut ports = self.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
        ports.find(|p| p.name == name && or_tcp(&p.protocol) == or_tcp(protocol)).map(|p| p.container_port)
    }
}

fn or_tcp(protocol: &str) -> &str {
    if protocol.is_empty() { "TCP" } else { protocol }
}

/// A pod's change as keys of the services that select it (or did).
pub fn services_of_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if change.kind == ChangeKind::Modified && !matters(change) {
        return;
    }
    let states: Vec<&Cached> = [&change.old, &change.new].into_iter().flatten().collect();
    let Some(first) = states.first() else { return };
    for service in context.informer(SERVICES).in_namespace(first.namespace()) {
        let Ok(view) = service.view::<ServiceView>() else { continue };
        let Some(selector) = view.spec.selector() else { continue };
        if states.iter().any(|s| selector.matches(s.labels())) {
            add(service.key().clone());
        }
    }
}

/// Whether anything that endpoints show is different.
fn matters(change: &Change) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    if old.labels() != new.labels()
        || old.node_name() != new.node_name()
        || old.deletion_timestamp().is_some() != new.deletion_timestamp().is_some()
    {
        return true;
    }
    match (old.view::<EndpointPod>(), new.view::<EndpointPod>()) {
        (Ok(a), Ok(b)) => {
            a.is_ready() != b.is_ready()
                || a.has_address() != b.has_address()
                || a.status.pod_ip != b.status.pod_ip
                || a.status.pod_ips != b.status.pod_ips
                || a.spec != b.spec
        }
        _ => true,
    }
}

/// A node that appears or moves to another zone concerns the services of its pods.
pub fn services_of_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(node) = &change.new else { return };
    if change.old.as_ref().is_some_and(|old| old.label(ZONE_LABEL) == node.label(ZONE_LABEL)) {
        return;
    }
    for pod in context.informer(PODS).list() {
        if pod.node_name() == Some(node.name()) {
            let change = Change { kind: ChangeKind::Added, new: Some(pod), old: None };
            services_of_pod(context, &change, add);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_resolve_by_name_and_number() {
        let pod: EndpointPod = serde_json::from_value(json!({"spec": {
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9}]}, {"ports": [{"name": "gone", "containerPort": 7}]}],
        }}))
        .unwrap();
        let service: ServiceSpec = serde_json::from_value(json!({"ports": [
            {"name": "a", "port": 80, "protocol": "TCP", "targetPort": "http"},
            {"name": "b", "port": 81, "targetPort": 8081},
            {"name": "c", "port": 53, "protocol": "UDP", "targetPort": "dns"},
            {"name": "d", "port": 53, "protocol": "TCP", "targetPort": "dns"},
            {"name": "e", "port": 82, "targetPort": "side"},
            {"name": "f", "port": 83, "targetPort": "gone"},
            {"name": "g", "port": 84},
        ]}))
        .unwrap();
        let ports: Vec<_> = pod.ports(&service).into_iter().map(|p| (p.name, p.port)).collect();
        let expected = [("a", 8080), ("b", 8081), ("c", 53), ("e", 9), ("g", 84)];
        assert_eq!(ports, expected.map(|(n, p)| (n.to_owned(), p)));
    }
}
