//! Strategies of the kinds of `apiextensions.k8s.io`.
//!
//! Schemas are checked by [`yare_schema::crd`], expressions in them by [`crate::validations`].

use serde_json::{Value, json};
use yare_schema::{
    field::{FieldError, Path},
    goprint,
    release::Emulation,
};

use super::{Context, Strategy, certificates::check_ca_bundle, webhook::default_client_config};
use crate::{
    check::{Check, Errors, annotation},
    conditions, meta, names,
    view::{View, ViewMut},
};

mod spec;
#[cfg(test)]
mod tests;
mod versions;

/// `CustomResourceDefinition`
pub const CUSTOM_RESOURCE_DEFINITION: &dyn Strategy = &CustomResourceDefinition;

struct CustomResourceDefinition;

const APPROVED: &str = "api-approved.kubernetes.io";
const PULL: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

impl Strategy for CustomResourceDefinition {
    fn default(&self, crd: &mut Value) {
        let kind = crd.str_at("spec.names.kind").to_owned();
        if !kind.is_empty() {
            crd.default_zero("spec.names.singular", kind.to_lowercase());
            crd.default_zero("spec.names.listKind", format!("{kind}List"));
        }
        crd.default_absent("spec.conversion", json!({"strategy": "None"}));
        if let Some(config) = crd.at_mut("spec.conversion.webhook.clientConfig") {
            default_client_config(config);
        }
        if !crd.is_set("status.storedVersions")
            && let Some(version) = storage_version(crd)
        {
            crd.set("status.storedVersions", json!([version]));
        }
    }

