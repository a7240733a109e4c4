//! Label selectors with values that no label can have: a new object is refused for them, one that had some goes on,
//! and one that had none gets none.

use serde_json::{Value, json};
use yare_kinds::{strategy::Context, table::find_kind, view::ViewMut};
use yare_schema::features::Gates;

const HOOK: &str = "webhooks";

/// Group, kind, an object with all but a selector, the field that holds the selector and where errors find it.
fn kinds() -> Vec<(&'static str, &'static str, Value, &'static str, &'static str)> {
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]},
    });
    let mut once = template.clone();
    once.set("spec.restartPolicy", "Never");
    let hook = json!([{
        "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://a"},
    }]);
    let webhooks = "admissionregistration.k8s.io";
    vec![
        ("apps", "DaemonSet", json!({"spec": {"template": template}}), "spec.selector", "spec.selector"),
        (
            "batch",
            "Job",
            json!({"spec": {"manualSelector": true, "template": once}}),
            "spec.selector",
            "spec.selector",
        ),
        ("policy", "PodDisruptionBudget", json!({"spec": {}}), "spec.selector", "spec.selector"),
        ("networking.k8s.io", "NetworkPolicy", json!({"spec": {}}), "spec.podSelector", "spec.podSelector"),
        (
            "storage.k8s.io",
            "CSIStorageCapacity",
            json!({"storageClassName": "s"}),
            "nodeTopology",
            "nodeTopology",
        ),
        (
            "rbac.authorization.k8s.io",
            "ClusterRole",
            json!({}),
            "aggregationRule",
            "aggregationRule.clusterRoleSelectors[0]",
        ),
        (webhooks, "ValidatingWebhookConfiguration", json!({HOOK: hook}), HOOK, "webhooks[0].objectSelector"),
        (webhooks, "MutatingWebhookConfiguration", json!({HOOK: hook}), HOOK, "webhooks[0].objectSelector"),
    ]
}

#[test]
fn values_that_were_there_may_stay() {
    let gates = Gates::default();
    let ctx = Context { now: "2026-01-02T03:04:05Z", namespace: "ns", user: "jane", gates: &gates };
    for (group, kind, base, field, shown) in kinds() {
        let row = find_kind(group, kind).unwrap();
        let with = |values: Value| {
            let mut object = base.clone();
            object.set("metadata.name", "x");
            object.set("metadata.resourceVersion", "1");
            if row.is_namespaced() {
                object.set("metadata.namespace", "ns");
            }
            let selector = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
            match field {
                "aggregationRule" => object.set(field, json!({"clusterRoleSelectors": [selector]})),
                HOOK => object[HOOK][0]["objectSelector"] = selector,
                _ => object.set(field, selector),
            }
            row.strategy.default(&mut object);
            object
        };
        let (good, bad) = (with(json!(["b"])), with(json!(["b", "not a label's"])));
        let of = |errors: Vec<yare_schema::field::FieldError>| -> Vec<String> {
            let values = format!("{shown}.matchExpressions[0].values[1]");
            errors.into_iter().map(|e| e.field).filter(|field| *field == values).collect()
        };
        assert!(!of(row.validate_create(&bad, &ctx)).is_empty(), "{kind}: created");
        assert!(!of(row.validate_update(&bad, &good, &ctx)).is_empty(), "{kind}: made so");
        let left = row.validate_update(&bad, &bad, &ctx);
        if kind == "ClusterRole" {
            // Upstream spares the values, and then refuses the selector that they make no selector of.
            assert_eq!(left[0].to_string(), format!("{shown}: Invalid value: null: invalid label selector."));
            assert_eq!(of(left), Vec::<String>::new());
        } else {
            assert_eq!(left, [], "{kind}: left so");
        }
    }
}
