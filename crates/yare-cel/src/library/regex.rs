//! Regular expressions: RE2's syntax, on an engine that is linear as RE2 is.

use std::{any::Any, borrow::Cow};

use regex::Regex;

use super::{Cost, Function, row, standard::never};
use crate::{
    error::EvalError,
    value::{OpaqueValue, Value},
};

type Res<'a> = Result<Value<'a>, EvalError>;

pub(super) const FUNCTIONS: &[Function] = &[
    row("find", Cost::Find, find, &[("string_find_string", ".string, string -> string")]),
    row(
        "findAll",
        Cost::Find,
        find_all,
        &[
            ("string_find_all_string", ".string, string -> list(string)"),
            ("string_find_all_string_int", ".string, string, int -> list(string)"),
        ],
    ),
];

/// A pattern that was compiled with the expression. It stands where the pattern stood.
#[derive(Debug)]
struct Pattern {
    regex: Regex,
    size: u64,
}

impl OpaqueValue for Pattern {
    fn type_name(&self) -> &'static str {
        "string"
    }
    fn equals(&self, _other: &dyn OpaqueValue) -> Option<bool> {
        None
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The most memory that one pattern may take.
const MAX_COMPILED_BYTES: usize = 4 << 20;

fn compile(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(&translate(pattern)?)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| {
            format!("error parsing regexp: {}", error.to_string().lines().last().unwrap_or_default())
        })
}

/// A constant pattern, ready to be applied.
pub(crate) fn precompile(pattern: &str) -> Result<Value<'static>, String> {
    let size = pattern.chars().count() as u64;
    Ok(Value::opaque(Pattern { regex: compile(pattern)?, size }))
}

/// How often a pattern may ask for something to be repeated.
const MAX_REPEAT: u32 = 1_000;

/// What may stand between braces after something that repeats: `2`, `2,`, `2,3`.
fn is_repetition(bounds: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match bounds.split_once(',') {
        Some((from, to)) => number(from) && (to.is_empty() || number(to)),
        None => number(bounds),
    }
}

/// From RE2's syntax to this engine's. Theirs has ASCII classes, plain brackets in classes, `\Q…\E`, and no
/// set operations.
fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    let mut class_start = false;
    let mut repeated = false;
    while let Some(c) = chars.next() {
        let at_start = std::mem::take(&mut class_start);
        let after_repetition = std::mem::take(&mut repeated);
        match c {
            '*' | '+' | '?' | '{' if !in_class => {
                let mut operator = String::from(c);
                if c == '{' {
                    let bounds: String = chars.clone().take_while(|c| *c != '}').collect();
                    if !is_repetition(&bounds) || !chars.clone().any(|c| c == '}') {
                        out.push_str(r"\{");
                        continue;
                    }
                    if bounds
                        .split(',')
                        .any(|bound| bound.parse::<u32>().is_ok_and(|bound| bound > MAX_REPEAT))
                    {
                        return Err(format!("error parsing regexp: invalid repeat count: `{{{bounds}}}`"));
                    }
                    operator.push_str(&bounds);
                    operator.push('}');
                    chars.nth(bounds.chars().count());
                }
                if after_repetition {
                    return Err(format!(
                        "error parsing regexp: invalid nested repetition operator: `{operator}`"
                    ));
                }
                if chars.peek() == Some(&'?') {
                    chars.next();
                    operator.push('?');
                }
                repeated = true;
                out.push_str(&operator);
            }
            '\\' => {
                let Some(escaped) = chars.next() else {
                    return Err("error parsing regexp: trailing backslash at end of expression: ``".into());
                };
                match (escaped, in_class) {
                    ('d', true) => out.push_str("0-9"),
                    ('w', true) => out.push_str("0-9A-Za-z_"),
                    ('s', true) => out.push_str(r"\t\n\x0c\r "),
                    ('d', false) => out.push_str("[0-9]"),
                    ('w', false) => out.push_str("[0-9A-Za-z_]"),
                    ('s', false) => out.push_str(r"[\t\n\x0c\r ]"),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('S', _) => out.push_str(r"[^\t\n\x0c\r ]"),
                    ('b', false) => out.push_str(r"(?-u:\b)"),
                    ('B', false) => out.push_str(r"(?-u:\B)"),
                    ('Q', false) => {
                        let mut literal = String::new();
                        while let Some(c) = chars.next() {
                            if c == '\\' && chars.peek() == Some(&'E') {
                                chars.next();
                                break;
                            }
                            literal.push(c);
                        }
                        out.push_str(&regex::escape(&literal));
                    }
                    // Octal: up to three digits from 0; others would be references back, which RE2 has not.
                    ('0', _) => {
                        let mut code = 0;
                        let mut digits = 0;
                        while digits < 2 {
                            let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                            chars.next();
                            code = code * 8 + digit;
                            digits += 1;
                        }
                        out.push_str(&format!(r"\x{{{code:x}}}"));
                    }
                    ('<' | '>' | 'Z' | 'h' | 'H' | 'R' | 'X' | 'K' | 'G', _) => {
                        return Err(format!("error parsing regexp: invalid escape sequence: `\\{escaped}`"));
                    }
                    (other, _) => {
                        out.push('\\');
                        out.push(other);
                    }
                }
            }
            '[' if !in_class => {
                in_class = true;
                class_start = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
            }
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' => out.push_str(r"\["),
            ']' if in_class && at_start => out.push_str(r"\]"),
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && chars.peek() == Some(&'-') => out.push_str(r"\-"),
            other => out.push(other),
        }
    }
    Ok(out)
}

