//! One reconciliation of a Job: counts its pods, decides its fate, creates and deletes, and writes.

use tokio::time::Instant;

use super::*;

/// A Job in the middle of a reconciliation.
pub(super) struct Round<'a> {
    this: &'a Jobs,
    job: Cached,
    view: View,
    /// As it will be written.
    status: JobStatus,
    pods: Vec<JobPod>,
    active: Vec<JobPod>,
    terminating: i32,
    ready: i32,
    may_act: bool,
    /// What new pods belong to.
    group: Option<Cached>,
    now: Timestamp,
    /// With those that are finished but not counted yet.
    succeeded: i32,
    failed: i32,
    succeeded_indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// Of indexes whose failures are limited: the last failed pod, kept until its replacement exists.
    delayed: BTreeMap<i32, JobPod>,
    /// How the Job ends, if it does.
    end: Option<Condition>,
    requeue: Option<Duration>,
    /// What was done to pods, as the metrics name it.
    action: &'static str,
}

impl<'a> Round<'a> {
    /// Starts from what the caches show.
    pub(super) fn new(
        this: &'a Jobs,
        job: Cached,
        view: View,
        pods: Vec<JobPod>,
        may_act: bool,
        group: Option<Cached>,
    ) -> Self {
        let active: Vec<JobPod> = pods.iter().filter(|p| p.view.is_active()).cloned().collect();
        let mut status = view.status.clone();
        status.uncounted_terminated_pods.get_or_insert_default();
        Self {
            terminating: count(pods.iter().filter(|p| p.view.is_terminating()).count()),
            ready: count(active.iter().filter(|p| p.view.is_ready()).count()),
            now: this.context.now(),
            succeeded: 0,
            failed: 0,
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            delayed: BTreeMap::new(),
            end: None,
            requeue: None,
            action: "reconciling",
            this,
            job,
            view,
            status,
            pods,
            active,
            may_act,
            group,
        }
    }

    fn spec(&self) -> &Spec {
        &self.view.spec
    }

    fn wake_in(&mut self, delay: Duration) {
        self.requeue = Some(self.requeue.map_or(delay, |d| d.min(delay)));
    }

    /// Whether a pod has an index that the Job wants; any pod of a Job without indexes has.
    fn is_valid(&self, pod: &JobPod) -> bool {
        !self.spec().is_indexed() || pod.index.is_some_and(|i| i < self.spec().completions())
    }

