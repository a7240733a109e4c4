//! Callers without credentials: `system:anonymous`, for all paths or for some.

use std::sync::{Arc, LazyLock};

use yare_auth::User;

use super::{Credentials, Verdict};
use crate::core::Core;

/// Who may come in without credentials.
#[derive(Clone, Debug, Default)]
pub struct Anonymous {
    /// Whether anybody may.
    pub enabled: bool,
    /// The paths for which; none: all.
    pub paths: Vec<String>,
}

static ANONYMOUS: LazyLock<Arc<User>> = LazyLock::new(|| Arc::new(User::anonymous()));

pub(super) fn authenticate(core: &Arc<Core>, credentials: &Credentials<'_>) -> Verdict {
    let anonymous = &core.config.auth.anonymous;
    let here = anonymous.paths.is_empty() || anonymous.paths.iter().any(|p| p == credentials.path);
    if anonymous.enabled && here { Verdict::Known(ANONYMOUS.clone().into()) } else { Verdict::Unknown }
}
