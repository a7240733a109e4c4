//! Sandboxes and containers: made, started, stopped, removed, changed.
//!
//! CRI's runtimes refuse a second object of a name; the trait answers the first one. So what may be there already is
//! looked for before something is made.

use std::path::Path;
use std::time::Duration;

use yare_grpc::{Code, Status};

use super::{About, Inner, NOTHING, PATIENCE, cri, map, method};
use crate::api::*;
use crate::error::{IoContext, Result, RuntimeError};

/// How often a pod's cgroup is tried to be removed, and the pause between.
const CGROUP_TRIES: u32 = 50;
const CGROUP_PAUSE: Duration = Duration::from_millis(20);
/// Longer graces are cut to this.
const MAX_GRACE: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Inner {
    /// The sandbox that stands in the way of a new one of the same name, if it can be used instead. Otherwise it is
    /// removed.
    pub(super) async fn earlier_sandbox(&self, config: &SandboxConfig) -> Result<Option<SandboxId>> {
        let label_selector = [("io.kubernetes.pod.uid".to_owned(), config.uid.clone())].into();
        let filter = cri::SandboxFilter { label_selector, ..cri::SandboxFilter::default() };
        for sandbox in self.list_sandboxes(Some(filter)).await? {
            if sandbox.metadata.as_ref().is_none_or(|m| m.uid != config.uid || m.attempt != config.attempt) {
                continue;
            }
            if sandbox.state == i32::from(cri::SandboxState::Ready) {
                return Ok(Some(sandbox.id));
            }
            self.remove_sandbox(&sandbox.id).await?;
        }
        Ok(None)
    }

    pub(super) async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId> {
        if config.uid.is_empty() {
            return Err(RuntimeError::InvalidArgument("a sandbox needs its pod's uid".into()));
        }
        if let Some(id) = self.earlier_sandbox(&config).await? {
            return Ok(id);
        }
        if !config.log_directory.as_os_str().is_empty() {
            let logs = &config.log_directory;
            std::fs::create_dir_all(logs).ctx(|| format!("create {}", logs.display()))?;
        }
        let group = self.cgroup(&config.cgroup_parent);
        if let Some(group) = &group {
            self.cgroups
                .create(group, &config.resources)
                .ctx(|| format!("cgroup of pod {}/{}", config.namespace, config.name))?;
        }
        let request = cri::RunSandboxRequest {
            config: Some(map::sandbox::config(&config, self.driver)),
            runtime_handler: config.runtime_handler.clone(),
        };
        // Twice as long as other calls: the runtime may have to pull the image of the sandbox's process.
        let made: Result<cri::SandboxId> =
            self.ask_for(method!(runtime "RunPodSandbox"), request, NOTHING, self.timeout * 2).await;
        match made {
            Ok(made) => Ok(made.id),
            Err(error) => {
                if let Some(group) = &group {
                    self.remove_cgroup(group);
                }
                Err(error)
            }
        }
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = cri::SandboxId { id: id.to_owned() };
        self.ask_gone(method!(runtime "StopPodSandbox"), request, About("sandbox", id)).await
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let status = match self.raw_sandbox(id).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        // CRI asks for it; where it is stopped already nothing happens.
        self.stop_sandbox(id).await?;
        let request = cri::SandboxId { id: id.to_owned() };
        self.ask_gone(method!(runtime "RemovePodSandbox"), request, About("sandbox", id)).await?;
        self.sandbox_of.lock().retain(|_, sandbox| sandbox != id);
        let group = map::sandbox::again(&status).and_then(|c| self.cgroup(&c.cgroup_parent));
        if let Some(group) = group {
            self.give_cgroup_back(&status.metadata.unwrap_or_default().uid, &group).await?;
        }
        Ok(())
    }

    /// Removes a pod's cgroup, unless another sandbox of the pod has it. The runtime's own processes may be in it for
    /// a moment.
    async fn give_cgroup_back(&self, uid: &str, group: &Path) -> Result<()> {
        let label_selector = [("io.kubernetes.pod.uid".to_owned(), uid.to_owned())].into();
        let filter = cri::SandboxFilter { label_selector, ..cri::SandboxFilter::default() };
        if !self.list_sandboxes(Some(filter)).await?.is_empty() {
            return Ok(());
        }
        for _ in 0..CGROUP_TRIES {
            if self.remove_cgroup(group) {
                return Ok(());
            }
            tokio::time::sleep(CGROUP_PAUSE).await;
        }
        tracing::warn!(cgroup = %group.display(), "a pod's cgroup is still in use after its end");
        Ok(())
    }

    pub(super) async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId> {
        let status = self.raw_sandbox(sandbox).await?;
        if status.state != i32::from(cri::SandboxState::Ready) {
            return Err(RuntimeError::FailedPrecondition(format!("sandbox {sandbox} is not ready")));
        }
        let Some(sandbox_config) = map::sandbox::again(&status) else {
            return Err(RuntimeError::FailedPrecondition(format!(
                "sandbox {sandbox} was made by another kubelet: delete its pod to have it made anew"
            )));
        };
        let filter =
            cri::ContainerFilter { sandbox_id: sandbox.to_owned(), ..cri::ContainerFilter::default() };
        let same = |c: &cri::Container| {
            c.metadata.as_ref().is_some_and(|m| m.name == config.name && m.attempt == config.attempt)
        };
        if let Some(existing) = self.list_containers(Some(filter)).await?.into_iter().find(same) {
            return Ok(existing.id);
        }
        let request = cri::CreateContainerRequest {
            sandbox_id: sandbox.to_owned(),
            config: Some(map::container::config(&config, &sandbox_config)?),
            sandbox_config: Some(map::sandbox::config(&sandbox_config, self.driver)),
        };
        let made: cri::ContainerId = self.ask(method!(runtime "CreateContainer"), request, NOTHING).await?;
        self.sandbox_of.lock().insert(made.id.clone(), sandbox.to_owned());
        self.emit(RuntimeEvent::ContainerCreated { id: made.id.clone(), sandbox: sandbox.to_owned() });
        Ok(made.id)
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<()> {
        let request = cri::ContainerId { id: id.to_owned() };
        let started: Result<cri::Nothing> =
            self.ask(method!(runtime "StartContainer"), request, About("container", id)).await;
        let sandbox = self.sandbox_of(id).await?;
        match started {
            Ok(cri::Nothing {}) => {
                self.emit(RuntimeEvent::ContainerStarted { id: id.to_owned(), sandbox });
                Ok(())
            }
            // Again: it runs.
            Err(error) => match self.container(id).await {
                Ok(status) if status.state == ContainerState::Running => Ok(()),
                _ => Err(error),
            },
        }
    }

    pub(super) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        // Whole seconds, not less than what was given.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { id: id.to_owned(), timeout };
        let patience = grace.min(MAX_GRACE).saturating_add(self.timeout);
        let stopped: Result<cri::Nothing> =
            self.ask_for(method!(runtime "StopContainer"), request, About("container", id), patience).await;
        match stopped {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn remove_container(&self, id: &str) -> Result<()> {
        let request = cri::ContainerId { id: id.to_owned() };
        self.ask_gone(method!(runtime "RemoveContainer"), request, About("container", id)).await?;
        self.sandbox_of.lock().remove(id);
        Ok(())
    }

    pub(super) async fn update_sandbox(&self, id: &str, limits: Resources) -> Result<()> {
        let status = self.raw_sandbox(id).await?;
        let group = map::sandbox::again(&status).and_then(|c| self.cgroup(&c.cgroup_parent));
        if let Some(group) = group {
            self.cgroups.apply(&group, &limits).ctx(|| format!("update sandbox {id}"))?;
        }
        // The runtime is told of it; most have nothing to do then, and older ones do not know the call.
        let request =
            cri::UpdateSandboxRequest { id: id.to_owned(), resources: Some(map::resources(&limits)) };
        let told: Result<cri::Nothing, Status> =
            self.runtime.call(method!(runtime "UpdatePodSandboxResources"), request, self.timeout).await;
        match told {
            Err(status) if !is_unknown(&status) => Err(About("sandbox", id).error(&status)),
            _ => Ok(()),
        }
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let timeout = timeout.filter(|t| !t.is_zero());
        // Whole seconds; zero would be none.
        let seconds = timeout.map_or(0, |t| t.as_secs() + u64::from(t.subsec_nanos() > 0));
        let request = cri::ExecSyncRequest {
            id: id.to_owned(),
            cmd: argv.clone(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let patience = timeout.map_or(PATIENCE, |t| t.saturating_add(self.timeout));
        let about = About("container", id);
        let answer: Result<cri::ExecSyncResponse> =
            self.ask_for(method!(runtime "ExecSync"), request, about, patience).await;
        match answer {
            Ok(answer) => {
                Ok(ExecOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
            }
            Err(RuntimeError::DeadlineExceeded(_)) => Err(timed_out(&argv, timeout)),
            // As containerd words it before it has a code for it.
            Err(RuntimeError::Remote(text)) if text.contains("timeout") && text.contains("exceeded") => {
                Err(timed_out(&argv, timeout))
            }
            Err(error) => Err(error),
        }
    }
}

fn timed_out(argv: &[String], timeout: Option<Duration>) -> RuntimeError {
    let timeout = timeout.unwrap_or_default();
    RuntimeError::DeadlineExceeded(format!("command {:?} timed out after {timeout:?}", argv.join(" ")))
}

/// Whether a runtime does not know a call; containerd 2.2 says so in words only.
fn is_unknown(status: &Status) -> bool {
    status.code() == Code::Unimplemented
        || (status.code() == Code::Unknown && status.message().contains("not implemented"))
}
