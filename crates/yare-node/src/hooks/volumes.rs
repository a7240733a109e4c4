//! Mounts the pod's volumes, and brings their content up to date while the pod runs.

use std::sync::Arc;

use async_trait::async_trait;
use yare_client::EventKind;

use super::{PodFailure, PodHook, PodStart};
use crate::kubelet::Kubelet;
use crate::pod::dirs::PodDirs;
use crate::pod::mailbox::Eviction;
use crate::volumes::{self, Complaint, VolumeContext};

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
        // A driver may take its time; a pod that is to stop does not wait for it. What was begun is on record.
        let complaints = tokio::select! {
            outcome = start.volumes.set_up(&context) => match outcome {
                Ok(()) => return Ok(()),
                Err(complaints) => complaints,
            },
            () = start.mailbox.stopping() => Vec::new(),
        };
        if let [Complaint { reason: volumes::ATTACHMENT_LIMIT, message }] = complaints.as_slice() {
            let reason = volumes::ATTACHMENT_LIMIT;
            start.kubelet.pod_event(start.pod, None, EventKind::Warning, reason, message.clone());
            start.mailbox.evict(Eviction {
                reason: reason.to_owned(),
                message: format!("Pod was rejected: {message}"),
                grace_s: 0,
                disrupted: false,
                done: None,
            });
            return Err(PodFailure { reason: "FailedMount", message: String::new() });
        }
        for Complaint { reason, message } in complaints {
            start.kubelet.pod_event(start.pod, None, EventKind::Warning, reason, message);
        }
        Err(PodFailure { reason: "FailedMount", message: String::new() })
    }

    async fn tear_down(&self, kubelet: &Arc<Kubelet>, dirs: &PodDirs) -> crate::error::Result<()> {
        super::release_subpaths(dirs)?;
        volumes::tear_down(kubelet, dirs).await
    }
}
