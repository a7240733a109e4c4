//! Strategies of the kinds of `apps`.

use super::{Flags, Strategy};

/// `ControllerRevision`
pub const CONTROLLER_REVISION: &dyn Strategy = &Flags::new();

/// `DaemonSet`
pub const DAEMON_SET: &dyn Strategy = &Flags::new().status().generation();

/// `Deployment`
pub const DEPLOYMENT: &dyn Strategy = &Flags::new().status().generation();

/// `ReplicaSet`
pub const REPLICA_SET: &dyn Strategy = &Flags::new().status().generation();

/// `StatefulSet`
pub const STATEFUL_SET: &dyn Strategy = &Flags::new().status().generation();
