//! Rules for pods and templates that depend on feature gates.
//!
//! What a gate allows stays allowed where the object that is changed has it already, so that switching a gate
//! off leaves objects updatable; so does what a newer rule refuses ([`kept`]). One pass over whatever holds a
//! specification of pods; the other modules know nothing of gates, nor of what an object was before.

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
    goprint,
};

use super::spec::is_deletion_cost;
use crate::{
    check::{Check, Errors, annotation},
    names, net,
    view::View,
};

mod kept;
pub use kept::has_odd_selectors;
#[cfg(test)]
mod tests;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const COMPARISONS: [&str; 2] = ["Lt", "Gt"];
const RESTART_ALL: &str = "RestartAllContainers";

/// Errors in what stands at `at` in `new` (a pod's or template's `spec`), given what stood there in `old`. `selector`:
/// one that was there before, whose odd values spare those of the pods' affinity.
pub fn check(
    errs: &mut Errors,
    at: &str,
    new: &Value,
    old: Option<&Value>,
    selector: Option<&Value>,
    gates: &Gates,
) {
    let spec = new.at(at);
    let before = old.map_or(&Value::Null, |old| old.at(at));
    let path = Path::new(at);
    check_tolerations(errs, &path, spec, before, gates);
    check_host_network(errs, &path, spec, before, gates);
    check_restart_rules(errs, &path, spec, before, gates);
    check_se_linux(errs, &path, spec, before, gates);
    check_deletion_cost(errs, at, new, old, gates);
    if gates.is_on("StrictIPCIDRValidation") {
        check_addresses(errs, &path, spec);
    }
    let odd = selector.is_some_and(kept::has_odd_values);
    kept::check(errs, &path, spec, before, odd, gates);
}

/// Addresses in forms that different programs read differently (KEP-4858).
fn check_addresses(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let p = path.child("dnsConfig");
    let servers = p.child("nameservers");
    for (i, server) in spec.strings("dnsConfig.nameservers").iter().enumerate() {
        net::check_strict_ip(errs, &servers.index(i), server);
    }
    let aliases = path.child("hostAliases");
    for (i, alias) in spec.items("hostAliases").iter().enumerate() {
        net::check_strict_ip(errs, &aliases.index(i).child("ip"), alias.str_at("ip"));
    }
}

fn compares(toleration: &Value) -> bool {
    COMPARISONS.contains(&toleration.str_at("operator"))
}

/// Taints compared as numbers (KEP-5471).
fn check_tolerations(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &Value, gates: &Gates) {
    let tolerations = spec.items("tolerations");
    if !tolerations.iter().any(compares) {
        return;
    }
    let allowed =
        gates.is_on("TaintTolerationComparisonOperators") || before.items("tolerations").iter().any(compares);
    let list = path.child("tolerations");
    for (i, toleration) in tolerations.iter().enumerate().filter(|(_, t)| compares(t)) {
        let p = list.index(i);
        if allowed {
            check_number(errs, &p.child("value"), toleration.str_at("value"));
        } else {
            let operators = ["Equal", "Exists", "Lt", "Gt"];
            let given = toleration.str_at("operator");
            errs.push(FieldError::not_listed(&p.child("operator"), given, &operators));
        }
    }
}

fn check_number(errs: &mut Errors, path: &Path<'_>, value: &str) {
    errs.each(path, value, names::decimal_integer(value));
    let problem = match value.parse::<i64>() {
        Ok(_) => return,
        Err(e) => match e.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        },
    };
    errs.invalid(path, value, format!("strconv.ParseInt: parsing {}: {problem}", goprint::quote(value)));
}

/// The host's network in a user namespace of the pod's own (KEP-5607).
fn check_host_network(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &Value, gates: &Gates) {
    let both = |spec: &Value| spec.bool_at("hostNetwork") && spec.bool_opt("hostUsers") == Some(false);
    if both(spec) && !both(before) && !gates.is_on("UserNamespacesHostNetworkSupport") {
        errs.forbidden(&path.child("hostNetwork"), "when `hostUsers` is false");
    }
}

/// Whether what the gate allows is there: an action, or rules for a sidecar.
fn restarts_all(spec: &Value) -> bool {
    let acts = |container: &Value| {
        container.items("restartPolicyRules").iter().any(|r| r.str_at("action") == RESTART_ALL)
    };
    spec.items("containers").iter().any(acts)
        || spec.items("initContainers").iter().any(|container| {
            acts(container)
                || (container.str_at("restartPolicy") == "Always" && container.is_set("restartPolicyRules"))
        })
}

/// One container's end that starts the whole pod again (KEP-5532), and rules for sidecars, which come with it.
fn check_restart_rules(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &Value, gates: &Gates) {
    if gates.is_on("RestartAllContainersOnContainerExits") || restarts_all(before) {
        return;
    }
    for list in ["containers", "initContainers"] {
        let p = path.child(list);
        for (i, container) in spec.items(list).iter().enumerate() {
            let rules = container.items("restartPolicyRules");
            let p = p.index(i);
            let p = p.child("restartPolicyRules");
            if list == "initContainers" && container.str_at("restartPolicy") == "Always" && !rules.is_empty()
            {
                let detail =
                    "restartPolicyRules are not allowed for init containers with restart policy Always";
                errs.forbidden(&p, detail);
                continue;
            }
            for (j, rule) in rules.iter().enumerate().filter(|(_, r)| r.str_at("action") == RESTART_ALL) {
                let action = rule.str_at("action");
                errs.push(FieldError::not_supported(&p.index(j).child("action"), action, &["Restart"]));
            }
        }
    }
}

/// Volumes that are mounted with their SELinux label (KEP-1710).
fn check_se_linux(errs: &mut Errors, path: &Path<'_>, spec: &Value, before: &Value, gates: &Gates) {
    const POLICY: &str = "securityContext.seLinuxChangePolicy";
    let policy = spec.str_at(POLICY);
    if policy == "MountOption" && !before.has(POLICY) && !gates.is_on("SELinuxMount") {
        let p = path.child("securityContext");
        errs.push(FieldError::not_supported(&p.child("seLinuxChangePolicy"), policy, &["Recursive"]));
    }
}

/// What it costs to delete this pod before others (KEP-2255).
fn check_deletion_cost(errs: &mut Errors, at: &str, new: &Value, old: Option<&Value>, gates: &Gates) {
    let holder = at.strip_suffix("spec").map_or("", |holder| holder.trim_end_matches('.'));
    let cost = |object: &Value| -> Option<String> {
        let owner = if holder.is_empty() { object } else { object.at(holder) };
        annotation(owner, DELETION_COST).map(str::to_owned)
    };
    let Some(value) = cost(new).filter(|value| !is_deletion_cost(value)) else { return };
    let was_bad = old.and_then(cost).is_some_and(|before| !is_deletion_cost(&before));
    if gates.is_on("PodDeletionCost") && !was_bad {
        // Upstream reports a template's metadata at the template itself.
        let path = Path::new(if holder.is_empty() { "metadata" } else { holder });
        errs.invalid(&path.child("annotations").key(DELETION_COST), value, "must be a 32bit integer");
    }
}
