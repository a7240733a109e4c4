//! What node agents may do.

use yare_auth::{Action, Decision, User};

use super::Rules;
use crate::auth::Auth;

pub(super) fn decide(auth: &Auth, user: &User, action: &Action<'_>) -> Decision {
    auth.nodes.authorize(user, action)
}

pub(super) fn rules(_: &Auth, user: &User, _: &str) -> Rules {
    if user.node_name().is_none() {
        return Rules::default();
    }
    let error = "node authorizer does not support user rule resolution".into();
    Rules { incomplete: true, error, ..Rules::default() }
}
