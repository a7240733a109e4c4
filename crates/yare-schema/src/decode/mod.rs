//! Decoding: bytes of JSON, YAML or CBOR into a value that fits a type, in one pass.
//!
//! Built-in kinds are read as upstream's Go types read them: names are case-sensitive, unknown fields are
//! dropped (and reported), `null` means absent, times and quantities become canonical, and what
//! `omitempty` would not write is not kept. Values of CustomResourceDefinitions are read as they are:
//! pruning and validation are theirs ([`crate::prune`]).
//!
//! Errors and warnings carry upstream's words, since users and tests know them.

mod read;
mod scalar;
mod source;
mod yaml;

use std::{borrow::Cow, collections::HashSet};

use serde_json::{Map, Value};

pub(crate) use self::{
    read::{Outcome, Reader as Json, float},
    source::Source,
};
use crate::{
    cbor,
    goprint::quote,
    model::{Additional, Field, List, Scalar, Shape, Struct, TypeId, TypeRef, Wire},
};

pub use self::yaml::to_json as yaml_to_json;

/// How deep arrays and objects may nest. Upstream allows 10,000; no kind needs a fiftieth of that, and
/// every walk over a value recurses.
pub const MAX_DEPTH: usize = 200;

/// How many strict errors are reported at most.
const MAX_REPORTS: usize = 100;

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Fail.
    #[default]
    Strict,
    /// Drop them, and warn.
    Warn,
    /// Drop them.
    Ignore,
}

/// How the bytes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syntax {
    /// JSON.
    Json,
    /// YAML; of several documents only the first is read.
    Yaml,
    /// CBOR.
    Cbor,
}

/// What was read.
#[derive(Debug)]
pub struct Decoded {
    /// The object.
    pub value: Value,
    /// In [`Mode::Warn`]: `unknown field "spec.foo"`, `duplicate field "spec.bar"`.
    pub warnings: Vec<String>,
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, or not YAML.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields, in [`Mode::Strict`].
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("exceeded max depth")]
    Depth,
}

/// Reads JSON as a value of the type `ty`.
pub fn decode(ty: TypeRef<'_>, bytes: &[u8], mode: Mode) -> Result<Decoded, DecodeError> {
    read(Some(ty), Json::new(bytes), mode)
}

/// Reads JSON, YAML or CBOR as a value of the type `ty`.
pub fn decode_as(ty: TypeRef<'_>, bytes: &[u8], syntax: Syntax, mode: Mode) -> Result<Decoded, DecodeError> {
    with_syntax(Some(ty), bytes, syntax, mode)
}

/// Reads JSON of no known type: only duplicate fields can be wrong with it.
pub fn decode_untyped(bytes: &[u8], mode: Mode) -> Result<Decoded, DecodeError> {
    read(None, Json::new(bytes), mode)
}

/// Reads JSON, YAML or CBOR of no known type.
pub fn decode_untyped_as(bytes: &[u8], syntax: Syntax, mode: Mode) -> Result<Decoded, DecodeError> {
    with_syntax(None, bytes, syntax, mode)
}

fn read<'a, S: Source<'a>>(ty: Option<TypeRef<'a>>, source: S, mode: Mode) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder::new(source, mode);
    let value = match ty.filter(|ty| ty.schema.typed) {
        Some(ty) => decoder.value(ty)?.unwrap_or_else(|| Value::Object(Map::new())),
        None => decoder.any()?,
    };
    decoder.reader.end()?;
    decoder.finish(value)
}

