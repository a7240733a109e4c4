//! Strategies of the kinds of `certificates.k8s.io`.

use super::Strategy;

mod bundle;
mod mail;
mod pem;
mod pod;
mod request;
#[cfg(test)]
mod tests;

pub(super) use pem::check_ca_bundle;
pub use pem::{RequestSubject, request_subject};

/// `CertificateSigningRequest`
pub const CERTIFICATE_SIGNING_REQUEST: &dyn Strategy = &request::CertificateSigningRequest;

/// `ClusterTrustBundle`
pub const CLUSTER_TRUST_BUNDLE: &dyn Strategy = &bundle::ClusterTrustBundle;

/// `PodCertificateRequest`
pub const POD_CERTIFICATE_REQUEST: &dyn Strategy = &pod::PodCertificateRequest;
