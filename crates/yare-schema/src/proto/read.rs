//! Protobuf to values. Garbage fails, nothing panics, and nesting is bounded.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Number, Value};

use super::{BYTES, Envelope, FIXED32, FIXED64, MAGIC, ProtoError, VARINT, from_wire_at};
use crate::{
    builtin::builtin,
    decode::MAX_DEPTH,
    encode,
    gotime::{self, Instant},
    model::{Field, Scalar, Shape, Struct, TypeRef, Wire},
    quantity::Quantity,
};

type Outcome<T> = Result<T, ProtoError>;

/// Reads the message of a value of the type `ty`.
pub fn decode(ty: TypeRef<'_>, bytes: &[u8]) -> Outcome<Value> {
    decode_at(ty, bytes, 0)
}

pub(super) fn decode_at(ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Outcome<Value> {
    message(ty, bytes, depth, "")
}

/// One field as it stands on the wire.
enum Payload<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn varint(&mut self) -> Outcome<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&b, rest) = self.0.split_first().ok_or(ProtoError::Truncated)?;
            self.0 = rest;
            value |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtoError::Overflow)
    }

    fn take(&mut self, length: u64) -> Outcome<&'a [u8]> {
        let length = usize::try_from(length).map_err(|_| ProtoError::Truncated)?;
        let (head, rest) = self.0.split_at_checked(length).ok_or(ProtoError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// The next field: number, wire type and payload.
    fn next(&mut self) -> Outcome<Option<(u32, u64, Payload<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, tag & 7);
        let payload = match wire {
            VARINT => Payload::Number(self.varint()?),
            FIXED64 => Payload::Number(u64::from_le_bytes(fixed(self.take(8)?))),
            FIXED32 => Payload::Number(u64::from(u32::from_le_bytes(fixed(self.take(4)?)))),
            BYTES => {
                let length = self.varint()?;
                Payload::Bytes(self.take(length)?)
            }
            _ => return Err(ProtoError::IllegalTag { number, wire }),
        };
        match u32::try_from(number) {
            Ok(number) if number > 0 => Ok(Some((number, wire, payload))),
            _ => Err(ProtoError::IllegalTag { number, wire }),
        }
    }
}

/// `take(N)` gave exactly N bytes.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn envelope(body: &[u8]) -> Outcome<Envelope<'_>> {
    let mut out =
        Envelope { api_version: String::new(), kind: String::new(), raw: &[], content_type: String::new() };
    let mut cursor = Cursor(body);
    while let Some((number, _, payload)) = cursor.next()? {
        let Payload::Bytes(bytes) = payload else { continue };
        match number {
            1 => {
                let mut meta = Cursor(bytes);
                while let Some((number, _, payload)) = meta.next()? {
                    match (number, payload) {
                        (1, Payload::Bytes(b)) => out.api_version = text(b),
                        (2, Payload::Bytes(b)) => out.kind = text(b),
                        _ => {}
                    }
                }
            }
            2 => out.raw = bytes,
            4 => out.content_type = text(bytes),
            _ => {}
        }
    }
    Ok(out)
}

/// A value of a type that is a message.
fn message(ty: TypeRef<'_>, bytes: &[u8], depth: usize, field: &str) -> Outcome<Value> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::Depth);
    }
    match ty.shape() {
        Shape::Struct(s) => {
            let mut map = Map::new();
            fields(ty, s, &s.by_number, 0, bytes, depth, &mut map)?;
            Ok(Value::Object(map))
        }
        Shape::Scalar(scalar) => scalar_message(*scalar, bytes, field),
        Shape::List(l) => {
            let mut items = Vec::new();
            let mut cursor = Cursor(bytes);
            while let Some((number, wire, payload)) = cursor.next()? {
                if number == 1 {
                    items.push(single(ty.to(&l.item), wire, payload, depth, field)?);
                }
            }
            Ok(Value::Array(items))
        }
        Shape::Any => free(ty, bytes, depth, field),
        Shape::Map(_) => Ok(Value::Null),
    }
}

