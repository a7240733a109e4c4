//! From JSON text to CBOR in one pass: what rests as JSON is never made a tree to be sent.

use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::major;
use crate::{
    builtin::builtin,
    decode::{DecodeError, Json, Outcome, Source as _},
    model::{Scalar, Shape, TypeRef, Wire},
};

/// What was to be encoded is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("what was to be encoded is not JSON: {0}")]
pub struct Malformed(#[from] DecodeError);

/// Appends JSON text as CBOR, without the tag that begins a document. The type says where base64 is bytes and where
/// whole numbers are floats; of free JSON nobody knows.
pub fn write(ty: Option<TypeRef<'_>>, json: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut writer = Writer { reader: Json::new(json), out };
    writer.value(ty.and_then(notable))?;
    writer.reader.end()?;
    Ok(())
}

/// Appends the head of a map of so many pairs.
pub fn map_head(pairs: usize, out: &mut Vec<u8>) {
    head(major::MAP, pairs as u64, out);
}

/// Appends the head of an array of so many elements.
pub fn array_head(elements: usize, out: &mut Vec<u8>) {
    head(major::ARRAY, elements as u64, out);
}

/// Appends a string.
pub fn string(text: &str, out: &mut Vec<u8>) {
    bytes(text.as_bytes(), out);
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    head(major::BYTES, bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn head(major: u8, argument: u64, out: &mut Vec<u8>) {
    let first = major << 5;
    let wide = argument.to_be_bytes();
    match argument {
        0..=23 => out.push(first | argument as u8),
        24..=0xff => out.extend_from_slice(&[first | 24, argument as u8]),
        0x100..=0xffff => {
            out.push(first | 25);
            out.extend_from_slice(&wide[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(first | 26);
            out.extend_from_slice(&wide[4..]);
        }
        _ => {
            out.push(first | 27);
            out.extend_from_slice(&wide);
        }
    }
}

/// A float in the fewest bytes that hold it.
fn float(value: f64, out: &mut Vec<u8>) {
    let single = value as f32;
    if f64::from(single) != value {
        out.push(0xfb);
        out.extend_from_slice(&value.to_be_bytes());
        return;
    }
    match half(single) {
        Some(bits) => {
            out.push(0xf9);
            out.extend_from_slice(&bits.to_be_bytes());
        }
        None => {
            out.push(0xfa);
            out.extend_from_slice(&single.to_be_bytes());
        }
    }
}

/// The half-precision float that is exactly this one.
fn half(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return Some(sign);
    }
    let exponent = (bits >> 23 & 0xff) as i32 - 127;
    let rest = match exponent {
        // Normal: ten bits of fraction are kept.
        -14..=15 if bits & 0x1fff == 0 => (((exponent + 15) as u16) << 10) | (bits >> 13 & 0x3ff) as u16,
        // Subnormal: a multiple of 2^-24.
        -24..=-15 => {
            let units = magnitude * 2f32.powi(24);
            if units != units.trunc() {
                return None;
            }
            units as u16
        }
        _ => return None,
    };
    Some(sign | rest)
}

struct Writer<'a, 'b> {
    reader: Json<'a>,
    out: &'b mut Vec<u8>,
}

impl Writer<'_, '_> {
    fn value(&mut self, ty: Option<TypeRef<'_>>) -> Outcome<()> {
        match self.reader.peek() {
            Some(b'{') => self.map(ty),
            Some(b'[') => self.array(ty),
            Some(b'"') => {
                let text = self.reader.string()?;
                if ty.is_some_and(|t| matches!(t.shape(), Shape::Scalar(Scalar::Bytes)))
                    && let Ok(raw) = STANDARD.decode(text.as_bytes())
                {
                    self.out.push(0xd6);
                    bytes(&raw, self.out);
                    return Ok(());
                }
                string(&text, self.out);
                Ok(())
            }
            Some(b't') => self.word("true", 0xf5),
            Some(b'f') => self.word("false", 0xf4),
            Some(b'n') => self.word("null", 0xf6),
            _ => self.number(ty),
        }
    }

    fn word(&mut self, word: &str, byte: u8) -> Outcome<()> {
        self.reader.word(word)?;
        self.out.push(byte);
        Ok(())
    }

    fn number(&mut self, ty: Option<TypeRef<'_>>) -> Outcome<()> {
        let text = self.reader.number()?;
        let floating = ty.is_some_and(|t| matches!(t.shape(), Shape::Scalar(Scalar::Float64)));
        // JSON has a negative zero; integers have none.
        let floating = floating || &*text == "-0";
        match text.parse::<i64>() {
            Ok(n) if !floating && n >= 0 => head(major::POSITIVE, n.unsigned_abs(), self.out),
            Ok(n) if !floating => head(major::NEGATIVE, n.unsigned_abs() - 1, self.out),
            // Every number of JSON reads as a double.
            _ => float(text.parse().unwrap_or_default(), self.out),
        }
        Ok(())
    }

    /// Where a head of one byte is written for now; [`Writer::close`] puts in how many there are.
    fn open(&mut self) -> usize {
        self.out.push(0);
        self.out.len() - 1
    }

    fn close(&mut self, at: usize, major: u8, count: u64) {
        if count < 24 {
            self.out[at] = major << 5 | count as u8;
            return;
        }
        let mut wide = Vec::with_capacity(9);
        head(major, count, &mut wide);
        self.out.splice(at..=at, wide);
    }

    fn map(&mut self, ty: Option<TypeRef<'_>>) -> Outcome<()> {
        let at = self.open();
        let ty = ty.map(|ty| match ty.ty().wire {
            Wire::SchemaOrBool(schema) | Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema) => {
                ty.schema.at(schema)
            }
            _ => ty,
        });
        self.reader.begin_object()?;
        let mut count = 0;
        while let Some(key) = self.reader.next_key(count == 0)? {
            string(&key, self.out);
            self.value(ty.and_then(|ty| ty.member(&key)).and_then(notable))?;
            count += 1;
        }
        self.close(at, major::MAP, count);
        Ok(())
    }

    fn array(&mut self, ty: Option<TypeRef<'_>>) -> Outcome<()> {
        let at = self.open();
        let item = ty.and_then(|ty| match ty.ty().wire {
            Wire::SchemaOrArray(schema) => Some(ty.schema.at(schema)),
            _ => ty.item(),
        });
        let item = item.and_then(notable);
        self.reader.begin_array()?;
        let mut count = 0;
        while self.reader.next_item(count == 0)? {
            self.value(item)?;
            count += 1;
        }
        self.close(at, major::ARRAY, count);
        Ok(())
    }
}

/// The type, where it is one of the few built-in ones that hold bytes or floats: all else is written as it stands.
fn notable(ty: TypeRef<'_>) -> Option<TypeRef<'_>> {
    static NOTABLE: OnceLock<Vec<bool>> = OnceLock::new();
    let schema = builtin().schema();
    if !std::ptr::eq(schema, ty.schema) {
        return None;
    }
    let notable = NOTABLE.get_or_init(|| {
        let mut found = vec![false; schema.types.len()];
        loop {
            let mut changed = false;
            for (at, ty) in schema.types.iter().enumerate() {
                let is = match (&ty.shape, ty.wire) {
                    (_, Wire::SchemaOrBool(s) | Wire::SchemaOrArray(s) | Wire::SchemaOrStrings(s)) => {
                        found[s.0 as usize]
                    }
                    (Shape::Scalar(Scalar::Bytes | Scalar::Float64), _) => true,
                    (Shape::Struct(s), _) => s.fields.iter().any(|f| found[f.slot.ty.0 as usize]),
                    (Shape::List(l), _) => found[l.item.ty.0 as usize],
                    (Shape::Map(m), _) => found[m.value.ty.0 as usize],
                    _ => false,
                };
                changed |= is && !found[at];
                found[at] |= is;
            }
            if !changed {
                return found;
            }
        }
    });
    notable.get(ty.id.0 as usize).copied().unwrap_or_default().then_some(ty)
}
