//! Counting and scopes, as data.

use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn shown(group: &str, plural: &str, object: &Value) -> Vec<String> {
    usage(group, plural, object, now()).iter().map(|(k, v)| format!("{k}={v}")).collect()
}

#[test]
fn counts() {
    let pod = json!({"spec": {
        "containers": [{"resources": {"requests": {"cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}, "limits": {"cpu": "2", "example.com/gpu": "2"}}}],
        "initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
    }});
    for (group, plural, object, expect) in [
        (
            "",
            "pods",
            pod,
            &[
                "count/pods=1",
                "cpu=3",
                "hugepages-2Mi=4Mi",
                "limits.cpu=2",
                "pods=1",
                "requests.cpu=3",
                "requests.example.com/gpu=2",
                "requests.hugepages-2Mi=4Mi",
            ][..],
        ),
        ("", "pods", json!({"status": {"phase": "Failed"}}), &["count/pods=1"]),
        (
            "",
            "pods",
            json!({"metadata": {"deletionTimestamp": "2025-12-31T23:59:00Z", "deletionGracePeriodSeconds": 30}}),
            &["count/pods=1"],
        ),
        (
            "",
            "services",
            json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
            &["count/services=1", "services=1", "services.loadbalancers=0", "services.nodeports=2"],
        ),
        (
            "",
            "services",
            json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{}, {"nodePort": 30000}]}}),
            &["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=1"],
        ),
        ("", "secrets", json!({}), &["count/secrets=1", "secrets=1"]),
        ("apps", "deployments", json!({}), &["count/deployments.apps=1"]),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1500m"}}}, "status": {"allocatedResources": {"storage": "3"}}}),
            &[
                "count/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/requests.storage=3",
                "persistentvolumeclaims=1",
                "requests.storage=3",
            ],
        ),
        (
            "resource.k8s.io",
            "resourceclaims",
            json!({"spec": {"devices": {"requests": [
                {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
                {"firstAvailable": [
                    {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                    {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3},
                    {"deviceClassName": "nic", "allocationMode": "All"},
                ]},
            ]}}}),
            &[
                "count/resourceclaims.resource.k8s.io=1",
                "gpu.deviceclass.resource.k8s.io/devices=5",
                "nic.deviceclass.resource.k8s.io/devices=32",
            ],
        ),
    ] {
        assert_eq!(shown(group, plural, &object), expect, "{plural}");
    }
}

#[test]
fn resizing_pods_hold_the_larger_size() {
    let pod = |reason: &str| {
        json!({
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]},
            "status": {
                "conditions": [{"type": "PodResizePending", "reason": reason}],
                "containerStatuses": [{"name": "a", "resources": {"requests": {"cpu": "1"}}, "allocatedResources": {"cpu": "1500m"}}],
            },
        })
    };
    assert_eq!(pod_resources(&pod("Deferred"), "requests")["cpu"].to_string(), "2");
    assert_eq!(pod_resources(&pod("Infeasible"), "requests")["cpu"].to_string(), "1500m");
    assert_eq!(pod_resources_of_spec(&pod("Infeasible"), "requests")["cpu"].to_string(), "2");
}

#[test]
fn scopes_take_in() {
    let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
    let plain = json!({"spec": {"containers": [{}]}});
    let ends = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"resources": {"requests": {"cpu": "1"}}}],
        "priorityClassName": "high", "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["n"]}]}}}});
    for (scope, first, second) in [
        ("BestEffort", true, false),
        ("NotBestEffort", false, true),
        ("Terminating", false, true),
        ("NotTerminating", true, false),
        ("PriorityClass", false, true),
        ("CrossNamespacePodAffinity", false, true),
        ("VolumeAttributesClass", false, false),
    ] {
        assert_eq!(matches(&quota(scope), "", "pods", &plain), first, "{scope}");
        assert_eq!(matches(&quota(scope), "", "pods", &ends), second, "{scope}");
    }
    assert!(!matches(&quota("BestEffort"), "", "services", &json!({})));
    let select = |operator: &str, values: Value| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}}});
    for (operator, values, first, second) in [
        ("In", json!(["high", "low"]), false, true),
        ("NotIn", json!(["high"]), true, false),
        ("DoesNotExist", json!([]), true, false),
    ] {
        assert_eq!(matches(&select(operator, values.clone()), "", "pods", &plain), first, "{operator}");
        assert_eq!(matches(&select(operator, values), "", "pods", &ends), second, "{operator}");
    }
    let claim = json!({"spec": {"volumeAttributesClassName": "fast"}, "status": {"currentVolumeAttributesClassName": "slow"}});
    let by_class = |value: &str| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "VolumeAttributesClass", "operator": "In", "values": [value]}]}}});
    for (class, expect) in [("fast", true), ("slow", true), ("other", false)] {
        assert_eq!(matches(&by_class(class), "", "persistentvolumeclaims", &claim), expect, "{class}");
    }
}

#[test]
fn names_match_resources() {
    let names = [
        "pods",
        "requests.cpu",
        "requests.example.com/gpu",
        "requests.hugepages-2Mi",
        "services.nodeports",
        "gold.storageclass.storage.k8s.io/requests.storage",
        "requests.storage",
        "count/deployments.apps",
        "secrets",
    ];
    for (group, plural, expect) in [
        ("", "pods", &["pods", "requests.cpu", "requests.example.com/gpu", "requests.hugepages-2Mi"][..]),
        ("", "services", &["services.nodeports"]),
        (
            "",
            "persistentvolumeclaims",
            &["gold.storageclass.storage.k8s.io/requests.storage", "requests.storage"],
        ),
        ("apps", "deployments", &["count/deployments.apps"]),
        ("", "secrets", &["secrets"]),
        ("", "configmaps", &[]),
    ] {
        let found: Vec<&str> = matching(group, plural, names.into_iter()).into_iter().collect();
        assert_eq!(found, expect, "{plural}");
    }
}

#[test]
fn only_some_writes_count() {
    let (plain, ends) = (json!({}), json!({"spec": {"activeDeadlineSeconds": 1}}));
    for (group, plural, subresource, new, old, expect) in [
        ("", "pods", "", &plain, None, true),
        ("", "pods", "", &plain, Some(&plain), false),
        ("", "pods", "", &ends, Some(&plain), true),
        ("", "pods", "resize", &plain, Some(&plain), true),
        ("", "pods", "binding", &plain, None, false),
        ("", "services", "", &plain, Some(&plain), true),
        ("", "services", "status", &plain, Some(&plain), false),
        ("", "events", "", &plain, None, false),
        ("apps", "deployments", "", &plain, None, true),
        ("apps", "deployments", "", &plain, Some(&plain), false),
    ] {
        let change = Change { group, plural, subresource, new, old };
        assert_eq!(change.is_counted(), expect, "{plural}/{subresource}");
    }
}
