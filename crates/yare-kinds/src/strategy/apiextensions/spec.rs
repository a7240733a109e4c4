//! The specification of a `CustomResourceDefinition`: group, names, conversion, and the order in which upstream looks
//! at all of it.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    release::Emulation,
};

use super::{
    ca_bundle, check_kind, has_bad_ca_bundle, is_established, joined,
    versions::{self, Terms},
};
use crate::{
    check::{Check, Errors},
    names,
    strategy::{
        certificates::check_ca_bundle,
        webhook::{check_client_config, check_kept_review_versions, check_review_versions, knows_a_review},
    },
    view::View,
};

/// Errors in `spec`; `old` is the definition that it was in.
pub fn check(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: Option<&Value>, emulation: Emulation) {
    let (p, group) = (path.child("group"), spec.str_at("group"));
    let messages = names::dns1123_subdomain(group);
    if group.is_empty() {
        errs.required(&p, "");
    } else if !messages.is_empty() {
        joined(errs, &p, group, messages);
    } else if !group.contains('.') {
        errs.invalid(&p, group, "should be a domain with at least one dot");
    }
    errs.required_one_of(&path.child("scope"), spec.str_at("scope"), &["Cluster", "Namespaced"]);
    let list = spec.items("versions");
    let terms = Terms::new(spec, old.map(|old| old.at("spec")), emulation);
    versions::check(errs, path, &terms);
    let p = path.child("versions");
    let all: HashSet<&str> = list.iter().map(|v| v.str_at("name")).collect();
    if all.len() < list.len() {
        errs.invalid(&p, spec.at("versions").clone(), "must contain unique version names");
    }
    if list.iter().filter(|v| v.bool_at("storage")).count() != 1 {
        errs.invalid(
            &p,
            spec.at("versions").clone(),
            "must have exactly one version marked as storage version",
        );
    }
    // Upstream takes the first version for the one of definitions that know but one.
    if let Some(name) = list.first().and_then(|first| first.str_opt("name")).filter(|name| !name.is_empty()) {
        joined(errs, &path.child("version"), name, names::dns1035_label(name));
    }
    let p = path.child("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        errs.non_empty(&p.child(field), spec.at("names").str_at(field));
    }
    check_names(errs, &p, spec.at("names"));
    versions::check_shared(errs, path, &terms);
    check_conversion(errs, &path.child("conversion"), spec, old);
}

/// Errors in the names of a resource.
pub fn check_names(errs: &mut Errors, path: &Path<'_>, of: &Value) {
    for field in ["plural", "singular"] {
        let name = of.str_at(field);
        if !name.is_empty() {
            joined(errs, &path.child(field), name, names::dns1035_label(name));
        }
    }
    for field in ["kind", "listKind"] {
        check_kind(errs, &path.child(field), of.str_at(field));
    }
    let label = |errs: &mut Errors, field: &str| {
        let list = path.child(field);
        for (i, name) in of.strings(field).iter().enumerate() {
            joined(errs, &list.index(i), name, names::dns1035_label(name));
        }
    };
    label(errs, "shortNames");
    let (kind, list_kind) = (of.str_at("kind"), of.str_at("listKind"));
    if !kind.is_empty() && kind == list_kind {
        errs.invalid(&path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
    label(errs, "categories");
}

fn check_conversion(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: Option<&Value>) {
    let conversion = spec.at("conversion");
    if conversion.is_null() {
        return;
    }
    let strategy = conversion.str_at("strategy");
    if strategy != "None" && spec.bool_at("preserveUnknownFields") {
        errs.invalid(&path.child("strategy"), strategy, "must be None if spec.preserveUnknownFields is true");
    }
    errs.required_one_of(&path.child("strategy"), strategy, &["None", "Webhook"]);
    let (config, versions) =
        (conversion.at("webhook.clientConfig"), conversion.strings("webhook.conversionReviewVersions"));
    let (config_path, versions_path) =
        (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if strategy == "Webhook" {
        if config.is_null() {
            errs.required(&config_path, "required when strategy is set to Webhook");
        } else {
            check_client_config(errs, &config_path, config);
            check_bundle(errs, &config_path.child("caBundle"), spec, old);
        }
        let before = old.map(|old| old.strings("spec.conversion.webhook.conversionReviewVersions"));
        if before.is_some_and(|before| !before.is_empty() && !knows_a_review(&before)) {
            check_kept_review_versions(errs, &versions_path, &versions, "");
        } else {
            check_review_versions(errs, &versions_path, &versions, "");
        }
        return;
    }
    const UNUSED: &str = "should not be set when strategy is not set to Webhook";
    if !config.is_null() {
        errs.push(FieldError::forbidden(&config_path, UNUSED));
    }
    if !versions.is_empty() {
        errs.push(FieldError::forbidden(&versions_path, UNUSED));
    }
}

/// Before a definition is served it may name certificates that are none (it then never is), and afterwards where it did
/// before.
fn check_bundle(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: Option<&Value>) {
    let may_be_bad = old.is_none_or(|old| !is_established(old) || has_bad_ca_bundle(old));
    if let Some(text) = ca_bundle(spec)
        && let Err(why) = check_ca_bundle(text)
        && !may_be_bad
    {
        errs.invalid(path, text, why);
    }
}
