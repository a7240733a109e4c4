//! A JSON reader that fails with the words of Go's `encoding/json`.
//!
//! In: bytes. Out: tokens on demand; the caller walks them against a type or into a free value. Strings
//! with invalid UTF-8 are repaired with U+FFFD, as Go does.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use super::{DecodeError, MAX_DEPTH, Source, json_type};

/// Reads tokens from JSON text.
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    pos: usize,
    depth: usize,
}

pub(crate) type Outcome<T> = Result<T, DecodeError>;

impl<'a> Reader<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { data, pos: 0, depth: 0 }
    }

    /// An error about the byte at hand.
    pub(super) fn odd<T>(&self, context: &str) -> Outcome<T> {
        let Some(&b) = self.data.get(self.pos) else {
            return Err(DecodeError::Syntax("unexpected end of JSON input".into()));
        };
        let shown = match b {
            b'\'' => r"'\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            b'\\' => r"'\\'".to_owned(),
            0x07 => r"'\a'".to_owned(),
            0x08 => r"'\b'".to_owned(),
            0x0b => r"'\v'".to_owned(),
            0x0c => r"'\f'".to_owned(),
            b'\n' => r"'\n'".to_owned(),
            b'\r' => r"'\r'".to_owned(),
            b'\t' => r"'\t'".to_owned(),
            0x20..=0x7e => format!("'{}'", char::from(b)),
            0x00..=0x1f | 0x7f => format!("'\\x{b:02x}'"),
            // Go shows the byte as if it were a code point.
            0x80..=0x9f => format!("'\\u00{b:02x}'"),
            0xa0..=0xff => format!("'{}'", char::from(b)),
        };
        Err(DecodeError::Syntax(format!("invalid character {shown} {context}")))
    }

    fn enter(&mut self) -> Outcome<()> {
        self.pos += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(DecodeError::Depth) } else { Ok(()) }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Outcome<()> {
        let b = match self.data.get(self.pos) {
            Some(b @ (b'"' | b'\\' | b'/')) => *b,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                self.pos += 1;
                let unit = self.hex4()?;
                let c = match unit {
                    0xd800..=0xdbff => self.low_surrogate(unit)?,
                    unit => char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER),
                };
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return self.odd("in string escape code"),
        };
        out.push(b);
        self.pos += 1;
        Ok(())
    }

    fn hex4(&mut self) -> Outcome<u32> {
        let mut value = 0;
        for _ in 0..4 {
            let Some(digit) = self.data.get(self.pos).and_then(|b| char::from(*b).to_digit(16)) else {
                return self.odd("in \\u hexadecimal character escape");
            };
            value = value * 16 + digit;
            self.pos += 1;
        }
        Ok(value)
    }

    /// What a high surrogate becomes: with its low half one character, alone U+FFFD.
    fn low_surrogate(&mut self, high: u32) -> Outcome<char> {
        if !self.data[self.pos..].starts_with(b"\\u") {
            return Ok(char::REPLACEMENT_CHARACTER);
        }
        let before = self.pos;
        self.pos += 2;
        let low = self.hex4()?;
        if !(0xdc00..=0xdfff).contains(&low) {
            self.pos = before;
            return Ok(char::REPLACEMENT_CHARACTER);
        }
        let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn digits(&mut self) {
        while matches!(self.data.get(self.pos), Some(b'0'..=b'9')) {
            self.pos += 1;
        }
    }
}

