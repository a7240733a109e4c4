//! `local`: a directory or device of this node, as a PersistentVolume.
//!
//! A directory is given to containers as it is. A device that is to be a file system gets one if it is empty, is mounted
//! once below `plugins/kubernetes.io/local-volume/mounts`, and from there a second time for each pod.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use yare_client::EventKind;

use super::mounts::{bind, is_mount_point, remove_dir, unmount};
use super::stats::{Measured, VolumeStats, file_system};
use super::tear_down::found;
use super::{
    ExpandError, Failure, Found, Mounted, Restored, Source, Staged, Turn, VolumeKind, Work, disk, local_path,
    ownership,
};
use crate::clock;
use crate::kubelet::Kubelet;

const PLUGIN: &str = "kubernetes.io/local-volume";
/// How often a volume's claim is looked at again, which may have to grow; a little spread.
const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_SPREAD_S: f64 = 30.0;

pub(super) struct LocalVolume;

/// The devices' mounts.
fn mounts(data_dir: &Path) -> PathBuf {
    data_dir.join("plugins").join(PLUGIN).join("mounts")
}

fn name_of(volume: &str) -> String {
    format!("{PLUGIN}/{volume}")
}

/// The path, if it may be one.
fn path_of(source: &Source<'_>) -> Result<PathBuf, Failure> {
    let local = source.bound.as_ref().and_then(|b| b.volume.spec.local.as_ref()).ok_or("no local source")?;
    let path = PathBuf::from(&local.path);
    if !path.is_absolute() || local.path.split('/').any(|part| part == "..") {
        return Err(
            format!("invalid path: {:?} must be absolute and may not contain '..'", local.path).into()
        );
    }
    Ok(path)
}

/// Whether the path is a device; it must exist, because it is what ties the volume to this node.
fn is_device(path: &Path) -> Result<bool, String> {
    let found = std::fs::metadata(path).map_err(|e| missing(path, &e))?.file_type();
    match (found.is_block_device(), found.is_dir()) {
        (false, false) => Err(format!("path {:?} is not a directory", path.display().to_string())),
        (device, _) => Ok(device),
    }
}

/// When the claim is looked at again. Those of local-path grow by the word of their controller alone.
fn refresh_at(work: &Work<'_>) -> Option<jiff::Timestamp> {
    let ours = work.source.bound.as_ref().is_some_and(|b| local_path::is_ours(&b.volume));
    let seams = &work.context.kubelet.seams;
    let spread = Duration::from_secs_f64((seams.random)() * REFRESH_SPREAD_S);
    (!ours).then(|| clock::after(seams.now(), REFRESH + spread))
}

/// Mounts the device, and leaves nothing where that fails.
async fn mount(work: &Work<'_>, device: &Path, dir: &Path) -> Result<(), String> {
    let local = work.source.bound.as_ref().and_then(|b| b.volume.spec.local.as_ref());
    let kind = local.and_then(|l| l.fs_type.as_deref()).unwrap_or_default();
    let mut options = work.source.mount_options().to_vec();
    if work.source.read_only() {
        options.push("ro".to_owned());
    }
    ownership::make_directory(dir, 0o750)?;
    let mounted = disk::format_and_mount(device, dir, kind, &options).await;
    mounted.map_err(|error| {
        let _ = remove_dir(dir);
        let (device, dir) = (device.display(), dir.display());
        format!("local: failed to mount device {device} at {dir} (fstype: {kind}), error {error}")
    })
}

/// Gives the volume to the pod's group. The first pod's group it is; another that comes while the first is there is
/// only told.
async fn give_to_group(work: &Work<'_>, global: &Path, dir: &Path) -> Result<(), String> {
    let (pod, kubelet, name) = (work.context.pod, work.context.kubelet, work.source.name());
    let Some(group) = ownership::fs_group(pod) else { return Ok(()) };
    if !kubelet.volumes.is_elsewhere(&name_of(name), &pod.metadata.uid) {
        return if work.source.read_only() { Ok(()) } else { ownership::apply_for(pod, dir).await };
    }
    let owned = std::fs::metadata(global)
        .map_err(|e| format!("failed to check fsGroup for {}: {e}", global.display()));
    let before = owned?.gid();
    if before != group && !work.again {
        let text = format!(
            "The requested fsGroup is {group}, but the volume {name} has GID {before}. The volume may not be shareable."
        );
        kubelet.pod_event(pod, None, EventKind::Warning, "AlreadyMountedVolume", text);
    }
    Ok(())
}

