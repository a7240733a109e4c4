//! HTTP calls that the server itself makes: to webhooks, to issuers of tokens, to receivers of audit events, and
//! on behalf of requests to the servers behind this one.
//!
//! | What | File |
//! |---|---|
//! | From a name to a connection: TCP, TLS, what went wrong in the words of Go's network stack | `dial.rs` |
//! | Ways that lead through a proxy | `egress/` |
//! | A document there and a document back, bounded in size and time, over connections that are kept | `client.rs` |
//! | An answer as an object of its kind, or why it is none | `answer.rs` |
//! | Where a kubeconfig says that is | `kubeconfig.rs` |
//! | Who this server is there | `identity.rs` |
//! | Programs that say who it is | `exec.rs` |
//! | Certificates that it shows to nodes and to the servers behind it | `shown.rs` |
//! | When a call is made again | `again.rs` |
//! | Where a server is | `target.rs` |
//! | What is counted of calls | `metrics.rs` |
//! | Requests and answers of any size, HTTP/2, upgrades | `stream.rs` |
//!
//! Keys and trust come from [`yare_auth::tls`]; nothing else in this crate speaks TLS to others.

mod again;
mod answer;
mod client;
mod dial;
pub mod egress;
mod exec;
mod identity;
pub mod kubeconfig;
mod metrics;
pub mod shown;
mod stream;
mod target;

use yare_schema::kubernetes_version;

/// What this server calls itself to services that it speaks gRPC with.
pub(crate) const USER_AGENT: &str = concat!("kube-apiserver/", kubernetes_version!());

pub use again::Backoff;
pub use answer::Kind;
pub use client::{Client, Failure};
pub use dial::{Dialer, authority, is_untrusted};
pub use metrics::Calls;
pub use stream::{Transport, exchange};
pub use target::bundle;
