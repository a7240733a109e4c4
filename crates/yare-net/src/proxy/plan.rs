//! From one Service and its slices to the elements that make it work on this node. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    rules,
    view::{EndpointSlice, Service, ServicePort},
};
use crate::{
    ipam::Cidr,
    nft::{Data, Element, Family},
};

/// How long a client sticks to an endpoint unless the Service says otherwise, seconds.
const AFFINITY_S: u32 = 10_800;

/// Which chain serves an address: one for each combination that occurs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Chain {
    /// Endpoints to choose from.
    pub endpoints: u32,
    /// Looks endpoints up under the address 0, as for node ports.
    pub any_address: bool,
    /// Hides the client's address, since the answer must come back this way.
    pub masquerade: bool,
    /// How long a client sticks, seconds.
    pub affinity_s: Option<u32>,
    /// Chooses among the endpoints of this node.
    pub local: bool,
}

impl Chain {
    /// Its name.
    pub fn name(self) -> String {
        let place = if self.any_address { "node" } else { "service" };
        let masquerade = if self.masquerade { "-masquerade" } else { "" };
        let affinity = self.affinity_s.map(|s| format!("-affinity-{s}")).unwrap_or_default();
        let local = if self.local { "-local" } else { "" };
        format!("{place}-{}{local}{masquerade}{affinity}", self.endpoints)
    }
}

/// One endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it runs on this node.
    pub local: bool,
}

/// What one service needs in one family's table.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServicePlan {
    /// Elements of the maps.
    pub elements: BTreeSet<Element>,
    /// Chains that they lead to.
    pub chains: BTreeSet<Chain>,
}

impl ServicePlan {
    /// The endpoints, as values of maps.
    pub fn targets(&self) -> BTreeSet<Vec<u8>> {
        let values = self.elements.iter().filter_map(|e| match &e.data {
            Data::Value(value) => Some(value.clone()),
            _ => None,
        });
        values.collect()
    }
}

/// What one service needs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    v4: ServicePlan,
    v6: ServicePlan,
    /// UDP: service address (or [`node_port`]) to endpoint, for connection tracking.
    pub udp: BTreeSet<(SocketAddr, SocketAddr)>,
    /// What load balancers ask to learn whether this node has endpoints.
    pub health: Option<Health>,
}

/// `healthCheckNodePort`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Port on this node.
    pub port: u16,
    /// Ready endpoints here. One that ends still serves, but no load balancer should send more to it.
    pub endpoints: usize,
}

