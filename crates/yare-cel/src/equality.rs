//! What is equal, what comes before what, and how lists add.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value as Json;

use crate::{
    decl::{Decl, DeclKind, ListKind},
    error::EvalError,
    number,
    value::{List, Map, Value},
};

/// `==`. Values of different types are different, and no error.
///
/// # Errors
/// A part that is not of its declared shape, or that nothing compares.
pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> Result<bool, EvalError> {
    Ok(match (a, b) {
        (Value::Null, _) | (_, Value::Null) => matches!((a, b), (Value::Null, Value::Null)),
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
        (
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
        ) => number::compare(a, b) == Some(Ordering::Equal),
        (Value::List(a), Value::List(b)) => return lists(a, b),
        (Value::Map(a), Value::Map(b)) => return maps(a, b),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => return equal(a, b),
            _ => false,
        },
        (Value::Struct(a), Value::Struct(b)) => {
            if a.type_name != b.type_name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                match b.fields.get(name) {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Opaque(a), Value::Opaque(b)) => a.equals(&**b).ok_or_else(EvalError::no_such_overload)?,
        (Value::Preserved(a), other) => other.to_json().is_ok_and(|other| **a == other),
        (other, Value::Preserved(b)) => other.to_json().is_ok_and(|other| **b == other),
        _ => false,
    })
}

fn list_kind(decl: Option<&Decl>) -> &ListKind {
    match decl.map(|decl| &decl.kind) {
        Some(DeclKind::List { kind, .. }) => kind,
        _ => &ListKind::Atomic,
    }
}

/// A text that is the same for same values.
fn identity(value: &Value<'_>) -> String {
    match value.to_json() {
        Ok(json) => json.to_string(),
        Err(_) => format!("{value:?}"),
    }
}

fn key_of(value: &Value<'_>, keys: &[Box<str>]) -> String {
    let json = value.to_json().unwrap_or(Json::Null);
    let parts: Vec<&Json> = keys.iter().map(|key| json.get(&**key).unwrap_or(&Json::Null)).collect();
    Json::from(parts.into_iter().cloned().collect::<Vec<_>>()).to_string()
}

fn lists(a: &List<'_>, b: &List<'_>) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match list_kind(a.decl()) {
        ListKind::Atomic => {
            for index in 0..a.len() {
                let (Some(left), Some(right)) = (a.get(index), b.get(index)) else { return Ok(false) };
                if !equal(&left?, &right?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Set => {
            let own: HashSet<String> = a.values()?.iter().map(identity).collect();
            Ok(b.values()?.iter().all(|item| own.contains(&identity(item))))
        }
        ListKind::Map(keys) => {
            let own: HashMap<String, Value<'_>> =
                a.values()?.into_iter().map(|item| (key_of(&item, keys), item)).collect();
            for item in b.values()? {
                match own.get(&key_of(&item, keys)) {
                    Some(mine) if equal(mine, &item)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
    }
}

fn maps(a: &Map<'_>, b: &Map<'_>) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for key in a.keys() {
        let key = Value::from(key);
        match (a.find(&key)?, b.find(&key)?) {
            (Some(left), Some(right)) => {
                if !equal(&left, &right)? {
                    return Ok(false);
                }
            }
            (None, None) => {}
            _ => return Ok(false),
        }
    }
    // What a schema does not describe is compared as it is.
    if let (Map::Json(left, decl), Map::Json(right, _)) = (a, b)
        && let DeclKind::Object(object) = &decl.kind
    {
        let undeclared =
            |name: &str| object.spelled(name).is_none_or(|name| !object.fields.contains_key(&*name));
        for (name, value) in left.iter().filter(|(name, _)| undeclared(name)) {
            if right.get(name).is_some_and(|other| other != value) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The order of two values that have one.
///
/// # Errors
/// They have none.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, EvalError> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Double(a), _) if a.is_nan() => Err(EvalError::failed("NaN values cannot be ordered")),
        (_, Value::Double(b)) if b.is_nan() => Err(EvalError::failed("NaN values cannot be ordered")),
        _ => number::compare(a, b).ok_or_else(EvalError::no_such_overload),
    }
}

/// `a + b`. A list that only `a` refers to grows in place.
pub(crate) fn concat<'a>(a: List<'a>, b: List<'a>) -> Result<Value<'a>, EvalError> {
    let decl = a.decl();
    match list_kind(decl) {
        ListKind::Atomic => {
            let mut items = match a {
                List::Made(items, _) => items,
                List::Json(..) => Arc::new(a.values()?),
            };
            let own = Arc::make_mut(&mut items);
            match b {
                List::Made(more, _) => match Arc::try_unwrap(more) {
                    Ok(more) => own.extend(more),
                    Err(more) => own.extend(more.iter().cloned()),
                },
                List::Json(..) => own.extend(b.values()?),
            }
            Ok(Value::List(List::Made(items, None)))
        }
        ListKind::Set => {
            let mut items = a.values()?;
            let mut known: HashSet<String> = items.iter().map(identity).collect();
            for item in b.values()? {
                if known.insert(identity(&item)) {
                    items.push(item);
                }
            }
            Ok(Value::List(List::Made(Arc::new(items), decl)))
        }
        ListKind::Map(keys) => {
            let mut items = a.values()?;
            let mut places: HashMap<String, usize> =
                items.iter().enumerate().map(|(place, item)| (key_of(item, keys), place)).collect();
            for item in b.values()? {
                let key = key_of(&item, keys);
                match places.get(&key) {
                    Some(place) => items[*place] = item,
                    None => {
                        places.insert(key, items.len());
                        items.push(item);
                    }
                }
            }
            Ok(Value::List(List::Made(Arc::new(items), decl)))
        }
    }
}

/// Whether a list has an item that is equal to the value. An item that cannot be compared is an error
/// only if no other is equal.
pub(crate) fn contains(list: &List<'_>, value: &Value<'_>) -> Result<bool, EvalError> {
    let mut failed = None;
    for index in 0..list.len() {
        let Some(item) = list.get(index) else { break };
        match item.and_then(|item| equal(&item, value)) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(false), Err)
}
