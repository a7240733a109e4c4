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
            let host_id = start
                .kubelet
                .id_range(&start.pod.metadata.uid)
                .await
                .map_err(|message| PodFailure { reason: "FailedCreatePodSandBox", message })?;
            let range = IdMapping { host_id, container_id: 0, length: IDS_PER_RANGE };
            start.sandbox.namespaces.user = Some(UserNamespace { uids: vec![range], gids: vec![range] });
        }
        Ok(())
    }
}
