//! gRPC with what plugs into a cluster by a socket: container runtimes (CRI), storage drivers (CSI), device
//! plugins, resource drivers, key services, health checks.
//!
//! Messages are structs that derive [`prost::Message`], written by hand in the crate that speaks them: a build
//! needs neither `protoc` nor the `.proto` files, and a reader sees each field with its number. A method is its
//! path, `/package.Service/Method`. [`Client`] calls and watches, [`Server`] is a table of methods.
//!
//! ```
//! use std::time::Duration;
//! use yare_grpc::{Client, Server, Status, prost};
//!
//! #[derive(Clone, PartialEq, prost::Message)]
//! struct Name {
//!     #[prost(string, tag = "1")]
//!     name: String,
//! }
//!
//! # fn main() -> std::io::Result<()> { tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! # let directory = tempfile::tempdir()?; let socket = directory.path().join("greeter.sock");
//! let server = Server::new().unary("/hello.Greeter/Greet", async |asked: Name| {
//!     Ok::<_, Status>(Name { name: format!("Hello, {}", asked.name) })
//! });
//! # let _ = server;
//! # Ok(()) }) }
//! ```

mod client;
mod codec;
mod server;
mod status;

pub use client::Client;
pub use prost;
pub use server::Server;
pub use status::{code_name, describe};
pub use tonic::{Code, Status, Streaming};
