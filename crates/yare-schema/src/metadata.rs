//! What is wrong with an object's `metadata`, of a built-in kind, a custom resource or an object within one
//! (`k8s.io/apimachinery/pkg/api/validation`). Names are each kind's own question and not looked at here.

use serde_json::Value;

use crate::{
    content,
    field::{FieldError, Path},
};

/// All annotations of an object together, keys and values, in bytes.
pub const TOTAL_ANNOTATION_SIZE_LIMIT_B: usize = 256 * 1024;
/// The longest field manager name in bytes.
pub const FIELD_MANAGER_MAX: usize = 128;
/// What a negative number where none may be says.
pub const NON_NEGATIVE: &str = "must be greater than or equal to 0";

/// Errors in all of `metadata` but its names. `path` is where it stands.
pub fn validate_common(meta: &Value, namespaced: bool, path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let namespace = text(meta, "namespace");
    let p = path.child("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errs.push(FieldError::required(&p, "")),
        (true, false) => errs.extend(invalid_each(&p, namespace, content::dns1123_label(namespace))),
        (false, false) => errs.push(FieldError::forbidden(&p, "not allowed on this type")),
        (false, true) => {}
    }
    errs.extend(non_negative(
        meta.get("generation").and_then(Value::as_i64).unwrap_or_default(),
        &path.child("generation"),
    ));
    errs.extend(validate_labels(member(meta, "labels"), &path.child("labels")));
    errs.extend(validate_annotations(member(meta, "annotations"), &path.child("annotations")));
    errs.extend(validate_owner_references(
        items(member(meta, "ownerReferences")),
        &path.child("ownerReferences"),
    ));
    errs.extend(validate_finalizers(member(meta, "finalizers"), &path.child("finalizers")));
    errs.extend(validate_managed_fields(items(member(meta, "managedFields")), &path.child("managedFields")));
    errs
}

/// Errors in as much of `metadata` as each look at a change of it goes over again.
pub fn validate_what_clients_write(meta: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = validate_labels(member(meta, "labels"), &path.child("labels"));
    errs.extend(validate_annotations(member(meta, "annotations"), &path.child("annotations")));
    errs.extend(validate_owner_references(
        items(member(meta, "ownerReferences")),
        &path.child("ownerReferences"),
    ));
    errs.extend(validate_managed_fields(items(member(meta, "managedFields")), &path.child("managedFields")));
    errs
}

/// One `Invalid` error per message.
pub fn invalid_each(path: &Path<'_>, value: impl Into<Value>, messages: Vec<String>) -> Vec<FieldError> {
    let value = value.into();
    messages.into_iter().map(|m| FieldError::invalid(path, value.clone(), m)).collect()
}

/// An error where `value` is negative.
pub fn non_negative(value: i64, path: &Path<'_>) -> Option<FieldError> {
    (value < 0).then(|| FieldError::invalid(path, value, NON_NEGATIVE))
}

/// Errors in a map of labels.
pub fn validate_labels(labels: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errs.extend(invalid_each(path, key.as_str(), content::label_key(key)));
        errs.extend(invalid_each(path, value, content::label_value(value)));
    }
    errs
}

/// Errors in a map of annotations: their keys and their size together.
pub fn validate_annotations(annotations: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        errs.extend(invalid_each(path, key.as_str(), content::label_key(&key.to_lowercase())));
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > TOTAL_ANNOTATION_SIZE_LIMIT_B {
        errs.push(FieldError::too_long(path, TOTAL_ANNOTATION_SIZE_LIMIT_B));
    }
    errs
}

fn validate_owner_references(owners: &[Value], path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut controller: Option<String> = None;
    for owner in owners {
        let api_version = text(owner, "apiVersion");
        if api_version.rsplit('/').next().is_none_or(str::is_empty) {
            errs.push(FieldError::invalid(
                &path.child("apiVersion"),
                api_version,
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                errs.push(FieldError::invalid(&path.child(field), "", "must not be empty"));
            }
        }
        if api_version == "v1" && text(owner, "kind") == "Event" {
            errs.push(FieldError::invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            match &controller {
                Some(first) => errs.push(FieldError::invalid(
                    path,
                    owners.to_vec(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
    errs
}

fn validate_finalizers(finalizers: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let all: Vec<&str> = items(finalizers).iter().filter_map(Value::as_str).collect();
    let mut errs: Vec<FieldError> =
        all.iter().flat_map(|f| invalid_each(path, *f, content::label_key(f))).collect();
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        errs.push(FieldError::invalid(
            path,
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errs
}

fn validate_managed_fields(entries: &[Value], path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let p = path.index(i);
        let operation = text(entry, "operation");
        if operation != "Apply" && operation != "Update" {
            errs.push(FieldError::invalid(&p.child("operation"), operation, "must be `Apply` or `Update`"));
        }
        let kind = text(entry, "fieldsType");
        if !kind.is_empty() && kind != "FieldsV1" {
            errs.push(FieldError::invalid(&p.child("fieldsType"), kind, "must be `FieldsV1`"));
        }
        errs.extend(validate_field_manager(text(entry, "manager"), &p.child("manager")));
        if text(entry, "subresource").len() > 256 {
            errs.push(FieldError::too_long(&p.child("subresource"), 256));
        }
    }
    errs
}

/// Errors in the name of a field manager, also as it stands in a request's `fieldManager`.
pub fn validate_field_manager(manager: &str, path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    if manager.len() > FIELD_MANAGER_MAX {
        errs.push(FieldError::too_long(path, FIELD_MANAGER_MAX));
    }
    for (i, c) in manager.char_indices() {
        if c.is_control() || (c.is_whitespace() && c != ' ') {
            errs.push(FieldError::invalid(
                path,
                manager,
                format!("invalid character U+{:04X} (at position {i})", u32::from(c)),
            ));
        }
    }
    errs
}

fn member<'a>(of: &'a Value, name: &str) -> &'a Value {
    of.get(name).unwrap_or(&Value::Null)
}

fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
