//! Objects made from the tables: for each kind values that are valid JSON of it, wholly or partly filled.
//!
//! In: a type and a seed. Out: the same value every time, in the form that [`crate::decode`] gives it.
//! Tests of every crate use these; they are shaped rightly, but mean nothing and would not pass validation.

use serde_json::{Map, Value, json};

use crate::model::{Field, Scalar, Shape, TypeId, TypeRef, Wire};

/// How deep recursive types go.
const MAX_NESTING: usize = 12;

/// An object with every field set (recursive types end early).
pub fn full(ty: TypeRef<'_>) -> Value {
    Generator { state: 1, sparse: false, wire_only: false, stack: Vec::new() }.value(ty)
}

/// An object with about half of its fields set, which ones and to what the seed decides.
pub fn sparse(ty: TypeRef<'_>, seed: u64) -> Value {
    let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Generator { state, sparse: true, wire_only: false, stack: Vec::new() }.value(ty)
}

/// Like [`full`] (without a seed) or [`sparse`] (with one), but only with what protobuf holds.
pub fn on_the_wire(ty: TypeRef<'_>, seed: Option<u64>) -> Value {
    let state = seed.unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Generator { state, sparse: seed.is_some(), wire_only: true, stack: Vec::new() }.value(ty)
}

struct Generator {
    state: u64,
    sparse: bool,
    wire_only: bool,
    stack: Vec<TypeId>,
}

impl Generator {
    /// A number below `bound`.
    fn next(&mut self, bound: u64) -> u64 {
        // xorshift64*: spread well enough for tests, and the same everywhere.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn value(&mut self, ty: TypeRef<'_>) -> Value {
        match ty.shape() {
            Shape::Scalar(scalar) => self.scalar(ty, *scalar),
            Shape::Any => self.free(ty),
            Shape::List(l) => {
                let count = if self.sparse { 1 + self.next(3) } else { 1 };
                Value::Array((0..count).map(|_| self.value(ty.to(&l.item))).collect())
            }
            Shape::Map(m) => {
                let count = if self.sparse { 1 + self.next(3) } else { 2 };
                Value::Object((0..count).map(|i| (format!("key-{i}"), self.value(ty.to(&m.value)))).collect())
            }
            Shape::Struct(s) => {
                let mut map = Map::new();
                self.stack.push(ty.id);
                for field in &s.fields {
                    if self.wanted(ty, field) {
                        map.insert(field.name.to_string(), self.value(ty.to(&field.slot)));
                    }
                }
                self.stack.pop();
                Value::Object(map)
            }
        }
    }

    fn wanted(&mut self, owner: TypeRef<'_>, field: &Field) -> bool {
        let ty = owner.to(&field.slot);
        if self.wire_only && field.proto.is_empty() {
            return false;
        }
        if self.stack.len() > MAX_NESTING || self.recursive(ty) {
            return false;
        }
        !self.sparse || self.next(2) == 0
    }

    /// Whether the type, or what it holds, is being filled further out already.
    fn recursive(&self, ty: TypeRef<'_>) -> bool {
        match (ty.shape(), ty.ty().wire) {
            (_, Wire::SchemaOrBool(id) | Wire::SchemaOrArray(id) | Wire::SchemaOrStrings(id)) => {
                self.stack.iter().filter(|s| **s == id).count() > 1
            }
            (Shape::List(l), _) => self.recursive(ty.to(&l.item)),
            (Shape::Map(m), _) => self.recursive(ty.to(&m.value)),
            (Shape::Struct(_), _) => self.stack.contains(&ty.id),
            _ => false,
        }
    }

    fn scalar(&mut self, ty: TypeRef<'_>, scalar: Scalar) -> Value {
        let n = self.next(1000);
        match scalar {
            Scalar::Bool => Value::Bool(true),
            Scalar::Int32 => Value::from(n as i64 - 2000),
            Scalar::Int64 => Value::from((n as i64 + 1) * 10_000_000_019),
            Scalar::Float64 => Value::from(n as f64 + 0.5),
            Scalar::String => match ty.ty().enumeration.as_ref() {
                [] => Value::String(format!("<value> & \"{n}\" \u{2028} é")),
                values => Value::String(values[n as usize % values.len()].to_string()),
            },
            Scalar::Bytes => Value::from("AAH/"),
            Scalar::Time => Value::String(crate::gotime::format_time(1_500_000_000 + n as i64)),
            Scalar::MicroTime => {
                let instant = crate::gotime::Instant { seconds: n as i64, nanos: 123_456_000 };
                Value::String(crate::gotime::format_micro_time(instant))
            }
            Scalar::Duration => Value::String(crate::gotime::format_duration(1_000_000 * (n as i64 + 1))),
            Scalar::Quantity => Value::String(format!("{}m", n * 1000 + 1)),
            Scalar::IntOrString if n.is_multiple_of(2) => Value::from(n as i64),
            Scalar::IntOrString => Value::String(format!("{n}%")),
        }
    }

    fn free(&mut self, ty: TypeRef<'_>) -> Value {
        match (ty.ty().wire, self.next(2)) {
            (Wire::SchemaOrBool(_), 0) => Value::Bool(true),
            (Wire::SchemaOrArray(schema), 0) => json!([self.value(ty.schema.at(schema))]),
            (Wire::SchemaOrStrings(_), 0) => json!(["a", "b"]),
            (Wire::SchemaOrBool(schema) | Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema), _) => {
                self.value(ty.schema.at(schema))
            }
            (Wire::Plain | Wire::Raw | Wire::Items, n) => {
                json!({"apiVersion": "example.com/v1", "kind": "Custom", "spec": {"list": [n, null, 1.5, "<>"]}})
            }
        }
    }
}
