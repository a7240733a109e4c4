//! A reader of CBOR that gives the tokens of JSON, and fails with the words of upstream's library.

use std::{borrow::Cow, collections::HashSet};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::{Map, Value};

use super::{half, major, tag};
use crate::{
    decode::{DecodeError, Outcome, Source, float},
    goprint::quote,
    gotime,
};

/// Reads tokens from a document that was found well-formed.
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    /// The arrays and maps that were entered.
    levels: Vec<Level>,
    /// The text encoding that the byte strings at hand are to have, by its tag.
    encoding: Option<u64>,
    /// The tag that makes what is at hand a time.
    time: Option<u64>,
    /// What is at hand was peeked at, so that its tags are read.
    peeked: bool,
}

struct Level {
    /// Pairs or elements still to come; none where a break says so.
    left: Option<u64>,
    /// Those that were begun.
    begun: usize,
    /// The text encoding of the byte strings in it.
    encoding: Option<u64>,
}

struct Head {
    major: u8,
    info: u8,
    argument: u64,
}

/// `cbor: found duplicate map key "a" at map element index 2`
pub(crate) fn duplicate(key: &str, index: usize) -> String {
    format!("cbor: found duplicate map key {} at map element index {index}", quote(key))
}

/// `cbor: found unknown field at map element index 2`
pub(crate) fn unknown(index: usize) -> String {
    format!("cbor: found unknown field at map element index {index}")
}

fn mismatch<T>(found: &str, wanted: &str) -> Outcome<T> {
    Err(DecodeError::Type(format!("cbor: cannot unmarshal {found} into Go value of type {wanted}")))
}

impl<'a> Reader<'a> {
    /// A reader of one document. Fails where it is not well-formed.
    pub(crate) fn new(data: &'a [u8]) -> Outcome<Self> {
        super::check(data)?;
        Ok(Self { data, at: 0, levels: Vec::new(), encoding: None, time: None, peeked: false })
    }

    /// What is at hand; null behind the end, where a well-formed document is never read.
    fn byte(&self) -> u8 {
        self.data.get(self.at).copied().unwrap_or(0xf6)
    }

    fn head(&mut self) -> Head {
        let first = self.byte();
        self.at += 1;
        let (major, info) = (first >> 5, first & 0x1f);
        let mut argument = u64::from(info);
        if (24..=27).contains(&info) {
            let end = self.at + (1 << (info - 24));
            let bytes = self.data.get(self.at..end).unwrap_or_default();
            argument = bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
            self.at = end;
        }
        Head { major, info, argument }
    }

    /// What is at hand is taken: its tags are over.
    fn taken(&mut self) {
        self.peeked = false;
        self.time = None;
        self.encoding = self.levels.last().and_then(|l| l.encoding);
    }

    fn tags(&mut self) {
        if self.peeked {
            return;
        }
        self.peeked = true;
        while self.byte() >> 5 == major::TAG {
            match self.head().argument {
                number @ (tag::BASE64_URL | tag::BASE64 | tag::BASE16) => self.encoding = Some(number),
                number @ (tag::TIME | tag::EPOCH) => self.time = Some(number),
                _ => {}
            }
        }
    }

    fn enter(&mut self) {
        self.tags();
        let head = self.head();
        let left = (head.info != 31).then_some(head.argument);
        self.levels.push(Level { left, begun: 0, encoding: self.encoding });
        self.taken();
    }

    /// Whether the level at hand has another pair or element, which then is begun.
    fn advance(&mut self) -> bool {
        let more = match self.levels.last_mut() {
            None => false,
            Some(level) => {
                level.begun += 1;
                match &mut level.left {
                    Some(0) => false,
                    Some(left) => {
                        *left -= 1;
                        true
                    }
                    None => self.data.get(self.at).is_some_and(|b| *b != 0xff),
                }
            }
        };
        if !more {
            if self.levels.pop().is_some_and(|level| level.left.is_none()) {
                self.at += 1;
            }
            self.taken();
        }
        more
    }

