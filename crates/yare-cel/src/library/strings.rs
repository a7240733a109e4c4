//! Functions on strings. Positions count code points.

use super::{Cost, Function, row, standard::never};
use crate::{error::EvalError, value::Value};

type Res<'a> = Result<Value<'a>, EvalError>;

const WALK: Cost = Cost::Walk { times: 1.0, sized: true };

pub(super) const FUNCTIONS: &[Function] = &[
    row("charAt", Cost::Standard, char_at, &[("string_char_at_int", ".string, int -> string")]),
    row(
        "indexOf",
        Cost::ListWalk,
        index_of,
        &[
            ("string_index_of_string", ".string, string -> int"),
            ("string_index_of_string_int", ".string, string, int -> int"),
        ],
    ),
    row(
        "lastIndexOf",
        Cost::ListWalk,
        last_index_of,
        &[
            ("string_last_index_of_string", ".string, string -> int"),
            ("string_last_index_of_string_int", ".string, string, int -> int"),
        ],
    ),
    row("lowerAscii", WALK, lower_ascii, &[("string_lower_ascii", ".string -> string")]),
    row(
        "replace",
        Cost::Replace,
        replace,
        &[
            ("string_replace_string_string", ".string, string, string -> string"),
            ("string_replace_string_string_int", ".string, string, string, int -> string"),
        ],
    ),
    row(
        "split",
        Cost::Split,
        split,
        &[
            ("string_split_string", ".string, string -> list(string)"),
            ("string_split_string_int", ".string, string, int -> list(string)"),
        ],
    ),
    row(
        "substring",
        WALK,
        substring,
        &[
            ("string_substring_int", ".string, int -> string"),
            ("string_substring_int_int", ".string, int, int -> string"),
        ],
    ),
    row("trim", WALK, trim, &[("string_trim", ".string -> string")]),
    row("upperAscii", WALK, upper_ascii, &[("string_upper_ascii", ".string -> string")]),
    row(
        "format",
        Cost::Standard,
        super::strings_format::format,
        &[("string_format", ".string, list(dyn) -> string")],
    ),
    row("strings.quote", Cost::Standard, quote, &[("strings_quote", "string -> string")]),
    row(
        "join",
        Cost::Join,
        join,
        &[("list_join", ".list(string) -> string"), ("list_join_string", ".list(string), string -> string")],
    ),
];

pub(super) const JSON_PATCH: &[Function] = &[row(
    "jsonpatch.escapeKey",
    WALK,
    escape_key,
    &[("string_jsonpatch_escapeKey_string", "string -> string")],
)];

/// The longest string that a function makes, in bytes; a request cannot hold more either.
const MAX_STRING_BYTES: usize = 64 << 20;

fn out_of_range(index: i64) -> EvalError {
    EvalError::failed(format!("index out of range: {index}"))
}

/// The byte offset of the code point at an index, which may be the one behind the last.
fn byte_offset(text: &str, index: i64) -> Option<usize> {
    let index = usize::try_from(index).ok()?;
    if text.is_ascii() {
        return (index <= text.len()).then_some(index);
    }
    text.char_indices().map(|(offset, _)| offset).chain([text.len()]).nth(index)
}

fn char_at<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let [Value::String(text), Value::Int(index)] = args else { return never(args) };
    let offset = byte_offset(text, *index).ok_or_else(|| out_of_range(*index))?;
    let found: String = text[offset..].chars().take(1).collect();
    Ok(Value::string(found))
}

fn length(text: &str) -> i64 {
    text.chars().count() as i64
}

