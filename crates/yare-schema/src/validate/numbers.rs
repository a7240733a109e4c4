//! Numbers against what a schema says of them, by the rules of upstream's validation: it compares as whole numbers what
//! Go read as such.

use serde_json::{Number, Value};

use super::{invalid, loose, shown};
use crate::{
    constraints::{JsonType, Rule},
    field::{FieldError, Path},
    goprint::GoFloat,
};

/// A limit as messages show it: whole, where it was met as such.
fn shown_limit(limit: &Number, number: &Number, is_whole: bool) -> String {
    match limit.as_f64() {
        Some(limit) if is_whole && number.is_i64() => (limit as i64).to_string(),
        Some(limit) => GoFloat(limit).to_string(),
        None => limit.to_string(),
    }
}

fn compare(a: &Number, b: &Number) -> Option<std::cmp::Ordering> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// Whether upstream divides without a remainder; an error of its own where it would divide by nothing.
fn check_multiple(number: &Number, factor: &Number, is_whole: bool) -> Result<bool, &'static str> {
    let Some(factor) = factor.as_f64() else { return Ok(false) };
    // A whole number is divided by what of the factor is whole.
    if let Some(n) = number.as_i64().filter(|_| is_whole) {
        return match factor as i64 {
            ..=0 => Err("0"),
            factor => Ok(n % factor == 0),
        };
    }
    let Some(n) = number.as_f64() else { return Ok(false) };
    let times = if factor < 1.0 { 1.0 / factor * n } else { n / factor };
    // As near to a whole number as doubles get.
    Ok((times - times.round()).abs() < 1e-9 * times.abs().max(1.0))
}

/// A number that a type for whole ones does not hold: of a value, or of a limit for it (`what`).
pub(super) fn check_whole(
    number: &Number,
    what: &str,
    format: Option<&str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) -> bool {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let whole = |x: f64| x.fract() == 0.0 && (-BEYOND..BEYOND).contains(&x);
    let fits = match (number.as_i64(), format) {
        (Some(n), Some("int32")) => i32::try_from(n).is_ok(),
        (Some(_), _) => true,
        (None, Some("int32")) => number.as_f64().is_some_and(|x| whole(x) && x.abs() <= f64::from(i32::MAX)),
        (None, _) => number.as_f64().is_some_and(whole),
    };
    if !fits {
        let with = match format {
            Some(format @ ("int32" | "int64")) => format!("with format {format}"),
            _ => "(default format)".to_owned(),
        };
        errors.push(loose(format!("{what} value must be of type integer {with} in {}", shown(path))));
    }
    fits
}

/// Whether the type holds a limit for its values, so that they are compared as the type is.
fn check_limit(
    limit: &Number,
    what: &str,
    wanted: Option<JsonType>,
    format: Option<&str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) -> bool {
    wanted != Some(JsonType::Integer) || check_whole(limit, what, format, path, errors)
}

/// How a number stands to a limit. A whole number is compared with what of the limit is whole.
fn beside(number: &Number, limit: &Number, is_whole: bool) -> (Option<std::cmp::Ordering>, String) {
    let text = shown_limit(limit, number, is_whole);
    match limit.as_f64().filter(|limit| is_whole && number.is_i64() && limit.fract() != 0.0) {
        Some(limit) => (compare(number, &Number::from(limit as i64)), text),
        None => (compare(number, limit), text),
    }
}

pub(super) fn check_number(
    rule: &Rule,
    number: &Number,
    wanted: Option<JsonType>,
    format: Option<&str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let value = || Value::Number(number.clone());
    match rule {
        Rule::Format(format) => {
            let in_range = match (&**format, wanted) {
                ("float", Some(JsonType::Number)) => {
                    number.as_f64().is_some_and(|x| x.abs() <= f64::from(f32::MAX))
                }
                _ => true,
            };
            if !in_range {
                let name = wanted.map_or("", JsonType::name);
                errors.push(loose(format!(
                    "Checked value must be of type {name} with format {format} in {}",
                    shown(path)
                )));
            }
        }
        Rule::MultipleOf(factor) => {
            let is_whole = check_limit(factor, "MultipleOf", wanted, format, path, errors);
            match check_multiple(number, factor, is_whole) {
                Ok(true) => {}
                Ok(false) => {
                    let what = format!("should be a multiple of {}", shown_limit(factor, number, is_whole));
                    errors.push(invalid(path, value(), &what));
                }
                Err(shown) => {
                    let what = format!(
                        "factor MultipleOf declared for {} must be positive: {shown}",
                        super::shown(path)
                    );
                    errors.push(FieldError::invalid(path, 0, what));
                }
            }
        }
        Rule::Maximum(max, exclusive) => {
            let is_whole = check_limit(max, "Maximum boundary", wanted, format, path, errors);
            let (over, max) = beside(number, max, is_whole);
            if over == Some(Greater) || (*exclusive && over == Some(Equal)) {
                let or = if *exclusive { "" } else { " or equal to" };
                errors.push(invalid(path, value(), &format!("should be less than{or} {max}")));
            }
        }
        Rule::Minimum(min, exclusive) => {
            let is_whole = check_limit(min, "Minimum boundary", wanted, format, path, errors);
            let (under, min) = beside(number, min, is_whole);
            if under == Some(Less) || (*exclusive && under == Some(Equal)) {
                let or = if *exclusive { "" } else { " or equal to" };
                errors.push(invalid(path, value(), &format!("should be greater than{or} {min}")));
            }
        }
        _ => {}
    }
}
