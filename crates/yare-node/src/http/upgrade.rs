//! Upgrades: which streaming protocol a client asks for, and the switch to it.

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Body, text};

/// What was agreed on.
pub(super) enum Protocol {
    /// WebSocket with this sub-protocol; empty: none was asked for.
    WebSocket(String),
    /// SPDY/3.1 with this stream protocol.
    Spdy(String),
}

/// The answer to a request that cannot be served. Boxed: responses are large.
pub(super) type Refusal = Box<Response<Body>>;

/// A connection about to change hands.
pub(super) struct Upgrade {
    pub(super) protocol: Protocol,
    pub(super) on: OnUpgrade,
    pub(super) response: Response<Body>,
}

/// Header in which SPDY clients list stream protocols.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

fn list(request: &Request<Incoming>, name: &str) -> Vec<String> {
    request
        .headers()
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.is_empty())
        .collect()
}

/// Chooses a protocol, ours in order of preference; the error is the answer to a client that cannot be served.
pub(super) fn negotiate(
    mut request: Request<Incoming>,
    websocket: &[&str],
    spdy: &[&str],
) -> Result<Upgrade, Refusal> {
    let wanted = list(&request, "upgrade").join(",").to_ascii_lowercase();
    let upgrading = list(&request, "connection").iter().any(|v| v.eq_ignore_ascii_case("upgrade"));
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().remove(header::CONTENT_TYPE);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let bad = |message: &str| Err(Box::new(text(StatusCode::BAD_REQUEST, format!("{message}\n"))));
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    let protocol = if upgrading && wanted == "websocket" {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            return bad("Sec-WebSocket-Key is missing");
        };
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value(&derive_accept_key(key.as_bytes())));
        let offered = list(&request, "sec-websocket-protocol");
        let chosen = websocket.iter().find(|p| offered.iter().any(|o| o == *p));
        match chosen {
            Some(chosen) => {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(chosen));
                Protocol::WebSocket((*chosen).to_owned())
            }
            None if offered.is_empty() => Protocol::WebSocket(String::new()),
            None => return bad(&format!("none of the requested sub-protocols is supported: {offered:?}")),
        }
    } else if upgrading && wanted == "spdy/3.1" {
        let offered = list(&request, STREAM_PROTOCOL);
        let Some(chosen) = spdy.iter().find(|p| offered.iter().any(|o| o == *p)) else {
            let message = format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {spdy:?}\n"
            );
            return Err(Box::new(text(StatusCode::FORBIDDEN, message)));
        };
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.insert(STREAM_PROTOCOL, value(chosen));
        Protocol::Spdy((*chosen).to_owned())
    } else {
        return bad("Upgrade request required");
    };
    let on = hyper::upgrade::on(&mut request);
    Ok(Upgrade { protocol, on, response })
}
