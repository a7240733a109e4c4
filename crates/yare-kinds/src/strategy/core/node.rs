//! `Node`. A node agent creates its node with a status, so creation keeps it.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, quantity},
    names, net,
    pod::{affinity::check_taint_effect, defaults::round_up_resources, resources},
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        // Both forms of the ranges are always there; the list is the newer one and holds the first again.
        let (one, first) = (
            object.str_at("spec.podCIDR").to_owned(),
            object.strings("spec.podCIDRs").first().map(|s| (*s).to_owned()),
        );
        match first {
            None if !one.is_empty() => object.set("spec.podCIDRs", json!([one])),
            Some(first) if one.is_empty() => object.set("spec.podCIDR", first),
            Some(first) if first != one => object.set("spec.podCIDRs", json!([one])),
            _ => {}
        }
        round_up_resources(object, "status.capacity");
        if object.has("status.capacity") && !object.has("status.allocatable") {
            let capacity = object.at("status.capacity").clone();
            object.set("status.allocatable", capacity);
        }
        round_up_resources(object, "status.allocatable");
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        // Configuration from a ConfigMap has been removed.
        object.remove("spec.configSource");
        object.remove("status.config");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_taints(&mut errs, object);
        check_resources(&mut errs, object);
        check_ranges(&mut errs, object);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        check_changes(&mut errs, new, old);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_resources(&mut errs, new);
        check_changes(&mut errs, new, old);
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if new.is_set("spec.configSource") {
            out.push("spec.configSource: the feature is removed".to_owned());
        }
        if new.is_set("spec.externalID") {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        let path = Path::new("spec");
        let path = path.child("podCIDRs");
        for (i, range) in new.strings("spec.podCIDRs").iter().enumerate() {
            out.extend(net::cidr_warnings(&path.index(i), range));
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }
}

/// Errors in `spec.taints`; upstream reports them below `metadata`.
fn check_taints(errs: &mut Errors, object: &Value) {
    let path = Path::new("metadata");
    let path = path.child("taints");
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for (i, taint) in object.items("spec.taints").iter().enumerate() {
        let p = path.index(i);
        let (key, value, effect) = (taint.str_at("key"), taint.str_at("value"), taint.str_at("effect"));
        errs.each(&p.child("key"), key, names::qualified_name(key));
        let messages = names::label_value(value);
        if !messages.is_empty() {
            errs.invalid(&p.child("value"), value, messages.join(";"));
        }
        check_taint_effect(errs, &p.child("effect"), effect);
        if seen.contains(&(key, effect)) {
            errs.push(FieldError {
                detail: "taints must be unique by key and effect pair".to_owned(),
                ..FieldError::duplicate(&p, taint.clone())
            });
        }
        seen.insert((key, effect));
    }
}

fn check_resources(errs: &mut Errors, object: &Value) {
    let path = Path::new("status");
    for list in ["capacity", "allocatable"] {
        let p = path.child(list);
        for (name, amount) in object.at("status").entries(list) {
            resources::check_amount(errs, &p.child(name), name, quantity(amount));
        }
    }
    let p = path.child("declaredFeatures");
    let features = object.strings("status.declaredFeatures");
    for (i, pair) in features.windows(2).enumerate() {
        if pair[0] == pair[1] {
            errs.duplicate(&p.index(i + 1), pair[1]);
        } else if pair[0] > pair[1] {
            errs.invalid(&p.index(i + 1), pair[1], "list must be sorted alphabetically");
        }
    }
}

fn check_ranges(errs: &mut Errors, object: &Value) {
    let path = Path::new("spec");
    let path = path.child("podCIDRs");
    let ranges = object.strings("spec.podCIDRs");
    for (i, range) in ranges.iter().enumerate() {
        net::check_legacy_cidr(errs, &path.index(i), range, &[]);
    }
    let address = |range: &&str| range.split('/').next().unwrap_or_default().to_owned();
    let both = ranges.iter().map(address).any(|a| net::is_ipv4(&a))
        && ranges.iter().map(address).any(|a| net::is_ipv6(&a));
    if ranges.len() > 1 && (!both || ranges.len() > 2) {
        errs.invalid(&path, ranges.clone(), "may specify no more than one CIDR for each IP family");
    }
}

fn check_changes(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("status");
    let path = path.child("addresses");
    let addresses = new.items("status.addresses");
    for (i, address) in addresses.iter().enumerate().filter(|(i, a)| addresses[..*i].contains(a)) {
        errs.duplicate(&path.index(i), address.clone());
    }
    let path = Path::new("spec");
    let before = old.strings("spec.podCIDRs");
    if !before.is_empty() && before != new.strings("spec.podCIDRs") {
        errs.forbidden(
            &path.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    for (field, detail) in [
        ("providerID", "node updates may not change providerID except from \"\" to valid"),
        ("externalID", "may not be updated"),
    ] {
        let (now, before) = (new.at("spec").str_at(field), old.at("spec").str_at(field));
        let settable = field == "providerID" && before.is_empty();
        if now != before && !settable {
            errs.forbidden(&path.child(field), detail);
        }
    }
}
