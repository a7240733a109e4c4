//! Numbers against what a schema says of them, by the rules of upstream's validation: it compares as whole numbers what
//! Go read as such.

use serde_json::{Number, Value};

use super::{invalid, loose, shown};
use crate::{
    constraints::{JsonType, Rule},
    field::{FieldError, Path},
    goprint::GoFloat,
};

fn number_text(number: &Number) -> String {
    match number.as_f64() {
        Some(x) if number.is_f64() => GoFloat(x).to_string(),
        _ => number.to_string(),
    }
}

fn compare(a: &Number, b: &Number) -> Option<std::cmp::Ordering> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

fn is_multiple(number: &Number, factor: &Number) -> bool {
    match (number.as_i64(), factor.as_i64()) {
        (Some(n), Some(f)) if f != 0 => n.checked_rem(f) == Some(0),
        _ => {
            let (Some(n), Some(f)) = (number.as_f64(), factor.as_f64()) else { return false };
            let times = if f < 1.0 { 1.0 / f * n } else { n / f };
            // As near to a whole number as doubles get.
            (times - times.round()).abs() < 1e-9 * times.abs().max(1.0)
        }
    }
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

/// How a number stands to a limit. A whole number is compared with what of the limit is whole.
fn beside(number: &Number, limit: &Number, is_whole: bool) -> (Option<std::cmp::Ordering>, String) {
    match limit.as_f64().filter(|limit| is_whole && number.is_i64() && limit.fract() != 0.0) {
        Some(limit) => {
            let limit = Number::from(limit as i64);
            (compare(number, &limit), limit.to_string())
        }
        None => (compare(number, limit), number_text(limit)),
    }
}

pub(super) fn check_number(
    rule: &Rule,
    number: &Number,
    wanted: Option<JsonType>,
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
        Rule::MultipleOf(factor) if !is_multiple(number, factor) => {
            errors.push(invalid(path, value(), &format!("should be a multiple of {}", number_text(factor))));
        }
        Rule::Maximum(max, exclusive) => {
            let is_whole =
                wanted != Some(JsonType::Integer) || check_whole(max, "Maximum", None, path, errors);
            let (over, max) = beside(number, max, is_whole);
            if over == Some(Greater) || (*exclusive && over == Some(Equal)) {
                let or = if *exclusive { "" } else { " or equal to" };
                errors.push(invalid(path, value(), &format!("should be less than{or} {max}")));
            }
        }
        Rule::Minimum(min, exclusive) => {
            let is_whole =
                wanted != Some(JsonType::Integer) || check_whole(min, "Minimum", None, path, errors);
            let (under, min) = beside(number, min, is_whole);
            if under == Some(Less) || (*exclusive && under == Some(Equal)) {
                let or = if *exclusive { "" } else { " or equal to" };
                errors.push(invalid(path, value(), &format!("should be greater than{or} {min}")));
            }
        }
        _ => {}
    }
}
