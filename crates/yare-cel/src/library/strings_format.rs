//! `"%s".format([…])`: clauses, what they take, and how they write it.

use super::{standard::never, strings::quoted};
use crate::{
    ast::{Ast, Expr, Id, Kind},
    error::EvalError,
    number::format_double,
    types::Type,
    value::{Key, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

const DEFAULT_PRECISION: usize = 6;
/// More decimals than any double has.
const MAX_PRECISION: usize = 1_000;

/// A part of a format string.
#[derive(Debug, PartialEq)]
enum Part<'t> {
    Text(&'t str),
    Percent,
    Clause(Clause),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Clause {
    String,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

fn unparsable(message: &str) -> String {
    format!("could not parse formatting clause: {message}")
}

/// The parts of a format string, up to the first mistake.
fn parts(text: &str) -> impl Iterator<Item = Result<Part<'_>, String>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(after) = rest.strip_prefix('%') else {
            let (head, tail) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
            rest = tail;
            return Some(Ok(Part::Text(head)));
        };
        if let Some(after) = after.strip_prefix('%') {
            rest = after;
            return Some(Ok(Part::Percent));
        }
        let clause = clause(after);
        rest = clause.as_ref().map_or("", |(_, rest)| rest);
        Some(clause.map(|(clause, _)| Part::Clause(clause)))
    })
}

fn clause(text: &str) -> Result<(Clause, &str), String> {
    let mut rest = text;
    let mut precision = DEFAULT_PRECISION;
    if rest.is_empty() {
        return Err("unexpected end of string".into());
    }
    if let Some(digits) = rest.strip_prefix('.') {
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        if length == digits.len() {
            return Err(unparsable(
                "error while parsing precision: could not find end of precision specifier",
            ));
        }
        let number = &digits[..length];
        precision = number.parse().ok().filter(|precision| *precision <= MAX_PRECISION).ok_or_else(|| {
            unparsable(&format!(
                "error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing \
                 {number:?}: invalid syntax"
            ))
        })?;
        rest = &digits[length..];
    }
    let letter = rest.chars().next().unwrap_or('%');
    let clause = match letter {
        's' => Clause::String,
        'd' => Clause::Decimal,
        'f' => Clause::Fixed(precision),
        'e' => Clause::Scientific(precision),
        'b' => Clause::Binary,
        'x' => Clause::Hex { upper: false },
        'X' => Clause::Hex { upper: true },
        'o' => Clause::Octal,
        other => return Err(unparsable(&format!("unrecognized formatting clause \"{other}\""))),
    };
    Ok((clause, &rest[letter.len_utf8()..]))
}

