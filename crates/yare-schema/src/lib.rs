//! The shape of the Kubernetes API as data, and everything that follows from shape alone.
//!
//! No I/O, no async. Built-in kinds and CustomResourceDefinitions go through the very same code.

pub mod builtin;
pub mod cbor;
pub mod coerce;
pub mod constraints;
pub mod content;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod encode;
pub mod features;
pub mod field;
pub mod fixtures;
pub mod goprint;
pub mod gotime;
pub mod local_path;
pub mod managed;
pub mod metadata;
pub mod model;
pub mod openapi;
pub mod patch;
pub mod proto;
pub mod prune;
pub mod quantity;
pub mod release;
pub mod selector;
#[cfg(test)]
mod testing;
pub mod validate;
