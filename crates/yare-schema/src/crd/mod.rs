//! CustomResourceDefinitions: from the `openAPIV3Schema` of a version to types.
//!
//! In: the schema as JSON. Out: a [`Schema`] of its own for the version, which every algorithm of this crate
//! walks like the built-in ones, or what is wrong with the definition.

mod build;
mod check;
mod field_path;
mod structural;

use std::sync::Arc;

use serde_json::Value;

pub use self::field_path::field_path;
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
    let mut errors = structural::check(schema, path);
    let (compiled, default_errors) = build::build(schema, path);
    if errors.is_empty() {
        errors = default_errors;
    }
    errors.extend(check::open_api(schema, path));
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

/// What keeps a schema from being structural.
pub fn structural_violations(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    structural::check(schema, path)
}

/// What the root of a schema must not say because the `status` subresource is enabled.
pub fn check_root_with_status(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    check::root_with_status(schema, path)
}

/// Compiles the schema of a definition that was checked when it was stored. What makes no sense in it is
/// passed over.
pub fn load(schema: &Value) -> Compiled {
    build::build(schema, &Path::ROOT).0
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
