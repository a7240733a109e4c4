//! Images that are volumes: pulled once for all containers that are about to start, whether they mount them or not.
//!
//! In: a pod. Out: an image for each volume, or the reason why a container that mounts it cannot start.

use std::collections::BTreeMap;
use std::sync::Arc;

use yare_client::EventKind;
use yare_runtime::ImageStatus;

use super::keyring::Login;
use super::{Lacking, Wish, ensure};
use crate::hooks::StartFailure;
use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::pod::mailbox::Mailbox;
use crate::view::{Container, Pod};

/// What runtimes say first of an image that cannot be mounted.
const MOUNT_FAILED: &str = "ImageVolumeMountFailed";

/// The images of one pod's volumes, by the volume's name.
#[derive(Debug, Default)]
pub(crate) struct ImageVolumes(BTreeMap<String, Result<Found, Lacking>>);

/// The image of a volume.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// As the pod says it.
    pub(crate) reference: String,
}

impl ImageVolumes {
    /// Pulls what is needed.
    pub(crate) async fn pull(
        kubelet: &Arc<Kubelet>,
        mailbox: &Arc<Mailbox>,
        pod: &Arc<Pod>,
        logins: &[Login],
    ) -> Self {
        let mut images = BTreeMap::new();
        for volume in &pod.spec.volumes {
            let Some(source) = &volume.image else { continue };
            let reference = source.reference.clone();
            let policy = source.pull_policy();
            let wish = Wish { kubelet, mailbox, pod, container: None, image: &reference, policy, logins };
            let image = ensure(&wish).await.map(|ImageStatus { id, .. }| Found { id, reference });
            images.insert(volume.name.clone(), image);
        }
        ImageVolumes(images)
    }

    /// The image of a volume, if the volume is one.
    pub(crate) fn get(&self, volume: &str) -> Option<&Found> {
        self.0.get(volume)?.as_ref().ok()
    }

    fn mounted<'a>(&'a self, container: &'a Container) -> impl Iterator<Item = &'a Result<Found, Lacking>> {
        container.volume_mounts.iter().filter_map(|mount| self.0.get(&mount.name))
    }

    /// Whether all that a container mounts is there; each that is not has its event.
    pub(crate) fn check(
        &self,
        kubelet: &Kubelet,
        pod: &Arc<Pod>,
        container: &Container,
    ) -> Result<(), StartFailure> {
        let mut last = None;
        for lacking in self.mounted(container).filter_map(|image| image.as_ref().err()) {
            let event = format!("Error: {}", lacking.reason);
            kubelet.pod_event(pod, Some(&container.name), EventKind::Warning, "Failed", event.clone());
            last = Some(StartFailure {
                reason: lacking.reason.to_owned(),
                message: lacking.message.clone(),
                event,
                retry_at: lacking.retry_at,
            });
        }
        last.map_or(Ok(()), Err)
    }

    /// Counts what became of them in a container that was to start.
    pub(crate) fn count(&self, kubelet: &Kubelet, container: &Container, outcome: &Result<(), StartFailure>) {
        let mounts = self.mounted(container).count();
        let mut names: Vec<&str> = container.volume_mounts.iter().map(|mount| mount.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let failed = outcome.as_ref().is_err_and(|failure| {
            failure.reason == "CreateContainerError" && failure.message.starts_with(MOUNT_FAILED)
        });
        let metrics = &kubelet.metrics;
        let volumes = names.iter().filter(|name| self.0.contains_key(**name)).count();
        metrics.add(&table::IMAGE_VOLUMES_REQUESTED, &[], volumes as f64);
        let row = if failed { &table::IMAGE_VOLUMES_FAILED } else { &table::IMAGE_VOLUMES_MOUNTED };
        metrics.add(row, &[], mounts as f64);
    }
}
