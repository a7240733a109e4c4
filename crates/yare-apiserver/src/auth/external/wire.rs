//! The messages of an external signer (`k8s.io/externaljwt/apis/v1`) and its methods.

use prost::Message;

pub(super) const SIGN: &str = "/v1.ExternalJWTSigner/Sign";
pub(super) const FETCH_KEYS: &str = "/v1.ExternalJWTSigner/FetchKeys";
pub(super) const METADATA: &str = "/v1.ExternalJWTSigner/Metadata";

#[derive(Clone, PartialEq, Message)]
pub(super) struct SignRequest {
    /// The token's payload, in base64url.
    #[prost(string, tag = "1")]
    pub claims: String,
}

/// The two other parts of the token, in base64url.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct SignResponse {
    #[prost(string, tag = "1")]
    pub header: String,
    #[prost(string, tag = "2")]
    pub signature: String,
}

impl std::fmt::Debug for SignResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignResponse").field("header", &self.header).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FetchKeysRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FetchKeysResponse {
    #[prost(message, repeated, tag = "1")]
    pub keys: Vec<Key>,
    /// When the signer had them from where they are kept.
    #[prost(message, tag = "2")]
    pub data_timestamp: Option<Timestamp>,
    #[prost(int64, tag = "3")]
    pub refresh_hint_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Key {
    #[prost(string, tag = "1")]
    pub key_id: String,
    /// SubjectPublicKeyInfo, DER.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub exclude_from_oidc_discovery: bool,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetadataRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetadataResponse {
    #[prost(int64, tag = "1")]
    pub max_token_expiration_seconds: i64,
}
