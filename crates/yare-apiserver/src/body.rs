//! Bodies: requests come in as one boxed type whatever the transport, responses go out as shared bytes or as
//! streams of them, so that the transport never copies what the store holds.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use serde_json::Value;

use crate::{
    status::{ApiError, ApiResult},
    trace,
};

/// Any error of a transport.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response.
pub type Reply = Response<Body>;

/// Request bodies over this are refused with 413.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// Pieces that are made while they are sent.
pub type Made = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// What a body of this server's own consists of.
pub enum Pieces {
    /// All there is.
    Whole(VecDeque<Bytes>),
    /// What will be.
    Stream(Made),
}

/// A response's body.
#[derive(Default)]
pub struct Body(Inner, Option<Box<Tail>>);

/// What is to be done when a body ends, and until when it must.
pub struct Tail {
    /// Told how the body ended; called once, also where the client goes away.
    pub done: Option<Box<dyn FnOnce(Sent) + Send>>,
    /// When the body breaks off.
    pub deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Bytes that were sent so far.
    pub bytes: u64,
}

/// How a body ended.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Its bytes.
    pub bytes: u64,
    /// All of it was sent.
    pub whole: bool,
}

impl Tail {
    fn end(&mut self, whole: bool) {
        if let Some(done) = self.done.take() {
            done(Sent { bytes: self.bytes, whole });
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Chunks(VecDeque<Bytes>),
    Stream(Made),
    Foreign(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// One piece.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let inner = if bytes.is_empty() { Inner::Empty } else { Inner::Chunks(VecDeque::from([bytes])) };
        Self(inner, None)
    }

    /// Several pieces.
    pub fn pieces(pieces: VecDeque<Bytes>) -> Self {
        Self(Inner::Chunks(pieces), None)
    }

    /// Pieces made while they are sent.
    pub fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(stream)), None)
    }

    /// Another body, passed through (proxying).
    pub fn foreign<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Inner::Foreign(body.map_err(Into::into).boxed_unsync()), None)
    }

    /// The size of a body that is complete already; none where it is made while it is sent.
    pub fn size(&self) -> Option<u64> {
        match &self.0 {
            Inner::Empty => Some(0),
            Inner::Chunks(chunks) => Some(chunks.iter().map(|c| c.len() as u64).sum()),
            Inner::Stream(_) | Inner::Foreign(_) => None,
        }
    }

    /// The body in one piece, where it has no more than `limit` bytes; the same body otherwise.
    pub async fn gather(mut self, limit: usize) -> Self {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut size = 0;
        while let Some(frame) = self.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(piece)) => {
                    size += piece.len();
                    pieces.push(piece);
                }
                Ok(Err(_)) => {}
                Err(error) => {
                    let head = futures::stream::iter(pieces).map(|p| Ok(Frame::data(p)));
                    let rest = head.chain(futures::stream::iter([Err(error)]));
                    return Self::foreign(http_body_util::StreamBody::new(rest));
                }
            }
            if size > limit {
                let head = futures::stream::iter(pieces).map(|p| Ok::<_, BoxError>(Frame::data(p)));
                let rest = http_body_util::BodyStream::new(self);
                return Self::foreign(http_body_util::StreamBody::new(head.chain(rest)));
            }
        }
        Self::full(pieces.concat())
    }

    /// Whether it is another server's.
    pub fn is_foreign(&self) -> bool {
        matches!(self.0, Inner::Foreign(_))
    }

    /// Has the end of the body told.
    pub fn with_tail(mut self, tail: Tail) -> Self {
        self.1 = Some(Box::new(tail));
        self
    }

    /// Its pieces; the body itself where it is another server's, or its end is waited for.
    pub fn into_pieces(self) -> Result<Pieces, Self> {
        if self.1.is_some() {
            return Err(self);
        }
        match self.0 {
            Inner::Empty => Ok(Pieces::Whole(VecDeque::new())),
            Inner::Chunks(chunks) => Ok(Pieces::Whole(chunks)),
            Inner::Stream(stream) => Ok(Pieces::Stream(stream)),
            Inner::Foreign(body) => Err(Self(Inner::Foreign(body), None)),
        }
    }

    /// The bytes, where the body is complete already.
    pub fn as_full(&self) -> Option<Bytes> {
        match &self.0 {
            Inner::Empty => Some(Bytes::new()),
            Inner::Chunks(chunks) if chunks.len() == 1 => chunks.front().cloned(),
            _ => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = match &mut this.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Chunks(chunks) => Poll::Ready(chunks.pop_front().map(|b| Ok(Frame::data(b)))),
            Inner::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|next| next.map(|b| Ok(Frame::data(b))))
            }
            Inner::Foreign(body) => Pin::new(body).poll_frame(cx),
        };
        let Some(tail) = &mut this.1 else { return polled };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => tail.bytes += frame.data_ref().map_or(0, |b| b.len() as u64),
            Poll::Ready(Some(Err(_))) => tail.end(false),
            Poll::Ready(None) => tail.end(true),
            Poll::Pending => {}
        }
        if let Some(deadline) = &mut tail.deadline
            && !matches!(polled, Poll::Ready(None))
            && deadline.as_mut().poll(cx).is_ready()
        {
            tail.end(false);
            this.0 = Inner::Empty;
            return Poll::Ready(Some(Err("the request took too long".into())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Chunks(chunks) => chunks.is_empty(),
            Inner::Stream(_) => false,
            Inner::Foreign(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Chunks(chunks) => SizeHint::with_exact(chunks.iter().map(|c| c.len() as u64).sum()),
            Inner::Stream(_) => SizeHint::default(),
            Inner::Foreign(body) => body.size_hint(),
        }
    }
}

/// A body that is refused before it is read, or one that is empty.
pub fn empty_request() -> RequestBody {
    http_body_util::Empty::<Bytes>::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Boxes whatever body the transport gives.
pub fn box_request<B>(body: B) -> RequestBody
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// The whole body of a request, bounded.
pub async fn read(headers: &HeaderMap, body: RequestBody) -> ApiResult<Bytes> {
    let read = limited(headers, body).await;
    match &read {
        Ok(bytes) => yare_trace::event("limitedReadBody succeeded", &[trace::number("len", bytes.len())]),
        Err(error) => {
            let said = [trace::number("len", 0), ("err", error.message.as_str().into())];
            yare_trace::event("limitedReadBody failed", &said);
        }
    }
    read
}

async fn limited(headers: &HeaderMap, mut body: RequestBody) -> ApiResult<Bytes> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > MAX_BODY_BYTES {
        return Err(ApiError::too_big(MAX_BODY_BYTES));
    }
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_request(format!("unable to read request body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let have = first.as_ref().map_or(0, Bytes::len).max(rest.len());
        if have + data.len() > MAX_BODY_BYTES {
            return Err(ApiError::too_big(MAX_BODY_BYTES));
        }
        match &first {
            None => first = Some(data),
            Some(head) => {
                if rest.is_empty() {
                    rest.reserve(announced.max(head.len() + data.len()));
                    rest.extend_from_slice(head);
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

/// A response of one piece.
pub fn reply(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A JSON document.
pub fn json_reply(code: StatusCode, value: &Value) -> Reply {
    reply(code, "application/json", value.to_string())
}

/// The answer to a `HEAD`: the body's size is all that is said of it. HTTP/2 would send the body.
pub fn head_only(mut reply: Reply) -> Reply {
    if let Some(size) = reply.body().size() {
        reply.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(size));
    }
    reply.map(|_| Body::default())
}

/// An answer that repeats what the client sent: a browser shall not make of it what it does not say it is.
pub fn unsniffed(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// Plain text.
pub fn text_reply(code: StatusCode, text: impl Into<String>) -> Reply {
    reply(code, "text/plain; charset=utf-8", text.into())
}

/// Status code from a number that upstream's errors carry.
pub fn status_code(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
