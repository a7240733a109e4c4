//! Client certificates of the cluster's authority: the common name is the user, organizations are groups.

use std::sync::Arc;

use super::{Credentials, Verdict};
use crate::core::Core;

pub(super) fn authenticate(core: &Arc<Core>, credentials: &Credentials<'_>) -> Verdict {
    let Some(peer) = credentials.certificate else { return Verdict::Unknown };
    let now_s = core.now().as_second();
    core.config.auth.metrics.shown_certificate(peer.left_s(now_s));
    let reading = peer.reading(&core.config.auth.authorities.load(), now_s);
    match &reading.client {
        Ok(Some(user)) => Verdict::Known(user.clone().into()),
        Ok(None) => Verdict::Unknown,
        Err(why) => Verdict::Wrong(why.clone()),
    }
}
