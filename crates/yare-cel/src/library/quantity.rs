//! Kubernetes' quantities: `1.5Gi`, `100m`, `1e3`.

use std::{any::Any, cmp::Ordering};

use super::{Cost, Function, constant, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

const PARSE: Cost = Cost::Walk { times: 1.0, sized: false };

pub(super) const FUNCTIONS: &[Function] = &[
    constant("quantity", PARSE, quantity, &[("string_to_quantity", "string -> kubernetes.Quantity")]),
    row("isQuantity", PARSE, is_quantity, &[("is_quantity_string", "string -> bool")]),
    row("sign", Cost::Unit, sign, &[("quantity_sign", "kubernetes.Quantity -> int")]),
    row(
        "isGreaterThan",
        Cost::Unit,
        is_greater_than,
        &[("quantity_is_greater_than", ".kubernetes.Quantity, kubernetes.Quantity -> bool")],
    ),
    row(
        "isLessThan",
        Cost::Unit,
        is_less_than,
        &[("quantity_is_less_than", ".kubernetes.Quantity, kubernetes.Quantity -> bool")],
    ),
    row(
        "compareTo",
        Cost::Unit,
        compare_to,
        &[("quantity_compare_to", ".kubernetes.Quantity, kubernetes.Quantity -> int")],
    ),
    row(
        "asApproximateFloat",
        Cost::Unit,
        as_float,
        &[("quantity_get_float", ".kubernetes.Quantity -> double")],
    ),
    row("asInteger", Cost::Unit, as_integer, &[("quantity_get_int", ".kubernetes.Quantity -> int")]),
    row("isInteger", Cost::Unit, is_integer, &[("quantity_is_integer", ".kubernetes.Quantity -> bool")]),
    row(
        "add",
        Cost::Unit,
        add,
        &[
            ("quantity_add", ".kubernetes.Quantity, kubernetes.Quantity -> kubernetes.Quantity"),
            ("quantity_add_int", ".kubernetes.Quantity, int -> kubernetes.Quantity"),
        ],
    ),
    row(
        "sub",
        Cost::Unit,
        sub,
        &[
            ("quantity_sub", ".kubernetes.Quantity, kubernetes.Quantity -> kubernetes.Quantity"),
            ("quantity_sub_int", ".kubernetes.Quantity, int -> kubernetes.Quantity"),
        ],
    ),
];

const NANOS: i128 = 1_000_000_000;

/// A number of billionths: nothing finer is kept.
#[derive(Clone, Copy, Debug)]
struct Quantity {
    nanos: i128,
    /// Value and power of ten, while both fit as upstream keeps them. Whether a quantity is an integer is decided
    /// by how it was written: `1000m` is none.
    scaled: Option<(i64, i32)>,
}

fn positive_scale(value: i64, scale: i32) -> Option<i64> {
    value.checked_mul(10_i64.checked_pow(u32::try_from(scale).ok()?)?)
}

impl Quantity {
    fn of_int(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * NANOS, scaled: Some((value, 0)) }
    }

    fn integer(self) -> Option<i64> {
        let (value, scale) = self.scaled?;
        positive_scale(value, scale)
    }

    fn add(self, other: Quantity, sign: i64) -> Quantity {
        let nanos = self.nanos.saturating_add(other.nanos.saturating_mul(i128::from(sign)));
        let scaled = match (self.scaled, other.scaled) {
            (Some(own), Some((0, _))) => Some(own),
            (Some((0, _)), Some((value, scale))) => value.checked_mul(sign).map(|value| (value, scale)),
            (Some((a, a_scale)), Some((b, b_scale))) => {
                let scale = a_scale.min(b_scale);
                positive_scale(a, a_scale - scale)
                    .zip(positive_scale(b, b_scale - scale))
                    .and_then(|(a, b)| a.checked_add(b.checked_mul(sign)?).map(|sum| (sum, scale)))
            }
            _ => None,
        };
        Quantity { nanos, scaled }
    }
}

