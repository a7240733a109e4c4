//! Values that may be absent.

use super::{Cost, Function, row, standard::never};
use crate::{
    error::EvalError,
    value::{List, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row("optional.of", Cost::Standard, of, &[("optional_of", "V -> optional(V)")]),
    row(
        "optional.ofNonZeroValue",
        Cost::Standard,
        of_non_zero,
        &[("optional_ofNonZeroValue", "V -> optional(V)")],
    ),
    row("optional.none", Cost::Standard, none, &[("optional_none", "-> optional(V)")]),
    row("value", Cost::Standard, value, &[("optional_value", ".optional(V) -> V")]),
    row("hasValue", Cost::Standard, has_value, &[("optional_hasValue", ".optional(V) -> bool")]),
    row("or", Cost::Standard, never, &[("optional_or_optional", ".optional(V), optional(V) -> optional(V)")]),
    row("orValue", Cost::Standard, never, &[("optional_orValue_value", ".optional(V), V -> V")]),
    row("_?._", Cost::Standard, never, &[("select_optional_field", "dyn, string -> optional(V)")]),
    row(
        "_[?_]",
        Cost::Standard,
        never,
        &[
            ("list_optindex_optional_int", "list(V), int -> optional(V)"),
            ("optional_list_optindex_optional_int", "optional(list(V)), int -> optional(V)"),
            ("map_optindex_optional_value", "map(K, V), K -> optional(V)"),
            ("optional_map_optindex_optional_value", "optional(map(K, V)), K -> optional(V)"),
        ],
    ),
    row(
        "_[_]",
        Cost::Standard,
        never,
        &[
            ("optional_list_index_int", "optional(list(V)), int -> optional(V)"),
            ("optional_map_index_value", "optional(map(K, V)), K -> optional(V)"),
        ],
    ),
    row("first", Cost::Standard, first, &[("list_first", ".list(V) -> optional(V)")]),
    row("last", Cost::Standard, last, &[("list_last", ".list(V) -> optional(V)")]),
    row("optional.unwrap", Cost::Standard, unwrap, &[("optional_unwrap", "list(optional(V)) -> list(V)")]),
    row("unwrapOpt", Cost::Standard, unwrap, &[("optional_unwrapOpt", ".list(optional(V)) -> list(V)")]),
];

fn take<'a>(args: &mut [Value<'a>]) -> Value<'a> {
    std::mem::replace(&mut args[0], Value::Null)
}

fn of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::some(take(args)))
}

fn of_non_zero<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let value = take(args);
    Ok(if value.is_zero() { Value::Optional(None) } else { Value::some(value) })
}

fn none<'a>(_: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Optional(None))
}

fn value<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => Err(EvalError::failed("optional.none() dereference")),
        _ => never(args),
    }
}

fn has_value<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => never(args),
    }
}

fn end<'a>(args: &[Value<'a>], index: impl Fn(&List<'a>) -> usize) -> Res<'a> {
    match args {
        [Value::List(list)] if list.is_empty() => Ok(Value::Optional(None)),
        [Value::List(list)] => match list.get(index(list)) {
            Some(item) => Ok(Value::some(item?)),
            None => Ok(Value::Optional(None)),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn first<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    end(args, |_| 0)
}

fn last<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    end(args, |list| list.len() - 1)
}

fn unwrap<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = args else { return never(args) };
    let mut values = Vec::new();
    for item in list.values()? {
        match item {
            Value::Optional(Some(value)) => values.push((*value).clone()),
            Value::Optional(None) => {}
            other => return Err(EvalError::failed(format!("value {other} is not optional"))),
        }
    }
    Ok(Value::list(values))
}
