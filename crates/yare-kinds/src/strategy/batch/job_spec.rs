//! `JobSpec`, of Jobs and of the templates in CronJobs.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::indexes;
use crate::{
    check::{Check, Errors},
    names,
    pod::{spec as pod_spec, warnings},
    shown,
    strategy::{
        rules::{check_domain_prefixed_path, check_length, plain_invalid},
        workload::check_counts,
    },
    view::{View, ViewMut},
};

const MAX_PARALLELISM_INDEXED: i64 = 100_000;
const MAX_FAILED_INDEXES: i64 = 100_000;
/// Above so many completions, the failed indexes take too much of the status.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_PARALLELISM_MANY: i64 = 10_000;
const MAX_FAILED_INDEXES_MANY: i64 = 10_000;
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_CONDITIONS: usize = 20;
const MAX_MANAGED_BY: usize = 63;
const MAX_INDEXES_B: usize = 64 * 1024;

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];

/// Whether every pod of the job has an index.
pub fn is_indexed(spec: &Value) -> bool {
    spec.str_at("completionMode") == "Indexed"
}

/// Defaults in a `podFailurePolicy`.
pub fn default_failure_policy(spec: &mut Value) {
    for rule in spec.items_mut("podFailurePolicy.rules") {
        for condition in rule.items_mut("onPodConditions") {
            condition.default_zero("status", "True");
        }
    }
}