    fn prepare_for_create(&self, crd: &mut Value, _ctx: &Context<'_>) {
        crd.remove("status");
        crd.set("metadata.generation", 1);
        record_storage_version(crd);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, true);
        record_storage_version(new);
    }

    fn validate(&self, crd: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let expected = format!("{}.{}", crd.str_at("spec.names.plural"), crd.str_at("spec.group"));
        for field in ["metadata.generateName", "metadata.name"] {
            let name = crd.str_at(field);
            if !name.is_empty() && name != expected {
                errs.invalid(&Path::new(field), name, "must be spec.names.plural+\".\"+spec.group");
            }
        }
        check(&mut errs, crd, None, ctx.gates.emulation());
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, new, Some(old), ctx.gates.emulation());
        let path = Path::new("spec");
        let fixed: &[&str] = if is_established(old) {
            &["scope", "names.kind", "group", "names.plural"]
        } else {
            &["group", "names.plural"]
        };
        for field in fixed {
            errs.immutable(&path.child(field), new.at("spec").at(field), old.at("spec").at(field));
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        spec::check_names(&mut errs, &Path::new("status.acceptedNames"), new.at("status.acceptedNames"));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(versions::unknown_formats).unwrap_or_default();
        let formats = versions::unknown_formats(new).into_iter().filter(|format| !known.contains(format));
        formats.map(|format| format!("unrecognized format {}", goprint::quote(format))).collect()
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

/// Whether a definition has been served.
fn is_established(crd: &Value) -> bool {
    conditions::is_true(crd.items("status.conditions"), "Established")
}

/// The certificates that a definition's webhook is trusted by.
fn ca_bundle(spec: &Value) -> Option<&str> {
    spec.str_opt("conversion.webhook.clientConfig.caBundle").filter(|text| !text.is_empty())
}

/// Whether a definition names certificates for its webhook that are none.
pub fn has_bad_ca_bundle(crd: &Value) -> bool {
    ca_bundle(crd.at("spec")).is_some_and(|text| check_ca_bundle(text).is_err())
}

fn storage_version(crd: &Value) -> Option<String> {
    let storage = crd.items("spec.versions").iter().find(|v| v.bool_at("storage"))?;
    Some(storage.str_at("name").to_owned())
}

/// The storage version goes on record, so that nobody drops a version that objects rest in.
fn record_storage_version(crd: &mut Value) {
    let Some(version) = storage_version(crd) else { return };
    let mut stored = crd.items("status.storedVersions").to_vec();
    if !stored.iter().any(|v| v.as_str() == Some(&version)) {
        stored.push(version.into());
        crd.set("status.storedVersions", stored);
    }
}

fn check(errs: &mut Errors, crd: &Value, old: Option<&Value>, emulation: Emulation) {
    spec::check(errs, &Path::new("spec"), crd.at("spec"), old, emulation);
    spec::check_names(errs, &Path::new("status.acceptedNames"), crd.at("status.acceptedNames"));
    check_stored_versions(errs, &Path::new("status.storedVersions"), crd);
    check_approval(errs, crd, old);
    let preserves = |crd: &Value| crd.bool_at("spec.preserveUnknownFields");
    if preserves(crd) && !old.is_some_and(preserves) {
        errs.invalid(
            &Path::new("spec.preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
}

fn check_stored_versions(errs: &mut Errors, path: &Path<'_>, crd: &Value) {
    let stored = crd.strings("status.storedVersions");
    if stored.is_empty() {
        return errs.invalid(
            path,
            crd.at("status.storedVersions").clone(),
            "must have at least one stored version",
        );
    }
    let versions: Vec<&str> = crd.items("spec.versions").iter().map(|v| v.str_at("name")).collect();
    for version in crd.items("spec.versions").iter().filter(|v| v.bool_at("storage")) {
        let name = version.str_at("name");
        if !stored.contains(&name) {
            errs.invalid(path, stored.clone(), format!("must have the storage version {name}"));
        }
    }
    for (i, version) in stored.iter().enumerate().filter(|(_, v)| !versions.contains(*v)) {
        errs.invalid(
            &path.index(i),
            *version,
            format!(
                "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
            ),
        );
    }
}

/// Whether the project's own reviewers have seen a definition in one of its groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

impl Approval {
    fn of(crd: &Value) -> Self {
        match annotation(crd, APPROVED).unwrap_or_default() {
            "" => Self::Missing,
            text if text.starts_with("unapproved") => Self::Bypassed,
            text => match text.split_once("://") {
                Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/') => {
                    Self::Approved
                }
                _ => Self::Invalid,
            },
        }
    }

    /// What is wrong, where something is.
    fn complaint(self) -> Option<String> {
        match self {
            Self::Missing => {
                Some(format!("protected groups must have approval annotation {APPROVED:?}, {PULL}"))
            }
            Self::Invalid => Some(format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {PULL}"
            )),
            Self::Bypassed | Self::Approved => None,
        }
    }
}

fn is_protected(group: &str) -> bool {
    let owned =
        |domain: &str| group == domain || group.strip_suffix(domain).is_some_and(|g| g.ends_with('.'));
    owned("k8s.io") || owned("kubernetes.io")
}

/// The condition `KubernetesAPIApprovalPolicyConformant` that a definition in a protected group should have.
pub fn approval_condition(crd: &Value) -> Option<Value> {
    if !is_protected(crd.str_at("spec.group")) {
        return None;
    }
    let approval = Approval::of(crd);
    let text = annotation(crd, APPROVED).unwrap_or_default();
    let (status, reason) = match approval {
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
    };
    let message = approval.complaint().unwrap_or_else(|| match approval {
        Approval::Bypassed => format!("not approved: {text:?}"),
        _ => format!("approved in {text}"),
    });
    Some(json!({
        "type": "KubernetesAPIApprovalPolicyConformant", "status": status, "reason": reason, "message": message,
    }))
}

/// Groups of the project's own hold only what its reviewers have seen.
fn check_approval(errs: &mut Errors, crd: &Value, old: Option<&Value>) {
    if !is_protected(crd.str_at("spec.group")) {
        return;
    }
    let now = Approval::of(crd);
    if old.is_some_and(|old| Approval::of(old) == now) {
        return;
    }
    let path = Path::new("metadata.annotations");
    let path = path.key(APPROVED);
    let Some(complaint) = now.complaint() else { return };
    if now == Approval::Missing {
        errs.required(&path, complaint);
    } else {
        errs.invalid(&path, annotation(crd, APPROVED).unwrap_or_default(), complaint);
    }
}

/// The messages of a rule as one.
fn joined(errs: &mut Errors, path: &Path<'_>, value: &str, messages: Vec<String>) {
    if !messages.is_empty() {
        errs.invalid(path, value, messages.join(","));
    }
}

/// A name that may have capitals.
fn check_kind(errs: &mut Errors, path: &Path<'_>, kind: &str) {
    let messages = names::dns1035_label(&kind.to_lowercase());
    if !kind.is_empty() && !messages.is_empty() {
        errs.invalid(
            path,
            kind,
            format!("may have mixed case, but should otherwise match: {}", messages.join(",")),
        );
    }
}
