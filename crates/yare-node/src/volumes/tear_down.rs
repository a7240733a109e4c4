//! Giving a pod's volumes back, from what is on disk: the pod itself may be long gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::MntFlags;

use super::{KINDS, mounts_below};
use crate::error::{Context, Error, Result};
use crate::kubelet::Kubelet;
use crate::pod::dirs::PodDirs;

/// A volume of a pod, as its directory tells it: `volumes/<plugin>/<name>`, or `volumeDevices/<plugin>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The pod.
    pub(crate) uid: String,
    /// The volume's name: a PersistentVolume's, or its own in the pod.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Mapped as a device.
    pub(crate) block: bool,
}

/// The volumes of one plugin below a pod's directory.
pub(super) fn found(root: &Path, plugin: &str) -> Vec<Found> {
    let uid = root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut all = Vec::new();
    for (directory, block) in [("volumes", false), ("volumeDevices", true)] {
        let place = root.join(directory).join(plugin.replace('/', "~"));
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            all.push(Found { uid: uid.clone(), name, path: entry.path(), block });
        }
    }
    all
}

/// Undoes all volumes of a pod. Nothing outside the pod's own directory is removed.
pub(crate) async fn tear_down(kubelet: &Arc<Kubelet>, dirs: &PodDirs) -> Result<()> {
    if dirs.root.exists() {
        for kind in KINDS {
            for found in found(&dirs.root, kind.plugin()) {
                kind.tear_down(kubelet, &found).await.map_err(|reason| Error::Path {
                    path: found.path,
                    reason: format!("tearing down volume {:?}: {reason}", found.name),
                })?;
            }
        }
        remove(dirs)?;
    }
    if let Some(uid) = dirs.root.file_name().and_then(|n| n.to_str()) {
        kubelet.volumes.release(uid);
    }
    Ok(())
}

fn remove(dirs: &PodDirs) -> Result<()> {
    let directories = ["volumes", "volumeDevices"].map(|name| dirs.root.join(name));
    if !directories.iter().any(|d| d.exists()) {
        return Ok(());
    }
    let root = dirs.root.canonicalize().context(|| format!("resolve {}", dirs.root.display()))?;
    for mount in mounts_below(&root)? {
        match nix::mount::umount2(&mount, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => {
                return Err(Error::Io {
                    context: format!("unmount {}", mount.display()),
                    source: error.into(),
                });
            }
        }
    }
    for directory in directories.iter().filter(|d| d.exists()) {
        std::fs::remove_dir_all(directory).context(|| format!("remove {}", directory.display()))?;
    }
    Ok(())
}