fn with_syntax(
    ty: Option<TypeRef<'_>>,
    bytes: &[u8],
    syntax: Syntax,
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    match syntax {
        Syntax::Json => read(ty, Json::new(bytes), mode),
        Syntax::Cbor => read(ty, cbor::Reader::new(bytes)?, mode),
        Syntax::Yaml => {
            let (json, duplicates) = yaml_to_json(bytes)?;
            // What YAML itself has to say comes first, as upstream reads the YAML strictly first.
            let inner = if mode == Mode::Strict { Mode::Warn } else { mode };
            let mut decoded = read(ty, Json::new(&json), inner)?;
            if mode == Mode::Warn {
                // One warning for each, without the head that an error has.
                let lines = duplicates.iter().flat_map(|d| d.lines().skip(1));
                decoded.warnings.splice(0..0, lines.map(|line| line.trim().to_owned()));
            }
            if mode == Mode::Strict {
                decoded.warnings.splice(0..0, duplicates);
                if !decoded.warnings.is_empty() {
                    return Err(DecodeError::Strict(decoded.warnings));
                }
            }
            Ok(decoded)
        }
    }
}

/// Makes a value that was put together by hand (by a patch, say) what [`decode`] would have made of it.
pub fn normalize(ty: TypeRef<'_>, value: Value, mode: Mode) -> Result<Decoded, DecodeError> {
    let bytes = crate::encode::any(&value);
    decode(ty, &bytes, mode)
}

/// `apiVersion` and `kind` of a JSON object, without reading the rest into memory; empty where absent.
pub fn type_meta(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    let mut reader = Json::new(bytes);
    let (mut api_version, mut kind) = (String::new(), String::new());
    match reader.peek() {
        Some(b'{') => {}
        Some(b'n') => {
            reader.skip()?;
            reader.end()?;
            return Ok((api_version, kind));
        }
        other => {
            reader.skip()?;
            return Err(DecodeError::Type(format!(
                r#"json: cannot unmarshal {} into Go value of type struct {{ APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }}"#,
                json_type(other)
            )));
        }
    }
    reader.begin_object()?;
    let mut first = true;
    while let Some(key) = reader.next_key(first)? {
        first = false;
        let target = match &*key {
            "apiVersion" => &mut api_version,
            "kind" => &mut kind,
            _ => {
                reader.skip()?;
                continue;
            }
        };
        match reader.peek() {
            Some(b'"') => *target = reader.string()?.into_owned(),
            Some(b'n') => reader.skip()?,
            other => {
                reader.skip()?;
                return Err(DecodeError::Type(format!(
                    "json: cannot unmarshal {} into Go struct field .{key} of type string",
                    json_type(other)
                )));
            }
        }
    }
    reader.end()?;
    Ok((api_version, kind))
}

fn json_type(first: Option<u8>) -> &'static str {
    match first {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'n') => "null",
        _ => "number",
    }
}

/// Types whose `uid` is Go's `types.UID`.
const UID_OWNERS: [&str; 5] =
    [".ObjectMeta", ".OwnerReference", ".ObjectReference", ".Preconditions", ".StatusDetails"];

/// Unknown fields of one struct.
#[derive(Default)]
struct Strange<'a>(HashSet<Cow<'a, str>>);

struct Decoder<'a, S> {
    /// What is read.
    reader: S,
    mode: Mode,
    reports: Vec<String>,
    /// Path for reports: `spec.containers[0]`.
    path: String,
    /// Path for type errors, without indexes, and the struct at hand: what Go calls the error context.
    fields: Vec<Cow<'a, str>>,
    owner: Option<TypeId>,
    /// The outermost struct and its field at hand, which is what CBOR's errors name.
    outermost: Option<(TypeId, Cow<'a, str>)>,
    /// The first type error; later ones are not reported.
    failure: Option<String>,
    /// An error of a type that reads itself; it goes before `failure`.
    fatal: Option<String>,
}

