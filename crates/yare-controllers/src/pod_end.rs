//! How controllers end pods by force: with a word in the status why.

use jiff::Timestamp;
use serde_json::json;
use yare_client::{Cached, PODS};

use crate::{
    api::{ApiError, Deletion, Patch},
    context::{Context, Error},
    views::{Condition, PodView},
};

/// The condition of a pod that is ended because of its node and not because of itself.
pub fn disruption(reason: &str, message: &str, now: Timestamp) -> Condition {
    Condition::new("DisruptionTarget", "True", reason, message, now)
}

/// Says in the status why a pod is ended; `failed`: nobody else will set its phase.
pub async fn mark(
    context: &Context,
    pod: &Cached,
    view: &PodView,
    failed: bool,
    condition: Option<&Condition>,
) -> Result<(), Error> {
    if view.is_finished() {
        return Ok(());
    }
    let mut status = json!({});
    if failed {
        status["phase"] = "Failed".into();
        status["observedGeneration"] = view.metadata.generation.into();
    }
    if let Some(condition) = condition {
        let observed_generation = Some(view.metadata.generation);
        status["conditions"] = json!([Condition { observed_generation, ..condition.clone() }]);
    }
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    gone(context.api.patch(&PODS, pod.key(), "/status", Patch::Strategic, &patch).await.map(drop))
}

/// Deletes a pod at once, without waiting for its node.
pub async fn force_delete(context: &Context, pod: &Cached) -> Result<(), Error> {
    let how = Deletion { grace_period_s: Some(0), ..Deletion::of(pod) };
    gone(context.api.delete(&PODS, pod.key(), how).await.map(drop))
}

/// Deletes a pod with its own grace period; whether it was there.
pub async fn delete(context: &Context, pod: &Cached) -> Result<bool, Error> {
    gone(context.api.delete(&PODS, pod.key(), Deletion::of(pod)).await)
}

/// A pod that is gone, or another of the same name, is what was wanted.
fn gone<T: Default>(result: Result<T, ApiError>) -> Result<T, Error> {
    match result {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(T::default()),
        other => Ok(other?),
    }
}