    fn completion_mode(&self) -> &'static str {
        if self.spec().is_indexed() { "Indexed" } else { "NonIndexed" }
    }

    /// Drives the Job one step.
    pub(super) async fn run(mut self) -> Result<Next, Error> {
        let start = Instant::now();
        let done = self.step().await;
        let result = if done.is_ok() { "success" } else { "error" };
        let labels = [self.action, self.completion_mode(), result];
        let table = &self.this.context.config.metrics.table;
        table.count(&metrics::JOB_SYNCS, &labels);
        table.observe(&metrics::JOB_SYNC_S, &labels, start.elapsed().as_secs_f64());
        done
    }

    async fn step(&mut self) -> Result<Next, Error> {
        self.count();
        if self.status.start_time.is_none() && !self.spec().suspend {
            self.status.start_time = Some(whole_second(self.now));
        }
        self.find_end();
        let mut managed = Ok(());
        let mut active = count(self.active.len());
        if self.end.is_some() {
            let pods: Vec<JobPod> = self.active.clone();
            managed = self.delete(&pods, false).await;
            if managed.is_err() || !self.may_act {
                // Tried again before the Job ends.
                self.end = None;
            } else {
                active = 0;
            }
        } else {
            let manage = self.may_act && self.job.deletion_timestamp().is_none();
            if manage {
                match self.manage().await {
                    Ok(n) => active = n,
                    Err(error) => managed = Err(error),
                }
            }
            let done = match self.spec().completions {
                None => self.succeeded > 0,
                Some(completions) => self.succeeded >= completions,
            };
            if done && active == 0 && managed.is_ok() {
                let message = "Reached expected number of succeeded pods";
                self.end = Some(job_condition(
                    "SuccessCriteriaMet",
                    "True",
                    "CompletionsReached",
                    message,
                    self.now,
                ));
            } else if manage {
                self.note_suspension();
            }
        }
        self.status.active = active;
        self.status.ready = Some(self.ready);
        self.status.terminating = Some(self.terminating);
        self.track().await?;
        managed?;
        Ok(self.requeue.map_or(Next::Done, Next::After))
    }

    /// Counts what has finished, whether or not the status says so already.
    fn count(&mut self) {
        let uncounted = self.status.uncounted().clone();
        let fresh = |p: &&JobPod, known: &[String]| {
            p.tracked && self.is_valid(p) && !known.iter().any(|u| u == p.cached.uid())
        };
        let succeeded =
            self.pods.iter().filter(|p| fresh(p, &uncounted.succeeded) && p.has_succeeded()).count();
        let spec = self.spec();
        let failed = self
            .pods
            .iter()
            .filter(|p| {
                fresh(p, &uncounted.failed) && p.has_failed(spec) && spec.verdict(p) != Verdict::Ignore
            })
            .count();
        self.succeeded = self.status.succeeded.saturating_add(count(succeeded + uncounted.succeeded.len()));
        self.failed = self.status.failed.saturating_add(count(failed + uncounted.failed.len()));
        if self.spec().is_indexed() {
            self.count_indexes();
        }
    }

    fn count_indexes(&mut self) {
        let completions = self.spec().completions();
        let mut succeeded = Indexes::parse(&self.status.completed_indexes, completions);
        let valid: Vec<&JobPod> = self.pods.iter().filter(|p| p.tracked && self.is_valid(p)).collect();
        succeeded.extend(valid.iter().filter(|p| p.has_succeeded()).filter_map(|p| p.index));
        self.succeeded = count(succeeded.len());
        if let Some(limit) = self.spec().backoff_limit_per_index {
            let spec = self.spec();
            let mut failed = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or(""), completions);
            let is_final = |p: &JobPod| {
                p.has_failed(spec)
                    && match spec.verdict(p) {
                        Verdict::FailIndex => true,
                        Verdict::Ignore => false,
                        Verdict::Count | Verdict::FailJob(_) => p.failures() >= limit,
                    }
            };
            failed.extend(valid.iter().filter(|p| is_final(p)).filter_map(|p| p.index));
            let running: HashSet<i32> = self.active.iter().filter_map(|p| p.index).collect();
            let mut delayed: BTreeMap<i32, JobPod> = BTreeMap::new();
            for pod in valid.into_iter().filter(|p| p.has_failed(spec)) {
                let Some(index) = pod.index else { continue };
                if succeeded.has(index) || failed.has(index) || running.contains(&index) {
                    continue;
                }
                let order = |p: &JobPod| (p.all_failures(), p.finished_at());
                if delayed.get(&index).is_none_or(|other| order(other) <= order(pod)) {
                    delayed.insert(index, pod.clone());
                }
            }
            self.delayed = delayed;
            self.failed_indexes = Some(failed);
        }
        self.succeeded_indexes = succeeded;
    }

    /// Decides whether the Job's fate is known.
    fn find_end(&mut self) {
        let now = self.now;
        let target =
            |reason: &str, message: &str| Some(job_condition("FailureTarget", "True", reason, message, now));
        for kind in ["SuccessCriteriaMet", "FailureTarget"] {
            if self.status.is(kind) {
                self.end = condition(&self.status.conditions, kind).cloned();
                return;
            }
        }
        let spec = &self.view.spec;
        let fatal = self.pods.iter().filter(|p| p.has_failed(spec)).find_map(|p| match spec.verdict(p) {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        });
        self.end = if let Some(message) = fatal {
            target("PodFailurePolicy", &message)
        } else if self.failed > spec.backoff_limit.unwrap_or(6) || self.restarts_too_often() {
            target("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        } else {
            None
        };
        if self.end.is_none()
            && let Some(seconds) = spec.active_deadline_seconds
            && let Some(start) = self.status.start_time.filter(|_| !spec.suspend)
        {
            let left = Duration::from_secs(seconds).saturating_sub(since(now, start));
            if left.is_zero() {
                self.end = target("DeadlineExceeded", "Job was active longer than specified deadline");
            } else {
                self.wake_in(left);
            }
        }
        if self.end.is_none() && self.view.spec.is_indexed() {
            self.end = self.find_indexed_end();
        }
    }

    fn find_indexed_end(&self) -> Option<Condition> {
        let spec = self.spec();
        let completions = spec.completions();
        if let Some(failed) = &self.failed_indexes {
            let all = failed.len() + self.succeeded_indexes.len() >= size(completions);
            let (reason, message) = if spec.max_failed_indexes.is_some_and(|max| failed.len() > size(max)) {
                (
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                )
            } else if !failed.is_empty() && all {
                ("FailedIndexes", "Job has failed indexes")
            } else {
                ("", "")
            };
            if !reason.is_empty() {
                return Some(job_condition("FailureTarget", "True", reason, message, self.now));
            }
        }
        let rule = spec.success_policy.as_ref()?.met(&self.succeeded_indexes, completions)?;
        let message = format!("Matched rules at index {rule}");
        Some(job_condition("SuccessCriteriaMet", "True", "SuccessPolicy", &message, self.now))
    }

    /// Restarts in place count against the limit too.
    fn restarts_too_often(&self) -> bool {
        let spec = self.spec();
        if spec.template.pointer("/spec/restartPolicy") != Some(&json!("OnFailure")) {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(&*p.view.status.phase, "Running" | "Pending"));
        let restarts: i64 = running
            .flat_map(|p| {
                p.view.status.container_statuses.iter().chain(&p.view.status.init_container_statuses)
            })
            .map(|c| i64::from(c.restart_count))
            .sum();
        match i64::from(spec.backoff_limit.unwrap_or(6)) {
            0 => restarts > 0,
            limit => restarts >= limit,
        }
    }

    fn note_suspension(&mut self) {
        let (status, reason, message, event) = if self.spec().suspend {
            ("True", "JobSuspended", "Job suspended", "Suspended")
        } else {
            ("False", "JobResumed", "Job resumed", "Resumed")
        };
        if self.status.ensure(job_condition("Suspended", status, reason, message, self.now)) {
            self.this.context.normal(&JOBS, &self.job, event, message);
            self.status.start_time = (!self.view.spec.suspend).then_some(whole_second(self.now));
        }
    }

    /// Creates or deletes pods; how many are active then.
    async fn manage(&mut self) -> Result<i32, Error> {
        let mut active = count(self.active.len());
        self.action = "tracking";
        if self.spec().suspend {
            let pods = self.active.clone();
            self.action = "pods_deleted";
            self.delete(&pods, true).await?;
            return Ok(0);
        }
        let parallelism = self.spec().parallelism.unwrap_or(1);
        let wanted = match self.spec().completions {
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        };
        let surplus = self.superfluous(size(active - wanted));
        if !surplus.is_empty() {
            self.action = "pods_deleted";
            self.delete(&surplus, true).await?;
            active -= count(surplus.len());
        }
        let terminating = if self.spec().replaces_only_failed() { self.terminating } else { 0 };
        let missing = wanted - terminating - active;
        if missing > 0 {
            self.action = "pods_created";
            active += self.create(size(missing).min(BURST)).await?;
        }
        Ok(active)
    }

    /// At least `n` active pods to delete: those whose index is not wanted or taken, then the cheapest.
    fn superfluous(&self, n: usize) -> Vec<JobPod> {
        let candidates: Vec<Candidate<'_>> = self
            .active
            .iter()
            .map(|p| Candidate { pod: &p.cached, view: &p.view, related_on_node: 0 })
            .collect();
        let order = deletion_order(&candidates, self.now);
        let mut doomed: Vec<usize> = Vec::new();
        if self.spec().is_indexed() {
            // The most valuable pod of an index stays.
            let mut taken = HashSet::new();
            for &i in order.iter().rev() {
                let pod = &self.active[i];
                if !self.is_valid(pod) || !taken.insert(pod.index) {
                    doomed.push(i);
                }
            }
        }
        for i in order {
            if doomed.len() >= n {
                break;
            }
            if !doomed.contains(&i) {
                doomed.push(i);
            }
        }
        doomed.into_iter().take(BURST).map(|i| self.active[i].clone()).collect()
    }

    async fn delete(&mut self, pods: &[JobPod], uncounted: bool) -> Result<(), Error> {
        let (this, job) = (self.this, &self.job);
        if uncounted {
            // Their end is our doing and says nothing about the Job.
            let tracked = pods.iter().filter(|p| p.tracked).map(|p| &p.cached).collect();
            this.release(job.key(), tracked).await?;
            for pod in &mut self.pods {
                pod.tracked &= !pods.iter().any(|p| p.cached.uid() == pod.cached.uid());
            }
        }
        let deletions = pods.iter().map(|pod| async move {
            template::delete_pod(&this.context, &JOBS, job, &pod.cached).await?;
            this.expectations.deleted(job.key(), &pod.cached);
            Ok::<_, Error>(())
        });
        let result: Result<(), Error> = join_all(deletions).await.into_iter().collect();
        if result.is_ok() {
            self.terminating += count(pods.len());
            self.ready -= count(pods.iter().filter(|p| p.view.is_ready()).count());
        }
        result
    }

    async fn create(&mut self, missing: usize) -> Result<i32, Error> {
        let per_index = self.spec().backoff_limit_per_index.is_some();
        if !per_index {
            let (failures, last) = failures_in_a_row(&self.pods, self.spec());
            let wait = backoff(failures, last, self.now);
            if !wait.is_zero() {
                self.wake_in(wait);
                return Ok(0);
            }
        }
        let indexes: Vec<Option<i32>> = if self.spec().is_indexed() {
            let pending = self.pending_indexes(missing);
            let wait = |i: &i32| {
                let last = self.delayed.get(i);
                let failures = last.map_or(0, |p| p.all_failures().saturating_add(1));
                backoff(u32::try_from(failures).unwrap_or(0), last.and_then(JobPod::finished_at), self.now)
            };
            let (now, later): (Vec<i32>, Vec<i32>) = pending.into_iter().partition(|i| wait(i).is_zero());
            if let Some(next) = later.iter().map(wait).min() {
                self.wake_in(next);
            }
            now.into_iter().map(Some).collect()
        } else {
            vec![None; missing]
        };
        let bodies: Vec<Value> = indexes
            .into_iter()
            .map(|index| {
                let failures =
                    index.filter(|_| per_index).map(|i| self.failures_before(self.delayed.get(&i)));
                let mut pod = pods::build(&self.job, &self.spec().template, index, failures);
                if let Some(group) = &self.group {
                    workload::join(&mut pod, group);
                }
                pod
            })
            .collect();
        let (this, job) = (self.this, &self.job);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let bodies = &bodies;
        slow_start(bodies.len(), || {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                match template::create_pod(&this.context, &JOBS, job, &bodies[i]).await {
                    Ok(created) => {
                        this.expectations.created(job.key(), &created);
                        Ok(())
                    }
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => Err(Error::from(error)),
                }
            }
        })
        .await?;
        Ok(count(bodies.len()))
    }

    /// The lowest indexes that have neither ended nor a pod.
    fn pending_indexes(&self, n: usize) -> Vec<i32> {
        let mut busy: HashSet<i32> = self.active.iter().filter_map(|p| p.index).collect();
        if self.spec().replaces_only_failed() {
            busy.extend(self.pods.iter().filter(|p| p.view.is_terminating()).filter_map(|p| p.index));
        }
        (0..self.spec().completions())
            .filter(|i| !busy.contains(i) && !self.succeeded_indexes.has(*i))
            .filter(|i| !self.failed_indexes.as_ref().is_some_and(|f| f.has(*i)))
            .take(n)
            .collect()
    }

    /// Failures of an index, counted and ignored, with that of its last pod.
    fn failures_before(&self, last: Option<&JobPod>) -> (i32, i32) {
        let Some(last) = last else { return (0, 0) };
        let (counted, ignored) = (last.failures(), last.ignored_failures());
        if self.spec().verdict(last) == Verdict::Ignore {
            (counted, ignored.saturating_add(1))
        } else {
            (counted.saturating_add(1), ignored)
        }
    }

    /// Writes what has finished, releases the pods, and ends the Job when nothing is left to count.
    async fn track(&mut self) -> Result<(), Error> {
        let mut tracked: HashSet<String> =
            self.pods.iter().filter(|p| p.tracked).map(|p| p.cached.uid().to_owned()).collect();
        self.status.settle(&tracked);
        let (releasable, complete, by_policy) = self.note_finished();
        if self.spec().is_indexed() {
            self.status.succeeded = count(self.succeeded_indexes.len());
            self.status.completed_indexes = self.succeeded_indexes.to_string();
            self.status.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        }
        if let Some(end) = &self.end
            && !self.status.is(&end.kind)
        {
            self.status.conditions.push(end.clone());
        }
        self.flush().await?;
        for action in by_policy {
            self.this.context.config.metrics.table.count(&metrics::JOB_PODS_BY_POLICY, &[action]);
        }
        let released = self.this.release(self.job.key(), releasable.iter().collect()).await;
        if released.is_ok() {
            for pod in &releasable {
                tracked.remove(pod.uid());
            }
            self.status.settle(&tracked);
        }
        let ended = released.is_ok() && complete && self.finish();
        self.flush().await?;
        if ended && let Some(end) = &self.end {
            let context = &self.this.context;
            let result = if end.kind == "SuccessCriteriaMet" { "succeeded" } else { "failed" };
            let labels = [self.completion_mode(), &*end.reason, result];
            context.config.metrics.table.count(&metrics::JOBS_FINISHED, &labels);
            if end.kind == "SuccessCriteriaMet" {
                if self.spec().completions.is_some_and(|c| self.status.succeeded > c) {
                    let message = "Too many succeeded pods running after completion count reached";
                    context.warning(&JOBS, &self.job, "TooManySucceededPods", message);
                }
                context.normal(&JOBS, &self.job, "Completed", "Job completed");
            } else {
                context.warning(&JOBS, &self.job, &end.reason, end.message.clone());
            }
        }
        released
    }

    /// Adds finished pods to the uncounted ones; the pods that may be released, whether all fitted, and the actions
    /// of the policy for those that failed.
    fn note_finished(&mut self) -> (Vec<Cached>, bool, Vec<&'static str>) {
        let failing = self.end.as_ref().is_some_and(|e| e.kind == "FailureTarget");
        let must_release = self.job.deletion_timestamp().is_some() || self.end.is_some();
        let indexed = self.spec().is_indexed();
        let mut uncounted = self.status.uncounted().clone();
        let mut releasable = Vec::new();
        let mut complete = true;
        let mut by_policy = Vec::new();
        for pod in self.pods.iter().filter(|p| p.tracked) {
            let failed = pod.has_failed(self.spec());
            let held = pod
                .index
                .and_then(|i| self.delayed.get(&i))
                .is_some_and(|d| d.cached.uid() == pod.cached.uid());
            if !(must_release || pod.has_succeeded() || (failed && !held)) {
                continue;
            }
            if releasable.len() + uncounted.succeeded.len() + uncounted.failed.len() >= UNCOUNTED_MAX {
                complete = false;
                break;
            }
            releasable.push(pod.cached.clone());
            let uid = pod.cached.uid();
            let known = |list: &[String]| list.iter().any(|u| u == uid);
            if pod.has_succeeded() && !known(&uncounted.failed) {
                // Of indexed Jobs, `completedIndexes` is the count.
                if !indexed && !known(&uncounted.succeeded) {
                    uncounted.succeeded.push(uid.to_owned());
                }
            } else if (failed || failing) && !known(&uncounted.failed) && self.is_valid(pod) {
                let policy = self.spec().pod_failure_policy.as_ref();
                let matching = policy.and_then(|p| p.matching(&pod.cached, &pod.view));
                by_policy.extend(matching.as_ref().map(Verdict::action));
                if matching != Some(Verdict::Ignore) {
                    uncounted.failed.push(uid.to_owned());
                }
            }
        }
        *self.status.uncounted() = uncounted;
        (releasable, complete, by_policy)
    }

    /// Makes the end final when nothing is left; whether it did.
    fn finish(&mut self) -> bool {
        let uncounted = self.status.uncounted();
        let left = uncounted.succeeded.len() + uncounted.failed.len();
        let Some(end) = self.end.clone() else { return false };
        if left > 0 || self.terminating > 0 {
            return false;
        }
        let kind = if end.kind == "SuccessCriteriaMet" { "Complete" } else { "Failed" };
        let last = job_condition(kind, "True", &end.reason, &end.message, self.now);
        if kind == "Complete" {
            self.status.completion_time = last.last_transition_time;
        }
        self.status.ensure(last);
        true
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.status == self.view.status {
            return Ok(());
        }
        let written = self.this.context.api.update_status(&JOBS, &self.job, &self.status).await?;
        self.this.written.lock().insert(self.job.key().clone(), written.resource_version());
        let (old, new) = (&self.view.status, &self.status);
        for (result, more) in
            [("succeeded", new.succeeded - old.succeeded), ("failed", new.failed - old.failed)]
        {
            // Indexes may fall out of a Job that is made smaller.
            if more > 0 {
                let labels = [self.completion_mode(), result];
                self.this.context.config.metrics.table.add(&metrics::JOB_PODS_FINISHED, &labels, more.into());
            }
        }
        self.view.status = self.status.clone();
        self.job = written;
        Ok(())
    }
}
