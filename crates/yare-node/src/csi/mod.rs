//! Storage drivers that speak the Container Storage Interface: which there are on this node, how they are called,
//! and what the cluster is told of them. Their volumes are in `volumes/csi/`.

mod client;
mod drivers;
mod node_info;
pub mod proto;
mod updater;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

pub(crate) use client::{Abilities, Driver};
pub(crate) use drivers::CsiPlugins;
pub(crate) use updater::run as keep_limits;

use crate::kubelet::Kubelet;
use crate::view::CsiDriver;

/// How long the list of CSIDriver objects may take to come.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the CSINode, and ends.
pub(crate) async fn initialize(kubelet: Arc<Kubelet>) {
    kubelet.csi.node.initialize(&kubelet).await;
}

/// One node's storage drivers.
#[derive(Default)]
pub(crate) struct Csi {
    pub(crate) drivers: drivers::Drivers,
    pub(crate) node: node_info::NodeDrivers,
    /// A driver came or went.
    pub(crate) changed: Notify,
}

/// Hexadecimal SHA-256 of texts, one after the other.
pub(crate) fn hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The VolumeAttachment of a driver's volume on a node.
pub(crate) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hash(&[handle, driver, node]))
}

/// The CSIDriver object of this name, if there is one.
pub(crate) async fn driver_object(kubelet: &Kubelet, name: &str) -> Result<Option<CsiDriver>, String> {
    let objects = kubelet.objects.all(yare_client::CSI_DRIVERS);
    if tokio::time::timeout(SYNC_TIMEOUT, objects.synced()).await.is_err() {
        return Err("timed out waiting for CSIDriver cache".to_owned());
    }
    let Some(found) = objects.get(&yare_client::ObjectKey::cluster(name)) else { return Ok(None) };
    found.view().map(Some).map_err(|e| format!("csidriver {name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_are_named_as_upstream_names_them() {
        // The hash of the three texts without anything between them.
        assert_eq!(attachment_name("vol", "driver", "node"), format!("csi-{}", hash(&["voldrivernode"])));
        assert_eq!(hash(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
