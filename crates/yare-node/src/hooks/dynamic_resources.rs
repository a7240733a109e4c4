//! Claims of a pod: made ready before its sandbox, taken back when its containers have ended.

use std::sync::Arc;

use async_trait::async_trait;

use super::{PodFailure, PodHook, PodStart};
use crate::error::{Error, Result};
use crate::kubelet::Kubelet;
use crate::pod::dirs::PodDirs;

pub(crate) struct DynamicResources;

#[async_trait]
impl PodHook for DynamicResources {
    fn name(&self) -> &'static str {
        "dynamic resources"
    }

    async fn set_up(&self, start: &mut PodStart<'_>) -> std::result::Result<(), PodFailure> {
        if !start.fresh {
            return Ok(());
        }
        start.kubelet.managers.dra.prepare(start.kubelet, start.pod).await.map_err(|error| PodFailure {
            reason: "FailedPrepareDynamicResources",
            message: format!("Failed to prepare dynamic resources: {error}"),
        })
    }

    async fn tear_down(&self, kubelet: &Arc<Kubelet>, dirs: &PodDirs) -> Result<()> {
        // The directory of a pod is named by its uid.
        let uid = dirs.root.file_name().unwrap_or_default().to_string_lossy();
        kubelet.managers.dra.unprepare(&kubelet.metrics, &uid).await.map_err(Error::Request)
    }
}
