//! Objects within objects (`x-kubernetes-embedded-resource`) say what they are, and their metadata is
//! well-formed.

use serde_json::Value;

use super::MAX_ERRORS;
use crate::{
    content,
    field::{FieldError, Path},
    model::{Shape, TypeRef},
};

/// Checks the resources embedded in `value`. The outermost object is judged elsewhere, where its name and
/// namespace are known.
pub(super) fn check(
    ty: TypeRef<'_>,
    value: &Value,
    outermost: bool,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => {
            if s.embedded && !outermost {
                resource(map, path, errors);
            }
            for (name, member) in map {
                if let Some(field) = s.field(name) {
                    check(ty.to(&field.slot), member, false, &path.child(name), errors);
                }
            }
        }
        (Shape::Map(m), Value::Object(map)) => {
            for (name, member) in map {
                check(ty.to(&m.value), member, false, &path.key(name), errors);
            }
        }
        (Shape::List(l), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                check(ty.to(&l.item), item, false, &path.index(i), errors);
            }
        }
        _ => {}
    }
}

/// What is wrong with what every object has: what it is, and its metadata.
pub(crate) fn resource_errors(object: &Value) -> Vec<FieldError> {
    let (mut errors, path) = (Vec::new(), Path::new("metadata"));
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    for name in ["name", "generateName", "namespace"] {
        if let Some(other) = metadata.get(name).filter(|value| !value.is_string() && !value.is_null()) {
            errors.push(FieldError::invalid(&path.child(name), other.clone(), "must be a string"));
        }
    }
    for name in ["labels", "annotations"] {
        let is_map = |value: &Value| {
            value.is_null() || value.as_object().is_some_and(|map| map.values().all(Value::is_string))
        };
        if let Some(other) = metadata.get(name).filter(|value| !is_map(value)) {
            errors.push(FieldError::invalid(&path.child(name), other.clone(), "must be a map of strings"));
        }
    }
    if let (Value::Object(map), true) = (object, errors.is_empty()) {
        resource(map, &Path::ROOT, &mut errors);
    }
    errors
}

fn resource(map: &serde_json::Map<String, Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let path = path.child(name);
        match map.get(name) {
            None => errors.push(FieldError::required(&path, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(&path, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(&path, text.as_str(), detail));
                }
            }
            Some(Value::String(text)) => {
                let wrong = content::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid(&path, text.as_str(), detail));
                }
            }
            Some(other) => errors.push(FieldError::invalid(&path, other.clone(), "must be a string")),
        }
    }
    if let Some(metadata) = map.get("metadata") {
        let path = path.child("metadata");
        match metadata {
            Value::Object(metadata) => meta(metadata, &path, errors),
            Value::Null => {}
            other => errors.push(FieldError::invalid(&path, other.clone(), "must be an object")),
        }
    }
}

fn meta(metadata: &serde_json::Map<String, Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for name in ["name", "generateName"] {
        let text = metadata.get(name).and_then(Value::as_str).unwrap_or_default();
        for wrong in content::path_segment(text, name == "generateName") {
            errors.push(FieldError::invalid(&path.child(name), text, wrong));
        }
    }
    let labels_path = path.child("labels");
    for (key, value) in metadata.get("labels").and_then(Value::as_object).into_iter().flatten() {
        for wrong in content::label_key(key) {
            errors.push(FieldError::invalid(&labels_path, key.as_str(), wrong));
        }
        let value = value.as_str().unwrap_or_default();
        for wrong in content::label_value(value) {
            errors.push(FieldError::invalid(&labels_path, value, wrong));
        }
    }
    let annotations_path = path.child("annotations");
    for key in metadata.get("annotations").and_then(Value::as_object).into_iter().flat_map(|a| a.keys()) {
        for wrong in content::label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid(&annotations_path, key.as_str(), wrong));
        }
    }
}
