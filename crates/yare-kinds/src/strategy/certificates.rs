//! Strategies of the kinds of `certificates.k8s.io`.

use super::{Flags, Strategy};

mod pem;
mod request;
#[cfg(test)]
mod tests;

pub use pem::{RequestSubject, request_subject};

/// `CertificateSigningRequest`
pub const CERTIFICATE_SIGNING_REQUEST: &dyn Strategy = &request::CertificateSigningRequest;

/// `ClusterTrustBundle`
pub const CLUSTER_TRUST_BUNDLE: &dyn Strategy = &Flags::new().conditional_update();

/// `PodCertificateRequest`
pub const POD_CERTIFICATE_REQUEST: &dyn Strategy = &Flags::new().status().conditional_update();
