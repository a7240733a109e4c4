//! Role-based access control.

use yare_auth::{Action, Decision, User};

use super::Rules;
use crate::auth::Auth;

pub(super) fn decide(auth: &Auth, user: &User, action: &Action<'_>) -> Decision {
    auth.rbac.authorize(user, action)
}

pub(super) fn rules(auth: &Auth, user: &User, namespace: &str) -> Rules {
    let (rules, error) = auth.rbac.rules_for(user, namespace);
    Rules { rules, error, incomplete: false }
}
