//! `local`: a directory or device of this node, as a PersistentVolume.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::stats::{Measured, VolumeStats, file_system};
use super::{Failure, Mounted, Source, VolumeKind, Work, local_path, ownership};
use crate::kubelet::Kubelet;

pub(super) struct LocalVolume;

#[async_trait]
impl VolumeKind for LocalVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/local-volume"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.as_ref().is_some_and(|b| b.volume.spec.local.is_some())
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let bound = work.source.bound.clone().ok_or("no claim")?;
        let local = bound.volume.spec.local.as_ref().ok_or("no local source")?;
        let path = PathBuf::from(&local.path);
        if !path.is_absolute() || local.path.split('/').any(|part| part == "..") {
            return Err(
                format!("invalid path: {:?} must be absolute and may not contain '..'", local.path).into()
            );
        }
        local_path::prepare(work.context.kubelet, &bound.volume).await?;
        // It must exist: its path is what ties it to this node.
        let found = std::fs::metadata(&path).map_err(|e| missing(&path, &e))?;
        if work.source.is_block() {
            if !found.file_type().is_block_device() {
                let text = format!("{} is not a block device", path.display());
                return Err(Failure::at("MapVolume.SetUpDevice failed", text));
            }
            return Ok(Mounted { device: Some(path), ..Mounted::default() });
        }
        if !found.is_dir() {
            return Err(format!("path {:?} is not a directory", local.path).into());
        }
        if !work.source.read_only() {
            ownership::apply_for(work.context.pod, &path).await?;
        }
        Ok(Mounted { path, ..Mounted::default() })
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
