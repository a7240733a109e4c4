//! Strategies of the kinds of `authentication.k8s.io`, which are questions and not stored.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Flags, Strategy};
use crate::{
    check::{Check, Errors},
    view::{View, ViewMut},
};

/// `SelfSubjectReview`
pub const SELF_SUBJECT_REVIEW: &dyn Strategy = &Flags::new();

/// `TokenReview`
pub const TOKEN_REVIEW: &dyn Strategy = &TokenReview;

/// `TokenRequest`, the body of a service account's `token` subresource
pub const TOKEN_REQUEST: &dyn Strategy = &TokenRequest;

struct TokenReview;

impl Strategy for TokenReview {
    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        if object.str_at("spec.token").is_empty() {
            errs.required(&path.child("token"), "token is required for TokenReview in authentication");
        }
        errs
    }
}

const MIN_TOKEN_AGE_S: i64 = 600;

struct TokenRequest;

impl Strategy for TokenRequest {
    fn default(&self, object: &mut Value) {
        object.default_absent("spec.expirationSeconds", 3600);
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        let path = path.child("expirationSeconds");
        let seconds = object.int_at("spec.expirationSeconds");
        if seconds < MIN_TOKEN_AGE_S {
            errs.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            errs.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
        errs
    }
}
