//! ReplicaSets and ReplicationControllers: as many pods as asked for.
//!
//! One behaviour for both kinds. Pods are created in batches that grow while they succeed, and deleted in
//! an order that costs least. The cache may be behind, so nothing is created or deleted while it does not
//! show the last round.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use yare_client::{Cached, Informer, ObjectKey, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS, Resource};

use crate::{
    context::{Context, Error},
    expectations::Expectations,
    harness::{Next, Reconcile},
    ownership,
    ranking::{Candidate, deletion_order},
    selector::{self, LabelSelector},
    template,
    views::{Condition, Meta, PodView, nullable},
};

/// Pods created or deleted in one round.
const BURST: usize = 500;
/// Size of the first batch of creations.
const FIRST_BATCH: usize = 1;

/// See the module's description.
pub struct ReplicaSets {
    context: Context,
    resource: Resource,
    own: Informer,
    pods: Informer,
    expectations: Expectations,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    replicas: Option<i32>,
    min_ready_seconds: i32,
    template: Value,
}

/// `status` of both kinds.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    fully_labeled_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    ready_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    available_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminating_replicas: Option<i32>,
    observed_generation: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// A pod and its decoded view.
type Pod = (Cached, PodView);

/// The controller of ReplicaSets.
pub fn replica_sets(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(ReplicaSets::new(context, REPLICA_SETS))
}

/// The controller of ReplicationControllers.
pub fn replication_controllers(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(ReplicaSets::new(context, REPLICATION_CONTROLLERS))
}

#[async_trait]
impl Reconcile for ReplicaSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.own.get(key) else {
            self.expectations.forget(key);
            return Ok(Next::Done);
        };
        let Some(selector) = selector::of_workload(&set) else { return Ok(Next::Done) };
        let view: View = set.view()?;
        let may_act = self.expectations.satisfied(key, &self.pods);
        let (active, terminating) = self.pods_of(&set, &selector).await?;
        let desired = view.spec.replicas.unwrap_or(1);
        let managed = if may_act && set.deletion_timestamp().is_none() {
            self.manage(&set, &view, desired, &active).await
        } else {
            Ok(())
        };
        let now = self.context.now();
        let counts_terminating = self.resource == REPLICA_SETS;
        let terminating = counts_terminating.then(|| count(terminating.len()));
        let failure = managed.as_ref().err().map(ToString::to_string);
        let status = status(&view, &active, terminating, desired, failure, now);
        if status != view.status {
            match self.context.api.update_status(&self.resource, &set, &status).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => return Ok(Next::Done),
                Err(error) => return Err(error.into()),
            }
        }
        managed?;
        if view.spec.min_ready_seconds > 0 && status.ready_replicas != status.available_replicas {
            let next = active
                .iter()
                .filter_map(|(_, p)| p.available_in(view.spec.min_ready_seconds, now))
                .filter(|d| !d.is_zero())
                .min();
            return Ok(Next::After(next.unwrap_or(Duration::from_secs(1))));
        }
        Ok(Next::Done)
    }
}

impl ReplicaSets {
    fn new(context: &Context, resource: Resource) -> Self {
        Self {
            own: context.informer(resource.clone()),
            pods: context.informer(PODS),
            context: context.clone(),
            resource,
            expectations: Expectations::default(),
        }
    }

    /// The active pods it controls (matching orphans are adopted), and those that are terminating.
    async fn pods_of(&self, set: &Cached, selector: &LabelSelector) -> Result<(Vec<Pod>, Vec<Pod>), Error> {
        let mut candidates = self.pods.by_owner(set.uid());
        let orphans = self.pods.in_namespace(set.namespace()).into_iter();
        candidates.extend(orphans.filter(|p| p.controller().is_none() && selector.matches(p.labels())));
        let (mut active, mut terminating, mut views) = (Vec::new(), Vec::new(), HashMap::new());
        for pod in candidates {
            let view: PodView = pod.view()?;
            if view.is_active() {
                views.insert(pod.uid().to_owned(), view);
                active.push(pod);
            } else if view.is_terminating()
                && ownership::is_controlled_by(&pod, set)
                && selector.matches(pod.labels())
            {
                terminating.push((pod, view));
            }
        }
        let claimed =
            ownership::claim(&self.context, &self.resource, set, selector, &PODS, active, None).await?;
        let active = claimed
            .into_iter()
            .filter_map(|pod| {
                let view = views.remove(pod.uid())?;
                Some((pod, view))
            })
            .collect();
        Ok((active, terminating))
    }

    async fn manage(&self, set: &Cached, view: &View, desired: i32, active: &[Pod]) -> Result<(), Error> {
        let desired = usize::try_from(desired).unwrap_or(0);
        if active.len() < desired {
            let missing = (desired - active.len()).min(BURST);
            let pod = template::pod(&view.spec.template, &self.resource, set);
            slow_start(missing, || async {
                match template::create_pod(&self.context, &self.resource, set, &pod).await {
                    Ok(created) => {
                        self.expectations.created(set.key(), &created);
                        Ok(())
                    }
                    // Everything here is about to go; trying again is no use.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => Err(Error::from(error)),
                }
            })
            .await
        } else {
            let surplus = (active.len() - desired).min(BURST);
            let doomed = self.choose(set, active, surplus)?;
            let deletions = doomed.into_iter().map(|pod| async move {
                template::delete_pod(&self.context, &self.resource, set, pod).await?;
                self.expectations.deleted(set.key(), pod);
                Ok::<_, Error>(())
            });
            join_all(deletions).await.into_iter().collect()
        }
    }

