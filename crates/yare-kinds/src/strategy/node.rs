//! Strategies of the kinds of `node.k8s.io`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::Strategy;
use crate::{
    check::{Check, Errors},
    meta::validate_labels,
    names,
    pod::{affinity::check_tolerations, resources, warnings::deprecated_label},
    view::View,
};

/// `RuntimeClass`
pub const RUNTIME_CLASS: &dyn Strategy = &RuntimeClass;

struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate(&self, class: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.name(&Path::new("handler"), class.str_at("handler"), names::dns1123_label);
        if class.has("overhead") {
            let limits = json!({"limits": class.at("overhead.podFixed")});
            resources::check_container(&mut errs, &Path::new("overhead"), &limits, &[]);
        }
        let (path, scheduling) = (Path::new("scheduling"), class.at("scheduling"));
        errs.extend(validate_labels(scheduling.at("nodeSelector"), &path.child("nodeSelector")));
        let (list, tolerations) = (path.child("tolerations"), scheduling.items("tolerations"));
        check_tolerations(&mut errs, &list, tolerations);
        let key = |t: &Value| ["key", "operator", "value", "effect"].map(|f| t.str_at(f).to_owned());
        for (i, toleration) in tolerations.iter().enumerate() {
            if tolerations[..i].iter().any(|t| key(t) == key(toleration)) {
                errs.duplicate(&list.index(i), toleration.clone());
            }
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = self.validate(new);
        errs.immutable(&Path::new("handler"), new.at("handler"), old.at("handler"));
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let labels = new.entries("scheduling.nodeSelector");
        labels
            .filter_map(|(key, _)| Some(format!("scheduling.nodeSelector[{key}]: {}", deprecated_label(key)?)))
            .collect()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update};

    #[test]
    fn runtime_classes() {
        let base = json!({"metadata": {"name": "c"}, "handler": "runc"});
        check_create("node.k8s.io", "RuntimeClass", &base, &[
            (json!({}), &[]),
            (json!({"handler": ""}), &["handler: Required value"]),
            (json!({"overhead": {"podFixed": {"memory": "64Mi"}}}), &[]),
        ]);
        check_update("node.k8s.io", "RuntimeClass", &base, &[(json!({"handler": "kata"}), &[
            "handler: Invalid value: \"kata\": field is immutable",
        ])]);
    }
}
