//! Where pods may run: node and pod affinity, topology spread, tolerations.

use serde_json::Value;
use yare_schema::field::Path;

use crate::{
    check::{Check, Errors},
    meta::{validate_label_selector_form, validate_labels},
    names,
    view::View,
};

/// What has to hold for a pod to be placed.
pub const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
/// What had better hold.
pub const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Errors in `affinity`.
pub fn check_affinity(errs: &mut Errors, path: &Path<'_>, affinity: &Value) {
    let node = affinity.at("nodeAffinity");
    let p = path.child("nodeAffinity");
    if node.has(REQUIRED) {
        check_node_selector_form(errs, &p.child(REQUIRED), node.at(REQUIRED), false);
    }
    let preferred = p.child(PREFERRED);
    for (i, term) in node.items(PREFERRED).iter().enumerate() {
        let p = preferred.index(i);
        check_weight(errs, &p, term);
        check_node_term(errs, &p.child("preference"), term.at("preference"), false);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pod, p) = (affinity.at(kind), path.child(kind));
        let required = p.child(REQUIRED);
        for (i, term) in pod.items(REQUIRED).iter().enumerate() {
            check_pod_term(errs, &required.index(i), term);
        }
        let preferred = p.child(PREFERRED);
        for (i, term) in pod.items(PREFERRED).iter().enumerate() {
            let p = preferred.index(i);
            check_weight(errs, &p, term);
            check_pod_term(errs, &p.child("podAffinityTerm"), term.at("podAffinityTerm"));
        }
    }
}

