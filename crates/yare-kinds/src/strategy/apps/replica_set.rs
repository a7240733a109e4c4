//! `ReplicaSet`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    strategy::{
        Context, Strategy,
        workload::{
            check_at_most, check_counts, check_endless_template, check_match, check_selector,
            default_template, name_warning, template_warnings,
        },
    },
    view::{View, ViewMut},
};

pub(super) struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        object.default_absent("spec.replicas", 1);
        default_template(object, "spec.template");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), object.at("spec"));
        check_counts(&mut errs, &path, spec, &["replicas", "minReadySeconds"]);
        let (p, template) = (path.child("template"), spec.at("template"));
        // Upstream's message names the Deployment here too.
        let shown = path.child("selector");
        if let Some(selector) =
            check_selector(&mut errs, &shown, spec.at("selector"), "deployment", "invalid label selector")
        {
            if !selector.is_empty() {
                check_match(&mut errs, &p, &selector, template);
            }
            check_endless_template(&mut errs, &p, template, "ReplicaSet");
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable(&Path::new("spec.selector"), new.at("spec.selector"), old.at("spec.selector"));
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, status) = (Path::new("status"), new.at("status"));
        check_counts(
            &mut errs,
            &path,
            status,
            &[
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "observedGeneration",
                "terminatingReplicas",
            ],
        );
        let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        check_at_most(&mut errs, &path, status, &parts, "replicas", "status.replicas");
        check_at_most(&mut errs, &path, status, &["availableReplicas"], "readyReplicas", "readyReplicas");
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::from_iter(name_warning(new, old));
        out.extend(template_warnings(new, old));
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}