/// The pattern of a call: compiled before, or now.
fn pattern<'v>(value: &'v Value<'_>) -> Result<Option<Cow<'v, Regex>>, EvalError> {
    if let Some(pattern) = value.downcast::<Pattern>() {
        return Ok(Some(Cow::Borrowed(&pattern.regex)));
    }
    match value.as_str() {
        Some(text) => Ok(Some(Cow::Owned(compile(text).map_err(EvalError::failed)?))),
        None => Ok(None),
    }
}

pub(super) fn matches<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), by] = args else { return never(args) };
    match pattern(by)? {
        Some(regex) => Ok(Value::Bool(regex.is_match(text))),
        None => Err(EvalError::no_such_overload()),
    }
}

fn illegal(error: EvalError) -> EvalError {
    EvalError::failed(format!("Illegal regex: {error}"))
}

fn find<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), by] = args else { return never(args) };
    match pattern(by).map_err(illegal)? {
        Some(regex) => Ok(Value::string(regex.find(text).map_or("", |found| found.as_str()))),
        None => Err(EvalError::no_such_overload()),
    }
}

fn find_all<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, by, limit) = match &*args {
        [Value::String(text), by] => (text, by, -1),
        [Value::String(text), by, Value::Int(limit)] => (text, by, *limit),
        _ => return never(args),
    };
    let Some(regex) = pattern(by).map_err(illegal)? else { return Err(EvalError::no_such_overload()) };
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Value::list(regex.find_iter(text).take(count).map(|found| Value::string(found.as_str())).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_re2() {
        for (pattern, text, matches) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "१२३", false),
            (r"^\w+$", "é", false),
            (r"^[\w-]+$", "a-b_1", true),
            (r"^[^\s]+$", "ab", true),
            (r"^[]a]+$", "]a", true),
            (r"^[[a]+$", "[a", true),
            (r"^[a&&b]+$", "&ab", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^\pL+$", "é", true),
            (r"^[\D]+$", "ab", true),
            (r"^a{2,3}$", "aaa", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^\x41$", "A", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^a+?b??$", "aab", true),
        ] {
            match compile(pattern) {
                Ok(regex) => assert_eq!(regex.is_match(text), matches, "{pattern} {text}"),
                Err(error) => assert!(!matches, "{pattern}: {error}"),
            }
        }
        for bad in ["(", "[a", "a**", "a{1001}", r"\", r"(?=a)", r"\8"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
