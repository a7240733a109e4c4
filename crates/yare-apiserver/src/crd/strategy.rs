//! How custom resources behave: what the definition's schema says, and nothing else.

use std::sync::Arc;

use serde_json::Value;
use yare_kinds::{
    names,
    strategy::{Context, Strategy},
    validations::Verdict,
    view::{View, ViewMut, same},
};
use yare_schema::{
    defaults,
    field::{ErrorKind, FieldError, Path},
    goprint, validate,
};

use super::{CustomType, ScalePaths};

/// The strategy of one version of a definition.
pub struct CustomStrategy {
    /// The version's type.
    pub ty: Arc<CustomType>,
    /// Whether `status` is a subresource.
    pub status: bool,
    /// Where `scale` reads and writes.
    pub scale: Option<ScalePaths>,
}

/// Everything but what the server and status writers own.
fn body(object: &Value, status: bool) -> Value {
    let mut object = object.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        object.remove(field);
    }
    if status {
        object.remove("status");
    }
    object
}

/// Errors that keep rules from being run: what they read may not be what it should be.
fn is_blocking(error: &FieldError) -> bool {
    use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    matches!(error.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
}

impl CustomStrategy {
    /// Validation rules, after everything else.
    fn check_rules(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) -> Vec<String> {
        if !self.ty.has_rules() {
            return Vec::new();
        }
        if errors.iter().any(is_blocking) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid(&Path::ROOT, Value::Null, detail));
            return Vec::new();
        }
        let Some(Verdict { errors: found, warnings }) = self.ty.judge(object, old) else { return Vec::new() };
        errors.extend(found);
        warnings
    }

    fn check_scale(&self, object: &Value, errors: &mut Vec<FieldError>, status_alone: bool) {
        let Some(scale) = &self.scale else { return };
        if !status_alone {
            check_replicas(&scale.spec_replicas, object, errors);
        }
        check_replicas(&scale.status_replicas, object, errors);
        if let Some(selector) = &scale.label_selector {
            match reach(selector, object) {
                Ok(value) if value.is_null() || value.is_string() => {}
                Ok(value) => {
                    let detail = misfit(selector, value, "string");
                    errors.push(FieldError::invalid(&Path::new(selector), "", detail));
                }
                Err(detail) => errors.push(FieldError::invalid(&Path::new(selector), "", detail)),
            }
        }
    }
}

/// A number of replicas, where there is one, is a 32-bit count.
fn check_replicas(path: &str, object: &Value, errors: &mut Vec<FieldError>) {
    let at = Path::new(path);
    let value = match reach(path, object) {
        Ok(value) => value,
        Err(detail) => return errors.push(FieldError::invalid(&at, 0, detail)),
    };
    match value.as_i64() {
        None if value.is_null() => {}
        None => errors.push(FieldError::invalid(&at, 0, misfit(path, value, "int64"))),
        Some(count) if count < 0 => {
            errors.push(FieldError::invalid(&at, count, "should be a non-negative integer"));
        }
        Some(count) if count > i64::from(i32::MAX) => {
            let detail = format!("should be less than or equal to {}", i32::MAX);
            errors.push(FieldError::invalid(&at, count, detail));
        }
        Some(_) => {}
    }
}

/// What is at `path` (`.spec.replicas`), null where nothing is.
///
/// # Errors
/// Something on the way is no object.
fn reach<'a>(path: &str, object: &'a Value) -> Result<&'a Value, String> {
    let (mut value, mut walked) = (object, String::new());
    for field in path.trim_start_matches('.').split('.') {
        walked = format!("{walked}.{field}");
        value = match value {
            Value::Object(map) => map.get(field).unwrap_or(&Value::Null),
            Value::Null => value,
            other => return Err(misfit(&walked, other, "map[string]interface{}")),
        };
    }
    Ok(value)
}

/// What is said of a value of another type than it should be.
fn misfit(path: &str, value: &Value, wanted: &str) -> String {
    let (shown, ty) = (goprint::value(value), goprint::type_name(value));
    format!("{path} accessor error: {shown} is of the type {ty}, expected {wanted}")
}

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: &[&str] = &["orphan", "foregroundDeletion", "kubernetes"];

fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    let mut out: Vec<String> = names::qualified_name(finalizer)
        .into_iter()
        .map(|message| format!("metadata.finalizers: {finalizer:?}: {message}"))
        .collect();
    if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        out.push(format!(
            "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
        ));
    }
    out
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        defaults::apply(self.ty.at(), object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        yare_kinds::meta::prepare_for_update(new, old, self.status, false);
        new.copy_from(old, "metadata.generation");
        if !same(&body(new, self.status), &body(old, self.status)) {
            yare_kinds::meta::bump_generation(new, old);
        }
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        // Of metadata, only the record of owners is the status writer's.
        let managed = new.at("metadata.managedFields").clone();
        let status = new.at("status").clone();
        *new = old.clone();
        if status.is_null() {
            new.remove("status");
        } else {
            new.set("status", status);
        }
        if !managed.is_null() {
            new.set("metadata.managedFields", managed);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errors = validate::validate(self.ty.at(), object);
        self.check_scale(object, &mut errors, false);
        self.check_rules(object, None, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.judge_update("", new, old, ctx, &mut Vec::new())
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.judge_update("status", new, old, ctx, &mut Vec::new())
    }

    fn judge_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        _ctx: &Context<'_>,
        warnings: &mut Vec<String>,
    ) -> Vec<FieldError> {
        let status_alone = subresource == "status";
        let mut errors = if status_alone {
            validate::validate_status_update(self.ty.at(), new, old)
        } else {
            validate::validate_update(self.ty.at(), new, old)
        };
        self.check_scale(new, &mut errors, status_alone);
        warnings.extend(self.check_rules(new, Some(old), &mut errors));
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let before = old.map(|old| old.strings("metadata.finalizers")).unwrap_or_default();
        new.strings("metadata.finalizers")
            .into_iter()
            .filter(|f| !before.contains(f))
            .flat_map(finalizer_warnings)
            .collect()
    }

    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replicas_are_reached_through_objects_alone() {
        for (object, expect) in [
            (json!({"spec": {"replicas": 3}}), vec![]),
            (json!({}), vec![]),
            (
                json!({"spec": {"replicas": -1}}),
                vec![".spec.replicas: Invalid value: -1: should be a non-negative integer"],
            ),
            (
                json!({"spec": {"replicas": "x"}}),
                vec![
                    ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64",
                ],
            ),
            (
                json!({"spec": []}),
                vec![
                    ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: [] is of the type []interface {}, expected map[string]interface{}",
                ],
            ),
        ] {
            let mut errors = Vec::new();
            check_replicas(".spec.replicas", &object, &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), expect, "{object}");
        }
    }
}
