//! CronJobs: Jobs made on a schedule.

mod schedule;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use yare_client::{CRON_JOBS, Cached, Informer, JOBS, ObjectKey};

use self::schedule::Schedule;
use crate::{
    api::{Deletion, Propagation},
    context::{Context, Error},
    harness::{Next, Reconcile},
    metrics,
    ownership::{controller_ref, is_controlled_by},
    views::{Condition, Meta, after, nullable, since},
};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Woken up a little late rather than too early.
const DELTA: Duration = Duration::from_millis(100);

struct CronJobs {
    context: Context,
    own: Informer,
    jobs: Informer,
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
    schedule: String,
    time_zone: Option<String>,
    starting_deadline_seconds: Option<u64>,
    concurrency_policy: String,
    suspend: bool,
    job_template: Value,
    successful_jobs_history_limit: Option<i32>,
    failed_jobs_history_limit: Option<i32>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    active: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_schedule_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_successful_time: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JobView {
    metadata: Meta,
    status: JobStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JobStatus {
    start_time: Option<Timestamp>,
    completion_time: Option<Timestamp>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

impl JobView {
    /// `Complete` or `Failed` of a Job that has ended.
    fn end(&self) -> Option<&str> {
        let mut ended = self.status.conditions.iter().filter(|c| c.is_true());
        ended.find(|c| matches!(&*c.kind, "Complete" | "Failed")).map(|c| &*c.kind)
    }
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(CronJobs {
        own: context.informer(CRON_JOBS),
        jobs: context.informer(JOBS),
        context: context.clone(),
    })
}

fn reference(job: &Cached) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": job.namespace(), "name": job.name(),
        "uid": job.uid(), "resourceVersion": job.resource_version().to_string()})
}

#[async_trait]
impl Reconcile for CronJobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(mut cron) = self.own.get(key) else { return Ok(Next::Done) };
        let mut view: View = cron.view()?;
        let mut jobs = Vec::new();
        for job in self.jobs.by_owner(cron.uid()) {
            if is_controlled_by(&job, &cron) {
                jobs.push((job.view::<JobView>()?, job));
            }
        }
        let listed = |job: &Cached| view.status.active.iter().any(|r| r["uid"] == job.uid());
        if jobs.iter().any(|(v, job)| v.end().is_none() && !listed(job)) {
            // The cache may show the Job before it shows the status that lists it.
            let fresh = self.context.api.get(&CRON_JOBS, key).await?;
            let Some(fresh) = fresh.filter(|f| f.uid() == cron.uid()) else { return Ok(Next::Done) };
            view = fresh.view()?;
            cron = fresh;
        }
        let mut status = view.status.clone();
        self.note_jobs(&cron, &jobs, &mut status).await?;
        self.clean_up(&cron, &view, &jobs).await?;
        let next = self.schedule(&cron, &view, &jobs, &mut status).await;
        if status != view.status {
            self.context.api.update_status(&CRON_JOBS, &cron, &status).await?;
        }
        next
    }
}

impl CronJobs {
    fn say(&self, cron: &Cached, reason: &str, message: String) {
        self.context.normal(&CRON_JOBS, cron, reason, message);
    }

    fn warn(&self, cron: &Cached, reason: &str, message: String) {
        self.context.warning(&CRON_JOBS, cron, reason, message);
    }

    /// Keeps the list of active Jobs true.
    async fn note_jobs(
        &self,
        cron: &Cached,
        jobs: &[(JobView, Cached)],
        status: &mut Status,
    ) -> Result<(), Error> {
        for (view, job) in jobs {
            let listed = status.active.iter().position(|r| r["uid"] == job.uid());
            match (listed, view.end()) {
                (None, None) => {
                    // Made just now, or by hand; in the list it counts for the concurrency policy.
                    let message =
                        format!("Saw a job that the controller did not create or forgot: {}", job.name());
                    self.warn(cron, "UnexpectedJob", message);
                }
                (Some(i), Some(end)) => {
                    status.active.remove(i);
                    let message = format!("Saw completed job: {}, condition: {end}", job.name());
                    self.say(cron, "SawCompletedJob", message);
                }
                _ => {}
            }
            if view.end() == Some("Complete") && status.last_successful_time < view.status.completion_time {
                status.last_successful_time = view.status.completion_time;
            }
        }
        let mut kept = Vec::new();
        for entry in std::mem::take(&mut status.active) {
            let name = entry["name"].as_str().unwrap_or_default();
            let cached = jobs.iter().any(|(_, j)| entry["uid"] == j.uid());
            let there = cached
                || self
                    .context
                    .api
                    .get(&JOBS, &ObjectKey::new(cron.namespace(), name))
                    .await?
                    .is_some_and(|j| entry["uid"] == j.uid());
            if there {
                kept.push(entry);
            } else {
                self.say(cron, "MissingJob", format!("Active job went missing: {name}"));
            }
        }
        status.active = kept;
        Ok(())
    }

