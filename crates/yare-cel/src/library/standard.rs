//! The specification's own functions.

use super::{Cost, Function, row};
use crate::{
    error::EvalError,
    eval::into_key,
    number::{double_to_int, double_to_uint, overflow},
    time::{self, Civil, Timestamp},
    value::{Map, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row(
        "size",
        Cost::Standard,
        size,
        &[
            ("bytes_size", ".bytes -> int"),
            ("list_size", ".list(A) -> int"),
            ("map_size", ".map(A, B) -> int"),
            ("string_size", ".string -> int"),
            ("size_bytes", "bytes -> int"),
            ("size_list", "list(A) -> int"),
            ("size_map", "map(A, B) -> int"),
            ("size_string", "string -> int"),
        ],
    ),
    row("type", Cost::Standard, type_of, &[("type", "A -> type(A)")]),
    row(
        "bool",
        Cost::Standard,
        to_bool,
        &[("bool_to_bool", "bool -> bool"), ("string_to_bool", "string -> bool")],
    ),
    row(
        "bytes",
        Cost::Standard,
        to_bytes,
        &[("bytes_to_bytes", "bytes -> bytes"), ("string_to_bytes", "string -> bytes")],
    ),
    row(
        "double",
        Cost::Standard,
        to_double,
        &[
            ("double_to_double", "double -> double"),
            ("int64_to_double", "int -> double"),
            ("string_to_double", "string -> double"),
            ("uint64_to_double", "uint -> double"),
        ],
    ),
    row(
        "duration",
        Cost::Standard,
        to_duration,
        &[
            ("duration_to_duration", "duration -> duration"),
            ("int64_to_duration", "int -> duration"),
            ("string_to_duration", "string -> duration"),
        ],
    ),
    row("dyn", Cost::Standard, same, &[("to_dyn", "A -> dyn")]),
    row(
        "int",
        Cost::Standard,
        to_int,
        &[
            ("int64_to_int64", "int -> int"),
            ("double_to_int64", "double -> int"),
            ("duration_to_int64", "duration -> int"),
            ("string_to_int64", "string -> int"),
            ("timestamp_to_int64", "timestamp -> int"),
            ("uint64_to_int64", "uint -> int"),
        ],
    ),
    row(
        "string",
        Cost::Standard,
        to_string,
        &[
            ("string_to_string", "string -> string"),
            ("bool_to_string", "bool -> string"),
            ("bytes_to_string", "bytes -> string"),
            ("double_to_string", "double -> string"),
            ("duration_to_string", "duration -> string"),
            ("int64_to_string", "int -> string"),
            ("timestamp_to_string", "timestamp -> string"),
            ("uint64_to_string", "uint -> string"),
        ],
    ),
    row(
        "timestamp",
        Cost::Standard,
        to_timestamp,
        &[
            ("timestamp_to_timestamp", "timestamp -> timestamp"),
            ("int64_to_timestamp", "int -> timestamp"),
            ("string_to_timestamp", "string -> timestamp"),
        ],
    ),
    row(
        "uint",
        Cost::Standard,
        to_uint,
        &[
            ("uint64_to_uint64", "uint -> uint"),
            ("double_to_uint64", "double -> uint"),
            ("int64_to_uint64", "int -> uint"),
            ("string_to_uint64", "string -> uint"),
        ],
    ),
    row(
        "matches",
        Cost::Standard,
        super::regex::matches,
        &[("matches", "string, string -> bool"), ("matches_string", ".string, string -> bool")],
    ),
    row("contains", Cost::Standard, text_contains, &[("contains_string", ".string, string -> bool")]),
    row("startsWith", Cost::Standard, starts_with, &[("starts_with_string", ".string, string -> bool")]),
    row("endsWith", Cost::Standard, ends_with, &[("ends_with_string", ".string, string -> bool")]),
    row(
        "getFullYear",
        Cost::Standard,
        full_year,
        &[
            ("timestamp_to_year", ".timestamp -> int"),
            ("timestamp_to_year_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getMonth",
        Cost::Standard,
        month,
        &[
            ("timestamp_to_month", ".timestamp -> int"),
            ("timestamp_to_month_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getDayOfYear",
        Cost::Standard,
        day_of_year,
        &[
            ("timestamp_to_day_of_year", ".timestamp -> int"),
            ("timestamp_to_day_of_year_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getDayOfMonth",
        Cost::Standard,
        day_of_month,
        &[
            ("timestamp_to_day_of_month", ".timestamp -> int"),
            ("timestamp_to_day_of_month_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getDate",
        Cost::Standard,
        date,
        &[
            ("timestamp_to_day_of_month_1_based", ".timestamp -> int"),
            ("timestamp_to_day_of_month_1_based_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getDayOfWeek",
        Cost::Standard,
        day_of_week,
        &[
            ("timestamp_to_day_of_week", ".timestamp -> int"),
            ("timestamp_to_day_of_week_with_tz", ".timestamp, string -> int"),
        ],
    ),
    row(
        "getHours",
        Cost::Standard,
        hours,
        &[
            ("timestamp_to_hours", ".timestamp -> int"),
            ("timestamp_to_hours_with_tz", ".timestamp, string -> int"),
            ("duration_to_hours", ".duration -> int"),
        ],
    ),
    row(
        "getMinutes",
        Cost::Standard,
        minutes,
        &[
            ("timestamp_to_minutes", ".timestamp -> int"),
            ("timestamp_to_minutes_with_tz", ".timestamp, string -> int"),
            ("duration_to_minutes", ".duration -> int"),
        ],
    ),
    row(
        "getSeconds",
        Cost::Standard,
        seconds,
        &[
            ("timestamp_to_seconds", ".timestamp -> int"),
            ("timestamp_to_seconds_tz", ".timestamp, string -> int"),
            ("duration_to_seconds", ".duration -> int"),
        ],
    ),
    row(
        "getMilliseconds",
        Cost::Standard,
        milliseconds,
        &[
            ("timestamp_to_milliseconds", ".timestamp -> int"),
            ("timestamp_to_milliseconds_with_tz", ".timestamp, string -> int"),
            ("duration_to_milliseconds", ".duration -> int"),
        ],
    ),
];

pub(super) const MAP_INSERT: &[Function] = &[row(
    "cel.@mapInsert",
    Cost::Standard,
    map_insert,
    &[
        ("@mapInsert_map_key_value", "map(K, V), K, V -> map(K, V)"),
        ("@mapInsert_map_map", "map(K, V), map(K, V) -> map(K, V)"),
    ],
)];

/// For values of no overload's types, and of what the planner turns into something else.
pub(super) fn never<'a>(_: &mut [Value<'a>]) -> Res<'a> {
    Err(EvalError::NoSuchOverload)
}

fn same<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(args[0].clone())
}

fn size<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(value.size() as i64))
        }
        _ => never(args),
    }
}

fn type_of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Type(args[0].type_of()))
}

fn inconvertible(value: &Value<'_>, to: &str) -> EvalError {
    EvalError::failed(format!("type conversion error from '{}' to '{to}'", value.type_name()))
}

fn to_bool<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        value @ Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(inconvertible(value, "bool")),
        },
        _ => never(args),
    }
}