/// Reads into `map` the fields of `order`, which agree in the first `level` places of their numbers.
fn fields(
    ty: TypeRef<'_>,
    s: &Struct,
    order: &[u16],
    level: usize,
    bytes: &[u8],
    depth: usize,
    map: &mut Map<String, Value>,
) -> Outcome<()> {
    if level > 8 {
        return Err(ProtoError::Depth);
    }
    let number_of = |i: &u16| s.fields[usize::from(*i)].proto.get(level).copied().unwrap_or(0);
    let mut cursor = Cursor(bytes);
    while let Some((number, wire, payload)) = cursor.next()? {
        let from = order.partition_point(|i| number_of(i) < number);
        let Some(first) = order.get(from).filter(|i| number_of(i) == number) else { continue };
        let field = &s.fields[usize::from(*first)];
        if field.proto.len() == level + 1 {
            self::field(ty, field, wire, payload, depth, map)?;
            continue;
        }
        let Payload::Bytes(bytes) = payload else {
            return Err(ProtoError::WireType { wire, field: field.name.to_string() });
        };
        let to = from + order[from..].partition_point(|i| number_of(i) == number);
        fields(ty, s, &order[from..to], level + 1, bytes, depth, map)?;
    }
    Ok(())
}

fn field(
    owner: TypeRef<'_>,
    field: &Field,
    wire: u64,
    payload: Payload<'_>,
    depth: usize,
    map: &mut Map<String, Value>,
) -> Outcome<()> {
    let ty = owner.to(&field.slot);
    let name = &*field.name;
    match (ty.shape(), ty.ty().wire, payload) {
        (Shape::List(l), Wire::Plain, payload) => {
            let item_type = ty.to(&l.item);
            let list = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = list else { return Ok(()) };
            match (item_type.shape(), payload) {
                // Numbers may come packed.
                (Shape::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64), Payload::Bytes(bytes)) => {
                    let mut cursor = Cursor(bytes);
                    while !cursor.0.is_empty() {
                        let payload = Payload::Number(cursor.varint()?);
                        items.push(single(item_type, VARINT, payload, depth, name)?);
                    }
                }
                (_, payload) => items.push(single(item_type, wire, payload, depth, name)?),
            }
        }
        (Shape::Map(m), _, Payload::Bytes(bytes)) => {
            let value_type = ty.to(&m.value);
            let (mut key, mut value) = (String::new(), None);
            let mut cursor = Cursor(bytes);
            while let Some((number, wire, payload)) = cursor.next()? {
                match (number, payload) {
                    (1, Payload::Bytes(bytes)) => key = text(bytes),
                    (2, payload) => value = Some(single(value_type, wire, payload, depth, name)?),
                    _ => {}
                }
            }
            let value = value.unwrap_or_else(|| match value_type.shape() {
                // Go reads bytes that are not there as empty ones.
                Shape::Scalar(Scalar::Bytes) => Value::String(String::new()),
                _ => encode::blank(value_type),
            });
            let entries = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
        }
        (Shape::Map(_), ..) => return Err(ProtoError::WireType { wire, field: name.to_owned() }),
        (_, _, payload) => {
            let value = single(ty, wire, payload, depth, name)?;
            if encode::is_omitted(owner, field, &value) || value.is_null() {
                map.remove(name);
            } else {
                map.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// One value, tag taken off.
fn single(ty: TypeRef<'_>, wire: u64, payload: Payload<'_>, depth: usize, field: &str) -> Outcome<Value> {
    if let Shape::Scalar(scalar) = ty.shape() {
        let value = match (scalar, wire, &payload) {
            (Scalar::Bool, VARINT, Payload::Number(n)) => Value::Bool(*n != 0),
            (Scalar::Int32, VARINT, Payload::Number(n)) => Value::from(*n as i32),
            (Scalar::Int64, VARINT, Payload::Number(n)) => Value::from(*n as i64),
            (Scalar::Float64, FIXED64, Payload::Number(n)) => double(f64::from_bits(*n)),
            (Scalar::String, BYTES, Payload::Bytes(bytes)) => Value::String(text(bytes)),
            (Scalar::Bytes, BYTES, Payload::Bytes(bytes)) => Value::String(BASE64.encode(bytes)),
            (
                Scalar::Time | Scalar::MicroTime | Scalar::Duration | Scalar::Quantity | Scalar::IntOrString,
                BYTES,
                Payload::Bytes(bytes),
            ) => scalar_message(*scalar, bytes, field)?,
            _ => return Err(ProtoError::WireType { wire, field: field.to_owned() }),
        };
        return Ok(value);
    }
    match payload {
        Payload::Bytes(bytes) => message(ty, bytes, depth + 1, field),
        Payload::Number(_) => Err(ProtoError::WireType { wire, field: field.to_owned() }),
    }
}

/// Whole doubles as integers, which is how Go writes them in JSON; what JSON has no word for becomes null.
fn double(value: f64) -> Value {
    if value == value.trunc() && value.abs() < 9_007_199_254_740_992.0 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn scalar_message(scalar: Scalar, bytes: &[u8], field: &str) -> Outcome<Value> {
    let invalid = |message: String| ProtoError::Invalid { field: field.to_owned(), message };
    let mut numbers = [0_i64; 4];
    let mut string = String::new();
    let mut cursor = Cursor(bytes);
    while let Some((number, _, payload)) = cursor.next()? {
        match payload {
            Payload::Number(n) => {
                if let Some(slot) = numbers.get_mut(number as usize) {
                    *slot = n as i64;
                }
            }
            Payload::Bytes(bytes) => string = text(bytes),
        }
    }
    Ok(match scalar {
        // No bytes at all are how Go writes its zero time.
        Scalar::Time | Scalar::MicroTime if bytes.is_empty() => Value::Null,
        Scalar::Time | Scalar::MicroTime => {
            let nanos = u32::try_from(numbers[2]).ok().filter(|n| *n < 1_000_000_000);
            let nanos = nanos.ok_or_else(|| invalid(format!("{} nanoseconds", numbers[2])))?;
            let instant = Instant { seconds: numbers[1], nanos };
            if !gotime::YEARS_S.contains(&instant.seconds) {
                return Err(invalid("year outside of range [0,9999]".into()));
            }
            match scalar {
                Scalar::Time => Value::from(gotime::format_time(instant.seconds)),
                _ => Value::from(gotime::format_micro_time(instant)),
            }
        }
        Scalar::Duration => Value::from(gotime::format_duration(numbers[1])),
        Scalar::Quantity if string.is_empty() => Value::from("0"),
        Scalar::Quantity => match Quantity::canonicalize(&string) {
            Ok(text) => Value::from(text.into_owned()),
            Err(e) => return Err(invalid(e.to_string())),
        },
        Scalar::IntOrString if numbers[1] == 1 => Value::String(string),
        Scalar::IntOrString => Value::from(numbers[2] as i32),
        _ => return Err(invalid("is no message".into())),
    })
}

fn free(ty: TypeRef<'_>, bytes: &[u8], depth: usize, field: &str) -> Outcome<Value> {
    let mut cursor = Cursor(bytes);
    let mut one: Option<Value> = None;
    let mut many: Vec<Value> = Vec::new();
    let mut allows = false;
    while let Some((number, wire, payload)) = cursor.next()? {
        match (ty.ty().wire, number, payload) {
            (Wire::Raw | Wire::Plain | Wire::Items, 1, Payload::Bytes(bytes)) => {
                one = raw(bytes, depth, field)?;
            }
            (Wire::SchemaOrBool(_), 1, Payload::Number(n)) => allows = n != 0,
            (Wire::SchemaOrBool(schema), 2, payload)
            | (Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema), 1, payload) => {
                one = Some(single(ty.schema.at(schema), wire, payload, depth, field)?);
            }
            (Wire::SchemaOrArray(schema), 2, payload) => {
                many.push(single(ty.schema.at(schema), wire, payload, depth, field)?);
            }
            (Wire::SchemaOrStrings(_), 2, Payload::Bytes(bytes)) => many.push(Value::String(text(bytes))),
            _ => {}
        }
    }
    Ok(match (ty.ty().wire, one) {
        (_, _) if !many.is_empty() => Value::Array(many),
        (_, Some(value)) => value,
        (Wire::SchemaOrBool(_), None) => Value::Bool(allows),
        (_, None) => Value::Null,
    })
}

/// The object inside of a `RawExtension`: JSON text, or an enveloped message.
fn raw(bytes: &[u8], depth: usize, field: &str) -> Outcome<Option<Value>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.starts_with(MAGIC) {
        if depth > MAX_DEPTH {
            return Err(ProtoError::Depth);
        }
        return from_wire_at(builtin(), bytes, depth + 1).map(Some);
    }
    crate::decode::decode_untyped(bytes, crate::decode::Mode::Ignore)
        .map(|d| Some(d.value))
        .map_err(|e| ProtoError::Invalid { field: field.to_owned(), message: e.to_string() })
}
