//! The table: its maps, and the chains that do not depend on services.

use std::net::IpAddr;

use super::{Config, plan::Chain};
use crate::{
    ipam::Cidr,
    nft::{Batch, Family, Hook, Leads, Part, Rule, Set, hooks},
};

/// The table's name, in both families.
pub const TABLE: &str = "yare";
/// Marks connections that must be masqueraded; the bit that kube-proxy uses.
const MASQUERADE: u32 = 0x4000;

const SERVICE: &[Part] = &[Part::Address, Part::Protocol, Part::Port];
const NODE_PORT: &[Part] = &[Part::Protocol, Part::Port];
const SLOT: &[Part] = &[Part::Address, Part::Protocol, Part::Port, Part::Number];
const CLIENT: &[Part] = &[Part::Address, Part::Address, Part::Protocol, Part::Port];
const SOURCE: &[Part] = &[Part::Address, Part::Protocol, Part::Port, Part::Address];
const TARGET: &[Part] = &[Part::Address, Part::Port];

const fn set(name: &'static str, key: &'static [Part], leads: Leads) -> Set {
    Set { name, key, leads, dynamic: false, ranges: false }
}

pub const SERVICES: Set = set("services", SERVICE, Leads::Chain);
pub const NODE_PORTS: Set = set("node-ports", NODE_PORT, Leads::Chain);
pub const ENDPOINTS: Set = set("endpoints", SLOT, Leads::Value(TARGET));
pub const NO_ENDPOINTS: Set = set("no-endpoints", SERVICE, Leads::Nowhere);
pub const NO_NODE_ENDPOINTS: Set = set("no-node-endpoints", NODE_PORT, Leads::Nowhere);
pub const HAIRPIN: Set = set("hairpin", &[Part::Address, Part::Address], Leads::Nowhere);
pub const AFFINITY: Set = Set { dynamic: true, ..set("affinity", CLIENT, Leads::Value(TARGET)) };
pub const INSIDE: Set = set("inside", SERVICE, Leads::Chain);
pub const INSIDE_NODE_PORTS: Set = set("inside-node-ports", NODE_PORT, Leads::Chain);
pub const NOT_HERE: Set = set("not-here", SERVICE, Leads::Nowhere);
pub const NOT_HERE_NODE_PORTS: Set = set("not-here-node-ports", NODE_PORT, Leads::Nowhere);
pub const RESTRICTED: Set = set("restricted", SERVICE, Leads::Nowhere);
pub const ALLOWED: Set = Set { ranges: true, ..set("allowed", SOURCE, Leads::Nowhere) };

/// All of them.
const SETS: &[Set] = &[
    SERVICES,
    NODE_PORTS,
    ENDPOINTS,
    NO_ENDPOINTS,
    NO_NODE_ENDPOINTS,
    HAIRPIN,
    AFFINITY,
    INSIDE,
    INSIDE_NODE_PORTS,
    NOT_HERE,
    NOT_HERE_NODE_PORTS,
    RESTRICTED,
    ALLOWED,
];

/// Slots from here on hold the endpoints of this node, for traffic that must not leave it.
pub const LOCAL_SLOTS: u32 = 1 << 16;

/// Register that an endpoint is loaded into: past the longest key.
const TO: u32 = 10;

const fn hook(kind: &'static str, number: u32, priority: i32) -> Hook {
    Hook { kind, number, priority }
}

