//! Strategies of the kinds of `policy`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{
    Context, Strategy,
    workload::{check_at_most_all, check_count_or_percent, check_counts},
};
use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, judge_selectors_after, validate_conditions, validate_label_selector},
    names,
    shown::BUDGET,
    view::View,
};

/// `PodDisruptionBudget`
pub const POD_DISRUPTION_BUDGET: &dyn Strategy = &PodDisruptionBudget;

struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn validate_name(&self, name: &str) -> Vec<String> {
        // No more than what a path takes: upstream has no other rule.
        names::path_segment(name)
    }

    fn validate(&self, budget: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check(budget, validate_label_selector)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check(new, judge_selectors_after([old.at("spec.selector")]))
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let (path, status) = (Path::new("status"), new.at("status"));
        let mut errs = validate_conditions(status.items("conditions"), &path.child("conditions"));
        check_counts(
            &mut errs,
            &path,
            status,
            &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
        );
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn check(budget: &Value, judge: JudgeSelector) -> Vec<FieldError> {
    let mut errs = Errors::new();
    let (path, spec) = (Path::new("spec"), budget.at("spec"));
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errs.invalid_shown(&path, spec, BUDGET, detail);
    }
    for field in ["minAvailable", "maxUnavailable"].into_iter().filter(|f| spec.has(f)) {
        check_count_or_percent(&mut errs, &path.child(field), spec.at(field));
        check_at_most_all(&mut errs, &path.child(field), spec.at(field));
    }
    errs.extend(judge(spec.at("selector"), &path.child("selector")));
    if let Some(policy) = spec.str_opt("unhealthyPodEvictionPolicy") {
        errs.one_of(&path.child("unhealthyPodEvictionPolicy"), policy, &["IfHealthyBudget", "AlwaysAllow"]);
    }
    errs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, named, status_errors};

    #[test]
    fn budgets() {
        let base = named(json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}}));
        check_create(
            "policy",
            "PodDisruptionBudget",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"minAvailable": "101%"}}),
                    &["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"],
                ),
                (
                    json!({"spec": {"maxUnavailable": 1, "selector": null}}),
                    &[
                        "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":1,\"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set",
                    ],
                ),
                (
                    json!({"spec": {"unhealthyPodEvictionPolicy": "X"}}),
                    &[
                        "spec.unhealthyPodEvictionPolicy: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
                    ],
                ),
            ],
        );
        let errs = status_errors(
            "policy",
            "PodDisruptionBudget",
            json!({}),
            json!({"status": {"expectedPods": -1}}),
        );
        assert_eq!(errs, ["status.expectedPods: Invalid value: -1: must be greater than or equal to 0"]);
    }
}
