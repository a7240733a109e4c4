//! Semantic versions (semver.org, 2.0.0).

use std::{any::Any, cmp::Ordering};

use super::{Cost, Function, constant, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

const PARSE: Cost = Cost::Walk { times: 1.0, sized: false };

pub(super) const FUNCTIONS: &[Function] = &[
    constant(
        "semver",
        PARSE,
        semver,
        &[
            ("string_to_semver", "string -> kubernetes.Semver"),
            ("string_bool_to_semver", "string, bool -> kubernetes.Semver"),
        ],
    ),
    row(
        "isSemver",
        PARSE,
        is_semver,
        &[("is_semver_string", "string -> bool"), ("is_semver_string_bool", "string, bool -> bool")],
    ),
    row(
        "isGreaterThan",
        Cost::Unit,
        is_greater_than,
        &[("semver_is_greater_than", ".kubernetes.Semver, kubernetes.Semver -> bool")],
    ),
    row(
        "isLessThan",
        Cost::Unit,
        is_less_than,
        &[("semver_is_less_than", ".kubernetes.Semver, kubernetes.Semver -> bool")],
    ),
    row(
        "compareTo",
        Cost::Unit,
        compare_to,
        &[("semver_compare_to", ".kubernetes.Semver, kubernetes.Semver -> int")],
    ),
    row("major", Cost::Unit, major, &[("semver_major", ".kubernetes.Semver -> int")]),
    row("minor", Cost::Unit, minor, &[("semver_minor", ".kubernetes.Semver -> int")]),
    row("patch", Cost::Unit, patch, &[("semver_patch", ".kubernetes.Semver -> int")]),
];

/// A part of a pre-release. Numbers come before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(Box<str>),
}

#[derive(Clone, Debug)]
struct Semver {
    core: [u64; 3],
    pre: Vec<Identifier>,
}

impl Semver {
    fn order(&self, other: &Semver) -> Ordering {
        self.core.cmp(&other.core).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            // A pre-release comes before its release.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        })
    }
}

impl OpaqueValue for Semver {
    fn type_name(&self) -> &'static str {
        "kubernetes.Semver"
    }
    fn equals(&self, other: &dyn OpaqueValue) -> Option<bool> {
        other.as_any().downcast_ref::<Semver>().map(|other| self.order(other).is_eq())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn number(text: &str, what: &str) -> Result<u64, String> {
    let lower = what.to_lowercase();
    if !digits(text) || text.is_empty() {
        return Err(format!("Invalid character(s) found in {lower} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!("{what} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
}

fn identifier(text: &str) -> Result<Identifier, String> {
    if text.is_empty() {
        return Err("Prerelease is empty".into());
    }
    if digits(text) {
        if text.len() > 1 && text.starts_with('0') {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {text:?}"));
        }
        let value =
            text.parse().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))?;
        return Ok(Identifier::Number(value));
    }
    if word(text) {
        return Ok(Identifier::Word(text.into()));
    }
    Err(format!("Invalid character(s) found in prerelease {text:?}"))
}

fn parse(text: &str) -> Result<Semver, String> {
    if text.is_empty() {
        return Err("Version string empty".into());
    }
    let parts: Vec<&str> = text.splitn(3, '.').collect();
    let [major, minor, rest] = parts[..] else {
        return Err("No Major.Minor.Patch elements found".into());
    };
    let (major, minor) = (number(major, "Major")?, number(minor, "Minor")?);
    let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
    let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
    let patch = number(patch, "Patch")?;
    let pre = match pre {
        Some(pre) => pre.split('.').map(identifier).collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    for part in build.into_iter().flat_map(|build| build.split('.')) {
        if part.is_empty() {
            return Err("Build meta data is empty".into());
        }
        if !word(part) {
            return Err(format!("Invalid character(s) found in build meta data {part:?}"));
        }
    }
    Ok(Semver { core: [major, minor, patch], pre })
}

/// Takes off a `v` and leading zeros, and fills up what is missing.
fn normalize(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| {
            if part.len() <= 1 {
                return part.to_owned();
            }
            let trimmed = part.trim_start_matches('0');
            if trimmed.starts_with(|c: char| c.is_ascii_digit()) {
                trimmed.to_owned()
            } else {
                format!("0{trimmed}")
            }
        })
        .collect();
    if parts.len() < 3 {
        if parts.last().is_some_and(|part| part.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".into());
        }
        parts.resize(3, "0".into());
    }
    Ok(parts.join("."))
}

fn read(args: &[Value<'_>]) -> Result<Result<Semver, String>, EvalError> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Ok(parse(text)),
        [Value::String(text), Value::Bool(true)] => Ok(normalize(text).and_then(|text| parse(&text))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A version that does not come from an expression.
pub(crate) fn value<'a>(text: &str) -> Result<Value<'a>, String> {
    parse(text).map(Value::opaque)
}

fn semver<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    read(args)?.map(Value::opaque).map_err(EvalError::failed)
}

fn is_semver<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(read(args)?.is_ok()))
}

fn own<'v>(value: &'v Value<'_>) -> Result<&'v Semver, EvalError> {
    value.downcast::<Semver>().ok_or(EvalError::NoSuchOverload)
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(own(&args[0])?.order(own(&args[1])?))
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

fn core<'a>(args: &[Value<'a>], index: usize) -> Res<'a> {
    Ok(Value::Int(own(&args[0])?.core[index] as i64))
}

fn major<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    core(args, 0)
}

fn minor<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    core(args, 1)
}

fn patch<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    if args.len() == 1 { core(args, 2) } else { never(args) }
}
