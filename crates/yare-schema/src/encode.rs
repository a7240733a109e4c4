//! Encoding: values to JSON, byte for byte as upstream's Go writes them.
//!
//! In: a value, and its type where there is one. Out: JSON with fields in upstream's order, `omitempty`
//! applied, what Go always writes filled in (`"status":{}`, `"rules":null`), and HTML characters escaped.

use serde_json::{Map, Number, Value};

use crate::model::{Field, Scalar, Shape, Struct, TypeRef, Wire};

/// The value as JSON in the field order of `ty`.
pub fn json(ty: TypeRef<'_>, value: &Value) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.value(ty, value);
    writer.out
}

/// Appends the value as JSON in the field order of `ty`.
pub fn write_json(ty: TypeRef<'_>, value: &Value, out: &mut Vec<u8>) {
    let mut writer = Writer { out: std::mem::take(out), at_rest: false, rv_at: None };
    writer.value(ty, value);
    *out = writer.out;
}

/// The value as JSON with sorted keys, which is how Go writes free objects.
pub fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_any(value, &mut out);
    out
}

/// An object as JSON at rest, with sorted keys: `metadata.resourceVersion` is an empty string, and the
/// number says where it starts (behind its opening quote), so that the store can write the revision there.
pub fn at_rest(value: &Value) -> (Vec<u8>, usize) {
    let mut writer = Writer::new();
    let empty = Map::new();
    writer.free_top(value.as_object().unwrap_or(&empty));
    writer.finish()
}

/// An object as JSON at rest like [`at_rest`], with the fields of `ty` in their order.
pub fn at_rest_as(ty: TypeRef<'_>, value: &Value) -> (Vec<u8>, usize) {
    let Some(s) = ty.as_struct().filter(|_| ty.schema.typed) else { return at_rest(value) };
    let mut writer = Writer { at_rest: true, ..Writer::new() };
    let empty = Map::new();
    writer.object(ty, s, value.as_object().unwrap_or(&empty), Role::Top);
    writer.finish()
}

/// The value that Go's zero value of the type is in JSON.
pub fn zero(ty: TypeRef<'_>) -> Value {
    match ty.shape() {
        Shape::Scalar(scalar) => match scalar {
            Scalar::Bool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::Float64 | Scalar::IntOrString => Value::from(0),
            Scalar::String => Value::String(String::new()),
            Scalar::Duration => Value::from("0s"),
            Scalar::Quantity => Value::from("0"),
            Scalar::Bytes | Scalar::Time | Scalar::MicroTime => Value::Null,
        },
        Shape::Struct(s) => {
            let mut map = Map::new();
            for field in &s.fields {
                if filled(ty, field) {
                    map.insert(String::from(&*field.name), absent(ty, field));
                }
            }
            Value::Object(map)
        }
        Shape::Any => match ty.ty().wire {
            Wire::SchemaOrBool(_) => Value::Bool(false),
            _ => Value::Null,
        },
        Shape::List(_) | Shape::Map(_) => Value::Null,
    }
}

/// What `null` is where a value must stand, in a list or under a key: Go's zero value, of a struct without the fields
/// that it would be written with. Those would make a thousand bytes of one.
pub(crate) fn blank(ty: TypeRef<'_>) -> Value {
    match ty.shape() {
        Shape::Struct(_) => Value::Object(Map::new()),
        _ => zero(ty),
    }
}

/// Adds to a value what Go writes of fields that nobody set: `"status":{}`, `"replicas":0`, `"rules":null`.
/// Server-side apply's field sets are computed of such values upstream.
pub fn fill(ty: TypeRef<'_>, value: &mut Value) {
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => {
            for field in &s.fields {
                match map.get_mut(&*field.name) {
                    Some(value) => fill(ty.to(&field.slot), value),
                    None if filled(ty, field) => {
                        map.insert(String::from(&*field.name), absent(ty, field));
                    }
                    None => {}
                }
            }
        }
        (Shape::List(l), Value::Array(items)) => items.iter_mut().for_each(|i| fill(ty.to(&l.item), i)),
        (Shape::Map(m), Value::Object(map)) => map.values_mut().for_each(|v| fill(ty.to(&m.value), v)),
        _ => {}
    }
}