    /// The bytes of the string at hand.
    fn raw(&mut self) -> Cow<'a, [u8]> {
        let head = self.head();
        if head.info != 31 {
            return Cow::Borrowed(self.piece(head.argument));
        }
        let mut all = Vec::new();
        while !matches!(self.data.get(self.at), None | Some(0xff)) {
            let length = self.head().argument;
            all.extend_from_slice(self.piece(length));
        }
        self.at += 1;
        Cow::Owned(all)
    }

    fn piece(&mut self, length: u64) -> &'a [u8] {
        let start = self.at;
        self.at = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        self.data.get(start..self.at).unwrap_or_default()
    }

    fn text(&mut self) -> Outcome<Cow<'a, str>> {
        let invalid = || DecodeError::Type("cbor: invalid UTF-8 string".into());
        match self.raw() {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| invalid()),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| invalid()),
        }
    }

    fn lossy(bytes: Cow<'a, [u8]>) -> Cow<'a, str> {
        match bytes {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    fn floating(head: &Head) -> f64 {
        match head.info {
            25 => half(head.argument as u16),
            26 => f64::from(f32::from_bits(head.argument as u32)),
            _ => f64::from_bits(head.argument),
        }
    }

    /// What a tag makes a time.
    fn timed(&mut self, which: u64) -> Outcome<Value> {
        let seconds = |seconds: i64, nanos: u32| {
            let whole = gotime::format_time(seconds);
            if nanos == 0 {
                return Value::from(whole);
            }
            let fraction = format!("{nanos:09}");
            Value::from(format!("{}.{}Z", whole.trim_end_matches('Z'), fraction.trim_end_matches('0')))
        };
        if which == tag::TIME {
            let text = self.string()?;
            return match gotime::parse_time(&text) {
                Ok(_) => Ok(Value::from(text)),
                Err(why) => Err(DecodeError::Type(format!("cbor: cannot set {text} for time.Time: {why}"))),
            };
        }
        let head = self.head();
        self.taken();
        let whole = i64::try_from(head.argument);
        match (head.major, whole) {
            (major::POSITIVE, Ok(n)) => Ok(seconds(n, 0)),
            (major::NEGATIVE, Ok(n)) => Ok(seconds(-1 - n, 0)),
            (major::PRIMITIVE, _) => {
                let time = Self::floating(&head);
                Ok(seconds(time.floor() as i64, ((time - time.floor()) * 1e9) as u32))
            }
            _ => mismatch(major::NAMES[usize::from(head.major)], "time.Time"),
        }
    }

    fn integer(&mut self) -> Outcome<Value> {
        let head = self.head();
        self.taken();
        match i64::try_from(head.argument) {
            Ok(n) if head.major == major::POSITIVE => Ok(n.into()),
            Ok(n) => Ok((-1 - n).into()),
            Err(_) => {
                let shown = match head.major {
                    major::POSITIVE => head.argument.to_string(),
                    _ => format!("-1-{}", head.argument),
                };
                let found = major::NAMES[usize::from(head.major)];
                mismatch(found, &format!("int64 ({shown} overflows Go's int64)"))
            }
        }
    }

    /// The value at hand, of whatever type.
    fn free(&mut self) -> Outcome<Value> {
        let first = self.peek();
        if let Some(which) = self.time {
            return self.timed(which);
        }
        Ok(match first {
            Some(b'{') => {
                self.begin_object()?;
                let mut map = Map::new();
                while let Some(key) = self.next_key(false)? {
                    let index = self.index();
                    if map.contains_key(&*key) {
                        return Err(DecodeError::Type(duplicate(&key, index)));
                    }
                    let value = self.free()?;
                    map.insert(key.into_owned(), value);
                }
                Value::Object(map)
            }
            Some(b'[') => {
                self.begin_array()?;
                let mut list = Vec::new();
                while self.next_item(false)? {
                    list.push(self.free()?);
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
            Some(b'0' | b'-') => self.integer()?,
            Some(b'1') => {
                let text = self.number()?;
                // Neither NaN nor infinity comes through the check.
                float(&text).map_or(Value::Null, Value::Number)
            }
            _ => {
                self.word("null")?;
                Value::Null
            }
        })
    }

    fn pass(&mut self) {
        let head = self.head();
        match head.major {
            major::BYTES | major::TEXT if head.info != 31 => {
                self.at = self.at.saturating_add(usize::try_from(head.argument).unwrap_or(usize::MAX));
            }
            major::TAG => self.pass(),
            major::BYTES..=major::MAP if head.info == 31 => {
                while !matches!(self.data.get(self.at), None | Some(0xff)) {
                    self.pass();
                }
                self.at += 1;
            }
            major::ARRAY => (0..head.argument).for_each(|_| self.pass()),
            major::MAP => (0..head.argument * 2).for_each(|_| self.pass()),
            _ => {}
        }
    }
}

impl<'a> Source<'a> for Reader<'a> {
    const NAME: &'static str = "cbor";

    fn peek(&mut self) -> Option<u8> {
        self.tags();
        let first = *self.data.get(self.at)?;
        Some(match first >> 5 {
            major::POSITIVE => b'0',
            major::NEGATIVE => b'-',
            major::BYTES | major::TEXT => b'"',
            major::ARRAY => b'[',
            major::MAP => b'{',
            _ => match first {
                0xf4 => b'f',
                0xf5 => b't',
                0xf6 => b'n',
                _ => b'1',
            },
        })
    }

    fn found(&self, _: Option<u8>) -> &'static str {
        major::NAMES[usize::from(self.byte() >> 5)]
    }

    fn begin_object(&mut self) -> Outcome<()> {
        self.enter();
        Ok(())
    }

    fn next_key(&mut self, _: bool) -> Outcome<Option<Cow<'a, str>>> {
        if !self.advance() {
            return Ok(None);
        }
        self.tags();
        let key = match self.byte() >> 5 {
            major::BYTES => Self::lossy(self.raw()),
            major::TEXT => self.text()?,
            other => return mismatch(major::NAMES[usize::from(other)], "string"),
        };
        self.taken();
        Ok(Some(key))
    }

    fn begin_array(&mut self) -> Outcome<()> {
        self.enter();
        Ok(())
    }

    fn next_item(&mut self, _: bool) -> Outcome<bool> {
        Ok(self.advance())
    }

    fn string(&mut self) -> Outcome<Cow<'a, str>> {
        self.tags();
        let encoding = self.encoding;
        let text = match self.byte() >> 5 {
            major::TEXT => self.text()?,
            _ => {
                let raw = self.raw();
                match encoding {
                    Some(tag::BASE64_URL) => URL_SAFE.encode(&raw).into(),
                    Some(tag::BASE64) => STANDARD.encode(&raw).into(),
                    Some(_) => raw.iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
                    None => Self::lossy(raw),
                }
            }
        };
        self.taken();
        Ok(text)
    }

    fn base64(&mut self) -> Outcome<Option<Cow<'a, str>>> {
        self.tags();
        if self.byte() >> 5 != major::BYTES {
            self.skip()?;
            return Ok(None);
        }
        let encoded = self.encoding.is_some();
        let raw = self.raw();
        self.taken();
        // Bytes that are to become text later are what they are; others are base64 already.
        Ok(Some(if encoded { STANDARD.encode(&raw).into() } else { Self::lossy(raw) }))
    }

    fn number(&mut self) -> Outcome<Cow<'a, str>> {
        self.tags();
        let head = self.head();
        self.taken();
        Ok(Cow::Owned(match head.major {
            major::POSITIVE => head.argument.to_string(),
            major::NEGATIVE => (-1 - i128::from(head.argument)).to_string(),
            _ => format!("{:?}", Self::floating(&head)),
        }))
    }

    fn word(&mut self, _: &str) -> Outcome<()> {
        self.tags();
        self.head();
        self.taken();
        Ok(())
    }

    fn skip(&mut self) -> Outcome<()> {
        self.pass();
        self.taken();
        Ok(())
    }

    fn any(&mut self, _: &mut String, _: &mut dyn FnMut(&str)) -> Outcome<Value> {
        // A key that stands twice is no warning here but the end.
        self.free()
    }

    fn index(&self) -> usize {
        self.levels.last().map_or(0, |l| l.begun.saturating_sub(1))
    }

    fn end(&mut self) -> Outcome<()> {
        Ok(())
    }
}

