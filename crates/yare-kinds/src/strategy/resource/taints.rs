//! Taints of devices, the rules that put them there and what tolerates them.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{check_pool_name, claims::at_most};
use crate::{
    check::{Check, Errors},
    meta, names,
    pod::volumes::check_driver_name,
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Errors in a taint of a device; `old` is what it was.
pub fn check_taint(errs: &mut Errors, path: &Path<'_>, taint: &Value, old: Option<&Value>) {
    let (key, value) = (taint.str_at("key"), taint.str_at("value"));
    errs.each(&path.child("key"), key, names::qualified_name(key));
    if !value.is_empty() {
        errs.each(&path.child("value"), value, names::label_value(value));
    }
    if !old.is_some_and(|old| old.at("effect") == taint.at("effect")) {
        errs.required_one_of(&path.child("effect"), taint.str_at("effect"), EFFECTS);
    }
}

/// Errors in what a request tolerates.
pub fn check_toleration(errs: &mut Errors, path: &Path<'_>, toleration: &Value) {
    let (key, value) = (toleration.str_at("key"), toleration.str_at("value"));
    if !key.is_empty() {
        errs.each(&path.child("key"), key, names::qualified_name(key));
    }
    match toleration.str_at("operator") {
        "Exists" => {
            if !value.is_empty() {
                errs.invalid(&path.child("value"), value, "must be empty for operator `Exists`");
            }
        }
        "Equal" => errs.each(&path.child("value"), value, names::label_value(value)),
        operator => errs.required_one_of(&path.child("operator"), operator, &["Equal", "Exists"]),
    }
    let effect = toleration.str_at("effect");
    if !effect.is_empty() {
        errs.one_of(&path.child("effect"), effect, EFFECTS);
    }
}
/// `DeviceTaintRule`: taints that an administrator puts on devices.
pub struct DeviceTaintRule;

const MAX_CONDITIONS: usize = 8;
const TIME: &str = "spec.taint.timeAdded";

impl Strategy for DeviceTaintRule {
    fn default_in(&self, rule: &mut Value, ctx: &Context<'_>) {
        rule.default_absent(TIME, ctx.now);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        // The time is that of the effect, unless the writer says otherwise.
        if new.at("spec.taint.effect") != old.at("spec.taint.effect") && new.at(TIME) == old.at(TIME) {
            new.set(TIME, ctx.now);
        }
        meta::prepare_for_update(new, old, true, true);
    }

    fn validate(&self, rule: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_rule(rule.at("spec"), None)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_rule(new.at("spec"), Some(old.at("spec")))
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let conditions = new.items("status.conditions");
        let path = Path::new("status.conditions");
        let mut errs = meta::validate_conditions(conditions, &path);
        at_most(&mut errs, &path, conditions, MAX_CONDITIONS);
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_rule(spec: &Value, old: Option<&Value>) -> Errors {
    let mut errs = Errors::new();
    let path = Path::new("spec");
    let (selector, p) = (spec.at("deviceSelector"), path.child("deviceSelector"));
    if let Some(driver) = selector.str_opt("driver") {
        check_driver_name(&mut errs, &p.child("driver"), driver);
    }
    if let Some(pool) = selector.str_opt("pool") {
        check_pool_name(&mut errs, &p.child("pool"), pool);
    }
    if let Some(device) = selector.str_opt("device") {
        errs.each(&p.child("device"), device, names::dns1123_label(device));
    }
    check_taint(&mut errs, &path.child("taint"), spec.at("taint"), old.map(|old| old.at("taint")));
    errs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update};

    const GROUP: &str = "resource.k8s.io";

    #[test]
    fn taint_rules() {
        let base = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "d.example.com"}, "taint": {"key": "k", "effect": "NoSchedule"}}});
        check_create(
            GROUP,
            "DeviceTaintRule",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"deviceSelector": {"pool": ""}, "taint": {"effect": null}}}),
                    &["spec.deviceSelector.pool: Required value", "spec.taint.effect: Required value"],
                ),
            ],
        );
        check_update(
            GROUP,
            "DeviceTaintRule",
            &base,
            &[(
                json!({"spec": {"taint": {"effect": "X"}}}),
                &[
                    "spec.taint.effect: Unsupported value: \"X\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
                ],
            )],
        );
    }
}
