//! `kube-apiserver-legacy-service-account-token-tracking` in `kube-system` says since which day the API server
//! notes the use of service-account tokens of the old kind. Made anew when somebody deletes it, but not at once
//! and again: servers of one cluster that do not agree would fight over it
//! (`k8s.io/kubernetes/pkg/controlplane/controller/legacytokentracking`).

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;
use yare_auth::token::legacy::{TRACKING_MAP, TRACKING_SINCE};
use yare_kinds::view::{View, ViewMut};

use crate::{
    bootstrap::{ensure, internal_call},
    core::{Call, Core},
    verbs::write,
};

const NAMESPACE: &str = "kube-system";
/// Between two times that it is made.
const PAUSE: Duration = Duration::from_secs(30 * 60);
const DAY_FORMAT: &str = "%Y-%m-%d";

/// A configuration map changed or was deleted.
pub fn changed(call: &Call, map: &Value) {
    if map.str_at("metadata.name") == TRACKING_MAP && map.str_at("metadata.namespace") == NAMESPACE {
        call.core.config.auth.tracking.notify_one();
    }
}

/// Keeps the map, where there are such tokens at all.
pub(super) fn start(core: &Arc<Core>) {
    if core.config.auth.signer.is_none() {
        return;
    }
    let core = core.clone();
    tokio::spawn(async move {
        let mut next = Instant::now();
        loop {
            let wait = keep(&core, &mut next).await;
            let later = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = core.config.auth.tracking.notified() => {}
                () = later => {}
                () = core.stop.cancelled() => return,
            }
        }
    });
}

fn is_day(text: &str) -> bool {
    let day: Result<jiff::civil::Date, _> = text.parse();
    day.is_ok_and(|day| day.strftime(DAY_FORMAT).to_string() == text)
}

/// Makes the map where it is absent and, as of `next`, may be made; sets it right where it says no day. When
/// to come again.
async fn keep(core: &Arc<Core>, next: &mut Instant) -> Option<Instant> {
    const RETRY: Duration = Duration::from_secs(5);
    let today = core.now().strftime(DAY_FORMAT).to_string();
    let Some(map) = core.read("configmaps", &format!("{NAMESPACE}/{TRACKING_MAP}")) else {
        if Instant::now() < *next {
            return Some(*next);
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": TRACKING_MAP, "namespace": NAMESPACE }, "data": { TRACKING_SINCE: today },
        });
        return match ensure(core, map).await {
            Ok(()) => {
                *next = Instant::now() + PAUSE;
                None
            }
            Err(error) => {
                tracing::warn!(%error, "cannot say since when the use of tokens is noted");
                Some(Instant::now() + RETRY)
            }
        };
    };
    if is_day(map.str_at(&format!("data.{TRACKING_SINCE}"))) {
        return None;
    }
    let served = core.builtin.stored("configmaps")?;
    let call = internal_call(core, "update", "configmaps", NAMESPACE, TRACKING_MAP);
    let change = |map: &mut Value| {
        if !is_day(map.str_at(&format!("data.{TRACKING_SINCE}"))) {
            map.set(&format!("data.{TRACKING_SINCE}"), today.clone());
        }
        Ok(())
    };
    match write::modify(&call, served, NAMESPACE, TRACKING_MAP, Some(""), false, change).await {
        Err(error) if error.reason != "NotFound" => {
            tracing::warn!(why = error.message, "cannot say since when the use of tokens is noted");
            Some(Instant::now() + RETRY)
        }
        _ => None,
    }
}
