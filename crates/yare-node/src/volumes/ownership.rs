//! Who may use a volume's files: `fsGroup`, and the user that all containers share.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use crate::view::Pod;

/// The pod's `fsGroup`.
pub(super) fn fs_group(pod: &Pod) -> Option<u32> {
    pod.spec.security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok())
}

/// The user that every container of the pod runs as, if they are told one and the same.
pub(super) fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = pod.spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users =
        pod.all_containers().map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    if users.all(|u| u == Some(first)) { u32::try_from(first).ok() } else { None }
}

/// A volume's directory, with its parents.
pub(super) fn make_directory(dir: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| format!("make {}: {e}", dir.display()))
}

/// Sets a mode past the umask.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| format!("chmod {}: {e}", path.display()))
}

/// Gives a volume's tree to the pod's `fsGroup`, as its change policy says; nothing where it has none. Large trees
/// take their time, so on a thread that may wait.
pub(super) async fn apply_for(pod: &Pod, root: &Path) -> Result<(), String> {
    let Some(gid) = fs_group(pod) else { return Ok(()) };
    let policy = pod.spec.security_context.as_ref().and_then(|s| s.fs_group_change_policy.as_deref());
    let (root, on_mismatch) = (root.to_owned(), policy == Some("OnRootMismatch"));
    tokio::task::spawn_blocking(move || apply(&root, Some(gid), on_mismatch))
        .await
        .unwrap_or_else(|e| Err(format!("set group {gid}: {e}")))
}

/// Gives a tree to the group: readable and writable for it, new files inherit it. With `on_mismatch` only if
/// the root is not as it should be.
pub(super) fn apply(root: &Path, gid: Option<u32>, on_mismatch: bool) -> Result<(), String> {
    let Some(gid) = gid else { return Ok(()) };
    if on_mismatch
        && std::fs::metadata(root).is_ok_and(|m| m.gid() == gid && m.permissions().mode() & 0o2070 == 0o2070)
    {
        return Ok(());
    }
    walk(root, gid).map_err(|e| format!("set group {gid} on {}: {e}", root.display()))
}

fn walk(path: &Path, gid: u32) -> std::io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    lchown(path, None, Some(gid))?;
    if found.file_type().is_symlink() {
        return Ok(());
    }
    let mode = found.permissions().mode() & 0o7777;
    let extra = if found.is_dir() { 0o2770 } else { 0o660 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | extra))?;
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            walk(&entry?.path(), gid)?;
        }
    }
    Ok(())
}