impl Plan {
    /// The part of one family.
    pub fn family(&self, family: Family) -> &ServicePlan {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What stands for a port of every address of the node.
pub(crate) fn node_port(v6: bool, port: u16) -> SocketAddr {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, port)
}

fn protocol_number(name: &str) -> u8 {
    match name {
        "UDP" => libc::IPPROTO_UDP as u8,
        "SCTP" => 132,
        _ => libc::IPPROTO_TCP as u8,
    }
}

pub(crate) fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port_key(protocol: u8, port: u16) -> Vec<u8> {
    let mut out = vec![protocol, 0, 0, 0];
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

pub(crate) fn service_key(ip: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let mut out = address_bytes(ip);
    out.extend(port_key(protocol, port));
    out
}

fn target(endpoint: &Endpoint) -> Vec<u8> {
    let mut out = address_bytes(endpoint.address.ip());
    out.extend_from_slice(&endpoint.address.port().to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// Plans a service for the node `node`.
pub fn plan(node: &str, service: &Service, slices: &[EndpointSlice]) -> Plan {
    let spec = &service.spec;
    let mut out = Plan::default();
    if spec.kind == "ExternalName" {
        return out;
    }
    let affinity_s = (spec.session_affinity == "ClientIP")
        .then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_S));
    let internal_local = spec.internal_traffic_policy == "Local";
    let external_local = spec.external_traffic_policy == "Local";
    let cluster_ips: Vec<IpAddr> = spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let balanced = service.status.load_balancer.ingress.iter().filter(|i| i.ip_mode != "Proxy");
    let balanced: Vec<IpAddr> = balanced.filter_map(|i| i.ip).collect();
    let ranges: Vec<Cidr> =
        spec.load_balancer_source_ranges.iter().filter_map(|r| r.trim().parse().ok()).collect();
    for port in &spec.ports {
        let protocol = protocol_number(&port.protocol);
        for family in [Family::V4, Family::V6] {
            if !cluster_ips.iter().any(|ip| family_of(*ip) == family) {
                continue;
            }
            let all = endpoints(node, port, slices, family, false);
            let local = endpoints(node, port, slices, family, true);
            let mut place = Place { out: &mut out, family, protocol, affinity_s };
            for ip in cluster_ips.iter().filter(|ip| family_of(**ip) == family) {
                let chosen = if internal_local { &local } else { &all };
                place.inside(Spot::Address(*ip, port.port), chosen);
            }
            let external = spec.external_ips.iter().chain(&balanced).filter(|ip| family_of(**ip) == family);
            let mut spots: Vec<Spot> = external.map(|ip| Spot::Address(*ip, port.port)).collect();
            spots.extend((port.node_port != 0).then_some(Spot::Node(port.node_port)));
            for spot in spots {
                if external_local {
                    place.outside_local(spot, &all, &local);
                } else {
                    place.outside(spot, &all);
                }
            }
            // A list without one readable range admits nobody: that is the safe side.
            if !spec.load_balancer_source_ranges.is_empty() {
                for ip in balanced.iter().filter(|ip| family_of(**ip) == family) {
                    place.restrict(*ip, port.port, &ranges);
                }
            }
            for endpoint in all.iter().filter(|e| e.local) {
                let ip = address_bytes(endpoint.address.ip());
                place.add(rules::HAIRPIN.name, [ip.clone(), ip].concat(), Data::None);
            }
        }
    }
    if external_local && spec.kind == "LoadBalancer" && spec.health_check_node_port != 0 {
        let here: BTreeSet<IpAddr> = spec
            .ports
            .iter()
            .flat_map(|port| {
                [Family::V4, Family::V6].map(|family| candidates(node, port, slices, family, true).ready)
            })
            .flatten()
            .map(|endpoint| endpoint.address.ip())
            .collect();
        out.health = Some(Health { port: spec.health_check_node_port, endpoints: here.len() });
    }
    out
}

/// The endpoints of one port: those that are ready or, where none is, those that still serve while they end.
fn endpoints(
    node: &str,
    port: &ServicePort,
    slices: &[EndpointSlice],
    family: Family,
    only_local: bool,
) -> Vec<Endpoint> {
    let Candidates { ready, ending } = candidates(node, port, slices, family, only_local);
    if ready.is_empty() { ending.into_iter().collect() } else { ready.into_iter().collect() }
}

/// Endpoints of one port.
struct Candidates {
    ready: BTreeSet<Endpoint>,
    /// Those that end and serve meanwhile.
    ending: BTreeSet<Endpoint>,
}

fn candidates(
    node: &str,
    port: &ServicePort,
    slices: &[EndpointSlice],
    family: Family,
    only_local: bool,
) -> Candidates {
    let wanted = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let protocol = protocol_number(&port.protocol);
    let mut ready = BTreeSet::new();
    let mut ending = BTreeSet::new();
    for slice in slices.iter().filter(|s| s.address_type == wanted) {
        let number = slice
            .ports
            .iter()
            .find(|p| {
                p.name.as_deref().unwrap_or_default() == port.name
                    && protocol_number(p.protocol.as_deref().unwrap_or("TCP")) == protocol
            })
            .and_then(|p| p.port);
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            let local = endpoint.node_name == node;
            if only_local && !local {
                continue;
            }
            let entry = Endpoint { address: SocketAddr::new(ip, number), local };
            let conditions = &endpoint.conditions;
            if conditions.ready.unwrap_or(true) {
                ready.insert(entry);
            } else if conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false) {
                ending.insert(entry);
            }
        }
    }
    Candidates { ready, ending }
}

struct Place<'a> {
    out: &'a mut Plan,
    family: Family,
    protocol: u8,
    affinity_s: Option<u32>,
}

