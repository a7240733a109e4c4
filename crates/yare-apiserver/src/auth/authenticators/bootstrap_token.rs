//! Bootstrap tokens, known by Secrets in `kube-system`.

use std::sync::Arc;

use yare_auth::bootstrap_token::{self, BootstrapToken, NAMESPACE, SECRET_PREFIX};

use super::{Bearer, Identified, Verdict, agnostic};
use crate::core::Core;

pub(super) fn authenticate(core: &Arc<Core>, bearer: &Bearer<'_>) -> Verdict {
    if !core.config.auth.bootstrap_tokens {
        return Verdict::Unknown;
    }
    let Some((id, secret)) = bootstrap_token::parse(bearer.token) else { return Verdict::Unknown };
    let key = format!("{NAMESPACE}/{SECRET_PREFIX}{id}");
    let user = core
        .store()
        .get("secrets", &key)
        .and_then(|object| BootstrapToken::from_secret(&object.bytes))
        .and_then(|token| token.authenticate(id, secret, core.now()));
    match (user, agnostic(core, bearer)) {
        (Some(user), Some(audiences)) => {
            Verdict::Known(Identified { audiences, ..Identified::from(Arc::new(user)) })
        }
        _ => Verdict::Unknown,
    }
}