/// Whether `omitempty` or `omitzero` keeps this value of the field out of JSON.
pub(crate) fn is_omitted(owner: TypeRef<'_>, field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return field.omit_empty && (field.pointer || field.omit_zero || !struct_like(owner.to(&field.slot)));
    }
    if field.pointer || !field.omit_empty {
        return false;
    }
    match value {
        Value::Null => true,
        _ if struct_like(owner.to(&field.slot)) => {
            field.omit_zero && value.as_object().is_some_and(Map::is_empty)
        }
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Whether the Go type is a struct, which `omitempty` never finds empty.
fn struct_like(ty: TypeRef<'_>) -> bool {
    match ty.shape() {
        Shape::Struct(_) => true,
        Shape::Scalar(s) => matches!(
            s,
            Scalar::Time | Scalar::MicroTime | Scalar::Duration | Scalar::Quantity | Scalar::IntOrString
        ),
        Shape::Any => ty.ty().wire != Wire::Plain,
        Shape::List(_) | Shape::Map(_) => false,
    }
}

/// What Go writes of a field that is not set; `None` where it leaves it out.
pub fn unset(owner: TypeRef<'_>, field: &Field) -> Option<Value> {
    filled(owner, field).then(|| absent(owner, field))
}

/// Whether Go writes the field although it is not set.
pub(crate) fn filled(owner: TypeRef<'_>, field: &Field) -> bool {
    if field.pointer {
        return !field.omit_empty;
    }
    !field.omit_zero && (!field.omit_empty || struct_like(owner.to(&field.slot)))
}

/// What Go writes of a field that is not set.
fn absent(owner: TypeRef<'_>, field: &Field) -> Value {
    if field.pointer { Value::Null } else { zero(owner.to(&field.slot)) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The object itself: its metadata is [`Role::Meta`].
    Top,
    /// The object's metadata: its resourceVersion is left blank.
    Meta,
    Plain,
}

struct Writer {
    out: Vec<u8>,
    /// The object is written for the store: upstream's rests as protobuf, which has no empty lists, so that they come
    /// back as `null`.
    at_rest: bool,
    rv_at: Option<usize>,
}

impl Writer {
    fn new() -> Self {
        Self { out: Vec::with_capacity(1024), at_rest: false, rv_at: None }
    }

    fn finish(self) -> (Vec<u8>, usize) {
        (self.out, self.rv_at.expect("every path through the object writes its resourceVersion"))
    }

    fn value(&mut self, ty: TypeRef<'_>, value: &Value) {
        match (ty.shape(), value) {
            (Shape::Struct(s), Value::Object(map)) if ty.schema.typed => self.object(ty, s, map, Role::Plain),
            (Shape::List(l), Value::Array(items)) => {
                self.out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.value(ty.to(&l.item), item);
                }
                self.out.push(b']');
            }
            (Shape::Map(m), Value::Object(map)) => {
                self.out.push(b'{');
                for (i, (key, value)) in map.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    write_string(key, &mut self.out);
                    self.out.push(b':');
                    self.value(ty.to(&m.value), value);
                }
                self.out.push(b'}');
            }
            (Shape::Any, Value::Object(_) | Value::Array(_)) => self.free(ty, value),
            _ => write_any(value, &mut self.out),
        }
    }

    /// Free JSON; in unions of CustomResourceDefinitions the schema is written as a schema.
    fn free(&mut self, ty: TypeRef<'_>, value: &Value) {
        let (Wire::SchemaOrBool(schema) | Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema)) =
            ty.ty().wire
        else {
            return write_any(value, &mut self.out);
        };
        match value {
            Value::Array(items) => {
                self.out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.value(ty.schema.at(schema), item);
                }
                self.out.push(b']');
            }
            value => self.value(ty.schema.at(schema), value),
        }
    }

    fn key(&mut self, first: &mut bool, name: &str) {
        if !*first {
            self.out.push(b',');
        }
        *first = false;
        write_string(name, &mut self.out);
        self.out.push(b':');
    }

    fn object(&mut self, ty: TypeRef<'_>, s: &Struct, map: &Map<String, Value>, role: Role) {
        self.out.push(b'{');
        let mut first = true;
        for field in &s.fields {
            if role == Role::Meta && &*field.name == "resourceVersion" {
                self.key(&mut first, &field.name);
                self.blank();
                continue;
            }
            let value = map.get(&*field.name).filter(|v| !v.is_null());
            let field_type = ty.to(&field.slot);
            if role == Role::Top
                && &*field.name == "metadata"
                && let Some(meta) = field_type.as_struct()
            {
                self.key(&mut first, &field.name);
                let empty = Map::new();
                let map = value.and_then(Value::as_object).unwrap_or(&empty);
                self.object(field_type, meta, map, Role::Meta);
                continue;
            }
            match value {
                Some(value) if is_omitted(ty, field, value) => {}
                Some(Value::Array(items))
                    if self.at_rest && items.is_empty() && matches!(field_type.shape(), Shape::List(_)) =>
                {
                    self.key(&mut first, &field.name);
                    self.out.extend_from_slice(b"null");
                }
                Some(value) => {
                    self.key(&mut first, &field.name);
                    self.value(field_type, value);
                }
                None if filled(ty, field) => {
                    self.key(&mut first, &field.name);
                    self.value(field_type, &absent(ty, field));
                }
                None => {}
            }
        }
        self.out.push(b'}');
    }

    fn blank(&mut self) {
        self.out.push(b'"');
        self.rv_at = Some(self.out.len());
        self.out.push(b'"');
    }

    /// An object without a type, at rest.
    fn free_top(&mut self, map: &Map<String, Value>) {
        self.sorted(map, "metadata", |w, meta| {
            let empty = Map::new();
            let meta = meta.and_then(Value::as_object).unwrap_or(&empty);
            w.sorted(meta, "resourceVersion", |w, _| w.blank());
        });
    }

    /// Members in order of their keys, with `special` among them whether or not it is set.
    fn sorted(
        &mut self,
        map: &Map<String, Value>,
        special: &str,
        mut write: impl FnMut(&mut Self, Option<&Value>),
    ) {
        self.out.push(b'{');
        let mut first = true;
        let mut pending = !map.contains_key(special);
        for (key, value) in map {
            if pending && key.as_str() > special {
                pending = false;
                self.key(&mut first, special);
                write(self, None);
            }
            self.key(&mut first, key);
            if key == special {
                write(self, Some(value));
            } else {
                write_any(value, &mut self.out);
            }
        }
        if pending {
            self.key(&mut first, special);
            write(self, None);
        }
        self.out.push(b'}');
    }
}

