//! Strategies of the kinds of `admissionregistration.k8s.io`.
//!
//! Expressions are compiled as admission will compile them ([`crate::expressions`]), so that what is written can
//! run.

use serde_json::Value;
use yare_schema::field::Path;

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    view::View,
};

mod policy;
mod rules;
#[cfg(test)]
mod tests;
mod webhooks;

use policy::{Binding, Policy};
use webhooks::WebhookConfiguration;

/// Names that only configurations from files have (KEP-5793).
const STATIC_SUFFIX: &str = ".static.k8s.io";
const STATIC_GATE: &str = "ManifestBasedAdmissionControlConfig";
const RESERVED: &str = "names ending with \".static.k8s.io\" are reserved for static manifest-based configurations and cannot be managed via the API";

/// An error in the name of a new object, while there are such files.
fn check_static_name(errs: &mut Errors, object: &Value, ctx: &Context<'_>) {
    let name = object.str_at("metadata.name");
    if ctx.gates.is_on(STATIC_GATE) && name.ends_with(STATIC_SUFFIX) {
        errs.invalid(&Path::new("metadata.name"), name, RESERVED);
    }
}

/// Otherwise, a warning.
fn static_name_warnings(object: &Value) -> Vec<String> {
    let is_static = object.str_at("metadata.name").ends_with(STATIC_SUFFIX);
    is_static.then(|| format!("metadata.name: {RESERVED}")).into_iter().collect()
}

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
