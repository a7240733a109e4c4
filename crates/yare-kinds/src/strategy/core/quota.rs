//! `LimitRange` and `ResourceQuota`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    quantity::Quantity,
};

use crate::{
    check::{Check, Errors, quantity},
    names,
    pod::{
        defaults::round_up_resources,
        resources::{
            Amounts, check_amount, check_container_name, check_name, is_overcommit_allowed, is_standard_quota,
        },
    },
    shown::{SCOPE_SELECTOR, show},
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub struct LimitRange;

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for limit in object.items_mut("spec.limits") {
            for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                round_up_resources(limit, list);
            }
            if limit.str_at("type") == "Container" {
                fill(limit, "default", "max");
                fill(limit, "defaultRequest", "default");
                fill(limit, "defaultRequest", "min");
            }
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        let path = path.child("limits");
        let mut seen: HashSet<&str> = HashSet::new();
        for (i, limit) in object.items("spec.limits").iter().enumerate() {
            let p = path.index(i);
            let kind = limit.str_at("type");
            check_limit_type(&mut errs, &p.child("type"), kind);
            if seen.contains(&kind) {
                errs.duplicate(&p.child("type"), kind);
            }
            seen.insert(kind);
            check_limit(&mut errs, &p, limit, kind);
        }
        errs
    }

    fn names_itself(&self) -> bool {
        true
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// Amounts of `from` that `into` lacks.
fn fill(limit: &mut Value, into: &str, from: &str) {
    let mut amounts = limit.at(into).as_object().cloned().unwrap_or_default();
    for (name, amount) in limit.entries(from) {
        if !amounts.contains_key(name) {
            amounts.insert(name.to_owned(), amount.clone());
        }
    }
    if !amounts.is_empty() {
        limit.set(into, amounts);
    }
}

fn check_limit_type(errs: &mut Errors, path: &Path<'_>, kind: &str) {
    let messages = names::qualified_name(kind);
    if !messages.is_empty() {
        errs.each(path, kind, messages);
    } else if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
        errs.invalid(path, kind, "must be a standard limit type or fully qualified");
    }
}

fn check_limit(errs: &mut Errors, path: &Path<'_>, limit: &Value, kind: &str) {
    let of_containers = matches!(kind, "Pod" | "Container");
    let read_from = |errs: &mut Errors, list: &str| -> Amounts {
        let p = path.child(list);
        if kind == "Pod" && matches!(list, "default" | "defaultRequest") {
            if limit.is_set(list) {
                errs.forbidden(&p, "may not be specified when `type` is 'Pod'");
            }
            return Amounts::new();
        }
        limit
            .entries(list)
            .map(|(name, amount)| {
                if of_containers {
                    check_container_name(errs, &p.key(name), name);
                } else {
                    check_name(errs, &p.key(name), name);
                }
                (name.to_owned(), quantity(amount))
            })
            .collect()
    };
    let mut read = |list: &str| read_from(errs, list);
    let (max, min) = (read("max"), read("min"));
    let (default, request) = (read("default"), read("defaultRequest"));
    let mut ratio_errs = Errors::new();
    let ratio = read_from(&mut ratio_errs, "maxLimitRequestRatio");
    if kind == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        errs.required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    errs.extend(ratio_errs);
    let mut keys: Vec<&String> =
        [&max, &min, &default, &request, &ratio].into_iter().flat_map(Amounts::keys).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (max, min, default, request) = (max.get(key), min.get(key), default.get(key), request.get(key));
        let mut order = |field: &str,
                         shown: Quantity,
                         low: Option<&Quantity>,
                         what: &str,
                         high: Option<&Quantity>,
                         than: &str| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                errs.invalid(
                    &path.child(field).key(key),
                    shown.to_string(),
                    format!("{what} value {low} is greater than {than} value {high}"),
                );
            }
        };
        let shown = |amount: Option<&Quantity>| amount.copied().unwrap_or_default();
        order("min", shown(min), min, "min", max, "max");
        order("defaultRequest", shown(request), min, "min", request, "default request");
        order("defaultRequest", shown(request), request, "default request", max, "max");
        order("defaultRequest", shown(request), request, "default request", default, "default limit");
        order("default", shown(min), min, "min", default, "default");
        order("default", shown(max), default, "default", max, "max");
        if let Some(ratio) = ratio.get(key) {
            let p = path.child("maxLimitRequestRatio");
            if ratio.as_f64() < 1.0 {
                errs.invalid(&p.key(key), ratio.to_string(), format!("ratio {ratio} is less than 1"));
            }
            if let (Some(min), Some(max)) = (min, max) {
                let greatest = max.as_f64() / min.as_f64();
                if ratio.as_f64() > greatest {
                    errs.invalid(
                        &p.key(key),
                        ratio.to_string(),
                        format!("ratio {ratio} is greater than max/min = {greatest:.6}"),
                    );
                }
            }
        }
        if let (Some(default), Some(request)) = (default, request)
            && default != request
            && !is_overcommit_allowed(key)
        {
            errs.invalid(
                &path.child("defaultRequest").key(key),
                request.to_string(),
                format!("default value {default} must equal to defaultRequest value {request} in {key}"),
            );
        }
    }
}