    /// Deletes the oldest finished Jobs beyond the limits.
    async fn clean_up(&self, cron: &Cached, view: &View, jobs: &[(JobView, Cached)]) -> Result<(), Error> {
        let spec = &view.spec;
        for (end, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let Some(limit) = limit else { continue };
            let mut ended: Vec<_> = jobs.iter().filter(|(v, _)| v.end() == Some(end)).collect();
            ended.sort_by(|a, b| {
                (a.0.status.start_time, a.1.name()).cmp(&(b.0.status.start_time, b.1.name()))
            });
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for (_, job) in ended.into_iter().take(surplus).filter(|(_, j)| j.deletion_timestamp().is_none())
            {
                self.delete(cron, job).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &Cached, job: &Cached) -> Result<(), Error> {
        let how = Deletion { propagation: Some(Propagation::Background), ..Deletion::of(job) };
        match self.context.api.delete(&JOBS, job.key(), how).await {
            Ok(_) => self.say(cron, "SuccessfulDelete", format!("Deleted job {}", job.name())),
            Err(error) => {
                self.warn(cron, "FailedDelete", format!("Deleted job: {error}"));
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Makes a Job if it is time; when to come back.
    async fn schedule(
        &self,
        cron: &Cached,
        view: &View,
        jobs: &[(JobView, Cached)],
        status: &mut Status,
    ) -> Result<Next, Error> {
        let spec = &view.spec;
        if cron.deletion_timestamp().is_some() || spec.suspend {
            return Ok(Next::Done);
        }
        let zone = match &spec.time_zone {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    self.warn(cron, "UnknownTimeZone", format!("invalid timeZone: \"{name}\": {error}"));
                    return Ok(Next::Done);
                }
            },
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: \"{}\" : {error}", spec.schedule);
                self.warn(cron, "UnparseableSchedule", message);
                return Ok(Next::Done);
            }
        };
        let now = self.context.now();
        let next = match schedule.next(now, &zone) {
            Some(at) => Next::After(since(at, now) + DELTA),
            None => Next::Done,
        };
        let mut earliest = status.last_schedule_time.or(view.metadata.creation_timestamp).unwrap_or(now);
        let deadline = spec.starting_deadline_seconds.map(Duration::from_secs);
        if let Some(deadline) = deadline {
            earliest = earliest.max(now.saturating_sub(deadline).unwrap_or(earliest));
        }
        let Some((time, many)) = schedule.newest(earliest, now, &zone) else { return Ok(next) };
        if many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn(cron, "TooManyMissedTimes", message.into());
        }
        if deadline.is_some_and(|d| after(time, d) < now) {
            self.warn(cron, "MissSchedule", format!("Missed scheduled time to start a job: {time}"));
            return Ok(next);
        }
        let name = format!("{}-{}", cron.name(), time.as_second() / 60);
        let made =
            status.active.iter().any(|r| r["name"] == *name) || status.last_schedule_time == Some(time);
        if made {
            return Ok(next);
        }
        match &*spec.concurrency_policy {
            "Forbid" if !status.active.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.say(cron, "JobAlreadyActive", message.into());
                return Ok(next);
            }
            "Replace" => {
                for entry in std::mem::take(&mut status.active) {
                    if let Some((_, job)) = jobs.iter().find(|(_, j)| entry["uid"] == j.uid()) {
                        self.delete(cron, job).await?;
                    }
                }
            }
            _ => {}
        }
        let job = build(cron, view, &name, time, &zone);
        let created = match self.context.api.create(&JOBS, cron.namespace(), &job).await {
            Ok(created) => {
                self.say(cron, "SuccessfulCreate", format!("Created job {name}"));
                let skew_s = since(self.context.now(), time).as_secs_f64();
                self.context.config.metrics.table.observe(&metrics::CRON_JOB_SKEW_S, &[], skew_s);
                created
            }
            Err(error) if error.is_namespace_terminating() => return Ok(Next::Done),
            Err(error) if error.is_already_exists() => {
                let existing = self.context.api.get(&JOBS, &ObjectKey::new(cron.namespace(), &name)).await?;
                match existing.filter(|j| is_controlled_by(j, cron)) {
                    // Made in an earlier round whose status was not written.
                    Some(job) => job,
                    None => return Err(error.into()),
                }
            }
            Err(error) => {
                self.warn(cron, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error.into());
            }
        };
        if created.view::<JobView>()?.end().is_none() {
            status.active.push(reference(&created));
        }
        status.last_schedule_time = Some(time);
        Ok(next)
    }
}

fn build(cron: &Cached, view: &View, name: &str, time: Timestamp, zone: &TimeZone) -> Value {
    let template = &view.spec.job_template;
    let mut metadata = Map::new();
    if let Some(labels) = template.pointer("/metadata/labels") {
        metadata.insert("labels".into(), labels.clone());
    }
    let mut annotations = template.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({}));
    let shown = time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations[SCHEDULED_AT] = shown.replace("+00:00", "Z").into();
    metadata.insert("annotations".into(), annotations);
    metadata.insert("name".into(), name.into());
    metadata.insert("namespace".into(), cron.namespace().into());
    metadata.insert("ownerReferences".into(), json!([controller_ref(&CRON_JOBS, cron)]));
    json!({
        "kind": "Job",
        "apiVersion": "batch/v1",
        "metadata": metadata,
        "spec": template.get("spec").cloned().unwrap_or_default(),
    })
}
