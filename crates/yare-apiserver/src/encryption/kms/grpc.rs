//! Unary gRPC calls over a unix socket: one HTTP/2 connection, opened when it is needed and again when it
//! broke. A call waits for its server to come up, as long as its timeout allows.

use std::{
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::UnixStream;

use crate::encryption::{chain::Failure, metrics::Metrics};

/// Largest answer that is read, as gRPC has it.
const RESPONSE_MAX_BYTES: usize = 4 << 20;
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// Length of what stands before a message: a flag and the message's length.
const PREFIX_BYTES: usize = 5;
/// The names of gRPC's status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
pub(super) const UNAVAILABLE: &str = CODES[14];
pub(super) const DEADLINE_EXCEEDED: &str = CODES[4];

type Sender = SendRequest<Full<Bytes>>;

/// A client of one socket.
pub(super) struct Client {
    provider: String,
    /// A path, or a name in the abstract namespace after `@`.
    socket: String,
    timeout: Duration,
    connection: Mutex<Option<Sender>>,
    metrics: Arc<Metrics>,
}

fn failure(code: &'static str, why: impl std::fmt::Display) -> Failure {
    Failure { message: format!("rpc error: code = {code} desc = {why}"), code }
}

impl Client {
    pub fn new(provider: &str, socket: &str, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        let (provider, socket) = (provider.to_owned(), socket.to_owned());
        Self { provider, socket, timeout, connection: Mutex::default(), metrics }
    }

    /// Calls a method (`/package.Service/Method`) with a message, and gives the answer's.
    pub async fn call(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Failure> {
        let started = Instant::now();
        // Why there is no connection yet, should the time be over before there is one.
        let dialing = Mutex::new(None);
        let outcome = match tokio::time::timeout(self.timeout, self.exchange(method, message, &dialing)).await
        {
            Ok(outcome) => outcome,
            Err(_) => Err(match dialing.into_inner() {
                None => failure(DEADLINE_EXCEEDED, "context deadline exceeded"),
                Some(why) => failure(
                    DEADLINE_EXCEEDED,
                    format!(
                        "context deadline exceeded, latest balancer error: connection error: desc = \"transport: Error while dialing: {why}\""
                    ),
                ),
            }),
        };
        let code = outcome.as_ref().map_or_else(|failure| failure.code, |_| "OK");
        self.metrics.called(&self.provider, method, code, started.elapsed());
        outcome
    }

    async fn exchange(
        &self,
        method: &str,
        message: &[u8],
        dialing: &Mutex<Option<String>>,
    ) -> Result<Bytes, Failure> {
        let length =
            u32::try_from(message.len()).map_err(|_| failure(CODES[8], "the message is too large"))?;
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
        framed.put_u8(0);
        framed.put_u32(length);
        framed.put_slice(message);
        let framed = framed.freeze();
        loop {
            let mut sender = self.sender(dialing).await?;
            let request = http::Request::post(format!("http://localhost{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("user-agent", "kube-apiserver/v1.36.0")
                .header("grpc-timeout", format!("{}m", self.timeout.as_millis()))
                .body(Full::new(framed.clone()))
                .map_err(|e| failure(CODES[13], e))?;
            let response = match sender.send_request(request).await {
                Ok(response) => response,
                Err(error) => {
                    self.connection.lock().take();
                    // It was never sent: the connection broke while nobody looked.
                    if error.is_canceled() || error.is_closed() {
                        continue;
                    }
                    return Err(failure(UNAVAILABLE, error));
                }
            };
            return answer(response).await;
        }
    }

    /// The connection, a new one where there is none or it broke.
    async fn sender(&self, dialing: &Mutex<Option<String>>) -> Result<Sender, Failure> {
        if let Some(sender) = self.connection.lock().as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = loop {
            match connect(&self.socket).await {
                Ok(stream) => break stream,
                Err(error) => {
                    let why = format!("dial unix {}: connect: {}", self.socket, reason(&error));
                    *dialing.lock() = Some(why);
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failure(UNAVAILABLE, error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a KMS plugin ended");
            }
        });
        *self.connection.lock() = Some(sender.clone());
        Ok(sender)
    }
}

async fn connect(socket: &str) -> std::io::Result<UnixStream> {
    let Some(name) = socket.strip_prefix('@') else { return UnixStream::connect(socket).await };
    let address = SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// What the system says, in the words of others: without Rust's number of the error.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

async fn answer(response: http::Response<hyper::body::Incoming>) -> Result<Bytes, Failure> {
    let (head, body) = response.into_parts();
    if let Some(failed) = status(&head.headers) {
        failed?;
    } else if head.status != http::StatusCode::OK {
        return Err(failure(
            CODES[2],
            format!("unexpected HTTP status code received from server: {}", head.status),
        ));
    }
    let body = Limited::new(body, RESPONSE_MAX_BYTES)
        .collect()
        .await
        .map_err(|error| failure(UNAVAILABLE, error))?;
    match body.trailers().and_then(status) {
        Some(outcome) => outcome?,
        None if status(&head.headers).is_some() => {}
        None => return Err(failure(CODES[13], "server closed the stream without sending trailers")),
    }
    let bytes = body.to_bytes();
    let message = bytes.get(..PREFIX_BYTES).and_then(|prefix| {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        (prefix[0] == 0 && bytes.len() == PREFIX_BYTES + length).then(|| bytes.slice(PREFIX_BYTES..))
    });
    message.ok_or_else(|| failure(CODES[13], "the answer is not one message that is not compressed"))
}

/// The status in headers or trailers, where there is one.
fn status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let code = headers.get("grpc-status")?.to_str().ok()?;
    if code == "0" {
        return Some(Ok(()));
    }
    let name = code.parse::<usize>().ok().and_then(|n| CODES.get(n)).copied().unwrap_or(CODES[2]);
    let message = headers.get("grpc-message").map(|m| unescape(m.as_bytes())).unwrap_or_default();
    Some(Err(failure(name, message)))
}

/// Undoes gRPC's percent-encoding.
fn unescape(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = (*byte == b'%').then(|| tail.get(..2)).flatten();
        let digits = escaped.and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[2..];
            }
            None => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn statuses() {
        let mut headers = HeaderMap::new();
        assert!(status(&headers).is_none());
        headers.insert("grpc-status", "0".parse().unwrap());
        assert!(status(&headers).unwrap().is_ok());
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no key %22a%22 100%".parse().unwrap());
        let failed = status(&headers).unwrap().unwrap_err();
        assert_eq!(failed.message, "rpc error: code = NotFound desc = no key \"a\" 100%");
        headers.insert("grpc-status", "99".parse().unwrap());
        assert_eq!(status(&headers).unwrap().unwrap_err().code, "Unknown");
    }
}
