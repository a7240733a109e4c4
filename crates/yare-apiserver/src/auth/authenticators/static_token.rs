//! Bearer tokens of a file and of flags.

use std::sync::Arc;

use super::{Bearer, Identified, Verdict, agnostic};
use crate::core::Core;

pub(super) fn authenticate(core: &Arc<Core>, bearer: &Bearer<'_>) -> Verdict {
    match (core.config.auth.tokens.find(bearer.token), agnostic(core, bearer)) {
        (Some(user), Some(audiences)) => {
            Verdict::Known(Identified { audiences, ..Identified::from(user.clone()) })
        }
        _ => Verdict::Unknown,
    }
}
