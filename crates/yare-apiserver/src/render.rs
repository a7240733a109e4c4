//! From objects at rest to what a client asked for: other versions, other encodings, tables, metadata alone.
//!
//! In: the bytes the store holds. Out: the same bytes where that is what the client wants, which is the
//! common case, and otherwise bytes made from them.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    body::{self, Reply},
    codec,
    core::Call,
    negotiate::{Accepted, Encoding, Shape},
    registry::Served,
    span,
    status::{ApiError, ApiResult, quote},
    tables,
};

/// How much of an object a table row carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// Renders objects of one resource for one request.
#[derive(Clone)]
pub struct Renderer {
    /// The resource in the version asked for.
    pub served: std::sync::Arc<Served>,
    /// What the client wants.
    pub accepted: Accepted,
    /// What table rows carry.
    pub include: IncludeObject,
    /// Now, for ages.
    pub now_s: i64,
}

impl Renderer {
    /// What this request wants of this resource.
    pub fn new(call: &Call, served: &std::sync::Arc<Served>, list: bool) -> ApiResult<Self> {
        let protobuf = served.stored.custom.is_none();
        let accepted = crate::negotiate::accept(&call.headers, &call.query, protobuf, list, true)?;
        let include = match (accepted.shape, call.query.get("includeObject")) {
            (Shape::Table(_), Some("None")) => IncludeObject::None,
            (Shape::Table(_), Some("Object")) => IncludeObject::Object,
            (Shape::Table(_), Some(other)) if !matches!(other, "Metadata" | "") => {
                return Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                    quote(other)
                )));
            }
            _ => IncludeObject::Metadata,
        };
        Ok(Self { served: served.clone(), accepted, include, now_s: call.core.now().as_second() })
    }

    /// The object as JSON value of the served version.
    pub fn value(&self, raw: &[u8]) -> ApiResult<Value> {
        let mut value: Value = serde_json::from_slice(raw).map_err(ApiError::internal)?;
        if self.is_stale(raw) && self.served.conversion().is_none() {
            self.served.stored.freshen(&mut value)?;
        }
        self.served.from_rest(&mut value)?;
        Ok(value)
    }

    /// Where a webhook converts: has these objects converted together, before they are rendered one by one.
    pub fn prepare<'a>(&self, objects: impl Iterator<Item = &'a Bytes>) -> ApiResult<()> {
        let Some(conversion) = self.served.conversion() else { return Ok(()) };
        if matches!(self.accepted.shape, Shape::Partial(_)) {
            return Ok(());
        }
        let values = objects.filter_map(|raw| serde_json::from_slice(raw).ok());
        conversion.warm(values, &self.served.api_version)
    }

    /// Whether a custom resource was written before its definition became what it is, or while it did.
    fn is_stale(&self, raw: &[u8]) -> bool {
        let stored = &self.served.stored;
        stored.custom.as_ref().is_some_and(|custom| {
            crate::verbs::write::revision_of(raw).is_some_and(|revision| revision < custom.since)
                || span::member(raw, "apiVersion").is_some_and(|at| {
                    raw[at].trim_ascii() != format!("\"{}\"", stored.api_version).as_bytes()
                })
        })
    }

    /// The object as JSON bytes of the served version.
    pub fn json(&self, raw: &Bytes) -> ApiResult<Bytes> {
        if self.served.is_storage() && !self.is_stale(raw) {
            return Ok(raw.clone());
        }
        Ok(codec::to_json(&self.served.ty, &self.value(raw)?).into())
    }

    /// One object in the shape and encoding asked for, alone (not in a list).
    pub fn object(&self, raw: &Bytes) -> ApiResult<Bytes> {
        match (self.accepted.shape, self.accepted.encoding) {
            (Shape::Full, Encoding::Json) => {
                let json = self.json(raw)?;
                Ok(if self.accepted.pretty { pretty(&json) } else { json })
            }
            (Shape::Full, Encoding::Yaml) => yaml(&self.json(raw)?),
            (Shape::Full, Encoding::Protobuf) => {
                let value = self.value(raw)?;
                codec::protobuf(&self.served.ty, &self.served.api_version, &self.served.kind, &value)
            }
            (Shape::Partial(version), encoding) => {
                partial_encoded(raw, version, encoding, self.accepted.pretty)
            }
            (Shape::Table(version), encoding) => {
                let metadata = span::member(raw, "metadata")
                    .and_then(|at| span::member(&raw[at.clone()], "resourceVersion").map(|v| &raw[at][v]))
                    .unwrap_or(b"\"\"");
                let head = tables::head(
                    &self.served,
                    version,
                    &format!("{{\"resourceVersion\":{}}}", String::from_utf8_lossy(metadata)),
                    true,
                );
                let mut out = BytesMut::from(head.as_bytes());
                out.extend_from_slice(&self.row(raw)?);
                out.extend_from_slice(b"]}");
                finish(out.freeze(), encoding, self.accepted.pretty)
            }
        }
    }

    /// One object as an item of a list in JSON: the object, its metadata, or a table row.
    pub fn item(&self, raw: &Bytes) -> ApiResult<Bytes> {
        match self.accepted.shape {
            Shape::Full => self.json(raw),
            Shape::Partial(version) => Ok(partial(raw, version)),
            Shape::Table(_) => self.row(raw),
        }
    }

    /// One table row.
    fn row(&self, raw: &Bytes) -> ApiResult<Bytes> {
        let object: Value = if self.served.stored.custom.is_some() {
            self.value(raw)?
        } else {
            serde_json::from_slice(raw).map_err(ApiError::internal)?
        };
        let cells = tables::cells(&self.served, &object, self.now_s);
        let mut out = BytesMut::with_capacity(512);
        out.extend_from_slice(b"{\"cells\":");
        out.extend_from_slice(Value::Array(cells).to_string().as_bytes());
        match self.include {
            IncludeObject::None => {}
            IncludeObject::Metadata => {
                out.extend_from_slice(b",\"object\":");
                out.extend_from_slice(&partial(raw, "v1"));
            }
            IncludeObject::Object => {
                out.extend_from_slice(b",\"object\":");
                out.extend_from_slice(&self.json(raw)?);
            }
        }
        out.extend_from_slice(b"}");
        Ok(out.freeze())
    }

    /// The start of a list in JSON, up to and including the opening bracket of its items; `]}` ends it.
    pub fn list_head(&self, metadata: &Value) -> String {
        match self.accepted.shape {
            Shape::Full => format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
                Value::from(&*self.served.list_kind),
                Value::from(&*self.served.api_version),
            ),
            Shape::Partial(version) => format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"items\":["
            ),
            Shape::Table(version) => tables::head(&self.served, version, &metadata.to_string(), true),
        }
    }

    /// The media type of the answer.
    pub fn media_type(&self) -> &'static str {
        self.accepted.encoding.media_type()
    }

    /// A response with one object at rest.
    pub fn reply(&self, code: StatusCode, raw: &Bytes) -> ApiResult<Reply> {
        Ok(body::reply(code, self.media_type(), self.object(raw)?))
    }
}

