//! `MutatingWebhookConfiguration` and `ValidatingWebhookConfiguration`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use super::{
    check_static_name,
    rules::{
        Before, FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, SELECTORS, check_conditions,
        check_rule, default_match,
    },
    static_name_warnings,
};
use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, judge_selectors_after},
    names,
    strategy::{
        Context, Strategy,
        webhook::{check_client_config, check_review_versions, default_client_config},
    },
    view::{View, ViewMut},
};

pub struct WebhookConfiguration {
    pub mutating: bool,
}

const DEFAULT_TIMEOUT_S: i64 = 10;
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];

impl Strategy for WebhookConfiguration {
    fn default(&self, configuration: &mut Value) {
        for hook in configuration.items_mut("webhooks") {
            hook.default_absent("failurePolicy", "Fail");
            default_match(hook, &["rules"]);
            hook.default_absent("timeoutSeconds", DEFAULT_TIMEOUT_S);
            if self.mutating {
                hook.default_absent("reinvocationPolicy", "Never");
            }
            if let Some(config) = hook.at_mut("clientConfig") {
                default_client_config(config);
            }
        }
    }

    fn validate(&self, configuration: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.check(configuration, None, ctx.gates);
        check_static_name(&mut errs, configuration, ctx);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.check(new, Some(old), ctx.gates)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        static_name_warnings(new)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl WebhookConfiguration {
    fn check(&self, configuration: &Value, old: Option<&Value>, gates: &Gates) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let stored = old.map_or(&[][..], |old| old.items("webhooks"));
        let before = Before::of(stored.iter().flat_map(|hook| hook.items("matchConditions")), "expression");
        let hooks = configuration.items("webhooks");
        // Conditions that nobody touches are not looked at.
        let conditions = old.is_none_or(|_| {
            let same = |(a, b): (&Value, &Value)| a.items("matchConditions") == b.items("matchConditions");
            hooks.len() != stored.len() || !hooks.iter().zip(stored).all(same)
        });
        let judge =
            judge_selectors_after(stored.iter().flat_map(|hook| SELECTORS.map(|field| hook.at(field))));
        let list = Path::new("webhooks");
        let mut seen: HashSet<&str> = HashSet::new();
        for (i, hook) in configuration.items("webhooks").iter().enumerate() {
            let path = list.index(i);
            self.check_hook(&mut errs, &path, hook, judge);
            if conditions {
                let p = path.child("matchConditions");
                check_conditions(&mut errs, &p, hook.items("matchConditions"), false, &before, gates);
            }
            let versions = hook.strings("admissionReviewVersions");
            let p = path.child("admissionReviewVersions");
            check_review_versions(&mut errs, &p, &versions, "must specify one of v1, v1beta1");
            let name = hook.str_at("name");
            if !name.is_empty() && seen.contains(&name) {
                errs.duplicate(&path.child("name"), name);
            }
            seen.insert(name);
        }
        errs
    }

    fn check_hook(&self, errs: &mut Errors, path: &Path<'_>, hook: &Value, judge: JudgeSelector) {
        let (p, name) = (path.child("name"), hook.str_at("name"));
        let messages = names::dns1123_subdomain(name);
        if name.is_empty() {
            errs.required(&p, "");
        } else if !messages.is_empty() {
            errs.invalid(&p, name, messages.join(","));
        } else if name.split('.').count() < 3 {
            errs.invalid(&p, name, "should be a domain with at least three segments separated by dots");
        }
        let list = path.child("rules");
        for (i, rule) in hook.items("rules").iter().enumerate() {
            check_rule(errs, &list.index(i), rule);
        }
        for (field, allowed) in [("failurePolicy", FAILURE_POLICIES), ("matchPolicy", MATCH_POLICIES)] {
            if let Some(policy) = hook.str_opt(field) {
                errs.one_of(&path.child(field), policy, allowed);
            }
        }
        let p = path.child("sideEffects");
        match hook.str_opt("sideEffects") {
            None => errs.required(&p, format!("must specify one of {}", NO_SIDE_EFFECTS.join(", "))),
            Some(effects) => errs.one_of(&p, effects, NO_SIDE_EFFECTS),
        }
        if let Some(seconds) = hook.int_opt("timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errs.invalid(&path.child("timeoutSeconds"), seconds, detail);
        }
        for field in SELECTORS {
            errs.extend(judge(hook.at(field), &path.child(field)));
        }
        if self.mutating
            && let Some(policy) = hook.str_opt("reinvocationPolicy")
        {
            errs.one_of(&path.child("reinvocationPolicy"), policy, REINVOCATION_POLICIES);
        }
        check_client_config(errs, &path.child("clientConfig"), hook.at("clientConfig"));
    }
}
