//! Whether bytes are one well-formed data item that is acceptable here. Asked before anything is read, so that
//! reading need not look at bounds.

use super::{half, major, tag};
use crate::decode::{DecodeError, MAX_DEPTH};

/// Most pairs of one map.
const MAX_PAIRS: u64 = 2_097_152;
/// Most elements of one array.
const MAX_ELEMENTS: u64 = 2_147_483_647;

/// Refuses what is not one acceptable item.
pub fn check(data: &[u8]) -> Result<(), DecodeError> {
    let length = first(data)?;
    if length == data.len() {
        return Ok(());
    }
    let rest = data.len() - length;
    fail(format!("cbor: {rest} bytes of extraneous data starting at index {length}"))
}

/// How long the first item of a sequence (RFC 8742) is.
pub fn first(data: &[u8]) -> Result<usize, DecodeError> {
    if data.is_empty() {
        return fail("EOF");
    }
    let mut checker = Checker { data, at: 0 };
    checker.item(0)?;
    Ok(checker.at)
}

fn fail<T>(message: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError::Syntax(message.into()))
}

fn cut<T>() -> Result<T, DecodeError> {
    fail("unexpected EOF")
}

fn unacceptable<T>(major: u8, what: &str) -> Result<T, DecodeError> {
    let name = major::NAMES[usize::from(major)];
    fail(format!("cbor: data item of cbor type {name} is not accepted by protocol: {what}"))
}

struct Checker<'a> {
    data: &'a [u8],
    at: usize,
}

/// An item's first bytes.
struct Head {
    major: u8,
    argument: u64,
    indefinite: bool,
}

impl Checker<'_> {
    fn head(&mut self) -> Result<Head, DecodeError> {
        let Some(&first) = self.data.get(self.at) else { return cut() };
        self.at += 1;
        let (major, info) = (first >> 5, first & 0x1f);
        let name = major::NAMES[usize::from(major)];
        let head = |argument, indefinite| Ok(Head { major, argument, indefinite });
        let width = match info {
            0..=23 if major == major::PRIMITIVE && !matches!(info, 20..=22) => {
                return unacceptable(major, &format!("simple value {info} is not recognized"));
            }
            0..=23 => return head(u64::from(info), false),
            24..=27 => 1 << (info - 24),
            31 if matches!(major, major::BYTES..=major::MAP) => return head(0, true),
            31 if major == major::PRIMITIVE => return fail("cbor: unexpected \"break\" code"),
            _ => return fail(format!("cbor: invalid additional information {info} for type {name}")),
        };
        let Some(bytes) = self.data.get(self.at..self.at + width) else { return cut() };
        self.at += width;
        let argument = bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
        if major == major::PRIMITIVE {
            let float = match width {
                1 if argument < 32 => {
                    return fail(format!("cbor: invalid simple value {argument} for type {name}"));
                }
                1 => return unacceptable(major, &format!("simple value {argument} is not recognized")),
                2 => half(argument as u16),
                4 => f64::from(f32::from_bits(argument as u32)),
                _ => f64::from_bits(argument),
            };
            if float.is_nan() {
                return unacceptable(major, "floating-point NaN");
            }
            if float.is_infinite() {
                return unacceptable(major, "floating-point infinity");
            }
        }
        head(argument, false)
    }

    fn item(&mut self, depth: usize) -> Result<(), DecodeError> {
        let head = self.head()?;
        match head.major {
            major::BYTES | major::TEXT if head.indefinite => self.chunks(head.major),
            major::BYTES | major::TEXT => match usize::try_from(head.argument) {
                Ok(length) if length <= self.data.len() - self.at => {
                    self.at += length;
                    Ok(())
                }
                _ => cut(),
            },
            major::ARRAY | major::MAP => {
                let depth = deeper(depth)?;
                let name = major::NAMES[usize::from(head.major)];
                if head.indefinite {
                    return self.until_break(head.major, depth);
                }
                let (items, limit, what) = match head.major {
                    major::ARRAY => (head.argument, MAX_ELEMENTS, "elements"),
                    _ => (head.argument.saturating_mul(2), MAX_PAIRS, "key-value pairs"),
                };
                if head.argument > limit {
                    return fail(format!("cbor: exceeded max number of {what} {limit} for CBOR {name}"));
                }
                (0..items).try_for_each(|_| self.item(depth))
            }
            major::TAG => self.tagged(head.argument, depth),
            _ => Ok(()),
        }
    }

    fn chunks(&mut self, major: u8) -> Result<(), DecodeError> {
        let name = major::NAMES[usize::from(major)];
        loop {
            match self.data.get(self.at) {
                None => return cut(),
                Some(0xff) => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b) if b >> 5 != major => {
                    let found = major::NAMES[usize::from(b >> 5)];
                    return fail(format!("cbor: wrong element type {found} for indefinite-length {name}"));
                }
                Some(b) if b & 0x1f == 31 => {
                    return fail(format!("cbor: indefinite-length {name} chunk is not definite-length"));
                }
                Some(_) => self.item(0)?,
            }
        }
    }

    fn until_break(&mut self, major: u8, depth: usize) -> Result<(), DecodeError> {
        let mut count = 0_u64;
        loop {
            match self.data.get(self.at) {
                None => return cut(),
                Some(0xff) if major == major::MAP && count % 2 == 1 => {
                    return fail("cbor: unexpected \"break\" code");
                }
                Some(0xff) => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => self.item(depth)?,
            }
            count += 1;
        }
    }

    fn tagged(&mut self, mut number: u64, mut depth: usize) -> Result<(), DecodeError> {
        loop {
            let Some(&content) = self.data.get(self.at) else { return cut() };
            let major = content >> 5;
            let floating = (0xf9..=0xfb).contains(&content);
            let wanted = match number {
                tag::TIME if major != major::TEXT => "text string",
                tag::EPOCH if !(matches!(major, major::POSITIVE | major::NEGATIVE) || floating) => {
                    "integer or floating-point number"
                }
                tag::BIGNUM | tag::NEGATIVE_BIGNUM => return unacceptable(major::TAG, "bignum"),
                _ => "",
            };
            if !wanted.is_empty() {
                let found = major::NAMES[usize::from(major)];
                return fail(format!("cbor: tag number {number} must be followed by {wanted}, got {found}"));
            }
            if major != major::TAG {
                return self.item(depth);
            }
            number = self.head()?.argument;
            depth = deeper(depth)?;
        }
    }
}

fn deeper(depth: usize) -> Result<usize, DecodeError> {
    if depth < MAX_DEPTH {
        Ok(depth + 1)
    } else {
        fail(format!("cbor: exceeded max nested level {MAX_DEPTH}"))
    }
}
