//! Jobs: pods that run to completion.
//!
//! Every pod carries a finalizer until its end has been counted, so that none is counted twice or lost:
//! a finished pod's uid is first written to `status.uncountedTerminatedPods`, then its finalizer is
//! removed, then it moves into the counters. A Job ends in two steps too: `SuccessCriteriaMet` or
//! `FailureTarget` as soon as its fate is known, `Complete` or `Failed` when its last pod is gone.

mod indexes;
mod pods;
mod policy;
mod round;
pub mod workload;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{Cached, Change, Informer, JOBS, ObjectKey, PODS};

use self::{
    indexes::Indexes,
    pods::{FINALIZER, JobPod, backoff, failures_in_a_row},
    policy::{FailurePolicy, SuccessPolicy, Verdict},
    round::Round,
    workload::Groups,
};
use crate::{
    api::Patch,
    context::{Context, Error},
    expectations::Expectations,
    harness::{Next, Reconcile},
    metrics, ownership,
    ranking::{Candidate, deletion_order},
    replicaset::slow_start,
    selector::LabelSelector,
    template,
    views::{Condition, Meta, PodView, condition, nullable, since, whole_second},
};

/// Pods created or deleted in one round.
const BURST: usize = 500;
/// Pods counted in one round.
const UNCOUNTED_MAX: usize = 500;
const MANAGED_BY: &str = "kubernetes.io/job-controller";

struct Jobs {
    context: Context,
    jobs: Informer,
    pods: Informer,
    expectations: Expectations,
    /// The version of the last status written, per Job: older ones in the cache must not be acted on.
    written: Mutex<HashMap<ObjectKey, u64>>,
    /// Pods whose finalizer was removed but may still show in the cache, per Job.
    released: Mutex<HashMap<ObjectKey, HashSet<Box<str>>>>,
    groups: Option<Groups>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    spec: Spec,
    status: JobStatus,
}

/// What is read of `spec`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    parallelism: Option<i32>,
    completions: Option<i32>,
    completion_mode: Option<String>,
    backoff_limit: Option<i32>,
    backoff_limit_per_index: Option<i32>,
    max_failed_indexes: Option<i32>,
    active_deadline_seconds: Option<u64>,
    pod_failure_policy: Option<FailurePolicy>,
    success_policy: Option<SuccessPolicy>,
    pod_replacement_policy: Option<String>,
    suspend: bool,
    managed_by: Option<String>,
    selector: LabelSelector,
    template: Value,
}

impl Spec {
    fn is_indexed(&self) -> bool {
        self.completion_mode.as_deref() == Some("Indexed")
    }

    fn replaces_only_failed(&self) -> bool {
        self.pod_replacement_policy.as_deref() == Some("Failed") || self.pod_failure_policy.is_some()
    }

    fn completions(&self) -> i32 {
        self.completions.unwrap_or(0)
    }

