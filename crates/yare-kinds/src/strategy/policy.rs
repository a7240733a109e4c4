//! Strategies of the kinds of `policy`.

use super::{Flags, Strategy};

/// `PodDisruptionBudget`
pub const POD_DISRUPTION_BUDGET: &dyn Strategy = &Flags::new().status().generation().conditional_update();
