//! Nothing here trusts the shape of an object more than decoding promises, and defaults are set once: a second
//! run changes nothing.

use serde_json::{Value, json};
use yare_kinds::{
    strategy::Context,
    table::{RESOURCES, Resource},
};
use yare_schema::features;

const CTX: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "ns", user: "u", gates: &features::DEFAULT };

/// Objects that no client should send, and a few that are nearly right.
fn odd_objects() -> Vec<Value> {
    let containers = json!([{"name": "a", "image": "i", "ports": [{}], "env": [{"valueFrom": {"fieldRef": {}}}],
        "volumeMounts": [{}], "volumeDevices": [{}], "livenessProbe": {}, "lifecycle": {}, "securityContext": {}}, {}]);
    let pod_spec = json!({"containers": containers, "initContainers": containers, "ephemeralContainers": containers,
        "volumes": [{}, {"name": "v"}, {"projected": {"sources": [{}]}}, {"ephemeral": {}}],
        "affinity": {"nodeAffinity": {}, "podAffinity": {}}, "topologySpreadConstraints": [{}], "tolerations": [{}]});
    vec![
        Value::Null,
        json!([]),
        json!("text"),
        json!({}),
        json!({"metadata": null, "spec": null, "status": null}),
        json!({"metadata": [], "spec": "x", "status": 1}),
        json!({"metadata": {"name": 1, "labels": [], "annotations": "x", "ownerReferences": [null]}}),
        json!({"spec": {"template": {"spec": pod_spec}, "selector": {}, "ports": [{}], "rules": [{}], "limits": [{}],
            "jobTemplate": {"spec": {"template": {"spec": pod_spec}}}, "metrics": [{}], "taints": [{}], "clusterIPs": [""],
            "devices": {"requests": [{}]}, "podCIDRs": ["x", "y"], "scopes": [""]}, "subsets": [{}], "webhooks": [{}]}),
        json!({"spec": pod_spec, "status": {"containerStatuses": [{}], "initContainerStatuses": [{"name": "a"}], "conditions": [{}],
            "loadBalancer": {"ingress": [{}]}, "addresses": [{}], "pools": [{}]}, "template": {"spec": pod_spec}}),
    ]
}

fn exercise(resource: &Resource, object: &Value) {
    let strategy = resource.strategy;
    assert_eq!((resource.row)(object, 0).len(), resource.columns.len(), "{}: cells", resource.plural);
    for selectable in resource.selectable {
        (selectable.read)(object);
    }
    let mut new = object.clone();
    strategy.default(&mut new);
    let once = new.clone();
    strategy.default(&mut new);
    assert_eq!(new, once, "{}: defaults are not set once and for all", resource.plural);
    strategy.prepare_for_create(&mut new, &CTX);
    resource.validate_create(&new, &CTX);
    strategy.warnings(&new, None);
    strategy.graceful_deletion_s(&new);
    for subresource in ["", "status", "resize", "ephemeralcontainers", "finalize", "approval"] {
        let mut updated = object.clone();
        if subresource.is_empty() {
            strategy.prepare_for_update(&mut updated, &new, &CTX);
            resource.validate_update(&updated, &new, &CTX);
        } else {
            strategy.prepare_for_subresource_update(subresource, &mut updated, &new, &CTX);
            resource.validate_subresource_update(subresource, &updated, &new, &CTX);
        }
        strategy.warnings(&updated, Some(&new));
    }
    for version in resource.versions {
        let mut converted = object.clone();
        yare_kinds::convert::from_storage(resource, &mut converted, version.name);
        yare_kinds::convert::to_storage(resource, &mut converted);
    }
}

#[test]
fn odd_objects_are_survived() {
    for resource in RESOURCES {
        for object in odd_objects() {
            exercise(resource, &object);
        }
    }
}