    fn verdict(&self, pod: &JobPod) -> Verdict {
        let policy = self.pod_failure_policy.as_ref();
        policy.map_or(Verdict::Count, |p| p.judge(&pod.cached, &pod.view))
    }
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct JobStatus {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_zero")]
    active: i32,
    #[serde(skip_serializing_if = "is_zero")]
    succeeded: i32,
    #[serde(skip_serializing_if = "is_zero")]
    failed: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminating: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    completed_indexes: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_indexes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uncounted_terminated_pods: Option<Uncounted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<i32>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Uncounted {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    succeeded: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    failed: Vec<String>,
}

impl JobStatus {
    fn is(&self, kind: &str) -> bool {
        condition(&self.conditions, kind).is_some_and(Condition::is_true)
    }

    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn uncounted(&mut self) -> &mut Uncounted {
        self.uncounted_terminated_pods.get_or_insert_default()
    }

    /// Moves uncounted pods that are no longer tracked into the counters.
    fn settle(&mut self, tracked: &HashSet<String>) {
        let uncounted = self.uncounted_terminated_pods.get_or_insert_default();
        let (succeeded, failed) = (uncounted.succeeded.len(), uncounted.failed.len());
        uncounted.succeeded.retain(|u| tracked.contains(u));
        uncounted.failed.retain(|u| tracked.contains(u));
        self.succeeded += count(succeeded - uncounted.succeeded.len());
        self.failed += count(failed - uncounted.failed.len());
    }

    /// Sets a condition; whether it changed. A false one is not added.
    fn ensure(&mut self, new: Condition) -> bool {
        match self.conditions.iter_mut().find(|c| c.kind == new.kind) {
            Some(c) if c.status == new.status && c.reason == new.reason && c.message == new.message => false,
            Some(c) => {
                *c = new;
                true
            }
            None if new.status == "False" => false,
            None => {
                self.conditions.push(new);
                true
            }
        }
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn size(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}

fn job_condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Condition {
    Condition {
        last_probe_time: Some(whole_second(now)),
        ..Condition::new(kind, status, reason, message, now)
    }
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Jobs {
        jobs: context.informer(JOBS),
        pods: context.informer(PODS),
        expectations: Expectations::default(),
        written: Mutex::default(),
        released: Mutex::default(),
        groups: Groups::new(context),
        context: context.clone(),
    })
}

#[async_trait]
impl Reconcile for Jobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if key.name.is_empty() {
            return self.release_strays(&key.namespace).await;
        }
        let job = self.jobs.get(key);
        self.release_orphans(key, job.as_ref()).await?;
        let Some(job) = job else {
            self.expectations.forget(key);
            self.written.lock().remove(key);
            self.released.lock().remove(key);
            return Ok(Next::Done);
        };
        if self.written.lock().get(key).is_some_and(|version| self.jobs.version() < *version) {
            return Ok(Next::Done);
        }
        let view: View = job.view()?;
        if view.spec.managed_by.as_deref().is_some_and(|m| m != MANAGED_BY) {
            return Ok(Next::Done);
        }
        let may_act = self.expectations.satisfied(key, &self.pods);
        let pods = self.pods_of(&job, &view).await?;
        if view.status.is_finished() {
            let tracked = pods.iter().filter(|p| p.tracked).map(|p| &p.cached).collect();
            self.release(key, tracked).await?;
            return Ok(Next::Done);
        }
        let group = match &self.groups {
            Some(groups) => groups.group_of(&self.context, &job, &view, &pods).await?,
            None => None,
        };
        let round = Round::new(self, job, view, pods, may_act, group);
        round.run().await
    }
}

/// Pods that a Job tracked and nobody controls any more, as those of a Job deleted without them: the key of
/// their namespace, with an empty name.
pub fn stray_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    // Only changes say so; upstream counts them as they come in, too.
    if let Some(event) = held_event(change) {
        context.config.metrics.table.count(&metrics::JOB_PODS_HELD, &[event]);
    }
    if let Some(pod) = change.new.as_ref().filter(|p| is_stray(p)) {
        add(ObjectKey::new(pod.namespace(), ""));
    }
}

/// Whether with a change there is one more pod that has ended and is still held, or one less.
fn held_event(change: &Change) -> Option<&'static str> {
    // Most pods are other controllers'; they are not decoded for this.
    let is_held = |pod: &Option<Cached>| {
        let view = pod.as_ref().filter(|pod| pod.has_finalizer(FINALIZER));
        let view = view.and_then(|pod| pod.view::<PodView>().ok());
        view.is_some_and(|v| matches!(&*v.status.phase, "Succeeded" | "Failed"))
    };
    match (is_held(&change.old), is_held(&change.new)) {
        (false, true) => Some("add"),
        (true, false) => Some("delete"),
        _ => None,
    }
}

fn is_stray(pod: &Cached) -> bool {
    pod.controller().is_none() && pod.has_finalizer(FINALIZER)
}

