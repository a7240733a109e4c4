//! A container's filesystem, made inside its own new mount namespace, so that nothing of it ever shows on the host
//! and nothing has to be unmounted.
//!
//! The order matters: first every host path is taken hold of as a detached mount ([`Sources::collect`]), then the
//! overlay becomes the root ([`overlay`], [`Root`]), and from there on all paths are the container's own: no symbolic
//! link in an image can point outside ([`populate`]).

pub(super) mod devices;
pub(super) mod overlay;
pub(super) mod sources;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use self::sources::Sources;
use crate::cgroup::Cgroups;
use crate::proto::Spec;
use crate::sys::{
    self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr,
};

type Result<T> = std::result::Result<T, String>;

fn text(path: &Path, e: impl std::fmt::Display) -> String {
    format!("{}: {e}", path.display())
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    Ok(file.into())
}

/// A container's root filesystem, which is the working directory. Until [`Root::settle`] the host's can still be
/// reached.
pub(super) struct Root {
    /// The host's root and the container's, while both are needed.
    both: Option<(OwnedFd, OwnedFd)>,
}

impl Root {
    /// Makes the working directory, which is a mount, the root: for good, or so that there is a way back.
    pub(super) fn enter(way_back: bool) -> Result<Self> {
        if !way_back {
            pivot()?;
            return Ok(Root { both: None });
        }
        let open = |path: &str| open_path(Path::new(path)).map_err(|e| format!("open {path}: {e}"));
        let both = (open("/")?, open(".")?);
        nix::unistd::chroot(".").map_err(|e| format!("enter the root filesystem: {e}"))?;
        std::env::set_current_dir("/").map_err(|e| format!("chdir /: {e}"))?;
        Ok(Root { both: Some(both) })
    }

    /// Goes back, runs something with the host's root, and makes the container's the root for good.
    pub(super) fn settle(self, with_host: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some((host, own)) = self.both else { return Ok(()) };
        nix::unistd::fchdir(&host).map_err(|e| format!("return to the host's root: {e}"))?;
        nix::unistd::chroot(".").map_err(|e| format!("return to the host's root: {e}"))?;
        with_host()?;
        nix::unistd::fchdir(&own).map_err(|e| format!("enter the root filesystem: {e}"))?;
        pivot()
    }
}