/// A document of a built-in type (given by group, version and kind) in whatever encoding the client takes.
pub fn document(call: &Call, code: StatusCode, value: &Value) -> ApiResult<Reply> {
    let api_version = value["apiVersion"].as_str().unwrap_or("v1");
    let kind = value["kind"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let ty = codec::builtin_type(group, version, kind);
    let accepted = crate::negotiate::accept(&call.headers, &call.query, ty.is_some(), false, false)?;
    let bytes = match (accepted.encoding, ty) {
        (Encoding::Protobuf, Some(ty)) => {
            codec::protobuf(&crate::registry::TypeHandle::Static(ty), api_version, kind, value)?
        }
        (Encoding::Yaml, _) => codec::to_yaml(value).into(),
        _ if accepted.pretty => pretty(value.to_string().as_bytes()),
        _ => value.to_string().into(),
    };
    Ok(body::reply(code, accepted.encoding.media_type(), bytes))
}

/// The answer to a failed request, in the client's encoding; in JSON where it takes none that errors have.
pub fn failure(call: &Call, error: &ApiError) -> Reply {
    let status = document(call, body::status_code(error.code), &error.to_json());
    match status {
        Ok(reply) => retry_after(reply, error),
        Err(_) => self::error(error),
    }
}

/// The answer to a failed request in JSON, where nothing is known of the client.
pub fn error(error: &ApiError) -> Reply {
    retry_after(body::json_reply(body::status_code(error.code), &error.to_json()), error)
}

fn retry_after(mut reply: Reply, error: &ApiError) -> Reply {
    if error.details.retry_after_s > 0
        && let Ok(value) = HeaderValue::from_str(&error.details.retry_after_s.to_string())
    {
        reply.headers_mut().insert(header::RETRY_AFTER, value);
    }
    reply
}

/// `PartialObjectMetadata` around the metadata of an object at rest, as JSON.
pub fn partial(raw: &Bytes, version: &str) -> Bytes {
    let metadata = span::member(raw, "metadata").map_or(&b"{}"[..], |at| &raw[at]);
    let mut out = BytesMut::with_capacity(metadata.len() + 96);
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(metadata);
    out.extend_from_slice(b"}");
    out.freeze()
}

fn partial_encoded(raw: &Bytes, version: &str, encoding: Encoding, indent: bool) -> ApiResult<Bytes> {
    let json = partial(raw, version);
    if encoding != Encoding::Protobuf {
        return finish(json, encoding, indent);
    }
    let value: Value = serde_json::from_slice(&json).map_err(ApiError::internal)?;
    codec::partial_protobuf(version, "PartialObjectMetadata", &value)
}

/// JSON into the encoding asked for, where that can be made from JSON alone.
pub fn finish(json: Bytes, encoding: Encoding, indent: bool) -> ApiResult<Bytes> {
    match encoding {
        Encoding::Yaml => yaml(&json),
        _ if indent => Ok(pretty(&json)),
        _ => Ok(json),
    }
}

fn yaml(json: &[u8]) -> ApiResult<Bytes> {
    let value: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
    Ok(codec::to_yaml(&value).into())
}

/// Indented JSON with the members in the order they had.
pub fn pretty(json: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(json.len() * 2);
    let newline = |out: &mut BytesMut, depth: usize| {
        out.extend_from_slice(b"\n");
        for _ in 0..depth {
            out.extend_from_slice(b"  ");
        }
    };
    let (mut depth, mut i) = (0usize, 0usize);
    while let Some(&byte) = json.get(i) {
        match byte {
            b'"' => {
                let start = i;
                i += 1;
                while i < json.len() && json[i] != b'"' {
                    i += if json[i] == b'\\' { 2 } else { 1 };
                }
                out.extend_from_slice(&json[start..(i + 1).min(json.len())]);
            }
            b'{' | b'[' => {
                out.extend_from_slice(&[byte]);
                let close = if byte == b'{' { b'}' } else { b']' };
                if json.get(i + 1) == Some(&close) {
                    out.extend_from_slice(&[close]);
                    i += 1;
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.extend_from_slice(&[byte]);
            }
            b',' => {
                out.extend_from_slice(b",");
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => out.extend_from_slice(&[byte]),
        }
        i += 1;
    }
    out.freeze()
}

/// A bookmark object of the kind.
pub fn bookmark(served: &Served, shape: Shape, revision: u64, initial_end: bool) -> Value {
    let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
    if initial_end {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    match shape {
        Shape::Partial(version) => json!({
            "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        }),
        Shape::Table(version) => json!({
            "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": { "resourceVersion": revision.to_string() },
            "columnDefinitions": null,
            "rows": [{ "cells": [], "object": {
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata } }],
        }),
        Shape::Full => {
            json!({ "kind": &*served.kind, "apiVersion": &*served.api_version, "metadata": metadata })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indents() {
        let json = br#"{"a":{"b":[1,"x\":{"]},"c":{},"d":[]}"#;
        let out = String::from_utf8(pretty(json).to_vec()).unwrap();
        assert_eq!(
            out,
            "{\n  \"a\": {\n    \"b\": [\n      1,\n      \"x\\\":{\"\n    ]\n  },\n  \"c\": {},\n  \"d\": []\n}"
        );
    }
}
