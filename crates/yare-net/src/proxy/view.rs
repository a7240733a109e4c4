//! The fields of Services and EndpointSlices that the proxy reads.

use std::net::IpAddr;

use serde::Deserialize;
use yare_client::nullable;

/// A Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// What is wanted.
    pub spec: ServiceSpec,
    /// What a load balancer gave.
    pub status: ServiceStatus,
}

/// `ServiceSpec`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`
    #[serde(rename = "type")]
    pub kind: String,
    /// Addresses; `None` for headless ones.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Further addresses.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `None` or `ClientIP`
    pub session_affinity: String,
    /// Its settings.
    pub session_affinity_config: AffinityConfig,
    /// `Cluster` or `Local`
    pub external_traffic_policy: String,
    /// `Cluster` or `Local`
    pub internal_traffic_policy: String,
    /// Who may use the load balancer's addresses; all where there is none.
    pub load_balancer_source_ranges: Vec<String>,
    /// Where a load balancer asks whether this node has endpoints, 0 for nowhere.
    pub health_check_node_port: u16,
}

/// A port of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`
    pub protocol: String,
    /// Number.
    pub port: u16,
    /// Number on every node, 0 for none.
    pub node_port: u16,
}

/// `SessionAffinityConfig`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIp,
}

/// `ClientIPConfig`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    /// How long a client sticks, seconds.
    pub timeout_seconds: Option<u32>,
}

/// `ServiceStatus`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Of a load balancer.
    pub load_balancer: LoadBalancer,
}

/// `LoadBalancerStatus`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Its addresses.
    pub ingress: Vec<Ingress>,
}

/// `LoadBalancerIngress`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// Address, absent where it has a name only.
    pub ip: Option<IpAddr>,
    /// `VIP` (default) or `Proxy`: with the latter, traffic must go through the load balancer.
    pub ip_mode: String,
}

/// An EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6`, `FQDN`
    pub address_type: String,
    /// Endpoints.
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports of all of them.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<SlicePort>,
}

/// `Endpoint`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// All are equivalent; the first is used.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Its state.
    pub conditions: Conditions,
    /// Where it runs.
    pub node_name: String,
}

/// `EndpointConditions`; what is not said counts as upstream says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes traffic (unknown: yes).
    pub ready: Option<bool>,
    /// Would answer, even while it ends (unknown: as `ready`).
    pub serving: Option<bool>,
    /// Ends (unknown: no).
    pub terminating: Option<bool>,
}

/// `EndpointPort`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: Option<String>,
    /// `TCP` unless said.
    pub protocol: Option<String>,
    /// Number.
    pub port: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As slices of services without ports, or without pods, are.
    #[test]
    fn lists_that_are_null_are_empty() {
        let text = r#"{"addressType":"IPv4","endpoints":null,"ports":null}"#;
        let slice: EndpointSlice = serde_json::from_str(text).unwrap();
        assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
    }
}
