//! Rules that are younger than objects in the wild: what an object breaks already it may go on breaking.

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use crate::{
    check::{Check, Errors, quantity},
    meta::{invalid_each, validate_label_selector},
    names,
    pod::{
        affinity::{PREFERRED, REQUIRED, check_label_keys},
        resources::{divides_into_pages, is_huge_page},
        security::{each_container, host_sysctl},
        volumes::check_file_path,
    },
    view::View,
};

/// Errors in the specification `spec`, given what it was before. `odd_selectors`: what selects other pods may hold
/// values that no label can have.
pub fn check(
    errs: &mut Errors,
    path: &Path<'_>,
    spec: &Value,
    before: &Value,
    odd_selectors: bool,
    gates: &Gates,
) {
    let rules: [(Rule, bool); 8] = [
        (check_token_paths, false),
        (check_huge_pages, false),
        (check_resize_restarts, false),
        (check_sysctls, false),
        (check_selector_values, odd_selectors),
        (check_node_values, false),
        (check_spread_selectors, false),
        (check_user_devices, false),
    ];
    for (rule, is_spared) in rules {
        if is_spared {
            continue;
        }
        let found = errs.len();
        rule(errs, path, spec);
        if errs.len() > found
            && !before.is_null()
            && !errors_of(|errs| rule(errs, &Path::ROOT, before)).is_empty()
        {
            errs.truncate(found);
        }
    }
    check_spread_keys(errs, path, spec, before, gates);
}

type Rule = fn(&mut Errors, &Path<'_>, &Value);

/// Whether the affinity in `spec` selects pods by values that no label can have.
pub fn has_odd_selectors(spec: &Value) -> bool {
    !errors_of(|errs| check_selector_values(errs, &Path::ROOT, spec)).is_empty()
}

/// The same of one selector.
pub fn has_odd_values(selector: &Value) -> bool {
    !errors_of(|errs| check_values(errs, &Path::ROOT, selector)).is_empty()
}

fn errors_of(check: impl FnOnce(&mut Errors)) -> Errors {
    let mut errs = Errors::new();
    check(&mut errs);
    errs
}

/// A projected token's file stays in its volume.
fn check_token_paths(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let list = path.child("volumes");
    for (i, volume) in spec.items("volumes").iter().enumerate() {
        let p = list.index(i);
        let p = p.child("projected");
        for source in volume.items("projected.sources") {
            let file = source.str_at("serviceAccountToken.path");
            if !file.is_empty() {
                check_file_path(errs, &p.child("path"), file);
            }
        }
    }
}

/// Huge pages are asked for by the page.
fn check_huge_pages(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let mut check = |path: &Path<'_>, amounts: &Value| {
        for (name, amount) in amounts.entries("").filter(|(name, _)| is_huge_page(name)) {
            let amount = quantity(amount);
            if !divides_into_pages(name, amount) {
                errs.invalid(
                    &path.key(name),
                    amount.to_string(),
                    format!("{amount} is not positive integer multiple of {name}"),
                );
            }
        }
    };
    let mut of = |path: &Path<'_>, resources: &Value| {
        for list in ["limits", "requests"] {
            check(&path.child(list), resources.at(list));
        }
    };
    each_container(spec, path, |container, p| of(&p.child("resources"), container.at("resources")));
    of(&path.child("resources"), spec.at("resources"));
    check(&path.child("overhead").child("limits"), spec.at("overhead"));
}

/// An init container that ends is not restarted to be resized.
fn check_resize_restarts(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let list = path.child("initContainers");
    for (i, container) in spec.items("initContainers").iter().enumerate() {
        if container.str_at("restartPolicy") == "Always" {
            continue;
        }
        let p = list.index(i);
        let policies = p.child("resizePolicy");
        for (j, policy) in container.items("resizePolicy").iter().enumerate() {
            if policy.str_at("restartPolicy") == "RestartContainer" {
                errs.invalid(
                    &policies.index(j).child("restartPolicy"),
                    "RestartContainer",
                    "must not be set to 'RestartContainer' for non-sidecar initContainers",
                );
            }
        }
    }
}

/// What a pod shares with the host it does not set.
fn check_sysctls(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let p = path.child("securityContext");
    let list = p.child("sysctls");
    for (i, sysctl) in spec.items("securityContext.sysctls").iter().enumerate() {
        let name = sysctl.str_at("name");
        if let Some(why) = host_sysctl(spec, name) {
            errs.invalid(&list.index(i).child("name"), name, why);
        }
    }
}