/// `apiVersion` and `kind` of a document, without reading the rest into memory; empty where absent.
pub fn type_meta(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    let unknown = |e: DecodeError| DecodeError::Type(format!("unable to determine group/version/kind: {e}"));
    let mut reader = Reader::new(bytes).map_err(unknown)?;
    let first = reader.peek();
    if first != Some(b'{') {
        if first == Some(b'n') {
            return Ok(Default::default());
        }
        return mismatch(reader.found(first), "v1.TypeMeta").map_err(unknown);
    }
    reader.begin_object()?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut keys = HashSet::new();
    while let Some(key) = reader.next_key(false).map_err(unknown)? {
        if keys.contains(&key) {
            return Err(unknown(DecodeError::Type(duplicate(&key, reader.index()))));
        }
        let target = match &*key {
            "apiVersion" => Some(&mut api_version),
            "kind" => Some(&mut kind),
            _ => None,
        };
        match (target, reader.peek()) {
            (Some(target), Some(b'"')) => *target = reader.string().map_err(unknown)?.into_owned(),
            (None, _) | (_, Some(b'n')) => reader.skip()?,
            (_, first) => {
                return Err(unknown(DecodeError::Type(format!(
                    "cbor: cannot unmarshal {} into Go struct field v1.TypeMeta.{key} of type string",
                    reader.found(first)
                ))));
            }
        }
        keys.insert(key);
    }
    Ok((api_version, kind))
}
