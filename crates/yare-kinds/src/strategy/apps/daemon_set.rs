//! `DaemonSet`.

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    selector::LabelSelector,
};

use crate::{
    check::{Check, Errors, annotation},
    meta::{self, JudgeSelector, validate_label_selector},
    shown,
    strategy::{
        Context, Strategy,
        workload::{
            check_at_most_all, check_collision_count, check_count_or_percent, check_counts,
            check_endless_template, check_match, check_selector_not_empty, count_or_percent,
            default_template, judge_selector_after, template_warnings,
        },
    },
    view::{View, ViewMut, same},
};

pub(super) struct DaemonSet;

/// Counts the changes of the template alone. `extensions/v1beta1` had a field for it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
const DEFAULT_HISTORY: i64 = 10;

fn template_generation(object: &Value) -> i64 {
    annotation(object, TEMPLATE_GENERATION).and_then(|g| g.parse().ok()).unwrap_or_default()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let mut annotations = object.at("metadata.annotations").as_object().cloned().unwrap_or_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
    object.set("metadata.annotations", annotations);
}

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        object.default_zero("spec.updateStrategy.type", "RollingUpdate");
        if object.str_at("spec.updateStrategy.type") == "RollingUpdate" {
            object.default_absent("spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
            object.default_absent("spec.updateStrategy.rollingUpdate.maxSurge", 0);
        }
        object.default_absent("spec.revisionHistoryLimit", DEFAULT_HISTORY);
        default_template(object, "spec.template");
        // A number of upstream's own that every object in this version says, also before it counts.
        set_template_generation(object, template_generation(object));
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        object.remove("status");
        object.set("metadata.generation", 1);
        set_template_generation(object, template_generation(object).max(1));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, true);
        let changed = !same(new.at("spec.template"), old.at("spec.template"));
        set_template_generation(new, template_generation(old) + i64::from(changed));
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        set_template_generation(new, template_generation(old));
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), object.at("spec"), validate_label_selector);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, before) = (Path::new("spec"), old.at("spec.selector"));
        errs.immutable(&path.child("selector"), new.at("spec.selector"), before);
        check_spec(&mut errs, &path, new.at("spec"), judge_selector_after(old));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_counts(
            &mut errs,
            &Path::new("status"),
            new.at("status"),
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
        );
        check_collision_count(&mut errs, new, old);
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old)
    }

    fn judges_selectors_as_one(&self) -> bool {
        true
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, judge: JudgeSelector) {
    let (p, template) = (path.child("template"), spec.at("template"));
    let (shown, selector) = (path.child("selector"), spec.at("selector"));
    errs.extend(judge(selector, &shown));
    if let Ok(parsed) = LabelSelector::from_object(selector) {
        check_match(errs, &p, &parsed, template);
    }
    check_selector_not_empty(errs, &shown, selector, "daemonset");
    check_endless_template(errs, &p, template, "DaemonSet");
    errs.non_negative(&path.child("minReadySeconds"), spec.int_at("minReadySeconds"));
    check_strategy(errs, &path.child("updateStrategy"), spec.at("updateStrategy"));
    errs.non_negative(&path.child("revisionHistoryLimit"), spec.int_at("revisionHistoryLimit"));
}

fn check_strategy(errs: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let p = path.child("rollingUpdate");
    match strategy.str_at("type") {
        "OnDelete" => {}
        "RollingUpdate" if !strategy.has("rollingUpdate") => errs.required(&p, ""),
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let fields = ["maxUnavailable", "maxSurge"];
            for field in fields {
                check_count_or_percent(errs, &p.child(field), rolling.at(field));
            }
            for field in fields {
                check_at_most_all(errs, &p.child(field), rolling.at(field));
            }
            match fields.map(|field| count_or_percent(rolling.at(field)) != 0) {
                [true, true] => errs.invalid(
                    &p.child("maxSurge"),
                    rolling.at("maxSurge").clone(),
                    "may not be set when maxUnavailable is non-zero",
                ),
                [false, false] => errs.required(&p.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        _ => errs.push(
            FieldError::not_listed(path, Value::Null, &["RollingUpdate", "OnDelete"])
                .showing(shown::show(strategy, shown::ROLLOUT)),
        ),
    }
}
