//! Strategies of the kinds of `scheduling.k8s.io`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    meta,
    view::{View, ViewMut},
};

mod groups;

/// `PriorityClass`
pub const PRIORITY_CLASS: &dyn Strategy = &PriorityClass;

/// `PodGroup`
pub const POD_GROUP: &dyn Strategy = &groups::PodGroup;

/// `Workload`
pub const WORKLOAD: &dyn Strategy = &groups::Workload;

/// The highest priority that a class may have that is not the system's.
const HIGHEST_USER: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2 * HIGHEST_USER + 1000), ("system-cluster-critical", 2 * HIGHEST_USER)];

/// Whether a priority class is one that every cluster has.
pub fn is_system_class(name: &str) -> bool {
    SYSTEM.iter().any(|(system, _)| *system == name)
}

struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, class: &mut Value) {
        class.default_absent("preemptionPolicy", "PreemptLowerPriority");
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        // The generation stays 1, whatever changes.
        meta::prepare_for_update(new, old, false, false);
    }

    fn validate(&self, class: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (name, value) = (class.str_at("metadata.name"), class.int_at("value"));
        if name.starts_with(SYSTEM_PREFIX) {
            if let Err(e) = check_system(name, value, class.bool_at("globalDefault")) {
                let detail = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {e}"
                );
                errs.forbidden(&Path::new("metadata.name"), detail);
            }
        } else if value > HIGHEST_USER {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER}");
            errs.forbidden(&Path::new("value"), detail);
        }
        if let Some(policy) = class.str_opt("preemptionPolicy") {
            let policies = ["PreemptLowerPriority", "Never"];
            errs.required_one_listed(&Path::new("preemptionPolicy"), policy, &policies);
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        if new.int_at("value") != old.int_at("value") {
            errs.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        errs.immutable(
            &Path::new("preemptionPolicy"),
            new.at("preemptionPolicy"),
            old.at("preemptionPolicy"),
        );
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_system(name: &str, value: i64, global: bool) -> Result<(), String> {
    match SYSTEM.iter().find(|(known, _)| *known == name) {
        None => Err(format!("{name} is not a known system priority class")),
        Some((_, known)) if *known != value => Err(format!("value of {name} PriorityClass must be {known}")),
        Some(_) if global => Err(format!("globalDefault of {name} PriorityClass must be false")),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        strategy::testing::{check_create, check_update, defaulted},
        view::View,
    };

    const GROUP: &str = "scheduling.k8s.io";

    #[test]
    fn priority_classes() {
        let base = json!({"metadata": {"name": "high"}, "value": 1000});
        let class = defaulted(GROUP, "PriorityClass", base.clone());
        assert_eq!(class.str_at("preemptionPolicy"), "PreemptLowerPriority");
        check_create(
            GROUP,
            "PriorityClass",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"value": 1_000_000_001}),
                    &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
                ),
                (json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}), &[]),
                (
                    json!({"metadata": {"name": "system-x"}}),
                    &[
                        "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            "PriorityClass",
            &base,
            &[
                (json!({"description": "d"}), &[]),
                (
                    json!({"value": 1, "preemptionPolicy": "Never"}),
                    &[
                        "value: Forbidden: may not be changed in an update.",
                        "preemptionPolicy: Invalid value: \"Never\": field is immutable",
                    ],
                ),
            ],
        );
    }
}
