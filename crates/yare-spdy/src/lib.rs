//! SPDY/3.1, the framing in which clients of Kubernetes open streams to containers: both sides of it.
//!
//! In: a connection after its upgrade (or any duplex stream: current `kubectl` tunnels SPDY through WebSocket).
//! Out: streams with headers. A node serves it to clients, and is itself a client of a container runtime that is
//! reached over CRI. Header blocks are compressed with the protocol's dictionary; each stream has a flow control
//! window, which is only enforced towards peers that keep one themselves (Kubernetes' own client library never
//! sends a window update, and would stall).

mod connection;
mod dictionary;
mod frame;

pub use connection::{Connection, Stream, StreamReader, StreamWriter, connect, serve};
pub use frame::FrameError;
