//! `fieldPath` of a validation rule: which field below the rule's own an error is about.

use serde_json::Value;

use super::{AdditionalProperties, Keywords};

/// What `text` (`.spec.x`, `['a.b'].c`) leads to below `schema`, as messages write it. Only fields and
/// entries of maps can be named.
///
/// # Errors
/// It is no path, or leads nowhere.
pub fn field_path(schema: &Value, text: &str) -> Result<String, String> {
    resolve(schema, text, true).map(|(path, _)| path)
}

/// [`field_path`], with the schema that the path leads to; `None`: any value may be there. `brackets`: names may stand
/// in them.
///
/// # Errors
/// It is no path, or leads nowhere.
pub fn resolve<'s>(
    schema: &'s Value,
    text: &str,
    brackets: bool,
) -> Result<(String, Option<&'s Value>), String> {
    let mut at = Some(Keywords(schema));
    let mut out = String::new();
    let mut rest = text;
    let no_field = || "does not refer to a valid field".to_owned();
    while let Some(token) = token(&mut rest) {
        let mut next = || token_or_end(&mut rest);
        let name = match token {
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = next()?;
                let inner = quoted
                    .strip_prefix('\'')
                    .and_then(|inner| inner.strip_suffix('\''))
                    .ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let name = unescape(inner)?;
                match next()? {
                    "]" => name,
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            "." => next()?.to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let here = at.ok_or_else(no_field)?;
        if here.properties().next().is_some() {
            at = Some(Keywords(here.property(&name).ok_or_else(no_field)?));
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        } else {
            at = match here.additional() {
                AdditionalProperties::Absent => return Err(no_field()),
                AdditionalProperties::Schema(values) => Some(Keywords(values)),
                AdditionalProperties::Bool(_) => None,
            };
            out.push('[');
            out.push_str(&name);
            out.push(']');
        }
    }
    Ok((out, at.map(|schema| schema.0)))
}

fn token_or_end<'t>(rest: &mut &'t str) -> Result<&'t str, String> {
    token(rest).ok_or_else(|| "unexpected end of JSON path".to_owned())
}

/// A delimiter, a quoted text with its quotes, or what stands before the next delimiter.
fn token<'t>(rest: &mut &'t str) -> Option<&'t str> {
    let text = *rest;
    let first = text.chars().next()?;
    let end = match first {
        '.' | '[' | ']' => 1,
        '\'' => {
            let bytes = text.as_bytes();
            let closing = (1..bytes.len()).find(|&i| bytes[i] == b'\'' && bytes[i - 1] != b'\\');
            closing.map_or(text.len(), |i| i + 1)
        }
        _ => text.find(['.', '[', ']']).unwrap_or(text.len()),
    };
    let (token, after) = text.split_at(end);
    *rest = after;
    Some(token)
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(same @ ('\'' | '\\')) => same,
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("invalid string literal: invalid escape char \\{other}"));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::field_path;

    #[test]
    fn paths() {
        let schema = json!({"properties": {
            "spec": {"properties": {"a.b": {"type": "string"}, "map": {"additionalProperties": {"properties": {"x": {}}}}}},
            "it's": {"type": "string"},
            "list": {"type": "array", "items": {"properties": {"x": {}}}},
        }});
        for (text, want) in [
            (".spec", Ok("spec")),
            (".spec['a.b']", Ok("spec.a.b")),
            ("['spec'].map.key.x", Ok("spec.map[key].x")),
            (".spec.map['a\\nb']", Ok("spec.map[a\nb]")),
            ("['it\\'s']", Ok("it's")),
            (".nowhere", Err("does not refer to a valid field")),
            (".list.x", Err("does not refer to a valid field")),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec.", Err("unexpected end of JSON path")),
            (".list[0]", Err("expected single quoted string but got 0")),
            ("['spec'", Err("unexpected end of JSON path")),
            ("['spec'x", Err("expected ] but got x")),
            ("['\\q']", Err("invalid string literal: invalid escape char \\q")),
        ] {
            assert_eq!(field_path(&schema, text), want.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
