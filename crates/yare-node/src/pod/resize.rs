//! Resizing in place: limits of running containers follow the pod's spec.
//!
//! In: the pod and what the runtime has in force. Out: updates of containers and of the pod's cgroup, or a
//! restart where the container's `resizePolicy` asks for one.

use std::sync::Arc;

use yare_client::EventKind;
use yare_runtime::{ContainerState, Resources};

use super::actions::{Kill, KillReason};
use super::qos;
use super::worker::Worker;
use crate::view::{Container, Pod};

/// What an in-place resize can change.
fn resizable(r: &Resources) -> (Option<u64>, Option<i64>, Option<i64>) {
    (r.cpu_shares, r.cpu_quota_us, r.memory_limit_bytes)
}

fn restarts_for(container: &Container, resource: &str) -> bool {
    container
        .resize_policy
        .iter()
        .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
}

impl Worker {
    /// Brings limits up to date; answers the containers that must restart for it.
    pub(crate) async fn resize(&mut self, pod: &Arc<Pod>) -> Vec<Kill> {
        let mut kills = Vec::new();
        let mut updated = false;
        let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar());
        for container in sidecars.chain(&pod.spec.containers) {
            let Some(status) =
                self.snapshot.latest(&container.name).filter(|s| s.state == ContainerState::Running)
            else {
                continue;
            };
            let mut wanted = qos::container(&self.kubelet.resources.policy, pod, container);
            self.kubelet.managers.place(pod, container, &mut wanted);
            let (have, want) = (resizable(&status.resources), resizable(&wanted));
            if have == want || have == (None, None, None) {
                continue;
            }
            let cpu = (have.0, have.1) != (want.0, want.1);
            let memory = have.2 != want.2;
            if (cpu && restarts_for(container, "cpu")) || (memory && restarts_for(container, "memory")) {
                kills.push(Kill {
                    id: status.id.clone(),
                    name: container.name.clone(),
                    message: format!(
                        "Container {} resize requires restart, will be restarted",
                        container.name
                    ),
                    reason: KillReason::Unknown,
                });
                continue;
            }
            let change = Resources {
                cpu_shares: want.0,
                cpu_period_us: wanted.cpu_period_us,
                // A limit that was taken away has to be lifted; absent would mean unchanged.
                cpu_quota_us: want.1.or(Some(-1)),
                memory_limit_bytes: want.2.or(Some(-1)),
                memory_swap_limit_bytes: want.2.or(Some(-1)),
                ..Resources::default()
            };
            if !updated {
                self.resize_pod(pod).await;
            }
            match self.kubelet.runtime.update_resources(&status.id, change).await {
                Ok(()) => updated = true,
                Err(error) => {
                    let text = format!("Pod resize error: container {}: {error}", container.name);
                    self.kubelet.pod_event(
                        pod,
                        Some(&container.name),
                        EventKind::Warning,
                        "ResizeError",
                        text,
                    );
                }
            }
        }
        if updated {
            let text = "Pod resize completed".to_owned();
            self.kubelet.pod_event(pod, None, EventKind::Normal, "ResizeCompleted", text);
            self.observe().await;
        }
        kills
    }

    /// The pod's own cgroup has to hold what its containers may use.
    async fn resize_pod(&self, pod: &Pod) {
        let Some(sandbox) = self.snapshot.ready_sandbox() else { return };
        let mut limits = qos::pod(&self.kubelet.resources.policy, pod, self.kubelet.pids_limit());
        self.kubelet.managers.place_pod(pod, &mut limits);
        limits.cpu_quota_us = limits.cpu_quota_us.or(Some(-1));
        limits.memory_limit_bytes = limits.memory_limit_bytes.or(Some(-1));
        if let Err(error) = self.kubelet.runtime.update_sandbox_resources(&sandbox.id, limits).await {
            tracing::warn!(%error, sandbox = sandbox.id, "resizing a pod's cgroup");
        }
    }
}