/// Everything but the chains of endpoints.
pub fn base(batch: &mut Batch, family: Family, config: &Config) {
    batch.reset_table();
    for set in SETS {
        batch.add_set(set);
    }
    for chain in ["to-service", "from-inside", "restrict", "refuse"] {
        batch.add_chain(chain, None);
    }
    // Before destinations are translated.
    batch.add_chain("restrict-prerouting", Some(hook("filter", hooks::PREROUTING, -110)));
    batch.add_chain("drop-not-here", Some(hook("filter", hooks::PREROUTING, -90)));
    batch.add_chain("restrict-output", Some(hook("filter", hooks::OUTPUT, -110)));
    batch.add_chain("prerouting", Some(hook("nat", hooks::PREROUTING, -100)));
    batch.add_chain("output", Some(hook("nat", hooks::OUTPUT, -100)));
    batch.add_chain("postrouting", Some(hook("nat", hooks::POSTROUTING, 100)));
    batch.add_chain("refuse-input", Some(hook("filter", hooks::INPUT, -110)));
    batch.add_chain("refuse-forward", Some(hook("filter", hooks::FORWARD, -110)));
    batch.add_chain("refuse-output", Some(hook("filter", hooks::OUTPUT, -110)));

    for chain in ["prerouting", "output"] {
        batch.add_rule(chain, Rule::new().jump("to-service"));
    }
    let local = Rule::new().to_this_machine();
    let pods: Vec<&Cidr> = config.cluster_cidrs.iter().filter(|c| family_of(c) == family).collect();
    // A service whose outside traffic stays on its node is open to the cluster as a whole.
    batch.add_rule("to-service", Rule::new().from_this_machine().jump("from-inside"));
    for from in &pods {
        let rule = within(Rule::new().load_source(0, family), from, true);
        batch.add_rule("to-service", rule.jump("from-inside"));
    }
    batch.add_rule("from-inside", service_key(Rule::new(), family).by_map(INSIDE.name, 0));
    batch.add_rule("from-inside", node_port_key(local.clone()).by_map(INSIDE_NODE_PORTS.name, 0));
    batch.add_rule("to-service", service_key(Rule::new(), family).by_map(SERVICES.name, 0));
    batch.add_rule("to-service", node_port_key(local.clone()).by_map(NODE_PORTS.name, 0));

    for chain in ["restrict-prerouting", "restrict-output"] {
        batch.add_rule(chain, Rule::new().jump("restrict"));
    }
    let restricted = service_key(Rule::new(), family).is_in(RESTRICTED.name, 0);
    let stranger = restricted.load_source(family.words() + 2, family).is_not_in(ALLOWED.name, 0);
    batch.add_rule("restrict", stranger.drop());

    for chain in ["refuse-input", "refuse-forward", "refuse-output"] {
        batch.add_rule(chain, Rule::new().jump("refuse"));
    }
    // After translation, and before a missing route could be answered: traffic from inside has another
    // destination by now, and what leaves this machine itself does not pass here.
    batch.add_rule("drop-not-here", service_key(Rule::new(), family).is_in(NOT_HERE.name, 0).drop());
    let node_port = node_port_key(local.clone()).is_in(NOT_HERE_NODE_PORTS.name, 0);
    batch.add_rule("drop-not-here", node_port.drop());
    // A reset reaches also a client on this node, whom an ICMP message about its own packet does not.
    let tcp = [libc::IPPROTO_TCP as u8];
    let to_service = service_key(Rule::new(), family).is_in(NO_ENDPOINTS.name, 0);
    let to_node = node_port_key(local).is_in(NO_NODE_ENDPOINTS.name, 0);
    for refused in [to_service, to_node] {
        batch.add_rule("refuse", refused.clone().load_protocol(0).compare(0, true, &tcp).reset());
        batch.add_rule("refuse", refused.unreachable(family));
    }

    batch.add_rule("postrouting", Rule::new().marked(MASQUERADE).masquerade());
    let twice = Rule::new().translated().load_source(0, family).load_destination(family.words(), family);
    batch.add_rule("postrouting", twice.is_in(HAIRPIN.name, 0).masquerade());
    // From pods to the outside.
    for from in &pods {
        let mut rule = within(Rule::new().load_source(0, family), from, true);
        for to in &pods {
            rule = within(rule.load_destination(0, family), to, false);
        }
        batch.add_rule("postrouting", rule.masquerade());
    }
}

fn family_of(range: &Cidr) -> Family {
    if range.base.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Goes on if the address in register 0 is (or is not) in the range.
fn within(rule: Rule, range: &Cidr, inside: bool) -> Rule {
    let base = match range.base {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mask: Vec<u8> = (0..base.len() as u32)
        .map(|byte| {
            let bits = u32::from(range.prefix).saturating_sub(byte * 8).min(8);
            (0xff_u32 << (8 - bits)) as u8
        })
        .collect();
    rule.mask(0, &mask).compare(0, inside, &base)
}

/// Loads address, protocol and port from register 0 on.
fn service_key(rule: Rule, family: Family) -> Rule {
    let after = family.words();
    rule.load_destination(0, family).load_protocol(after).load_destination_port(after + 1)
}

fn node_port_key(rule: Rule) -> Rule {
    rule.load_protocol(0).load_destination_port(1)
}

/// A chain that chooses between endpoints.
pub fn endpoint_chain(batch: &mut Batch, family: Family, chain: Chain) {
    let name = chain.name();
    let words = family.words();
    batch.add_chain(&name, None);
    if chain.masquerade {
        batch.add_rule(&name, Rule::new().set_mark(MASQUERADE));
    }
    // The key as it stands in `endpoints`, from register `at` on.
    let key = |rule: Rule, at: u32| {
        let rule = if chain.any_address {
            rule.load(at, &vec![0; words as usize * 4])
        } else {
            rule.load_destination(at, family)
        };
        rule.load_protocol(at + words).load_destination_port(at + words + 1)
    };
    let client = |rule: Rule| key(rule.load_source(0, family), words);
    if chain.affinity_s.is_some() {
        let known = client(Rule::new()).load_from_map(AFFINITY.name, 0, TO);
        batch.add_rule(&name, known.send_to(family, TO, TO + words));
    }
    let first = if chain.local { LOCAL_SLOTS } else { 0 };
    let mut rule = key(Rule::new(), 0).load_random(words + 2, chain.endpoints, first).load_from_map(
        ENDPOINTS.name,
        0,
        TO,
    );
    if let Some(timeout_s) = chain.affinity_s {
        rule = client(rule).remember(AFFINITY.name, 0, TO, u64::from(timeout_s) * 1000);
    }
    batch.add_rule(&name, rule.send_to(family, TO, TO + words));
}
