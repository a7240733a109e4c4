//! Everybody may everything, or nothing.

use yare_auth::{Action, Decision, User, rbac::Rule};

use super::Rules;
use crate::auth::Auth;

pub(super) fn allow(_: &Auth, _: &User, _: &Action<'_>) -> Decision {
    Decision::Allow(String::new())
}

pub(super) fn deny(_: &Auth, _: &User, _: &Action<'_>) -> Decision {
    Decision::NoOpinion("Everything is forbidden.".into())
}

pub(super) fn all_rules(_: &Auth, _: &User, _: &str) -> Rules {
    Rules { rules: Rule::everything().into(), ..Rules::default() }
}

pub(super) fn no_rules(_: &Auth, _: &User, _: &str) -> Rules {
    Rules::default()
}
