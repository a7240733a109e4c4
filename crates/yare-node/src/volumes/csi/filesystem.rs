//! Volumes as file systems: staged at `<driver>/<hash>/globalmount`, published at `<pod's volume>/mount`.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use super::{PLUGIN, Places, Plan, Record, abilities, attributes, capability};
use crate::csi::proto::{NodeCapability, NodePublish, NodeStage, NodeUnpublish, NodeUnstage};
use crate::csi::{attachment_name, driver_object};
use crate::kubelet::Kubelet;
use crate::volumes::mounts::{is_mount_point, remove_dir};
use crate::volumes::{Failure, Found, Mounted, Staged, Turn, Work, ownership};

pub(super) fn make_dir(path: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|e| {
        format!("kubernetes.io/csi: failed to create dir {:?}:  {e}", path.display().to_string())
    })
}

/// Removes a record with its directory and the mount point in it; something that is mounted there stays, all of
/// it.
fn clean(dir: &Path, mount_point: &Path) -> Result<(), String> {
    if is_mount_point(mount_point)? {
        return Err(format!("{} is still mounted", mount_point.display()));
    }
    remove_dir(mount_point)?;
    Record::remove(dir)?;
    remove_dir(dir)
}

/// `NodeStageVolume`.
pub(super) async fn stage(work: &mut Work<'_>, plan: &Plan, turn: &mut Turn) -> Result<(), String> {
    let kubelet = work.context.kubelet;
    let driver = kubelet.csi.drivers.get(&plan.driver).map_err(|e| {
        format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {e}")
    })?;
    let abilities = abilities(&driver).await?;
    let dir = Places::new(&kubelet.data_dir).global(&plan.driver, &plan.handle);
    if !abilities.has(NodeCapability::StageUnstageVolume) {
        return Ok(());
    }
    let secrets = attributes::secrets(kubelet, plan.stage_secret.as_ref())
        .await
        .map_err(|e| format!("fetching NodeStageSecretRef {e}"))?;
    let mount_point = dir.join("globalmount");
    make_dir(&mount_point)?;
    let record = Record {
        volume_handle: plan.handle.clone(),
        driver_name: plan.driver.clone(),
        attachable: attachable(work),
        ..Record::default()
    };
    record.write(&dir)?;
    turn.staged = Some(Staged { plugin: PLUGIN, dir: dir.clone(), block: false });
    let request = NodeStage {
        volume_id: plan.handle.clone(),
        publish_context: work.attachment.clone().into_iter().collect(),
        staging_target_path: mount_point.display().to_string(),
        volume_capability: Some(capability(work, plan, &abilities)),
        secrets: secrets.into_iter().collect(),
        volume_context: plan.attributes.clone().into_iter().collect(),
    };
    if let Err(error) = driver.stage(request).await {
        if error.is_final() && clean(&dir, &mount_point).is_ok() {
            turn.staged = None;
        }
        return Err(error.to_string());
    }
    Ok(())
}

/// Whether the volume has an attachment, for the record.
pub(super) fn attachable(work: &Work<'_>) -> String {
    let attached = work.source.csi().is_some() && work.needs_attachment;
    if attached { "true".to_owned() } else { String::new() }
}

/// `NodeUnstageVolume`.
pub(super) async fn unstage(kubelet: &Arc<Kubelet>, dir: &Path) -> Result<(), String> {
    let Some(record) = Record::read(dir)? else { return Ok(()) };
    let driver = kubelet.csi.drivers.get(&record.driver_name).map_err(|e| {
        format!("kubernetes.io/csi: attacher.UnmountDevice failed to create newCsiDriverClient: {e}")
    })?;
    let mount_point = dir.join("globalmount");
    let abilities = driver.abilities().await.map_err(|e| e.to_string())?;
    if abilities.has(NodeCapability::StageUnstageVolume) {
        let request = NodeUnstage {
            volume_id: record.volume_handle,
            staging_target_path: mount_point.display().to_string(),
        };
        driver
            .unstage(request)
            .await
            .map_err(|e| format!("kubernetes.io/csi: attacher.UnmountDevice failed: {e}"))?;
    }
    clean(dir, &mount_point).map_err(|e| format!("failed to clean up global mount {}: {e}", dir.display()))
}

