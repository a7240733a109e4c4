//! Deployments: versions of a pod template, rolled out through one ReplicaSet each.
//!
//! Every reconciliation finds the replica set of the current template (by comparing templates) and the old
//! ones, makes one step towards the desired state (see [`plan`]) and writes the status (see [`status`]).
//! The change of the replica sets that follows is what triggers the next step.

pub mod plan;
pub mod revision;
mod round;
pub mod status;

use std::{cmp::Ordering, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{Cached, Change, DEPLOYMENTS, Informer, ObjectKey, PODS, REPLICA_SETS};

use self::{
    plan::{Counts, Strategy},
    revision::{Annotations, MAX_REPLICAS, REVISION, ROLLBACK_TO},
};
use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    ownership::{self, controller_ref},
    selector::LabelSelector,
    template::{self, POD_TEMPLATE_HASH},
    views::{Condition, IntOrString, Meta, PodView, condition, nullable},
};

/// The longest name of an object.
const NAME_MAX_BYTES: usize = 253;

/// What is read of a Deployment.
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
pub struct View {
    metadata: Meta,
    spec: Spec,
    status: DeploymentStatus,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    replicas: Option<i32>,
    selector: LabelSelector,
    template: Value,
    strategy: StrategyView,
    min_ready_seconds: i32,
    revision_history_limit: Option<i32>,
    paused: bool,
    progress_deadline_seconds: Option<i32>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct StrategyView {
    #[serde(rename = "type")]
    kind: String,
    rolling_update: Option<RollingUpdate>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct RollingUpdate {
    max_surge: Option<IntOrString>,
    max_unavailable: Option<IntOrString>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// `status` of a Deployment.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    observed_generation: i64,
    #[serde(skip_serializing_if = "is_zero")]
    replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    updated_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    ready_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    available_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    unavailable_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminating_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collision_count: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

impl View {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn strategy(&self) -> Strategy {
        if self.spec.strategy.kind == "Recreate" {
            return Strategy::Recreate;
        }
        let bounds = self.spec.strategy.rolling_update.clone().unwrap_or_default();
        Strategy::rolling(bounds.max_surge.as_ref(), bounds.max_unavailable.as_ref(), self.replicas())
    }

    /// The largest number there may be at once.
    fn max_replicas(&self) -> i32 {
        self.replicas().saturating_add(self.strategy().max_surge())
    }

    fn progress_deadline(&self) -> Option<Duration> {
        let seconds = self.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX)?;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

/// A ReplicaSet of a deployment.
#[derive(Clone)]
pub struct ReplicaSet {
    cached: Cached,
    view: SetView,
    /// `spec.replicas`, also after it was changed in this round.
    replicas: i32,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct SetView {
    metadata: Meta,
    spec: SetSpec,
    status: SetStatus,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct SetSpec {
    replicas: Option<i32>,
    min_ready_seconds: i32,
    template: Value,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct SetStatus {
    replicas: i32,
    ready_replicas: i32,
    available_replicas: i32,
    terminating_replicas: Option<i32>,
    observed_generation: i64,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

impl ReplicaSet {
    fn new(cached: Cached) -> Result<Self, Error> {
        let view: SetView = cached.view()?;
        Ok(Self { replicas: view.spec.replicas.unwrap_or(1), cached, view })
    }

    fn annotations(&self) -> &Annotations {
        &self.view.metadata.annotations
    }

    fn counts(&self) -> Counts {
        Counts {
            desired: self.replicas,
            available: self.view.status.available_replicas,
            max_replicas: self
                .annotations()
                .get(MAX_REPLICAS)
                .and_then(|m| m.parse().ok())
                .filter(|m| *m >= 0),
        }
    }

    /// Oldest first, then by name.
    fn by_age(a: &Self, b: &Self) -> Ordering {
        let created = |r: &Self| r.view.metadata.creation_timestamp;
        created(a).cmp(&created(b)).then_with(|| a.cached.name().cmp(b.cached.name()))
    }
}

struct Deployments {
    context: Context,
    own: Informer,
    sets: Informer,
    pods: Informer,
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Deployments {
        own: context.informer(DEPLOYMENTS),
        sets: context.informer(REPLICA_SETS),
        pods: context.informer(PODS),
        context: context.clone(),
    })
}

/// A pod that is gone may be the last one that a `Recreate` rollout waits for.
pub fn deleted_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let (None, Some(pod)) = (&change.new, &change.old) else { return };
    let Some(set) = pod.controller().filter(|c| *c.kind == *"ReplicaSet") else { return };
    let set = context.informer(REPLICA_SETS).get(&ObjectKey::new(pod.namespace(), &set.name));
    if let Some(owner) = set.as_ref().and_then(Cached::controller).filter(|c| *c.kind == *"Deployment") {
        add(ObjectKey::new(pod.namespace(), &owner.name));
    }
}

/// A deployment in the middle of a reconciliation.
struct Round<'a> {
    this: &'a Deployments,
    cached: Cached,
    view: View,
    /// Of older templates, oldest first.
    old: Vec<ReplicaSet>,
    /// Of the current template.
    new: Option<ReplicaSet>,
    now: Timestamp,
}

#[async_trait]
impl Reconcile for Deployments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cached) = self.own.get(key) else { return Ok(Next::Done) };
        let view: View = cached.view()?;
        let context = &self.context;
        if view.spec.selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            context.warning(&DEPLOYMENTS, &cached, "SelectingAll", message);
            if view.status.observed_generation < view.metadata.generation {
                let status =
                    DeploymentStatus { observed_generation: view.metadata.generation, ..view.status };
                context.api.update_status(&DEPLOYMENTS, &cached, &status).await?;
            }
            return Ok(Next::Done);
        }
        let candidates = self.sets.in_namespace(cached.namespace());
        let candidates = candidates
            .into_iter()
            .filter(|s| s.controller().is_none_or(|c| &*c.uid == cached.uid()))
            .collect();
        let sets = ownership::claim(
            context,
            &DEPLOYMENTS,
            &cached,
            &view.spec.selector,
            &REPLICA_SETS,
            candidates,
            None,
        )
        .await?;
        let mut old = sets.into_iter().map(ReplicaSet::new).collect::<Result<Vec<_>, _>>()?;
        old.sort_by(ReplicaSet::by_age);
        // Should several fit, the oldest is the one.
        let fits =
            old.iter().position(|r| template::same_but_hash(&r.view.spec.template, &view.spec.template));
        let new = fits.map(|i| old.remove(i));
        let round = Round { this: self, cached, view, old, new, now: context.now() };
        round.run().await
    }
}