impl Clause {
    fn refuse(self, name: &str) -> String {
        let takes = match self {
            Clause::Binary => "only integers and bools can be formatted as binary",
            Clause::Decimal => "decimal clause can only be used on integers",
            Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
            Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
            Clause::Octal => "octal clause can only be used on integers",
            Clause::Scientific(_) => "scientific clause can only be used on doubles",
            Clause::String => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                 durations, and timestamps"
            }
        };
        format!("error during formatting: {takes}, was given {name}")
    }

    fn takes(self, of: &Type) -> bool {
        let int = matches!(of, Type::Int | Type::Uint);
        match self {
            _ if of.is_dyn() => true,
            Clause::Decimal | Clause::Octal => int,
            Clause::Fixed(_) | Clause::Scientific(_) => matches!(of, Type::Double | Type::String),
            Clause::Binary => int || *of == Type::Bool,
            Clause::Hex { .. } => int || matches!(of, Type::String | Type::Bytes),
            Clause::String => !matches!(of, Type::Object(_) | Type::Opaque(..)),
        }
    }

    fn write(self, value: &Value<'_>) -> Result<String, String> {
        let refuse = || self.refuse(value.type_name());
        Ok(match (self, value) {
            (Clause::String, _) if is_binary(value) => {
                return Err(
                    "error during formatting: could not convert argument \"invalid UTF-8 in bytes, cannot \
                            convert to string\" to string"
                        .to_owned(),
                );
            }
            (Clause::String, _) => as_string(value).ok_or_else(refuse)?,
            (Clause::Decimal, Value::Int(value)) => value.to_string(),
            (Clause::Decimal, Value::Uint(value)) => value.to_string(),
            (Clause::Fixed(precision), _) => {
                let number = as_double(value).ok_or_else(refuse)?;
                if number.is_finite() { grouped(&format!("{number:.precision$}")) } else { unusual(number) }
            }
            (Clause::Scientific(width), _) => {
                let number = as_double(value).ok_or_else(refuse)?;
                // Upstream takes the precision for a width.
                if number.is_finite() { format!("{:>width$}", scientific(number)) } else { unusual(number) }
            }
            (Clause::Binary, Value::Bool(value)) => u8::from(*value).to_string(),
            (Clause::Binary, _) => radix(value, |n| format!("{n:b}")).ok_or_else(refuse)?,
            (Clause::Octal, _) => radix(value, |n| format!("{n:o}")).ok_or_else(refuse)?,
            (Clause::Hex { upper }, _) => {
                let hex = match value {
                    Value::String(text) => hex(text.as_bytes()),
                    Value::Bytes(bytes) => hex(bytes),
                    other => radix(other, |n| format!("{n:x}")).ok_or_else(refuse)?,
                };
                if upper { hex.to_uppercase() } else { hex }
            }
            _ => return Err(refuse()),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn radix(value: &Value<'_>, write: impl Fn(u64) -> String) -> Option<String> {
    match value {
        Value::Int(value) if *value < 0 => Some(format!("-{}", write(value.unsigned_abs()))),
        Value::Int(value) => Some(write(value.unsigned_abs())),
        Value::Uint(value) => Some(write(*value)),
        _ => None,
    }
}

fn as_double(value: &Value<'_>) -> Option<f64> {
    match value {
        // Zero is written without a sign.
        Value::Double(value) => Some(*value + 0.0),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn unusual(number: f64) -> String {
    if number.is_nan() {
        "NaN".into()
    } else if number > 0.0 {
        "∞".into()
    } else {
        "-∞".into()
    }
}

/// With a comma between thousands, as the English locale has it.
fn grouped(number: &str) -> String {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (whole, fraction) = number.find('.').map_or((number, ""), |dot| number.split_at(dot));
    let mut out = sign.to_owned();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// `1.500000×10⁰³`, as the English locale has it. Upstream always writes six decimals.
fn scientific(number: f64) -> String {
    let text = format!("{number:.6e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |rest| ("⁻", rest));
    let raised: String = format!("{exponent:0>2}")
        .chars()
        .map(|digit| match digit {
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            '9' => '⁹',
            _ => '⁰',
        })
        .collect();
    format!("{digits}×10{sign}{raised}")
}

fn as_string(value: &Value<'_>) -> Option<String> {
    match value {
        Value::List(_) | Value::Map(_) => nested(value),
        Value::Struct(_) | Value::Optional(_) | Value::Opaque(_) | Value::Preserved(_) => None,
        other => Some(other.to_string()),
    }
}

/// Whether it is, or has in it, bytes that are no text.
fn is_binary(value: &Value<'_>) -> bool {
    match value {
        Value::Bytes(bytes) => std::str::from_utf8(bytes).is_err(),
        Value::List(list) => list.values().is_ok_and(|items| items.iter().any(is_binary)),
        Value::Map(map) => {
            map.keys().any(|key| matches!(map.find(&key.into()), Ok(Some(value)) if is_binary(&value)))
        }
        _ => false,
    }
}

/// A value within a list or map.
fn nested(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::String(text) => quoted(text),
        Value::Bytes(bytes) => format!("b{}", quoted(&String::from_utf8_lossy(bytes))),
        Value::Timestamp(time) => format!("timestamp(\"{time}\")"),
        Value::Duration(duration) => format!("duration(\"{duration}\")"),
        Value::Double(number) if !number.is_finite() => format!("\"{}\"", format_double(*number)),
        Value::Double(number) => format!("{number:.6}"),
        Value::List(list) => {
            let items: Option<Vec<String>> = list.values().ok()?.iter().map(nested).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for key in map.keys() {
                let written = match &key {
                    Key::String(text) => quoted(text),
                    other => other.to_string(),
                };
                let value = map.find(&key.into()).ok()??;
                entries.push(format!("{written}:{}", nested(&value)?));
            }
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        other => as_string(other)?,
    })
}

pub(super) fn format<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), Value::List(list)] = args else { return never(args) };
    let mut out = String::new();
    let mut index = 0;
    for part in parts(text) {
        match part.map_err(EvalError::failed)? {
            Part::Text(text) => out.push_str(text),
            Part::Percent => out.push('%'),
            Part::Clause(clause) => {
                let value = list
                    .get(index)
                    .ok_or_else(|| EvalError::failed(format!("index {index} out of range")))??;
                out.push_str(&clause.write(&value).map_err(EvalError::failed)?);
                index += 1;
            }
        }
    }
    Ok(Value::string(out))
}

/// Checks a constant format against its list of arguments.
///
/// # Errors
/// The node that does not fit, if it is one of the arguments, and what is wrong.
pub(crate) fn check_format(text: &str, args: &[Expr], ast: &Ast) -> Result<(), (Option<Id>, String)> {
    let mut used = 0;
    for part in parts(text) {
        let Part::Clause(clause) = part.map_err(|message| (None, message))? else { continue };
        let arg = args.get(used).ok_or_else(|| (None, format!("index {used} out of range")))?;
        check_arg(clause, arg, ast)?;
        used += 1;
    }
    if args.len() > used {
        let message =
            format!("too many arguments supplied to string.format (expected {used}, got {})", args.len());
        return Err((None, message));
    }
    Ok(())
}

fn check_arg(clause: Clause, arg: &Expr, ast: &Ast) -> Result<(), (Option<Id>, String)> {
    let of = ast.type_of(arg);
    if !clause.takes(of) {
        return Err((Some(arg.id), clause.refuse(of.name())));
    }
    if clause == Clause::String {
        match &arg.kind {
            Kind::List { items, .. } => {
                for item in items {
                    check_arg(clause, item, ast)?;
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    check_arg(clause, &entry.key, ast)?;
                    check_arg(clause, &entry.value, ast)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}
