//! The verbs of resources, each generic over every kind.

pub mod create;
pub mod delete;
pub mod list;
pub mod patch;
pub mod update;
pub mod watch;
pub mod write;
