//! Pods with a network of their own wait until the node's pod network is ready.

use async_trait::async_trait;

use super::{PodFailure, PodHook, PodStart};
use crate::node::NetworkReadiness;

pub(crate) struct NetworkReady;

#[async_trait]
impl PodHook for NetworkReady {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        if !start.fresh || start.pod.spec.host_network {
            return Ok(());
        }
        match &*start.kubelet.network.borrow() {
            NetworkReadiness::Ready => Ok(()),
            NetworkReadiness::NotReady(why) => {
                Err(PodFailure { reason: "NetworkNotReady", message: format!("network is not ready: {why}") })
            }
        }
    }
}
