//! Regular expressions, which are Go's: `yare_regexp`.

use std::{any::Any, borrow::Cow};

use yare_regexp::{Regex, compile};

use super::{Cost, Function, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row("find", Cost::Find, find, &[("string_find_string", ".string, string -> string")]),
    row(
        "findAll",
        Cost::Find,
        find_all,
        &[
            ("string_find_all_string", ".string, string -> list(string)"),
            ("string_find_all_string_int", ".string, string, int -> list(string)"),
        ],
    ),
];

/// A pattern that was compiled with the expression. It stands where the pattern stood.
#[derive(Debug)]
struct Pattern {
    regex: Regex,
    size: u64,
}

impl OpaqueValue for Pattern {
    fn type_name(&self) -> &'static str {
        "string"
    }
    fn equals(&self, _other: &dyn OpaqueValue) -> Option<bool> {
        None
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A constant pattern, ready to be applied.
pub(crate) fn precompile(pattern: &str) -> Result<Value<'static>, String> {
    let size = pattern.chars().count() as u64;
    Ok(Value::opaque(Pattern { regex: compile(pattern)?, size }))
}

/// The pattern of a call: compiled before, or now.
fn pattern<'v>(value: &'v Value<'_>) -> Result<Option<Cow<'v, Regex>>, EvalError> {
    if let Some(pattern) = value.downcast::<Pattern>() {
        return Ok(Some(Cow::Borrowed(&pattern.regex)));
    }
    match value.as_str() {
        Some(text) => Ok(Some(Cow::Owned(compile(text).map_err(EvalError::failed)?))),
        None => Ok(None),
    }
}

pub(super) fn matches<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), by] = args else { return never(args) };
    match pattern(by)? {
        Some(regex) => Ok(Value::Bool(regex.is_match(text))),
        None => Err(EvalError::no_such_overload()),
    }
}

fn illegal(error: EvalError) -> EvalError {
    EvalError::failed(format!("Illegal regex: {error}"))
}

/// With a pattern that was compiled before, upstream does not ask what it was given.
fn unfit<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args.get(1) {
        Some(Value::Opaque(_)) => Err(EvalError::no_such_overload()),
        _ => never(args),
    }
}

fn find<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), by] = args else { return unfit(args) };
    match pattern(by).map_err(illegal)? {
        Some(regex) => Ok(Value::string(regex.find(text).map_or("", |found| found.as_str()))),
        None => unfit(args),
    }
}

fn find_all<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, by, limit) = match &*args {
        [Value::String(text), by] => (text, by, -1),
        [Value::String(text), by, Value::Int(limit)] => (text, by, *limit),
        _ => return unfit(args),
    };
    let Some(regex) = pattern(by).map_err(illegal)? else { return unfit(args) };
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Value::list(regex.find_iter(text).take(count).map(|found| Value::string(found.as_str())).collect()))
}
