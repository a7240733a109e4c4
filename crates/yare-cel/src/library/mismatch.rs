//! What upstream says where a call's values fit no overload: an expression whose types are known only when it runs.

use crate::{error::EvalError, value::Value};

/// The error of a call of `function` with these values.
///
/// Operators and functions of the specification ask the first value whether it can be added, compared, measured, …:
/// of one that cannot, only the function is told, and nothing at all where the second does not go with it. Most others
/// name the types that they were given.
pub(crate) fn mismatch(function: &str, args: &[Value<'_>]) -> EvalError {
    let first = args.first().unwrap_or(&Value::Null);
    let able = match function {
        "_+_" => {
            is_number(first)
                || is_time(first)
                || matches!(first, Value::String(_) | Value::Bytes(_) | Value::List(_))
        }
        "_-_" => is_number(first) || is_time(first),
        "_*_" | "_/_" => is_number(first),
        "_%_" => matches!(first, Value::Int(_) | Value::Uint(_)),
        "_<_" | "_<=_" | "_>_" | "_>=_" => {
            is_number(first)
                || is_time(first)
                || matches!(first, Value::Bool(_) | Value::String(_) | Value::Bytes(_))
        }
        "-_" | "!_" => matches!(first, Value::Bool(_) | Value::Int(_) | Value::Double(_)),
        "size" => matches!(first, Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_)),
        "sort" => false,
        "flatten" => return EvalError::failed(format!("no such overload: {}.flatten()", first.type_name())),
        "@in" | "matches" | "contains" | "startsWith" | "endsWith" => true,
        _ => {
            let types: Vec<&str> = args.iter().map(Value::type_name).collect();
            return EvalError::failed(format!("no such overload: {function}({})", types.join(", ")));
        }
    };
    // These are asked for the function by its name, and have none.
    let receives = is_time(first) || matches!(first, Value::String(_));
    if able || receives {
        EvalError::no_such_overload()
    } else {
        EvalError::failed(format!("no such overload: {function}"))
    }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_))
}

fn is_time(value: &Value<'_>) -> bool {
    matches!(value, Value::Timestamp(_) | Value::Duration(_))
}

/// What upstream calls the type that holds such values, where it tells of that and not of their own.
pub(crate) fn go_type(value: &Value<'_>) -> String {
    let name = match value {
        Value::Null => "Null",
        Value::Bool(_) => "Bool",
        Value::Int(_) => "Int",
        Value::Uint(_) => "Uint",
        Value::Double(_) => "Double",
        Value::String(_) => "String",
        Value::Bytes(_) => "Bytes",
        Value::Timestamp(_) => "Timestamp",
        Value::Duration(_) => "Duration",
        Value::Optional(_) => return "*types.Optional".to_owned(),
        Value::Type(_) => return "*types.Type".to_owned(),
        other => return other.type_name().to_owned(),
    };
    format!("types.{name}")
}
