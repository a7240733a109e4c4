//! Volumes as devices. The layout is upstream's, below `volumeDevices` of the plugin's directory:
//!
//! | Path | What it is |
//! |---|---|
//! | `<volume>/data/vol_data.json` | the record |
//! | `staging/<volume>` | where the driver stages it |
//! | `publish/<volume>/<pod>` | where the driver publishes the device for a pod |
//! | `<volume>/dev/<pod>` | the same device once more, kept open by a loop device, so that the kernel does not give its name to another one while the pod runs |
//! | `<pod>/volumeDevices/kubernetes.io~csi/<volume>` | a link to the published device |

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use super::filesystem::{attachable, make_dir};
use super::{PLUGIN, Places, Plan, Record, abilities, attributes, capability};
use crate::csi::proto::{NodeCapability, NodePublish, NodeStage, NodeUnpublish, NodeUnstage};
use crate::csi::{attachment_name, driver_object};
use crate::kubelet::Kubelet;
use crate::volumes::mounts::{is_mount_point, remove_dir, remove_file};
use crate::volumes::{Failure, Found, Mounted, Staged, Turn, Work, loop_device};

/// `NodeStageVolume`.
pub(super) async fn stage(work: &mut Work<'_>, plan: &Plan, turn: &mut Turn) -> Result<(), String> {
    let kubelet = work.context.kubelet;
    let name = work.source.name().to_owned();
    let places = Places::new(&kubelet.data_dir);
    let driver =
        kubelet.csi.drivers.get(&plan.driver).map_err(|e| {
            format!("kubernetes.io/csi: blockMapper.SetUpDevice failed to get CSI client: {e}")
        })?;
    let dir = places.device(&name);
    make_dir(&dir.join("data"))?;
    make_dir(&dir.join("dev"))?;
    let record = Record {
        spec_vol_id: name.clone(),
        volume_handle: plan.handle.clone(),
        driver_name: plan.driver.clone(),
        node_name: kubelet.node_name.clone(),
        attachment_id: attachment_name(&plan.handle, &plan.driver, &kubelet.node_name),
        attachable: attachable(work),
        ..Record::default()
    };
    record.write(&dir.join("data"))?;
    turn.staged = Some(Staged { plugin: PLUGIN, dir: dir.clone(), block: true });
    let abilities = abilities(&driver).await?;
    if !abilities.has(NodeCapability::StageUnstageVolume) {
        return Ok(());
    }
    let secrets = attributes::secrets(kubelet, plan.stage_secret.as_ref())
        .await
        .map_err(|e| format!("kubernetes.io/csi: failed to get NodeStageSecretRef {e}"))?;
    let staging = places.staging(&name);
    make_dir(&staging)?;
    let request = NodeStage {
        volume_id: plan.handle.clone(),
        publish_context: work.attachment.clone().into_iter().collect(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability(work, plan, &abilities)),
        secrets: secrets.into_iter().collect(),
        volume_context: plan.attributes.clone().into_iter().collect(),
    };
    if let Err(error) = driver.stage(request).await {
        if error.is_final() && clean(&places, &name).is_ok() {
            turn.staged = None;
        }
        return Err(error.to_string());
    }
    Ok(())
}

/// Removes all that is empty of a volume that is neither staged nor published.
fn clean(places: &Places, name: &str) -> Result<(), String> {
    let dir = places.device(name);
    remove_dir(&places.publish(name))?;
    let staging = places.staging(name);
    if is_mount_point(&staging)? {
        return Err(format!("{} is still mounted", staging.display()));
    }
    remove_dir(&staging)?;
    remove_dir(&dir.join("dev"))?;
    Record::remove(&dir.join("data"))?;
    remove_dir(&dir.join("data"))?;
    remove_dir(&dir)
}

/// `NodeUnstageVolume`; `dir` is the volume's.
pub(super) async fn unstage(kubelet: &Arc<Kubelet>, dir: &Path) -> Result<(), String> {
    let places = Places::new(&kubelet.data_dir);
    let Some(record) = Record::read(&dir.join("data"))? else { return Ok(()) };
    let name = record.spec_vol_id.clone();
    let staging = places.staging(&name);
    if staging.exists() {
        let driver = kubelet.csi.drivers.get(&record.driver_name).map_err(|e| {
            format!("kubernetes.io/csi: blockMapper.TearDownDevice failed to get CSI client: {e}")
        })?;
        let abilities = driver.abilities().await.map_err(|e| e.to_string())?;
        if abilities.has(NodeCapability::StageUnstageVolume) {
            let request = NodeUnstage {
                volume_id: record.volume_handle,
                staging_target_path: staging.display().to_string(),
            };
            driver
                .unstage(request)
                .await
                .map_err(|e| format!("kubernetes.io/csi: blockMapper.unstageVolumeForBlock failed: {e}"))?;
        }
    }
    clean(&places, &name)
}

