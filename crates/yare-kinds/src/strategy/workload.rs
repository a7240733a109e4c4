//! What the kinds that make pods from a template share: the selector and the template it has to match, numbers
//! that may be percentages, and the counts in their status.

use serde_json::{Value, json};
use yare_schema::{
    field::{FieldError, Path},
    selector::LabelSelector,
};

use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, judge, validate_label_selector},
    names,
    pod::{defaults, spec, switched::has_odd_selectors, warnings},
    shown,
    view::{View, ViewMut},
};

/// How the selector of an `old` object is judged that judges the values in it and those in its pods' affinity as one:
/// values that no label can have are spared where either had some.
pub fn judge_selector_after(old: &Value) -> JudgeSelector {
    let values = old.items("spec.selector.matchExpressions").iter().flat_map(|r| r.strings("values"));
    let had_odd = values.into_iter().any(|value| !names::label_value(value).is_empty());
    judge(had_odd || has_odd_selectors(old.at("spec.template.spec")))
}

/// Sets the defaults of the template at `path`; a template that is missing becomes an empty one.
pub fn default_template(object: &mut Value, path: &str) {
    object.default_absent(path, json!({}));
    if let Some(template) = object.at_mut(path) {
        defaults::template(template);
    }
}

/// Errors in a selector that a kind (`deployment`) must have; `None` where it cannot select.
pub fn check_selector(
    errs: &mut Errors,
    path: &Path<'_>,
    selector: &Value,
    kind: &str,
    malformed: &str,
) -> Option<LabelSelector> {
    if selector.is_null() {
        errs.required(path, "");
    } else {
        errs.extend(validate_label_selector(selector, path));
        check_selector_not_empty(errs, path, selector, kind);
    }
    let parsed = LabelSelector::from_object(selector).ok();
    if parsed.is_none() {
        errs.push(FieldError::invalid(path, Value::Null, malformed).showing(shown::selector(selector)));
    }
    parsed
}

/// An error in a selector that selects everything.
pub fn check_selector_not_empty(errs: &mut Errors, path: &Path<'_>, selector: &Value, kind: &str) {
    if !selector.is_null() && !selector.is_set("matchLabels") && !selector.is_set("matchExpressions") {
        errs.invalid(path, selector.clone(), format!("empty selector is invalid for {kind}"));
    }
}

/// Whether `selector` selects the pods of `template`.
pub fn selects(selector: &LabelSelector, template: &Value) -> bool {
    selector.matches_value(template.at("metadata.labels"))
}

/// An error where the template's labels are not what the selector asks for.
pub fn check_match(errs: &mut Errors, path: &Path<'_>, selector: &LabelSelector, template: &Value) {
    if !selects(selector, template) {
        errs.invalid(
            &path.child("metadata.labels"),
            template.at("metadata.labels").clone(),
            "`selector` does not match template `labels`",
        );
    }
}

/// Errors in a template whose pods a controller keeps running.
pub fn check_endless_template(errs: &mut Errors, path: &Path<'_>, template: &Value, kind: &str) {
    spec::check_template(errs, path, template);
    check_endless(errs, path, template, kind);
}

/// Errors in what of a template would let its pods end.
pub fn check_endless(errs: &mut Errors, path: &Path<'_>, template: &Value, kind: &str) {
    errs.one_of(&path.child("spec.restartPolicy"), template.str_at("spec.restartPolicy"), &["Always"]);
    if template.has("spec.activeDeadlineSeconds") {
        errs.forbidden(
            &path.child("spec.activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

/// Errors in a number that is not negative or a percentage.
pub fn check_count_or_percent(errs: &mut Errors, path: &Path<'_>, value: &Value) {
    match value {
        Value::String(text) => errs.each(path, text.as_str(), names::percent(text)),
        _ => errs.non_negative(path, value.as_i64().unwrap_or_default()),
    }
}

/// The percentage that `value` is.
fn percentage(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    names::percent(text).is_empty().then(|| text.trim_end_matches('%').parse().unwrap_or(i64::MAX))
}

/// The number or the percentage that `value` is.
pub fn count_or_percent(value: &Value) -> i64 {
    match value {
        Value::String(text) => percentage(value).or_else(|| text.parse().ok()).unwrap_or_default(),
        _ => value.as_i64().unwrap_or_default(),
    }
}

/// An error in a percentage of more than all.
pub fn check_at_most_all(errs: &mut Errors, path: &Path<'_>, value: &Value) {
    if percentage(value).is_some_and(|p| p > 100) {
        errs.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// `value` at each of `fields` may not be negative.
pub fn check_counts(errs: &mut Errors, path: &Path<'_>, object: &Value, fields: &[&str]) {
    for field in fields {
        errs.non_negative(&path.child(field), object.int_at(field));
    }
}

/// None of `fields` may be greater than the field `total`.
pub fn check_at_most(
    errs: &mut Errors,
    path: &Path<'_>,
    object: &Value,
    fields: &[&str],
    total: &str,
    shown: &str,
) {
    for field in fields {
        let count = object.int_at(field);
        if count > object.int_at(total) {
            errs.invalid(&path.child(field), count, format!("cannot be greater than {shown}"));
        }
    }
}

/// `status.collisionCount` only grows.
pub fn check_collision_count(errs: &mut Errors, new: &Value, old: &Value) {
    const FIELD: &str = "status.collisionCount";
    let (now, before) = (new.int_opt(FIELD), old.int_opt(FIELD));
    if before.is_some_and(|before| now.is_none_or(|now| now < before)) {
        errs.invalid(&Path::new(FIELD), now.unwrap_or_default(), "cannot be decremented");
    }
}

/// Whether an update changed what `generation` counts.
pub fn is_other_generation(new: &Value, old: Option<&Value>) -> bool {
    old.is_none_or(|old| old.int_at("metadata.generation") != new.int_at("metadata.generation"))
}

/// A warning about the name of a new object that the names of its pods start with.
pub fn name_warning(new: &Value, old: Option<&Value>) -> Option<String> {
    let messages = names::dns1123_label(new.str_at("metadata.name"));
    (old.is_none() && !messages.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        )
    })
}

/// Warnings about `spec.template`, where it may have changed.
pub fn template_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    if !is_other_generation(new, old) {
        return Vec::new();
    }
    warnings::of(new.at("spec.template"), &Path::new("spec.template"))
}
