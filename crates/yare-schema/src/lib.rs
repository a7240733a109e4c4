//! The shape of the Kubernetes API as data, and everything that follows from shape alone.
//!
//! No I/O, no async. Built-in kinds and CustomResourceDefinitions go through the very same code.

pub mod constraints;
pub mod field;
pub mod model;
