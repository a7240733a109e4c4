//! SPDY/3.1, the framing in which clients of Kubernetes open streams: the server's side of it.
//!
//! In: a connection after its upgrade (or any duplex stream: current `kubectl` tunnels SPDY through WebSocket).
//! Out: streams with headers. Header blocks are compressed with the protocol's dictionary; each stream has a
//! flow control window, which is only enforced towards peers that keep one themselves (Kubernetes' own client
//! library never sends a window update, and would stall).

mod connection;
mod dictionary;
mod frame;

pub use connection::{Connection, Stream, StreamReader, StreamWriter, serve};
pub use frame::FrameError;