impl<'a> Source<'a> for Reader<'a> {
    const NAME: &'static str = "json";

    fn found(&self, first: Option<u8>) -> &'static str {
        json_type(first)
    }

    fn base64(&mut self) -> Outcome<Option<Cow<'a, str>>> {
        self.string().map(Some)
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(&b) = self.data.get(self.pos) {
            if !matches!(b, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(b);
            }
            self.pos += 1;
        }
        None
    }

    fn end(&mut self) -> Outcome<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.odd("after top-level value"),
        }
    }

    fn begin_object(&mut self) -> Outcome<()> {
        self.enter()
    }

    fn next_key(&mut self, first: bool) -> Outcome<Option<Cow<'a, str>>> {
        match self.peek() {
            Some(b'}') => {
                self.pos += 1;
                self.depth -= 1;
                return Ok(None);
            }
            Some(b',') if !first => {
                self.pos += 1;
                if self.peek() != Some(b'"') {
                    return self.odd("looking for beginning of object key string");
                }
            }
            Some(b'"') if first => {}
            _ if first => return self.odd("looking for beginning of object key string"),
            _ => return self.odd("after object key:value pair"),
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return self.odd("after object key");
        }
        self.pos += 1;
        Ok(Some(key))
    }

    fn begin_array(&mut self) -> Outcome<()> {
        self.enter()
    }

    fn next_item(&mut self, first: bool) -> Outcome<bool> {
        match self.peek() {
            Some(b']') => {
                self.pos += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.pos += 1;
                if self.peek() == Some(b']') {
                    return self.odd("looking for beginning of value");
                }
                Ok(true)
            }
            _ if first => Ok(true),
            _ => self.odd("after array element"),
        }
    }

    fn string(&mut self) -> Outcome<Cow<'a, str>> {
        self.pos += 1;
        let start = self.pos;
        loop {
            match self.data.get(self.pos) {
                Some(b'"') => {
                    let raw = &self.data[start..self.pos];
                    self.pos += 1;
                    return Ok(String::from_utf8_lossy(raw));
                }
                Some(b'\\') => break,
                Some(0x00..=0x1f) | None => return self.odd("in string literal"),
                Some(_) => self.pos += 1,
            }
        }
        let mut out: Vec<u8> = self.data[start..self.pos].to_vec();
        loop {
            match self.data.get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    let text = match String::from_utf8(out) {
                        Ok(text) => text,
                        Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
                    };
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => {
                    self.pos += 1;
                    self.escape(&mut out)?;
                }
                Some(0x00..=0x1f) | None => return self.odd("in string literal"),
                Some(&b) => {
                    out.push(b);
                    self.pos += 1;
                }
            }
        }
    }

    fn number(&mut self) -> Outcome<Cow<'a, str>> {
        let start = self.pos;
        if self.data.get(self.pos) == Some(&b'-') {
            self.pos += 1;
        }
        match self.data.get(self.pos) {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.odd("in numeric literal"),
        }
        if self.data.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            if !matches!(self.data.get(self.pos), Some(b'0'..=b'9')) {
                return self.odd("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.data.get(self.pos), Some(b'e' | b'E')) {
            self.pos += 1;
            if matches!(self.data.get(self.pos), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            if !matches!(self.data.get(self.pos), Some(b'0'..=b'9')) {
                return self.odd("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(String::from_utf8_lossy(&self.data[start..self.pos]))
    }

    fn word(&mut self, word: &str) -> Outcome<()> {
        for (i, wanted) in word.bytes().enumerate() {
            if self.data.get(self.pos) != Some(&wanted) {
                if i == 0 {
                    return self.odd("looking for beginning of value");
                }
                return self.odd(&format!("in literal {word} (expecting '{}')", char::from(wanted)));
            }
            self.pos += 1;
        }
        Ok(())
    }

    fn skip(&mut self) -> Outcome<()> {
        match self.peek() {
            Some(b'{') => {
                self.begin_object()?;
                let mut first = true;
                while self.next_key(first)?.is_some() {
                    first = false;
                    self.skip()?;
                }
            }
            Some(b'[') => {
                self.begin_array()?;
                let mut first = true;
                while self.next_item(first)? {
                    first = false;
                    self.skip()?;
                }
            }
            Some(b'"') => {
                self.string()?;
            }
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
            }
            _ => return self.odd("looking for beginning of value"),
        }
        Ok(())
    }

    fn any(&mut self, path: &mut String, duplicate: &mut dyn FnMut(&str)) -> Outcome<Value> {
        Ok(match self.peek() {
            Some(b'{') => {
                self.begin_object()?;
                let mut map = Map::new();
                let mut first = true;
                while let Some(key) = self.next_key(first)? {
                    first = false;
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(&key);
                    let value = self.any(path, duplicate)?;
                    if map.insert(key.into_owned(), value).is_some() {
                        duplicate(path);
                    }
                    path.truncate(length);
                }
                Value::Object(map)
            }
            Some(b'[') => {
                self.begin_array()?;
                let mut list = Vec::new();
                while self.next_item(list.is_empty())? {
                    let length = path.len();
                    path.push_str(&format!("[{}]", list.len()));
                    let value = self.any(path, duplicate)?;
                    list.push(value);
                    path.truncate(length);
                }
                Value::Array(list)
            }
            Some(b'"') => Value::String(self.string()?.into_owned()),
            Some(b't') => {
                self.word("true")?;
                Value::Bool(true)
            }
            Some(b'f') => {
                self.word("false")?;
                Value::Bool(false)
            }
            Some(b'n') => {
                self.word("null")?;
                Value::Null
            }
            Some(b'-' | b'0'..=b'9') => Value::Number(free_number(&self.number()?)?),
            _ => return self.odd("looking for beginning of value"),
        })
    }
}

/// A number without a type: an integer where it is written as one and fits, else a double.
fn free_number(text: &str) -> Outcome<Number> {
    if let Ok(n) = text.parse::<i64>() {
        return Ok(n.into());
    }
    float(text).ok_or_else(|| {
        DecodeError::Type(format!("json: cannot unmarshal number {text} into Go value of type float64"))
    })
}

/// A double; whole ones below 2^53 as integers, which is how Go writes them back.
pub(crate) fn float(text: &str) -> Option<Number> {
    let value: f64 = text.parse().ok()?;
    if value == value.trunc()
        && value.abs() < 9_007_199_254_740_992.0
        && (value != 0.0 || !value.is_sign_negative())
    {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}
