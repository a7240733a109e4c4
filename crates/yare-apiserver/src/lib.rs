//! The Kubernetes API over HTTP, generic for every kind.
//!
//! Shape comes from `yare-schema`, the list of resources and their rules from `yare-kinds`, identities and
//! permissions from `yare-auth`; objects rest in `yare-store` as the JSON that is served. There is no code per
//! kind here but in tables: admission ([`admission::TABLE`]), hooks, subresources, conversions, reviews.
//!
//! Start one with [`ApiServer::start`]; talk to it over [`ApiServer::serve`] or, in the same process, over
//! [`ApiServer::service`].

pub mod admission;
pub mod aggregation;
pub mod alloc;
pub mod audit;
pub mod auth;
pub mod body;
pub mod bootstrap;
pub mod browsers;
mod changes;
pub mod codec;
mod compress;
pub mod convert;
pub mod core;
pub mod crd;
pub mod deadline;
pub mod discovery;
mod dispatch;
mod drain;
pub mod encodings;
pub mod encryption;
mod escalation;
mod event_ttl;
mod files;
pub mod flow;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod index;
pub mod jsonpath;
pub mod leaders;
mod lease;
pub mod managed;
pub mod metrics;
pub mod negotiate;
pub mod openapi;
pub mod options;
mod outbound;
mod own_service;
mod owner_references;
pub mod path;
pub mod pipeline;
pub mod registry;
pub mod render;
pub mod review;
pub mod runtime_config;
pub mod selection;
pub mod server;
pub mod serving;
pub mod shutdown;
pub mod span;
pub mod status;
pub mod subresource;
pub mod tables;
mod to_the_end;
pub mod trace;
pub mod verbs;
mod warnings;
pub mod wire;
pub mod yaml;
pub mod zpages;

pub use auth::{Auth, User};
pub use body::Body;
pub use core::{Clock, Config, Random, SystemClock, SystemRandom};
pub use index::indexer;
pub use outbound::{egress::Egress, shown};
pub use server::{ApiServer, LocalService, StartError};
