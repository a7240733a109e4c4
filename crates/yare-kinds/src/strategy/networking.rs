//! Strategies of the kinds of `networking.k8s.io`.

use super::Strategy;

mod address;
mod ingress;
mod ingress_class;
mod policy;
#[cfg(test)]
mod tests;

/// `Ingress`
pub const INGRESS: &dyn Strategy = &ingress::Ingress;

/// `IngressClass`
pub const INGRESS_CLASS: &dyn Strategy = &ingress_class::IngressClass;

/// `IPAddress`
pub const IP_ADDRESS: &dyn Strategy = &address::IpAddress;

/// `NetworkPolicy`
pub const NETWORK_POLICY: &dyn Strategy = &policy::NetworkPolicy;

/// `ServiceCIDR`
pub const SERVICE_CIDR: &dyn Strategy = &address::ServiceCidr;
