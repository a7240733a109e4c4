//! `Endpoints`, and the addresses that may stand behind a service.

use std::net::IpAddr;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    names, net,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub(super) struct Endpoints;

const LISTS: [&str; 2] = ["addresses", "notReadyAddresses"];

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for port in object.items_mut("subsets").iter_mut().flat_map(|s| s.items_mut("ports")) {
            port.default_zero("protocol", "TCP");
        }
    }

    fn validate(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let strict = ctx.gates.is_on("StrictIPCIDRValidation");
        let path = Path::new("subsets");
        for (i, subset) in object.items("subsets").iter().enumerate() {
            let p = path.index(i);
            if LISTS.iter().all(|l| subset.items(l).is_empty()) {
                errs.required(&p, "must specify `addresses` or `notReadyAddresses`");
            }
            for list in LISTS {
                let p = p.child(list);
                for (j, address) in subset.items(list).iter().enumerate() {
                    check_address(&mut errs, &p.index(j), address, strict);
                }
            }
            let p = p.child("ports");
            let ports = subset.items("ports");
            for (j, port) in ports.iter().enumerate() {
                check_port(&mut errs, &p.index(j), port, ports.len() > 1);
            }
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        // Old objects may hold what is no longer valid; they may keep it.
        if same(new.at("subsets"), old.at("subsets")) { Vec::new() } else { self.validate(new, ctx) }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let managed_by = new.at("metadata.labels").get("endpoints.kubernetes.io/managed-by");
        if managed_by.is_some_and(|m| m == "endpoint-controller") {
            return out;
        }
        let path = Path::new("subsets");
        for (i, subset) in new.items("subsets").iter().enumerate() {
            let p = path.index(i);
            for list in LISTS {
                let p = p.child(list);
                for (j, address) in subset.items(list).iter().enumerate() {
                    out.extend(net::ip_warnings(&p.index(j).child("ip"), address.str_at("ip")));
                }
            }
        }
        out
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn check_address(errs: &mut Errors, path: &Path<'_>, address: &Value, strict: bool) {
    let ip = address.str_at("ip");
    net::check_old_ip(errs, &path.child("ip"), ip, &[], strict);
    let hostname = address.str_at("hostname");
    if !hostname.is_empty() {
        errs.each(&path.child("hostname"), hostname, names::dns1123_label(hostname));
    }
    if let Some(node) = address.str_opt("nodeName") {
        errs.each(&path.child("nodeName"), node, names::dns1123_subdomain(node));
    }
    check_endpoint_ip(errs, &path.child("ip"), ip);
}

fn check_port(errs: &mut Errors, path: &Path<'_>, port: &Value, named: bool) {
    let name = port.str_at("name");
    if !name.is_empty() {
        errs.each(&path.child("name"), name, names::dns1123_label(name));
    } else if named {
        errs.required(&path.child("name"), "");
    }
    let number = port.int_at("port");
    errs.each(&path.child("port"), number, names::port_number(number));
    errs.required_one_of(&path.child("protocol"), port.str_at("protocol"), &["TCP", "UDP", "SCTP"]);
    if let Some(protocol) = port.str_opt("appProtocol") {
        errs.each(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
    }
}

/// Errors in an address that traffic of a service could be sent to: none that mean the node itself.
pub fn check_endpoint_ip(errs: &mut Errors, path: &Path<'_>, value: &str) {
    let Some(ip) = net::parse_ip_sloppy(value).map(|ip| ip.to_canonical()) else {
        return errs.invalid(path, value, "must be a valid IP address");
    };
    if ip.is_unspecified() {
        errs.invalid(path, value, format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        errs.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        errs.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errs.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}
