//! Mounts the pod's volumes, and brings their content up to date while the pod runs.

use std::sync::Arc;

use async_trait::async_trait;

use super::{PodFailure, PodHook, PodStart};
use crate::kubelet::Kubelet;
use crate::pod::dirs::PodDirs;
use crate::volumes::{self, VolumeContext};

pub(crate) struct MountVolumes;

#[async_trait]
impl PodHook for MountVolumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure> {
        let context = VolumeContext {
            kubelet: start.kubelet,
            mailbox: start.mailbox,
            pod: start.pod,
            dirs: start.dirs,
            facts: start.facts,
        };
        match start.volumes.set_up(&context).await {
            Ok(()) => Ok(()),
            Err(message) => Err(PodFailure { reason: "FailedMount", message }),
        }
    }

    async fn tear_down(&self, _kubelet: &Arc<Kubelet>, dirs: &PodDirs) -> crate::error::Result<()> {
        super::release_subpaths(dirs)?;
        volumes::tear_down(dirs)
    }
}
