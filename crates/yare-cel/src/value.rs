//! Values at run time. JSON stays where it is and is read when an expression looks at it.

use std::{any::Any, cmp::Ordering, collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use serde_json::Value as Json;

use crate::{
    decl::{Decl, DeclKind},
    error::EvalError,
    time::{Duration, Timestamp},
    types::{OPTIONAL, Type},
    written,
};

/// A string that lies in the caller's JSON, or that evaluation made.
#[derive(Clone)]
pub enum Str<'a> {
    /// The caller's.
    Borrowed(&'a str),
    /// Shared.
    Shared(Arc<str>),
}

impl Deref for Str<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Str::Borrowed(text) => text,
            Str::Shared(text) => text,
        }
    }
}

impl PartialEq for Str<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl Eq for Str<'_> {}
impl PartialOrd for Str<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Str<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}
impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A list.
#[derive(Clone)]
pub enum List<'a> {
    /// An array of the caller's, with the declaration of the list (not of its items).
    Json(&'a [Json], &'a Decl),
    /// Made by evaluation. The declaration, where there is one, says how it compares and adds.
    Made(Arc<Vec<Value<'a>>>, Option<&'a Decl>),
}

/// A key of a map that evaluation made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `string`
    String(Str<'a>),
}

/// A map, or an object of the caller's.
#[derive(Clone)]
pub enum Map<'a> {
    /// An object of the caller's, with its declaration: a map, an object with fields, or anything.
    Json(&'a serde_json::Map<String, Json>, &'a Decl),
    /// Made by evaluation.
    Made(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// Made by the caller; a key that is not there leads to an empty map. The domains of a device's attributes.
    Domains(Arc<BTreeMap<Key<'a>, Value<'a>>>),
}

/// An object that the expression constructed: `Object{…}`, `JSONPatch{…}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Struct<'a> {
    /// The type's name.
    pub type_name: Arc<str>,
    /// The fields that were set, by the names the expression uses (escaped).
    pub fields: BTreeMap<Box<str>, Value<'a>>,
}

impl Struct<'_> {
    /// Mutating policies name each object by the fields that lead to it: `Object.spec.template`. What is named
    /// otherwise is told here, in upstream's words; nothing if all is well. Called on the outermost object.
    pub fn misnamed(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.check_names(&self.type_name, &mut found);
        found
    }

    fn check_names(&self, path: &str, found: &mut Vec<String>) {
        if *self.type_name != *path {
            found.push(format!(
                "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                &*self.type_name
            ));
        }
        for (name, value) in &self.fields {
            value.check_names(&format!("{path}.{name}"), found);
        }
    }
}

/// A value that only functions look into: quantities, addresses, the authorizer, …
pub trait OpaqueValue: Any + Send + Sync + fmt::Debug {
    /// The type's name, as its declaration has it.
    fn type_name(&self) -> &'static str;
    /// Whether the other, of any type, is the same; `None` when such values are not compared.
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool>;
    /// The size that costs are reckoned with; 1 for most.
    fn size(&self) -> u64 {
        1
    }
    /// Itself, to be downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `double`
    Double(f64),
    /// `string`
    String(Str<'a>),
    /// `bytes`
    Bytes(Arc<[u8]>),
    /// `timestamp`
    Timestamp(Timestamp),
    /// `duration`
    Duration(Duration),
    /// `list`
    List(List<'a>),
    /// `map`, and objects of the caller's
    Map(Map<'a>),
    /// An object that was constructed
    Struct(Arc<Struct<'a>>),
    /// `type`
    Type(Type),
    /// `optional_type`
    Optional(Option<Arc<Value<'a>>>),
    /// Everything that libraries bring
    Opaque(Arc<dyn OpaqueValue>),
    /// JSON that no schema describes; nothing but equality looks into it
    Preserved(&'a Json),
}

impl<'a> Value<'a> {
    /// A string.
    pub fn string(text: impl Into<Arc<str>>) -> Value<'a> {
        Value::String(Str::Shared(text.into()))
    }

    /// A list.
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Made(Arc::new(items), None))
    }

    /// A map.
    pub fn map(entries: BTreeMap<Key<'a>, Value<'a>>) -> Value<'a> {
        Value::Map(Map::Made(Arc::new(entries)))
    }

    /// Maps by name; a name that is not there leads to an empty one.
    pub fn domains(entries: BTreeMap<Key<'a>, Value<'a>>) -> Value<'a> {
        Value::Map(Map::Domains(Arc::new(entries)))
    }

    /// A `kubernetes.Quantity`, as its text says; `None` where that is none.
    pub fn quantity(text: &str) -> Option<Value<'a>> {
        crate::library::quantity_value(text)
    }

