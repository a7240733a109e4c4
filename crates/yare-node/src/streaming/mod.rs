//! Streams between a client and a container: exec, attach, port forwarding.
//!
//! Clients reach a container over WebSocket or over SPDY/3.1; both are brought to the same form here, a
//! [`session::Peer`] with bytes in and bytes out, so that exec and attach are written once.

pub(crate) mod session;
pub(crate) mod websocket;
