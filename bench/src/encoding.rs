//! Objects as they travel: JSON, or protobuf by the types of the built-in kinds.

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::Value;
use yare_schema::{builtin::builtin, model::TypeRef, proto};

/// How objects travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// As text.
    Json,
    /// As Kubernetes' own clients send them.
    Protobuf,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    /// What it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Protobuf => "protobuf",
        }
    }

    /// `Content-Type` and `Accept`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// What is sent for an object.
    pub fn encode(self, object: &Value) -> anyhow::Result<Bytes> {
        Ok(match self {
            Self::Json => object.to_string().into(),
            Self::Protobuf => {
                let text = |name: &str| object[name].as_str().unwrap_or_default();
                proto::to_wire(type_of(text("apiVersion"), text("kind"))?, object).into()
            }
        })
    }

    /// The object that came.
    pub fn decode(self, bytes: &[u8]) -> anyhow::Result<Value> {
        match self {
            Self::Json => Ok(serde_json::from_slice(bytes)?),
            Self::Protobuf => {
                let envelope = proto::unwrap(bytes).context("not an envelope of Kubernetes")?;
                let mut object =
                    proto::decode(type_of(&envelope.api_version, &envelope.kind)?, envelope.raw)?;
                object["apiVersion"] = envelope.api_version.into();
                object["kind"] = envelope.kind.into();
                Ok(object)
            }
        }
    }
}

fn type_of(api_version: &str, kind: &str) -> anyhow::Result<TypeRef<'static>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    builtin().lookup(group, version, kind).with_context(|| format!("no type for {api_version} {kind}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_come_back() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"b": "c"}});
        for encoding in Encoding::ALL {
            assert_eq!(encoding.decode(&encoding.encode(&object).unwrap()).unwrap(), object);
        }
        assert!(Encoding::Protobuf.encode(&json!({"apiVersion": "a/v1", "kind": "B"})).is_err());
    }
}