/// `NodePublishVolume`, and the pod's link to the device.
pub(super) async fn publish(work: &mut Work<'_>, plan: &Plan) -> Result<Mounted, Failure> {
    let kubelet = work.context.kubelet;
    let name = work.source.name().to_owned();
    let uid = work.context.pod.metadata.uid.clone();
    let places = Places::new(&kubelet.data_dir);
    let fail = |text: String| Failure::at("MapVolume.MapPodDevice failed", text);
    let driver = kubelet.csi.drivers.get(&plan.driver).map_err(|e| {
        fail(format!("kubernetes.io/csi: blockMapper.MapPodDevice failed to get CSI client: {e}"))
    })?;
    let object = driver_object(kubelet, &plan.driver).await?;
    let abilities = abilities(&driver).await.map_err(fail)?;
    let mut secrets = attributes::secrets(kubelet, plan.publish_secret.as_ref()).await.map_err(|e| {
        fail(format!(
            "kubernetes.io/csi: blockMapper.publishVolumeForBlock failed to get NodePublishSecretRef {e}"
        ))
    })?;
    let mut volume_context = plan.attributes.clone();
    attributes::complete(work, plan, object.as_ref(), &mut volume_context, &mut secrets)
        .await
        .map_err(|e| {
            fail(format!(
                "kubernetes.io/csi: blockMapper.publishVolumeForBlock failed to assemble volume attributes: {e}"
            ))
        })?;
    let published = places.publish(&name).join(&uid);
    make_dir(&places.publish(&name)).map_err(fail)?;
    // First of all the link: by it the volume is found when the pod is gone.
    let links = work.context.dirs.root.join("volumeDevices").join(PLUGIN.replace('/', "~"));
    let link = links.join(&name);
    make_dir(&links).map_err(fail)?;
    let before = std::fs::read_link(&link).is_ok_and(|to| to == published);
    if !before {
        remove_file(&link).map_err(fail)?;
        symlink(&published, &link).map_err(|e| fail(format!("link {}: {e}", link.display())))?;
    }
    let request = NodePublish {
        volume_id: plan.handle.clone(),
        publish_context: work.attachment.clone().into_iter().collect(),
        staging_target_path: places.staging(&name).display().to_string(),
        target_path: published.display().to_string(),
        volume_capability: Some(capability(work, plan, &abilities)),
        readonly: plan.read_only,
        secrets: secrets.into_iter().collect(),
        volume_context: volume_context.into_iter().collect(),
    };
    if let Err(error) = driver.publish(request).await {
        if error.is_final() && !before {
            let _ = remove_file(&link);
        }
        return Err(fail(error.to_string()));
    }
    let map = |e: String| Failure::at("MapVolume.MapBlockVolume failed", e);
    let kept = places.device(&name).join("dev").join(&uid);
    loop_device::hold(&published, &kept).await.map_err(map)?;
    Ok(Mounted { device: Some(published), read_only: plan.read_only, ..Mounted::default() })
}

/// `NodeUnpublishVolume`.
pub(super) async fn unpublish(kubelet: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
    let places = Places::new(&kubelet.data_dir);
    let dir = places.device(&found.name);
    loop_device::let_go(&dir.join("dev").join(&found.uid)).await?;
    if let Some(record) = Record::read(&dir.join("data"))? {
        let published = places.publish(&found.name).join(&found.uid);
        let driver = kubelet.csi.drivers.get(&record.driver_name).map_err(|e| {
            format!("kubernetes.io/csi: blockMapper.UnmapPodDevice failed to get CSI client: {e}")
        })?;
        let request =
            NodeUnpublish { volume_id: record.volume_handle, target_path: published.display().to_string() };
        driver
            .unpublish(request)
            .await
            .map_err(|e| format!("kubernetes.io/csi: blockMapper.unpublishVolumeForBlock failed: {e}"))?;
        if is_mount_point(&published)? {
            return Err(format!("{} is still mounted", published.display()));
        }
        remove_file(&published)?;
    }
    remove_file(&found.path)
}
