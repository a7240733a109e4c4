//! The backward half: killing containers, finishing a pod, and letting a deleted one go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;
use yare_client::EventKind;
use yare_runtime::{ContainerState, ContainerStatus};

use super::actions::{Kill, KillReason};
use super::worker::{Next, Worker};
use super::{lifecycle, restart_all};
use crate::hooks::{GRACE_PERIOD_ANNOTATION, POD_HOOKS};
use crate::kubelet::Kubelet;
use crate::view::{Container, Pod};

/// What a container gets at least, whatever the hooks before used up.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

impl Worker {
    /// A pod whose containers are done: sidecars stop, the sandbox goes, the final status is told.
    pub(crate) async fn finish(&mut self, pod: &Arc<Pod>) -> Next {
        self.probes.stop_all();
        self.kill_all(pod).await;
        if !self.stop_sandboxes().await || !self.tear_down().await {
            return Next::Retry;
        }
        self.kubelet.release(&pod.metadata.uid);
        self.refresh(true).await;
        self.finished = true;
        self.tell_evictors();
        Next::Idle
    }

    /// A pod that is being deleted, or is gone already.
    pub(crate) async fn terminate(&mut self, pod: &Arc<Pod>) -> Next {
        let uid = pod.metadata.uid.clone();
        self.probes.quiet();
        if !self.finished {
            if self.snapshot.running().next().is_some() {
                self.refresh(false).await;
            }
            self.kill_all(pod).await;
            if !self.stop_sandboxes().await {
                return Next::Retry;
            }
            self.probes.stop_all();
            self.refresh(true).await;
        }
        if !self.tear_down().await {
            return Next::Retry;
        }
        self.kubelet.release(&uid);
        self.finished = true;
        self.tell_evictors();
        if !self.mailbox.removed() {
            // Others look at the final status (a Job counts it) before the pod vanishes.
            self.kubelet.writer.flush(&uid).await;
            let m = &pod.metadata;
            match self.kubelet.api.delete_pod(&m.namespace, &m.name, &uid).await {
                Ok(()) => return Next::Idle,
                // Gone, or the name belongs to another pod now: the watch will say so, or has.
                Err(error) if matches!(error.status_code(), Some(404 | 409)) => return Next::Idle,
                Err(error) => {
                    tracing::warn!(%error, pod = %pod.full_name(), "deleting a terminated pod");
                    return Next::Retry;
                }
            }
        }
        if !self.remove_from_runtime().await || !self.remove_files() {
            return Next::Retry;
        }
        self.kubelet.rotator.reconcile(&uid, &[]);
        Next::Done
    }

    /// Whoever ordered the pod to go hears that it is gone.
    fn tell_evictors(&mut self) {
        for waiting in self.evicted.drain(..) {
            let _ = waiting.send(());
        }
    }

    async fn stop_sandboxes(&mut self) -> bool {
        let mut stopped = true;
        for id in &self.sandbox_ids {
            if let Err(error) = self.kubelet.runtime.stop_sandbox(id).await {
                tracing::warn!(%error, sandbox = id, "stopping a sandbox");
                let text = format!("error killing pod: {error}");
                self.kubelet.pod_event(&self.mailbox.pod(), None, EventKind::Warning, "FailedKillPod", text);
                stopped = false;
            }
        }
        stopped
    }

    async fn tear_down(&mut self) -> bool {
        for hook in POD_HOOKS.iter().rev() {
            if let Err(error) = hook.tear_down(&self.kubelet, &self.dirs).await {
                tracing::warn!(%error, hook = hook.name(), pod = %self.mailbox.pod().full_name(), "tearing down a pod");
                // A driver that its volumes need may come before the next attempt.
                self.kubelet.volumes.wait(&self.mailbox.pod().metadata.uid, &self.mailbox);
                return false;
            }
        }
        self.volumes.clear();
        true
    }

    async fn remove_from_runtime(&mut self) -> bool {
        let mut removed = true;
        for id in self.sandbox_ids.clone() {
            match self.kubelet.runtime.remove_sandbox(&id).await {
                Ok(()) => {
                    self.sandbox_ids.remove(&id);
                    self.kubelet.unroute(&id);
                }
                Err(error) => {
                    tracing::warn!(%error, sandbox = id, "removing a sandbox");
                    removed = false;
                }
            }
        }
        removed
    }

