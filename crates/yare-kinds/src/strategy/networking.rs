//! Strategies of the kinds of `networking.k8s.io`.

use super::{Flags, Strategy};

/// `Ingress`
pub const INGRESS: &dyn Strategy = &Flags::new().status().generation();

/// `IngressClass`
pub const INGRESS_CLASS: &dyn Strategy = &Flags::new().generation();

/// `IPAddress`
pub const IP_ADDRESS: &dyn Strategy = &Flags::new();

/// `NetworkPolicy`
pub const NETWORK_POLICY: &dyn Strategy = &Flags::new().generation();

/// `ServiceCIDR`
pub const SERVICE_CIDR: &dyn Strategy = &Flags::new().status();
