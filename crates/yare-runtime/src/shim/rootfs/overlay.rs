//! The root filesystem itself: an image's layers under one that can be written.
//!
//! Without a user namespace the overlay is mounted where it stays and entered ([`enter`]). With one, the layers' ids
//! have to be mapped outside ([`mapped`]) and the result is entered inside ([`enter_tree`]).

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::{Result, open_path, text};
use crate::proto::Spec;
use crate::shim::sandbox::UserNs;
use crate::sys::{self, MOUNT_ATTR_IDMAP, MountAttr};

/// Makes mounts stay in this mount namespace, while unmounts on the host still arrive.
fn keep_mounts() -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// Mounts the overlay and goes to where it is, so that [`Root`](super::Root) can be made of it.
pub(in crate::shim) fn enter(spec: &Spec, dir: &Path) -> Result<()> {
    keep_mounts().map_err(|e| format!("make / a slave: {e}"))?;
    attached(spec, dir)?;
    let root = dir.join("rootfs");
    std::env::set_current_dir(&root).map_err(|e| text(&root, e))
}

/// Mounts the overlay with `mount(2)`: one call, and known to every kernel. Layer names are relative, so that many fit.
fn attached(spec: &Spec, dir: &Path) -> Result<()> {
    std::env::set_current_dir(&spec.layer_root).map_err(|e| text(&spec.layer_root, e))?;
    let base = format!(
        "lowerdir={},upperdir={},workdir={}",
        spec.layers.join(":"),
        dir.join("upper").display(),
        dir.join("work").display()
    );
    if base.len() > 4000 {
        // Over a page: only the newer interface takes it.
        let tree = detached(&spec.layer_root, &spec.layers, Some((&dir.join("upper"), &dir.join("work"))))
            .map_err(|e| format!("mount overlay: {e}"))?;
        let target = open_path(&dir.join("rootfs")).map_err(|e| text(dir, e))?;
        return sys::move_mount(tree.as_fd(), target.as_fd()).map_err(|e| format!("mount overlay: {e}"));
    }
    // The writable layer dies with the container, so it need not reach the disk ("volatile"): without this, the
    // unmount of every container would sync the whole filesystem.
    for options in [format!("{base},index=off,volatile"), format!("{base},index=off"), base.clone()] {
        match mount(
            Some("overlay"),
            &dir.join("rootfs"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        ) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EINVAL) => {}
            Err(e) => return Err(format!("mount overlay at {}: {e}", dir.display())),
        }
    }
    Err(format!("mount overlay at {} ({base}): invalid argument", dir.display()))
}

/// An overlay as a detached mount.
pub(super) fn detached(
    layer_root: &Path,
    layers: &[String],
    writable: Option<(&Path, &Path)>,
) -> io::Result<OwnedFd> {
    let c = |s: &OsStr| CString::new(s.as_encoded_bytes()).map_err(io::Error::other);
    let mut options: Vec<(CString, CString)> = Vec::new();
    for layer in layers {
        options.push((c"lowerdir+".to_owned(), c(layer_root.join(layer).as_os_str())?));
    }
    if let Some((upper, work)) = writable {
        options.push((c"upperdir".to_owned(), c(upper.as_os_str())?));
        options.push((c"workdir".to_owned(), c(work.as_os_str())?));
    } else if layers.len() == 1 {
        // An overlay needs two layers; a bind of the only one is the same.
        return sys::open_tree_clone(&layer_root.join(&layers[0]), false);
    }
    let refs: Vec<_> = options.iter().map(|(k, v)| (k.as_c_str(), v.as_c_str())).collect();
    sys::new_filesystem(c"overlay", &refs, 0)
}

/// The root filesystem for a user namespace, detached: the layers with their ids mapped, and a writable layer that
/// belongs to its root. Runs in a mount namespace of this process's own, outside the user namespace. Leaves the
/// working directory where the root can be attached.
pub(in crate::shim) fn mapped(spec: &Spec, dir: &Path, userns: &UserNs) -> Result<OwnedFd> {
    let place = dir.join("rootfs");
    let error =
        |e: &dyn std::fmt::Display| format!("mount overlay with mapped ids at {}: {e}", place.display());
    keep_mounts().map_err(|e| error(&e))?;
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(|e| error(&e))?;
    std::env::set_current_dir(&place).map_err(|e| error(&e))?;
    let mut names = Vec::new();
    for (i, layer) in spec.layers.iter().enumerate() {
        let tree = sys::open_tree_clone(&spec.layer_root.join(layer), false).map_err(|e| error(&e))?;
        idmap(&tree, userns, false).map_err(|e| error(&e))?;
        names.push(i.to_string());
        let target = PathBuf::from(i.to_string());
        fs::create_dir(&target).map_err(|e| error(&e))?;
        let target = open_path(&target).map_err(|e| error(&e))?;
        sys::move_mount(tree.as_fd(), target.as_fd()).map_err(|e| error(&e))?;
    }
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for path in [&upper, &work] {
        std::os::unix::fs::chown(path, Some(userns.root_uid), Some(userns.root_gid))
            .map_err(|e| error(&e))?;
    }
    fs::create_dir("root").map_err(|e| error(&e))?;
    let base =
        format!("lowerdir={},upperdir={},workdir={}", names.join(":"), upper.display(), work.display());
    let overlay = |o: &str| mount(Some("overlay"), "root", Some("overlay"), MsFlags::empty(), Some(o));
    overlay(&format!("{base},index=off,volatile"))
        .or_else(|_| overlay(&format!("{base},index=off")))
        .map_err(|e| error(&e))?;
    sys::open_tree_clone(Path::new("root"), false).map_err(|e| error(&e))
}

/// Goes into a root filesystem that [`mapped`] made, attaching it at the working directory: paths may be out of reach
/// by now, and an open directory would still be the one of the former mount namespace.
pub(in crate::shim) fn enter_tree(tree: &OwnedFd) -> Result<()> {
    keep_mounts().map_err(|e| format!("make / a slave: {e}"))?;
    let place = open_path(Path::new(".")).map_err(|e| format!("open the working directory: {e}"))?;
    sys::move_mount(tree.as_fd(), place.as_fd()).map_err(|e| format!("attach the root filesystem: {e}"))?;
    nix::unistd::fchdir(tree).map_err(|e| format!("enter the root filesystem: {e}"))
}

/// Shows a detached mount's ids as those inside a user namespace.
pub(super) fn idmap(tree: &OwnedFd, userns: &UserNs, recursive: bool) -> io::Result<()> {
    let userns_fd = userns.fd.as_raw_fd() as u64;
    sys::mount_setattr(
        tree.as_fd(),
        recursive,
        MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() },
    )
}
