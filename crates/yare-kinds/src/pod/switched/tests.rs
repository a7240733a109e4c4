//! Gates on and off, and objects that have already what a gate allows.

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
    let pod =
        named(json!({"spec": {"containers": [{"name": "c", "image": "i", "terminationMessagePolicy": "File",
        "imagePullPolicy": "Always"}]}}));
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
    assert!(errs[0].ends_with("field is immutable, except for updating from beta label to GA"), "{errs:?}");
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

#[test]
fn odd_selectors_spare_odd_affinities() {
    let container = json!({"name": "c", "image": "i"});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}});
    let base = named(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}));
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["-"]}]});
    let term = json!({"topologyKey": "t", "labelSelector": odd});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = json!({"spec": {"template": {"spec": {"affinity": {"podAffinity": {required: [term]}}}}}});
    let selector = json!({"spec": {"selector": odd}});
    let both = patched(&selector, affinity.clone());
    let detail = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    let error = format!(
        "spec.template.spec.affinity.podAffinity.{required}[0].labelSelector.matchExpressions[0].values[0]: Invalid value: \"-\": {detail}"
    );
    let refused: &[&str] = &[&error];
    check(
        "apps",
        "DaemonSet",
        &base,
        &[
            ("", Value::Null, affinity.clone(), refused),
            ("", json!({}), affinity.clone(), refused),
            ("", affinity.clone(), affinity.clone(), &[]),
            ("", selector.clone(), both.clone(), &[]),
            // And the other way round.
            ("", both.clone(), both.clone(), &[]),
        ],
    );
    let others = patched(&base, json!({"spec": {"replicas": 1}}));
    let errs = gated_errors(
        "apps",
        "Deployment",
        &gates(""),
        Some(&patched(&others, selector)),
        &patched(&others, both),
    );
    assert!(errs.contains(&error), "{errs:?}");
}