    fn remove_files(&self) -> bool {
        for path in [&self.dirs.root, &self.dirs.logs] {
            match std::fs::remove_dir_all(path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "removing a pod's directory");
                    return false;
                }
            }
        }
        true
    }

    /// Kills some containers of a pod that goes on.
    pub(crate) async fn kill_some(&mut self, pod: &Arc<Pod>, kills: &[Kill]) {
        let mut running = FuturesUnordered::new();
        for kill in kills {
            let Some(status) = self.snapshot.containers.iter().find(|c| c.id == kill.id) else { continue };
            let probe_grace = pod.container(&kill.name).and_then(|c| {
                let probe = match kill.reason {
                    KillReason::Liveness => c.liveness_probe.as_ref(),
                    KillReason::Startup => c.startup_probe.as_ref(),
                    KillReason::Unknown | KillReason::RestartAll => None,
                };
                probe.and_then(|p| p.termination_grace_period_seconds)
            });
            let probe_grace = if kill.reason == KillReason::RestartAll { Some(0) } else { probe_grace };
            let grace = seconds(probe_grace.unwrap_or_else(|| pod.grace_period_s()));
            self.kubelet.pod_event(pod, Some(&kill.name), EventKind::Normal, "Killing", kill.message.clone());
            let (_keep, deadline) = watch::channel(Instant::now() + grace);
            let (kubelet, pod, status) = (self.kubelet.clone(), pod.clone(), status.clone());
            running.push(async move {
                kill_container(&kubelet, &pod, &status, deadline, None).await;
                drop(_keep);
            });
        }
        while running.next().await.is_some() {}
        drop(running);
        if !kills.is_empty() {
            self.observe().await;
        }
    }

    /// Kills one container, with the pod's grace period.
    pub(crate) async fn kill_one(&mut self, pod: &Arc<Pod>, id: &str, message: &str) {
        let Some(status) = self.snapshot.containers.iter().find(|c| c.id == id) else { return };
        let kill = Kill {
            id: id.to_owned(),
            name: status.name.clone(),
            message: message.to_owned(),
            reason: KillReason::Unknown,
        };
        self.kill_some(pod, &[kill]).await;
    }

    /// Takes the pod back to where no container had been made yet; their logs stay.
    pub(crate) async fn start_over(&mut self, pod: &Arc<Pod>) -> Next {
        let kills: Vec<Kill> = restart_all::order(pod, &self.snapshot)
            .into_iter()
            .filter(|c| c.state != ContainerState::Exited)
            .map(|c| Kill {
                id: c.id.clone(),
                name: c.name.clone(),
                message: format!("Stopping container {}", c.name),
                reason: KillReason::RestartAll,
            })
            .collect();
        self.kill_some(pod, &kills).await;
        for container in restart_all::order(pod, &self.snapshot) {
            if let Err(error) = self.kubelet.runtime.remove_container(&container.id).await
                && !error.is_not_found()
            {
                tracing::warn!(%error, container = container.id, "removing a container to start over");
                return Next::Retry;
            }
        }
        self.waiting.clear();
        self.mailbox.wake();
        Next::Idle
    }

    /// Kills everything that runs: main containers at once, then sidecars, the last one first. A newer, shorter
    /// grace period takes effect while it waits.
    pub(crate) async fn kill_all(&mut self, pod: &Arc<Pod>) {
        let running: Vec<ContainerStatus> = self.snapshot.running().cloned().collect();
        if running.is_empty() {
            return;
        }
        let mut grace = self.grace(pod, &running);
        let began = Instant::now();
        let (shorten, deadline) = watch::channel(began + grace);
        let turns = Turns::new(pod, &running);
        let mut kills = FuturesUnordered::new();
        for status in running.clone() {
            let text = format!("Stopping container {}", status.name);
            self.kubelet.pod_event(pod, Some(&status.name), EventKind::Normal, "Killing", text);
            let (kubelet, pod, deadline, turns) =
                (self.kubelet.clone(), pod.clone(), deadline.clone(), turns.clone());
            kills.push(tokio::spawn(async move {
                kill_container(&kubelet, &pod, &status, deadline, Some(&turns)).await;
            }));
        }
        let mut woken = false;
        loop {
            tokio::select! {
                done = kills.next() => {
                    if done.is_none() {
                        break;
                    }
                    if !kills.is_empty() {
                        self.refresh(false).await;
                    }
                }
                () = self.mailbox.woken() => {
                    woken = true;
                    self.take_eviction();
                    let now = self.grace(&self.mailbox.pod(), &running);
                    if now < grace {
                        grace = now;
                        shorten.send_replace(began + grace);
                    }
                    self.refresh(false).await;
                }
            }
        }
        if woken {
            // What woke us here may matter to the next round, too.
            self.mailbox.wake();
        }
        self.observe().await;
    }

    /// What the pod's containers have to stop.
    fn grace(&self, pod: &Pod, running: &[ContainerStatus]) -> Duration {
        let own = Self::own_grace(pod, running);
        self.grace_s.map_or(own, |ordered| own.min(seconds(ordered)))
    }

    /// The pod's own; from its containers' annotations when the pod itself is unknown.
    fn own_grace(pod: &Pod, running: &[ContainerStatus]) -> Duration {
        if pod.spec.containers.is_empty() {
            let noted =
                running.iter().find_map(|c| c.annotations.get(GRACE_PERIOD_ANNOTATION)?.parse::<i64>().ok());
            return seconds(noted.unwrap_or(30));
        }
        seconds(pod.grace_period_s())
    }
}