impl Jobs {
    /// Lets strays go. One that a Job has adopted since then is another version, which stays as it is.
    async fn release_strays(&self, namespace: &str) -> Result<Next, Error> {
        for pod in self.pods.in_namespace(namespace).into_iter().filter(is_stray) {
            let patch = json!({"metadata": {
                "uid": pod.uid(),
                "resourceVersion": pod.resource_version().to_string(),
                "$deleteFromPrimitiveList/finalizers": [FINALIZER],
            }});
            match self.context.api.patch(&PODS, pod.key(), "", Patch::Strategic, &patch).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(Error::from(error)),
            }
        }
        Ok(Next::Done)
    }

    /// Pods of a Job that is gone have nobody left to count them.
    async fn release_orphans(&self, key: &ObjectKey, job: Option<&Cached>) -> Result<(), Error> {
        let mut orphans = Vec::new();
        for pod in self.pods.in_namespace(&key.namespace) {
            let of_this = pod.controller().is_some_and(|c| {
                *c.kind == *"Job" && c.name == key.name && job.is_none_or(|j| j.uid() != &*c.uid)
            });
            if of_this && pod.has_finalizer(FINALIZER) {
                orphans.push(pod);
            }
        }
        let orphans: Vec<&Cached> = orphans.iter().collect();
        self.release(key, orphans).await
    }

    /// Removes the finalizer of pods.
    async fn release(&self, key: &ObjectKey, pods: Vec<&Cached>) -> Result<(), Error> {
        let removals = pods.into_iter().map(|pod| async move {
            let patch =
                json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            match self.context.api.patch(&PODS, pod.key(), "", Patch::Strategic, &patch).await {
                Ok(_) => {}
                // Gone, or replaced by another of the same name.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(Error::from(error)),
            }
            self.released.lock().entry(key.clone()).or_default().insert(pod.uid().into());
            Ok(())
        });
        join_all(removals).await.into_iter().collect()
    }

    async fn pods_of(&self, job: &Cached, view: &View) -> Result<Vec<JobPod>, Error> {
        let mut candidates = self.pods.by_owner(job.uid());
        let selector = &view.spec.selector;
        if !selector.is_empty() {
            let orphans = self.pods.in_namespace(job.namespace()).into_iter();
            candidates.extend(orphans.filter(|p| p.controller().is_none() && selector.matches(p.labels())));
        }
        let finalizer = Some(FINALIZER);
        let claimed =
            ownership::claim(&self.context, &JOBS, job, selector, &PODS, candidates, finalizer).await?;
        let mut pods = Vec::with_capacity(claimed.len());
        let mut shown: HashSet<Box<str>> = HashSet::new();
        for cached in claimed {
            let view: PodView = cached.view()?;
            let finalizer = cached.has_finalizer(FINALIZER);
            let released = self.released.lock().get(job.key()).is_some_and(|r| r.contains(cached.uid()));
            if released && finalizer {
                shown.insert(Box::from(cached.uid()));
            }
            pods.push(JobPod::new(cached, view, released));
        }
        // What the cache shows without finalizer needs no memory any more.
        let mut all = self.released.lock();
        if let Some(released) = all.get_mut(job.key()) {
            released.retain(|uid| shown.contains(uid));
            if released.is_empty() {
                all.remove(job.key());
            }
        }
        Ok(pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncounted_pods_settle_once_their_finalizer_is_gone() {
        let mut status = JobStatus {
            succeeded: 1,
            uncounted_terminated_pods: Some(Uncounted {
                succeeded: vec!["a".into(), "b".into()],
                failed: vec!["c".into()],
            }),
            ..JobStatus::default()
        };
        status.settle(&HashSet::from(["b".to_owned()]));
        assert_eq!((status.succeeded, status.failed), (2, 1));
        assert_eq!(status.uncounted().succeeded, ["b"]);
        assert!(status.uncounted().failed.is_empty());
    }

    #[test]
    fn a_false_condition_is_only_kept_if_it_was_true() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut status = JobStatus::default();
        assert!(!status.ensure(job_condition("Suspended", "False", "JobResumed", "Job resumed", now)));
        assert!(status.ensure(job_condition("Suspended", "True", "JobSuspended", "Job suspended", now)));
        assert!(!status.ensure(job_condition("Suspended", "True", "JobSuspended", "Job suspended", now)));
        assert!(status.ensure(job_condition("Suspended", "False", "JobResumed", "Job resumed", now)));
    }
}
