//! One pod's task: it looks at the pod and at the runtime, does what is next, and sleeps until told.
//!
//! In: wake-ups through the [`Mailbox`]. Out: calls to the runtime, statuses to the [`StatusWriter`], events.
//! Every round starts from what is there, so a lost wake-up costs nothing once the next one comes, and a
//! restart of the agent is only another first round. The steps of a round are in `start.rs` and `kill.rs`.
//!
//! [`StatusWriter`]: super::writer::StatusWriter

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::{ContainerState, ContainerStatus, SandboxStatus};
use yare_trace::Span;

use super::backoff::{Backoffs, Waits};
use super::dirs::PodDirs;
use super::fields::Facts;
use super::limits;
use super::mailbox::Mailbox;
use super::messages;
use super::snapshot::Snapshot;
use super::status::{self, Verdict, WaitReason};
use crate::allocation;
use crate::clock;
use crate::images::keyring::Login;
use crate::kubelet::{Kubelet, PodState, Published};
use crate::metrics::table;
use crate::probe::ProbeSet;
use crate::trace;
use crate::view::{Pod, PodStatus};
use crate::volumes::Volumes;

/// Waits after a failed round, doubling.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Wait before a container whose configuration cannot be made is looked at again (its missing parts wake us
/// earlier when they appear).
pub(crate) const CONFIG_RETRY: Duration = Duration::from_secs(10);

/// What a round leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until something happens.
    Idle,
    /// Something at this time, or earlier when something happens.
    At(Timestamp),
    /// Again after a failure.
    Retry,
    /// The pod is gone, with everything that belonged to it.
    Done,
}

/// A pod's task and all it remembers. None of it is needed again after a restart.
pub(crate) struct Worker {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) dirs: PodDirs,
    pub(crate) sandbox_ids: BTreeSet<String>,
    pub(crate) container_ids: BTreeSet<String>,
    pub(crate) snapshot: Snapshot,
    pub(crate) waiting: HashMap<String, WaitReason>,
    pub(crate) restarts: Backoffs,
    pub(crate) probes: ProbeSet,
    pub(crate) volumes: Volumes,
    pub(crate) logins: Vec<Login>,
    pub(crate) status: PodStatus,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) finished: bool,
    /// Containers that were stopped to start with another size.
    pub(crate) resized: BTreeSet<String>,
    /// Seconds that containers get to stop, where an order says less than the pod.
    pub(crate) grace_s: Option<i64>,
    /// Who waits for the pod to be gone.
    pub(crate) evicted: Vec<oneshot::Sender<()>>,
    messages: HashMap<String, String>,
    published: Arc<Published>,
    /// When this node first saw the pod; none: it was seen to run, or runs since before this agent.
    new_since: Option<Instant>,
    admitted: bool,
    failures: u32,
}

impl Worker {
    /// A task for a pod, with what the runtime already holds for it.
    pub(crate) fn new(
        kubelet: Arc<Kubelet>,
        mailbox: Arc<Mailbox>,
        sandboxes: Vec<SandboxStatus>,
        containers: Vec<ContainerStatus>,
    ) -> Self {
        let pod = mailbox.pod();
        for sandbox in &sandboxes {
            kubelet.route(&sandbox.id, &mailbox);
        }
        let published = Arc::new(Published::default());
        kubelet.published.lock().insert(pod.metadata.uid.clone(), published.clone());
        kubelet.mailboxes.lock().insert(pod.metadata.uid.clone(), mailbox.clone());
        let is_new = containers.is_empty();
        Worker {
            dirs: PodDirs::new(&kubelet.data_dir, &kubelet.log_dir, &pod),
            sandbox_ids: sandboxes.iter().map(|s| s.id.clone()).collect(),
            container_ids: containers.iter().map(|c| c.id.clone()).collect(),
            snapshot: Snapshot::new(sandboxes, containers),
            waiting: HashMap::new(),
            restarts: Backoffs::new(Waits::of_restarts(kubelet.config.settings(), kubelet.config.gates())),
            probes: ProbeSet::default(),
            volumes: Volumes::default(),
            logins: Vec::new(),
            status: pod.status.clone(),
            verdict: None,
            finished: false,
            resized: BTreeSet::new(),
            grace_s: None,
            evicted: Vec::new(),
            new_since: is_new.then(Instant::now),
            messages: HashMap::new(),
            published,
            admitted: false,
            failures: 0,
            kubelet,
            mailbox,
        }
    }