fn seconds(s: i64) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0))
}

/// Who waits for whom when a pod stops.
#[derive(Clone)]
struct Turns {
    gone: Arc<HashMap<String, watch::Sender<bool>>>,
    before: Arc<HashMap<String, Vec<String>>>,
}

impl Turns {
    fn new(pod: &Pod, running: &[ContainerStatus]) -> Self {
        let names: HashSet<&str> = running.iter().map(|c| c.name.as_str()).collect();
        let gone = running.iter().map(|c| (c.name.clone(), watch::Sender::new(false))).collect();
        let main = pod.spec.containers.iter().map(|c| c.name.clone()).filter(|n| names.contains(n.as_str()));
        let main: Vec<String> = main.collect();
        let mut before = HashMap::new();
        let mut later: Option<String> = None;
        for sidecar in pod
            .spec
            .init_containers
            .iter()
            .rev()
            .filter(|c| c.is_sidecar() && names.contains(c.name.as_str()))
        {
            let mut waits = main.clone();
            waits.extend(later.replace(sidecar.name.clone()));
            before.insert(sidecar.name.clone(), waits);
        }
        Turns { gone: Arc::new(gone), before: Arc::new(before) }
    }

    async fn wait(&self, name: &str) {
        for other in self.before.get(name).into_iter().flatten() {
            if let Some(gone) = self.gone.get(other) {
                let _ = gone.subscribe().wait_for(|gone| *gone).await;
            }
        }
    }

    fn done(&self, name: &str) {
        if let Some(gone) = self.gone.get(name) {
            gone.send_replace(true);
        }
    }
}

/// Waits until the deadline, which may be moved forward meanwhile.
async fn reached(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    tokio::time::sleep_until(at).await;
                    return;
                }
            }
        }
    }
}

async fn kill_container(
    kubelet: &Arc<Kubelet>,
    pod: &Arc<Pod>,
    status: &ContainerStatus,
    mut deadline: watch::Receiver<Instant>,
    turns: Option<&Turns>,
) {
    let container: Option<&Container> = pod.container(&status.name);
    let no_time = *deadline.borrow() <= Instant::now();
    if let Some((container, handler)) = container
        .and_then(|c| c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).map(|h| (c, h)))
        .filter(|_| !no_time)
    {
        let ip = pod.status.pod_ip.parse().ok().or_else(|| kubelet.node_ips.first().copied());
        let failed = tokio::select! {
            outcome = lifecycle::run(kubelet, pod, container, &status.id, ip, handler) => outcome.is_err(),
            () = reached(&mut deadline) => false,
        };
        if failed {
            let text = "PreStopHook failed".to_owned();
            kubelet.pod_event(pod, Some(&status.name), EventKind::Warning, "FailedPreStopHook", text);
        }
    }
    if let Some(turns) = turns {
        tokio::select! {
            () = turns.wait(&status.name) => {}
            () = reached(&mut deadline) => {}
        }
    }
    stop(kubelet, pod, status, &mut deadline).await;
    if let Some(turns) = turns {
        turns.done(&status.name);
    }
}

/// Stops a container; again, and sooner, when the deadline moves forward.
async fn stop(
    kubelet: &Arc<Kubelet>,
    pod: &Pod,
    status: &ContainerStatus,
    deadline: &mut watch::Receiver<Instant>,
) {
    let remaining = |at: Instant| at.saturating_duration_since(Instant::now()).max(MINIMUM_GRACE);
    let runtime = kubelet.runtime.clone();
    let first = remaining(*deadline.borrow_and_update());
    let main = runtime.stop_container(&status.id, first);
    tokio::pin!(main);
    let mut hurried = FuturesUnordered::new();
    loop {
        tokio::select! {
            outcome = &mut main => {
                if let Err(error) = outcome && !error.is_not_found() {
                    tracing::warn!(%error, container = status.id, pod = %pod.full_name(), "stopping a container");
                }
                return;
            }
            Some(stopped) = hurried.next(), if !hurried.is_empty() => {
                if stopped {
                    return;
                }
            }
            Ok(()) = deadline.changed() => {
                let grace = remaining(*deadline.borrow_and_update());
                let runtime = kubelet.runtime.clone();
                let id = status.id.clone();
                hurried.push(async move { runtime.stop_container(&id, grace).await.is_ok() });
            }
        }
    }
}
