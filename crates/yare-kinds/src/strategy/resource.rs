//! Strategies of the kinds of `resource.k8s.io`.

use super::{Flags, Strategy};

/// `DeviceClass`
pub const DEVICE_CLASS: &dyn Strategy = &Flags::new().generation();

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: &dyn Strategy = &Flags::new().status().generation();

/// `ResourceClaim`
pub const RESOURCE_CLAIM: &dyn Strategy = &Flags::new().status();

/// `ResourceClaimTemplate`
pub const RESOURCE_CLAIM_TEMPLATE: &dyn Strategy = &Flags::new();

/// `ResourcePoolStatusRequest`
pub const RESOURCE_POOL_STATUS_REQUEST: &dyn Strategy = &Flags::new().status().conditional_update();

/// `ResourceSlice`
pub const RESOURCE_SLICE: &dyn Strategy = &Flags::new().generation();
