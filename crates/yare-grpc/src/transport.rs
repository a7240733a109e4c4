//! One HTTP/2 connection as gRPC's transport, and what goes wrong on it in gRPC's words.
//!
//! In: a stream to a server. Out: a connection, once the server has shown that it speaks HTTP/2; answers whose
//! errors are statuses. Codes and words are those of Go's implementation, for they end in events:
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> and `http-grpc-status-mapping.md` beside it.

use std::{
    error::Error as _,
    fmt::Display,
    io,
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::status::reason;

/// How long a server may take to say its first word.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a frame begins with: three bytes of length, one of type, one of flags, four of its stream's number.
const FRAME_HEADER_BYTES: usize = 9;
/// Largest frame that is taken.
const FRAME_MAX_BYTES: usize = 16 << 10;
/// Types of frames, by number.
const FRAMES: &[&str] = &[
    "DataFrame",
    "HeadersFrame",
    "PriorityFrame",
    "RSTStreamFrame",
    "SettingsFrame",
    "PushPromiseFrame",
    "PingFrame",
    "GoAwayFrame",
    "WindowUpdateFrame",
    "ContinuationFrame",
];
const SETTINGS: usize = 4;

/// A status of a connection that was not made or broke.
pub(crate) fn broken(why: impl Display) -> Status {
    Status::unavailable(connection_error(why))
}

/// Why there is no connection.
pub(crate) fn connection_error(why: impl Display) -> String {
    format!("connection error: desc = {:?}", why.to_string())
}

/// Opens a connection over a stream: done when the server's first frame is here, which must be its settings.
pub(crate) async fn shake_hands(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Body>, String> {
    let (told, first) = oneshot::channel();
    let stream = Overheard { stream, told: Some(told), header: Vec::with_capacity(FRAME_HEADER_BYTES) };
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("transport: failed to write client preface: {error}"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a gRPC connection ended");
        }
    });
    let preface = |why: &dyn Display| format!("error reading server preface: {why}");
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, first).await {
        Ok(Ok(Ok(()))) => Ok(sender),
        Ok(Ok(Err(First::Unread(why)))) => Err(preface(&why)),
        Ok(Ok(Err(First::Other(kind)))) => {
            Err(format!("initial http2 frame from server is not a settings frame: *http2.{kind}"))
        }
        Ok(Err(_)) => Err(preface(&"EOF")),
        Err(_) => Err(preface(&"context deadline exceeded")),
    }
}

/// A first frame that is none, or another than it must be.
enum First {
    Unread(String),
    Other(&'static str),
}

/// A stream whose first frame is looked at as it passes.
struct Overheard<S> {
    stream: S,
    told: Option<oneshot::Sender<Result<(), First>>>,
    header: Vec<u8>,
}

impl<S> Overheard<S> {
    fn hear(&mut self, outcome: &io::Result<()>, bytes: &[u8]) {
        let verdict = match outcome {
            Err(error) => Err(First::Unread(format!("read: {}", reason(error)))),
            Ok(()) if bytes.is_empty() && self.header.is_empty() => Err(First::Unread("EOF".into())),
            Ok(()) if bytes.is_empty() => Err(First::Unread("unexpected EOF".into())),
            Ok(()) => {
                let missing = FRAME_HEADER_BYTES - self.header.len();
                self.header.extend_from_slice(&bytes[..missing.min(bytes.len())]);
                if self.header.len() < FRAME_HEADER_BYTES {
                    return;
                }
                judge(&self.header)
            }
        };
        if let Some(told) = self.told.take() {
            // Who asked may have gone.
            let _ = told.send(verdict);
        }
    }
}

fn judge(header: &[u8]) -> Result<(), First> {
    let length = header.iter().take(3).fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length > FRAME_MAX_BYTES {
        let large = "http2: frame too large";
        return Err(First::Unread(match header.starts_with(b"HTTP/1.1 ") {
            true => format!(
                "http2: failed reading the frame payload: {large}, note that the frame header looked like an \
                 HTTP/1.1 header"
            ),
            false => large.to_owned(),
        }));
    }
    match usize::from(header[3]) {
        SETTINGS => Ok(()),
        kind => Err(First::Other(FRAMES.get(kind).copied().unwrap_or("UnknownFrame"))),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if self.told.is_some() {
            self.hear(&outcome, &buffer.filled()[before..]);
        }
        Poll::Ready(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Marks a status: the server has not seen the call.
#[derive(Debug)]
struct Unseen;

impl Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server has not seen the call")
    }
}

impl std::error::Error for Unseen {}

/// Whether the server has not seen a call, which may be made again then.
pub(crate) fn is_unseen(status: &Status) -> bool {
    status.source().is_some_and(|source| source.is::<Unseen>())
}

fn unseen(mut status: Status) -> Status {
    status.set_source(Arc::new(Unseen));
    status
}

/// The connection as the protocol's transport.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Body>,
    pub(crate) user_agent: Option<HeaderValue>,
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), Status>> {
        self.sender.poll_ready(context).map_err(|error| unseen(broken(error)))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(name) = &self.user_agent {
            request.headers_mut().insert(header::USER_AGENT, name.clone());
        }
        let answer = self.sender.send_request(request);
        Box::pin(async move {
            let answer = answer.await.map_err(|error| status_of(&error))?;
            match not_grpc(answer.status(), answer.headers()) {
                Some(status) => Err(status),
                None => {
                    let ended = answer.headers().contains_key("grpc-status");
                    Ok(answer.map(|body| Answer { body, ended }))
                }
            }
        })
    }
}

