//! gRPC with what plugs into a cluster by a socket: container runtimes (CRI), storage drivers (CSI), device
//! plugins, resource drivers, key services, health checks.
//!
//! Messages are structs that derive [`prost::Message`], written by hand in the crate that speaks them: a build
//! needs neither `protoc` nor the `.proto` files, and a reader sees each field with its number. A method is its
//! path, `/package.Service/Method`. [`Client`] calls and watches, [`Server`] is a table of methods.
//!
//! ```
//! use prost::Message;
//! use std::time::Duration;
//! use yare_grpc::{Client, Server, Status};
//!
//! #[derive(Clone, PartialEq, Message)]
//! struct Name {
//!     #[prost(string, tag = "1")]
//!     name: String,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let socket = directory.path().join("greeter.sock");
//! let greeter = Server::new().unary("/hello.Greeter/Greet", async |asked: Name| {
//!     Ok::<_, Status>(Name { name: format!("Hello, {}", asked.name) })
//! });
//! let listener = tokio::net::UnixListener::bind(&socket)?;
//! tokio::spawn(greeter.serve(listener, std::future::pending()));
//!
//! let client = Client::unix(&socket);
//! let name = Name { name: "Yare".into() };
//! let greeting: Name = client.call("/hello.Greeter/Greet", name, Duration::from_secs(5)).await?;
//! assert_eq!(greeting.name, "Hello, Yare");
//! # Ok(()) }
//! ```

mod authority;
mod client;
mod codec;
mod server;
mod status;
mod transport;

pub use authority::Rewriter;
pub use client::{Client, Ended, Observer};
pub use server::Server;
pub use status::{code_name, describe};
pub use tonic::{Code, Status, Streaming};
