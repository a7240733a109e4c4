//! `Node`. A node agent creates its node with a status, so creation keeps it.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, annotation, go_json, quantity},
    meta, names, net,
    pod::{affinity::check_taint_effect, defaults::round_up_resources, resources},
    shown::{NODE_ADDRESS, NODE_CONFIG, TAINT, show},
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

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, false);
        if !old.has("spec.configSource") {
            new.remove("spec.configSource");
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        if !old.has("status.config") {
            new.remove("status.config");
        }
    }

    fn validate(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_annotations(&mut errs, object);
        check_taints(&mut errs, &taints_path().child("taints"), object.items("spec.taints"));
        check_resources(&mut errs, object);
        if let Some(swap) = object.int_opt("status.nodeInfo.swap.capacity") {
            // Upstream writes this path so.
            errs.positive(&taints_path().child("nodeSwapStatus").child("capacity"), swap);
        }
        check_features(&mut errs, object);
        check_ranges(&mut errs, object, ctx.gates.is_on("StrictIPCIDRValidation"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        check_changes(&mut errs, new, old);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
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

/// Upstream reports taints below `metadata`.
fn taints_path() -> Path<'static> {
    Path::new("metadata")
}

/// Taints and hints for the scheduler as they were before they became fields, or went.
fn check_annotations(errs: &mut Errors, object: &Value) {
    const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let path = Path::new("metadata");
    let path = path.child("annotations");
    let text = |key: &str| annotation(object, key).filter(|text| !text.is_empty());
    if let Some(text) = text(TAINTS) {
        match go_json(text.as_bytes(), Value::is_array, "[]v1.Taint") {
            Ok(taints) => check_taints(errs, &path.child(TAINTS), taints.items("")),
            Err(why) => errs.invalid(&path, TAINTS, why),
        }
    }
    if let Some(text) = text(AVOID) {
        match go_json(text.as_bytes(), Value::is_object, "v1.AvoidPods") {
            Ok(avoid) => {
                let list = path.child(AVOID);
                for (i, entry) in avoid.items("preferAvoidPods").iter().enumerate() {
                    let p = list.index(i);
                    let p = p.child("PodSignature");
                    if !entry.has("podSignature.podController") {
                        errs.required(&p, "");
                    } else if !entry.bool_at("podSignature.podController.controller") {
                        let p = p.child("PodController");
                        errs.invalid(&p.child("Controller"), false, "must point to a controller");
                    }
                }
            }
            Err(why) => errs.invalid(&path.child("AvoidPods"), AVOID, why),
        }
    }
}

fn check_taints(errs: &mut Errors, path: &Path<'_>, taints: &[Value]) {
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let p = path.index(i);
        let (key, value, effect) = (taint.str_at("key"), taint.str_at("value"), taint.str_at("effect"));
        errs.each(&p.child("key"), key, names::qualified_name(key));
        let messages = names::label_value(value);
        if !messages.is_empty() {
            errs.invalid(&p.child("value"), value, messages.join(";"));
        }
        check_taint_effect(errs, &p.child("effect"), effect);
        if !seen.insert((key, effect)) {
            errs.push(
                FieldError {
                    detail: "taints must be unique by key and effect pair".to_owned(),
                    ..FieldError::duplicate(&p, Value::Null)
                }
                .showing(show(taint, TAINT)),
            );
        }
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
}

/// Errors in the names of what the node can do, which are sorted.
fn check_features(errs: &mut Errors, object: &Value) {
    let path = Path::new("status");
    let p = path.child("declaredFeatures");
    let features = object.strings("status.declaredFeatures");
    for (i, feature) in features.iter().enumerate() {
        if feature.len() > names::SUBDOMAIN_MAX {
            let max = names::SUBDOMAIN_MAX;
            let why = format!("invalid feature name {feature:?}: must be no more than {max} characters");
            errs.invalid(&p.index(i), *feature, why);
        } else if !is_feature_name(feature) {
            let why = format!(
                "invalid feature name {feature:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            );
            errs.invalid(&p.index(i), *feature, why);
        }
        let Some(next) = features.get(i + 1) else { continue };
        if feature == next {
            errs.duplicate(&p.index(i + 1), *next);
        } else if feature > next {
            errs.invalid(&p.index(i + 1), *next, "list must be sorted alphabetically");
        }
    }
}

fn is_feature_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.split('/').all(|segment| {
            segment.starts_with(|c: char| c.is_ascii_alphabetic())
                && segment.chars().all(|c| c.is_ascii_alphanumeric())
        })
}

fn check_ranges(errs: &mut Errors, object: &Value, strict: bool) {
    let path = Path::new("spec");
    let path = path.child("podCIDRs");
    let ranges = object.strings("spec.podCIDRs");
    for (i, range) in ranges.iter().enumerate() {
        net::check_old_cidr(errs, &path.index(i), range, &[], strict);
    }
    let address = |range: &&str| range.split('/').next().unwrap_or_default().to_owned();
    let both = ranges.iter().map(address).any(|a| net::is_ipv4(&a))
        && ranges.iter().map(address).any(|a| net::is_ipv6(&a));
    let unread = ranges.iter().position(|range| net::parse_cidr_sloppy(range).is_none());
    if let (2.., Some(i)) = (ranges.len(), unread) {
        let why = format!("invalid CIDR[{i}]: <nil> (invalid CIDR address: {})", ranges[i]);
        errs.push(FieldError::internal(
            &path,
            format!("invalid PodCIDRs. failed to check with dual stack with error:{why}"),
        ));
    }
    if ranges.len() > 1 && (unread.is_some() || !both || ranges.len() > 2) {
        errs.invalid(&path, ranges.clone(), "may specify no more than one CIDR for each IP family");
    }
}

fn check_changes(errs: &mut Errors, new: &Value, old: &Value) {
    check_annotations(errs, new);
    check_resources(errs, new);
    check_features(errs, new);
    let status_path = Path::new("status");
    let path = status_path.child("addresses");
    let addresses = new.items("status.addresses");
    for (i, address) in addresses.iter().enumerate().filter(|(i, a)| addresses[..*i].contains(a)) {
        let error = FieldError::duplicate(&path.index(i), Value::Null);
        errs.push(error.showing(show(address, NODE_ADDRESS)));
    }
    let path = Path::new("spec");
    let (now, before) = (new.strings("spec.podCIDRs"), old.strings("spec.podCIDRs"));
    let changed = match (before.len(), now.len()) {
        (0, _) => 0,
        (before_len, now_len) if before_len != now_len => 1,
        _ => before.iter().zip(&now).filter(|(before, now)| before != now).count(),
    };
    for _ in 0..changed {
        errs.forbidden(
            &path.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    let provider = old.str_at("spec.providerID");
    if !provider.is_empty() && provider != new.str_at("spec.providerID") {
        errs.forbidden(
            &path.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    if new.has("spec.configSource") {
        check_config(errs, &path.child("configSource"), new.at("spec.configSource"), true);
    }
    let p = status_path.child("config");
    for field in ["assigned", "active", "lastKnownGood"] {
        let source = new.at("status.config").at(field);
        if !source.is_null() {
            check_config(errs, &p.child(field), source, false);
        }
    }
    check_taints(errs, &taints_path().child("taints"), new.items("spec.taints"));
    if new.str_at("spec.externalID") != old.str_at("spec.externalID") {
        errs.forbidden(&path.child("externalID"), "may not be updated");
    }
}

/// Errors in where a node's configuration once came from; a status says which one exactly.
fn check_config(errs: &mut Errors, path: &Path<'_>, source: &Value, in_spec: bool) {
    let map = source.at("configMap");
    if map.is_null() {
        let error = FieldError::invalid(path, Value::Null, "exactly one reference subfield must be non-nil");
        return errs.push(error.showing(show(source, NODE_CONFIG)));
    }
    let p = path.child("configMap");
    for field in ["uid", "resourceVersion"] {
        match (in_spec, map.is_set(field)) {
            (true, true) => errs.forbidden(&p.child(field), format!("{field} must not be set in spec")),
            (false, false) => errs.required(&p.child(field), ""),
            _ => {}
        }
    }
    errs.name(&p.child("namespace"), map.str_at("namespace"), names::dns1123_label);
    errs.name(&p.child("name"), map.str_at("name"), names::dns1123_subdomain);
    errs.name(&p.child("kubeletConfigKey"), map.str_at("kubeletConfigKey"), names::config_map_key);
}
