//! Field errors: what validation reports, and how upstream words it
//! (`k8s.io/apimachinery/pkg/util/validation/field`).

use std::fmt;

use serde_json::Value;

use crate::goprint;

/// Why a field is wrong. Each maps to one `causes[].reason` of a `Status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// `FieldValueNotFound`
    NotFound,
    /// `FieldValueRequired`
    Required,
    /// `FieldValueDuplicate`
    Duplicate,
    /// `FieldValueInvalid`
    Invalid,
    /// `FieldValueNotSupported`
    NotSupported,
    /// `FieldValueForbidden`
    Forbidden,
    /// `FieldValueTooLong`
    TooLong,
    /// `FieldValueTooMany`
    TooMany,
    /// `InternalError`
    Internal,
    /// `FieldValueTypeInvalid`
    TypeInvalid,
}

impl ErrorKind {
    /// The `reason` of a `StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// How a message shows a value.
#[derive(Clone, PartialEq, Debug)]
pub enum Shown {
    /// As JSON.
    Value(Value),
    /// As this text: upstream shows some values by the names that its own types have.
    Text(String),
}

impl From<Value> for Shown {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// One wrong field.
#[derive(Clone, PartialEq, Debug)]
pub struct FieldError {
    /// Why.
    pub kind: ErrorKind,
    /// Where: `spec.containers[0].name`, `metadata.labels[a/b]`.
    pub field: String,
    /// The value, where the message shows it.
    pub value: Option<Shown>,
    /// What would be right.
    pub detail: String,
}

impl FieldError {
    /// A required value is missing.
    pub fn required(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Required, field: path.to_string(), value: None, detail: detail.into() }
    }

    /// The value is not valid.
    pub fn invalid(path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            field: path.to_string(),
            value: Some(Shown::Value(value.into())),
            detail: detail.into(),
        }
    }

    /// The value has the wrong JSON type.
    pub fn type_invalid(path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::TypeInvalid,
            field: path.to_string(),
            value: Some(Shown::Value(value.into())),
            detail: detail.into(),
        }
    }

    /// The value is not one of `allowed`, listed sorted as upstream does.
    pub fn not_supported(path: &Path<'_>, value: impl Into<Value>, allowed: &[&str]) -> Self {
        let mut allowed = allowed.to_vec();
        allowed.sort_unstable();
        Self::not_listed(path, value, &allowed)
    }

    /// The value is not one of `allowed`, in the order in which upstream lists them.
    pub fn not_listed(path: &Path<'_>, value: impl Into<Value>, allowed: &[&str]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|a| goprint::quote(a)).collect();
        let detail = if allowed.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", allowed.join(", "))
        };
        let value = Some(Shown::Value(value.into()));
        Self { kind: ErrorKind::NotSupported, field: path.to_string(), value, detail }
    }

    /// The same error, which shows its value as `text`.
    pub fn showing(mut self, text: String) -> Self {
        self.value = Some(Shown::Text(text));
        self
    }

    /// The field may not be set (so).
    pub fn forbidden(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Forbidden, field: path.to_string(), value: None, detail: detail.into() }
    }

    /// The value stands twice.
    pub fn duplicate(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorKind::Duplicate,
            field: path.to_string(),
            value: Some(Shown::Value(value.into())),
            detail: String::new(),
        }
    }

    /// The value names something that does not exist.
    pub fn not_found(path: &Path<'_>, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorKind::NotFound,
            field: path.to_string(),
            value: Some(Shown::Value(value.into())),
            detail: String::new(),
        }
    }

    /// Something went wrong while the value was looked at.
    pub fn internal(path: &Path<'_>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Internal, field: path.to_string(), value: None, detail: detail.into() }
    }

    /// The value is longer than `max` bytes. Upstream's message does not repeat the value.
    pub fn too_long(path: &Path<'_>, max: usize) -> Self {
        let plural = if max == 1 { "" } else { "s" };
        Self {
            kind: ErrorKind::TooLong,
            field: path.to_string(),
            value: None,
            detail: format!("may not be more than {max} byte{plural}"),
        }
    }

    /// The list has more than `max` items.
    pub fn too_many(path: &Path<'_>, actual: usize, max: usize) -> Self {
        let plural = if max == 1 { "" } else { "s" };
        Self {
            kind: ErrorKind::TooMany,
            field: path.to_string(),
            value: Some(Shown::Value(Value::from(actual))),
            detail: format!("must have at most {max} item{plural}"),
        }
    }

    /// The message without the field, as it stands in a `StatusCause`.
    pub fn body(&self) -> String {
        let word = match self.kind {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        };
        let mut out = word.to_owned();
        if let Some(value) = &self.value {
            out.push_str(": ");
            match value {
                Shown::Text(text) => out.push_str(text),
                Shown::Value(Value::String(text)) => out.push_str(&goprint::quote(text)),
                Shown::Value(value @ Value::Number(_)) => out.push_str(&goprint::value(value)),
                // Upstream prints what is not simple with an encoder that is fit for HTML.
                Shown::Value(value) => out.push_str(&html_safe(&value.to_string())),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

/// JSON with the three characters escaped that Go's encoder escapes.
pub fn html_safe(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A field's place, as a chain on the stack: nothing is allocated until an error is written.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Child(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// What upstream's paths of an empty name come to: errors about an object as a whole.
    pub const WHOLE: Path<'static> = Path { parent: None, step: Step::Key("") };

    /// A path that starts at the field `name`.
    pub fn new(name: &'a str) -> Path<'a> {
        Path { parent: None, step: Step::Child(name) }
    }

    /// The member `name`.
    pub fn child(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Child(name) }
    }

    /// The item at `index`.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// The map entry `key`.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        match self.step {
            Step::Root => {}
            Step::Child(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(i) => {
                out.push('[');
                out.push_str(&i.to_string());
                out.push(']');
            }
            Step::Key(key) => {
                out.push('[');
                out.push_str(key);
                out.push(']');
            }
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out);
        f.write_str(if out.is_empty() { "<nil>" } else { &out })
    }
}
