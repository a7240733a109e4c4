//! `hostPort`: what is sent to a port of the node reaches the pod that asked for the port.
//!
//! In flow the ports of attached pods; out flow elements of one nftables map in a table of its own, so that
//! the kernel's table is the memory: it outlives the agent, and a new agent reads it back.
//!
//! | Map | Key | Leads to |
//! |---|---|---|
//! | `host-ports` | address (0 for all of the node's), protocol, port | pod's address and port |
//! | `hairpin` | a pod's address twice | masqueraded: it talks to itself |

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
};

use crate::{
    netlink::{Error, Socket},
    nft::{self, Batch, Data, Element, Family, Hook, Leads, Part, Rule, Set, hooks},
    proxy::{
        conntrack,
        plan::{address_bytes, service_key},
    },
};

/// The table's name, in both families.
pub(crate) const TABLE: &str = "yare-host-ports";

const fn set(name: &'static str, key: &'static [Part], leads: Leads) -> Set {
    Set { name, key, leads, dynamic: false, ranges: false }
}

const HOST_PORTS: Set = set(
    "host-ports",
    &[Part::Address, Part::Protocol, Part::Port],
    Leads::Value(&[Part::Address, Part::Port]),
);
const HAIRPIN: Set = set("hairpin", &[Part::Address, Part::Address], Leads::Nowhere);

/// Register that a target is loaded into: past the longest key.
const TO: u32 = 10;

/// Transport of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Sctp => 132,
        }
    }
}

/// A port on the node for a port of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// Transport.
    pub protocol: Protocol,
    /// Address on the node; `None` or the unspecified one: all.
    pub ip: Option<IpAddr>,
    /// Port on the node.
    pub port: u16,
    /// Port in the pod.
    pub pod_port: u16,
}

impl HostPort {
    /// The map's key and value for a pod; `None` where the families differ.
    fn element(&self, pod: IpAddr) -> Option<Element> {
        let zero: IpAddr = if pod.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let ip = self.ip.filter(|ip| !ip.is_unspecified()).unwrap_or(zero);
        if ip.is_ipv4() != pod.is_ipv4() {
            return None;
        }
        let mut value = address_bytes(pod);
        value.extend_from_slice(&self.pod_port.to_be_bytes());
        value.extend_from_slice(&[0, 0]);
        let key = service_key(ip, self.protocol.number(), self.port);
        Some(Element { set: HOST_PORTS.name, key, data: Data::Value(value) })
    }
}

/// The ports of all pods of the node.
pub(crate) struct HostPorts {
    socket: Socket,
    /// What the kernel's map holds.
    set: BTreeMap<(Family, Vec<u8>), Vec<u8>>,
}

impl HostPorts {
    /// Reads back what an earlier agent set, and writes the rules anew around it.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = nft::socket()?;
        let mut all = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let there = match nft::elements(&mut socket, family, TABLE, HOST_PORTS.name) {
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Vec::new(),
                other => other?,
            };
            let mut batch = Batch::new(family, TABLE);
            base(&mut batch, family);
            for (key, value) in &there {
                batch.add_elements([&element(key, value), &hairpin(family, value)]);
            }
            batch.commit(&mut socket)?;
            all.extend(there.into_iter().map(|(key, value)| ((family, key), value)));
        }
        Ok(Self { socket, set: all })
    }

    /// Leads `ports` to the pod. A port that another pod had leads to this one from now on: the scheduler
    /// gave it away, so the other is about to end.
    pub(crate) fn add(&mut self, pod: IpAddr, ports: &[HostPort]) -> Result<(), Error> {
        let family = if pod.is_ipv4() { Family::V4 } else { Family::V6 };
        let new: Vec<Element> = ports.iter().filter_map(|p| p.element(pod)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(family, TABLE);
        for element in &new {
            if let Some(old) = self.set.get(&(family, element.key.clone())) {
                batch.delete_elements([&self::element(&element.key, old)]);
            }
        }
        batch.add_elements(&new);
        batch.add_elements([&hairpin(family, &address_bytes(pod))]);
        batch.commit(&mut self.socket)?;
        for element in new {
            if let Data::Value(value) = element.data {
                self.set.insert((family, element.key), value);
            }
        }
        // Datagrams that came too early are tracked as going to the node itself.
        let udp: Vec<&HostPort> = ports.iter().filter(|p| p.protocol == Protocol::Udp).collect();
        if udp.is_empty() {
            return Ok(());
        }
        conntrack::forget_udp(&mut self.socket, |sent_to, answers| {
            let to = |p: &&HostPort| p.port == sent_to.port() && p.ip.is_none_or(|ip| ip == sent_to.ip());
            sent_to == answers && udp.iter().any(to)
        })
    }

    /// Takes the pod's ports away.
    pub(crate) fn remove(&mut self, pod: IpAddr) -> Result<(), Error> {
        let family = if pod.is_ipv4() { Family::V4 } else { Family::V6 };
        let own = address_bytes(pod);
        let gone: Vec<(Vec<u8>, Vec<u8>)> = self
            .set
            .iter()
            .filter(|((f, _), value)| *f == family && value.starts_with(&own))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(family, TABLE);
        for (key, value) in &gone {
            batch.delete_elements([&element(key, value)]);
        }
        batch.delete_elements([&hairpin(family, &own)]);
        batch.commit(&mut self.socket)?;
        for (key, _) in gone {
            self.set.remove(&(family, key));
        }
        conntrack::forget_udp(&mut self.socket, |sent_to: SocketAddr, answers: SocketAddr| {
            answers.ip() == pod && sent_to.ip() != pod
        })
    }
}

