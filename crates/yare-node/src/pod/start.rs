//! The forward half of a round: volumes, sandbox, containers, in that order, as far as it goes now.

use std::sync::Arc;

use yare_client::EventKind;
use yare_runtime::{ContainerConfig, ContainerState, SandboxConfig};

use super::actions::{self, Actions};
use super::status::WaitReason;
use super::worker::{CONFIG_RETRY, Next, Worker};
use super::{lifecycle, restart_all};
use crate::clock::{self, go_duration};
use crate::gc;
use crate::hooks::{CONTAINER_HOOKS, ContainerStart, POD_HOOKS, PodStart, StartFailure};
use crate::images::volumes::ImageVolumes;
use crate::metrics::table;
use crate::view::{Container, Pod};

impl Worker {
    /// Does what is next for a pod that should run.
    pub(crate) async fn advance(&mut self, pod: &Arc<Pod>) -> Next {
        if restart_all::is_under_way(&self.status) {
            return self.start_over(pod).await;
        }
        let probes = &self.probes;
        let mut actions = actions::compute(pod, &self.snapshot, &|id, kind| probes.outcome(id, kind));
        if actions.kill_pod && actions.create_sandbox.is_none() {
            self.kill_some(pod, &actions.kill).await;
            return self.finish(pod).await;
        }
        if actions.create_sandbox.is_some() && !self.leave_sandbox(pod).await {
            return Next::Retry;
        }
        let plan = self.plan_resize(pod);
        self.resized.extend(plan.restart(pod, &mut actions));
        self.start_resized(pod, &mut actions);
        self.kill_some(pod, &actions.kill).await;
        let Ok(mut next) = self.set_up(pod, &actions).await else { return Next::Retry };
        if !self.resize(pod, &plan).await {
            next = earlier(next, Next::At(clock::after(self.kubelet.seams.now(), CONFIG_RETRY)));
        }
        let mut failed = false;
        let mut changed = actions.create_sandbox.is_some() || !actions.kill.is_empty() || !plan.is_empty();
        let images = match actions.starts_some() {
            true => ImageVolumes::pull(&self.kubelet, &self.mailbox, pod, &self.logins).await,
            false => ImageVolumes::default(),
        };
        let ephemeral = actions.ephemeral.iter().map(|i| &pod.spec.ephemeral_containers[*i].common);
        let init = actions.init.iter().filter_map(|i| pod.spec.init_containers.get(*i));
        let main = actions.main.iter().map(|i| &pod.spec.containers[*i]);
        let ephemeral = ephemeral.map(|c| ("ephemeral_container", c));
        let init = init.map(|c| ("init_container", c));
        for (kind, container) in ephemeral.chain(init).chain(main.map(|c| ("container", c))) {
            if self.mailbox.is_stopping() {
                break;
            }
            if self.snapshot.latest(&container.name).is_some_and(|s| s.state == ContainerState::Running) {
                // It could not be stopped: one at a time.
                next = Next::Retry;
                continue;
            }
            let before = self.waiting.get(&container.name).cloned();
            let metrics = &self.kubelet.metrics;
            metrics.count(&table::STARTED_CONTAINERS, &[kind]);
            match self.start_container(pod, container, &images).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                    changed = true;
                    // Let its start be known while the next one is made ready.
                    self.refresh(false).await;
                }
                Err(failure) => {
                    failed = true;
                    let labels = [failure.reason.as_str(), kind];
                    self.kubelet.metrics.count(&table::STARTED_CONTAINERS_ERRORS, &labels);
                    let at = failure
                        .retry_at
                        .unwrap_or_else(|| clock::after(self.kubelet.seams.now(), CONFIG_RETRY));
                    next = earlier(next, Next::At(at));
                    let wait = WaitReason { reason: failure.reason, message: failure.message };
                    changed |= before.as_ref() != Some(&wait);
                    self.waiting.insert(container.name.clone(), wait);
                }
            }
        }
        if failed && actions.create_sandbox.is_some() && pod.spec.host_users == Some(false) {
            // What is wrong with a user namespace mostly shows when containers are made.
            self.kubelet.metrics.count(&table::STARTED_USERNS_PODS_ERRORS, &[]);
        }
        if !plan.is_empty() {
            self.tell_resize(pod);
        }
        if changed {
            self.refresh(false).await;
            // Something was done: look again at once whether more can be done.
            if !matches!(next, Next::At(_)) {
                let probes = &self.probes;
                let more = actions::compute(pod, &self.snapshot, &|id, kind| probes.outcome(id, kind));
                if more != Actions::default() {
                    self.mailbox.wake();
                }
            }
        }
        next
    }

    /// A sandbox that died: everything in it stops, and initialization starts over.
    async fn leave_sandbox(&mut self, pod: &Arc<Pod>) -> bool {
        if self.snapshot.sandboxes.is_empty() {
            return true;
        }
        let text = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.kubelet.pod_event(pod, None, EventKind::Normal, "SandboxChanged", text);
        self.kill_all(pod).await;
        let runtime = self.kubelet.runtime.clone();
        for sandbox in &self.snapshot.sandboxes {
            if let Err(error) = runtime.stop_sandbox(&sandbox.id).await {
                tracing::warn!(%error, sandbox = sandbox.id, "stopping a sandbox that is to be replaced");
                return false;
            }
        }
        for container in &pod.spec.init_containers {
            for old in self.snapshot.containers.iter().filter(|c| c.name == container.name) {
                let _ = runtime.remove_container(&old.id).await;
            }
        }
        self.observe().await;
        true
    }

    /// Runs the pod hooks and makes the sandbox if one is needed.
    async fn set_up(&mut self, pod: &Arc<Pod>, actions: &Actions) -> Result<Next, ()> {
        let facts = self.facts();
        let mut config =
            SandboxConfig { attempt: actions.create_sandbox.unwrap_or(0), ..SandboxConfig::default() };
        let mut start = PodStart {
            kubelet: &self.kubelet,
            mailbox: &self.mailbox,
            pod,
            dirs: &self.dirs,
            facts: &facts,
            fresh: actions.create_sandbox.is_some(),
            volumes: &mut self.volumes,
            logins: &mut self.logins,
            sandbox: &mut config,
        };
        for hook in POD_HOOKS {
            if let Err(failure) = hook.set_up(&mut start).await {
                tracing::debug!(hook = hook.name(), pod = %pod.full_name(), message = failure.message, "pod hook");
                if !failure.message.is_empty() {
                    self.kubelet.pod_event(pod, None, EventKind::Warning, failure.reason, failure.message);
                }
                // A running pod goes on with the content it has.
                return if actions.create_sandbox.is_some() { Err(()) } else { Ok(Next::Retry) };
            }
        }
        let refresh = self.volumes.refresh_at().map_or(Next::Idle, Next::At);
        if actions.create_sandbox.is_none() {
            return Ok(refresh);
        }
        let metrics = self.kubelet.metrics.clone();
        let has_own_users = config.namespaces.user.is_some();
        metrics.count(&table::STARTED_PODS, &[]);
        if has_own_users {
            metrics.count(&table::STARTED_USERNS_PODS, &[]);
        }
        let made = self.kubelet.runtime.run_sandbox(config).await;
        match made {
            Ok(id) => {
                self.kubelet.route(&id, &self.mailbox);
                self.sandbox_ids.insert(id);
                self.kubelet.allocations.sandbox_made(pod);
                self.refresh(false).await;
                Ok(refresh)
            }
            Err(error) => {
                metrics.count(&table::STARTED_PODS_ERRORS, &[]);
                if has_own_users {
                    metrics.count(&table::STARTED_USERNS_PODS_ERRORS, &[]);
                }
                let text = format!("Failed to create pod sandbox: {error}");
                self.kubelet.pod_event(pod, None, EventKind::Warning, "FailedCreatePodSandBox", text);
                Err(())
            }
        }
    }

    async fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        images: &ImageVolumes,
    ) -> Result<(), StartFailure> {
        let kubelet = self.kubelet.clone();
        let held = match self.resized.contains(&container.name) {
            true => None,
            false => self.crash_backoff(pod, container),
        };
        if let Some(held) = held {
            let text =
                format!("Back-off restarting failed container {} in pod {}", container.name, pod.full_name());
            kubelet.pod_event(pod, Some(&container.name), EventKind::Warning, "BackOff", text);
            return Err(held);
        }
        images.check(&kubelet, pod, container)?;
        let outcome = self.make_container(pod, container, images).await;
        images.count(&kubelet, container, &outcome);
        outcome
    }

    /// Makes a container and starts it, hook by hook.
    async fn make_container(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        images: &ImageVolumes,
    ) -> Result<(), StartFailure> {
        let kubelet = self.kubelet.clone();
        let event = |kind, reason: &str, text: String| {
            kubelet.pod_event(pod, Some(&container.name), kind, reason, text);
        };
        let Some(sandbox) = self.snapshot.ready_sandbox().cloned() else {
            return Err(failure("CreateContainerError", "the pod sandbox is not ready".to_owned()));
        };
        let attempt = match self.snapshot.latest(&container.name) {
            Some(before) => before.attempt + 1,
            None => self.dirs.attempts_by_logs(&container.name),
        };
        let target = self.target(pod, container).map_err(|text| {
            event(EventKind::Warning, "Failed", format!("Error: {text}"));
            failure("CreateContainerConfigError", text)
        })?;
        let facts = self.facts();
        let mut start = ContainerStart {
            kubelet: &self.kubelet,
            mailbox: &self.mailbox,
            pod,
            container,
            attempt,
            dirs: &self.dirs,
            facts: &facts,
            runtime_handler: &sandbox.runtime_handler,
            volumes: &self.volumes,
            image_volumes: images,
            logins: &self.logins,
            image: None,
            env: std::collections::BTreeMap::new(),
            config: ContainerConfig::default(),
        };
        for hook in CONTAINER_HOOKS {
            if let Err(failure) = hook.apply(&mut start).await {
                tracing::debug!(hook = hook.name(), pod = %pod.full_name(), message = failure.message, "container hook");
                // A start that was given up because the pod is to stop has not failed.
                if !self.mailbox.is_stopping() {
                    event(EventKind::Warning, "Failed", failure.event.clone());
                }
                return Err(failure);
            }
        }
        let config = ContainerConfig { pid_target: target, ..start.config };
        if self.mailbox.is_stopping() {
            return Err(failure("ContainerCreating", "the pod is stopping".to_owned()));
        }
        let runtime = self.kubelet.runtime.clone();
        let id = runtime.create_container(&sandbox.id, config).await.map_err(|error| {
            event(EventKind::Warning, "Failed", format!("Error: {error}"));
            failure("CreateContainerError", error.to_string())
        })?;
        self.container_ids.insert(id.clone());
        self.kubelet.allocations.container_made(pod, container);
        event(EventKind::Normal, "Created", "Container created".to_owned());
        if let Err(error) = runtime.start_container(&id).await {
            event(EventKind::Warning, "Failed", format!("Error: {error}"));
            return Err(failure("RunContainerError", error.to_string()));
        }
        self.resized.remove(&container.name);
        event(EventKind::Normal, "Started", "Container started".to_owned());
        self.forget_dead(container, &id).await;
        self.post_start(pod, container, &id, &sandbox.ips).await
    }

    /// The container whose processes an ephemeral one is to see.
    fn target(&self, pod: &Pod, container: &Container) -> Result<Option<String>, String> {
        let ephemeral = pod.spec.ephemeral_containers.iter().find(|e| e.common.name == container.name);
        match ephemeral.map(|e| e.target_container_name.as_str()) {
            None | Some("") => Ok(None),
            Some(name) => match self.snapshot.latest(name) {
                Some(target) => Ok(Some(target.id.clone())),
                None => Err(format!("unable to find target container {name}")),
            },
        }
    }

    /// Runs the `postStart` hook; a container whose hook fails is killed.
    async fn post_start(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        id: &str,
        ips: &[std::net::IpAddr],
    ) -> Result<(), StartFailure> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = ips.first().copied().or_else(|| self.kubelet.node_ips.first().copied());
        let outcome = tokio::select! {
            outcome = lifecycle::run(&self.kubelet, pod, container, id, ip, handler) => outcome,
            () = self.mailbox.stopping() => Ok(()),
        };
        let Err(message) = outcome else { return Ok(()) };
        // The message stays out of the event: a hook's output may hold secrets.
        let text = "PostStartHook failed".to_owned();
        self.kubelet.pod_event(pod, Some(&container.name), EventKind::Warning, "FailedPostStartHook", text);
        self.observe().await;
        self.kill_one(pod, id, "FailedPostStartHook").await;
        Err(failure("PostStartHookError", message))
    }

    /// The wait of a container that ended before, if it is not over.
    fn crash_backoff(&mut self, pod: &Pod, container: &Container) -> Option<StartFailure> {
        let last = self
            .snapshot
            .containers
            .iter()
            .find(|c| c.name == container.name && c.state == ContainerState::Exited)?;
        let ended = clock::from_ns(last.finished_at_ns).or_else(|| clock::from_ns(last.created_at_ns))?;
        if actions::definition_changed(container, &last.annotations) {
            // Whoever mended it need not wait for what was broken.
            self.restarts.forget(&container.name);
            self.restarts.next(&container.name, ended);
            return None;
        }
        let now = self.kubelet.seams.now();
        self.restarts.saw(&container.name, ended, now);
        if !self.restarts.knows(&container.name) && last.attempt > 0 {
            // After a restart of the agent the count of restarts tells how long the waits had become.
            for _ in 0..last.attempt.min(6) {
                self.restarts.next(&container.name, ended);
            }
        }
        let Some((until, wait)) = self.restarts.held_until(&container.name, ended, now) else {
            self.restarts.next(&container.name, ended);
            return None;
        };
        let message = format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(wait),
            container.name,
            pod.full_name()
        );
        Some(StartFailure { retry_at: Some(until), ..failure("CrashLoopBackOff", message) })
    }

    /// Removes earlier instances of a container but the last ones, and sandboxes that hold none any more.
    async fn forget_dead(&mut self, container: &Container, started: &str) {
        let runtime = self.kubelet.runtime.clone();
        let keep = self.kubelet.resources.settings.dead_containers.per_container;
        let dead = self
            .snapshot
            .containers
            .iter()
            .filter(|c| c.name == container.name && c.id != started && c.state != ContainerState::Running)
            .skip(usize::try_from(keep).unwrap_or(usize::MAX));
        for old in dead {
            if let Err(error) = gc::containers::remove(&self.kubelet, old).await {
                tracing::debug!(error, container = old.id, "removing a dead container");
            }
        }
        let old_sandboxes = self.snapshot.sandboxes.iter().skip(1).filter(|s| {
            !self
                .snapshot
                .containers
                .iter()
                .any(|c| c.sandbox_id == s.id && self.container_ids.contains(&c.id))
        });
        for sandbox in old_sandboxes {
            if let Err(error) = runtime.remove_sandbox(&sandbox.id).await {
                tracing::debug!(%error, sandbox = sandbox.id, "removing an old sandbox");
            }
        }
    }
}

fn failure(reason: &str, message: String) -> StartFailure {
    StartFailure { reason: reason.to_owned(), event: format!("Error: {message}"), message, retry_at: None }
}

fn earlier(a: Next, b: Next) -> Next {
    match (a, b) {
        (Next::At(a), Next::At(b)) => Next::At(a.min(b)),
        (Next::Retry, _) | (_, Next::Retry) => Next::Retry,
        (Next::Idle, other) | (other, Next::Idle) => other,
        (a, _) => a,
    }
}
