//! How Go's `%v` and `%q` show values: several of upstream's messages carry values in that form, and
//! clients (and their tests) compare messages.

use std::fmt::{self, Write};

use serde_json::Value;

/// Displays a JSON value as Go's `%v` shows the decoded value: `map[a:1 b:[x y]]`, `<nil>`.
pub(crate) struct GoValue<'a>(pub &'a Value);

/// A JSON value as Go's `%v` shows the decoded value.
pub fn value(value: &Value) -> String {
    GoValue(value).to_string()
}

/// Displays an object as Go's `%v` does.
pub(crate) struct GoMap<'a>(pub &'a serde_json::Map<String, Value>);

/// Displays a list as Go's `%v` does.
pub(crate) struct GoList<'a>(pub &'a [Value]);

/// Displays a float as Go's `%v` does (shortest form, exponent from 1e6 on).
pub(crate) struct GoFloat(pub f64);

impl fmt::Display for GoValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Number(n) => match n.as_f64() {
                Some(x) if n.is_f64() => GoFloat(x).fmt(f),
                _ => write!(f, "{n}"),
            },
            Value::String(s) => f.write_str(s),
            Value::Array(items) => GoList(items).fmt(f),
            Value::Object(map) => GoMap(map).fmt(f),
        }
    }
}

/// Displays a JSON value as Go's `%s` shows the decoded value: what is no text says its type, `%!s(int64=1)`.
pub(crate) struct GoText<'a>(pub &'a Value);

impl fmt::Display for GoText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = |i: usize| if i == 0 { "" } else { " " };
        match self.0 {
            Value::Null => f.write_str("%!s(<nil>)"),
            Value::Bool(_) | Value::Number(_) => write!(f, "%!s({}={})", type_name(self.0), GoValue(self.0)),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                f.write_char('[')?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{}", space(i), GoText(item))?;
                }
                f.write_char(']')
            }
            Value::Object(map) => {
                f.write_str("map[")?;
                for (i, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{key}:{}", space(i), GoText(value))?;
                }
                f.write_char(']')
            }
        }
    }
}

/// Displays a JSON value as Go's `%#v` shows the decoded value: `map[string]interface {}{"a":1}`.
pub(crate) struct GoSyntax<'a>(pub &'a Value);

impl fmt::Display for GoSyntax<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = |i: usize| if i == 0 { "" } else { ", " };
        match self.0 {
            Value::Null => f.write_str("interface {}(nil)"),
            Value::String(text) => f.write_str(&quote(text)),
            Value::Bool(_) | Value::Number(_) => GoValue(self.0).fmt(f),
            Value::Array(items) => {
                f.write_str("[]interface {}{")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{}", comma(i), GoSyntax(item))?;
                }
                f.write_char('}')
            }
            Value::Object(map) => {
                f.write_str("map[string]interface {}{")?;
                for (i, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{}:{}", comma(i), quote(key), GoSyntax(value))?;
                }
                f.write_char('}')
            }
        }
    }
}

impl fmt::Display for GoMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("map[")?;
        for (i, (key, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{key}:{}", GoValue(value))?;
        }
        f.write_char(']')
    }
}

impl fmt::Display for GoList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (i, value) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}", GoValue(value))?;
        }
        f.write_char(']')
    }
}

impl fmt::Display for GoFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = self.0;
        let size = x.abs();
        if size != 0.0 && !(1e-4..1e6).contains(&size) {
            // Go writes at least two digits of exponent, and its sign.
            let text = format!("{x:e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            write!(f, "{mantissa}e{sign}{digits:0>2}")
        } else {
            write!(f, "{x}")
        }
    }
}

/// Text as Go's `%q` writes it: in quotes, with everything escaped that does not print.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let escaped = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{b}' => "\\v",
            c if prints(c) => {
                out.push(c);
                continue;
            }
            _ => "",
        };
        out.push_str(escaped);
        if escaped.is_empty() {
            // Writing to a string cannot fail.
            let _ = match u32::from(c) {
                code @ ..0x80 => write!(out, "\\x{code:02x}"),
                code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                code => write!(out, "\\U{code:08x}"),
            };
        }
    }
    out.push('"');
    out
}

/// Whether a character leaves a mark, or is the plain blank. Marks that combine with the letter before print.
pub fn prints(c: char) -> bool {
    match c {
        ' ' => true,
        c if c.is_ascii() => c.is_ascii_graphic(),
        c if c.is_control() || c.is_whitespace() => false,
        c => c.is_alphanumeric() || c.escape_debug().count() == 1 || is_combining(c),
    }
}

/// Combining marks, which Rust escapes for their own sake.
fn is_combining(c: char) -> bool {
    matches!(u32::from(c), 0x300..=0x36F | 0x483..=0x489 | 0x591..=0x5BD | 0x610..=0x61A | 0x64B..=0x65F
        | 0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x20D0..=0x20FF | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F)
}

/// The Go type name of a decoded JSON value, as `%T` shows it.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// What Go's JSON decoder calls such a value.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    }
}

/// What Go's JSON decoder says of a value that it cannot read into a type of the name `into`.
pub fn unreadable(value: &Value, into: &str) -> String {
    format!("json: cannot unmarshal {} into Go value of type {into}", json_kind(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_quoted_as_in_go() {
        for (text, want) in [
            ("plain", r#""plain""#),
            ("a \"b\" \\", r#""a \"b\" \\""#),
            ("\u{7}\u{8}\u{c}\n\r\t\u{b}", r#""\a\b\f\n\r\t\v""#),
            ("\0\u{1f}\u{7f}", r#""\x00\x1f\x7f""#),
            ("\u{85}\u{a0}\u{200b}\u{2028}", r#""\u0085\u00a0\u200b\u2028""#),
            ("\u{e0001}", r#""\U000e0001""#),
            ("日本 é e\u{301} 😀", "\"日本 é e\u{301} 😀\""),
        ] {
            assert_eq!(quote(text), want);
        }
    }

    #[test]
    fn values_print_as_in_go() {
        for (value, text) in [
            (json!(null), "<nil>"),
            (json!({"b": [1, "x", null], "a": {"c": true}}), "map[a:map[c:true] b:[1 x <nil>]]"),
            (json!(1.5), "1.5"),
            (json!(1e21), "1e+21"),
            (json!(0.00001), "1e-05"),
            (json!(2.0), "2"),
            (json!(999_999.5), "999999.5"),
            (json!(3e9), "3e+09"),
            (json!(-1_234_567.5), "-1.2345675e+06"),
        ] {
            assert_eq!(GoValue(&value).to_string(), text);
        }
        let mixed = json!({"a": [1, "x", null], "b": {"c": true, "d": 1.5}});
        let text = "map[a:[%!s(int64=1) x %!s(<nil>)] b:map[c:%!s(bool=true) d:%!s(float64=1.5)]]";
        assert_eq!(GoText(&mixed).to_string(), text);
    }
}
