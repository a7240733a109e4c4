//! What the engine knows of each sandbox and container: a record on disk, and what changes in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::shim_client::ShimClient;
use crate::api::*;
use crate::proto::{ExitRecord, RunRecord};

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SandboxPhase {
    /// Being made: after a crash it is unmade.
    Making,
    Ready,
    /// Nothing of it runs any more. On disk: and everything it had is given back.
    Stopped,
}

/// `sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub config: SandboxConfig,
    pub created_at_ns: i64,
    pub phase: SandboxPhase,
    pub ips: Vec<std::net::IpAddr>,
    /// The pod's cgroup.
    pub cgroup: String,
    /// Whether we made that cgroup, and so remove it.
    pub own_cgroup: bool,
}

/// A sandbox.
pub(super) struct SandboxEntry {
    pub id: SandboxId,
    /// As it was when the sandbox was made; `live` has what changes.
    pub record: SandboxRecord,
    pub netns: Option<PathBuf>,
    pub live: Mutex<SandboxLive>,
    /// Serializes stop and remove.
    pub lock: tokio::sync::Mutex<()>,
    /// Whether network, mounts and socket are given back. Held while that is being done.
    pub given_back: tokio::sync::Mutex<bool>,
}

/// What changes.
pub(super) struct SandboxLive {
    pub phase: SandboxPhase,
    pub ips: Vec<std::net::IpAddr>,
    pub shim: Option<Arc<ShimClient>>,
}

impl SandboxEntry {
    pub(super) fn shim(&self) -> Option<Arc<ShimClient>> {
        self.live.lock().shim.clone()
    }

    pub(super) fn status(&self) -> SandboxStatus {
        let live = self.live.lock();
        let c = &self.record.config;
        let ready = live.phase == SandboxPhase::Ready && live.shim.is_some();
        SandboxStatus {
            id: self.id.clone(),
            name: c.name.clone(),
            namespace: c.namespace.clone(),
            uid: c.uid.clone(),
            attempt: c.attempt,
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
            created_at_ns: self.record.created_at_ns,
            ips: live.ips.clone(),
            netns: self.netns.clone(),
            shim_pid: live.shim.as_ref().map_or(0, |s| s.pid),
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            namespaces: c.namespaces.clone(),
            cgroup_parent: self.record.cgroup.clone(),
            runtime_handler: c.runtime_handler.clone(),
        }
    }
}

/// `container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub sandbox_id: SandboxId,
    pub config: ContainerConfig,
    pub created_at_ns: i64,
    /// What the pod's status calls the image; records of earlier versions have none.
    #[serde(default)]
    pub image_name: String,
    /// Digest reference.
    pub image_ref: String,
    /// The image's id.
    pub image_id: String,
    pub log_path: PathBuf,
    pub cgroup: PathBuf,
}

/// A container.
pub(super) struct ContainerEntry {
    pub id: ContainerId,
    pub record: ContainerRecord,
    pub live: Mutex<ContainerLive>,
    /// Says when the state changes.
    pub state: watch::Sender<ContainerState>,
    /// Serializes start and remove.
    pub lock: tokio::sync::Mutex<()>,
    /// Size of the writable layer, and when it was counted.
    pub layer_usage: Mutex<Option<(Instant, u64, u64)>>,
}

/// What changes.
#[derive(Debug, Clone, Default)]
pub(super) struct ContainerLive {
    pub run: Option<RunRecord>,
    pub exit: Option<ExitRecord>,
    pub resources: Resources,
}

impl ContainerEntry {
    pub(super) fn new(id: ContainerId, record: ContainerRecord, live: ContainerLive) -> Self {
        let state = match (&live.run, &live.exit) {
            (_, Some(_)) => ContainerState::Exited,
            (Some(_), None) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        };
        Self {
            id,
            record,
            live: Mutex::new(live),
            state: watch::channel(state).0,
            lock: tokio::sync::Mutex::default(),
            layer_usage: Mutex::default(),
        }
    }

    pub(super) fn current(&self) -> ContainerState {
        *self.state.borrow()
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in this entry, so waiting cannot fail.
        let _ = state.wait_for(|s| *s == ContainerState::Exited).await;
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let live = self.live.lock();
        let state = self.current();
        let c = &self.record.config;
        let (run, exit) = (live.run.as_ref(), live.exit.as_ref());
        let started = run.map(|r| r.started_at_ns).or(exit.map(|e| e.started_at_ns)).unwrap_or(0);
        ContainerStatus {
            id: self.id.clone(),
            sandbox_id: self.record.sandbox_id.clone(),
            name: c.name.clone(),
            attempt: c.attempt,
            state,
            created_at_ns: self.record.created_at_ns,
            started_at_ns: started,
            finished_at_ns: exit.map_or(0, |e| e.finished_at_ns),
            exit_code: exit.map_or(0, |e| e.exit_code),
            reason: exit.map(|e| e.reason.clone()).unwrap_or_default(),
            message: exit.map(|e| e.message.clone()).unwrap_or_default(),
            image: Some(&self.record.image_name).filter(|n| !n.is_empty()).unwrap_or(&c.image).clone(),
            image_id: self.record.image_ref.clone(),
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            log_path: self.record.log_path.clone(),
            pid: if state == ContainerState::Running { run.map_or(0, |r| r.pid) } else { 0 },
            mounts: c.mounts.clone(),
            resources: live.resources.clone(),
            user: run.map(|r| r.user.clone()),
        }
    }
}