/// Appends free JSON.
pub fn write_any(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) => write_number(n, out),
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_any(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            out.push(b'{');
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write_any(value, out);
            }
            out.push(b'}');
        }
    }
}

/// Doubles as Go writes them: no exponent between 1e-6 and 1e21.
fn write_number(n: &Number, out: &mut Vec<u8>) {
    let Some(value) = n.as_f64().filter(|_| n.is_f64()) else {
        out.extend_from_slice(n.to_string().as_bytes());
        return;
    };
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        // Rust writes 1e-7 and 1e21 where Go writes 1e-07 (shortened again to 1e-7) and 1e+21.
        let text = format!("{value:e}");
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                out.extend_from_slice(format!("{digits}e+{exponent}").as_bytes());
            }
            _ => out.extend_from_slice(text.as_bytes()),
        }
        return;
    }
    out.extend_from_slice(format!("{value}").as_bytes());
}

/// Which bytes of a string need a closer look; 0xe2 begins U+2028 and U+2029.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = true;
        i += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'&' as usize] = true;
    table[0xe2] = true;
    table
};

/// Appends a JSON string with the characters escaped that Go escapes.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        if !SPECIAL[usize::from(b)] {
            continue;
        }
        let mut escape = [b'\\', b'u', b'0', b'0', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]];
        let (length, width) = match b {
            b'"' | b'\\' => {
                escape[1] = b;
                (2, 1)
            }
            0x08 | 0x0c | b'\n' | b'\r' | b'\t' => {
                escape[1] = match b {
                    0x08 => b'b',
                    0x0c => b'f',
                    b'\n' => b'n',
                    b'\r' => b'r',
                    _ => b't',
                };
                (2, 1)
            }
            0xe2 => match bytes.get(i + 1..i + 3) {
                Some([0x80, last @ (0xa8 | 0xa9)]) => {
                    escape = [b'\\', b'u', b'2', b'0', b'2', b'8' + (last - 0xa8)];
                    (6, 3)
                }
                _ => continue,
            },
            _ => (6, 1),
        };
        out.extend_from_slice(&bytes[from..i]);
        out.extend_from_slice(&escape[..length]);
        from = i + width;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// JSON spread over lines as Go's `json.Indent` does with two spaces (`?pretty=true`).
