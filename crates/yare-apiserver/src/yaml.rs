//! JSON values as YAML in block style, as `sigs.k8s.io/yaml` writes them: keys sorted, strings quoted only
//! where they would read as something else.

use serde_json::Value;

/// The value as one YAML document.
pub fn emit(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => array(value, 0, &mut out),
        _ => {
            scalar(value, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn indent(depth: usize, out: &mut String) {
    for _ in 0..depth {
        out.push_str("  ");
    }
}

fn object(value: &Value, depth: usize, out: &mut String) {
    for (i, (key, value)) in value.as_object().into_iter().flatten().enumerate() {
        // The first key of a list's item stands behind its dash.
        if i > 0 || !out.ends_with("- ") {
            indent(depth, out);
        }
        string(key, depth, out);
        out.push(':');
        member(value, depth, out);
    }
}

fn member(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            object(value, depth + 1, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            array(value, depth, out);
        }
        _ => {
            out.push(' ');
            scalar(value, depth, out);
            out.push('\n');
        }
    }
}

fn array(value: &Value, depth: usize, out: &mut String) {
    for item in value.as_array().into_iter().flatten() {
        indent(depth, out);
        match item {
            Value::Object(map) if !map.is_empty() => {
                out.push_str("- ");
                object(item, depth + 1, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push_str("-\n");
                array(item, depth + 1, out);
            }
            _ => {
                out.push_str("- ");
                scalar(item, depth, out);
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::String(text) => string(text, depth, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

fn string(text: &str, depth: usize, out: &mut String) {
    let block = text.contains('\n')
        && !text.chars().any(|c| c.is_control() && c != '\n')
        && !text.starts_with([' ', '\n'])
        && !text.lines().any(|l| l.ends_with(' '));
    if block {
        let chomp = if !text.ends_with('\n') {
            "|-"
        } else if text.ends_with("\n\n") {
            "|+"
        } else {
            "|"
        };
        out.push_str(chomp);
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                indent(depth + 1, out);
                out.push_str(line);
            }
        }
        return;
    }
    if is_plain(text) {
        out.push_str(text);
    } else {
        // JSON strings are YAML's double-quoted strings.
        out.push_str(&Value::from(text).to_string());
    }
}

/// Whether the text reads back as the same string without quotes.
fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let reserved = matches!(
        text.to_ascii_lowercase().as_str(),
        "null"
            | "~"
            | "true"
            | "false"
            | "yes"
            | "no"
            | "on"
            | "off"
            | "y"
            | "n"
            | ".inf"
            | "-.inf"
            | ".nan"
            | "<<"
            | "="
    );
    let numeric = first.is_ascii_digit() || matches!(first, '-' | '+' | '.');
    let looks_numeric = numeric
        && (text.parse::<f64>().is_ok()
            || text.chars().all(|c| {
                c.is_ascii_hexdigit() || matches!(c, '.' | '-' | '+' | ':' | '_' | 'x' | 'o' | 'T' | 'Z')
            }));
    !reserved
        && !looks_numeric
        && !matches!(
            first,
            '!' | '&'
                | '*'
                | '?'
                | '|'
                | '>'
                | '@'
                | '`'
                | '%'
                | '{'
                | '}'
                | '['
                | ']'
                | ','
                | '#'
                | '\''
                | '"'
                | ' '
                | ':'
        )
        && !(first == '-' && (text.len() == 1 || text.starts_with("- ")))
        && !text.starts_with("---")
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_back() {
        let value = json!({
            "a": {"b": [1, "1", "x: y", "", "true", {"k": "v", "l": []}, [2, [3]]], "e": {}},
            "t": "two\nlines\n", "u": "no\nend", "v": "-", "w": "2026-01-02", "x": " lead", "n": null, "f": 1.5,
            "s": "# no comment", "i": "0x1F", "c": "tab\there", "d": "trail \nx", "p": "10.0.0.1", "q": "a:b",
        });
        let text = emit(&value);
        assert_eq!(crate::codec::from_yaml(text.as_bytes()).unwrap(), value, "{text}");
    }
}
