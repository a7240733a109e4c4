//! Who a caller is and what it may do.
//!
//! In: certificates, bearer tokens, RBAC objects and pods as JSON. Out: a [`User`] and a [`Decision`].
//! No network and no store: the API server feeds this crate what changes and asks it.

pub mod abac;
pub mod bootstrap;
pub mod bootstrap_token;
pub mod cache;
pub mod conditions;
pub mod config;
mod expressions;
pub mod gotext;
pub mod jws;
pub mod node;
pub mod oidc;
pub mod pki;
pub mod rbac;
pub mod static_tokens;
pub mod tls;
pub mod token;
pub mod user;

pub use rbac::{Action, Decision};
pub use user::User;
