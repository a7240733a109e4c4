//! The protobuf messages of a KMS plugin (`k8s.io/kms/apis/v2`) and of what rests on disk (`EncryptedObject`).

use std::collections::BTreeMap;

use prost::Message;

/// What protobuf's Go library says of bytes that are no message.
pub(super) const MALFORMED: &str = "proto: cannot parse invalid wire-format data";

/// Annotations: kept by the server, understood by the plugin.
pub(super) type Annotations = BTreeMap<String, Vec<u8>>;

/// The data key of a value is the key that the plugin decrypts.
pub(super) const DEK: u64 = 0;
/// The data key of a value is derived from what the plugin decrypts.
pub(super) const SEED: u64 = 1;

/// A value at rest.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What the plugin decrypts to the data key or its seed.
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: Annotations,
    /// [`DEK`] or [`SEED`]
    #[prost(uint64, tag = "5")]
    pub source_type: u64,
}

impl EncryptedObject {
    /// Reads what rests on disk.
    pub fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        Self::decode(bytes).map_err(|_| MALFORMED)
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusRequest {}

/// How a plugin is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// What a plugin encrypted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: Annotations,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: Annotations,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

impl std::fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptRequest").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecryptResponse").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_rests_on_disk() {
        let object = EncryptedObject {
            data: vec![1; 300],
            key_id: "key".into(),
            source: vec![2, 3],
            annotations: [("a.b.io".to_owned(), vec![9]), ("c.d.io".to_owned(), Vec::new())].into(),
            source_type: SEED,
        };
        let wire = object.encode_to_vec();
        assert_eq!(EncryptedObject::read(&wire).unwrap(), object);
        assert_eq!(wire[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(wire[wire.len() - 2..], [0x28, 1]);
        for bad in [
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..],
            &[0x0b],
            &[0x00, 1],
            &[0x12, 1, 0xff],
        ] {
            assert_eq!(EncryptedObject::read(bad).unwrap_err(), MALFORMED, "{bad:?}");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        let asked = EncryptRequest { plaintext: vec![77; 4], uid: "u".into() };
        let answered = DecryptResponse { plaintext: vec![77; 4] };
        assert!(!format!("{asked:?} {answered:?}").contains("77"));
    }
}
