//! Values to protobuf.
//!
//! Messages are written back to front, as upstream's generated code does: so a message's length is known
//! when its prefix is written, and nothing is measured or moved.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value};

use super::{BYTES, FIXED64, MAGIC, VARINT};
use crate::{
    encode, gotime,
    model::{Field, Scalar, Shape, Struct, TypeRef, Wire},
};

/// The message of a value.
pub fn encode(ty: TypeRef<'_>, value: &Value) -> Vec<u8> {
    let mut back = Back(Vec::with_capacity(1024));
    back.message(ty, value);
    back.finish()
}

pub(super) fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut back = Back(Vec::with_capacity(raw.len() + 64));
    back.text(4, "");
    back.text(3, "");
    back.bytes(2, raw);
    let end = back.0.len();
    back.text(2, kind);
    back.text(1, api_version);
    back.close(1, end);
    back.raw(MAGIC);
    back.finish()
}

/// A message from its last byte to its first.
struct Back(Vec<u8>);

impl Back {
    fn finish(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    fn varint(&mut self, mut value: u64) {
        let mut buffer = [0; 10];
        let mut length = 0;
        loop {
            let more = value > 0x7f;
            buffer[length] = (value as u8 & 0x7f) | if more { 0x80 } else { 0 };
            length += 1;
            if !more {
                break;
            }
            value >>= 7;
        }
        self.raw(&buffer[..length]);
    }

    fn tag(&mut self, number: u32, wire: u64) {
        self.varint(u64::from(number) << 3 | wire);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.raw(bytes);
        self.varint(bytes.len() as u64);
        self.tag(number, BYTES);
    }

    fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    fn integer(&mut self, number: u32, value: i64) {
        self.varint(value as u64);
        self.tag(number, VARINT);
    }

    /// Length and tag of the message that was begun when `end` bytes stood here.
    fn close(&mut self, number: u32, end: usize) {
        self.varint((self.0.len() - end) as u64);
        self.tag(number, BYTES);
    }

    /// The content of the message that a value of a message type is.
    fn message(&mut self, ty: TypeRef<'_>, value: &Value) {
        match ty.shape() {
            Shape::Struct(s) => {
                let empty = Map::new();
                let map = value.as_object().unwrap_or(&empty);
                self.fields(ty, s, &s.by_number, 0, map);
            }
            Shape::Scalar(scalar) => self.scalar_message(*scalar, value),
            Shape::List(l) => {
                for item in value.as_array().into_iter().flatten().rev() {
                    self.single(1, ty.to(&l.item), item);
                }
            }
            Shape::Any => self.free(ty, value),
            Shape::Map(_) => {}
        }
    }

    /// Fields whose numbers agree in the first `level` places, from the highest down.
    fn fields(
        &mut self,
        ty: TypeRef<'_>,
        s: &Struct,
        mut order: &[u16],
        level: usize,
        map: &Map<String, Value>,
    ) {
        while let [rest @ .., last] = order {
            let field = &s.fields[usize::from(*last)];
            if field.proto.len() == level + 1 {
                self.field(ty, field, field.proto[level], map);
                order = rest;
                continue;
            }
            // Go inlines a struct here that protobuf nests.
            let number = field.proto[level];
            let first = order
                .partition_point(|&i| s.fields[usize::from(i)].proto.get(level).is_none_or(|n| *n < number));
            let end = self.0.len();
            self.fields(ty, s, &order[first..], level + 1, map);
            self.close(number, end);
            order = &order[..first];
        }
    }

    fn field(&mut self, owner: TypeRef<'_>, field: &Field, number: u32, map: &Map<String, Value>) {
        let ty = owner.to(&field.slot);
        let Some(value) = map.get(&*field.name).filter(|v| !v.is_null()) else {
            // Only what Go cannot tell from its zero value is written nevertheless.
            if !field.pointer && !nil_able(ty) {
                let zero = match ty.shape() {
                    Shape::Struct(_) => Value::Null,
                    _ => encode::zero(ty),
                };
                self.single(number, ty, &zero);
            }
            return;
        };
        match (ty.shape(), ty.ty().wire) {
            (Shape::List(l), Wire::Plain) => {
                for item in value.as_array().into_iter().flatten().rev() {
                    self.single(number, ty.to(&l.item), item);
                }
            }
            (Shape::Map(m), _) => {
                for (key, value) in value.as_object().into_iter().flatten().rev() {
                    let end = self.0.len();
                    let value_type = ty.to(&m.value);
                    // No bytes at all are not written, other than none of them.
                    if !value.is_null() || !matches!(value_type.shape(), Shape::Scalar(Scalar::Bytes)) {
                        self.single(2, value_type, value);
                    }
                    self.text(1, key);
                    self.close(number, end);
                }
            }
            _ => self.single(number, ty, value),
        }
    }

    /// One value with its tag.
    fn single(&mut self, number: u32, ty: TypeRef<'_>, value: &Value) {
        if let Shape::Scalar(scalar) = ty.shape() {
            match scalar {
                Scalar::Bool => return self.integer(number, i64::from(value.as_bool().unwrap_or(false))),
                Scalar::Int32 | Scalar::Int64 => return self.integer(number, value.as_i64().unwrap_or(0)),
                Scalar::Float64 => {
                    self.raw(&value.as_f64().unwrap_or(0.0).to_le_bytes());
                    return self.tag(number, FIXED64);
                }
                Scalar::String => return self.text(number, value.as_str().unwrap_or_default()),
                Scalar::Bytes => {
                    // What was decoded against the schema is base64; anything else has no bytes to give.
                    let bytes = BASE64.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
                    return self.bytes(number, &bytes);
                }
                Scalar::Time
                | Scalar::MicroTime
                | Scalar::Duration
                | Scalar::Quantity
                | Scalar::IntOrString => {}
            }
        }
        let end = self.0.len();
        self.message(ty, value);
        self.close(number, end);
    }

    fn scalar_message(&mut self, scalar: Scalar, value: &Value) {
        let text = value.as_str();
        match scalar {
            Scalar::Time => {
                if let Some(Ok(instant)) = text.map(gotime::parse_time) {
                    self.integer(2, 0);
                    self.integer(1, instant.seconds);
                }
            }
            Scalar::MicroTime => {
                if let Some(Ok(instant)) = text.map(gotime::parse_micro_time) {
                    self.integer(2, i64::from(instant.nanos / 1000 * 1000));
                    self.integer(1, instant.seconds);
                }
            }
            Scalar::Duration => {
                self.integer(1, text.and_then(|t| gotime::parse_duration(t).ok()).unwrap_or(0));
            }
            Scalar::Quantity => match value {
                Value::Number(n) => self.text(1, &n.to_string()),
                _ => self.text(1, text.unwrap_or("0")),
            },
            Scalar::IntOrString => {
                self.text(3, text.unwrap_or_default());
                self.integer(2, value.as_i64().unwrap_or(0));
                self.integer(1, i64::from(text.is_some()));
            }
            _ => {}
        }
    }

    fn free(&mut self, ty: TypeRef<'_>, value: &Value) {
        match (ty.ty().wire, value) {
            (Wire::Raw, Value::Null) => {}
            (Wire::Raw | Wire::Plain | Wire::Items, value) => self.bytes(1, &encode::any(value)),
            (Wire::SchemaOrBool(schema), Value::Object(_)) => {
                self.single(2, ty.schema.at(schema), value);
                self.integer(1, 1);
            }
            (Wire::SchemaOrBool(_), value) => self.integer(1, i64::from(value.as_bool().unwrap_or(false))),
            (Wire::SchemaOrArray(schema), Value::Array(items)) => {
                for item in items.iter().rev() {
                    self.single(2, ty.schema.at(schema), item);
                }
            }
            (Wire::SchemaOrStrings(_), Value::Array(items)) => {
                for item in items.iter().rev() {
                    self.text(2, item.as_str().unwrap_or_default());
                }
            }
            (Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema), Value::Object(_)) => {
                self.single(1, ty.schema.at(schema), value);
            }
            (Wire::SchemaOrArray(_) | Wire::SchemaOrStrings(_), _) => {}
        }
    }
}

/// Whether the Go type has a nil, which is not written.
fn nil_able(ty: TypeRef<'_>) -> bool {
    match ty.shape() {
        Shape::List(_) | Shape::Map(_) | Shape::Scalar(Scalar::Bytes) => true,
        Shape::Any => ty.ty().wire == Wire::Plain,
        Shape::Scalar(_) | Shape::Struct(_) => false,
    }
}