fn element(key: &[u8], value: &[u8]) -> Element {
    Element { set: HOST_PORTS.name, key: key.to_vec(), data: Data::Value(value.to_vec()) }
}

/// The pod's address twice; `target` begins with it.
fn hairpin(family: Family, target: &[u8]) -> Element {
    let ip = &target[..family.words() as usize * 4];
    Element { set: HAIRPIN.name, key: [ip, ip].concat(), data: Data::None }
}

/// Lets connections from the node's loopback address leave by the pod's link, where a port is open to them.
pub(crate) fn allow_loopback(link: &str, pod: IpAddr, ports: &[HostPort]) -> std::io::Result<()> {
    let open = |p: &HostPort| p.ip.is_none_or(|ip| ip.is_unspecified() || ip.is_loopback());
    if pod.is_ipv4() && ports.iter().any(open) {
        fs::write(format!("/proc/sys/net/ipv4/conf/{link}/route_localnet"), "1")?;
    }
    Ok(())
}

fn base(batch: &mut Batch, family: Family) {
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    batch.reset_table();
    batch.add_set(&HOST_PORTS);
    batch.add_set(&HAIRPIN);
    batch.add_chain("to-pod", None);
    // Services first: they keep what is theirs.
    batch.add_chain("prerouting", hook("nat", hooks::PREROUTING, -99));
    batch.add_chain("output", hook("nat", hooks::OUTPUT, -99));
    batch.add_chain("postrouting", hook("nat", hooks::POSTROUTING, 101));
    batch.add_chain("input", hook("filter", hooks::INPUT, -110));
    let words = family.words();
    let port = |rule: Rule| rule.load_protocol(words).load_destination_port(words + 1);
    let lead = |rule: Rule| rule.load_from_map(HOST_PORTS.name, 0, TO).send_to(family, TO, TO + words);
    for chain in ["prerouting", "output"] {
        batch.add_rule(chain, Rule::new().to_this_machine().jump("to-pod"));
    }
    batch.add_rule("to-pod", lead(port(Rule::new().load_destination(0, family))));
    batch.add_rule("to-pod", lead(port(Rule::new().load(0, &vec![0; words as usize * 4]))));

    let twice = Rule::new().translated().load_source(0, family).load_destination(words, family);
    batch.add_rule("postrouting", twice.is_in(HAIRPIN.name, 0).masquerade());
    if family == Family::V4 {
        let loopback = |rule: Rule, yes| rule.mask(0, &[255, 0, 0, 0]).compare(0, yes, &[127, 0, 0, 0]);
        let own = loopback(Rule::new().translated().load_source(0, family), true);
        let outward = loopback(own.load_destination(0, family), false);
        batch.add_rule("postrouting", outward.masquerade());
        // A pod's link that answers may come back by must not let the pod at the node's loopback services.
        let to_loopback = loopback(Rule::new().new_connection().load_destination(0, family), true);
        batch.add_rule("input", loopback(to_loopback.load_source(0, family), false).drop());
    }
}
