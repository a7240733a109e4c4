//! Strategies of the kinds of `discovery.k8s.io`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{
    Context, Strategy,
    core::endpoints::check_endpoint_ip,
    rules::{check_domain_name, check_items},
};
use crate::{
    check::{Check, Errors},
    meta, names, net,
    view::{View, ViewMut, same},
};

/// `EndpointSlice`
pub const ENDPOINT_SLICE: &dyn Strategy = &EndpointSlice;

struct EndpointSlice;

const MAX_TOPOLOGY_LABELS: usize = 16;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_ENDPOINTS: usize = 1000;
const MAX_HINTS: usize = 8;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Controllers of the project's own, which write no unusual addresses.
const MANAGERS: [&str; 2] = ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];

impl Strategy for EndpointSlice {
    fn default(&self, slice: &mut Value) {
        for port in slice.items_mut("ports") {
            port.default_absent("name", "");
            port.default_absent("protocol", "TCP");
        }
    }

    fn prepare_for_create(&self, slice: &mut Value, _ctx: &Context<'_>) {
        slice.set("metadata.generation", 1);
        drop_topology(slice, &Value::Null);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, false, true);
        if !same(new.at("metadata.labels"), old.at("metadata.labels")) {
            meta::bump_generation(new, old);
        }
        if !same(new.at("endpoints"), old.at("endpoints")) {
            drop_topology(new, old);
        }
    }

    fn validate(&self, slice: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, slice, None);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, new, Some(old));
        errs.immutable(&Path::new("addressType"), new.at("addressType"), old.at("addressType"));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() && new.str_at("addressType") == "FQDN" {
            out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        let manager = new.at("metadata.labels").get(MANAGED_BY).and_then(Value::as_str).unwrap_or_default();
        if MANAGERS.contains(&manager) {
            return out;
        }
        let list = Path::new("endpoints");
        for (i, endpoint) in new.items("endpoints").iter().enumerate() {
            let p = list.index(i);
            let p = p.child("addresses");
            for (j, address) in endpoint.strings("addresses").iter().enumerate() {
                out.extend(net::ip_warnings(&p.index(j), address));
            }
        }
        out
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// `v1` has no topology of endpoints. What of it named a node stays, as the node's name.
fn drop_topology(slice: &mut Value, old: &Value) {
    const HOSTNAME: &str = "kubernetes.io/hostname";
    let host = |endpoint: &Value| {
        endpoint.at("deprecatedTopology").get(HOSTNAME).and_then(Value::as_str).map(str::to_owned)
    };
    let before: Vec<String> = old.items("endpoints").iter().filter_map(host).collect();
    for endpoint in slice.items_mut("endpoints") {
        if let Some(node) = host(endpoint)
            && !endpoint.has("nodeName")
            && before.contains(&node)
            && names::dns1123_subdomain(&node).is_empty()
        {
            endpoint.set("nodeName", node);
        }
        endpoint.remove("deprecatedTopology");
    }
}

fn check(errs: &mut Errors, slice: &Value, old: Option<&Value>) {
    let kind = slice.str_at("addressType");
    errs.required_one_of(&Path::new("addressType"), kind, &["IPv4", "IPv6", "FQDN"]);
    check_ports(errs, &Path::new("ports"), slice.items("ports"));
    let mut found = Errors::new();
    check_endpoints(&mut found, &Path::new("endpoints"), slice.items("endpoints"), kind);
    // What older versions let pass may stay as it is.
    let unchanged = || old.is_some_and(|old| same(old.at("endpoints"), slice.at("endpoints")));
    if !found.is_empty() && !unchanged() {
        errs.extend(found);
    }
}

fn check_ports(errs: &mut Errors, path: &Path<'_>, ports: &[Value]) {
    if ports.len() > MAX_PORTS {
        return check_items(errs, path, ports.len(), MAX_PORTS);
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.str_at("name");
        if !name.is_empty() {
            errs.each(&path.child("name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            errs.duplicate(&path.child("name"), name);
        }
        seen.insert(name);
        errs.required_one_of(&path.child("protocol"), port.str_at("protocol"), &["TCP", "UDP", "SCTP"]);
        if let Some(protocol) = port.str_opt("appProtocol") {
            errs.each(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn check_endpoints(errs: &mut Errors, path: &Path<'_>, endpoints: &[Value], kind: &str) {
    if endpoints.len() > MAX_ENDPOINTS {
        return check_items(errs, path, endpoints.len(), MAX_ENDPOINTS);
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let p = path.child("addresses");
        let addresses = endpoint.strings("addresses");
        if addresses.is_empty() {
            errs.required(&p, "must contain at least 1 address");
        }
        check_items(errs, &p, addresses.len(), MAX_ADDRESSES);
        for (j, address) in addresses.iter().enumerate() {
            check_address(errs, &p, j, address, kind);
        }
        if let Some(node) = endpoint.str_opt("nodeName") {
            errs.each(&path.child("nodeName"), node, names::dns1123_subdomain(node));
        }
        let p = path.child("deprecatedTopology");
        check_items(errs, &p, endpoint.entries("deprecatedTopology").count(), MAX_TOPOLOGY_LABELS);
        errs.extend(meta::validate_labels(endpoint.at("deprecatedTopology"), &p));
        if let Some(name) = endpoint.str_opt("hostname") {
            errs.each(&path.child("hostname"), name, names::dns1123_label(name));
        }
        check_hints(errs, &path.child("hints"), endpoint.at("hints"));
    }
}

fn check_address(errs: &mut Errors, list: &Path<'_>, index: usize, address: &str, kind: &str) {
    let path = list.index(index);
    let before = errs.len();
    let (right, wrong) = match kind {
        "IPv4" => {
            net::check_legacy_ip(errs, &path, address, &[]);
            (net::is_ipv4(address), "must be an IPv4 address")
        }
        "IPv6" => {
            net::check_ip(errs, &path, address);
            (net::is_ipv6(address), "must be an IPv6 address")
        }
        "FQDN" => return check_domain_name(errs, &path, address),
        _ => return,
    };
    if errs.len() == before {
        if !right {
            errs.invalid(list, address, wrong);
        }
        check_endpoint_ip(errs, &path, address);
    }
}

fn check_hints(errs: &mut Errors, path: &Path<'_>, hints: &Value) {
    type Rule = fn(&str) -> Vec<String>;
    for (field, rule) in [("forZones", names::label_value as Rule), ("forNodes", names::dns1123_subdomain)] {
        let path = path.child(field);
        let list = hints.items(field);
        if list.len() > MAX_HINTS {
            return check_items(errs, &path, list.len(), MAX_HINTS);
        }
        let mut seen: HashSet<&str> = HashSet::new();
        for (i, hint) in list.iter().enumerate() {
            let p = path.index(i);
            let p = p.child("name");
            let name = hint.str_at("name");
            if seen.contains(&name) {
                errs.duplicate(&p, name);
            }
            seen.insert(name);
            errs.each(&p, name, rule(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        strategy::testing::{CONTEXT, check_create, check_update, defaulted, named, strategy},
        view::{View, ViewMut},
    };

    const GROUP: &str = "discovery.k8s.io";

    #[test]
    fn slices() {
        let base = named(
            json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        );
        let slice = defaulted(GROUP, "EndpointSlice", base.clone());
        assert_eq!(slice.at("ports"), &json!([{"name": "", "port": 80, "protocol": "TCP"}]));
        check_create(
            GROUP,
            "EndpointSlice",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"addressType": "X"}),
                    &[
                        "addressType: Unsupported value: \"X\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
                    ],
                ),
                (
                    json!({"addressType": "IPv6"}),
                    &["endpoints[0].addresses: Invalid value: \"10.0.0.1\": must be an IPv6 address"],
                ),
                (
                    json!({"endpoints": [{"addresses": []}]}),
                    &["endpoints[0].addresses: Required value: must contain at least 1 address"],
                ),
                (
                    json!({"ports": [{"name": "a"}, {"name": "a", "protocol": "X"}]}),
                    &[
                        "ports[1].name: Duplicate value: \"a\"",
                        "ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                    ],
                ),
                (
                    json!({"endpoints": [{"addresses": ["1.2.3.4"], "hints": {"forZones": [{"name": "z"}, {"name": "z"}]}}]}),
                    &["endpoints[0].hints.forZones[1].name: Duplicate value: \"z\""],
                ),
            ],
        );
        check_update(
            GROUP,
            "EndpointSlice",
            &base,
            &[(
                json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]}),
                &["addressType: Invalid value: \"FQDN\": field is immutable"],
            )],
        );
        let mut new = slice.clone();
        new.set("metadata.labels", json!({"x": "y"}));
        strategy(GROUP, "EndpointSlice").prepare_for_update(&mut new, &slice, &CONTEXT);
        assert_eq!(new.int_at("metadata.generation"), 1);
    }
}
