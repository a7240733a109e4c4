//! Deletes finished Jobs when their `ttlSecondsAfterFinished` has passed.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use yare_client::{Informer, JOBS, ObjectKey};

use crate::{
    api::{Deletion, Propagation},
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Condition, after, nullable, since},
};

struct TtlAfterFinished {
    context: Context,
    jobs: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    ttl_seconds_after_finished: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

/// The controller; keys are Jobs.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(TtlAfterFinished { jobs: context.informer(JOBS), context: context.clone() })
}

#[async_trait]
impl Reconcile for TtlAfterFinished {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(job) = self.jobs.get(key).filter(|j| j.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        let view: View = job.view()?;
        let end =
            view.status.conditions.iter().find(|c| c.is_true() && matches!(&*c.kind, "Complete" | "Failed"));
        let (Some(ttl_s), Some(end)) =
            (view.spec.ttl_seconds_after_finished, end.and_then(|c| c.last_transition_time))
        else {
            return Ok(Next::Done);
        };
        let left = since(after(end, Duration::from_secs(ttl_s)), self.context.now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        // Its ttl may have been changed meanwhile: only the version that was looked at.
        let how = Deletion {
            resource_version: Some(job.resource_version()),
            propagation: Some(Propagation::Foreground),
            ..Deletion::of(&job)
        };
        self.context.api.delete(&JOBS, key, how).await?;
        Ok(Next::Done)
    }
}
