//! The protobuf messages of a KMS plugin (`k8s.io/kms/apis/v2`) and of what rests on disk
//! (`EncryptedObject`): a handful of fields, read and written by hand.

use std::collections::BTreeMap;

/// What protobuf's Go library says of bytes that are no message.
pub(super) const MALFORMED: &str = "proto: cannot parse invalid wire-format data";

/// Annotations: kept by the server, understood by the plugin.
pub(super) type Annotations = BTreeMap<String, Vec<u8>>;

/// The data key of a value is the key that the plugin decrypts.
pub(super) const DEK: u64 = 0;
/// The data key of a value is derived from what the plugin decrypts.
pub(super) const SEED: u64 = 1;

/// A value at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EncryptedObject {
    pub data: Vec<u8>,
    pub key_id: String,
    /// What the plugin decrypts to the data key or its seed.
    pub source: Vec<u8>,
    pub annotations: Annotations,
    /// [`DEK`] or [`SEED`]
    pub source_type: u64,
}

/// How a plugin is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StatusResponse {
    pub version: String,
    pub healthz: String,
    pub key_id: String,
}

/// What a plugin encrypted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EncryptResponse {
    pub ciphertext: Vec<u8>,
    pub key_id: String,
    pub annotations: Annotations,
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn block(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A field that is absent where it is empty.
fn bytes(field: u8, value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() {
        block(field, value, out);
    }
}

fn map(field: u8, annotations: &Annotations, out: &mut Vec<u8>) {
    for (key, value) in annotations {
        let mut entry = Vec::with_capacity(key.len() + value.len() + 8);
        block(1, key.as_bytes(), &mut entry);
        block(2, value, &mut entry);
        block(field, &entry, out);
    }
}

/// A field's value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of no use here.
    Other,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return (shift < 63 || *byte <= 1).then_some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Field::Other)?,
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }
}

/// Reads a message field by field; fields that `each` does not know are skipped.
fn read<'a>(
    message: &'a [u8],
    mut each: impl FnMut(u64, Field<'a>) -> Option<()>,
) -> Result<(), &'static str> {
    let mut fields = Fields(message);
    while !fields.0.is_empty() {
        let (number, value) = fields.field().ok_or(MALFORMED)?;
        each(number, value).ok_or(MALFORMED)?;
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn annotation(bytes: &[u8], into: &mut Annotations) -> Option<()> {
    let (mut key, mut value) = (String::new(), Vec::new());
    let entry = read(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => key = text(bytes)?,
            (2, Field::Bytes(bytes)) => value = bytes.to_vec(),
            _ => {}
        }
        Some(())
    });
    entry.ok()?;
    into.insert(key, value);
    Some(())
}

impl EncryptedObject {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.len() + self.source.len() + self.key_id.len() + 32);
        bytes(1, &self.data, &mut out);
        bytes(2, self.key_id.as_bytes(), &mut out);
        bytes(3, &self.source, &mut out);
        map(4, &self.annotations, &mut out);
        if self.source_type != 0 {
            out.push(5 << 3);
            varint(self.source_type, &mut out);
        }
        out
    }

    pub fn decode(message: &[u8]) -> Result<Self, &'static str> {
        let mut out = Self::default();
        read(message, |number, field| {
            match (number, field) {
                (1, Field::Bytes(bytes)) => out.data = bytes.to_vec(),
                (2, Field::Bytes(bytes)) => out.key_id = text(bytes)?,
                (3, Field::Bytes(bytes)) => out.source = bytes.to_vec(),
                (4, Field::Bytes(bytes)) => annotation(bytes, &mut out.annotations)?,
                (5, Field::Number(value)) => out.source_type = value,
                _ => {}
            }
            Some(())
        })?;
        Ok(out)
    }
}

impl StatusResponse {
    pub fn decode(message: &[u8]) -> Result<Self, &'static str> {
        let mut out = Self::default();
        read(message, |number, field| {
            match (number, field) {
                (1, Field::Bytes(bytes)) => out.version = text(bytes)?,
                (2, Field::Bytes(bytes)) => out.healthz = text(bytes)?,
                (3, Field::Bytes(bytes)) => out.key_id = text(bytes)?,
                _ => {}
            }
            Some(())
        })?;
        Ok(out)
    }
}

impl EncryptResponse {
    pub fn decode(message: &[u8]) -> Result<Self, &'static str> {
        let mut out = Self::default();
        read(message, |number, field| {
            match (number, field) {
                (1, Field::Bytes(bytes)) => out.ciphertext = bytes.to_vec(),
                (2, Field::Bytes(bytes)) => out.key_id = text(bytes)?,
                (3, Field::Bytes(bytes)) => annotation(bytes, &mut out.annotations)?,
                _ => {}
            }
            Some(())
        })?;
        Ok(out)
    }
}

/// `EncryptRequest`
pub(super) fn encrypt_request(plaintext: &[u8], uid: &str) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(1, plaintext, &mut out);
    bytes(2, uid.as_bytes(), &mut out);
    out
}

/// `DecryptRequest` for what a value's plugin encrypted.
pub(super) fn decrypt_request(object: &EncryptedObject, uid: &str) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(1, &object.source, &mut out);
    bytes(2, uid.as_bytes(), &mut out);
    bytes(3, object.key_id.as_bytes(), &mut out);
    map(4, &object.annotations, &mut out);
    out
}

/// The plaintext of a `DecryptResponse`.
pub(super) fn decrypt_response(message: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut plaintext = Vec::new();
    read(message, |number, field| {
        if let (1, Field::Bytes(bytes)) = (number, field) {
            plaintext = bytes.to_vec();
        }
        Some(())
    })?;
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn messages_go_there_and_back() {
        let object = EncryptedObject {
            data: vec![1; 300],
            key_id: "key".into(),
            source: vec![2, 3],
            annotations: [("a.b.io".to_owned(), vec![9]), ("c.d.io".to_owned(), Vec::new())].into(),
            source_type: SEED,
        };
        let wire = object.encode();
        assert_eq!(EncryptedObject::decode(&wire).unwrap(), object);
        assert_eq!(wire[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(wire[wire.len() - 2..], [0x28, 1]);
        assert_eq!(encrypt_request(b"ab", "u"), [0x0a, 2, b'a', b'b', 0x12, 1, b'u']);
        let status =
            StatusResponse::decode(&[0x0a, 2, b'v', b'2', 0x12, 2, b'o', b'k', 0x1a, 1, b'1', 0x20, 7]);
        assert_eq!(
            status.unwrap(),
            StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: "1".into() }
        );
        assert_eq!(decrypt_response(&[0x0a, 1, 5]).unwrap(), [5]);
        for end in 1..wire.len() {
            // Cut anywhere: never a panic, and an error unless the cut is between fields.
            let _ = EncryptedObject::decode(&wire[..end]);
        }
        for bad in [
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..],
            &[0x0b],
            &[0x00, 1],
            &[0x12, 1, 0xff],
        ] {
            assert_eq!(EncryptedObject::decode(bad).unwrap_err(), MALFORMED, "{bad:?}");
        }
    }
}