    /// The pods whose deletion costs least.
    fn choose<'a>(&self, set: &Cached, active: &'a [Pod], surplus: usize) -> Result<Vec<&'a Cached>, Error> {
        if surplus == 0 {
            return Ok(Vec::new());
        }
        if surplus == active.len() {
            return Ok(active.iter().map(|(pod, _)| pod).collect());
        }
        // Pods of sets with the same owner count as related, so that a rollout thins out crowded nodes.
        let mut per_node: HashMap<String, usize> = HashMap::new();
        let family = set.controller().map_or_else(|| vec![set.clone()], |c| self.own.by_owner(&c.uid));
        for relative in family {
            for pod in self.pods.by_owner(relative.uid()) {
                if let Some(node) = pod.node_name()
                    && pod.view::<PodView>()?.is_active()
                {
                    *per_node.entry(node.to_owned()).or_default() += 1;
                }
            }
        }
        let candidates: Vec<Candidate<'_>> = active
            .iter()
            .map(|(pod, view)| Candidate {
                pod,
                view,
                related_on_node: pod.node_name().and_then(|n| per_node.get(n)).copied().unwrap_or(0),
            })
            .collect();
        let order = deletion_order(&candidates, self.context.now());
        Ok(order.into_iter().take(surplus).map(|i| &active[i].0).collect())
    }
}

/// Runs `one` `total` times, in batches that double as long as all of a batch succeed, so that a quota
/// that is used up costs few failing requests.
pub async fn slow_start<F>(total: usize, one: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut remaining = total;
    let mut batch = FIRST_BATCH.min(remaining);
    while batch > 0 {
        let results = join_all((0..batch).map(|_| one())).await;
        results.into_iter().collect::<Result<Vec<()>, Error>>()?;
        remaining -= batch;
        batch = (batch * 2).min(remaining);
    }
    Ok(())
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn status(
    view: &View,
    active: &[Pod],
    terminating: Option<i32>,
    desired: i32,
    failure: Option<String>,
    now: jiff::Timestamp,
) -> Status {
    let labels = view.spec.template.pointer("/metadata/labels").cloned().unwrap_or_default();
    let labels = LabelSelector::labels(serde_json::from_value(labels).unwrap_or_default());
    let mut conditions = view.status.conditions.clone();
    let failed = conditions.iter().any(|c| c.kind == "ReplicaFailure");
    match failure {
        Some(message) if !failed => {
            let reason = match count(active.len()).cmp(&desired) {
                std::cmp::Ordering::Less => "FailedCreate",
                std::cmp::Ordering::Greater => "FailedDelete",
                std::cmp::Ordering::Equal => "",
            };
            conditions.push(Condition::new("ReplicaFailure", "True", reason, message, now));
        }
        None if failed => conditions.retain(|c| c.kind != "ReplicaFailure"),
        _ => {}
    }
    let min_ready_s = view.spec.min_ready_seconds;
    let how_many = |f: &dyn Fn(&Pod) -> bool| count(active.iter().filter(|p| f(p)).count());
    Status {
        replicas: count(active.len()),
        fully_labeled_replicas: how_many(&|(pod, _)| labels.matches(pod.labels())),
        ready_replicas: how_many(&|(_, v)| v.is_ready()),
        available_replicas: how_many(&|(_, v)| v.is_available(min_ready_s, now)),
        terminating_replicas: terminating,
        observed_generation: view.metadata.generation,
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn batches_double_and_stop_at_the_first_failure() {
        for (total, fails_at, expected) in
            [(0, None, 0), (10, None, 10), (10, Some(1), 1), (10, Some(3), 3), (100, Some(8), 15)]
        {
            let calls = AtomicUsize::new(0);
            let result = slow_start(total, || {
                let n = calls.fetch_add(1, Ordering::Relaxed) + 1;
                async move { if fails_at == Some(n) { Err(Error::Other("quota".into())) } else { Ok(()) } }
            })
            .await;
            assert_eq!(result.is_err(), fails_at.is_some());
            assert_eq!(calls.load(Ordering::Relaxed), expected, "{total} with a failure at {fails_at:?}");
        }
    }

    #[test]
    fn status_counts_and_reports_failures() {
        let view: View = serde_json::from_value(json!({
            "metadata": {"generation": 3},
            "spec": {"minReadySeconds": 10, "template": {"metadata": {"labels": {"app": "w"}}}},
            "status": {"replicas": 0},
        }))
        .unwrap();
        let pod = |label: &str, ready_since: Option<&str>| -> Pod {
            let mut json =
                json!({"metadata": {"name": "p", "labels": {"app": label}}, "status": {"phase": "Running"}});
            if let Some(at) = ready_since {
                json["status"]["conditions"] =
                    json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
            }
            let cached = Cached::new(json.to_string().into()).unwrap();
            let view = cached.view().unwrap();
            (cached, view)
        };
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let pods =
            [pod("w", Some("2026-01-01T00:00:50Z")), pod("w", Some("2026-01-01T00:00:51Z")), pod("x", None)];
        let got = status(&view, &pods, Some(0), 5, Some("no quota".into()), now);
        assert_eq!(
            (got.replicas, got.fully_labeled_replicas, got.ready_replicas, got.available_replicas),
            (3, 2, 2, 1)
        );
        assert_eq!(got.conditions[0].reason, "FailedCreate");
        assert_eq!(got.observed_generation, 3);
    }
}
