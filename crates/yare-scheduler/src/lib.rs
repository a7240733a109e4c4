//! The scheduler: which node runs which pod.
//!
//! In flow pods and nodes from shared informers; out flow bindings, `PodScheduled` conditions and events.
//! One task owns all state ([`cluster::Cluster`] and [`queue::Queue`]): events change it, a scheduling cycle
//! reads it, and a pod that was given a node is *assumed* there at once while its binding travels to the API.
//! What makes a node fit or good is the table in [`plugins`].

pub mod cluster;
pub mod cycle;
mod device_events;
pub mod devices;
pub mod metrics;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
mod resize;
mod scheduler;
pub mod selector;
pub mod storage;
mod storage_events;
pub mod view;
mod watched;
mod writes;

pub use metrics::Metrics;
pub use scheduler::{Config, Scheduler};
