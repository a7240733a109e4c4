//! Strategies of the kinds of `node.k8s.io`.

use super::{Flags, Strategy};

/// `RuntimeClass`
pub const RUNTIME_CLASS: &dyn Strategy = &Flags::new().create_on_update().conditional_update();