impl OpaqueValue for Quantity {
    fn type_name(&self) -> &'static str {
        "kubernetes.Quantity"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Quantity>().map(|other| self.nanos == other.nanos)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Factor as a fraction, by the suffix.
fn suffix(text: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| (10_i128.pow(power), 1);
    Some(match text {
        "" => (1, 1),
        "n" => (1, NANOS),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent = text.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let power: i32 = exponent.parse().ok()?;
            // Beyond these nothing is left, or everything is too large.
            match power {
                0..=30 => decimal(power as u32),
                -30..0 => (1, 10_i128.pow(power.unsigned_abs())),
                31.. => decimal(30),
                _ => (1, 10_i128.pow(30)),
            }
        }
    })
}

fn parse(text: &str) -> Result<Quantity, EvalError> {
    let invalid = || {
        let message = "quantities must match the regular expression \
                       '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        EvalError::failed(message)
    };
    if text.is_empty() {
        return Err(invalid());
    }
    let (negative, unsigned) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let whole_end = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = unsigned.split_at(whole_end);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    let (numerator, denominator) = suffix(rest).ok_or_else(|| {
        // What has the letters of a suffix and is none is told from what cannot be one.
        let letters = rest.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
        let digits = letters.strip_prefix(['-', '+']).unwrap_or(letters);
        if digits.bytes().all(|byte| byte.is_ascii_digit()) {
            EvalError::failed("unable to parse quantity's suffix")
        } else {
            invalid()
        }
    })?;
    const MAX: i128 = i64::MAX as i128;
    let whole = whole.trim_start_matches('0');
    let scaled = scaled(whole, fraction, rest, negative);
    // What has more digits than fit is as large as a quantity gets.
    let mut nanos = 0_i128;
    let mut inexact = false;
    let mut huge = whole.len() > 37;
    if !huge {
        let mut digits = String::from(whole);
        // Fractions are exact down to what the largest suffix makes visible.
        let kept = &fraction[..fraction.len().min(27)];
        inexact = fraction[kept.len()..].bytes().any(|byte| byte != b'0');
        digits.push_str(kept);
        let digits = digits.trim_start_matches('0');
        let scale = kept.len() as u32;
        match if digits.is_empty() { Ok(0) } else { digits.parse::<i128>() } {
            Ok(mantissa) => {
                // mantissa * numerator * 10^9 / (denominator * 10^scale), with the powers of ten cancelled.
                let mut top = vec![mantissa, numerator];
                let down = 10_i128.pow(scale);
                let common = gcd(NANOS, down);
                top.push(NANOS / common);
                let bottom = (down / common).checked_mul(denominator);
                let mut bottom = bottom.unwrap_or(i128::MAX);
                for factor in &mut top {
                    let common = gcd(*factor, bottom);
                    if common > 1 {
                        *factor /= common;
                        bottom /= common;
                    }
                }
                match top.iter().try_fold(1_i128, |product, factor| product.checked_mul(*factor)) {
                    Some(product) => {
                        nanos = product / bottom;
                        inexact |= product % bottom != 0;
                    }
                    None => huge = true,
                }
            }
            Err(_) => huge = true,
        }
    }
    // Away from zero, so that nothing but zero is zero. Only what has a binary suffix is bounded.
    let max = if scaled.is_none() && rest.ends_with('i') { MAX * NANOS } else { i128::MAX };
    nanos = if huge { max } else { (nanos + i128::from(inexact)).min(max) };
    Ok(Quantity { nanos: if negative { -nanos } else { nanos }, scaled })
}

/// The value and power of ten, if upstream keeps the quantity so.
fn scaled(whole: &str, fraction: &str, suffix: &str, negative: bool) -> Option<(i64, i32)> {
    let whole = if whole.is_empty() { "0" } else { whole };
    let digits = (whole.len() + fraction.len()) as i32;
    let (multiplier, scale) = match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => {
            let power = match &suffix[..1] {
                "K" => 10,
                "M" => 20,
                "G" => 30,
                "T" => 40,
                "P" => 50,
                _ => 60,
            };
            if !fraction.is_empty() || 14 - digits - power * 3 / 10 < 0 {
                return None;
            }
            (1_i64 << power, 0)
        }
        _ => {
            let scale = match suffix {
                "n" => -9,
                "u" => -6,
                "m" => -3,
                "" => 0,
                "k" => 3,
                "M" => 6,
                "G" => 9,
                "T" => 12,
                "P" => 15,
                "E" => 18,
                exponent => exponent[1..].parse().ok()?,
            };
            if digits > 18 {
                return None;
            }
            (1, scale)
        }
    };
    let scale = scale - fraction.len() as i32;
    if scale < -9 {
        return None;
    }
    let value: i64 = format!("{whole}{fraction}").parse().ok()?;
    let value = value.checked_mul(multiplier)?;
    Some((if negative { -value } else { value }, scale))
}

