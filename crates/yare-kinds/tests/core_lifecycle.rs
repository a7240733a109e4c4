//! What becomes of objects of the core group on their way in: defaults, what creation and updates set.

use serde_json::{Value, json};
use yare_kinds::{strategy::Context, table::find_kind, view::View};
use yare_schema::features;

const CTX: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "ns", user: "u", gates: &features::DEFAULT };

#[track_caller]
fn created(kind: &str, object: Value, expected: Value) {
    let strategy = find_kind("", kind).expect("a kind of the core group").strategy;
    let mut object = object;
    strategy.default(&mut object);
    strategy.prepare_for_create(&mut object, &CTX);
    assert_eq!(object, expected, "{kind}");
}

#[test]
fn creation() {
    created(
        "Namespace",
        json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}),
        json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
    );
    created(
        "Secret",
        json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}, "data": {"x": "eQ=="}}),
        json!({"metadata": {"name": "a"}, "type": "Opaque", "data": {"k": "dg==", "x": "eQ=="}}),
    );
    created(
        "Service",
        json!({"metadata": {"name": "a"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
        json!({"metadata": {"name": "a"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true,
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}, "status": {"loadBalancer": {}}}),
    );
    created(
        "PersistentVolumeClaim",
        json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}}),
        json!({"spec": {"volumeMode": "Filesystem", "dataSource": {"kind": "PersistentVolumeClaim", "name": "x"},
            "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "x"}}, "status": {"phase": "Pending"}}),
    );
    created(
        "PersistentVolume",
        json!({"spec": {"hostPath": {"path": "/x"}}}),
        json!({"spec": {"hostPath": {"path": "/x", "type": ""}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"},
            "status": {"phase": "Pending", "lastPhaseTransitionTime": "2026-01-01T00:00:00Z"}}),
    );
    created(
        "LimitRange",
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}}]}}),
    );
    created(
        "Node",
        json!({"spec": {"podCIDR": "10.0.0.0/24"}, "status": {"capacity": {"cpu": "2"}}}),
        json!({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}, "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}}),
    );
}

#[test]
fn pods() {
    let strategy = find_kind("", "Pod").expect("pods").strategy;
    let mut pod = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"schedulingGates": [{"name": "g"}], "containers": [{"name": "a", "image": "i"}],
        "topologySpreadConstraints": [{"labelSelector": {}, "matchLabelKeys": ["app", "none"]}]}, "status": {"phase": "Running"}});
    strategy.default(&mut pod);
    strategy.prepare_for_create(&mut pod, &CTX);
    assert_eq!(pod.int_at("metadata.generation"), 1);
    assert_eq!((pod.str_at("status.phase"), pod.str_at("status.qosClass")), ("Pending", "BestEffort"));
    assert_eq!(pod.items("status.conditions")[0].str_at("reason"), "SchedulingGated");
    assert_eq!(
        pod.items("spec.topologySpreadConstraints")[0].at("labelSelector.matchExpressions"),
        &json!([{"key": "app", "operator": "In", "values": ["x"]}])
    );
    assert_eq!(strategy.graceful_deletion_s(&pod), Some(0));
    pod["spec"]["nodeName"] = json!("n");
    assert_eq!(strategy.graceful_deletion_s(&pod), Some(30));
    pod["status"]["phase"] = json!("Failed");
    assert_eq!(strategy.graceful_deletion_s(&pod), Some(0));
}

#[test]
fn pod_subresources() {
    let strategy = find_kind("", "Pod").expect("pods").strategy;
    let mut old = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
    strategy.default(&mut old);
    strategy.prepare_for_create(&mut old, &CTX);

    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    new["spec"]["hostNetwork"] = json!(true);
    strategy.default(&mut new);
    strategy.prepare_for_subresource_update("ephemeralcontainers", &mut new, &old, &CTX);
    assert_eq!((new.has("spec.hostNetwork"), new.int_at("metadata.generation")), (false, 2));
    assert_eq!(strategy.validate_subresource_update("ephemeralcontainers", &new, &old, &CTX), []);
    assert_eq!(strategy.validate_subresource_update("ephemeralcontainers", &old, &new, &CTX).len(), 1);

    let mut new = old.clone();
    new["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
    new["spec"]["containers"][0]["image"] = json!("other");
    strategy.prepare_for_subresource_update("resize", &mut new, &old, &CTX);
    assert_eq!(new.items("spec.containers")[0].str_at("image"), "i");
    assert_eq!(strategy.validate_subresource_update("resize", &new, &old, &CTX), []);
    new["spec"]["containers"][0]["resources"] = json!({});
    let errs: Vec<String> = strategy
        .validate_subresource_update("resize", &new, &old, &CTX)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        errs,
        [
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing",
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
        ]
    );

    let mut new = old.clone();
    new["spec"]["nodeName"] = json!("n");
    new["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]});
    strategy.prepare_for_status_update(&mut new, &old, &CTX);
    assert_eq!((new.has("spec.nodeName"), new.str_at("status.qosClass")), (false, "Burstable"));
    assert_eq!(strategy.validate_status_update(&new, &old, &CTX), []);
}

#[test]
fn warnings() {
    let strategy = find_kind("", "Pod").expect("pods").strategy;
    let mut pod = json!({"metadata": {"name": "a.b"}, "spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"},
        "containers": [{"name": "a", "image": "i", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}], "ports": [{"containerPort": 80}, {"containerPort": 80}]}],
        "volumes": [{"name": "g", "gitRepo": {"repository": "r"}}]}});
    strategy.default(&mut pod);
    assert_eq!(
        strategy.warnings(&pod, None),
        [
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
            "spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using apply",
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ]
    );
}
