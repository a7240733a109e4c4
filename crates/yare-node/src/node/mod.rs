//! The node's own object: registration, status, lease.

mod advertised;
pub(crate) mod capacity;
pub(crate) mod conditions;
pub(crate) mod heartbeat;
pub(crate) mod object;
pub(crate) mod startup;

/// Whether pods can get a network, as the pod network reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkReadiness {
    /// They can.
    Ready,
    /// They cannot yet, and why.
    NotReady(String),
}
