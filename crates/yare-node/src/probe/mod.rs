//! Probes: startup, liveness and readiness of running containers, each a small task.
//!
//! In: containers that run and their probes. Out: outcomes, kept by container instance; when one changes the
//! pod is woken. Readiness and liveness begin once the container has started, a container's end ends them.

mod exec;
mod grpc;
pub(crate) mod http;
pub(crate) mod tcp;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::{ContainerState, ContainerStatus};

use crate::clock;
use crate::kubelet::Kubelet;
use crate::pod::mailbox::Mailbox;
use crate::pod::snapshot::Snapshot;
use crate::view::{Container, Pod, PodStatus, Probe};

/// Which question a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }

    fn word(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// What a probe says, thresholds applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    Success,
    /// It worked, with something to tell.
    Warning(String),
    Failure(String),
    /// The probe itself could not be carried out: which state it came to (`unknown`, `failure`), and why.
    Error(&'static str, String),
}

type Outcomes = Arc<Mutex<HashMap<(String, ProbeKind), Outcome>>>;

/// The probes of one pod.
#[derive(Default)]
pub(crate) struct ProbeSet {
    outcomes: Outcomes,
    tasks: HashMap<(String, ProbeKind), AbortHandle>,
    quiet: bool,
}

impl Drop for ProbeSet {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl ProbeSet {
    /// What a probe of a container instance last said.
    pub(crate) fn outcome(&self, id: &str, kind: ProbeKind) -> Option<Outcome> {
        self.outcomes.lock().get(&(id.to_owned(), kind)).copied()
    }

    /// (started, ready) of a running container.
    pub(crate) fn health(&self, container: &Container, id: &str) -> (bool, bool) {
        let passed = |kind: ProbeKind| {
            kind.of(container).is_none() || self.outcome(id, kind) == Some(Outcome::Success)
        };
        (passed(ProbeKind::Startup), passed(ProbeKind::Readiness))
    }

    /// Starts the probes that are missing and ends those of containers that are gone.
    pub(crate) fn reconcile(
        &mut self,
        kubelet: &Arc<Kubelet>,
        mailbox: &Arc<Mailbox>,
        pod: &Arc<Pod>,
        snapshot: &Snapshot,
        before: &PodStatus,
    ) {
        let running =
            |id: &str| snapshot.containers.iter().any(|c| c.id == id && c.state == ContainerState::Running);
        self.tasks.retain(|(id, _), task| {
            running(id) || {
                task.abort();
                false
            }
        });
        self.outcomes.lock().retain(|(id, _), _| running(id));
        let probed = pod.spec.init_containers.iter().filter(|c| c.is_sidecar()).chain(&pod.spec.containers);
        for container in probed {
            let Some(status) =
                snapshot.latest(&container.name).filter(|s| s.state == ContainerState::Running)
            else {
                continue;
            };
            self.inherit(kubelet, container, status, before);
            for kind in ProbeKind::ALL {
                let Some(probe) = kind.of(container) else { continue };
                let key = (status.id.clone(), kind);
                let started = self.health(container, &status.id).0;
                let wanted = match kind {
                    ProbeKind::Startup => !started,
                    ProbeKind::Liveness => started && !self.quiet,
                    ProbeKind::Readiness => started,
                };
                let held =
                    kind != ProbeKind::Readiness && self.outcome(&status.id, kind) == Some(Outcome::Failure);
                if !wanted
                    || held
                    || self.tasks.get(&key).is_some_and(|t| !t.is_finished())
                    || (self.quiet && kind == ProbeKind::Startup)
                {
                    continue;
                }
                let ip = snapshot.ready_sandbox().and_then(|s| s.ips.first().copied());
                let ip =
                    ip.or_else(|| pod.spec.host_network.then(|| kubelet.node_ips.first().copied()).flatten());
                let task = Task {
                    kubelet: kubelet.clone(),
                    mailbox: mailbox.clone(),
                    pod: pod.clone(),
                    container: container.clone(),
                    probe: probe.clone(),
                    kind,
                    id: status.id.clone(),
                    ip,
                    started_at_ns: status.started_at_ns,
                    outcomes: self.outcomes.clone(),
                };
                self.tasks.insert(key, tokio::spawn(task.run()).abort_handle());
            }
        }
    }

    /// A container that was started or ready before the agent restarted stays so until a probe says otherwise.
    fn inherit(
        &self,
        kubelet: &Kubelet,
        container: &Container,
        status: &ContainerStatus,
        before: &PodStatus,
    ) {
        let id = format!("{}://{}", kubelet.runtime_name, status.id);
        let Some(old) = before.container(&container.name).filter(|o| o.container_id == id) else { return };
        let mut outcomes = self.outcomes.lock();
        for (kind, held) in
            [(ProbeKind::Startup, old.started == Some(true)), (ProbeKind::Readiness, old.ready)]
        {
            if held && kind.of(container).is_some() {
                outcomes.entry((status.id.clone(), kind)).or_insert(Outcome::Success);
            }
        }
    }

    /// The pod is going away: nothing is restarted any more, only readiness is still asked.
    pub(crate) fn quiet(&mut self) {
        self.quiet = true;
        self.tasks.retain(|(_, kind), task| {
            *kind == ProbeKind::Readiness || {
                task.abort();
                false
            }
        });
        self.outcomes
            .lock()
            .retain(|(_, kind), outcome| *kind == ProbeKind::Readiness || *outcome == Outcome::Success);
    }

    /// Ends all probes.
    pub(crate) fn stop_all(&mut self) {
        for (_, task) in self.tasks.drain() {
            task.abort();
        }
    }
}

/// How often attempts came out the same, without a break.
#[derive(Default)]
struct Streak {
    of: Option<Outcome>,
    length: u32,
}

impl Streak {
    fn lengthened_by(&mut self, outcome: Outcome) -> u32 {
        self.length = if self.of == Some(outcome) { self.length.saturating_add(1) } else { 1 };
        self.of = Some(outcome);
        self.length
    }
}

struct Task {
    kubelet: Arc<Kubelet>,
    mailbox: Arc<Mailbox>,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    kind: ProbeKind,
    id: String,
    ip: Option<IpAddr>,
    started_at_ns: i64,
    outcomes: Outcomes,
}

impl Task {
    async fn run(self) {
        let period = Duration::from_secs(u64::from(self.probe.period_seconds.unwrap_or(10).max(1)));
        let delay = Duration::from_secs(u64::from(self.probe.initial_delay_seconds));
        // A start that is to come is of a clock that was set back since.
        let first = clock::from_ns(self.started_at_ns).map_or(Duration::ZERO, |started| {
            self.kubelet.seams.until(clock::after(started, delay)).min(delay)
        });
        if !first.is_zero() {
            tokio::time::sleep(first).await;
        }
        let mut streak = Streak::default();
        let mut next = Instant::now();
        loop {
            // What could not be asked says nothing, neither good nor bad.
            if let Some(outcome) = self.ask().await
                && self.is_over(outcome, &mut streak)
            {
                return;
            }
            next = (next + period).max(Instant::now());
            tokio::time::sleep_until(next).await;
        }
    }

    /// Takes in what an attempt said; tells whether the probe has nothing more to find out.
    fn is_over(&self, outcome: Outcome, streak: &mut Streak) -> bool {
        let threshold = match outcome {
            Outcome::Success => self.probe.success_threshold.unwrap_or(1),
            Outcome::Failure => self.probe.failure_threshold.unwrap_or(3),
        };
        if streak.lengthened_by(outcome) < threshold.max(1) {
            return false;
        }
        let before = self.outcomes.lock().insert((self.id.clone(), self.kind), outcome);
        if before != Some(outcome) {
            self.mailbox.wake();
        }
        match self.kind {
            // A failure restarts the container; a success of startup is final.
            ProbeKind::Startup => true,
            ProbeKind::Liveness => outcome == Outcome::Failure,
            ProbeKind::Readiness => false,
        }
    }

    /// `None`: it could not be asked.
    async fn ask(&self) -> Option<Outcome> {
        let began = std::time::Instant::now();
        let mut attempt = self.attempt().await;
        // A probe that could not be carried out is tried twice more.
        for _ in 0..2 {
            if !matches!(attempt, Attempt::Error(..)) {
                break;
            }
            attempt = self.attempt().await;
        }
        let word = self.kind.word();
        let outcome = match &attempt {
            Attempt::Success | Attempt::Warning(_) => Some(Outcome::Success),
            Attempt::Failure(_) => Some(Outcome::Failure),
            Attempt::Error(..) => None,
        };
        if let Some(outcome) = outcome {
            let is_good = outcome == Outcome::Success;
            self.kubelet.metrics.probed(&self.pod, &self.container.name, word, is_good, began.elapsed());
        }
        let (reason, text) = match attempt {
            Attempt::Success => return outcome,
            Attempt::Warning(text) => ("ProbeWarning", format!("{word} probe warning: {text}")),
            Attempt::Failure(text) => ("Unhealthy", format!("{word} probe failed: {text}")),
            Attempt::Error(state, text) => {
                ("Unhealthy", format!("{word} probe errored and resulted in {state} state: {text}"))
            }
        };
        self.kubelet.pod_event(&self.pod, Some(&self.container.name), EventKind::Warning, reason, text);
        outcome
    }

    async fn attempt(&self) -> Attempt {
        let timeout = Duration::from_secs(u64::from(self.probe.timeout_seconds.unwrap_or(1).max(1)));
        let handler = &self.probe.handler;
        let host = || self.ip.map(|ip| ip.to_string()).unwrap_or_default();
        if let Some(action) = &handler.exec {
            return exec::probe(&self.kubelet, &self.id, &self.container, action, timeout).await;
        }
        if let Some(action) = &handler.http_get {
            return http::probe(action, &self.container, self.ip, timeout).await;
        }
        if let Some(action) = &handler.tcp_socket {
            let host = if action.host.is_empty() { host() } else { action.host.clone() };
            return match self.container.resolve_port(&action.port) {
                Ok(port) => tcp::probe(&host, port, timeout).await,
                Err(error) => Attempt::Error("unknown", error),
            };
        }
        if let Some(action) = &handler.grpc {
            return grpc::probe(&host(), action, timeout).await;
        }
        let place = format!("{}:{}", self.pod.full_name(), self.container.name);
        Attempt::Error("unknown", format!("missing probe handler for {place}"))
    }
}