impl<'a, S: Source<'a>> Decoder<'a, S> {
    /// Whether CBOR is read, whose rules differ in a few places.
    const CBOR: bool = matches!(S::NAME.as_bytes(), b"cbor");

    fn new(reader: S, mode: Mode) -> Self {
        Self {
            reader,
            mode,
            reports: Vec::new(),
            path: String::new(),
            fields: Vec::new(),
            owner: None,
            outermost: None,
            failure: None,
            fatal: None,
        }
    }

    fn finish(self, value: Value) -> Result<Decoded, DecodeError> {
        if let Some(message) = self.fatal.or(self.failure) {
            return Err(DecodeError::Type(message));
        }
        if self.mode == Mode::Strict && !self.reports.is_empty() {
            return Err(DecodeError::Strict(self.reports));
        }
        Ok(Decoded { value, warnings: self.reports })
    }

    fn report(&mut self, what: &str, field: &str) {
        if self.mode == Mode::Ignore || self.reports.len() >= MAX_REPORTS {
            return;
        }
        let dot = if self.path.is_empty() { "" } else { "." };
        let message = format!("{what} {}", quote(&format!("{}{dot}{field}", self.path)));
        if !self.reports.contains(&message) {
            self.reports.push(message);
        }
    }

    /// Remembers a value of the wrong type.
    fn mismatch(&mut self, ty: TypeRef<'a>, found: &str) {
        if self.failure.is_none() {
            self.failure = Some(self.unmarshal_error(ty, found, &self.wanted(ty)));
        }
    }

    /// How Go names the type that stands here. Of named strings, the tables know what they are and not their names.
    fn wanted(&self, ty: TypeRef<'a>) -> String {
        let owner = self.owner.map_or("", |owner| &ty.schema.at(owner).ty().name);
        let is_uid = self.fields.last().is_some_and(|field| field == "uid")
            && matches!(ty.shape(), Shape::Scalar(Scalar::String))
            && UID_OWNERS.iter().any(|name| owner.ends_with(name));
        if is_uid { "types.UID".into() } else { go_type(ty) }
    }

    fn unmarshal_error(&self, ty: TypeRef<'a>, found: &str, wanted: &str) -> String {
        if Self::CBOR {
            return match &self.outermost {
                Some((owner, field)) => {
                    let owner = go_type(ty.schema.at(*owner));
                    format!(
                        "cbor: cannot unmarshal {found} into Go struct field {owner}.{field} of type {wanted}"
                    )
                }
                None => format!("cbor: cannot unmarshal {found} into Go value of type {wanted}"),
            };
        }
        let Some(owner) = self.owner else {
            return format!("json: cannot unmarshal {found} into Go value of type {wanted}");
        };
        let owner = ty.schema.at(owner).ty().name.rsplit('.').next().unwrap_or_default();
        let path = self.fields.join(".");
        format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")
    }

    fn fail(&mut self, message: String) {
        self.fatal.get_or_insert(message);
    }

    /// The value at hand; `None` where it is null or of a wrong type.
    fn value(&mut self, ty: TypeRef<'a>) -> Outcome<Option<Value>> {
        let first = self.reader.peek();
        if first == Some(b'n') {
            self.reader.word("null")?;
            return Ok(None);
        }
        match ty.shape() {
            Shape::Scalar(scalar) => self.scalar(ty, *scalar, first),
            Shape::Any => self.free(ty, first),
            Shape::Struct(s) if first == Some(b'{') => self.object(ty, s).map(Some),
            Shape::Map(m) if first == Some(b'{') => self.map(ty.to(&m.value)).map(Some),
            Shape::List(l) if first == Some(b'[') => self.list(ty, l).map(Some),
            _ => {
                self.skip_mismatch(ty, first)?;
                Ok(None)
            }
        }
    }

    fn skip_mismatch(&mut self, ty: TypeRef<'a>, first: Option<u8>) -> Outcome<()> {
        let found = self.reader.found(first);
        self.reader.skip()?;
        self.mismatch(ty, found);
        Ok(())
    }

    fn object(&mut self, ty: TypeRef<'a>, s: &'a Struct) -> Outcome<Value> {
        self.reader.begin_object()?;
        let mut map = Map::new();
        // No struct of the API has more fields than this has bits; a field beyond would go unchecked.
        let mut seen = [0_u64; 4];
        let mut strange = Strange::default();
        let reported = self.reports.len();
        let outer = self.owner;
        let (path_length, depth) = (self.path.len(), self.fields.len());
        let mut first = true;
        while let Some(key) = self.reader.next_key(first)? {
            first = false;
            let Some(at) = s.position(&key) else {
                if matches!(s.additional, Additional::Preserve) {
                    self.push_path(&key);
                    let value = self.any()?;
                    map.insert(key.into_owned(), value);
                    self.path.truncate(path_length);
                } else if Self::CBOR {
                    self.strange(key, reported, &mut strange);
                    self.reader.skip()?;
                } else {
                    self.report("unknown field", &key);
                    self.reader.skip()?;
                }
                continue;
            };
            let field = &s.fields[at];
            if let Some(word) = seen.get_mut(at / 64) {
                let bit = 1 << (at % 64);
                if *word & bit != 0 {
                    self.twice(&key);
                }
                *word |= bit;
            }
            self.push_path(&key);
            // Go's paths name the structs that a field is inlined from.
            for (from, to, name) in &s.inlined {
                if (usize::from(*from)..usize::from(*to)).contains(&at) {
                    self.fields.push(Cow::Borrowed(name));
                }
            }
            if Self::CBOR && outer.is_none() {
                self.outermost = Some((ty.id, key.clone()));
            }
            self.fields.push(key);
            self.owner = Some(ty.id);
            let value = self.value(ty.to(&field.slot))?;
            self.fields.truncate(depth);
            self.path.truncate(path_length);
            self.owner = outer;
            match value {
                Some(value) if kept(ty, field, &value) => {
                    map.insert(String::from(&*field.name), value);
                }
                // A null sets a pointer, list or map to nil but leaves other values as they are.
                _ => {
                    map.remove(&*field.name);
                }
            }
        }
        Ok(Value::Object(map))
    }

    /// A key that stands twice. In CBOR nothing that has one is valid.
    fn twice(&mut self, key: &str) {
        if Self::CBOR {
            let index = self.reader.index();
            self.failure.get_or_insert_with(|| cbor::duplicate(key, index));
        } else {
            self.report("duplicate field", key);
        }
    }

    /// An unknown field of CBOR. Upstream reports the first of the struct at hand, and of what it holds none then.
    fn strange(&mut self, key: Cow<'a, str>, reported: usize, strange: &mut Strange<'a>) {
        if strange.0.is_empty() && self.mode != Mode::Ignore {
            self.reports.truncate(reported);
            if self.reports.is_empty() {
                self.reports.push(cbor::unknown(self.reader.index()));
            }
        }
        if strange.0.contains(&key) {
            self.twice(&key);
        }
        strange.0.insert(key);
    }

    fn push_path(&mut self, key: &str) {
        if self.mode != Mode::Ignore {
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(key);
        }
    }

    fn map(&mut self, value_type: TypeRef<'a>) -> Outcome<Value> {
        self.reader.begin_object()?;
        let mut map = Map::new();
        let length = self.path.len();
        let mut first = true;
        while let Some(key) = self.reader.next_key(first)? {
            first = false;
            self.push_path(&key);
            let value = self.value(value_type)?;
            self.path.truncate(length);
            let value = value.unwrap_or_else(|| crate::encode::blank(value_type));
            if map.contains_key(&*key) {
                self.twice(&key);
            }
            map.insert(key.into_owned(), value);
        }
        Ok(Value::Object(map))
    }

    fn list(&mut self, ty: TypeRef<'a>, list: &List) -> Outcome<Value> {
        self.reader.begin_array()?;
        let item_type = ty.to(&list.item);
        let mut items = Vec::new();
        let length = self.path.len();
        while self.reader.next_item(items.is_empty())? {
            if self.mode != Mode::Ignore {
                self.path.push_str(&format!("[{}]", items.len()));
            }
            let item = self.value(item_type)?;
            self.path.truncate(length);
            items.push(item.unwrap_or_else(|| crate::encode::blank(item_type)));
        }
        Ok(Value::Array(items))
    }

    fn any(&mut self) -> Outcome<Value> {
        let mut path = std::mem::take(&mut self.path);
        let mut found: Vec<String> = Vec::new();
        let value = self.reader.any(&mut path, &mut |p| {
            if found.len() < MAX_REPORTS {
                found.push(p.to_owned());
            }
        });
        self.path = path;
        for path in found {
            if self.mode != Mode::Ignore && self.reports.len() < MAX_REPORTS {
                let message = format!("duplicate field {}", quote(&path));
                if !self.reports.contains(&message) {
                    self.reports.push(message);
                }
            }
        }
        value
    }

    /// Free JSON, and the unions of CustomResourceDefinition schemas.
    fn free(&mut self, ty: TypeRef<'a>, first: Option<u8>) -> Outcome<Option<Value>> {
        let schema = match ty.ty().wire {
            Wire::SchemaOrBool(schema) | Wire::SchemaOrArray(schema) | Wire::SchemaOrStrings(schema) => {
                schema
            }
            Wire::Plain => return self.any().map(Some),
            // Upstream keeps these as text: duplicates inside are nobody's concern.
            Wire::Raw | Wire::Items => {
                let mut path = String::new();
                return self.reader.any(&mut path, &mut |_| {}).map(Some);
            }
        };
        let schema = ty.schema.at(schema);
        match (ty.ty().wire, first) {
            (_, Some(b'{')) => {
                // Upstream reads these by themselves: unknown fields inside go unreported.
                let mode = std::mem::replace(&mut self.mode, Mode::Ignore);
                let value = self.value(schema);
                self.mode = mode;
                value
            }
            (Wire::SchemaOrBool(_), Some(b't' | b'f')) => self.any().map(Some),
            (Wire::SchemaOrBool(_), _) => {
                self.reader.skip()?;
                self.fail("boolean or JSON schema expected".into());
                Ok(None)
            }
            (Wire::SchemaOrArray(_), Some(b'[')) => {
                self.reader.begin_array()?;
                let mut items = Vec::new();
                while self.reader.next_item(items.is_empty())? {
                    let item = self.value(schema)?;
                    items.push(item.unwrap_or_else(|| Value::Object(Map::new())));
                }
                Ok(Some(Value::Array(items)))
            }
            (Wire::SchemaOrStrings(_), Some(b'[')) => self.any().map(Some),
            _ => {
                self.reader.skip()?;
                Ok(None)
            }
        }
    }
}