/// Labels of other pods are compared with what a label can be.
fn check_selector_values(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let p = path.child("affinity");
    let mut check = |path: &Path<'_>, term: &Value| {
        for selector in ["labelSelector", "namespaceSelector"] {
            check_values(errs, &path.child(selector), term.at(selector));
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (affinity, p) = (spec.at("affinity").at(kind), p.child(kind));
        let list = p.child(REQUIRED);
        for (i, term) in affinity.items(REQUIRED).iter().enumerate() {
            check(&list.index(i), term);
        }
        let list = p.child(PREFERRED);
        for (i, term) in affinity.items(PREFERRED).iter().enumerate() {
            check(&list.index(i).child("podAffinityTerm"), term.at("podAffinityTerm"));
        }
    }
}

/// Labels of nodes are compared with what a label can be.
fn check_node_values(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let p = path.child("affinity");
    let p = p.child("nodeAffinity");
    let p = p.child(REQUIRED);
    let list = p.child("nodeSelectorTerms");
    let required = spec.at("affinity.nodeAffinity").at(REQUIRED);
    for (i, term) in required.items("nodeSelectorTerms").iter().enumerate() {
        check_values(errs, &list.index(i), term);
    }
}

fn check_values(errs: &mut Errors, path: &Path<'_>, selector: &Value) {
    let list = path.child("matchExpressions");
    for (i, requirement) in selector.items("matchExpressions").iter().enumerate() {
        let p = list.index(i);
        let values = p.child("values");
        for (j, value) in requirement.strings("values").into_iter().enumerate() {
            errs.extend(invalid_each(&values.index(j), value, names::label_value(value)));
        }
    }
}

fn check_spread_selectors(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let list = path.child("topologySpreadConstraints");
    for (i, constraint) in spec.items("topologySpreadConstraints").iter().enumerate() {
        let p = list.index(i);
        errs.extend(validate_label_selector(constraint.at("labelSelector"), &p.child("labelSelector")));
    }
}

/// Block devices are not there for the users of a pod's own user namespace.
fn check_user_devices(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    if spec.bool_opt("hostUsers") != Some(false) {
        return;
    }
    each_container(spec, path, |container, p| {
        if container.is_set("volumeDevices") {
            errs.forbidden(&p.child("volumeDevices"), "when `hostUsers` is false");
        }
    });
}

/// Keys whose values a constraint takes from the pod (KEP-3243). Since they become part of its selector, they may
/// stand there once; before, they might not stand there at all. An object that one of the rules would refuse goes on
/// under the other.
fn check_spread_keys(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &Value, gates: &Gates) {
    let all = |errs: &mut Errors, path: &Path<'_>, spec: &Value, rule: Rule| {
        let list = path.child("topologySpreadConstraints");
        for (i, constraint) in spec.items("topologySpreadConstraints").iter().enumerate() {
            rule(errs, &list.index(i), constraint);
        }
    };
    let merged = gates.is_on("MatchLabelKeysInPodTopologySpreadSelectorMerge");
    let (rule, other): (Rule, Rule) =
        if merged { (check_label_keys, check_plain_keys) } else { (check_plain_keys, check_label_keys) };
    let broken = !errors_of(|errs| all(errs, &Path::ROOT, before, rule)).is_empty();
    all(errs, path, spec, if broken { other } else { rule });
}

fn check_plain_keys(errs: &mut Errors, path: &Path<'_>, constraint: &Value) {
    let keys = constraint.strings("matchLabelKeys");
    if keys.is_empty() {
        return;
    }
    let p = path.child("matchLabelKeys");
    if !constraint.has("labelSelector") {
        errs.push(FieldError::forbidden(&p, "must not be specified when labelSelector is not set"));
    }
    let selected: Vec<&str> = constraint
        .entries("labelSelector.matchLabels")
        .map(|(key, _)| key)
        .chain(constraint.items("labelSelector.matchExpressions").iter().map(|e| e.str_at("key")))
        .collect();
    for (i, key) in keys.into_iter().enumerate() {
        errs.each(&p.index(i), key, names::qualified_name(key));
        if selected.contains(&key) {
            errs.invalid(&p.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}
