//! Strategies of the kinds of `discovery.k8s.io`.

use super::{Flags, Strategy};

/// `EndpointSlice`
pub const ENDPOINT_SLICE: &dyn Strategy = &Flags::new().generation();
