//! CustomResourceDefinitions: from the `openAPIV3Schema` of a version to types.
//!
//! In: the schema as JSON. Out: a [`Schema`] of its own for the version, which every algorithm of this crate
//! walks like the built-in ones, or what is wrong with the definition.

mod build;
mod check;
mod field_path;
mod kept;
mod structural;

use std::sync::Arc;

use serde_json::Value;

pub use self::{
    field_path::{field_path, resolve},
    kept::Kept,
};
use crate::{
    field::{FieldError, Path},
    model::{Schema, TypeId, TypeRef},
};

/// The types of one version of a custom resource.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The types.
    pub schema: Arc<Schema>,
    /// The type of the resource itself.
    pub root: TypeId,
}

impl Compiled {
    /// The type of the resource itself.
    pub fn ty(&self) -> TypeRef<'_> {
        self.schema.at(self.root)
    }
}

/// Checks and compiles a schema. `path` is where it stands in the definition:
/// `spec.versions[0].schema.openAPIV3Schema`.
///
/// Expressions in `x-kubernetes-validations` are not compiled here: this crate knows no CEL.
pub fn compile(schema: &Value, path: &Path<'_>) -> Result<Compiled, Vec<FieldError>> {
    let errors = check(schema, path, Kept::default()).errors;
    if errors.is_empty() { Ok(load(schema)) } else { Err(errors) }
}

/// What was found in a schema.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    /// What is wrong.
    pub errors: Vec<FieldError>,
    /// Whether it is structural and its defaults are values of theirs, so that expressions in it have types.
    pub is_sound: bool,
}

/// What is wrong with a schema. `kept`: rules that it need not keep to.
pub fn check(schema: &Value, path: &Path<'_>, kept: Kept) -> Checked {
    let mut errors = Vec::new();
    let unsupported = structural::unsupported(schema);
    // Where a schema cannot be read as a structural one at all, nothing more is said of its structure.
    let is_readable = !kept.unstructural && unsupported.is_none();
    if is_readable {
        errors = structural::check(schema, path);
        if errors.is_empty() {
            errors = build::check_defaults(schema, path, kept);
        }
    }
    let is_sound = is_readable && errors.is_empty();
    errors.extend(check::open_api(schema, path, kept));
    if let (true, false, Some(why)) = (errors.is_empty(), kept.unstructural, unsupported) {
        errors.push(FieldError::invalid(path, "", why));
    }
    Checked { errors, is_sound }
}

/// What keeps a schema from being structural. `Err`: it cannot even be read as if it were.
pub fn structural_violations(schema: &Value, path: &Path<'_>) -> Result<Vec<FieldError>, &'static str> {
    match structural::unsupported(schema) {
        Some(why) => Err(why),
        None => Ok(structural::check(schema, path)),
    }
}

/// Whether values of a type are checked for having this format; others are for people to read.
pub fn is_known_format(ty: &str, format: &str) -> bool {
    build::is_checked(ty, format)
}

/// The formats in a schema that no value is checked for, each once.
pub fn unknown_formats(schema: &Value) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    kept::any(Keywords(schema), &mut |s| {
        let format = s.text("format");
        if !format.is_empty() && !is_known_format(s.text("type"), format) && !out.contains(&format) {
            out.push(format);
        }
        false
    });
    out
}

/// Whether a schema has defaults.
pub fn has_defaults(schema: &Value) -> bool {
    kept::any(Keywords(schema), &mut |s| s.get("default").is_some())
}

/// Whether a schema says what only Kubernetes' schemas say.
pub fn has_extensions(schema: &Value) -> bool {
    kept::any(Keywords(schema), &mut |s| {
        s.flag("x-kubernetes-embedded-resource")
            || s.flag("x-kubernetes-int-or-string")
            || s.get("x-kubernetes-preserve-unknown-fields").is_some()
            || s.get("x-kubernetes-list-type").is_some()
            || !s.list("x-kubernetes-list-map-keys").is_empty()
            || !s.list("x-kubernetes-validations").is_empty()
    })
}

/// Whether a default has fields that its schema does not.
fn unpruned_defaults(schema: &Value) -> bool {
    let strict = build::check_defaults(schema, &Path::ROOT, Kept::default());
    let loose =
        build::check_defaults(schema, &Path::ROOT, Kept { unpruned_defaults: true, ..Kept::default() });
    strict.len() > loose.len()
}

/// What the root of a schema must not say because the `status` subresource is enabled.
pub fn check_root_with_status(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    check::root_with_status(schema, path)
}

/// Compiles the schema of a definition that was checked when it was stored. What makes no sense in it is
/// passed over.
pub fn load(schema: &Value) -> Compiled {
    build::build(schema)
}

/// A schema's keywords, read leniently: what has the wrong JSON type counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Keywords<'a>(pub &'a Value);

/// Most errors that are told at once.
const MAX_ERRORS: usize = 200;

/// Whether Go would leave a keyword with this value out, which makes it as good as absent.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Keywords that Go has as pointers, so that what is empty is there nevertheless.
const POINTERS: [&str; 11] = [
    "$ref",
    "default",
    "example",
    "externalDocs",
    "not",
    "items",
    "additionalItems",
    "additionalProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
];

/// Whether a schema says something by a keyword with this value.
fn is_said(keyword: &str, value: &Value) -> bool {
    !is_zero(value) || !value.is_null() && POINTERS.contains(&keyword)
}

/// `additionalProperties`.
pub(crate) enum AdditionalProperties<'a> {
    Absent,
    Bool(bool),
    Schema(&'a Value),
}

impl<'a> Keywords<'a> {
    fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn text(self, name: &str) -> &'a str {
        self.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn flag(self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn list(self, name: &str) -> &'a [Value] {
        self.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn names(self, name: &str) -> impl Iterator<Item = &'a str> {
        self.list(name).iter().filter_map(Value::as_str)
    }

    fn properties(self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.get("properties").and_then(Value::as_object).into_iter().flatten()
    }

    fn property(self, name: &str) -> Option<&'a Value> {
        self.get("properties")?.get(name)
    }

    fn items(self) -> Option<&'a Value> {
        self.get("items").filter(|v| v.is_object())
    }

    fn additional(self) -> AdditionalProperties<'a> {
        match self.get("additionalProperties") {
            Some(Value::Bool(allowed)) => AdditionalProperties::Bool(*allowed),
            Some(schema @ Value::Object(_)) => AdditionalProperties::Schema(schema),
            _ => AdditionalProperties::Absent,
        }
    }
}

#[cfg(test)]
mod tests;
