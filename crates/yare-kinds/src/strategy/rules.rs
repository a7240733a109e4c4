//! Rules for fields of more than one group.

use serde_json::Value;
use yare_schema::field::{ErrorKind, FieldError, Path};

use crate::{
    check::{Check, Errors},
    names,
    view::View,
};

/// An error that shows no value.
pub fn plain_invalid(errs: &mut Errors, path: &Path<'_>, detail: impl Into<String>) {
    errs.push(FieldError {
        kind: ErrorKind::Invalid,
        field: path.to_string(),
        value: None,
        detail: detail.into(),
    });
}

/// An error in text of more than `max` bytes.
pub fn check_length(errs: &mut Errors, path: &Path<'_>, text: &str, max: usize) {
    if text.len() > max {
        errs.push(FieldError::too_long(path, max));
    }
}

/// An error in a list of more than `max` items.
pub fn check_items(errs: &mut Errors, path: &Path<'_>, count: usize, max: usize) {
    if count > max {
        errs.push(FieldError::too_many(path, count, max));
    }
}

/// Errors in `example.com/path`.
pub fn check_domain_prefixed_path(errs: &mut Errors, path: &Path<'_>, value: &str) {
    match value.split_once('/') {
        _ if value.is_empty() => errs.required(path, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            errs.each(path, host, names::dns1123_subdomain(host));
            let word = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !rest.bytes().all(word) {
                let detail = names::regex_message("Invalid path", "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+", &[]);
                errs.invalid(path, rest, detail);
            }
        }
        _ => errs.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

/// Errors in a domain name of two labels or more.
pub fn check_domain_name(errs: &mut Errors, path: &Path<'_>, value: &str) {
    if value.is_empty() {
        return errs.required(path, "");
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        return errs.invalid(path, name, messages.join(","));
    }
    if !name.contains('.') {
        return errs.invalid(path, name, "should be a domain with at least two segments separated by dots");
    }
    for label in name.split('.') {
        let messages = names::dns1123_label(label);
        if !messages.is_empty() {
            return errs.invalid(path, label, messages.join(","));
        }
    }
}

/// Errors in the names by which `reference` points at another object.
pub fn check_reference(errs: &mut Errors, path: &Path<'_>, reference: &Value, fields: &[&str]) {
    if let Some(group) = reference.str_opt("apiGroup") {
        errs.each(&path.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
    for field in fields {
        errs.name(&path.child(field), reference.str_at(field), names::path_segment);
    }
}