/// `NodePublishVolume`.
pub(super) async fn publish(work: &mut Work<'_>, plan: &Plan) -> Result<Mounted, Failure> {
    let kubelet = work.context.kubelet;
    let driver = kubelet
        .csi
        .drivers
        .get(&plan.driver)
        .map_err(|e| format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {e}"))?;
    let object = driver_object(kubelet, &plan.driver).await?;
    attributes::check_lifecycle(plan, object.as_ref()).map_err(|e| {
        format!("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {e}")
    })?;
    let abilities = abilities(&driver).await?;
    let stages = abilities.has(NodeCapability::StageUnstageVolume) && !plan.ephemeral;
    let mut secrets = attributes::secrets(kubelet, plan.publish_secret.as_ref())
        .await
        .map_err(|e| format!("fetching NodePublishSecretRef {e}"))?;
    let mut volume_context = plan.attributes.clone();
    attributes::complete(work, plan, object.as_ref(), &mut volume_context, &mut secrets).await.map_err(
        |e| {
            format!("kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token attributes: {e}")
        },
    )?;
    let dir = work.context.dirs.volume(PLUGIN, work.source.name());
    let target = dir.join("mount");
    make_dir(&dir)?;
    let record = Record {
        spec_vol_id: work.source.name().to_owned(),
        volume_handle: plan.handle.clone(),
        driver_name: plan.driver.clone(),
        node_name: kubelet.node_name.clone(),
        attachment_id: attachment_name(&plan.handle, &plan.driver, &kubelet.node_name),
        volume_lifecycle_mode: plan.mode().to_owned(),
        attachable: attachable(work),
        ..Record::default()
    };
    let before = Record::read(&dir).ok().flatten();
    if before.as_ref() != Some(&record) {
        record.write(&dir)?;
    }
    let staging = Places::new(&kubelet.data_dir).global(&plan.driver, &plan.handle).join("globalmount");
    let request = NodePublish {
        volume_id: plan.handle.clone(),
        publish_context: work.attachment.clone().into_iter().collect(),
        staging_target_path: if stages { staging.display().to_string() } else { String::new() },
        target_path: target.display().to_string(),
        volume_capability: Some(capability(work, plan, &abilities)),
        readonly: plan.read_only,
        secrets: secrets.into_iter().collect(),
        volume_context: volume_context.into_iter().collect(),
    };
    if let Err(error) = driver.publish(request).await {
        // What an earlier life of the agent published, or an earlier look, is still there.
        if error.is_final() && !work.again && before.is_none() {
            let _ = clean(&dir, &target);
        }
        return Err(error.to_string().into());
    }
    let by_driver = abilities.has(NodeCapability::VolumeMountGroup);
    if !work.again && !by_driver && attributes::changes_group(work, plan, object.as_ref()) {
        ownership::apply_for(work.context.pod, &target)
            .await
            .map_err(|e| format!("applyFSGroup failed for vol {}: {e}", plan.handle))?;
    }
    Ok(Mounted { path: target, read_only: plan.read_only, ..Mounted::default() })
}

/// `NodeUnpublishVolume`.
pub(super) async fn unpublish(kubelet: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
    let target = found.path.join("mount");
    let Some(record) = Record::read(&found.path)? else {
        // Given back already, all but the directories.
        return clean(&found.path, &target);
    };
    let driver = kubelet
        .csi
        .drivers
        .get(&record.driver_name)
        .map_err(|e| format!("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {e}"))?;
    let request =
        NodeUnpublish { volume_id: record.volume_handle, target_path: target.display().to_string() };
    driver
        .unpublish(request)
        .await
        .map_err(|e| format!("kubernetes.io/csi: Unmounter.TearDownAt failed: {e}"))?;
    clean(&found.path, &target).map_err(|e| {
        format!(
            "kubernetes.io/csi: Unmounter.TearDownAt failed to clean mount dir [{}]: {e}",
            target.display()
        )
    })
}
