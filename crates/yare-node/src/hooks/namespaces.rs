//! Which namespaces a pod's containers share with each other or with the node.

use async_trait::async_trait;
use yare_runtime::{IdMapping, NamespaceMode, UserNamespace};

use super::{PodFailure, PodHook, PodStart};

pub(crate) struct Namespaces;

/// Ids per pod in a user namespace, and where their ranges begin on the node.
const IDS_PER_POD: u32 = 65_536;

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
        modes.user = (spec.host_users == Some(false)).then(|| {
            // Ranges are spread by uid: 32,000 of them above the ids that people and daemons use.
            let slot = start
                .pod
                .metadata
                .uid
                .bytes()
                .fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)))
                % 32_000;
            let range = IdMapping { host_id: (slot + 2) * IDS_PER_POD, container_id: 0, length: IDS_PER_POD };
            UserNamespace { uids: vec![range], gids: vec![range] }
        });
        Ok(())
    }
}
