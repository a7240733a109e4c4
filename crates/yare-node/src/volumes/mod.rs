//! Volumes: one table of kinds, one file per kind.
//!
//! In: a pod's `volumes`. Out: a host path (or image) for each, ready to be mounted into containers. Kinds whose
//! content comes from the API server are written atomically and brought up to date whenever the pod is looked
//! at; what they were made from is watched, so that a change wakes the pod.

mod atomic;
mod claim;
mod config_map;
mod downward;
mod empty_dir;
pub(crate) mod env_file;
mod host_path;
mod image;
mod ownership;
mod projected;
mod secret;
mod token;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags};

use crate::error::{Context, Error, Result};
use crate::kubelet::Kubelet;
use crate::objects::Missing;
use crate::pod::dirs::PodDirs;
use crate::pod::fields::Facts;
use crate::pod::mailbox::Mailbox;
use crate::view::{Pod, Volume};

/// The kinds of volume a node can mount, by source field.
const KINDS: &[&dyn VolumeKind] = &[
    &config_map::ConfigMapVolume,
    &secret::SecretVolume,
    &empty_dir::EmptyDirVolume,
    &host_path::HostPathVolume,
    &downward::DownwardVolume,
    &projected::ProjectedVolume,
    &claim::ClaimVolume,
    &image::ImageVolume,
];

/// What a volume is made from.
pub(crate) struct VolumeContext<'a> {
    pub(crate) kubelet: &'a Arc<Kubelet>,
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) dirs: &'a PodDirs,
    pub(crate) facts: &'a Facts,
}

/// Where the files of a volume are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    OnDisk,
    /// In memory: what may be secret.
    InMemory,
}

impl VolumeContext<'_> {
    /// An object of the pod's namespace that a volume is made from; an empty one where it may be absent.
    async fn object<T: serde::de::DeserializeOwned + Default>(
        &self,
        resource: &yare_client::Resource,
        name: &str,
        optional: bool,
    ) -> std::result::Result<T, String> {
        let m = &self.pod.metadata;
        match self.kubelet.objects.get(resource, &m.namespace, name, &m.uid, self.mailbox).await {
            Err(Missing::NotFound(_)) if optional => Ok(T::default()),
            found => found.map_err(|missing: Missing| missing.to_string()),
        }
    }

    /// Makes the volume's directory hold these files.
    fn write(
        &self,
        volume: &Volume,
        plugin: &str,
        payload: &atomic::Payload,
        keep: Keep,
    ) -> std::result::Result<Mounted, String> {
        let dir = self.dirs.volume(plugin, &volume.name);
        ownership::make_directory(&dir)?;
        if keep == Keep::InMemory {
            secret_directory(&dir)?;
        }
        atomic::write(&dir, payload, ownership::fs_group(self.pod), self.kubelet.seams.now())?;
        Ok(Mounted { path: dir, ..Mounted::default() })
    }
}

/// A volume that is ready.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// An image volume: the image's reference instead of a path.
    pub(crate) image: Option<String>,
    /// When its content has to be made anew (tokens).
    pub(crate) refresh_at: Option<Timestamp>,
}

/// One row of the table.
#[async_trait]
pub(crate) trait VolumeKind: Send + Sync {
    /// Whether the volume is of this kind.
    fn supports(&self, volume: &Volume) -> bool;
    /// Whether its content follows objects of the API server.
    fn live(&self) -> bool {
        false
    }
    /// Makes it ready; may run again and again. The error is the part of the event after the volume's name.
    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
        tokens: &mut token::Tokens,
    ) -> std::result::Result<Mounted, String>;
}

/// The volumes of one pod.
#[derive(Default)]
pub(crate) struct Volumes {
    mounted: HashMap<String, Mounted>,
    tokens: token::Tokens,
}

impl Volumes {
    /// A volume that is ready.
    pub(crate) fn get(&self, name: &str) -> Option<&Mounted> {
        self.mounted.get(name)
    }

    /// When some content has to be made anew.
    pub(crate) fn refresh_at(&self) -> Option<Timestamp> {
        self.mounted.values().filter_map(|m| m.refresh_at).min()
    }

    /// Forgets what was ready.
    pub(crate) fn clear(&mut self) {
        self.mounted.clear();
    }

    /// Makes all volumes ready and brings the live ones up to date. The error is the text of an event.
    pub(crate) async fn set_up(&mut self, context: &VolumeContext<'_>) -> std::result::Result<(), String> {
        for volume in &context.pod.spec.volumes {
            let Some(kind) = KINDS.iter().find(|k| k.supports(volume)) else {
                let source = volume.other.keys().next().map_or("none", String::as_str);
                return Err(format!(
                    "MountVolume.SetUp failed for volume {:?} : no volume plugin matched: {source}",
                    volume.name
                ));
            };
            let before = self.mounted.get(&volume.name);
            if before.is_some() && !kind.live() {
                continue;
            }
            match kind.set_up(context, volume, &mut self.tokens).await {
                Ok(mounted) => {
                    self.mounted.insert(volume.name.clone(), mounted);
                }
                // What a running pod has stays, until its source is back.
                Err(error) if before.is_some() => {
                    tracing::debug!(volume = volume.name, pod = %context.pod.full_name(), error, "refreshing a volume");
                }
                Err(error) => {
                    return Err(format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name));
                }
            }
        }
        Ok(())
    }
}

/// Mounts a tmpfs at `dir`, unless one is there.
fn mount_tmpfs(dir: &Path, options: &str) -> std::result::Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
    // Asked on every look at a pod, so not by reading the mount table: a tmpfs is a device of its own.
    let device = |path: &Path| std::fs::metadata(path).ok().map(|m| m.dev());
    if device(dir) != dir.parent().and_then(device) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options))
        .map_err(|e| format!("mount tmpfs at {}: {e}", dir.display()))
}

/// A memory-backed directory for secrets; where mounting is not allowed, a plain one.
fn secret_directory(dir: &Path) -> std::result::Result<(), String> {
    match mount_tmpfs(dir, "mode=0755") {
        Err(error) if !nix::unistd::geteuid().is_root() => {
            tracing::debug!(error, "secrets are kept on disk: mounting a tmpfs is not allowed");
            Ok(())
        }
        // Root in a container without CAP_SYS_ADMIN.
        Err(error) if error.ends_with(&nix::Error::EPERM.to_string()) => Ok(()),
        outcome => outcome,
    }
}

/// Mount points at or below `root`, the deepest first.
fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".to_owned())?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .filter(|path| path.starts_with(root))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// Unmounts and removes all volumes of a pod. Nothing outside the pod's own directory is touched.
pub(crate) fn tear_down(dirs: &PodDirs) -> Result<()> {
    let volumes = dirs.root.join("volumes");
    if !volumes.exists() {
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
    std::fs::remove_dir_all(&volumes).context(|| format!("remove {}", volumes.display()))
}