/// Errors in all but the selector.
pub fn check(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    check_counts(
        errs,
        path,
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
    );
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        errs.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec.str_opt("managedBy") {
        check_domain_prefixed_path(errs, &path.child("managedBy"), manager);
        check_length(errs, &path.child("managedBy"), manager, MAX_MANAGED_BY);
    }
    if let Some(mode) = spec.str_opt("completionMode") {
        errs.one_listed(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    if is_indexed(spec) {
        check_indexed(errs, path, spec);
    } else if matches!(spec.str_at("completionMode"), "" | "NonIndexed") {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(n) = spec.int_opt(field) {
                errs.invalid(&path.child(field), n, "requires indexed completion mode");
            }
        }
    }
    if spec.has("podFailurePolicy") {
        check_failure_policy(errs, &path.child("podFailurePolicy.rules"), spec);
    }
    if spec.has("successPolicy") {
        let p = path.child("successPolicy");
        if is_indexed(spec) {
            check_success_policy(errs, &p.child("rules"), spec);
        } else {
            let policy = spec.at("successPolicy");
            errs.invalid_shown(&p, policy, shown::SUCCESS_POLICY, "requires indexed completion mode");
        }
    }
    if let Some(policy) = spec.str_opt("podReplacementPolicy") {
        let allowed: &[&str] =
            if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        errs.one_of(&path.child("podReplacementPolicy"), policy, allowed);
    }
    pod_spec::check_template(errs, &path.child("template"), spec.at("template"));
    let p = path.child("template.spec.restartPolicy");
    match spec.str_at("template.spec.restartPolicy") {
        "" | "Always" => errs.required(&p, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" if spec.has("podFailurePolicy") => {
            errs.invalid(&p, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
        }
        policy => errs.one_listed(&p, policy, &["OnFailure", "Never"]),
    }
}

fn at_most(errs: &mut Errors, path: &Path<'_>, value: Option<i64>, max: i64, when: &str) {
    if let Some(value) = value.filter(|v| *v > max) {
        errs.invalid(path, value, format!("must be less than or equal to {max}{when}"));
    }
}

fn check_indexed(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let [completions, parallelism, failed] =
        ["completions", "parallelism", "maxFailedIndexes"].map(|field| spec.int_opt(field));
    let (parallelism_path, failed_path) = (path.child("parallelism"), path.child("maxFailedIndexes"));
    if completions.is_none() {
        errs.required(&path.child("completions"), "when completion mode is Indexed");
    }
    at_most(
        errs,
        &parallelism_path,
        parallelism,
        MAX_PARALLELISM_INDEXED,
        " when completion mode is Indexed",
    );
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        errs.invalid(&failed_path, failed, "must be less than or equal to completions");
    }
    at_most(errs, &failed_path, failed, MAX_FAILED_INDEXES, "");
    if completions.is_some_and(|c| c > MANY_COMPLETIONS) && spec.has("backoffLimitPerIndex") {
        if failed.is_none() {
            let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errs.required(&failed_path, detail);
        }
        let when =
            format!(" when completions are above {MANY_COMPLETIONS} and used with backoff limit per index");
        at_most(errs, &parallelism_path, parallelism, MAX_PARALLELISM_MANY, &when);
        at_most(errs, &failed_path, failed, MAX_FAILED_INDEXES_MANY, &when);
    }
}

fn check_failure_policy(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let rules = spec.items("podFailurePolicy.rules");
    if rules.len() > MAX_RULES {
        errs.push(FieldError::too_many(path, rules.len(), MAX_RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let p = path.child("action");
        match rule.str_at("action") {
            "" => errs.required(&p, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errs.invalid(&p, "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
            action => errs.one_of(&p, action, ACTIONS),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.items("onPodConditions"));
        if !codes.is_null() {
            check_exit_codes(errs, &path.child("onExitCodes"), codes, spec);
        }
        check_pod_conditions(errs, &path.child("onPodConditions"), conditions);
        match (codes.is_null(), conditions.is_empty()) {
            (false, false) => {
                plain_invalid(
                    errs,
                    &path,
                    "specifying both OnExitCodes and OnPodConditions is not supported",
                );
            }
            (true, true) => {
                plain_invalid(errs, &path, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn check_exit_codes(errs: &mut Errors, path: &Path<'_>, codes: &Value, spec: &Value) {
    let operator = codes.str_at("operator");
    let p = path.child("operator");
    if operator.is_empty() {
        errs.required(&p, "valid values: [\"In\" \"NotIn\"]");
    } else {
        errs.one_of(&p, operator, &["In", "NotIn"]);
    }
    if let Some(name) = codes.str_opt("containerName") {
        let template = spec.at("template.spec");
        let mut containers = ["containers", "initContainers"].iter().flat_map(|list| template.items(list));
        if !containers.any(|c| c.str_at("name") == name) {
            errs.invalid(
                &path.child("containerName"),
                name,
                "must be one of the container or initContainer names in the pod template",
            );
        }
    }
    let values: Vec<i64> = codes.items("values").iter().filter_map(Value::as_i64).collect();
    let p = path.child("values");
    if values.is_empty() {
        errs.invalid(&p, codes.at("values").clone(), "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errs.push(FieldError::too_many(&p, values.len(), MAX_EXIT_CODES));
    }
    let mut seen = HashSet::new();
    for (i, code) in values.iter().enumerate() {
        if operator == "In" && *code == 0 {
            errs.invalid(&p.index(i), 0, "must not be 0 for the In operator");
        }
        if !seen.insert(*code) {
            errs.duplicate(&p.index(i), *code);
        }
    }
    if !values.is_sorted() {
        errs.invalid(&p, values, "must be ordered");
    }
}

fn check_pod_conditions(errs: &mut Errors, path: &Path<'_>, patterns: &[Value]) {
    if patterns.len() > MAX_CONDITIONS {
        errs.push(FieldError::too_many(path, patterns.len(), MAX_CONDITIONS));
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let path = path.index(i);
        let kind = pattern.str_at("type");
        errs.each(&path.child("type"), kind, names::qualified_name(kind));
        let (p, status) = (path.child("status"), pattern.str_at("status"));
        if status.is_empty() {
            errs.required(&p, "valid values: [\"False\" \"True\" \"Unknown\"]");
        } else {
            errs.one_of(&p, status, &["False", "True", "Unknown"]);
        }
    }
}

fn check_success_policy(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let rules = spec.items("successPolicy.rules");
    if rules.is_empty() {
        errs.required(path, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > MAX_RULES {
        errs.push(FieldError::too_many(path, rules.len(), MAX_RULES));
    }
    // Without completions there is another error already.
    let completions = spec.int_at("completions");
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let (list, wanted) = (rule.str_opt("succeededIndexes"), rule.int_opt("succeededCount"));
        if list.is_none() && wanted.is_none() {
            errs.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if let Some(list) = list {
            let p = path.child("succeededIndexes");
            if list.len() > MAX_INDEXES_B {
                errs.push(FieldError::too_long(&p, MAX_INDEXES_B));
            }
            match indexes::count(list, completions) {
                Ok(n) => total = n,
                Err(e) => errs.invalid(&p, list, format!("error parsing succeededIndexes: {e}")),
            }
        }
        if let Some(wanted) = wanted {
            let p = path.child("succeededCount");
            errs.non_negative(&p, wanted);
            if wanted > completions {
                errs.invalid(
                    &p,
                    wanted,
                    format!(
                        "must be less than or equal to {completions} (the number of specified completions)"
                    ),
                );
            }
            if list.is_some() && wanted > total {
                errs.invalid(
                    &p,
                    wanted,
                    format!(
                        "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                    ),
                );
            }
        }
    }
}

/// Warnings about a `JobSpec` that stands at `path`.
pub fn warn(path: &Path<'_>, spec: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if is_indexed(spec)
        && spec.int_at("completions") > MANY_COMPLETIONS
        && spec.int_at("parallelism") > MAX_PARALLELISM_MANY
    {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    out.extend(warnings::of(spec.at("template"), &path.child("template")));
    out
}
