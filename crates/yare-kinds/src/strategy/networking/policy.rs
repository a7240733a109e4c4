//! `NetworkPolicy`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, judge_selectors_after, validate_label_selector},
    names, net,
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub(super) struct NetworkPolicy;

/// The lists of rules, and the lists of peers in each.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

impl Strategy for NetworkPolicy {
    fn default(&self, policy: &mut Value) {
        for (direction, _) in DIRECTIONS {
            for rule in policy.items_mut(&format!("spec.{direction}")) {
                for port in rule.items_mut("ports") {
                    port.default_absent("protocol", "TCP");
                }
            }
        }
        if !policy.is_set("spec.policyTypes") {
            let both = policy.is_set("spec.egress");
            policy.set(
                "spec.policyTypes",
                if both { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
            );
        }
    }

    fn validate(&self, policy: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), policy.at("spec"), &[], validate_label_selector);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let mut before: Vec<&str> = Vec::new();
        each_block(old.at("spec"), |block, _| {
            before.push(block.str_at("cidr"));
            before.extend(block.strings("except"));
        });
        let judge = judge_selectors_after([old.at("spec.podSelector")]);
        check_spec(&mut errs, &Path::new("spec"), new.at("spec"), &before, judge);
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        each_block(new.at("spec"), |block, path| {
            out.extend(net::cidr_warnings(&path.child("cidr"), block.str_at("cidr")));
            let p = path.child("except");
            for (i, except) in block.strings("except").iter().enumerate() {
                out.extend(net::cidr_warnings(&p.index(i), except));
            }
        });
        out
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Calls `f` with every `ipBlock` and its path.
fn each_block<'a>(spec: &'a Value, mut f: impl FnMut(&'a Value, &Path<'_>)) {
    let root = Path::new("spec");
    for (direction, peers) in DIRECTIONS {
        let list = root.child(direction);
        for (i, rule) in spec.items(direction).iter().enumerate() {
            let p = list.index(i);
            let p = p.child(peers);
            for (j, peer) in rule.items(peers).iter().enumerate() {
                if peer.has("ipBlock") {
                    f(peer.at("ipBlock"), &p.index(j).child("ipBlock"));
                }
            }
        }
    }
}

/// `before`: ranges that the policy had, which may stay as they are.
fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &[&str], judge: JudgeSelector) {
    errs.extend(judge(spec.at("podSelector"), &path.child("podSelector")));
    for (direction, peers) in DIRECTIONS {
        let list = path.child(direction);
        for (i, rule) in spec.items(direction).iter().enumerate() {
            let path = list.index(i);
            let p = path.child("ports");
            for (j, port) in rule.items("ports").iter().enumerate() {
                check_port(errs, &p.index(j), port);
            }
            let p = path.child(peers);
            for (j, peer) in rule.items(peers).iter().enumerate() {
                check_peer(errs, &p.index(j), peer, before, judge);
            }
        }
    }
    let types = spec.strings("policyTypes");
    let p = path.child("policyTypes");
    if types.len() > 2 {
        return errs.invalid(&p, types, "may not specify more than two policyTypes");
    }
    for (i, kind) in types.iter().enumerate() {
        errs.one_listed(&p.index(i), kind, &["Ingress", "Egress"]);
    }
}

fn check_port(errs: &mut Errors, path: &Path<'_>, port: &Value) {
    if let Some(protocol) = port.str_opt("protocol") {
        errs.one_listed(&path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let (p, end_path) = (path.child("port"), path.child("endPort"));
    let end = port.int_opt("endPort");
    match port.at("port") {
        Value::Null => {
            if let Some(end) = end {
                errs.invalid(&end_path, end, "may not be specified when `port` is not specified");
            }
        }
        Value::String(name) => {
            if let Some(end) = end {
                errs.invalid(&end_path, end, "may not be specified when `port` is non-numeric");
            }
            errs.each(&p, name.as_str(), names::port_name(name));
        }
        number => {
            let number = number.as_i64().unwrap_or_default();
            errs.each(&p, number, names::port_number(number));
            if let Some(end) = end {
                if end < number {
                    errs.invalid(&end_path, number, "must be greater than or equal to `port`");
                }
                errs.each(&end_path, end, names::port_number(end));
            }
        }
    }
}

fn check_peer(errs: &mut Errors, path: &Path<'_>, peer: &Value, before: &[&str], judge: JudgeSelector) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"].into_iter().filter(|f| peer.has(f)) {
        count += 1;
        errs.extend(judge(peer.at(field), &path.child(field)));
    }
    if peer.has("ipBlock") {
        check_block(errs, &path.child("ipBlock"), peer.at("ipBlock"), before);
        if count > 0 {
            errs.forbidden(path, "may not specify both ipBlock and another peer");
        }
    } else if count == 0 {
        errs.required(path, "must specify a peer");
    }
}

fn check_block(errs: &mut Errors, path: &Path<'_>, block: &Value, before: &[&str]) {
    let (p, cidr) = (path.child("cidr"), block.str_at("cidr"));
    if cidr.is_empty() {
        return errs.required(&p, "");
    }
    net::check_legacy_cidr(errs, &p, cidr, before);
    let Some((base, bits)) = net::parse_cidr_sloppy(cidr) else { return };
    let list = path.child("except");
    for (i, except) in block.strings("except").iter().enumerate() {
        let p = list.index(i);
        net::check_legacy_cidr(errs, &p, except, before);
        let Some((ip, longer)) = net::parse_cidr_sloppy(except) else { continue };
        let inside = ip.is_ipv4() == base.is_ipv4() && net::masked(ip, bits) == net::masked(base, bits);
        if !inside || longer <= bits {
            errs.invalid(&p, *except, "must be a strict subset of `cidr`");
        }
    }
}
