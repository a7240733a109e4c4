//! Strategies of the kinds of `authentication.k8s.io`.

use super::{Flags, Strategy};

/// `TokenReview`
pub const TOKEN_REVIEW: &dyn Strategy = &Flags::new();

/// `SelfSubjectReview`
pub const SELF_SUBJECT_REVIEW: &dyn Strategy = &Flags::new();
