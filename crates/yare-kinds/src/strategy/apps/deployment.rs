//! `Deployment`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta, shown,
    strategy::{
        Context, Strategy,
        workload::{
            check_at_most, check_at_most_all, check_collision_count, check_count_or_percent, check_counts,
            check_endless_template, check_match, check_selector, count_or_percent, default_template,
            name_warning, template_warnings,
        },
    },
    view::{View, ViewMut, same},
};

pub(super) struct Deployment;

const DEFAULT_SHARE: &str = "25%";
const DEFAULT_HISTORY: i64 = 10;
const DEFAULT_PROGRESS_DEADLINE_S: i64 = 600;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        object.default_absent("spec.replicas", 1);
        object.default_zero("spec.strategy.type", "RollingUpdate");
        if object.str_at("spec.strategy.type") == "RollingUpdate" {
            object.default_absent("spec.strategy.rollingUpdate.maxUnavailable", DEFAULT_SHARE);
            object.default_absent("spec.strategy.rollingUpdate.maxSurge", DEFAULT_SHARE);
        }
        object.default_absent("spec.revisionHistoryLimit", DEFAULT_HISTORY);
        object.default_absent("spec.progressDeadlineSeconds", DEFAULT_PROGRESS_DEADLINE_S);
        default_template(object, "spec.template");
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, true);
        // Annotations count too: a rollout copies them to the ReplicaSets.
        if !same(new.at("metadata.annotations"), old.at("metadata.annotations")) {
            meta::bump_generation(new, old);
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        new.copy_from(old, "metadata.labels");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable(&Path::new("spec.selector"), new.at("spec.selector"), old.at("spec.selector"));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, status) = (Path::new("status"), new.at("status"));
        check_counts(
            &mut errs,
            &path,
            status,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
        );
        let parts = ["updatedReplicas", "readyReplicas", "availableReplicas"];
        check_at_most(&mut errs, &path, status, &parts, "replicas", "status.replicas");
        check_at_most(&mut errs, &path, status, &["availableReplicas"], "readyReplicas", "readyReplicas");
        check_collision_count(&mut errs, new, old);
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

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    errs.non_negative(&path.child("replicas"), spec.int_at("replicas"));
    let (p, template) = (path.child("template"), spec.at("template"));
    let selector = spec.at("selector");
    if let Some(selector) =
        check_selector(errs, &path.child("selector"), selector, "deployment", "invalid label selector")
    {
        if !selector.is_empty() {
            check_match(errs, &p, &selector, template);
        }
        check_endless_template(errs, &p, template, "ReplicaSet");
    }
    check_strategy(errs, &path.child("strategy"), spec.at("strategy"));
    check_counts(errs, path, spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"]);
    if let Some(deadline_s) = spec.int_opt("progressDeadlineSeconds")
        && deadline_s <= spec.int_at("minReadySeconds")
    {
        errs.invalid(
            &path.child("progressDeadlineSeconds"),
            deadline_s,
            "must be greater than minReadySeconds",
        );
    }
}

fn check_strategy(errs: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let p = path.child("rollingUpdate");
    match strategy.str_at("type") {
        "Recreate" => {
            if strategy.has("rollingUpdate") {
                errs.forbidden(&p, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            let shown = p.child("maxUnavailable");
            check_count_or_percent(errs, &shown, unavailable);
            check_count_or_percent(errs, &p.child("maxSurge"), surge);
            if count_or_percent(unavailable) == 0 && count_or_percent(surge) == 0 {
                errs.invalid(&shown, unavailable.clone(), "may not be 0 when `maxSurge` is 0");
            }
            check_at_most_all(errs, &shown, unavailable);
        }
        _ => errs.push(
            FieldError::not_supported(path, Value::Null, &["Recreate", "RollingUpdate"])
                .showing(shown::show(strategy, shown::ROLLOUT)),
        ),
    }
}
