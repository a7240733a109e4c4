//! The specification's operators.

use std::cmp::Ordering;

use super::{Cost, Function, row, standard::never};
use crate::{
    equality::{compare, concat, contains, equal},
    error::EvalError,
    number::overflow,
    time::Duration,
    value::{List, Map, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const OPERATORS: &[Function] = &[
    row("_?_:_", Cost::Standard, never, &[("conditional", "bool, A, A -> A")]),
    row("_&&_", Cost::Standard, never, &[("logical_and", "bool, bool -> bool")]),
    row("_||_", Cost::Standard, never, &[("logical_or", "bool, bool -> bool")]),
    row("@not_strictly_false", Cost::Standard, never, &[("not_strictly_false", "bool -> bool")]),
    row("!_", Cost::Standard, not, &[("logical_not", "bool -> bool")]),
    row("_==_", Cost::Equal, is_equal, &[("equals", "A, A -> bool")]),
    row("_!=_", Cost::Standard, is_not_equal, &[("not_equals", "A, A -> bool")]),
    row(
        "@in",
        Cost::Standard,
        is_in,
        &[("in_list", "A, list(A) -> bool"), ("in_map", "A, map(A, B) -> bool")],
    ),
    row(
        "_[_]",
        Cost::Standard,
        never,
        &[("index_list", "list(A), int -> A"), ("index_map", "map(A, B), A -> B")],
    ),
    row(
        "_+_",
        Cost::Standard,
        add,
        &[
            ("add_bytes", "bytes, bytes -> bytes"),
            ("add_double", "double, double -> double"),
            ("add_duration_duration", "duration, duration -> duration"),
            ("add_duration_timestamp", "duration, timestamp -> timestamp"),
            ("add_timestamp_duration", "timestamp, duration -> timestamp"),
            ("add_int64", "int, int -> int"),
            ("add_list", "list(A), list(A) -> list(A)"),
            ("add_string", "string, string -> string"),
            ("add_uint64", "uint, uint -> uint"),
        ],
    ),
    row(
        "_-_",
        Cost::Standard,
        subtract,
        &[
            ("subtract_double", "double, double -> double"),
            ("subtract_duration_duration", "duration, duration -> duration"),
            ("subtract_int64", "int, int -> int"),
            ("subtract_timestamp_duration", "timestamp, duration -> timestamp"),
            ("subtract_timestamp_timestamp", "timestamp, timestamp -> duration"),
            ("subtract_uint64", "uint, uint -> uint"),
        ],
    ),
    row(
        "_*_",
        Cost::Standard,
        multiply,
        &[
            ("multiply_double", "double, double -> double"),
            ("multiply_int64", "int, int -> int"),
            ("multiply_uint64", "uint, uint -> uint"),
        ],
    ),
    row(
        "_/_",
        Cost::Standard,
        divide,
        &[
            ("divide_double", "double, double -> double"),
            ("divide_int64", "int, int -> int"),
            ("divide_uint64", "uint, uint -> uint"),
        ],
    ),
    row(
        "_%_",
        Cost::Standard,
        modulo,
        &[("modulo_int64", "int, int -> int"), ("modulo_uint64", "uint, uint -> uint")],
    ),
    row(
        "-_",
        Cost::Standard,
        negate,
        &[("negate_double", "double -> double"), ("negate_int64", "int -> int")],
    ),
    row(
        "_<_",
        Cost::Standard,
        less,
        &[
            ("less_bool", "bool, bool -> bool"),
            ("less_int64", "int, int -> bool"),
            ("less_int64_double", "int, double -> bool"),
            ("less_int64_uint64", "int, uint -> bool"),
            ("less_uint64", "uint, uint -> bool"),
            ("less_uint64_double", "uint, double -> bool"),
            ("less_uint64_int64", "uint, int -> bool"),
            ("less_double", "double, double -> bool"),
            ("less_double_int64", "double, int -> bool"),
            ("less_double_uint64", "double, uint -> bool"),
            ("less_string", "string, string -> bool"),
            ("less_bytes", "bytes, bytes -> bool"),
            ("less_timestamp", "timestamp, timestamp -> bool"),
            ("less_duration", "duration, duration -> bool"),
        ],
    ),
    row(
        "_<=_",
        Cost::Standard,
        less_equals,
        &[
            ("less_equals_bool", "bool, bool -> bool"),
            ("less_equals_int64", "int, int -> bool"),
            ("less_equals_int64_double", "int, double -> bool"),
            ("less_equals_int64_uint64", "int, uint -> bool"),
            ("less_equals_uint64", "uint, uint -> bool"),
            ("less_equals_uint64_double", "uint, double -> bool"),
            ("less_equals_uint64_int64", "uint, int -> bool"),
            ("less_equals_double", "double, double -> bool"),
            ("less_equals_double_int64", "double, int -> bool"),
            ("less_equals_double_uint64", "double, uint -> bool"),
            ("less_equals_string", "string, string -> bool"),
            ("less_equals_bytes", "bytes, bytes -> bool"),
            ("less_equals_timestamp", "timestamp, timestamp -> bool"),
            ("less_equals_duration", "duration, duration -> bool"),
        ],
    ),
    row(
        "_>_",
        Cost::Standard,
        greater,
        &[
            ("greater_bool", "bool, bool -> bool"),
            ("greater_int64", "int, int -> bool"),
            ("greater_int64_double", "int, double -> bool"),
            ("greater_int64_uint64", "int, uint -> bool"),
            ("greater_uint64", "uint, uint -> bool"),
            ("greater_uint64_double", "uint, double -> bool"),
            ("greater_uint64_int64", "uint, int -> bool"),
            ("greater_double", "double, double -> bool"),
            ("greater_double_int64", "double, int -> bool"),
            ("greater_double_uint64", "double, uint -> bool"),
            ("greater_string", "string, string -> bool"),
            ("greater_bytes", "bytes, bytes -> bool"),
            ("greater_timestamp", "timestamp, timestamp -> bool"),
            ("greater_duration", "duration, duration -> bool"),
        ],
    ),
    row(
        "_>=_",
        Cost::Standard,
        greater_equals,
        &[
            ("greater_equals_bool", "bool, bool -> bool"),
            ("greater_equals_int64", "int, int -> bool"),
            ("greater_equals_int64_double", "int, double -> bool"),
            ("greater_equals_int64_uint64", "int, uint -> bool"),
            ("greater_equals_uint64", "uint, uint -> bool"),
            ("greater_equals_uint64_double", "uint, double -> bool"),
            ("greater_equals_uint64_int64", "uint, int -> bool"),
            ("greater_equals_double", "double, double -> bool"),
            ("greater_equals_double_int64", "double, int -> bool"),
            ("greater_equals_double_uint64", "double, uint -> bool"),
            ("greater_equals_string", "string, string -> bool"),
            ("greater_equals_bytes", "bytes, bytes -> bool"),
            ("greater_equals_timestamp", "timestamp, timestamp -> bool"),
            ("greater_equals_duration", "duration, duration -> bool"),
        ],
    ),
];

fn not<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Bool(value)] => Ok(Value::Bool(!*value)),
        _ => never(args),
    }
}