fn gcd(a: i128, b: i128) -> i128 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i128::try_from(a).unwrap_or(1).max(1)
}

/// A quantity that does not come from an expression.
pub(crate) fn value<'a>(text: &str) -> Option<Value<'a>> {
    parse(text).ok().map(Value::opaque)
}

fn quantity<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => parse(text).map(Value::opaque),
        _ => never(args),
    }
}

fn is_quantity<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse(text).is_ok())),
        _ => never(args),
    }
}

fn own(value: &Value<'_>) -> Result<Quantity, EvalError> {
    value.downcast::<Quantity>().copied().ok_or(EvalError::NoSuchOverload)
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(own(&args[0])?.nanos.cmp(&own(&args[1])?.nanos))
}

fn sign<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Int(own(&args[0])?.nanos.signum() as i64))
}

fn is_greater_than<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(order(args)?.is_gt()))
}

fn is_less_than<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(order(args)?.is_lt()))
}

fn compare_to<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Int(order(args)? as i64))
}

fn as_float<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let Quantity { nanos, scaled } = own(&args[0])?;
    Ok(Value::Double(match scaled {
        Some((value, 0)) => value as f64,
        // As upstream multiplies, and not as near as can be.
        Some((value, scale)) => value as f64 * power_of_ten(scale),
        None => {
            let (mut value, mut scale) = (nanos, -9);
            while scale < 0 && value % 10 == 0 {
                (value, scale) = (value / 10, scale + 1);
            }
            value as f64 * power_of_ten(scale)
        }
    }))
}

fn power_of_ten(scale: i32) -> f64 {
    format!("1e{scale}").parse().unwrap_or(0.0)
}

fn as_integer<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    own(&args[0])?
        .integer()
        .map(Value::Int)
        .ok_or_else(|| EvalError::failed("cannot convert value to integer"))
}

fn is_integer<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(own(&args[0])?.integer().is_some()))
}

fn other(value: &Value<'_>) -> Result<Quantity, EvalError> {
    match value {
        Value::Int(value) => Ok(Quantity::of_int(*value)),
        other => own(other),
    }
}

fn add<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::opaque(own(&args[0])?.add(other(&args[1])?, 1)))
}

fn sub<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::opaque(own(&args[0])?.add(other(&args[1])?, -1)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        for (text, nanos) in [
            ("0", 0),
            ("1", NANOS),
            ("-1.5", -1_500_000_000),
            ("100m", 100_000_000),
            ("1n", 1),
            ("0.1n", 1),
            ("-0.1n", -1),
            ("1.5Gi", (3_i128 << 29) * NANOS),
            ("1e3", 1_000 * NANOS),
            ("1E-3", 1_000_000),
            ("1E", 10_i128.pow(18) * NANOS),
            (".5", 500_000_000),
            ("5.", 5 * NANOS),
            // Without a digit, a quantity is zero.
            (".", 0),
            ("e3", 0),
            ("100000000000000000000000", 10_i128.pow(23) * NANOS),
            ("100Ei", i64::MAX as i128 * NANOS),
            ("1e20", 10_i128.pow(20) * NANOS),
            ("0000000000000000000000000000000000000000000001", NANOS),
            ("1.0000000001", NANOS + 1),
            ("1e-40", 1),
        ] {
            assert_eq!(parse(text).unwrap().nanos, nanos, "{text}");
        }
        for bad in ["", "x", "1x", "1.1.1", "1 Gi", "--1", "1KI", "e", "..", "1e", "1e3m"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
