//! Strategies of the kinds of `authorization.k8s.io`, which are questions and not stored.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Flags, Strategy};
use crate::{
    check::{Check, Errors},
    names,
    shown::NON_RESOURCE,
    view::View,
};

/// `LocalSubjectAccessReview`
pub const LOCAL_SUBJECT_ACCESS_REVIEW: &dyn Strategy = &AccessReview::Local;

/// `SelfSubjectAccessReview`
pub const SELF_SUBJECT_ACCESS_REVIEW: &dyn Strategy = &AccessReview::OfSelf;

/// `SelfSubjectRulesReview`
pub const SELF_SUBJECT_RULES_REVIEW: &dyn Strategy = &Flags::new();

/// `SubjectAccessReview`
pub const SUBJECT_ACCESS_REVIEW: &dyn Strategy = &AccessReview::Any;

/// Whether someone may do something.
enum AccessReview {
    Any,
    Local,
    OfSelf,
}

impl Strategy for AccessReview {
    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        let spec = object.at("spec");
        let (resource, other) = (spec.at("resourceAttributes"), spec.at("nonResourceAttributes"));
        if !resource.is_null() && !other.is_null() {
            errs.invalid_shown(
                &path.child("nonResourceAttributes"),
                other,
                NON_RESOURCE,
                "cannot be specified in combination with resourceAttributes",
            );
        }
        if resource.is_null() && other.is_null() {
            errs.invalid(
                &path.child("resourceAttributes"),
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
        }
        if !matches!(self, Self::OfSelf) && !spec.is_set("user") && !spec.is_set("groups") {
            errs.invalid(&path.child("user"), "", "at least one of user or group must be specified");
        }
        let path = path.child("resourceAttributes");
        for (field, is_label) in [("fieldSelector", false), ("labelSelector", true)] {
            if resource.has(field) {
                check_selector(&mut errs, &path.child(field), resource.at(field), is_label);
            }
        }
        self.check_metadata(&mut errs, object);
        if matches!(self, Self::Local) {
            let namespace = resource.str_at("namespace");
            if !resource.is_null() && namespace != object.str_at("metadata.namespace") {
                errs.invalid(
                    &Path::new("spec.resourceAttributes.namespace"),
                    namespace,
                    "must match metadata.namespace",
                );
            }
            if !other.is_null() {
                errs.invalid_shown(
                    &Path::new("spec.nonResourceAttributes"),
                    other,
                    NON_RESOURCE,
                    "disallowed on this kind of request",
                );
            }
        }
        errs
    }
}

impl AccessReview {
    /// The answer has no identity, so the question may not claim one. What the server itself fills in does
    /// not count.
    fn check_metadata(&self, errs: &mut Errors, object: &Value) {
        let local = matches!(self, Self::Local);
        let extra = object.entries("metadata").any(|(field, _)| {
            let allowed = matches!(field, "managedFields" | "creationTimestamp" | "uid")
                || (local && field == "namespace");
            !allowed && object.at("metadata").is_set(field)
        });
        if extra {
            let detail = if local { "must be empty except for namespace" } else { "must be empty" };
            errs.invalid(&Path::new("metadata"), object.at("metadata").clone(), detail);
        }
    }
}

fn check_selector(errs: &mut Errors, path: &Path<'_>, selector: &Value, is_label: bool) {
    let raw = selector.str_at("rawSelector");
    let requirements = selector.items("requirements");
    if !raw.is_empty() && !requirements.is_empty() {
        errs.invalid(&path.child("rawSelector"), raw, "may not specified at the same time as requirements");
    }
    let list = path.child("requirements");
    if raw.is_empty() && requirements.is_empty() {
        errs.required(&list, format!("when {path} is specified, requirements or rawSelector is required"));
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let p = list.index(i);
        let key = requirement.str_at("key");
        if !is_label && key.is_empty() {
            errs.required(&p.child("key"), "must be specified");
        }
        let values = requirement.strings("values");
        match requirement.str_at("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errs.required(&p.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.forbidden(
                &p.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            // An unknown operator selects nothing less, which is the safe reading for an authorizer.
            _ => {}
        }
        if is_label {
            errs.each(&p.child("key"), key, names::qualified_name(key));
            let list = p.child("values");
            for (i, value) in values.iter().enumerate() {
                errs.each(&list.index(i), *value, names::label_value(value));
            }
        }
    }
}
