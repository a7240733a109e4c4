//! JSON read through its declaration, when an expression looks at it.

use std::{borrow::Cow, collections::BTreeMap};

use base64::Engine as _;
use serde_json::Value as Json;

use crate::{
    decl::{Decl, DeclKind},
    error::EvalError,
    time,
    value::{Key, List, Map, Str, Value},
    written,
};

/// What has no declaration of its own.
pub(crate) static DYN: Decl = Decl::DYNAMIC;

/// What lies within a document.
static DOCUMENT: Decl = Decl::document();

fn mismatch(expected: &str, found: &Json) -> EvalError {
    let found = match found {
        Json::Null => "nil",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_f64() => "float64",
        Json::Number(_) => "int64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    };
    EvalError::failed(format!("invalid data, expected {expected}, got {found}"))
}

impl<'a> Value<'a> {
    /// The value of JSON of a declared shape. Only the outermost level is looked at.
    ///
    /// # Errors
    /// The JSON is not of that shape.
    pub fn from_json(json: &'a Json, decl: &'a Decl) -> Result<Value<'a>, EvalError> {
        if json.is_null() {
            return if decl.nullable {
                Ok(Value::Null)
            } else {
                Err(EvalError::failed("invalid data, got null for schema with nullable=false"))
            };
        }
        let text = || json.as_str().ok_or_else(|| mismatch("string", json));
        Ok(match &decl.kind {
            kind @ (DeclKind::Dyn | DeclKind::Document | DeclKind::Written(_)) => {
                let is_document = matches!(kind, DeclKind::Document);
                let inner = match kind {
                    DeclKind::Dyn => &DYN,
                    DeclKind::Document => &DOCUMENT,
                    _ => decl,
                };
                match json {
                    Json::Null => Value::Null,
                    Json::Bool(value) => Value::Bool(*value),
                    Json::Number(number) => match number.as_i64().filter(|_| !is_document) {
                        Some(value) => Value::Int(value),
                        None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
                    },
                    Json::String(text) => Value::String(Str::Borrowed(text)),
                    Json::Array(items) => Value::List(List::Json(items, inner)),
                    Json::Object(entries) => Value::Map(Map::Json(entries, inner)),
                }
            }
            DeclKind::IntOrString => match json {
                Json::String(text) => Value::String(Str::Borrowed(text)),
                other => Value::Int(other.as_i64().ok_or_else(|| {
                    EvalError::failed(
                        "invalid data, expected XIntOrString value to be either a string or integer",
                    )
                })?),
            },
            DeclKind::Preserved => Value::Preserved(json),
            DeclKind::Bool => Value::Bool(json.as_bool().ok_or_else(|| mismatch("bool", json))?),
            DeclKind::Int => Value::Int(json.as_i64().ok_or_else(|| mismatch("int", json))?),
            DeclKind::Double => Value::Double(json.as_f64().ok_or_else(|| mismatch("float", json))?),
            DeclKind::String => Value::String(Str::Borrowed(text()?)),
            DeclKind::Bytes => {
                let text = text()?;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| {
                    EvalError::failed(format!("Invalid byte formatted string {text}: {error}"))
                })?;
                Value::Bytes(bytes.into())
            }
            DeclKind::DateTime => {
                let text = text()?;
                Value::Timestamp(time::parse_date_time(text).ok_or_else(|| {
                    EvalError::failed(format!("Invalid date-time formatted string {text}: unable to parse"))
                })?)
            }
            DeclKind::Date => {
                let text = text()?;
                Value::Timestamp(time::parse_date(text).ok_or_else(|| {
                    EvalError::failed(format!("Invalid date formatted string {text}: unable to parse"))
                })?)
            }
            DeclKind::Duration => {
                let text = text()?;
                Value::Duration(
                    time::parse_format_duration(text).ok_or_else(|| {
                        EvalError::failed(format!("Invalid duration {text}: unable to parse"))
                    })?,
                )
            }
            DeclKind::List { .. } => match json {
                Json::Array(items) => Value::List(List::Json(items, decl)),
                _ => {
                    let message = "invalid data, expected an array for the provided schema with type=array";
                    return Err(EvalError::failed(message));
                }
            },
            DeclKind::Map { .. } | DeclKind::Object(_) => match json {
                Json::Object(entries) => Value::Map(Map::Json(entries, decl)),
                _ => {
                    let message = "invalid data, expected a map for the provided schema with type=object";
                    return Err(EvalError::failed(message));
                }
            },
        })
    }
}

