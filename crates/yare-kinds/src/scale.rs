//! The `scale` subresource: one shape (`autoscaling/v1` `Scale`) over every kind that has replicas.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    printers::selector_text,
    view::{View, ViewMut},
};

/// The `Scale` of a Deployment, ReplicaSet, StatefulSet or ReplicationController.
pub fn of(object: &Value) -> Value {
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {"replicas": object.int_at("spec.replicas")},
        "status": {"replicas": object.int_at("status.replicas")},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale.copy_from(object, &format!("metadata.{field}"));
    }
    let selector = object.at("spec.selector");
    let labels = selector.has("matchLabels") || selector.has("matchExpressions");
    let text = if labels {
        selector_text(selector).unwrap_or_default()
    } else {
        // A ReplicationController's selector is a plain map of labels.
        selector_text(&json!({"matchLabels": selector})).unwrap_or_default()
    };
    if !text.is_empty() {
        scale.set("status.selector", text);
    }
    scale
}

/// Sets the replicas of `object` to those that `scale` wants; a `resourceVersion` goes along as the condition
/// of the update.
pub fn apply(object: &mut Value, scale: &Value) {
    object.set("spec.replicas", scale.int_at("spec.replicas"));
    if scale.is_set("metadata.resourceVersion") {
        object.copy_from(scale, "metadata.resourceVersion");
    }
}

/// Errors of a `Scale`.
pub fn validate(scale: &Value) -> Vec<FieldError> {
    let mut errs = Errors::new();
    let path = Path::new("spec");
    errs.non_negative(&path.child("replicas"), scale.int_at("spec.replicas"));
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        let mut deployment = json!({"metadata": {"name": "d", "resourceVersion": "7", "labels": {}}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let mut scale = of(&deployment);
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d", "resourceVersion": "7"}, "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "a=b"}})
        );
        scale["spec"]["replicas"] = json!(5);
        apply(&mut deployment, &scale);
        assert_eq!(deployment.int_at("spec.replicas"), 5);
        assert_eq!(of(&json!({"spec": {"selector": {"x": "y"}}})).str_at("status.selector"), "x=y");
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(validate(&scale).len(), 1);
    }
}