    /// A `kubernetes.Semver`, as its text says.
    ///
    /// # Errors
    /// The text is none (`Invalid character(s) found in …`).
    pub fn semver(text: &str) -> Result<Value<'a>, String> {
        crate::library::semver_value(text)
    }

    /// An optional with a value.
    pub fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Arc::new(value)))
    }

    pub(crate) fn opaque(value: impl OpaqueValue) -> Value<'a> {
        Value::Opaque(Arc::new(value))
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// What an opaque value is inside.
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        match self {
            Value::Opaque(value) => (**value).as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The name of its type at run time.
    pub fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Struct(object) => &object.type_name,
            Value::Type(_) => "type",
            Value::Optional(_) => OPTIONAL,
            Value::Opaque(value) => value.type_name(),
            Value::Preserved(_) => "unknown",
        }
    }

    /// Its type, as `type(x)` gives it.
    pub fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Timestamp(_) => Type::Timestamp,
            Value::Duration(_) => Type::Duration,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Type(_) => Type::Type(None),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Struct(_) | Value::Opaque(_) | Value::Preserved(_) => Type::object(self.type_name()),
        }
    }

    /// The size that run-time costs are reckoned with: characters, bytes, items, entries, else 1.
    pub fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Optional(Some(value)) => value.size(),
            Value::Opaque(value) => value.size(),
            _ => 1,
        }
    }

    /// Whether `optional.ofNonZeroValue` takes it for nothing.
    pub fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Int(value) => *value == 0,
            Value::Uint(value) => *value == 0,
            Value::Double(value) => *value == 0.0,
            Value::String(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Timestamp(time) => time.is_zero(),
            Value::Duration(duration) => duration.0 == 0,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Struct(object) => object.fields.is_empty(),
            _ => false,
        }
    }

    fn check_names(&self, path: &str, found: &mut Vec<String>) {
        match self {
            Value::Struct(object) => object.check_names(path, found),
            Value::List(List::Made(items, _)) => items.iter().for_each(|item| item.check_names(path, found)),
            Value::Map(Map::Made(entries) | Map::Domains(entries)) => {
                entries.values().for_each(|value| value.check_names(path, found))
            }
            Value::Optional(Some(value)) => value.check_names(path, found),
            _ => {}
        }
    }

    /// As JSON, the way Kubernetes hands results on: bytes in base64, timestamps and durations as
    /// strings, constructed objects as objects with their field names unescaped.
    ///
    /// # Errors
    /// Types, opaque values and maps whose keys are no strings have no JSON.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        use base64::Engine as _;
        Ok(match self {
            Value::Null | Value::Optional(None) => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => (*value).into(),
            Value::Uint(value) => (*value).into(),
            Value::Double(value) => serde_json::Number::from_f64(*value)
                .map(Json::Number)
                .ok_or_else(|| EvalError::failed(format!("cannot represent {value} in JSON")))?,
            Value::String(text) => Json::String(text.to_string()),
            Value::Bytes(bytes) => Json::String(base64::engine::general_purpose::STANDARD.encode(bytes)),
            Value::Timestamp(time) => Json::String(time.to_string()),
            Value::Duration(duration) => Json::String(duration.to_string()),
            Value::List(List::Json(items, decl)) => {
                let item = crate::json::elem_decl(decl);
                Json::Array(items.iter().map(|json| written::complete(json, item)).collect())
            }
            Value::List(List::Made(items, _)) => {
                Json::Array(items.iter().map(Value::to_json).collect::<Result<_, _>>()?)
            }
            Value::Map(Map::Json(entries, Decl { kind: DeclKind::Written(written), .. })) => {
                Json::Object(written::complete_object(entries, *written))
            }
            Value::Map(Map::Json(entries, _)) => Json::Object((*entries).clone()),
            Value::Map(Map::Made(entries) | Map::Domains(entries)) => {
                let mut object = serde_json::Map::new();
                for (key, value) in entries.iter() {
                    let Key::String(name) = key else {
                        return Err(EvalError::failed(format!("map key {key} is not a string")));
                    };
                    object.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Value::Struct(made) => {
                let mut object = serde_json::Map::new();
                for (name, value) in &made.fields {
                    let name = crate::escape::unescape(name).unwrap_or_else(|| name.to_string());
                    object.insert(name, value.to_json()?);
                }
                Json::Object(object)
            }
            Value::Optional(Some(value)) => value.to_json()?,
            Value::Preserved(json) => (*json).clone(),
            Value::Type(_) | Value::Opaque(_) => {
                return Err(EvalError::failed(format!(
                    "type '{}' has no JSON representation",
                    self.type_name()
                )));
            }
        })
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Bool(value) => write!(f, "{value}"),
            Key::Int(value) => write!(f, "{value}"),
            Key::Uint(value) => write!(f, "{value}"),
            Key::String(value) => f.write_str(value),
        }
    }
}