impl<'a> List<'a> {
    /// How many items there are.
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Made(items, _) => items.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at an index; an error if the JSON there is not of its shape.
    pub fn get(&self, index: usize) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            List::Json(items, decl) => Some(Value::from_json(items.get(index)?, elem_decl(decl))),
            List::Made(items, _) => items.get(index).cloned().map(Ok),
        }
    }

    pub(crate) fn decl(&self) -> Option<&'a Decl> {
        match self {
            List::Json(_, decl) => Some(decl),
            List::Made(_, decl) => *decl,
        }
    }

    /// All items.
    ///
    /// # Errors
    /// The first that is not of its shape.
    pub fn values(&self) -> Result<Vec<Value<'a>>, EvalError> {
        match self {
            List::Json(items, decl) => {
                let elem = elem_decl(decl);
                items.iter().map(|item| Value::from_json(item, elem)).collect()
            }
            List::Made(items, _) => Ok(items.to_vec()),
        }
    }
}

pub(crate) fn elem_decl(list: &Decl) -> &Decl {
    match &list.kind {
        DeclKind::List { elem, .. } => elem,
        DeclKind::Document => &DOCUMENT,
        DeclKind::Written(written) => written.within(""),
        _ => &DYN,
    }
}

impl<'a> Map<'a> {
    /// How many entries there are, declared or not.
    pub fn len(&self) -> usize {
        match self {
            Map::Json(entries, Decl { kind: DeclKind::Written(written), .. }) => {
                entries.len() + written::missing(*written, entries).count()
            }
            Map::Json(entries, _) => entries.len(),
            Map::Made(entries) | Map::Domains(entries) => entries.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys that expressions see: of an object, its declared fields that are there, escaped.
    pub fn keys(&self) -> Box<dyn Iterator<Item = Key<'a>> + '_> {
        match self {
            Map::Json(entries, decl) => match &decl.kind {
                DeclKind::Object(object) => Box::new(entries.keys().filter_map(move |name| {
                    let spelled = object.spelled(name)?;
                    object.fields.contains_key(&*spelled).then(|| {
                        Key::String(match spelled {
                            Cow::Borrowed(name) => Str::Borrowed(name),
                            Cow::Owned(escaped) => Str::Shared(escaped.into()),
                        })
                    })
                })),
                DeclKind::Written(written) => {
                    let unset = written::missing(*written, entries).map(|(name, _)| &**name);
                    // In the order that they would have been in.
                    let mut names: Vec<&'a str> = entries.keys().map(String::as_str).chain(unset).collect();
                    names.sort_unstable();
                    Box::new(names.into_iter().map(|name| Key::String(Str::Borrowed(name))))
                }
                _ => Box::new(entries.keys().map(|name| Key::String(Str::Borrowed(name)))),
            },
            Map::Made(entries) | Map::Domains(entries) => Box::new(entries.keys().cloned()),
        }
    }

    /// What a key leads to. `None`: nothing.
    ///
    /// # Errors
    /// The key cannot be one, or the JSON there is not of its shape.
    pub fn find(&self, key: &Value<'_>) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Map::Json(_, decl) => {
                let Value::String(name) = key else {
                    // Keys of untyped maps may be looked for in vain; those of typed ones are strings.
                    return if matches!(decl.kind, DeclKind::Dyn | DeclKind::Document | DeclKind::Written(_)) {
                        Ok(None)
                    } else {
                        Err(EvalError::no_such_overload())
                    };
                };
                match &decl.kind {
                    DeclKind::Object(_) => match crate::escape::unescape(name) {
                        Some(plain) => self.find_name(name, &plain),
                        None => Ok(None),
                    },
                    DeclKind::Document => {
                        let plain = crate::escape::unescape(name);
                        self.find_name(name, plain.as_deref().unwrap_or(name))
                    }
                    _ => self.find_name(name, name),
                }
            }
            Map::Made(entries) => Ok(find_made(entries, key)?.cloned()),
            Map::Domains(entries) => {
                let found = find_made(entries, key)?.cloned();
                Ok(Some(found.unwrap_or_else(|| Value::map(BTreeMap::new()))))
            }
        }
    }

