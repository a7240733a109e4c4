//! Strategies of the kinds of `scheduling.k8s.io`.

use super::{Flags, Strategy};

/// `PriorityClass`
pub const PRIORITY_CLASS: &dyn Strategy = &Flags::new().generation();

/// `PodGroup`
pub const POD_GROUP: &dyn Strategy = &Flags::new().status();

/// `Workload`
pub const WORKLOAD: &dyn Strategy = &Flags::new();
