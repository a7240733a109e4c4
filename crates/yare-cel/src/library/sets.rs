//! Lists as sets.

use super::{Cost, Function, row, standard::never};
use crate::{
    equality::contains,
    error::EvalError,
    value::{List, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row(
        "sets.contains",
        Cost::Sets(1.0),
        sets_contains,
        &[("list_sets_contains_list", "list(T), list(T) -> bool")],
    ),
    row(
        "sets.equivalent",
        Cost::Sets(2.0),
        equivalent,
        &[("list_sets_equivalent_list", "list(T), list(T) -> bool")],
    ),
    row(
        "sets.intersects",
        Cost::Sets(1.0),
        intersects,
        &[("list_sets_intersects_list", "list(T), list(T) -> bool")],
    ),
];

fn covers(list: &List<'_>, sublist: &List<'_>) -> Result<bool, EvalError> {
    for item in sublist.values()? {
        if !contains(list, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sets_contains<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::List(list), Value::List(sublist)] => covers(list, sublist).map(Value::Bool),
        _ => never(args),
    }
}

fn equivalent<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(covers(a, b)? && covers(b, a)?)),
        _ => never(args),
    }
}

fn intersects<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::List(a), Value::List(b)] => {
            // An item that cannot be compared is in no set.
            Ok(Value::Bool(a.values()?.iter().any(|item| contains(b, item).unwrap_or(false))))
        }
        _ => never(args),
    }
}