impl Place<'_> {
    fn side(&mut self) -> &mut ServicePlan {
        match self.family {
            Family::V4 => &mut self.out.v4,
            Family::V6 => &mut self.out.v6,
        }
    }

    fn add(&mut self, set: &'static str, key: Vec<u8>, data: Data) {
        self.side().elements.insert(Element { set, key, data });
    }

    fn chain(&mut self, spot: Spot, endpoints: usize, masquerade: bool, local: bool) -> Data {
        let any_address = matches!(spot, Spot::Node(_));
        let affinity_s = self.affinity_s;
        let chain = Chain { endpoints: endpoints as u32, any_address, masquerade, affinity_s, local };
        self.side().chains.insert(chain);
        Data::Goto(chain.name())
    }

    /// From wherever, with the client's own address: it is inside the cluster.
    fn inside(&mut self, spot: Spot, endpoints: &[Endpoint]) {
        self.everywhere(spot, endpoints, false);
    }

    /// From outside to any endpoint: the answer must come back through this node.
    fn outside(&mut self, spot: Spot, endpoints: &[Endpoint]) {
        self.everywhere(spot, endpoints, true);
    }

    fn everywhere(&mut self, spot: Spot, endpoints: &[Endpoint], masquerade: bool) {
        let (key, maps) = (spot.key(self.protocol), spot.maps());
        self.track(spot, endpoints);
        if endpoints.is_empty() {
            return self.add(maps.refused, key, Data::None);
        }
        let chain = self.chain(spot, endpoints.len(), masquerade, false);
        self.slots(spot, endpoints, 0);
        self.add(maps.all, key, chain);
    }

    /// From outside only to endpoints of this node, which see the client; from inside to any.
    fn outside_local(&mut self, spot: Spot, all: &[Endpoint], local: &[Endpoint]) {
        let (key, maps) = (spot.key(self.protocol), spot.maps());
        self.track(spot, all);
        self.track(spot, local);
        if all.is_empty() {
            return self.add(maps.refused, key, Data::None);
        }
        let chain = self.chain(spot, all.len(), false, false);
        self.slots(spot, all, 0);
        self.add(maps.inside, key.clone(), chain);
        if local.is_empty() {
            return self.add(maps.not_here, key, Data::None);
        }
        let chain = self.chain(spot, local.len(), false, true);
        self.slots(spot, local, rules::LOCAL_SLOTS);
        self.add(maps.all, key, chain);
    }

    /// Only sources in `ranges` reach the address.
    fn restrict(&mut self, ip: IpAddr, port: u16, ranges: &[Cidr]) {
        let key = service_key(ip, self.protocol, port);
        let family = self.family;
        for range in ranges.iter().filter(|r| family_of(r.base) == family) {
            let first = [key.clone(), address_bytes(range.base)].concat();
            let until = [key.clone(), address_bytes(range.last())].concat();
            self.add(rules::ALLOWED.name, first, Data::Until(until));
        }
        self.add(rules::RESTRICTED.name, key, Data::None);
    }

    fn track(&mut self, spot: Spot, endpoints: &[Endpoint]) {
        if self.protocol == libc::IPPROTO_UDP as u8 {
            let service = match spot {
                Spot::Address(ip, port) => SocketAddr::new(ip, port),
                Spot::Node(port) => node_port(self.family == Family::V6, port),
            };
            self.out.udp.extend(endpoints.iter().map(|e| (service, e.address)));
        }
    }

    fn slots(&mut self, spot: Spot, endpoints: &[Endpoint], first: u32) {
        let mut key = spot.key(self.protocol);
        if let Spot::Node(_) = spot {
            key = [vec![0; self.family.words() as usize * 4], key].concat();
        }
        for (slot, endpoint) in (first..).zip(endpoints) {
            let key = [key.as_slice(), &slot.to_ne_bytes()].concat();
            self.add(rules::ENDPOINTS.name, key, Data::Value(target(endpoint)));
        }
    }
}

/// Where a service is reached.
#[derive(Clone, Copy)]
enum Spot {
    /// At an address and port.
    Address(IpAddr, u16),
    /// At a port of every address of the node.
    Node(u16),
}

/// The maps and sets of a kind of spot.
struct Maps {
    all: &'static str,
    inside: &'static str,
    refused: &'static str,
    not_here: &'static str,
}

impl Spot {
    fn key(self, protocol: u8) -> Vec<u8> {
        match self {
            Self::Address(ip, port) => service_key(ip, protocol, port),
            Self::Node(port) => port_key(protocol, port),
        }
    }

    fn maps(self) -> Maps {
        match self {
            Self::Address(..) => Maps {
                all: rules::SERVICES.name,
                inside: rules::INSIDE.name,
                refused: rules::NO_ENDPOINTS.name,
                not_here: rules::NOT_HERE.name,
            },
            Self::Node(_) => Maps {
                all: rules::NODE_PORTS.name,
                inside: rules::INSIDE_NODE_PORTS.name,
                refused: rules::NO_NODE_ENDPOINTS.name,
                not_here: rules::NOT_HERE_NODE_PORTS.name,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_ends_is_served_where_nothing_is_ready_and_is_no_health() {
        let service = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30999, "clusterIPs": ["10.43.0.5"], "ports": [{"name": "p", "port": 80, "nodePort": 30080}]}});
        let service: Service = serde_json::from_value(service).unwrap();
        let endpoint = |last: u8, node: &str, ready: bool| -> Value {
            json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node,
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        for (endpoints, healthy, served) in [
            (vec![endpoint(2, "n1", true), endpoint(3, "n1", false), endpoint(4, "n2", true)], 1, vec![2, 4]),
            (vec![endpoint(2, "n1", false), endpoint(4, "n2", true)], 0, vec![2, 4]),
            (vec![endpoint(2, "n1", false)], 0, vec![2]),
        ] {
            let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "p", "port": 8080}]});
            let plan = plan("n1", &service, &[serde_json::from_value(slice).unwrap()]);
            assert_eq!(plan.health, Some(Health { port: 30999, endpoints: healthy }), "{endpoints:?}");
            let targets: Vec<u8> = plan.family(Family::V4).targets().iter().map(|t| t[3]).collect();
            assert_eq!(targets, served, "{endpoints:?}");
        }
    }
}
