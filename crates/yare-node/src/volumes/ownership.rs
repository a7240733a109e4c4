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
pub(super) fn make_directory(dir: &Path, mode: u32) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
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
/// the root is not as it should be. The root may be a link: the tree that it leads to is meant, which is what
/// containers get. Links below it are only given to the group themselves.
pub(super) fn apply(root: &Path, gid: Option<u32>, on_mismatch: bool) -> Result<(), String> {
    let Some(gid) = gid else { return Ok(()) };
    if on_mismatch
        && std::fs::metadata(root).is_ok_and(|m| m.gid() == gid && m.permissions().mode() & 0o2070 == 0o2070)
    {
        return Ok(());
    }
    let walked = root.canonicalize().and_then(|tree| walk(&tree, gid));
    walked.map_err(|e| format!("set group {gid} on {}: {e}", root.display()))
}

/// The deepest first, so that the root is as it should be only when all is. What refuses to be given away stays as it
/// is, as upstream leaves it: the file system may not know groups.
fn walk(path: &Path, gid: u32) -> std::io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            walk(&entry?.path(), gid)?;
        }
    }
    if let Err(error) = lchown(path, None, Some(gid)) {
        tracing::warn!(%error, path = %path.display(), gid, "giving a volume's file to its group");
    }
    if found.file_type().is_symlink() {
        return Ok(());
    }
    let mode = found.permissions().mode() & 0o7777;
    let extra = if found.is_dir() { 0o2770 } else { 0o660 };
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | extra)) {
        tracing::warn!(%error, path = %path.display(), "letting a group use a volume's file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_tree_behind_a_link_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for directory in ["tree", "tree/below", "elsewhere"] {
            std::fs::create_dir(at(directory)).unwrap();
            set_mode(&at(directory), 0o700).unwrap();
        }
        std::fs::write(at("tree/below/file"), "").unwrap();
        set_mode(&at("tree/below/file"), 0o600).unwrap();
        symlink(at("tree"), at("volume")).unwrap();
        symlink(at("elsewhere"), at("tree/out")).unwrap();
        // Root may choose a group, others have theirs.
        let gid = if nix::unistd::geteuid().is_root() { 1234 } else { nix::unistd::getegid().as_raw() };
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o7777;
        let group = |name: &str| std::fs::symlink_metadata(at(name)).unwrap().gid();

        apply(&at("volume"), Some(gid), false).unwrap();
        for (name, want) in [("tree", 0o2770), ("tree/below", 0o2770), ("tree/below/file", 0o660)] {
            assert_eq!((mode(name), group(name)), (want, gid), "{name}");
        }
        assert_eq!(group("tree/out"), gid);
        assert_eq!(mode("elsewhere"), 0o700, "a link inside leads out of the volume");

        // Only the root is looked at, and it is as it should be.
        set_mode(&at("tree/below/file"), 0o600).unwrap();
        apply(&at("volume"), Some(gid), true).unwrap();
        assert_eq!(mode("tree/below/file"), 0o600);
        set_mode(&at("tree"), 0o700).unwrap();
        apply(&at("volume"), Some(gid), true).unwrap();
        assert_eq!(mode("tree/below/file"), 0o660);
    }
}
