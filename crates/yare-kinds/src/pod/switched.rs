//! Rules for pods and templates that depend on feature gates.
//!
//! What a gate allows stays allowed where the object that is changed has it already, so that switching a gate
//! off leaves objects updatable. One pass over whatever holds a specification of pods; the other modules know
//! nothing of gates.

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
    goprint,
};

use super::{security::each_container, spec::is_deletion_cost};
use crate::{
    check::{Check, Errors, annotation},
    names,
    view::View,
};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const COMPARISONS: [&str; 2] = ["Lt", "Gt"];
const RESTART_ALL: &str = "RestartAllContainers";

/// Errors in what stands at `at` in `new` (a pod's or template's `spec`), given what stood there in `old`.
pub fn check(errs: &mut Errors, at: &str, new: &Value, old: Option<&Value>, gates: &Gates) {
    let spec = new.at(at);
    let before = old.map_or(&Value::Null, |old| old.at(at));
    let path = Path::new(at);
    check_tolerations(errs, &path, spec, before, gates);
    check_host_network(errs, &path, spec, before, gates);
    check_restart_rules(errs, &path, spec, before, gates);
    check_se_linux(errs, &path, spec, before, gates);
    check_deletion_cost(errs, at, new, old, gates);
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
            let mut error = FieldError::not_supported(&p.child("operator"), given, &operators);
            // In this order, and not sorted as elsewhere.
            error.detail = format!("supported values: {}", operators.map(goprint::quote).join(", "));
            errs.push(error);
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

fn restarts_all(spec: &Value) -> bool {
    let mut found = false;
    each_container(spec, &Path::ROOT, |container, _| {
        found |= container.items("restartPolicyRules").iter().any(|r| r.str_at("action") == RESTART_ALL);
    });
    found
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::strategy::testing::{gated_errors, gates, named, patched};

    /// Under the gates that text names: what is sent, what it was before (`null`: nothing), and the errors.
    #[track_caller]
    fn check(group: &str, kind: &str, base: &Value, cases: &[(&str, Value, Value, &[&str])]) {
        for (text, old, new, expected) in cases {
            let old = (!old.is_null()).then(|| patched(base, old.clone()));
            let errs = gated_errors(group, kind, &gates(text), old.as_ref(), &patched(base, new.clone()));
            assert_eq!(errs, *expected, "{text:?} {kind} {new}");
        }
    }

    #[test]
    fn pods() {
        let pod = named(
            json!({"spec": {"containers": [{"name": "c", "image": "i", "terminationMessagePolicy": "File",
            "imagePullPolicy": "Always"}]}}),
        );
        let compares =
            |value: &str| json!({"spec": {"tolerations": [{"key": "k", "operator": "Gt", "value": value}]}});
        let operator: &[&str] = &[
            "spec.tolerations[0].operator: Unsupported value: \"Gt\": supported values: \"Equal\", \"Exists\", \"Lt\", \"Gt\"",
        ];
        let users = json!({"spec": {"hostNetwork": true, "hostUsers": false}});
        let restarts = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]}]}});
        let label = json!({"spec": {"securityContext": {"seLinuxChangePolicy": "MountOption"}}});
        let cost = |text: &str| json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": text}}});
        let bad_cost: &[&str] = &[
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"x\": must be a 32bit integer",
        ];
        let users_message: &[&str] = &["spec.hostNetwork: Forbidden: when `hostUsers` is false"];
        let on = "TaintTolerationComparisonOperators=true";
        check(
            "",
            "Pod",
            &pod,
            &[
                ("", Value::Null, compares("5"), operator),
                (on, Value::Null, compares("5"), &[]),
                (
                    on,
                    Value::Null,
                    compares("-0"),
                    &[
                        "spec.tolerations[0].value: Invalid value: \"-0\": must be a valid decimal integer in canonical form",
                    ],
                ),
                (
                    on,
                    Value::Null,
                    compares("9223372036854775808"),
                    &[
                        "spec.tolerations[0].value: Invalid value: \"9223372036854775808\": strconv.ParseInt: parsing \"9223372036854775808\": value out of range",
                    ],
                ),
                ("", compares("5"), compares("5"), &[]),
                ("", Value::Null, users.clone(), users_message),
                ("UserNamespacesHostNetworkSupport=true", Value::Null, users.clone(), &[]),
                ("", users.clone(), users, &[]),
                ("", Value::Null, restarts.clone(), &[]),
                (
                    "RestartAllContainersOnContainerExits=false",
                    Value::Null,
                    restarts.clone(),
                    &[
                        "spec.containers[0].restartPolicyRules[0].action: Unsupported value: \"RestartAllContainers\": supported values: \"Restart\"",
                    ],
                ),
                ("RestartAllContainersOnContainerExits=false", restarts.clone(), restarts, &[]),
                (
                    "",
                    Value::Null,
                    label.clone(),
                    &[
                        "spec.securityContext.seLinuxChangePolicy: Unsupported value: \"MountOption\": supported values: \"Recursive\"",
                    ],
                ),
                ("SELinuxMount=true", Value::Null, label, &[]),
                ("", Value::Null, cost("x"), bad_cost),
                ("", Value::Null, cost("-5"), &[]),
                ("", json!({}), cost("x"), bad_cost),
                ("", cost("y"), cost("x"), &[]),
                ("PodDeletionCost=false", Value::Null, cost("x"), &[]),
            ],
        );
    }

    #[test]
    fn other_kinds() {
        let hpa = named(
            json!({"spec": {"maxReplicas": 5, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": "1"}}}]}}),
        );
        let zero = json!({"spec": {"minReplicas": 0}});
        check(
            "autoscaling",
            "HorizontalPodAutoscaler",
            &hpa,
            &[
                (
                    "",
                    Value::Null,
                    zero.clone(),
                    &["spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"],
                ),
                ("HPAScaleToZero=true", Value::Null, zero.clone(), &[]),
                ("", zero.clone(), zero, &[]),
            ],
        );
        let affinity = |zone: &str| {
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}}}})
        };
        let volume = json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/a"}}});
        let moved = patched(&volume, affinity("b"));
        let on = gates("MutablePVNodeAffinity=true");
        let old = patched(&volume, affinity("a"));
        let errs = gated_errors("", "PersistentVolume", &gates(""), Some(&old), &moved);
        assert!(
            errs[0].ends_with("field is immutable, except for updating from beta label to GA"),
            "{errs:?}"
        );
        assert_eq!(gated_errors("", "PersistentVolume", &on, Some(&old), &moved), [""; 0]);
        let service = json!({"metadata": {"name": "1a", "namespace": "ns"}, "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80}]}});
        let strict = "a DNS-1035 label must consist of";
        assert_eq!(gated_errors("", "Service", &gates(""), None, &service), [""; 0]);
        let errs = gated_errors("", "Service", &gates("RelaxedServiceNameValidation=false"), None, &service);
        assert!(errs.len() == 1 && errs[0].contains(strict), "{errs:?}");
        let ingress =
            named(json!({"spec": {"defaultBackend": {"service": {"name": "1a", "port": {"number": 80}}}}}));
        let of = |text: &str, old: Option<&Value>| {
            gated_errors("networking.k8s.io", "Ingress", &gates(text), old, &ingress)
        };
        assert_eq!(of("", None), [""; 0]);
        assert_eq!(of("RelaxedServiceNameValidation=false", None).len(), 1);
        assert_eq!(of("RelaxedServiceNameValidation=false", Some(&ingress)), [""; 0]);
    }

    #[test]
    fn suspended_jobs() {
        let job = |cpu: &str, zone: &str| {
            named(json!({"spec": {"suspend": true, "manualSelector": true,
            "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}}, "spec": {
                "restartPolicy": "Never", "nodeSelector": {"zone": zone},
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}}}))
        };
        let immutable = |text: &str, old: &Value, new: &Value| {
            !gated_errors("batch", "Job", &gates(text), Some(old), new).is_empty()
        };
        let (old, resources, directives) = (job("1", "a"), job("2", "a"), job("1", "b"));
        assert!(!immutable("", &old, &resources));
        assert!(immutable("MutablePodResourcesForSuspendedJobs=false", &old, &resources));
        assert!(!immutable("MutablePodResourcesForSuspendedJobs=false", &old, &directives));
        let started = patched(
            &old,
            json!({"status": {"startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Suspended", "status": "True"}]}}),
        );
        assert!(!immutable("", &started, &directives));
        assert!(immutable("MutableSchedulingDirectivesForSuspendedJobs=false", &started, &directives));
    }
}
