//! A plain answer carried over WebSocket, for clients that cannot read an endless body (browsers): each piece of the
//! body becomes a message. In: the request's headers, its upgrade and the body. Out: the 101 answer; the copying goes
//! on in a task of its own.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    body::{Body, Reply},
    status::{ApiError, ApiResult},
};

/// Messages are bytes as they are.
const BINARY: &str = "binary.k8s.io";
/// Messages are text, the bytes in base64.
const BASE64: &str = "base64.binary.k8s.io";
/// Nothing is expected from the client but control frames.
const MESSAGE_MAX_BYTES: usize = 4 << 10;
/// How long the client may take to take the last messages and answer the close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

fn has_word(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    words(headers, name).any(|w| w.eq_ignore_ascii_case(word))
}

fn words(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
}

/// Whether a request asks for WebSocket.
pub(super) fn requested(headers: &HeaderMap) -> bool {
    has_word(headers, header::CONNECTION, "upgrade") && has_word(headers, header::UPGRADE, "websocket")
}

/// Switches the connection to WebSocket and sends the body through it.
pub(super) fn answer(headers: &HeaderMap, upgrade: &mut Extensions, body: Body) -> ApiResult<Reply> {
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(ApiError::bad_request("Sec-WebSocket-Key is missing"));
    };
    let protocol = match words(headers, header::SEC_WEBSOCKET_PROTOCOL).find(|p| [BINARY, BASE64].contains(p))
    {
        Some(protocol) => Some(protocol),
        None if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) => {
            return Err(ApiError::bad_request(format!(
                "none of the requested WebSocket protocols is served here, only {BINARY} and {BASE64}"
            )));
        }
        None => None,
    };
    let Some(client) = upgrade.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request("this connection cannot be upgraded"));
    };
    let mut reply = Response::new(Body::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = reply.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    if let Some(protocol) = protocol {
        let value = if protocol == BASE64 { BASE64 } else { BINARY };
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
    }
    tokio::spawn(copy(client, body, protocol == Some(BASE64)));
    Ok(reply)
}

async fn copy(client: OnUpgrade, mut body: Body, base64: bool) {
    let Ok(client) = client.await else { return };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, Some(config)).await;
    let (mut sink, mut stream) = socket.split();
    let message = |bytes: Bytes| {
        if base64 { Message::text(STANDARD.encode(bytes)) } else { Message::Binary(bytes) }
    };
    let send = async {
        // An empty message tells the client that the connection stands.
        let mut sent = sink.send(message(Bytes::new())).await;
        while sent.is_ok()
            && let Some(Ok(frame)) = body.frame().await
        {
            if let Ok(bytes) = frame.into_data() {
                sent = sink.send(message(bytes)).await;
            }
        }
        let end = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, sink.send(Message::Close(Some(end)))).await;
        // The client's answer ends `receive`.
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    };
    let receive = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::select! { () = send => {}, () = receive => {} }
}