/// Makes the working directory, which is a mount, the root. Nothing of the host is visible afterwards.
fn pivot() -> Result<()> {
    nix::unistd::pivot_root(".", ".").map_err(|e| format!("pivot_root: {e}"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|e| format!("unmount the old root: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("chdir /: {e}"))
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::create_dir_all(path).map_err(|e| format!("create mountpoint {}", text(path, e))),
    }
}

/// Makes sure there is something to mount on.
fn make_target(path: &Path, directory: bool) -> Result<()> {
    if fs::metadata(path).is_ok() {
        return Ok(());
    }
    if directory {
        return make_dir(path);
    }
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map(drop)
        .map_err(|e| format!("create mountpoint {}", text(path, e)))
}

fn attach(tree: &OwnedFd, target: &Path, directory: bool) -> Result<()> {
    make_target(target, directory)?;
    let fd = open_path(target).map_err(|e| text(target, e))?;
    // A link in the image must not let a volume hide /proc, which our own protection needs.
    let kind = nix::sys::statfs::fstatfs(&fd).map_err(|e| text(target, e))?.filesystem_type();
    if kind == nix::sys::statfs::PROC_SUPER_MAGIC && target != Path::new("/proc") {
        return Err(format!("{} is inside /proc, where nothing can be mounted", target.display()));
    }
    sys::move_mount(tree.as_fd(), fd.as_fd())
        .map_err(|e| format!("error mounting to rootfs at {:?}: {e}", target.display()))
}

fn mount_new(fstype: &str, target: &str, flags: MsFlags, data: Option<&str>) -> Result<()> {
    make_dir(Path::new(target))?;
    mount(Some(fstype), target, Some(fstype), flags, data)
        .map_err(|e| format!("mount {fstype} at {target}: {e}"))
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounts and makes everything inside the new root.
pub(super) fn populate(spec: &Spec, cgroups: &Cgroups, sources: Sources, userns: bool) -> Result<()> {
    let given = |path: &str| spec.mounts.iter().any(|m| m.target == Path::new(path));
    // A write to /dev/… of an image directory must never reach the host's devices.
    for (path, tree) in sources.kernel.iter().filter(|(path, _)| !given(path)) {
        attach(tree, Path::new(path), true)?;
    }
    if !given("/proc") && !userns {
        mount_new("proc", "/proc", SAFE, None)?;
    }
    if !given("/sys") {
        if !userns {
            let flags = if spec.privileged { SAFE } else { SAFE | MsFlags::MS_RDONLY };
            mount_new("sysfs", "/sys", flags, None)?;
        }
        if Path::new("/sys/fs/cgroup").is_dir() {
            mount_cgroups(spec, cgroups, &sources)?;
        }
    }
    if !given("/dev") {
        devices::populate(spec, &sources, userns)?;
    }
    for (target, tree, directory) in &sources.mounts {
        attach(tree, target, *directory)?;
    }
    Ok(())
}

/// Takes away what the container may not write or see.
pub(super) fn lock(spec: &Spec) -> Result<()> {
    for path in &spec.readonly_paths {
        readonly(path)?;
    }
    for path in &spec.masked_paths {
        mask(path)?;
    }
    if spec.readonly_rootfs {
        let root = open_path(Path::new("/")).map_err(|e| text(Path::new("/"), e))?;
        sys::mount_setattr(root.as_fd(), false, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })
            .map_err(|e| format!("make the root filesystem read-only: {e}"))?;
    }
    Ok(())
}

fn mount_cgroups(spec: &Spec, cgroups: &Cgroups, sources: &Sources) -> Result<()> {
    let base = Path::new("/sys/fs/cgroup");
    let readonly = if spec.privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    if cgroups.unified() {
        return match mount(Some("cgroup2"), base, Some("cgroup2"), SAFE | readonly, None::<&str>) {
            Err(nix::errno::Errno::EPERM | nix::errno::Errno::EBUSY) => Ok(()),
            other => other.map_err(|e| format!("mount cgroup2: {e}")),
        };
    }
    if sources.cgroups.is_empty() {
        return Ok(());
    }
    mount(Some("tmpfs"), base, Some("tmpfs"), SAFE, Some("mode=755"))
        .map_err(|e| format!("mount {base:?}: {e}"))?;
    for (name, tree) in &sources.cgroups {
        let target = base.join(name);
        make_dir(&target)?;
        let attr = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
        let attr = if spec.privileged { attr } else { attr | MOUNT_ATTR_RDONLY };
        sys::mount_setattr(tree.as_fd(), false, MountAttr { set: attr, ..MountAttr::default() })
            .map_err(|e| text(&target, e))?;
        attach(tree, &target, true)?;
    }
    for (link, to) in cgroups.links() {
        let _ = std::os::unix::fs::symlink(to, base.join(link));
    }
    if !spec.privileged {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | SAFE | MsFlags::MS_RDONLY;
        mount(None::<&str>, base, None::<&str>, flags, None::<&str>).map_err(|e| text(base, e))?;
    }
    Ok(())
}

fn readonly(path: &Path) -> Result<()> {
    let tree = match sys::open_tree_clone(path, true) {
        Ok(tree) => tree,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("readonly path {}", text(path, e))),
    };
    sys::mount_setattr(tree.as_fd(), true, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })
        .map_err(|e| format!("readonly path {}", text(path, e)))?;
    let fd = open_path(path).map_err(|e| text(path, e))?;
    sys::move_mount(tree.as_fd(), fd.as_fd()).map_err(|e| format!("readonly path {}", text(path, e)))
}

fn mask(path: &Path) -> Result<()> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES)) => {
            return Ok(());
        }
        Err(e) => return Err(format!("masked path {}", text(path, e))),
    };
    let result = if meta.is_dir() {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0k,nr_inodes=2"))
    } else {
        mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    result.map_err(|e| format!("masked path {}", text(path, e)))
}
