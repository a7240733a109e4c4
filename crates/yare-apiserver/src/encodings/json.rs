//! JSON: what the store holds, copied out.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use yare_schema::decode::Syntax;

use super::{Encoding, Form, Format, Items, Listing, Named, Stream};
use crate::{body::Body, render::Renderer, status::ApiResult, verbs::watch::Batch};

/// Pieces of a list that go over a network are coalesced to about this size.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) const FORMAT: Format = Format {
    encoding: Encoding::Json,
    media_type: "application/json",
    gate: None,
    custom: true,
    tables: true,
    syntax: Some(Syntax::Json),
    document,
    list,
    stream: Some(Stream { listed: "application/json;stream=watch", content_type: "application/json", event }),
};

fn document(of: &Named<'_>, form: Form<'_>, indent: bool) -> ApiResult<Bytes> {
    let json = form.json(of.ty);
    Ok(if indent { indented(&json) } else { json })
}

fn list(listing: Listing) -> ApiResult<Body> {
    if listing.renderer.accepted.pretty {
        return Ok(Body::full(indented(&whole(&listing)?)));
    }
    let head = Bytes::from(listing.renderer.list_head(&listing.metadata));
    let identity = listing.renderer.item_identity();
    let item = Renderer::item;
    Ok(Framing { head, between: b",", end: b"]}", broken: b"null", identity, item }.body(listing))
}

/// A list in one piece.
pub(super) fn whole(listing: &Listing) -> ApiResult<Bytes> {
    let mut json = BytesMut::from(listing.renderer.list_head(&listing.metadata).as_bytes());
    let identity = listing.renderer.item_identity();
    for (i, raw) in listing.items.iter().enumerate() {
        if i > 0 {
            json.extend_from_slice(b",");
        }
        append(&listing.renderer.item(raw)?, &identity, &mut json);
    }
    json.extend_from_slice(b"]}");
    Ok(json.freeze())
}

/// Appends an item without `identity`, if it begins with that.
fn append(item: &[u8], identity: &str, out: &mut BytesMut) {
    match item.strip_prefix(identity.as_bytes()) {
        Some(rest) if !identity.is_empty() => {
            out.extend_from_slice(b"{");
            out.extend_from_slice(rest);
        }
        _ => out.extend_from_slice(item),
    }
}

fn event(kind: &'static str, object: Bytes, batch: &mut Batch) -> usize {
    let prefix: &'static [u8] = match kind {
        "ADDED" => b"{\"type\":\"ADDED\",\"object\":",
        "MODIFIED" => b"{\"type\":\"MODIFIED\",\"object\":",
        "DELETED" => b"{\"type\":\"DELETED\",\"object\":",
        "BOOKMARK" => b"{\"type\":\"BOOKMARK\",\"object\":",
        _ => b"{\"type\":\"ERROR\",\"object\":",
    };
    let length = prefix.len() + object.len() + 2;
    batch.push(Bytes::from_static(prefix));
    batch.push(object);
    batch.push(Bytes::from_static(b"}\n"));
    length
}

/// Indented JSON with the members in the order they had.
pub fn indented(json: &[u8]) -> Bytes {
    yare_schema::encode::indent(json).into()
}

/// How the items of a list stand in it, for encodings that need not know its length beforehand.
pub(super) struct Framing {
    /// Up to the first item.
    pub(super) head: Bytes,
    /// Between two items.
    pub(super) between: &'static [u8],
    /// Behind the last.
    pub(super) end: &'static [u8],
    /// What stands for an item that cannot be rendered. What the store holds was written by this server and parses;
    /// should it not, the list shows this there rather than breaking off.
    pub(super) broken: &'static [u8],
    /// What is left out where items begin with it, when they are copied ([`Renderer::item_identity`]).
    pub(super) identity: String,
    /// One item.
    pub(super) item: fn(&Renderer, &Bytes) -> ApiResult<Bytes>,
}

