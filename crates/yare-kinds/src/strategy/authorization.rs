//! Strategies of the kinds of `authorization.k8s.io`.

use super::{Flags, Strategy};

/// `LocalSubjectAccessReview`
pub const LOCAL_SUBJECT_ACCESS_REVIEW: &dyn Strategy = &Flags::new();

/// `SelfSubjectAccessReview`
pub const SELF_SUBJECT_ACCESS_REVIEW: &dyn Strategy = &Flags::new();

/// `SelfSubjectRulesReview`
pub const SELF_SUBJECT_RULES_REVIEW: &dyn Strategy = &Flags::new();

/// `SubjectAccessReview`
pub const SUBJECT_ACCESS_REVIEW: &dyn Strategy = &Flags::new();
