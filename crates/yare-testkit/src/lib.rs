//! What tests need: whole clusters on this machine, images without a registry, `kubectl`.
//!
//! A [`Cluster`] is a real `yare server` in a network namespace of its own, so that clusters run beside each
//! other and leave nothing in the machine's network.

mod cluster;
mod image;
mod namespace;

pub use cluster::{Cluster, Options};
pub use image::busybox;
pub use namespace::Namespace;
