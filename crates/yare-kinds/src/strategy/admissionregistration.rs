//! Strategies of the kinds of `admissionregistration.k8s.io`.

use super::{Flags, Strategy};

/// `MutatingAdmissionPolicy`
pub const MUTATING_ADMISSION_POLICY: &dyn Strategy = &Flags::new().generation().conditional_update();

/// `MutatingAdmissionPolicyBinding`
pub const MUTATING_ADMISSION_POLICY_BINDING: &dyn Strategy = &Flags::new().generation().conditional_update();

/// `MutatingWebhookConfiguration`
pub const MUTATING_WEBHOOK_CONFIGURATION: &dyn Strategy = &Flags::new().generation().conditional_update();

/// `ValidatingAdmissionPolicy`
pub const VALIDATING_ADMISSION_POLICY: &dyn Strategy = &Flags::new().status().generation().conditional_update();

/// `ValidatingAdmissionPolicyBinding`
pub const VALIDATING_ADMISSION_POLICY_BINDING: &dyn Strategy = &Flags::new().generation().conditional_update();

/// `ValidatingWebhookConfiguration`
pub const VALIDATING_WEBHOOK_CONFIGURATION: &dyn Strategy = &Flags::new().generation().conditional_update();
