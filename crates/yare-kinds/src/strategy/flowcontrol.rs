//! Strategies of the kinds of `flowcontrol.apiserver.k8s.io`.

use super::{Flags, Strategy};

/// `FlowSchema`
pub const FLOW_SCHEMA: &dyn Strategy = &Flags::new().status().generation();

/// `PriorityLevelConfiguration`
pub const PRIORITY_LEVEL_CONFIGURATION: &dyn Strategy = &Flags::new().status().generation();
