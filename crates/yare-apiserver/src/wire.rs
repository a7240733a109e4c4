//! Protobuf on the wire: envelopes around messages, and the hand-written fields of lists and watch events.

use bytes::{BufMut, BytesMut};
use serde_json::Value;
use yare_schema::{model::TypeRef, proto};

/// `apiVersion`, `kind` and value of an enveloped object of the type.
pub fn decode(ty: TypeRef<'_>, bytes: &[u8]) -> Result<(String, String, Value), String> {
    let envelope = proto::unwrap(bytes).map_err(|e| e.to_string())?;
    let value = proto::decode(ty, envelope.raw).map_err(|e| e.to_string())?;
    Ok((envelope.api_version, envelope.kind, value))
}

/// A length-delimited field.
pub fn field(out: &mut BytesMut, number: u8, bytes: &[u8]) {
    out.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        // The mask keeps it within a byte.
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.extend_from_slice(bytes);
}
