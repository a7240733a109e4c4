//! Policies from a file.

use yare_auth::{Action, Decision, User};

use super::Rules;
use crate::auth::Auth;

pub(super) fn decide(auth: &Auth, user: &User, action: &Action<'_>) -> Decision {
    match &auth.abac {
        Some(abac) => abac.authorize(user, action),
        None => Decision::NoOpinion(String::new()),
    }
}

pub(super) fn rules(auth: &Auth, user: &User, namespace: &str) -> Rules {
    let rules = auth.abac.as_ref().map(|abac| abac.rules_for(user, namespace));
    Rules { rules: rules.unwrap_or_default(), ..Rules::default() }
}
