//! Kubernetes' protobuf, straight between wire bytes and JSON values.
//!
//! In and out: a value that fits a type of the built-in tables, and the bytes that upstream's generated
//! code (gogo, proto2) would write of it, to the bit: fields by ascending number, zero scalars and empty
//! messages written, map entries sorted. On the network an object stands in an envelope
//! ([`wrap`], [`unwrap`]): four magic bytes and a `runtime.Unknown`.

mod read;
mod write;

pub use self::{read::decode, write::encode};

use serde_json::Value;

use crate::{builtin::Builtin, model::TypeRef};

/// The content type of enveloped protobuf.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What enveloped objects begin with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are not protobuf of the type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtoError {
    /// The bytes end within a value.
    #[error("unexpected EOF")]
    Truncated,
    /// A number longer than any number.
    #[error("proto: integer overflow")]
    Overflow,
    /// A tag that no message has.
    #[error("proto: illegal tag {number} (wire type {wire})")]
    IllegalTag {
        /// Field number.
        number: u64,
        /// Wire type.
        wire: u64,
    },
    /// A field with another wire type than its own.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// Wire type that was found.
        wire: u64,
        /// JSON name of the field.
        field: String,
    },
    /// Nested deeper than [`crate::decode::MAX_DEPTH`].
    #[error("proto: exceeded max depth")]
    Depth,
    /// A string that is no value of its type, or JSON text that is none.
    #[error("proto: field {field}: {message}")]
    Invalid {
        /// JSON name of the field.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// No `k8s\0` at the beginning.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The envelope names no kind that has a protobuf form.
    #[error("no protobuf form is known of kind {kind:?} in version {api_version:?}")]
    UnknownKind {
        /// `apiVersion` in the envelope.
        api_version: String,
        /// `kind` in the envelope.
        kind: String,
    },
}

/// An object's envelope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope<'a> {
    /// `apiVersion` of the object.
    pub api_version: String,
    /// `kind` of the object.
    pub kind: String,
    /// The object's message.
    pub raw: &'a [u8],
    /// Content type of `raw`; empty for protobuf.
    pub content_type: String,
}

/// Takes an object out of its envelope.
pub fn unwrap(bytes: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?;
    read::envelope(body)
}

/// Puts an object's message into an envelope.
pub fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    write::envelope(api_version, kind, raw)
}

/// The enveloped form of an object, whose `apiVersion` and `kind` go into the envelope.
pub fn to_wire(ty: TypeRef<'_>, value: &Value) -> Vec<u8> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    wrap(text("apiVersion"), text("kind"), &encode(ty, value))
}

/// Reads an enveloped object of a built-in kind, `apiVersion` and `kind` included.
pub fn from_wire(builtin: &Builtin, bytes: &[u8]) -> Result<Value, ProtoError> {
    from_wire_at(builtin, bytes, 0)
}

fn from_wire_at(builtin: &Builtin, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    let envelope = unwrap(bytes)?;
    let (group, version) = envelope.api_version.split_once('/').unwrap_or(("", &envelope.api_version));
    let ty = builtin.lookup(group, version, &envelope.kind).ok_or_else(|| ProtoError::UnknownKind {
        api_version: envelope.api_version.clone(),
        kind: envelope.kind.clone(),
    })?;
    let mut value = read::decode_at(ty, envelope.raw, depth)?;
    if let Value::Object(map) = &mut value {
        map.insert("apiVersion".into(), envelope.api_version.into());
        map.insert("kind".into(), envelope.kind.into());
    }
    Ok(value)
}

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

#[cfg(test)]
mod tests;
