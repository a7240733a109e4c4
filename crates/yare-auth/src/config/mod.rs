//! Configuration files of `apiserver.config.k8s.io`: who may come in ([`authentication`]), who decides what they
//! may do ([`authorization`]), which ways lead out ([`egress`]), what of it rests encrypted ([`encryption`]), where traces go
//! ([`tracing`]). Read strictly: an unknown field is an error, as upstream has it.

pub mod authentication;
pub mod authorization;
pub mod egress;
pub mod encryption;
pub mod tracing;

use serde::de::DeserializeOwned;
use serde_json::Value;
use yare_schema::{
    decode::yaml_to_json,
    field::{FieldError, Path},
};

use crate::{
    expressions::{About, Expression, Refused, Returns},
    gotext,
};

/// The group of all configuration kinds.
const GROUP: &str = "apiserver.config.k8s.io";
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;

/// Why a configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not of the form it should have.
    #[error("{0}")]
    Form(String),
    /// Fields are wrong.
    #[error("{}", gotext::aggregate(&.0.iter().map(ToString::to_string).collect::<Vec<_>>()))]
    Fields(Vec<FieldError>),
}

/// Reads the YAML or JSON `text` as one of `versions` of `kind`.
fn read<T: DeserializeOwned>(text: &[u8], kind: &str, versions: &[&str]) -> Result<T, ConfigError> {
    let form = |e: &dyn std::fmt::Display| ConfigError::Form(e.to_string());
    let (value, api_version, found) = document(text)?;
    let known = api_version.strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
    if found != kind || !known.is_some_and(|v| versions.contains(&v)) {
        return Err(form(&format!(
            "no kind {found:?} is registered for version {api_version:?}; expected {kind} of {GROUP}/{}",
            versions.join(" or ")
        )));
    }
    serde_json::from_value(value).map_err(|e| form(&format!("strict decoding error: {e}")))
}

/// Reads the YAML or JSON `text`, which must be of one of `kinds` (version and kind), without both.
fn read_document(text: &[u8], kinds: &[(&str, &str)]) -> Result<Value, ConfigError> {
    let (value, api_version, kind) = document(text)?;
    if !kinds.contains(&(&api_version, &kind)) {
        let why = format!("no kind {kind:?} is registered for version {api_version:?}");
        return Err(ConfigError::Form(why));
    }
    Ok(value)
}

/// A document without its version and kind, and these two.
fn document(text: &[u8]) -> Result<(Value, String, String), ConfigError> {
    let form = |e: &dyn std::fmt::Display| ConfigError::Form(e.to_string());
    if text.len() > MAX_FILE_BYTES {
        return Err(form(&"the file is too large"));
    }
    let (json, duplicates) = yaml_to_json(text).map_err(|e| form(&e))?;
    if let Some(duplicate) = duplicates.first() {
        return Err(form(duplicate));
    }
    let mut value: Value = serde_json::from_slice(&json).map_err(|e| form(&e))?;
    let Some(map) = value.as_object_mut() else {
        return Err(form(&"expected an object with apiVersion and kind"));
    };
    let mut take = |field: &str| match map.remove(field) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (api_version, kind) = (take("apiVersion"), take("kind"));
    Ok((value, api_version, kind))
}

/// The errors found so far.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.0.push(FieldError::required(path, detail));
    }

    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(path, value, detail));
    }

    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.0.push(FieldError::duplicate(path, value));
    }

    /// Compiles the expression at `path`.
    fn compile(
        &mut self,
        path: &Path<'_>,
        text: &str,
        about: About,
        returns: Returns,
    ) -> Option<(Expression, yare_cel::Ast)> {
        match Expression::compile(text, about, returns) {
            Ok(compiled) => return Some(compiled),
            Err(Refused::Invalid(why)) => self.invalid(path, text, why),
            Err(Refused::Internal(why)) => self.0.push(FieldError::internal(path, why)),
        }
        None
    }

    fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError::Fields(self.0)) }
    }
}
