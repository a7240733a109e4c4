//! Protobuf, enveloped (`application/vnd.kubernetes.protobuf`).

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt as _, stream};

use super::{Encoding, Form, Format, Listing, Named, Stream};
use crate::{
    body::Body,
    codec::{self, LIST, LIST_V1BETA1, ListFields},
    negotiate::Shape,
    render::{Renderer, partial},
    status::{ApiError, ApiResult},
    verbs::watch::Batch,
    wire,
};

pub(super) const FORMAT: Format = Format {
    encoding: Encoding::Protobuf,
    media_type: "application/vnd.kubernetes.protobuf",
    gate: None,
    custom: false,
    tables: false,
    syntax: None,
    document,
    list,
    stream: Some(Stream {
        listed: "application/vnd.kubernetes.protobuf;stream=watch",
        content_type: "application/vnd.kubernetes.protobuf;stream=watch",
        event,
    }),
};

/// A list up to this size is encoded once and held.
const HELD_BYTES: usize = 8 << 20;

fn document(of: &Named<'_>, form: Form<'_>, _: bool) -> ApiResult<Bytes> {
    let Some(ty) = of.ty else {
        return Err(ApiError::internal(format!("{} has no form in protobuf", of.kind)));
    };
    let raw = yare_schema::proto::encode(ty.at(), &form.value()?);
    Ok(yare_schema::proto::wrap(of.api_version, of.kind, &raw).into())
}

/// Its length stands before a list, so one too large to be held is encoded twice: once to be measured, once to be
/// sent.
fn list(listing: Listing) -> ApiResult<Body> {
    let Listing { renderer, metadata, items, .. } = listing;
    let fields = fields(renderer.accepted.shape);
    let head = codec::list_head(fields, &metadata);
    let mut length = head.len();
    let mut held: Vec<Bytes> = Vec::new();
    for raw in items.iter() {
        let item = item(&renderer, raw)?;
        length += item.len();
        if length <= HELD_BYTES {
            held.push(item);
        } else {
            held.clear();
        }
    }
    let (api_version, kind) = renderer.list_identity();
    let start = codec::envelope_head(&api_version, &kind, length);
    let front = stream::iter([start, head]);
    let end = stream::iter([codec::envelope_tail()]);
    if length <= HELD_BYTES {
        return Ok(Body::stream(front.chain(stream::iter(held)).chain(end)));
    }
    let items = stream::iter(0..items.len())
        .map(move |at| items.get(at).and_then(|raw| item(&renderer, raw).ok()).unwrap_or_default());
    Ok(Body::stream(front.chain(items).chain(end)))
}

fn fields(shape: Shape) -> ListFields {
    match shape {
        Shape::Partial("v1beta1") => LIST_V1BETA1,
        _ => LIST,
    }
}

fn item(renderer: &Renderer, raw: &Bytes) -> ApiResult<Bytes> {
    let fields = fields(renderer.accepted.shape);
    match renderer.accepted.shape {
        Shape::Partial(version) => {
            let value = serde_json::from_slice(&partial(raw, version)).map_err(ApiError::internal)?;
            Ok(codec::list_item(fields, codec::partial_type(version)?, &value))
        }
        _ => Ok(codec::list_item(fields, renderer.served.ty.at(), &renderer.value(raw)?)),
    }
}

/// `metav1.WatchEvent{type = 1, object = 2: RawExtension{raw = 1}}`, behind a 32-bit length.
fn event(kind: &'static str, object: Bytes, batch: &mut Batch) -> usize {
    let mut raw = BytesMut::with_capacity(object.len() + 16);
    wire::field(&mut raw, 1, &object);
    let mut event = BytesMut::with_capacity(raw.len() + 32);
    wire::field(&mut event, 1, kind.as_bytes());
    wire::field(&mut event, 2, &raw);
    let mut out = BytesMut::with_capacity(event.len() + 4);
    out.put_u32(u32::try_from(event.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(&event);
    let length = out.len();
    batch.push(out.freeze());
    length
}

/// An enveloped object of a built-in kind as JSON.
pub(super) fn to_json(bytes: &[u8]) -> Option<Bytes> {
    let value = yare_schema::proto::from_wire(yare_schema::builtin::builtin(), bytes).ok()?;
    Some(value.to_string().into())
}