#[async_trait]
impl VolumeKind for LocalVolume {
    fn plugin(&self) -> &'static str {
        PLUGIN
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.as_ref().is_some_and(|b| b.volume.spec.local.is_some())
    }

    fn shared_name(&self, source: &Source<'_>) -> Option<String> {
        Some(name_of(source.name()))
    }

    async fn stage(&self, work: &mut Work<'_>, turn: &mut Turn) -> Result<(), Failure> {
        let bound = work.source.bound.clone().ok_or("no claim")?;
        local_path::prepare(work.context.kubelet, &bound.volume).await?;
        let path = path_of(&work.source)?;
        if work.source.is_block() || !is_device(&path)? {
            return Ok(());
        }
        let dir = mounts(&work.context.kubelet.data_dir).join(work.source.name());
        turn.staged = Some(Staged { plugin: PLUGIN, dir: dir.clone(), block: false });
        if !is_mount_point(&dir)?
            && let Err(error) = mount(work, &path, &dir).await
        {
            turn.staged = None;
            return Err(Failure::at("MountVolume.MountDevice failed", error));
        }
        Ok(())
    }

    async fn unstage(&self, _: &Arc<Kubelet>, staged: &Staged) -> Result<(), String> {
        while is_mount_point(&staged.dir)? {
            unmount(&staged.dir)?;
        }
        remove_dir(&staged.dir)
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let path = path_of(&work.source)?;
        if work.source.is_block() {
            let found = std::fs::metadata(&path).map_err(|e| missing(&path, &e))?;
            if !found.file_type().is_block_device() {
                let text = format!("{} is not a block device", path.display());
                return Err(Failure::at("MapVolume.SetUpDevice failed", text));
            }
            return Ok(Mounted { device: Some(path), refresh_at: refresh_at(work), ..Mounted::default() });
        }
        if !is_device(&path)? {
            if !work.again {
                give_to_group(work, &path, &path).await?;
            }
            return Ok(Mounted { path, refresh_at: refresh_at(work), ..Mounted::default() });
        }
        let kubelet = work.context.kubelet;
        let global = mounts(&kubelet.data_dir).join(work.source.name());
        let dir = work.context.dirs.volume(PLUGIN, work.source.name());
        if !is_mount_point(&dir)? {
            ownership::make_directory(&dir, 0o750)?;
            if let Err(error) = bind(&global, &dir) {
                let _ = remove_dir(&dir);
                return Err(error.into());
            }
            give_to_group(work, &global, &dir).await?;
        }
        Ok(Mounted { path: dir, refresh_at: refresh_at(work), ..Mounted::default() })
    }

    /// A directory is as large as what it lies on.
    async fn expand(&self, work: &Work<'_>, _: &Mounted, _bytes: i64) -> Result<(), ExpandError> {
        let uncertain = |text: String| ExpandError::Uncertain(text);
        let path = path_of(&work.source).map_err(|failure| uncertain(failure.text))?;
        if work.source.is_block() || !is_device(&path).map_err(uncertain)? {
            return Ok(());
        }
        let dir = mounts(&work.context.kubelet.data_dir).join(work.source.name());
        disk::grow(&path, &dir).await.map_err(ExpandError::Final)
    }

    async fn tear_down(&self, _: &Arc<Kubelet>, found: &Found) -> Result<(), String> {
        while is_mount_point(&found.path)? {
            unmount(&found.path)?;
        }
        remove_dir(&found.path)
    }

    fn restore(&self, data_dir: &Path) -> Vec<Restored> {
        let children = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let mut restored = Vec::new();
        for dir in children(&mounts(data_dir)) {
            let Some(volume) = dir.file_name().and_then(|n| n.to_str()).map(name_of) else { continue };
            let staged = Some(Staged { plugin: PLUGIN, dir, block: false });
            restored.push(Restored { name: volume, staged, user: None, attachable: false });
        }
        for pod in children(&data_dir.join("pods")).iter().flat_map(|pod| found(pod, PLUGIN)) {
            let (name, user) = (name_of(&pod.name), Some(pod.uid));
            restored.push(Restored { name, staged: None, user, attachable: false });
        }
        restored
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        file_system(&measured.path).await
    }
}

fn missing(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("path {:?} does not exist", path.display().to_string()),
        _ => format!("stat {}: {error}", path.display()),
    }
}
