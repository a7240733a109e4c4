//! Objects within objects (`x-kubernetes-embedded-resource`) say what they are, and their metadata is
//! well-formed.

use serde_json::{Map, Value};

use super::MAX_ERRORS;
use crate::{
    coerce, content,
    field::{FieldError, Path},
    metadata,
    model::{Shape, TypeRef},
};

/// Checks the resources embedded in `value`. The outermost object is judged elsewhere, where its name and
/// namespace are known.
pub(crate) fn check(
    ty: TypeRef<'_>,
    value: &Value,
    outermost: bool,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if !ty.schema.embeds || errors.len() >= MAX_ERRORS {
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
pub(crate) fn resource(map: &Map<String, Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
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
    let Some(given) = map.get("metadata") else { return };
    let path = path.child("metadata");
    match coerce::read(given) {
        Ok(metadata) => meta(&metadata.value, &path, errors),
        Err(why) => errors.push(FieldError::invalid(&path, given.clone(), why)),
    }
}

fn meta(metadata: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
    for name in ["generateName", "name"] {
        let wrong = content::path_segment(text(name), name == "generateName");
        errors.extend(metadata::invalid_each(&path.child(name), text(name), wrong));
    }
    errors.extend(metadata::validate_common(metadata, !text("namespace").is_empty(), path));
}
