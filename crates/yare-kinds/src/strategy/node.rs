//! Strategies of the kinds of `node.k8s.io`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors, quantity},
    meta::validate_labels,
    names,
    pod::{affinity::check_tolerations, defaults::round_up_resources, resources, warnings::deprecated_label},
    shown,
    view::View,
};

/// `RuntimeClass`
pub const RUNTIME_CLASS: &dyn Strategy = &RuntimeClass;

struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn default(&self, object: &mut Value) {
        round_up_resources(object, "overhead.podFixed");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.name(&Path::new("handler"), object.str_at("handler"), names::dns1123_label);
        let path = Path::new("overhead");
        let path = path.child("limits");
        for (name, amount) in object.entries("overhead.podFixed") {
            resources::check_container_name(&mut errs, &path.key(name), name);
            resources::check_amount(&mut errs, &path.key(name), name, quantity(amount));
        }
        let path = Path::new("scheduling");
        errs.extend(validate_labels(object.at("scheduling.nodeSelector"), &path.child("nodeSelector")));
        let path = path.child("tolerations");
        let tolerations = object.items("scheduling.tolerations");
        check_tolerations(&mut errs, &path, tolerations);
        let mut seen = HashSet::new();
        for (i, toleration) in tolerations.iter().enumerate() {
            if !seen.insert(["key", "operator", "value", "effect"].map(|f| toleration.str_at(f))) {
                let shown = shown::show(toleration, shown::TOLERATION);
                errs.push(FieldError::duplicate(&path.index(i), Value::Null).showing(shown));
            }
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable(&Path::new("handler"), new.at("handler"), old.at("handler"));
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        // Upstream does not say which label.
        let labels = new.entries("scheduling.nodeSelector");
        labels
            .filter_map(|(key, _)| Some(format!("scheduling.nodeSelector: {}", deprecated_label(key)?)))
            .collect()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
