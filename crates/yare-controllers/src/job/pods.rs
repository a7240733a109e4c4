//! The pods of a Job: what each says about the Job's progress, and how new ones are made.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use yare_client::{Cached, JOBS};

use super::Spec;
use crate::{
    template,
    views::{PodView, condition, since},
};

/// Holds a finished pod until it has been counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label with the index of a pod.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Failures of an index so far that count towards its limit.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// And those that do not.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// What the server appends to a generated name must fit in a label.
const GENERATE_NAME_MAX_BYTES: usize = 58;
const BACKOFF_MIN: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// A pod of a Job.
#[derive(Clone)]
pub struct JobPod {
    /// The pod.
    pub cached: Cached,
    /// Its view.
    pub view: PodView,
    /// Its completion index.
    pub index: Option<i32>,
    /// Whether it has not been counted yet.
    pub tracked: bool,
}

impl JobPod {
    /// Reads a pod; `released`: its finalizer was removed though the cache still shows it.
    pub fn new(cached: Cached, view: PodView, released: bool) -> Self {
        let index = view.metadata.annotations.get(INDEX).and_then(|i| i.parse().ok()).filter(|i| *i >= 0);
        let tracked = !released && cached.has_finalizer(FINALIZER);
        Self { cached, view, index, tracked }
    }

    /// Whether it ended well.
    pub fn has_succeeded(&self) -> bool {
        self.view.status.phase == "Succeeded"
    }

    /// Whether it counts as failed: also when it is being deleted, unless the Job replaces only what has
    /// really failed.
    pub fn has_failed(&self, spec: &Spec) -> bool {
        let deleted = self.view.metadata.deletion_timestamp.is_some() && !self.has_succeeded();
        self.view.status.phase == "Failed" || (deleted && !spec.replaces_only_failed())
    }

    fn number(&self, annotation: &str) -> i32 {
        self.view.metadata.annotations.get(annotation).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Earlier failures of its index that count.
    pub fn failures(&self) -> i32 {
        self.number(FAILURES)
    }

    /// Earlier failures of its index that do not count.
    pub fn ignored_failures(&self) -> i32 {
        self.number(IGNORED_FAILURES)
    }

    /// Earlier failures of its index. People may edit the annotations that say so, hence no overflow.
    pub fn all_failures(&self) -> i32 {
        self.failures().saturating_add(self.ignored_failures())
    }

    /// When it ended, as well as that can be known.
    pub fn finished_at(&self) -> Option<Timestamp> {
        let statuses = &self.view.status.container_statuses;
        let ends: Option<Vec<Timestamp>> =
            statuses.iter().map(|c| c.state.terminated.as_ref().and_then(|t| t.finished_at)).collect();
        let last = ends.and_then(|e| e.into_iter().max());
        let unready = condition(&self.view.status.conditions, "Ready").filter(|c| c.status == "False");
        last.or_else(|| unready.and_then(|c| c.last_transition_time))
            .or(self.view.metadata.deletion_timestamp)
            .or(self.view.metadata.creation_timestamp)
    }
}

/// How long to wait before replacing a pod after `failures` in a row, the last at `last`.
pub fn backoff(failures: u32, last: Option<Timestamp>, now: Timestamp) -> Duration {
    let (Some(last), 1..) = (last, failures) else { return Duration::ZERO };
    let delay = BACKOFF_MIN.saturating_mul(2u32.saturating_pow(failures - 1)).min(BACKOFF_MAX);
    delay.saturating_sub(since(now, last))
}

/// Failures in a row since the last success among finished pods, and when the last one was.
pub fn failures_in_a_row(pods: &[JobPod], spec: &Spec) -> (u32, Option<Timestamp>) {
    let last_success = pods.iter().filter(|p| p.has_succeeded()).filter_map(JobPod::finished_at).max();
    let failures: Vec<Timestamp> = pods
        .iter()
        .filter(|p| p.has_failed(spec))
        .filter_map(JobPod::finished_at)
        .filter(|t| last_success.is_none_or(|s| *t > s))
        .collect();
    (u32::try_from(failures.len()).unwrap_or(u32::MAX), failures.into_iter().max())
}

/// A new pod of `job`; `index` for indexed Jobs, with the counts of its earlier failures if those are
/// limited per index.
pub fn build(job: &Cached, template: &Value, index: Option<i32>, failures: Option<(i32, i32)>) -> Value {
    let mut pod = template::pod(template, &JOBS, job);
    let finalizers = &mut pod["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|f| f == FINALIZER) => {}
        Some(list) => list.push(FINALIZER.into()),
        None => *finalizers = json!([FINALIZER]),
    }
    let Some(index) = index else { return pod };
    let text = index.to_string();
    pod["metadata"]["annotations"][INDEX] = text.clone().into();
    pod["metadata"]["labels"][INDEX] = text.into();
    if let Some((counted, ignored)) = failures {
        pod["metadata"]["annotations"][FAILURES] = counted.to_string().into();
        if ignored > 0 {
            pod["metadata"]["annotations"][IGNORED_FAILURES] = ignored.to_string().into();
        }
    }
    let suffix = format!("-{index}-");
    let mut name = job.name().to_owned();
    name.truncate(GENERATE_NAME_MAX_BYTES.saturating_sub(suffix.len()));
    pod["metadata"]["generateName"] = format!("{name}{suffix}").into();
    pod["spec"]["hostname"] = format!("{}-{index}", job.name()).into();
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let variable = json!({
                "name": INDEX_VARIABLE,
                "valueFrom": {"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}},
            });
            match container["env"].as_array_mut() {
                Some(env) if env.iter().any(|v| v["name"] == INDEX_VARIABLE) => {}
                Some(env) => env.push(variable),
                None => container["env"] = json!([variable]),
            }
        }
    }
    if pod["spec"]["initContainers"].is_null()
        && let Some(spec) = pod["spec"].as_object_mut()
    {
        spec.remove("initContainers");
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_are_bounded() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let seconds = |n, passed| {
            let now = at.saturating_add(Duration::from_secs(passed)).unwrap();
            backoff(n, Some(at), now).as_secs()
        };
        assert_eq!(
            [seconds(0, 0), seconds(1, 0), seconds(2, 0), seconds(2, 5), seconds(9, 0)],
            [0, 10, 20, 15, 600]
        );
    }

    #[test]
    fn indexed_pods_know_their_index() {
        let job = Cached::new(r#"{"metadata":{"name":"j","namespace":"d","uid":"u"}}"#.into()).unwrap();
        let template = json!({"spec": {"containers": [{"name": "c", "env": [{"name": "A"}]}]}});
        let pod = build(&job, &template, Some(3), Some((1, 0)));
        assert_eq!(pod["metadata"]["generateName"], "j-3-");
        assert_eq!(pod["spec"]["hostname"], "j-3");
        assert_eq!(pod["metadata"]["labels"][INDEX], "3");
        assert_eq!(pod["metadata"]["annotations"][FAILURES], "1");
        assert_eq!(pod["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(pod["spec"]["containers"][0]["env"][1]["name"], INDEX_VARIABLE);
        assert!(pod["spec"].get("initContainers").is_none());
        assert_eq!(build(&job, &template, None, None)["metadata"]["generateName"], "j-");
    }
}
