//! Strategies of the kinds of `admissionregistration.k8s.io`.
//!
//! Expressions are compiled as admission will compile them ([`crate::expressions`]), so that what is written can
//! run.

use super::Strategy;

mod policy;
mod rules;
#[cfg(test)]
mod tests;
mod webhooks;

use policy::{Binding, Policy};
use webhooks::WebhookConfiguration;

/// `MutatingAdmissionPolicy`
pub const MUTATING_ADMISSION_POLICY: &dyn Strategy = &Policy { mutating: true };

/// `MutatingAdmissionPolicyBinding`
pub const MUTATING_ADMISSION_POLICY_BINDING: &dyn Strategy = &Binding { mutating: true };

/// `MutatingWebhookConfiguration`
pub const MUTATING_WEBHOOK_CONFIGURATION: &dyn Strategy = &WebhookConfiguration { mutating: true };

/// `ValidatingAdmissionPolicy`
pub const VALIDATING_ADMISSION_POLICY: &dyn Strategy = &Policy { mutating: false };

/// `ValidatingAdmissionPolicyBinding`
pub const VALIDATING_ADMISSION_POLICY_BINDING: &dyn Strategy = &Binding { mutating: false };

/// `ValidatingWebhookConfiguration`
pub const VALIDATING_WEBHOOK_CONFIGURATION: &dyn Strategy = &WebhookConfiguration { mutating: false };
