//! Bodies: requests come in as one boxed type whatever the transport, responses go out as shared bytes or as
//! streams of them, so that the transport never copies what the store holds.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use serde_json::Value;

use crate::status::{ApiError, ApiResult};

/// Any error of a transport.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response.
pub type Reply = Response<Body>;

/// Request bodies over this are refused with 413.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// A response's body.
#[derive(Default)]
pub struct Body(Inner);

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Chunks(VecDeque<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    Foreign(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// One piece.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self(Inner::Empty) } else { Self(Inner::Chunks(VecDeque::from([bytes]))) }
    }

    /// Pieces made while they are sent.
    pub fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(stream)))
    }

    /// Another body, passed through (proxying).
    pub fn foreign<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Inner::Foreign(body.map_err(Into::into).boxed_unsync()))
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
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Chunks(chunks) => Poll::Ready(chunks.pop_front().map(|b| Ok(Frame::data(b)))),
            Inner::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|next| next.map(|b| Ok(Frame::data(b))))
            }
            Inner::Foreign(body) => Pin::new(body).poll_frame(cx),
        }
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
pub async fn read(headers: &HeaderMap, mut body: RequestBody) -> ApiResult<Bytes> {
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

/// Plain text.
pub fn text_reply(code: StatusCode, text: impl Into<String>) -> Reply {
    reply(code, "text/plain; charset=utf-8", text.into())
}

/// Status code from a number that upstream's errors carry.
pub fn status_code(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
