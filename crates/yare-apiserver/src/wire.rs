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

/// `apiVersion` and `kind` of an enveloped object.
pub fn type_meta(bytes: &[u8]) -> Option<(String, String)> {
    proto::unwrap(bytes).ok().map(|envelope| (envelope.api_version, envelope.kind))
}

/// A length-delimited field.
pub fn field(out: &mut BytesMut, number: u8, bytes: &[u8]) {
    length_of(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// The start of a length-delimited field whose `length` bytes follow.
pub fn length_of(out: &mut BytesMut, number: u8, mut length: usize) {
    out.put_u8(number << 3 | 2);
    while length >= 0x80 {
        // The mask keeps it within a byte.
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

#[cfg(test)]
mod tests {
    use yare_schema::proto;

    use super::*;
    use crate::codec;

    #[test]
    fn envelopes_in_pieces_are_envelopes() {
        let message = vec![7u8; 300];
        let mut pieces = BytesMut::from(&codec::envelope_head("v1", "PodList", message.len())[..]);
        pieces.extend_from_slice(&message);
        pieces.extend_from_slice(&codec::envelope_tail());
        assert_eq!(&pieces[..], &proto::wrap("v1", "PodList", &message)[..]);
    }
}