/// The messages of an answer.
pub(crate) struct Answer {
    body: Incoming,
    /// Whether the status is here.
    ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let was_ended = self.ended;
        self.ended |= frame.as_ref().is_none_or(|frame| !frame.as_ref().is_ok_and(Frame::is_data));
        Poll::Ready(match frame {
            Some(frame) => Some(frame.map_err(|error| status_of(&error))),
            None if was_ended => None,
            None => Some(Err(Status::internal("server closed the stream without sending trailers"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What becomes of an answer that is none of gRPC.
fn not_grpc(code: StatusCode, headers: &HeaderMap) -> Option<Status> {
    let content_type =
        headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let why = match content_type.as_deref() {
        None => "malformed header: missing HTTP content-type".to_owned(),
        Some(name) => {
            let rest = name.to_ascii_lowercase().strip_prefix("application/grpc").map(str::to_owned);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([';', '+'])) {
                return None;
            }
            format!("transport: received unexpected content-type {name:?}")
        }
    };
    let grpc = match code.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    let words = code.canonical_reason().unwrap_or_default();
    let code = code.as_u16();
    Some(Status::new(
        grpc,
        format!("unexpected HTTP status code received from server: {code} ({words}); {why}"),
    ))
}

/// What became of a call that ended without an answer.
fn status_of(error: &hyper::Error) -> Status {
    if error.is_canceled() || error.is_closed() {
        return unseen(broken("the connection broke before the call was sent"));
    }
    let source = error.source();
    if let Some(error) = source.and_then(|source| source.downcast_ref::<io::Error>()) {
        return broken(format_args!("error reading from server: {}", unread(error)));
    }
    let Some(error) = source.and_then(|source| source.downcast_ref::<h2::Error>()) else {
        return broken(format_args!("error reading from server: {error}"));
    };
    match error.reason() {
        // A server that goes away as it should says what it will not look at any more.
        Some(Reason::NO_ERROR) if error.is_go_away() => {
            unseen(Status::unavailable("the stream is rejected because server is draining the connection"))
        }
        Some(reason) if error.is_go_away() => Status::unavailable(format!(
            "closing transport due to: {}, received prior goaway: code: {reason:?}",
            connection_error("error reading from server: EOF")
        )),
        Some(reason) => {
            let status = Status::new(
                code_of(reason),
                format!("stream terminated by RST_STREAM with error code: {reason:?}"),
            );
            if reason == Reason::REFUSED_STREAM && error.is_remote() { unseen(status) } else { status }
        }
        None => broken(format_args!("error reading from server: {error}")),
    }
}

/// Why nothing more can be read. HTTP/2 tells of an end in the middle as of a broken pipe.
fn unread(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        _ => format!("read: {}", reason(error)),
    }
}

/// What a reset of a stream means.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::FLOW_CONTROL_ERROR | Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        Reason::NO_ERROR
        | Reason::PROTOCOL_ERROR
        | Reason::INTERNAL_ERROR
        | Reason::SETTINGS_TIMEOUT
        | Reason::STREAM_CLOSED
        | Reason::FRAME_SIZE_ERROR
        | Reason::COMPRESSION_ERROR
        | Reason::CONNECT_ERROR
        | Reason::HTTP_1_1_REQUIRED => Code::Internal,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_frames() {
        let verdict = |header: &[u8]| match judge(header) {
            Ok(()) => "settings".to_owned(),
            Err(First::Unread(why)) => why,
            Err(First::Other(kind)) => kind.to_owned(),
        };
        for (header, want) in [
            (&b"\0\0\x12\x04\0\0\0\0\0"[..], "settings"),
            (b"\0\0\x08\x07\0\0\0\0\0", "GoAwayFrame"),
            (b"\0\0\x08\x7f\0\0\0\0\0", "UnknownFrame"),
            (b"HTTP/1.0 ", "http2: frame too large"),
            (
                b"HTTP/1.1 ",
                "http2: failed reading the frame payload: http2: frame too large, note that the frame header \
                 looked like an HTTP/1.1 header",
            ),
        ] {
            assert_eq!(verdict(header), want);
        }
    }

    #[test]
    fn answers_that_are_not_of_grpc() {
        for (code, content_type, want) in [
            (200, Some("application/grpc"), None),
            (500, Some("application/grpc+proto"), None),
            (
                404,
                Some("text/plain"),
                Some((
                    Code::Unimplemented,
                    "404 (Not Found); transport: received unexpected content-type \"text/plain\"",
                )),
            ),
            (200, None, Some((Code::Unknown, "200 (OK); malformed header: missing HTTP content-type"))),
            (
                503,
                Some("application/grpcish"),
                Some((
                    Code::Unavailable,
                    "503 (Service Unavailable); transport: received unexpected content-type \
                     \"application/grpcish\"",
                )),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(content_type.map(|t| (header::CONTENT_TYPE, HeaderValue::from_static(t))));
            let status = not_grpc(StatusCode::from_u16(code).unwrap(), &headers);
            let got = status.as_ref().map(|status| {
                let words = "unexpected HTTP status code received from server: ";
                (status.code(), status.message().strip_prefix(words).unwrap())
            });
            assert_eq!(got, want);
        }
    }
}