fn to_bytes<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
        Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
        _ => never(args),
    }
}

fn to_double<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Double(value) => Ok(Value::Double(*value)),
        Value::Int(value) => Ok(Value::Double(*value as f64)),
        Value::Uint(value) => Ok(Value::Double(*value as f64)),
        value @ Value::String(text) => match go_double(text) {
            // A number that is too large is an error, infinity by name is not.
            Ok(number) if number.is_finite() || !text.contains(|c: char| c.is_ascii_digit()) => {
                Ok(Value::Double(number))
            }
            _ => Err(inconvertible(value, "double")),
        },
        _ => never(args),
    }
}

/// As Go reads it: `_` may stand between digits.
fn go_double(text: &str) -> Result<f64, std::num::ParseFloatError> {
    let digit = |at: Option<usize>| at.and_then(|at| text.as_bytes().get(at)).is_some_and(u8::is_ascii_digit);
    match text.match_indices('_').all(|(at, _)| digit(at.checked_sub(1)) && digit(Some(at + 1))) {
        true => text.replace('_', "").parse(),
        false => text.parse(),
    }
}

fn to_duration<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Duration(duration) => Ok(Value::Duration(*duration)),
        // The checker knows an overload of these, and upstream's value does not convert.
        value @ Value::Int(_) => Err(inconvertible(value, "google.protobuf.Duration")),
        Value::String(text) => time::parse_duration(text).map(Value::Duration),
        _ => never(args),
    }
}