fn check_weight(errs: &mut Errors, path: &Path<'_>, term: &Value) {
    let weight = term.int_at("weight");
    if !(1..=100).contains(&weight) {
        errs.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// Errors in a `NodeSelector`.
pub fn check_node_selector(errs: &mut Errors, path: &Path<'_>, selector: &Value) {
    check_node_selector_form(errs, path, selector, true);
}

/// [`check_node_selector`], where values that no label can have are an error only with `strict_values`.
pub fn check_node_selector_form(errs: &mut Errors, path: &Path<'_>, selector: &Value, strict_values: bool) {
    let p = path.child("nodeSelectorTerms");
    let terms = selector.items("nodeSelectorTerms");
    if terms.is_empty() {
        return errs.required(&p, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        check_node_term(errs, &p.index(i), term, strict_values);
    }
}

/// Errors in a `NodeSelectorTerm`. Preferred terms may hold values that no label can have.
pub fn check_node_term(errs: &mut Errors, path: &Path<'_>, term: &Value, strict_values: bool) {
    let list = path.child("matchExpressions");
    for (i, requirement) in term.items("matchExpressions").iter().enumerate() {
        let p = list.index(i);
        let values = requirement.strings("values");
        let operator = requirement.str_at("operator");
        let values_path = p.child("values");
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.required(&values_path, "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.forbidden(
                        &values_path,
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    errs.required(
                        &values_path,
                        "must be specified single value when `operator` is 'Lt' or 'Gt'",
                    );
                }
            }
            _ => errs.invalid(&p.child("operator"), operator, "not a valid selector operator"),
        }
        let key = requirement.str_at("key");
        errs.each(&p.child("key"), key, names::qualified_name(key));
        if strict_values {
            for (j, value) in values.iter().enumerate() {
                errs.each(&values_path.index(j), *value, names::label_value(value));
            }
        }
    }
    let list = path.child("matchFields");
    for (i, requirement) in term.items("matchFields").iter().enumerate() {
        let p = list.index(i);
        let values = requirement.strings("values");
        let operator = requirement.str_at("operator");
        if !matches!(operator, "In" | "NotIn") {
            errs.invalid(&p.child("operator"), operator, "not a valid selector operator");
        } else if values.len() != 1 {
            errs.required(
                &p.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        let key = requirement.str_at("key");
        if key != "metadata.name" {
            errs.invalid(&p.child("key"), key, "not a valid field selector key");
            continue;
        }
        let values_path = p.child("values");
        for (j, value) in values.iter().enumerate() {
            errs.each(&values_path.index(j), *value, names::dns1123_subdomain(value));
        }
    }
}

fn check_pod_term(errs: &mut Errors, path: &Path<'_>, term: &Value) {
    // Values that no label can have are spared where the object had some: `switched` judges them.
    for selector in ["labelSelector", "namespaceSelector"] {
        errs.extend(validate_label_selector_form(term.at(selector), &path.child(selector)));
    }
    for namespace in term.strings("namespaces") {
        errs.each(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    check_label_keys(errs, path, term);
    let key = term.str_at("topologyKey");
    let p = path.child("topologyKey");
    if key.is_empty() {
        errs.required(&p, "can not be empty");
    }
    errs.each(&p, key, names::qualified_name(key));
}

/// Errors in `matchLabelKeys` and `mismatchLabelKeys`, which become requirements of the label selector.
pub fn check_label_keys(errs: &mut Errors, path: &Path<'_>, term: &Value) {
    let (matching, mismatching) = (term.strings("matchLabelKeys"), term.strings("mismatchLabelKeys"));
    for (field, keys) in [("matchLabelKeys", &matching), ("mismatchLabelKeys", &mismatching)] {
        let p = path.child(field);
        if !keys.is_empty() && !term.has("labelSelector") {
            errs.forbidden(&p, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            errs.each(&p.index(i), *key, names::qualified_name(key));
        }
    }
    let mut selected: Vec<&str> = term.entries("labelSelector.matchLabels").map(|(k, _)| k).collect();
    for requirement in term.items("labelSelector.matchExpressions") {
        let key = requirement.str_at("key");
        // The server itself adds one requirement for each key when the pod is created, so only a second one
        // is an error.
        if let Some(i) = matching.iter().rposition(|k| *k == key)
            && selected.contains(&key)
        {
            errs.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        selected.push(key);
    }
    let p = path.child("matchLabelKeys");
    for (i, key) in matching.iter().enumerate().filter(|(_, k)| mismatching.contains(k)) {
        errs.invalid(&p.index(i), *key, "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// Errors in `topologySpreadConstraints`.
pub fn check_topology_spread(errs: &mut Errors, path: &Path<'_>, constraints: &[Value]) {
    for (i, constraint) in constraints.iter().enumerate() {
        let p = path.index(i);
        errs.positive(&p.child("maxSkew"), constraint.int_at("maxSkew"));
        let key = constraint.str_at("topologyKey");
        if key.is_empty() {
            errs.required(&p.child("topologyKey"), "can not be empty");
        }
        let action = constraint.str_at("whenUnsatisfiable");
        errs.one_of(&p.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        let repeats = constraints[i + 1..]
            .iter()
            .any(|c| c.str_at("topologyKey") == key && c.str_at("whenUnsatisfiable") == action);
        if repeats {
            errs.duplicate(&p.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = constraint.int_opt("minDomains") {
            let p = p.child("minDomains");
            errs.positive(&p, domains);
            if action != "DoNotSchedule" {
                errs.invalid(
                    &p,
                    domains,
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"),
                );
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = constraint.str_opt(field) {
                errs.one_of(&p.child(field), policy, &["Honor", "Ignore"]);
            }
        }
        // The keys and the selector depend on gates and on what the object had: `switched` judges them.
    }
}

/// Errors in `tolerations`.
pub fn check_tolerations(errs: &mut Errors, path: &Path<'_>, tolerations: &[Value]) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let p = path.index(i);
        let (key, operator, value, effect) = (
            toleration.str_at("key"),
            toleration.str_at("operator"),
            toleration.str_at("value"),
            toleration.str_at("effect"),
        );
        let operator_path = p.child("operator");
        if !key.is_empty() {
            errs.each(&p.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            errs.invalid(
                &operator_path,
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            errs.invalid(
                &p.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    errs.invalid(&operator_path, value, messages.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errs.invalid(&operator_path, value, "value must be empty when `operator` is 'Exists'");
                }
            }
            // Whether numbers may be compared depends on a gate: `switched` judges those.
            "Lt" | "Gt" => {}
            other => errs.one_of(&operator_path, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            check_taint_effect(errs, &p.child("effect"), effect);
        }
    }
}

/// Errors in the effect of a taint or toleration.
pub fn check_taint_effect(errs: &mut Errors, path: &Path<'_>, effect: &str) {
    errs.required_one_listed(path, effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
}

/// Errors in `nodeSelector`.
pub fn check_node_labels(errs: &mut Errors, path: &Path<'_>, labels: &Value) {
    errs.extend(validate_labels(labels, path));
}
