//! A container's volume mounts; `subPath` is resolved inside the volume and never outside of it.
//!
//! Links of a sub-path are followed as the node sees them, and must not lead out of the volume. What they lead to is
//! opened below the volume's root by the kernel itself (`openat2`, `RESOLVE_BENEATH`), and that open file is
//! bind-mounted to a place of our own, which the runtime then mounts. A container that swaps a directory for a
//! symbolic link meanwhile cannot make it point elsewhere.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;
use yare_runtime::{Mount, MountPropagation};

use super::{ContainerHook, ContainerStart, StartFailure};
use crate::error::{Context, Error, Result};
use crate::pod::dirs::PodDirs;
use crate::pod::expand::expand_strict;
use crate::view::VolumeMount;

pub(crate) struct Mounts;

#[async_trait]
impl ContainerHook for Mounts {
    fn name(&self) -> &'static str {
        "mounts"
    }

    async fn apply(&self, start: &mut ContainerStart<'_>) -> std::result::Result<(), StartFailure> {
        for (index, mount) in start.container.volume_mounts.iter().enumerate() {
            let mut made = make(start, index, mount)?;
            if made.recursive_readonly {
                made.recursive_readonly = recursively(start, mount).await?;
            }
            start.config.mounts.push(made);
        }
        Ok(())
    }
}

fn make(
    start: &ContainerStart<'_>,
    index: usize,
    mount: &VolumeMount,
) -> std::result::Result<Mount, StartFailure> {
    let container = &start.container.name;
    let volume = start.volumes.get(&mount.name).ok_or_else(|| {
        StartFailure::config(format!(
            "cannot find volume {:?} to mount into container {container:?}",
            mount.name
        ))
    })?;
    let sub_path = if mount.sub_path_expr.is_empty() {
        mount.sub_path.clone()
    } else {
        expand_strict(&mount.sub_path_expr, |name| start.env.get(name).cloned())
            .map_err(StartFailure::config)?
    };
    check_relative(&sub_path).map_err(StartFailure::config)?;
    let image = start.image_volumes.get(&mount.name);
    let host_path = if sub_path.is_empty() || image.is_some() {
        volume.path.clone()
    } else {
        let target = start.dirs.subpaths().join(&mount.name).join(container).join(index.to_string());
        bind_subpath(&volume.path, &sub_path, &target).map_err(|e| {
            StartFailure::config(format!(
                "failed to prepare subPath for volumeMount {:?} of container {container:?}: {e}",
                mount.name
            ))
        })?
    };
    let container_path = if mount.mount_path.starts_with('/') {
        mount.mount_path.clone()
    } else {
        format!("/{}", mount.mount_path)
    };
    let readonly = mount.read_only || volume.read_only;
    Ok(Mount {
        container_path: container_path.into(),
        host_path,
        readonly,
        recursive_readonly: readonly
            && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
        image: image.map(|image| image.id.clone()),
        user_specified_image: image.map(|image| image.reference.clone()).unwrap_or_default(),
        image_sub_path: (image.is_some() && !sub_path.is_empty()).then(|| sub_path.into()),
        ..Mount::default()
    })
}

/// Whether mounts below a read-only mount are made read-only, too: where the pod's handler can, and must where it is
/// asked for.
async fn recursively(
    start: &ContainerStart<'_>,
    mount: &VolumeMount,
) -> std::result::Result<bool, StartFailure> {
    let status = start.kubelet.runtime.status().await.map_err(|e| StartFailure::config(e.to_string()))?;
    let able = status.handler(start.runtime_handler).is_some_and(|h| h.recursive_readonly_mounts);
    match mount.recursive_read_only.as_deref() {
        Some("Enabled") if !able => Err(StartFailure::config(format!(
            "volume {:?} requested recursive read-only mode, but it is not supported by the runtime",
            mount.name
        ))),
        _ => Ok(able),
    }
}

fn check_relative(path: &str) -> std::result::Result<(), String> {
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(())
}

/// Follows the links of a path as the node sees them, and opens what it leads to if that lies in the volume. Between
/// the two a container may put a link anywhere on the way: the kernel then opens nothing.
fn open_inside(volume: &Path, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    let context = || format!("open {}", path.display());
    let real = path.canonicalize().context(context)?;
    let below = real.strip_prefix(volume).map_err(|_| Error::Path {
        path: path.to_owned(),
        reason: format!("subpath {real:?} not within volume path {volume:?}"),
    })?;
    let root = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(volume, root, Mode::empty()).context(context)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    nix::fcntl::openat2(&root, below, how).context(context)
}

