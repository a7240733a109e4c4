//! Which namespaces a pod's containers share with each other or with the node.

use async_trait::async_trait;
use yare_runtime::{IdMapping, NamespaceMode, UserNamespace};

use super::{PodFailure, PodHook, PodStart};
use crate::pod::id_ranges::IDS_PER_RANGE;

pub(crate) struct Namespaces;

#[async_trait]
impl PodHook for Namespaces {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        let spec = &start.pod.spec;
        let modes = &mut start.sandbox.namespaces;
        modes.network = if spec.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        modes.ipc = if spec.host_ipc { NamespaceMode::Node } else { NamespaceMode::Pod };
        modes.pid = if spec.host_pid {
            NamespaceMode::Node
        } else if spec.share_process_namespace == Some(true) {
            NamespaceMode::Pod
        } else {
            NamespaceMode::Container
        };
        if spec.host_users == Some(false) {
            let failure = |why: String| PodFailure {
                reason: "FailedCreatePodSandBox",
                message: format!("Failed to create pod sandbox: {why}"),
            };
            // A sandbox that is there has what it has.
            if start.fresh {
                able(start).await.map_err(failure)?;
            }
            let host_id = start.kubelet.id_range(&start.pod.metadata.uid).await.map_err(failure)?;
            let range = IdMapping { host_id, container_id: 0, length: IDS_PER_RANGE };
            start.sandbox.namespaces.user = Some(UserNamespace { uids: vec![range], gids: vec![range] });
        }
        Ok(())
    }
}

/// Whether the pod's handler has user namespaces: a runtime that does not know them would leave them out.
async fn able(start: &PodStart<'_>) -> Result<(), String> {
    let handler = &start.sandbox.runtime_handler;
    let status = start.kubelet.runtime.status().await.map_err(|e| e.to_string())?;
    let refusal = match handler.as_str() {
        "" => "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned(),
        name => format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler {name:?} does not support user namespaces"
        ),
    };
    match status.handler(handler) {
        Some(able) if able.user_namespaces => Ok(()),
        // An older runtime tells of no handlers at all.
        None if !status.handlers.is_empty() => {
            Err(format!("{refusal}: the handler {handler:?} is not known"))
        }
        _ => Err(refusal),
    }
}
