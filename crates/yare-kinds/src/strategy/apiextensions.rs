//! Strategies of the kinds of `apiextensions.k8s.io`.

use super::{Flags, Strategy};

/// `CustomResourceDefinition`
pub const CUSTOM_RESOURCE_DEFINITION: &dyn Strategy = &Flags::new().status().generation();