fn is_equal<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [left, right] = args else { return never(args) };
    // What the object holds, and values of libraries, are asked for their equals; they have none of another kind.
    let same_kind = match (&*left, &*right) {
        (_, Value::Null) => true,
        (Value::List(List::Json(..)), other) => matches!(other, Value::List(_)),
        (Value::Map(Map::Json(..)), other) => matches!(other, Value::Map(_)),
        (Value::Opaque(_), other) => matches!(other, Value::Opaque(_)),
        _ => true,
    };
    if !same_kind {
        return Err(EvalError::no_such_overload());
    }
    equal(left, right).map(Value::Bool)
}

fn is_not_equal<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    // What cannot be compared is not equal.
    Ok(Value::Bool(!equal(&args[0], &args[1]).unwrap_or(false)))
}

fn is_in<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [value, Value::List(list)] => contains(list, value).map(Value::Bool),
        [key, Value::Map(map)] => Ok(Value::Bool(map.contains(key)?)),
        _ => never(args),
    }
}

fn add<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [left, right] = args else { return never(args) };
    match (std::mem::replace(left, Value::Null), std::mem::replace(right, Value::Null)) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(b).map(Value::Int).ok_or_else(|| overflow("integer")),
        (Value::Uint(a), Value::Uint(b)) => {
            a.checked_add(b).map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            let mut text = String::with_capacity(a.len() + b.len());
            text.push_str(&a);
            text.push_str(&b);
            Ok(Value::string(text))
        }
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&*a, &*b].concat().into())),
        (Value::Duration(a), Value::Duration(b)) => a.checked_add(b).map(Value::Duration),
        (Value::Timestamp(time), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(time)) => {
            time.checked_add(by).map(Value::Timestamp)
        }
        (Value::List(a), Value::List(b)) => concat(a, b),
        given => {
            (*left, *right) = given;
            never(args)
        }
    }
}

fn subtract<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => {
            a.checked_sub(*b).map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        [Value::Uint(a), Value::Uint(b)] => {
            a.checked_sub(*b).map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(*a - *b)),
        [Value::Duration(a), Value::Duration(b)] => a.checked_sub(*b).map(Value::Duration),
        [Value::Timestamp(time), Value::Duration(by)] => {
            time.checked_add(by.checked_neg()?).map(Value::Timestamp)
        }
        [Value::Timestamp(a), Value::Timestamp(b)] => a.since(*b).map(Value::Duration),
        _ => never(args),
    }
}

fn multiply<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => {
            a.checked_mul(*b).map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        [Value::Uint(a), Value::Uint(b)] => {
            a.checked_mul(*b).map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(*a * *b)),
        _ => never(args),
    }
}

fn divide<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::failed("division by zero"))
        }
        [Value::Int(a), Value::Int(b)] => {
            a.checked_div(*b).map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(*a / *b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(*a / *b)),
        _ => never(args),
    }
}

fn modulo<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::failed("modulus by zero"))
        }
        [Value::Int(a), Value::Int(b)] => {
            a.checked_rem(*b).map(Value::Int).ok_or_else(|| overflow("integer"))
        }
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(*a % *b)),
        _ => never(args),
    }
}

fn negate<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::Int(a)] => a.checked_neg().map(Value::Int).ok_or_else(|| overflow("integer")),
        [Value::Double(a)] => Ok(Value::Double(-*a)),
        // No overload takes a duration; upstream's value can be negated where its type is not known before.
        [Value::Duration(a)] => {
            a.0.checked_neg().map(|a| Value::Duration(Duration(a))).ok_or_else(|| overflow("duration"))
        }
        _ => never(args),
    }
}

fn order<'a>(args: &mut [Value<'a>], holds: impl Fn(Ordering) -> bool) -> Res<'a> {
    compare(&args[0], &args[1]).map(|order| Value::Bool(holds(order))).or_else(|error| match error {
        error if error == EvalError::no_such_overload() => never(args),
        other => Err(other),
    })
}

fn less<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    order(args, |order| order == Ordering::Less)
}

fn less_equals<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    order(args, |order| order != Ordering::Greater)
}

fn greater<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    order(args, |order| order == Ordering::Greater)
}

fn greater_equals<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    order(args, |order| order != Ordering::Less)
}
