//! From one Service and its slices to the elements that make it work on this node. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    rules,
    view::{EndpointSlice, Service, ServicePort},
};
use crate::nft::{Data, Element, Family};

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
}

impl Chain {
    /// Its name.
    pub fn name(self) -> String {
        let place = if self.any_address { "node" } else { "service" };
        let masquerade = if self.masquerade { "-masquerade" } else { "" };
        let affinity = self.affinity_s.map(|s| format!("-affinity-{s}")).unwrap_or_default();
        format!("{place}-{}{masquerade}{affinity}", self.endpoints)
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
    /// UDP: service address to endpoint, for connection tracking.
    pub udp: BTreeSet<(SocketAddr, SocketAddr)>,
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

fn protocol_number(name: &str) -> u8 {
    match name {
        "UDP" => libc::IPPROTO_UDP as u8,
        "SCTP" => 132,
        _ => libc::IPPROTO_TCP as u8,
    }
}

fn address_bytes(ip: IpAddr) -> Vec<u8> {
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

fn service_key(ip: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
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
    let external: Vec<IpAddr> =
        spec.external_ips.iter().copied().chain(balanced.filter_map(|i| i.ip)).collect();
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
                place.address(*ip, port.port, chosen, false);
            }
            let (chosen, masquerade) = if external_local { (&local, false) } else { (&all, true) };
            for ip in external.iter().filter(|ip| family_of(**ip) == family) {
                place.address(*ip, port.port, chosen, masquerade);
            }
            if port.node_port != 0 {
                place.node_port(port.node_port, chosen, masquerade);
            }
            for endpoint in all.iter().filter(|e| e.local) {
                let ip = address_bytes(endpoint.address.ip());
                place.add(rules::HAIRPIN.name, [ip.clone(), ip].concat(), Data::None);
            }
        }
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
    if ready.is_empty() { ending.into_iter().collect() } else { ready.into_iter().collect() }
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

    fn chain(&mut self, endpoints: usize, any_address: bool, masquerade: bool) -> Data {
        let affinity_s = self.affinity_s;
        let chain = Chain { endpoints: endpoints as u32, any_address, masquerade, affinity_s };
        self.side().chains.insert(chain);
        Data::Goto(chain.name())
    }

    fn address(&mut self, ip: IpAddr, port: u16, endpoints: &[Endpoint], masquerade: bool) {
        let key = service_key(ip, self.protocol, port);
        if self.protocol == libc::IPPROTO_UDP as u8 {
            let service = SocketAddr::new(ip, port);
            self.out.udp.extend(endpoints.iter().map(|e| (service, e.address)));
        }
        if endpoints.is_empty() {
            return self.add(rules::NO_ENDPOINTS.name, key, Data::None);
        }
        let chain = self.chain(endpoints.len(), false, masquerade);
        self.slots(&key, endpoints);
        self.add(rules::SERVICES.name, key, chain);
    }

    fn node_port(&mut self, port: u16, endpoints: &[Endpoint], masquerade: bool) {
        let key = port_key(self.protocol, port);
        if endpoints.is_empty() {
            return self.add(rules::NO_NODE_ENDPOINTS.name, key, Data::None);
        }
        let chain = self.chain(endpoints.len(), true, masquerade);
        let zero = vec![0; self.family.words() as usize * 4];
        self.slots(&[zero, key.clone()].concat(), endpoints);
        self.add(rules::NODE_PORTS.name, key, chain);
    }

    fn slots(&mut self, key: &[u8], endpoints: &[Endpoint]) {
        for (slot, endpoint) in endpoints.iter().enumerate() {
            let key = [key, &(slot as u32).to_ne_bytes()].concat();
            self.add(rules::ENDPOINTS.name, key, Data::Value(target(endpoint)));
        }
    }
}
