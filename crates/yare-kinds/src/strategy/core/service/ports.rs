//! Errors in a service's ports.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    names,
    shown::{SERVICE_PORT, show},
    view::View,
};

/// Errors in each port.
pub fn check_each(errs: &mut Errors, path: &Path<'_>, ports: &[Value]) {
    let mut names_seen: HashSet<&str> = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let p = path.index(i);
        let name = port.str_at("name");
        if name.is_empty() {
            if ports.len() > 1 {
                errs.required(&p.child("name"), "");
            }
        } else {
            errs.each(&p.child("name"), name, names::dns1123_label(name));
            if !names_seen.insert(name) {
                errs.duplicate(&p.child("name"), name);
            }
        }
        let number = port.int_at("port");
        errs.each(&p.child("port"), number, names::port_number(number));
        errs.required_one_of(&p.child("protocol"), port.str_at("protocol"), &["TCP", "UDP", "SCTP"]);
        errs.port(&p.child("targetPort"), port.at("targetPort"));
        if let Some(protocol) = port.str_opt("appProtocol") {
            errs.each(&p.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

/// Errors in what ports are beside each other and for a service of the type.
pub fn check_all(errs: &mut Errors, path: &Path<'_>, ports: &[Value], kind: &str) {
    let on_nodes = || ports.iter().enumerate().filter(|(_, port)| port.int_at("nodePort") != 0);
    if kind == "ClusterIP" {
        for (i, _) in on_nodes() {
            errs.forbidden(&path.index(i).child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    let mut seen = HashSet::new();
    for (i, port) in on_nodes() {
        if !seen.insert((port.str_at("protocol"), port.int_at("nodePort"))) {
            errs.duplicate(&path.index(i).child("nodePort"), port.int_at("nodePort"));
        }
    }
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let (protocol, number) = (port.str_at("protocol"), port.int_at("port"));
        if !seen.insert((protocol, number)) {
            // Upstream shows what it compares.
            let key = json!({"protocol": protocol, "port": number});
            errs.push(FieldError::duplicate(&path.index(i), key.clone()).showing(show(&key, SERVICE_PORT)));
        }
    }
}
