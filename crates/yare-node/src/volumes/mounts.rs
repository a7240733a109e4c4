//! What is mounted where on the node, and the plain mounts that several kinds of volume make.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::error::{Context, Result};

/// Mounts a tmpfs at `dir`, unless one is there.
pub(super) fn mount_tmpfs(dir: &Path, options: &str) -> std::result::Result<(), String> {
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
pub(super) fn secret_directory(dir: &Path) -> std::result::Result<(), String> {
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
pub(crate) fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".to_owned())?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(root))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// Whether something is mounted at this very path. Asks the kernel's table and not the file system, which may
/// not answer.
pub(super) fn is_mount_point(path: &Path) -> std::result::Result<bool, String> {
    let path = resolve(path);
    mounts_below(&path).map(|m| m.contains(&path)).map_err(|e| e.to_string())
}

/// The path without links above its last part; the kernel's table has it that way.
fn resolve(path: &Path) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// The device (`8:0`) and the directory on it that are mounted at a path; none: nothing is.
pub(super) fn mounted_from(path: &Path) -> Option<(String, String)> {
    let path = resolve(path);
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let found = table
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(&unescape(at)) == path))?;
    let mut fields = found.split(' ').skip(2);
    Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
}

fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// Unmounts, lazily: the files may be on a server that is gone. Nothing mounted there is no error.
pub(super) fn unmount(path: &Path) -> std::result::Result<(), String> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(format!("unmount {}: {error}", path.display())),
    }
}

/// Mounts a directory or file at a second place.
pub(super) fn bind(source: &Path, target: &Path) -> std::result::Result<(), String> {
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| format!("bind {} to {}: {e}", source.display(), target.display()))
}

/// Removes an empty directory; one that is not there is removed already.
pub(super) fn remove_dir(path: &Path) -> std::result::Result<(), String> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("failed to remove dir [{}]: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a file; one that is not there is removed already.
pub(super) fn remove_file(path: &Path) -> std::result::Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("failed to remove file [{}]: {error}", path.display()))
        }
        _ => Ok(()),
    }
}