pub struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn default(&self, object: &mut Value) {
        for list in ["spec.hard", "status.hard", "status.used"] {
            round_up_resources(object, list);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        check_amounts(&mut errs, &path.child("hard"), object.at("spec.hard"));
        check_scopes(&mut errs, &path, object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        let sorted = |object: &Value| {
            let mut scopes: Vec<String> =
                object.strings("spec.scopes").into_iter().map(str::to_owned).collect();
            scopes.sort_unstable();
            scopes.dedup();
            scopes
        };
        if sorted(new) != sorted(old) {
            let path = Path::new("spec");
            errs.invalid(&path.child("scopes"), new.at("spec.scopes").clone(), crate::meta::IMMUTABLE);
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("status");
        check_amounts(&mut errs, &path.child("hard"), new.at("status.hard"));
        check_amounts(&mut errs, &path.child("used"), new.at("status.used"));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let hard = new.at("spec.hard");
        let mut out = Vec::new();
        if old.is_some() {
            return out;
        }
        for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
            let request = format!("requests.{name}");
            let request = if hard.get(&request).is_none() && matches!(name, "cpu" | "memory") {
                name.to_owned()
            } else {
                request
            };
            let limit = format!("limits.{name}");
            if let (Some(r), Some(l)) = (hard.get(&request).map(quantity), hard.get(&limit).map(quantity))
                && r > l
            {
                out.push(format!("ResourceQuota {request} ({r}) should be less than {limit} ({l})"));
            }
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }
}

fn check_amounts(errs: &mut Errors, path: &Path<'_>, amounts: &Value) {
    for (name, amount) in amounts.entries("") {
        let p = path.key(name);
        check_name(errs, &p, name);
        if !name.contains('/') && !is_standard_quota(name) {
            errs.invalid(&p, name, "must be a standard resource for quota");
        }
        check_amount(errs, &p, name, quantity(amount));
    }
}

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "VolumeAttributesClass",
    "CrossNamespacePodAffinity",
];

/// Whether a quota for `resource` can be narrowed to `scope`.
fn scope_fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => {
            matches!(
                resource,
                "pods"
                    | "cpu"
                    | "memory"
                    | "limits.cpu"
                    | "limits.memory"
                    | "requests.cpu"
                    | "requests.memory"
            )
        }
        _ => true,
    }
}

fn check_scopes(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let misfits = |scope: &str| {
        spec.entries("hard").filter(|(name, _)| is_standard_quota(name) && !scope_fits(scope, name)).count()
    };
    let conflict = |scopes: &[&str]| {
        [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")]
            .iter()
            .filter(|(a, b)| scopes.contains(a) && scopes.contains(b))
            .count()
    };
    let scopes_path = path.child("scopes");
    let scopes = spec.strings("scopes");
    let shown = spec.at("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errs.invalid(&scopes_path, shown.clone(), "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            errs.invalid(&scopes_path, shown.clone(), "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflict(&scopes) {
        errs.invalid(&scopes_path, shown.clone(), "conflicting scopes");
    }

    let path = path.child("scopeSelector");
    let path = path.child("matchExpressions");
    let mut selected: Vec<&str> = Vec::new();
    for requirement in spec.items("scopeSelector.matchExpressions") {
        let (scope, operator) = (requirement.str_at("scopeName"), requirement.str_at("operator"));
        let values = requirement.strings("values");
        if !SCOPES.contains(&scope) {
            errs.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            let error = FieldError::invalid(&path, Value::Null, "unsupported scope applied to resource");
            errs.push(error.showing(show(spec.at("scopeSelector"), SCOPE_SELECTOR)));
        }
        let flag = !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope);
        if flag && operator != "Exists" {
            errs.invalid(
                &path.child("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.required(
                        &path.child("values"),
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.invalid(
                        &path.child("values"),
                        values,
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
            }
            _ => errs.invalid(&path.child("operator"), operator, "not a valid selector operator"),
        }
        selected.push(scope);
    }
    for _ in 0..conflict(&selected) {
        errs.invalid(&path, shown.clone(), "conflicting scopes");
    }
}
