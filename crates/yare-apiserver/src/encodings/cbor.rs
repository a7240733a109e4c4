//! CBOR (`CBORServingAndStorage`), made from JSON text without reading it into memory.

use bytes::Bytes;
use yare_schema::{
    cbor::{self, SELF_DESCRIBED},
    decode::Syntax,
    model::TypeRef,
};

use super::{Encoding, Form, Format, Listing, Named, Stream, json::Framing};
use crate::{
    body::Body,
    negotiate::Shape,
    registry::TypeHandle,
    render::Renderer,
    status::{ApiError, ApiResult},
    verbs::watch::Batch,
};

pub(super) const FORMAT: Format = Format {
    encoding: Encoding::Cbor,
    media_type: "application/cbor",
    gate: Some("CBORServingAndStorage"),
    custom: true,
    tables: false,
    syntax: Some(Syntax::Cbor),
    document,
    list,
    stream: Some(Stream { listed: "application/cbor-seq", content_type: "application/cbor-seq", event }),
};

fn document(of: &Named<'_>, form: Form<'_>, _: bool) -> ApiResult<Bytes> {
    let json = form.json(of.ty);
    let mut out = Vec::with_capacity(json.len());
    out.extend_from_slice(&SELF_DESCRIBED);
    append(of.ty.map(TypeHandle::at), &json, &mut out)?;
    Ok(out.into())
}

fn append(ty: Option<TypeRef<'_>>, json: &[u8], out: &mut Vec<u8>) -> ApiResult<()> {
    cbor::write(ty, json, out).map_err(ApiError::internal)
}

fn list(listing: Listing) -> ApiResult<Body> {
    let (api_version, kind) = listing.renderer.list_identity();
    let mut head = SELF_DESCRIBED.to_vec();
    cbor::map_head(4, &mut head);
    for (key, value) in [("kind", &*kind), ("apiVersion", &*api_version)] {
        cbor::string(key, &mut head);
        cbor::string(value, &mut head);
    }
    cbor::string("metadata", &mut head);
    append(None, listing.metadata.to_string().as_bytes(), &mut head)?;
    cbor::string("items", &mut head);
    cbor::array_head(listing.items.len(), &mut head);
    let identity = String::new();
    Ok(Framing { head: head.into(), between: b"", end: b"", broken: b"\xf6", identity, item }.body(listing))
}

fn item(renderer: &Renderer, raw: &Bytes) -> ApiResult<Bytes> {
    let json = renderer.item(raw)?;
    let ty = match renderer.accepted.shape {
        Shape::Full => Some(renderer.served.ty.at()),
        _ => None,
    };
    let mut out = Vec::with_capacity(json.len());
    append(ty, &json, &mut out)?;
    Ok(out.into())
}

/// An item of a sequence (RFC 8742). The object in it begins with the tag once more.
fn event(kind: &'static str, object: Bytes, batch: &mut Batch) -> usize {
    let mut head = SELF_DESCRIBED.to_vec();
    cbor::map_head(2, &mut head);
    cbor::string("type", &mut head);
    cbor::string(kind, &mut head);
    cbor::string("object", &mut head);
    let length = head.len() + object.len();
    batch.push(head.into());
    batch.push(object);
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_with_their_tag() {
        let of = Named { ty: None, api_version: "v1", kind: "Status" };
        let value = serde_json::json!({"a": 1});
        assert_eq!(&document(&of, Form::Made(&value), true).unwrap()[..], b"\xd9\xd9\xf7\xa1\x41a\x01");
    }
}
