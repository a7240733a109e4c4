//! Numbers: conversions that are checked, comparisons across kinds, and how doubles are written.

use std::cmp::Ordering;

use crate::{error::EvalError, value::Value};

/// As Go's `%g` writes it: shortest digits, an exponent from a million on and below a ten-thousandth.
pub(crate) fn format_double(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    // Shortest digits decide as if there were six, but whole numbers of up to 21 digits are not special here.
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

pub(crate) fn overflow(kind: &str) -> EvalError {
    EvalError::failed(format!("{kind} overflow"))
}

pub(crate) fn double_to_int(value: f64) -> Result<i64, EvalError> {
    if value.is_nan() || value <= i64::MIN as f64 || value >= i64::MAX as f64 {
        return Err(overflow("integer"));
    }
    Ok(value as i64)
}

pub(crate) fn double_to_uint(value: f64) -> Result<u64, EvalError> {
    if !(0.0..18_446_744_073_709_551_616.0).contains(&value) {
        return Err(overflow("unsigned integer"));
    }
    Ok(value as u64)
}

fn double_and_int(double: f64, int: i64) -> Option<Ordering> {
    if double < i64::MIN as f64 {
        return Some(Ordering::Less);
    }
    if double > i64::MAX as f64 {
        return Some(Ordering::Greater);
    }
    double.partial_cmp(&(int as f64))
}

fn double_and_uint(double: f64, uint: u64) -> Option<Ordering> {
    if double < 0.0 {
        return Some(Ordering::Less);
    }
    if double > u64::MAX as f64 {
        return Some(Ordering::Greater);
    }
    double.partial_cmp(&(uint as f64))
}

fn int_and_uint(int: i64, uint: u64) -> Ordering {
    match u64::try_from(int) {
        Ok(int) => int.cmp(&uint),
        Err(_) => Ordering::Less,
    }
}

/// The order of two numbers; `None` when one is none or not a number.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(int_and_uint(*a, *b)),
        (Value::Uint(a), Value::Int(b)) => Some(int_and_uint(*b, *a).reverse()),
        (Value::Double(a), Value::Int(b)) => double_and_int(*a, *b),
        (Value::Int(a), Value::Double(b)) => double_and_int(*b, *a).map(Ordering::reverse),
        (Value::Double(a), Value::Uint(b)) => double_and_uint(*a, *b),
        (Value::Uint(a), Value::Double(b)) => double_and_uint(*b, *a).map(Ordering::reverse),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_written_as_go_does() {
        for (value, text) in [
            (1.0, "1"),
            (-0.5, "-0.5"),
            (123_456.0, "123456"),
            (1_234_567.0, "1.234567e+06"),
            (1e21, "1e+21"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (123.456, "123.456"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(format_double(value), text);
        }
    }
}