impl Framing {
    /// The list, made while it is sent. In this process every object is a piece of its own, shared with the store;
    /// for a network they are copied together, since many small writes cost more than the copy.
    pub(super) fn body(self, listing: Listing) -> Body {
        let Listing { renderer, items, shared, .. } = listing;
        let pending = VecDeque::from([self.head.clone()]);
        let mut state = Pieces { framing: self, renderer, items, at: 0, pending, done: false, shared };
        let first = if shared { None } else { state.next() };
        if let (Some(whole), true) = (&first, state.done) {
            return Body::full(whole.clone());
        }
        let rest = stream::unfold(state, |mut state| async move {
            let piece = state.next();
            piece.map(|p| (p, state))
        });
        Body::stream(stream::iter(first).chain(rest))
    }
}

struct Pieces {
    framing: Framing,
    renderer: Renderer,
    items: Items,
    at: usize,
    pending: VecDeque<Bytes>,
    done: bool,
    shared: bool,
}

impl Pieces {
    fn next(&mut self) -> Option<Bytes> {
        let Framing { between, end, .. } = self.framing;
        if self.shared {
            if let Some(piece) = self.pending.pop_front() {
                return Some(piece);
            }
            if self.done {
                return None;
            }
            if self.at == self.items.len() {
                self.done = true;
                return (!end.is_empty()).then(|| Bytes::from_static(end));
            }
            let item = self.item();
            if self.at == 1 || between.is_empty() {
                return Some(item);
            }
            self.pending.push_back(item);
            return Some(Bytes::from_static(between));
        }
        if self.done {
            return None;
        }
        let head = self.pending.pop_front().unwrap_or_default();
        let mut chunk =
            BytesMut::with_capacity(CHUNK_BYTES.min(head.len() + 4096 + self.remaining_estimate()));
        chunk.extend_from_slice(&head);
        while self.at < self.items.len() && chunk.len() < CHUNK_BYTES {
            if self.at > 0 {
                chunk.extend_from_slice(between);
            }
            let item = self.item();
            append(&item, &self.framing.identity, &mut chunk);
        }
        if self.at == self.items.len() {
            chunk.extend_from_slice(end);
            self.done = true;
        }
        Some(chunk.freeze())
    }

    fn remaining_estimate(&self) -> usize {
        self.items.get(self.at).map_or(0, |raw| (self.items.len() - self.at) * raw.len())
    }

    fn item(&mut self) -> Bytes {
        let at = self.at;
        self.at += 1;
        let item = self.items.get(at).and_then(|raw| (self.framing.item)(&self.renderer, raw).ok());
        item.unwrap_or_else(|| Bytes::from_static(self.framing.broken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_out_what_their_list_says() {
        let identity = r#"{"kind":"A","apiVersion":"v1","#;
        for (item, identity, want) in [
            (r#"{"kind":"A","apiVersion":"v1","a":1}"#, identity, r#"{"a":1}"#),
            (r#"{"kind":"A","apiVersion":"v1"}"#, identity, r#"{"kind":"A","apiVersion":"v1"}"#),
            (r#"{"kind":"B","apiVersion":"v1","a":1}"#, identity, r#"{"kind":"B","apiVersion":"v1","a":1}"#),
            (r#"{"kind":"A","apiVersion":"v1","a":1}"#, "", r#"{"kind":"A","apiVersion":"v1","a":1}"#),
        ] {
            let mut out = BytesMut::new();
            append(item.as_bytes(), identity, &mut out);
            assert_eq!(out, want, "{item}");
        }
    }

    #[test]
    fn indents() {
        let json = br#"{"a":{"b":[1,"x\":{"]},"c":{},"d":[]}"#;
        let out = String::from_utf8(indented(json).to_vec()).unwrap();
        assert_eq!(
            out,
            "{\n  \"a\": {\n    \"b\": [\n      1,\n      \"x\\\":{\"\n    ]\n  },\n  \"c\": {},\n  \"d\": []\n}"
        );
    }
}
