//! The encodings of the API, as one table: what each is called, where it may be used, how a document, a list and a
//! watch's event are made in it.
//!
//! Objects rest as JSON, so that JSON is copied out and everything else is made of it at the edge. Adding an encoding
//! is: write the file, add the row.

mod cbor;
mod json;
mod protobuf;
mod yaml;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use yare_schema::{decode::Syntax, features::Gates};
use yare_store::Object;

use crate::{
    body::Body,
    codec,
    registry::TypeHandle,
    render::Renderer,
    status::{ApiError, ApiResult},
    verbs::watch::Batch,
};

pub use self::json::indented;

/// Bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// JSON, which is also how objects rest.
    Json,
    /// YAML made from it.
    Yaml,
    /// `k8s\0` and a protobuf envelope.
    Protobuf,
    /// CBOR, behind a gate.
    Cbor,
}

/// One encoding.
pub struct Format {
    /// Which.
    pub encoding: Encoding,
    /// Its media type.
    pub media_type: &'static str,
    /// The feature gate that it is behind.
    pub gate: Option<&'static str>,
    /// Whether custom resources themselves have a form in it; their metadata has in every one.
    pub custom: bool,
    /// Whether tables have.
    pub tables: bool,
    /// How it is read against a type; protobuf has numbers instead of names.
    pub syntax: Option<Syntax>,
    /// A document that stands alone, indented where that means something.
    pub document: fn(&Named<'_>, Form<'_>, bool) -> ApiResult<Bytes>,
    /// A list.
    pub list: fn(Listing) -> ApiResult<Body>,
    /// Watches, where events can be told apart.
    pub stream: Option<Stream>,
}

/// How a watch goes in an encoding.
pub struct Stream {
    /// Its media type in messages.
    pub listed: &'static str,
    /// Its media type in answers.
    pub content_type: &'static str,
    /// Appends an event around an encoded object. Gives its length.
    pub event: fn(&'static str, Bytes, &mut Batch) -> usize,
}

/// The encodings in upstream's order, which is the order of preference where a client takes several.
pub static TABLE: [Format; 4] = [json::FORMAT, yaml::FORMAT, protobuf::FORMAT, cbor::FORMAT];

impl Encoding {
    /// Its row.
    pub fn format(self) -> &'static Format {
        match self {
            Self::Json => &TABLE[0],
            Self::Yaml => &TABLE[1],
            Self::Protobuf => &TABLE[2],
            Self::Cbor => &TABLE[3],
        }
    }
}

impl Format {
    /// Whether the gates let it be used; without gates, what is behind none.
    pub fn is_on(&self, gates: Option<&Gates>) -> bool {
        self.gate.is_none_or(|gate| gates.is_some_and(|gates| gates.is_on(gate)))
    }
}

/// Media types of all that may be used.
pub fn media_types(gates: Option<&Gates>) -> Vec<&'static str> {
    TABLE.iter().filter(|f| f.is_on(gates)).map(|f| f.media_type).collect()
}

/// Media types of all watches that may be used.
pub fn stream_types(gates: Option<&Gates>) -> Vec<&'static str> {
    TABLE.iter().filter(|f| f.is_on(gates)).filter_map(|f| f.stream.as_ref()).map(|s| s.listed).collect()
}

/// What a document is.
pub struct Named<'a> {
    /// Its type, where it has one. Looked into only where the form or the encoding asks for it: that of a custom
    /// resource may have to be compiled.
    pub ty: Option<&'a TypeHandle>,
    /// `apiVersion`
    pub api_version: &'a str,
    /// `kind`
    pub kind: &'a str,
}

/// A document that is to be encoded, as there is one.
pub enum Form<'a> {
    /// JSON text.
    Json(Bytes),
    /// A value of the type.
    Value(Value),
    /// A value that was put together.
    Made(&'a Value),
}

impl Form<'_> {
    fn json(self, ty: Option<&TypeHandle>) -> Bytes {
        match (self, ty) {
            (Self::Json(json), _) => json,
            (Self::Value(value), Some(ty)) => yare_schema::encode::json(ty.at(), &value).into(),
            (Self::Value(value), None) => yare_schema::encode::any(&value).into(),
            (Self::Made(value), Some(ty @ TypeHandle::Static(_))) => codec::to_json(ty, value).into(),
            (Self::Made(value), _) => value.to_string().into(),
        }
    }

    fn value(self) -> ApiResult<Value> {
        match self {
            Self::Json(json) => serde_json::from_slice(&json).map_err(ApiError::internal),
            Self::Value(value) => Ok(value),
            Self::Made(value) => Ok(value.clone()),
        }
    }
}

/// The objects of a list, as they rest.
pub enum Items {
    /// Of a snapshot.
    Stored(Vec<Arc<Object>>),
    /// Made or read for this list.
    Loose(Vec<Bytes>),
}

impl Items {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(objects) => objects.len(),
            Self::Loose(objects) => objects.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    pub fn get(&self, at: usize) -> Option<&Bytes> {
        match self {
            Self::Stored(objects) => objects.get(at).map(|o| &o.bytes),
            Self::Loose(objects) => objects.get(at),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Bytes> {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}

/// A list that is to be encoded.
pub struct Listing {
    /// Makes the items.
    pub renderer: Renderer,
    /// Its ListMeta.
    pub metadata: Value,
    /// The objects.
    pub items: Items,
    /// The client is in this process: pieces are handed over as they are instead of coalesced.
    pub shared: bool,
}

/// Any answer as JSON, for audit.
pub fn to_json(media_type: &str, bytes: &Bytes) -> Option<Bytes> {
    let format = TABLE.iter().find(|f| {
        media_type.strip_prefix(f.media_type).is_some_and(|rest| rest.is_empty() || rest.starts_with(';'))
    })?;
    match format.encoding {
        Encoding::Json => Some(bytes.clone()),
        Encoding::Yaml => codec::from_yaml(bytes).ok().map(|value| value.to_string().into()),
        Encoding::Protobuf => protobuf::to_json(bytes),
        Encoding::Cbor => codec::from_cbor(bytes).ok().map(|value| value.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_where_their_names_say() {
        for encoding in [Encoding::Json, Encoding::Yaml, Encoding::Protobuf, Encoding::Cbor] {
            assert_eq!(encoding.format().encoding, encoding);
        }
        let on = Gates::parse("CBORServingAndStorage=true").unwrap();
        for (gates, all, streams) in [(None, 3, 2), (Some(&Gates::default()), 3, 2), (Some(&on), 4, 3)] {
            assert_eq!((media_types(gates).len(), stream_types(gates).len()), (all, streams));
        }
    }
}
