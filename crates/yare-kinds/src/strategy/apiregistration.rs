//! Strategies of the kinds of `apiregistration.k8s.io`.

use super::{Flags, Strategy};

/// `APIService`
pub const API_SERVICE: &dyn Strategy = &Flags::new().status();