pub fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut fresh = false;
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    for &b in json {
        if in_string {
            out.push(b);
            in_string = escaped || b != b'"';
            escaped = !escaped && b == b'\\';
            continue;
        }
        if b.is_ascii_whitespace() {
            continue;
        }
        if fresh && b != b']' && b != b'}' {
            depth += 1;
            line(&mut out, depth);
        }
        match b {
            b'{' | b'[' => {
                fresh = true;
                out.push(b);
                continue;
            }
            b'}' | b']' if !fresh => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(b);
            }
            b',' => {
                out.push(b);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b'"' => {
                in_string = true;
                out.push(b);
            }
            _ => out.push(b),
        }
        fresh = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin::builtin;

    #[test]
    fn strings_are_escaped_as_in_go() {
        let mut out = Vec::new();
        write_string("a<b>&\"\\\n\t\u{8}\u{1}é\u{2028}\u{20ac}", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\t\\b\\u0001é\\u2028€\""
        );
    }

    #[test]
    fn doubles_are_written_as_in_go() {
        for (value, text) in [(0.5, "0.5"), (1e21, "1e+21"), (1e-7, "1e-7"), (123456789.125, "123456789.125")]
        {
            assert_eq!(String::from_utf8(any(&json!(value))).unwrap(), text);
        }
    }

    #[test]
    fn unset_fields_are_written_where_go_writes_them() {
        let pod = builtin().lookup("", "v1", "Pod").unwrap();
        let value = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "image": ""}]}});
        assert_eq!(
            String::from_utf8(json(pod, &value)).unwrap(),
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","resources":{}}]},"status":{}}"#
        );
        let role = builtin().lookup("rbac.authorization.k8s.io", "v1", "Role").unwrap();
        assert_eq!(String::from_utf8(json(role, &json!({}))).unwrap(), r#"{"metadata":{},"rules":null}"#);
    }

    #[test]
    fn the_revision_has_its_place() {
        let pod = builtin().lookup("", "v1", "Pod").unwrap();
        for value in [
            json!({"metadata": {"name": "a", "resourceVersion": "12", "uid": "u"}}),
            json!({"metadata": {"name": "a"}}),
            json!({"kind": "Pod"}),
            json!({"metadata": {"uid": "u"}, "spec": {}}),
        ] {
            for (mut bytes, at) in [at_rest(&value), at_rest_as(pod, &value)] {
                assert_eq!(&bytes[at - 1..=at], b"\"\"");
                bytes.splice(at..at, *b"42");
                let back: Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(back["metadata"]["resourceVersion"], "42");
            }
        }
    }

    #[test]
    fn indenting_is_gos() {
        assert_eq!(
            String::from_utf8(indent(br#"{"a":[1,{"b":"x\",{"}],"c":{},"d":[]}"#)).unwrap(),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x\\\",{\"\n    }\n  ],\n  \"c\": {},\n  \"d\": []\n}"
        );
    }
}