/// Whether a field that was read keeps its value: what Go would not write back is absent to begin with.
fn kept(ty: TypeRef<'_>, field: &Field, value: &Value) -> bool {
    // An empty list says that nobody owns anything, or that there is no way to scale, and is not the same as none.
    if matches!(&*field.name, "managedFields" | "policies") && value.is_array() {
        return true;
    }
    field.pointer || !field.omit_empty || !crate::encode::is_omitted(ty, field, value)
}

/// How Go names the type, for messages.
fn go_type(ty: TypeRef<'_>) -> String {
    let name = &ty.ty().name;
    if !name.is_empty() {
        let mut parts = name.rsplit('.');
        let (last, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        return format!("{package}.{last}");
    }
    match ty.shape() {
        Shape::Scalar(scalar) => match scalar {
            Scalar::Bool => "bool".into(),
            Scalar::Int32 => "int32".into(),
            Scalar::Int64 => "int64".into(),
            Scalar::Float64 => "float64".into(),
            Scalar::Bytes => "[]uint8".into(),
            _ => "string".into(),
        },
        Shape::List(l) => format!("[]{}", go_type(ty.to(&l.item))),
        Shape::Map(m) => format!("map[string]{}", go_type(ty.to(&m.value))),
        Shape::Struct(_) => "struct".into(),
        Shape::Any => "interface {}".into(),
    }
}

#[cfg(test)]
mod tests;
