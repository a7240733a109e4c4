//! Strategies of the kinds of `autoscaling`.

use super::{Flags, Strategy};

/// `HorizontalPodAutoscaler`
pub const HORIZONTAL_POD_AUTOSCALER: &dyn Strategy = &Flags::new().status();