fn index_of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, part, from) = match args {
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, *from),
        _ => return never(args),
    };
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    if from < 0 {
        return Err(out_of_range(from));
    }
    let Some(offset) = byte_offset(text, from) else { return Ok(Value::Int(-1)) };
    let found = text[offset..].find(&**part).map(|at| from + length(&text[offset..offset + at]));
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn last_index_of<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, part, until) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(until)] => (text, part, Some(*until)),
        _ => return never(args),
    };
    if part.is_empty() {
        return Ok(Value::Int(until.unwrap_or_else(|| length(text))));
    }
    let mut end = text.len();
    if let Some(until) = until {
        if until < 0 {
            return Err(out_of_range(until));
        }
        if until >= length(text) {
            return Ok(Value::Int(-1));
        }
        // The match may begin at `until` and go on behind it.
        let start = byte_offset(text, until).unwrap_or(end);
        let rest =
            text[start..].char_indices().nth(part.chars().count()).map_or(end, |(offset, _)| start + offset);
        end = rest;
    }
    let found = text[..end].rfind(&**part).map(|at| length(&text[..at]));
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn lower_ascii<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(text.to_ascii_lowercase())),
        _ => never(args),
    }
}

fn upper_ascii<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(text.to_ascii_uppercase())),
        _ => never(args),
    }
}

fn replace<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, from, to, limit) = match args {
        [Value::String(text), Value::String(from), Value::String(to)] => (text, from, to, -1),
        [Value::String(text), Value::String(from), Value::String(to), Value::Int(limit)] => {
            (text, from, to, *limit)
        }
        _ => return never(args),
    };
    let times = usize::try_from(limit).unwrap_or(usize::MAX);
    // Replacing nothing puts the replacement before every character and at the end.
    let possible = if from.is_empty() { text.chars().count() + 1 } else { text.len() / from.len() };
    if possible.min(times).saturating_mul(to.len()) > MAX_STRING_BYTES {
        return Err(EvalError::CostLimit);
    }
    let replaced = match usize::try_from(limit) {
        Ok(times) => text.replacen(&**from, to, times),
        Err(_) => text.replace(&**from, to),
    };
    Ok(Value::string(replaced))
}

fn split<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return never(args),
    };
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    let value = |part: &str| Value::string(part);
    let parts: Vec<Value<'a>> = if count == 0 {
        vec![]
    } else if separator.is_empty() {
        // Into characters; the last part has all that are left.
        let mut parts = Vec::new();
        let mut rest = &**text;
        while let Some(c) = rest.chars().next() {
            if parts.len() + 1 == count {
                break;
            }
            let (head, tail) = rest.split_at(c.len_utf8());
            parts.push(value(head));
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(value(rest));
        }
        parts
    } else {
        text.splitn(count, &**separator).map(value).collect()
    };
    Ok(Value::list(parts))
}

fn substring<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return never(args),
    };
    if let Some(end) = end
        && start > end
    {
        return Err(EvalError::failed(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let from = byte_offset(text, start).ok_or_else(|| out_of_range(start))?;
    let to = match end {
        Some(end) => byte_offset(text, end).ok_or_else(|| out_of_range(end))?,
        None => text.len(),
    };
    Ok(Value::string(&text[from..to]))
}

fn trim<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(text.trim())),
        _ => never(args),
    }
}

/// Between double quotes, with escapes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

fn quote<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(quoted(text))),
        _ => never(args),
    }
}

fn join<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    let (list, separator) = match &*args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return never(args),
    };
    // Of a list, upstream takes the first item for what all are.
    if !matches!(list.get(0), None | Some(Ok(Value::String(_)))) {
        return never(args);
    }
    let mut joined = String::new();
    for (index, item) in list.values()?.into_iter().enumerate() {
        if index > 0 {
            joined.push_str(separator);
        }
        match item {
            Value::String(text) => joined.push_str(&text),
            other => return Err(EvalError::failed(format!("join: invalid input: {other}"))),
        }
        if joined.len() > MAX_STRING_BYTES {
            return Err(EvalError::CostLimit);
        }
    }
    Ok(Value::string(joined))
}

fn escape_key<'a>(args: &mut [Value<'a>]) -> Res<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(text.replace('~', "~0").replace('/', "~1"))),
        _ => never(args),
    }
}