fn go_int<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn to_int<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Int(value) => Ok(Value::Int(*value)),
        Value::Uint(value) => i64::try_from(*value).map(Value::Int).map_err(|_| overflow("integer")),
        Value::Double(value) => double_to_int(*value).map(Value::Int),
        Value::Duration(duration) => Ok(Value::Int(duration.0)),
        Value::Timestamp(time) => Ok(Value::Int(time.seconds)),
        value @ Value::String(text) => {
            go_int(text).map(Value::Int).ok_or_else(|| inconvertible(value, "int"))
        }
        _ => never(args),
    }
}

fn to_uint<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Uint(value) => Ok(Value::Uint(*value)),
        Value::Int(value) => u64::try_from(*value).map(Value::Uint).map_err(|_| overflow("unsigned integer")),
        Value::Double(value) => double_to_uint(*value).map(Value::Uint),
        // Unsigned numbers are written without a sign.
        value @ Value::String(text) if text.starts_with('+') => Err(inconvertible(value, "uint")),
        value @ Value::String(text) => {
            go_int(text).map(Value::Uint).ok_or_else(|| inconvertible(value, "uint"))
        }
        _ => never(args),
    }
}

fn to_string<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::String(text) => Ok(Value::String(text.clone())),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::string(text)),
            Err(_) => Err(EvalError::failed("invalid UTF-8 in bytes, cannot convert to string")),
        },
        value @ (Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Duration(_)
        | Value::Timestamp(_)
        | Value::Type(_)) => Ok(Value::string(value.to_string())),
        _ => never(args),
    }
}

fn to_timestamp<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match &args[0] {
        Value::Timestamp(time) => Ok(Value::Timestamp(*time)),
        Value::Int(seconds) => {
            Timestamp::new(*seconds, 0).map(Value::Timestamp).ok_or_else(|| overflow("timestamp"))
        }
        Value::String(text) => time::parse_timestamp(text).map(Value::Timestamp),
        _ => never(args),
    }
}

fn text_contains<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.contains(&**part))),
        _ => never(args),
    }
}

fn starts_with<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.starts_with(&**part))),
        _ => never(args),
    }
}

fn ends_with<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.ends_with(&**part))),
        _ => never(args),
    }
}

/// A calendar field, where the time was written or in the zone given.
fn field<'a>(args: &[Value<'a>], of: impl Fn(Civil) -> i64) -> Res<'a> {
    match args {
        [Value::Timestamp(time)] => Ok(Value::Int(of(time.civil()))),
        [Value::Timestamp(time), Value::String(zone)] => Ok(Value::Int(of(time::in_zone(*time, zone)?))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A calendar field, or all of a duration in a unit.
fn part<'a>(args: &[Value<'a>], of: impl Fn(Civil) -> i64, unit_nanos: i64) -> Res<'a> {
    match args {
        [Value::Duration(duration)] => Ok(Value::Int(duration.0 / unit_nanos)),
        _ => field(args, of),
    }
}

fn full_year<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.year)
}

fn month<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.month - 1)
}

fn day_of_year<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.day_of_year)
}

fn day_of_month<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.day - 1)
}

fn date<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.day)
}

fn day_of_week<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    field(args, |civil| civil.weekday)
}

fn hours<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    part(args, |civil| civil.hour, 3_600_000_000_000)
}

fn minutes<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    part(args, |civil| civil.minute, 60_000_000_000)
}

fn seconds<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    part(args, |civil| civil.second, 1_000_000_000)
}

fn milliseconds<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let nanos = match args {
        [Value::Timestamp(time), ..] => i64::from(time.nanos),
        _ => 0,
    };
    part(args, |_| nanos / 1_000_000, 1_000_000)
}

fn map_insert<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let mut taken = args.iter_mut().map(|arg| std::mem::replace(arg, Value::Null));
    let mut next = || taken.next().unwrap_or(Value::Null);
    let (Value::Map(Map::Made(mut map)), first) = (next(), next()) else {
        return Err(EvalError::no_such_overload());
    };
    let own = std::sync::Arc::make_mut(&mut map);
    let mut insert = |key: Value<'a>, value: Value<'a>| {
        let shown = key.to_string();
        if own.insert(into_key(key)?, value).is_some() {
            return Err(EvalError::failed(format!("insert failed: key {shown} already exists")));
        }
        Ok(())
    };
    match first {
        Value::Map(more) => {
            for key in more.keys() {
                let key = Value::from(key);
                if let Some(value) = more.find(&key)? {
                    insert(key, value)?;
                }
            }
        }
        key => insert(key, next())?,
    }
    Ok(Value::Map(Map::Made(map)))
}