    /// Runs until the pod is gone.
    pub(crate) async fn run(mut self) {
        let metrics = self.kubelet.metrics.clone();
        let mut began_once = false;
        loop {
            let kind = if began_once { "sync" } else { "create" };
            let began = Instant::now();
            if !std::mem::replace(&mut began_once, true) {
                metrics.took(
                    &table::POD_WORKER_START_DURATION,
                    &[],
                    self.new_since.map_or(Duration::ZERO, |since| since.elapsed()),
                );
                metrics.observe(
                    &table::CONTAINERS_PER_POD,
                    &[],
                    self.mailbox.pod().spec.containers.len() as f64,
                );
            }
            let tracer = self.kubelet.tracer.as_ref();
            let mut span = tracer
                .map(|tracer| trace::of_pod(tracer, &self.mailbox.pod(), self.mailbox.is_leaving(), kind));
            let next = yare_trace::scoped(span.as_ref().map(Span::active), self.sync()).await;
            if next == Next::Retry
                && let Some(span) = &mut span
            {
                span.failed("not all of it could be done");
            }
            drop(span);
            metrics.took(&table::POD_WORKER_DURATION, &[kind], began.elapsed());
            if next != Next::Retry {
                self.failures = 0;
            }
            let wait = match next {
                Next::Done => break,
                Next::Idle => None,
                Next::At(at) => Some(self.kubelet.seams.until(at)),
                Next::Retry => {
                    self.failures = (self.failures + 1).min(10);
                    Some((RETRY_MIN * 2u32.pow(self.failures - 1)).min(RETRY_MAX))
                }
            };
            match wait {
                None => self.mailbox.woken().await,
                Some(wait) => {
                    // A little more than asked, so that the wall clock has surely passed the mark.
                    let until = Instant::now() + wait + Duration::from_millis(1);
                    tokio::select! {
                        () = self.mailbox.woken() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
        let uid = &self.mailbox.pod().metadata.uid.clone();
        for sandbox in &self.sandbox_ids {
            self.kubelet.unroute(sandbox);
        }
        metrics.forget(&self.mailbox.pod());
        self.kubelet.images.forget(uid);
        self.kubelet.volumes.forget_certificates(uid);
        self.kubelet.objects.release(uid);
        self.kubelet.writer.forget(uid);
        self.kubelet.allocations.forget(uid);
        self.kubelet.published.lock().remove(uid);
        self.kubelet.mailboxes.lock().remove(uid);
    }

    /// One round.
    async fn sync(&mut self) -> Next {
        let wants = self.mailbox.pod();
        let pod = self.kubelet.allocations.apply(&wants);
        self.observe().await;
        self.take_eviction();
        if self.mailbox.is_leaving() {
            return self.terminate(&pod).await;
        }
        if self.finished {
            return Next::Idle;
        }
        if !self.admitted {
            let runs_already = !self.snapshot.containers.is_empty() || pod.is_terminal();
            self.kubelet.allocations.recall(&wants);
            let pod = self.kubelet.allocations.apply(&wants);
            match self.kubelet.admit(&pod, runs_already).await {
                Ok(()) => {
                    self.kubelet.allocations.admitted(&pod);
                    self.admitted = true;
                }
                Err(rejection) => {
                    let text = format!("Pod was rejected: {}", rejection.message);
                    self.kubelet.metrics.count(&table::ADMISSION_REJECTIONS, &[&rejection.reason]);
                    self.kubelet.pod_event(
                        &pod,
                        None,
                        EventKind::Warning,
                        &rejection.reason,
                        rejection.message,
                    );
                    self.verdict =
                        Some(Verdict { reason: rejection.reason, message: text, disrupted: false });
                }
            }
        }
        let deadline = self.deadline(&pod);
        if self.verdict.is_none() && deadline.is_some_and(|at| self.kubelet.seams.now() >= at) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.kubelet.pod_event(&pod, None, EventKind::Normal, "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict { reason: "DeadlineExceeded".to_owned(), message, disrupted: false });
        }
        allocation::consider(&self.kubelet, &wants);
        let pod = self.kubelet.allocations.apply(&wants);
        self.tell_resize(&pod);
        self.probes.reconcile(&self.kubelet, &self.mailbox, &pod, &self.snapshot, &self.status);
        let current = self.compute(&pod, false);
        if matches!(current.phase.as_str(), "Succeeded" | "Failed") {
            return self.finish(&pod).await;
        }
        self.publish_status(&pod, current);
        let next = self.advance(&pod).await;
        match (next, deadline) {
            (Next::Idle, Some(at)) => Next::At(at),
            (Next::At(a), Some(b)) => Next::At(a.min(b)),
            (next, _) => next,
        }
    }

    /// Takes up an order to go, if there is one. What the pod failed of before stays.
    pub(crate) fn take_eviction(&mut self) {
        let Some(eviction) = self.mailbox.take_eviction() else { return };
        if self.finished {
            return;
        }
        self.grace_s = Some(self.grace_s.map_or(eviction.grace_s, |before| before.min(eviction.grace_s)));
        self.evicted.extend(eviction.done);
        self.verdict.get_or_insert(Verdict {
            reason: eviction.reason,
            message: eviction.message,
            disrupted: eviction.disrupted,
        });
    }

    /// When the pod has run for as long as it may.
    pub(crate) fn deadline(&self, pod: &Pod) -> Option<Timestamp> {
        let seconds = u64::try_from(pod.spec.active_deadline_seconds?).unwrap_or(0);
        let start = self.status.start_time.as_ref()?.parse::<Timestamp>().ok()?;
        Some(clock::after(start, Duration::from_secs(seconds)))
    }

    /// Reads the state of everything that is known of the pod from the runtime.
    pub(crate) async fn observe(&mut self) {
        let runtime = self.kubelet.runtime.clone();
        let began = Instant::now();
        let mut sandboxes = Vec::with_capacity(self.sandbox_ids.len());
        for id in self.sandbox_ids.clone() {
            match runtime.sandbox(&id).await {
                Ok(status) => sandboxes.push(status),
                Err(error) if error.is_not_found() => {
                    self.sandbox_ids.remove(&id);
                    self.kubelet.unroute(&id);
                }
                Err(error) => {
                    tracing::warn!(%error, sandbox = id, "reading a sandbox's state");
                    sandboxes.extend(self.snapshot.sandboxes.iter().find(|s| s.id == id).cloned());
                }
            }
        }
        let mut containers = Vec::with_capacity(self.container_ids.len());
        for id in self.container_ids.clone() {
            match runtime.container(&id).await {
                Ok(status) => containers.push(status),
                Err(error) if error.is_not_found() => {
                    self.container_ids.remove(&id);
                    self.messages.remove(&id);
                }
                Err(error) => {
                    tracing::warn!(%error, container = id, "reading a container's state");
                    containers.extend(self.snapshot.containers.iter().find(|c| c.id == id).cloned());
                }
            }
        }
        for container in containers.iter().filter(|c| c.state == ContainerState::Exited) {
            if !self.messages.contains_key(&container.id) {
                self.messages.insert(container.id.clone(), messages::read(&self.dirs, container));
            }
        }
        self.kubelet.metrics.took(&table::POD_RELIST_DURATION, &[], began.elapsed());
        self.snapshot = Snapshot::new(sandboxes, containers);
        self.kubelet.rotator.reconcile(&self.mailbox.pod().metadata.uid, &self.snapshot.containers);
    }

    /// The status as of now.
    pub(crate) fn compute(&self, pod: &Arc<Pod>, terminal: bool) -> PodStatus {
        let host_ips = self.kubelet.host_ips();
        let probes = &self.probes;
        let allocations = &self.kubelet.allocations;
        let uid = &pod.metadata.uid;
        let resize = if terminal { Vec::new() } else { allocations.conditions(uid) };
        let of_pod = allocations.switches.pod.then(|| {
            let policy = &self.kubelet.resources.policy;
            limits::pod(policy, &allocations.as_in_force(pod), self.kubelet.pids_limit())
        });
        let mut status = status::generate(
            pod,
            &self.snapshot,
            &status::Inputs {
                previous: &self.status,
                waiting: &self.waiting,
                health: &|container, status| probes.health(container, &status.id),
                messages: &self.messages,
                verdict: self.verdict.as_ref(),
                terminal,
                host_ips: &host_ips,
                runtime_name: &self.kubelet.runtime_name,
                in_force: allocations.in_force(uid).as_ref(),
                resize: &resize,
                of_pod: of_pod.as_ref(),
                now: self.kubelet.seams.now(),
            },
        );
        self.kubelet.managers.tell_health(pod, &self.status, &mut status);
        status
    }

    /// Makes a status known: to the API server and to the node's own HTTP API.
    pub(crate) fn publish_status(&mut self, pod: &Arc<Pod>, status: PodStatus) {
        *self.published.0.lock() = PodState {
            pod: pod.clone(),
            status: status.clone(),
            containers: self.snapshot.containers.clone(),
            sandbox: self.snapshot.ready_sandbox().map(|s| s.id.clone()),
        };
        if status.phase == "Running"
            && let Some(seen) = self.new_since.take()
        {
            self.measure_start(pod, seen);
        }
        self.count_ends(&status);
        self.status = status.clone();
        if !self.mailbox.removed() {
            self.kubelet.writer.submit(pod, status);
        }
    }

    /// Counts the containers that the new status shows as terminated, and the one before did not.
    fn count_ends(&self, new: &PodStatus) {
        let old = &self.status;
        for (kind, old, new) in [
            ("init_container", &old.init_container_statuses, &new.init_container_statuses),
            ("container", &old.container_statuses, &new.container_statuses),
            ("ephemeral_container", &old.ephemeral_container_statuses, &new.ephemeral_container_statuses),
        ] {
            for container in new {
                let Some(end) = &container.state.terminated else { continue };
                if old.iter().any(|o| o.name == container.name && o.state.terminated.is_some()) {
                    continue;
                }
                let labels = [kind, &end.exit_code.to_string(), &end.reason];
                self.kubelet.metrics.count(&table::TERMINATED_CONTAINERS, &labels);
            }
        }
    }

    /// How long the pod took to run, from its creation and from when it was seen, and without what images and
    /// init containers took.
    fn measure_start(&self, pod: &Pod, seen: Instant) {
        let metrics = &self.kubelet.metrics;
        metrics.took(&table::POD_START_DURATION, &[], seen.elapsed());
        let created =
            pod.metadata.creation_timestamp.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
        let Some(created) = created else { return };
        let total = Duration::try_from(self.kubelet.seams.now().duration_since(created)).unwrap_or_default();
        metrics.took(&table::POD_START_TOTAL_DURATION, &[], total);
        let init = self.snapshot.containers.iter().filter(|c| {
            pod.spec.init_containers.iter().any(|i| i.name == c.name) && c.finished_at_ns > c.started_at_ns
        });
        let init_ns: i64 = init.map(|c| c.finished_at_ns - c.started_at_ns).sum();
        let others = Duration::from_nanos(u64::try_from(init_ns).unwrap_or(0))
            + self.kubelet.images.spent(&pod.metadata.uid);
        metrics.took(&table::POD_START_SLI_DURATION, &[], total.saturating_sub(others));
    }

    /// Reads the runtime's state and publishes the status that follows from it.
    pub(crate) async fn refresh(&mut self, terminal: bool) {
        self.observe().await;
        let pod = self.kubelet.allocations.apply(&self.mailbox.pod());
        self.probes.reconcile(&self.kubelet, &self.mailbox, &pod, &self.snapshot, &self.status);
        let status = self.compute(&pod, terminal);
        // While containers still stop, a final phase would let others believe that they are gone.
        let status = match terminal {
            false if matches!(status.phase.as_str(), "Succeeded" | "Failed") => return,
            _ => status,
        };
        self.publish_status(&pod, status);
    }

    /// What the downward API may tell.
    pub(crate) fn facts(&self) -> Facts {
        let pod = self.mailbox.pod();
        let host_ips = self.kubelet.host_ips();
        let pod_ips = if pod.spec.host_network {
            host_ips.clone()
        } else {
            self.snapshot
                .ready_sandbox()
                .map(|s| s.ips.iter().map(ToString::to_string).collect())
                .unwrap_or_default()
        };
        Facts { host_ips, pod_ips, allocatable: self.kubelet.offer.lock().allocatable.clone() }
    }
}
