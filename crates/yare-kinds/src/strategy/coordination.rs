//! Strategies of the kinds of `coordination.k8s.io`.

use super::{Flags, Strategy};

/// `Lease`
pub const LEASE: &dyn Strategy = &Flags::new().create_on_update().conditional_update();

/// `LeaseCandidate`
pub const LEASE_CANDIDATE: &dyn Strategy = &Flags::new().create_on_update().conditional_update();
