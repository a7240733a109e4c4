//! Answers in gzip, for clients that take it (`Accept-Encoding`).
//!
//! As upstream does it (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`): at the fastest level, and only
//! what is longer than 128 KiB, since below that it costs more time than it saves. A list is made while it is
//! compressed and sent, so that it needs no more memory than its first 128 KiB. Watches are never compressed:
//! their events must not wait for each other in a compressor's window.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use bytes::{BufMut as _, Bytes, BytesMut, buf::Writer};
use flate2::{Compression, write::GzEncoder};
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, header};

use crate::body::{Body, Pieces, Reply};

/// Answers up to this size go out as they are.
const THRESHOLD_BYTES: usize = 128 * 1024;
/// Compressed bytes are gathered to about this size before they are sent.
const CHUNK_BYTES: usize = 32 * 1024;

/// Whether the client takes gzip. As upstream reads it: the bare word, without a weight.
pub fn wanted(headers: &HeaderMap) -> bool {
    let first = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    first.split(',').any(|token| token.trim() == "gzip")
}

/// Compresses the answer where it is long enough and nobody did so yet. What comes from other servers passes as it is.
pub async fn apply(mut reply: Reply) -> Reply {
    if reply.headers().contains_key(header::CONTENT_ENCODING) {
        return reply;
    }
    let pieces = match std::mem::take(reply.body_mut()).into_pieces() {
        Ok(pieces) => pieces,
        Err(body) => {
            *reply.body_mut() = body;
            return reply;
        }
    };
    let (mut first, mut rest) = match pieces {
        Pieces::Whole(all) => (all, None),
        Pieces::Stream(stream) => (VecDeque::new(), Some(stream)),
    };
    let mut length: usize = first.iter().map(Bytes::len).sum();
    while length <= THRESHOLD_BYTES
        && let Some(stream) = &mut rest
    {
        match stream.next().await {
            Some(piece) => {
                length += piece.len();
                first.push_back(piece);
            }
            None => rest = None,
        }
    }
    if length <= THRESHOLD_BYTES {
        *reply.body_mut() = Body::pieces(first);
        return reply;
    }
    let rest = rest.unwrap_or_else(|| Box::pin(stream::empty()));
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.remove(header::CONTENT_LENGTH);
    *reply.body_mut() = Body::stream(gzip(stream::iter(first).chain(rest)));
    reply
}

/// The stream in gzip.
fn gzip(input: impl Stream<Item = Bytes> + Send + 'static) -> impl Stream<Item = Bytes> + Send + 'static {
    let encoder = GzEncoder::new(BytesMut::new().writer(), Compression::fast());
    stream::unfold((Box::pin(input), Some(encoder)), |(mut input, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            let Some(piece) = input.next().await else {
                // Writing to memory does not fail; should it, the client sees a stream that breaks off.
                let last = encoder.finish().ok()?.into_inner().freeze();
                return Some((last, (input, None)));
            };
            let made: io::Result<Option<Bytes>> = encoder.write_all(&piece).map(|()| take(&mut encoder));
            match made {
                Ok(Some(chunk)) => return Some((chunk, (input, Some(encoder)))),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "compressing an answer failed");
                    return None;
                }
            }
        }
    })
}

/// What the encoder has made, once that is worth a write.
fn take(encoder: &mut GzEncoder<Writer<BytesMut>>) -> Option<Bytes> {
    let made = encoder.get_mut().get_mut();
    (made.len() >= CHUNK_BYTES).then(|| made.split().freeze())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn who_takes_gzip() {
        for (value, want) in [
            ("", false),
            ("gzip", true),
            ("deflate, gzip", true),
            ("br,gzip ,deflate", true),
            ("gzip;q=1", false),
            ("GZIP", false),
            ("*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(wanted(&headers), want, "{value}");
        }
    }

    #[tokio::test]
    async fn only_what_is_long() {
        let piece = |n: usize| Bytes::from((0..n).map(|i| (i / 7 % 251) as u8).collect::<Vec<_>>());
        for (pieces, streamed, compressed) in [
            (vec![], false, false),
            (vec![piece(THRESHOLD_BYTES)], false, false),
            (vec![piece(THRESHOLD_BYTES + 1)], false, true),
            (vec![piece(1), piece(THRESHOLD_BYTES - 1)], true, false),
            (vec![piece(1), piece(THRESHOLD_BYTES), piece(900_000), piece(3)], true, true),
        ] {
            let want: Vec<u8> = pieces.concat();
            let body =
                if streamed { Body::stream(stream::iter(pieces)) } else { Body::pieces(pieces.into()) };
            let reply = apply(Reply::new(body)).await;
            let is = reply.headers().get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(is.as_deref(), compressed.then_some("gzip"), "{}", want.len());
            assert_eq!(reply.headers().contains_key(header::VARY), compressed);
            let got = reply.into_body().collect().await.unwrap().to_bytes();
            if compressed {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&got[..]).read_to_end(&mut plain).unwrap();
                assert!(plain == want && got.len() < want.len(), "{} of {}", got.len(), want.len());
            } else {
                assert!(got == want);
            }
        }
    }

    #[tokio::test]
    async fn what_is_compressed_or_foreign_stays() {
        let long = Bytes::from(vec![7u8; THRESHOLD_BYTES * 2]);
        let mut done = Reply::new(Body::full(long.clone()));
        done.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
        assert_eq!(apply(done).await.into_body().collect().await.unwrap().to_bytes(), long);
        let foreign = Reply::new(Body::foreign(http_body_util::Full::new(long.clone())));
        assert_eq!(apply(foreign).await.into_body().collect().await.unwrap().to_bytes(), long);
    }
}