/// As messages name values.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Uint(value) => write!(f, "{value}"),
            Value::Double(value) => f.write_str(&crate::number::format_double(*value)),
            Value::String(text) => f.write_str(text),
            Value::Bytes(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Value::Timestamp(time) => write!(f, "{time}"),
            Value::Duration(duration) => write!(f, "{duration}"),
            Value::List(list) => {
                f.write_str("[")?;
                for index in 0..list.len() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    if let Some(Ok(item)) = list.get(index) {
                        write!(f, "{item}")?;
                    }
                }
                f.write_str("]")
            }
            Value::Map(map) => {
                f.write_str("{")?;
                for (i, key) in map.keys().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    if let Ok(Some(value)) = map.find(&key.clone().into()) {
                        write!(f, "{key}: {value}")?;
                    }
                }
                f.write_str("}")
            }
            Value::Type(of) => f.write_str(of.name()),
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(value)) => write!(f, "optional({value})"),
            Value::Struct(object) => write!(f, "{}{:?}", object.type_name, object.fields),
            Value::Opaque(value) => write!(f, "{value:?}"),
            Value::Preserved(json) => write!(f, "{json}"),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => write!(f, "{text:?}"),
            Value::Uint(value) => write!(f, "{value}u"),
            Value::Double(value) => write!(f, "{value:?}"),
            Value::Bytes(bytes) => write!(f, "b{:?}", String::from_utf8_lossy(bytes)),
            Value::Timestamp(time) => write!(f, "timestamp({time})"),
            Value::Duration(duration) => write!(f, "duration({duration})"),
            other => fmt::Display::fmt(other, f),
        }
    }
}

/// Equality of CEL where it is decided; what cannot be compared is different.
impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        crate::equality::equal(self, other).unwrap_or(false)
    }
}

impl<'a> From<Key<'a>> for Value<'a> {
    fn from(key: Key<'a>) -> Value<'a> {
        match key {
            Key::Bool(value) => Value::Bool(value),
            Key::Int(value) => Value::Int(value),
            Key::Uint(value) => Value::Uint(value),
            Key::String(text) => Value::String(text),
        }
    }
}