    /// Whether a key is there, which is what `in` asks.
    ///
    /// # Errors
    /// As [`Map::find`].
    pub fn contains(&self, key: &Value<'_>) -> Result<bool, EvalError> {
        match self {
            Map::Domains(entries) => Ok(find_made(entries, key)?.is_some()),
            _ => Ok(self.find(key)?.is_some()),
        }
    }

    /// [`Map::find`] for a name whose unescaped form is known.
    pub(crate) fn find_name(&self, name: &str, plain: &str) -> Result<Option<Value<'a>>, EvalError> {
        let (entries, decl) = match self {
            Map::Json(entries, decl) => (*entries, *decl),
            Map::Made(_) | Map::Domains(_) => return self.find(&Value::string(name)),
        };
        let (json, decl) = match &decl.kind {
            DeclKind::Object(object) => {
                let Some(field) = object.fields.get(name) else { return Ok(None) };
                match entries.get(plain) {
                    None | Some(Json::Null) => return Ok(None),
                    Some(json) => (json, &field.decl),
                }
            }
            DeclKind::Document => match entries.get(plain) {
                None => return Ok(None),
                Some(json) => (json, &DOCUMENT),
            },
            DeclKind::Written(written) => {
                match entries.get(name).or_else(|| written::unset(*written, name)) {
                    None => return Ok(None),
                    Some(json) => (json, written.within(name)),
                }
            }
            kind => {
                let value = match kind {
                    DeclKind::Map { value } => &**value,
                    _ => &DYN,
                };
                match entries.get(name) {
                    None => return Ok(None),
                    Some(json) => (json, value),
                }
            }
        };
        Value::from_json(json, decl).map(Some)
    }
}

fn find_made<'m, 'a>(
    entries: &'m BTreeMap<Key<'a>, Value<'a>>,
    key: &Value<'_>,
) -> Result<Option<&'m Value<'a>>, EvalError> {
    // Numbers are the same key whatever their kind.
    let number = |int: Option<i64>, uint: Option<u64>| {
        int.and_then(|int| entries.get(&Key::Int(int)))
            .or_else(|| uint.and_then(|uint| entries.get(&Key::Uint(uint))))
    };
    Ok(match key {
        Value::Bool(value) => entries.get(&Key::Bool(*value)),
        Value::Int(value) => number(Some(*value), u64::try_from(*value).ok()),
        Value::Uint(value) => number(i64::try_from(*value).ok(), Some(*value)),
        Value::Double(value) => {
            let int = crate::number::double_to_int(*value).ok().filter(|int| *int as f64 == *value);
            let uint = crate::number::double_to_uint(*value).ok().filter(|uint| *uint as f64 == *value);
            number(int, uint)
        }
        Value::String(text) => {
            // A borrowed key of a shorter life is enough to look.
            let found = entries.iter();
            if entries.len() <= 8 {
                found
                    .filter_map(|(key, value)| {
                        matches!(key, Key::String(name) if **name == **text).then_some(value)
                    })
                    .next()
            } else {
                entries.get(&Key::String(Str::Shared((**text).into())))
            }
        }
        _ => None,
    })
}