/// Makes missing directories below a volume. The last one, which the container gets, has the volume's own mode:
/// who may write to the one may write to the other.
fn make_below(volume: &Path, sub_path: &str) -> Result<()> {
    let context = || format!("make {sub_path:?} in {}", volume.display());
    let mode = std::fs::metadata(volume).context(context)?.mode() & 0o7777;
    let mode = Mode::from_bits_truncate(mode);
    let mut at = volume.to_owned();
    let mut made = false;
    for part in sub_path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        let parent = open_inside(volume, &at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        made = match nix::sys::stat::mkdirat(&parent, part, mode) {
            Ok(()) => true,
            Err(nix::Error::EEXIST) => false,
            Err(error) => return Err(error).context(context),
        };
        at.push(part);
    }
    if made {
        // Past the umask, which also leaves bits like setgid away.
        let last = open_inside(volume, &at, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        nix::sys::stat::fchmod(&last, mode).context(context)?;
    }
    Ok(())
}

/// Opens `sub_path` below `volume`, making missing directories, and mounts it at `target`.
fn bind_subpath(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf> {
    let context = || format!("subPath {sub_path:?} of {}", volume.display());
    let volume = &volume.canonicalize().context(context)?;
    let path = volume.join(sub_path);
    // A link that leads nowhere is not made into something.
    if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        make_below(volume, sub_path)?;
    }
    let found = open_inside(volume, &path, OFlag::O_PATH)?;
    let directory =
        nix::sys::stat::fstat(&found).context(context)?.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
    let made = (|| {
        unmount_if_mounted(target)?;
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).context(|| format!("make {}", parent.display()))?;
        }
        if directory {
            if target.is_file() {
                std::fs::remove_file(target).context(|| format!("remove {}", target.display()))?;
            }
            std::fs::create_dir_all(target).context(|| format!("make {}", target.display()))?;
        } else if !target.is_file() {
            std::fs::File::create(target).context(|| format!("make {}", target.display()))?;
        }
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        nix::mount::mount(
            Some(&source),
            target,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .context(|| format!("bind {} to {}", context(), target.display()))
    })();
    made.map(|()| target.to_path_buf())
}

fn unmount_if_mounted(target: &Path) -> Result<()> {
    match nix::mount::umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        // Without privileges nothing can have been mounted there.
        Err(nix::Error::EPERM) => Ok(()),
        Err(error) => {
            Err(Error::Io { context: format!("unmount {}", target.display()), source: error.into() })
        }
    }
}

/// Unmounts and removes what sub-paths of a pod were mounted to.
pub(crate) fn release_subpaths(dirs: &PodDirs) -> Result<()> {
    let root = dirs.subpaths();
    let children = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };
    for volume in children(&root) {
        for container in children(&volume) {
            for target in children(&container) {
                unmount_if_mounted(&target)?;
                // Only ever the empty mount point: `remove_dir` and `remove_file` cannot reach into a volume.
                let removed = if target.is_dir() {
                    std::fs::remove_dir(&target)
                } else {
                    std::fs::remove_file(&target)
                };
                removed.context(|| format!("remove {}", target.display()))?;
            }
            std::fs::remove_dir(&container).context(|| format!("remove {}", container.display()))?;
        }
        std::fs::remove_dir(&volume).context(|| format!("remove {}", volume.display()))?;
    }
    if root.is_dir() {
        std::fs::remove_dir(&root).context(|| format!("remove {}", root.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("v");
        std::fs::create_dir_all(volume.join("inside/deep")).unwrap();
        std::fs::create_dir_all(dir.path().join("outside")).unwrap();
        for (link, to) in [
            ("fine", "inside"),
            ("inside/deep/round", "../../inside"),
            ("escape", "../outside"),
            ("up", ".."),
            ("etc", "/etc"),
            ("lost", "no-such"),
            ("loop", "loop"),
        ] {
            symlink(to, volume.join(link)).unwrap();
        }
        // A path of the node that leads into the volume.
        symlink(volume.join("inside"), volume.join("whole")).unwrap();
        let open = |path: &str| open_inside(&volume, &volume.join(path), OFlag::O_PATH);
        for path in ["", "inside", "fine", "fine/deep", "inside/deep/round", "whole/deep"] {
            assert!(open(path).is_ok(), "{path}: {:?}", open(path));
        }
        for path in ["escape", "up", "up/v/inside/../..", "etc", "etc/passwd", "inside/deep/round/../.."] {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains("not within volume path"), "{path}: {error}");
        }
        for path in ["lost", "loop", "inside/lost"] {
            assert!(open(path).is_err(), "{path}");
        }
        // What is made is made inside, too, and may be used as the volume may.
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o3777)).unwrap();
        make_below(&volume, "new/er").unwrap();
        make_below(&volume, "fine/new").unwrap();
        let mode = |path: &str| std::fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("new/er"), mode("inside/new")), (0o3777, 0o3777));
        for path in ["escape/x", "up/x", "lost/x", "loop/x"] {
            assert!(make_below(&volume, path).is_err(), "{path}");
        }
        assert!(std::fs::read_dir(dir.path().join("outside")).unwrap().next().is_none());
        assert!(check_relative("a/../b").is_err());
        assert!(check_relative("/a").is_err());
        assert!(check_relative("a/b").is_ok());
    }
}
