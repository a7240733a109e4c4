//! A container's filesystem, made inside its own new mount namespace, so that nothing of it ever shows on the host
//! and nothing has to be unmounted.
//!
//! The order matters: first every host path is taken hold of as a detached mount ([`Sources::collect`]), then the
//! overlay becomes the root ([`enter`]), and from there on all paths are the container's own: no symbolic link in
//! an image can point outside ([`populate`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::sandbox::UserNs;
use crate::api::{MountPropagation, NamespaceMode};
use crate::cgroup::{Access, Cgroups, DeviceRule};
use crate::proto::{Spec, SpecMount, SpecNode};
use crate::sys::{
    self, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MountAttr,
};

type Result<T> = std::result::Result<T, String>;

/// Detached mounts of everything that comes from the host.
pub(super) struct Sources {
    /// Target, mount, whether it is a directory.
    mounts: Vec<(PathBuf, OwnedFd, bool)>,
    cgroups: Vec<(String, OwnedFd)>,
    shm: Option<OwnedFd>,
    devices: Vec<DeviceNode>,
    /// A user namespace forbids making device nodes: then the host's are bound.
    bound_devices: Vec<(PathBuf, OwnedFd)>,
    /// In a user namespace `/proc` and `/sys` can only be mounted while the host's can still be seen.
    kernel: Vec<(&'static str, OwnedFd)>,
}

/// A device to make: where, kind, number, mode, owner; and which of the host's it is.
struct DeviceNode {
    path: PathBuf,
    host: PathBuf,
    kind: SFlag,
    device: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The devices of every container: name and number.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn text(path: &Path, e: impl std::fmt::Display) -> String {
    format!("{}: {e}", path.display())
}

fn device_node(host: &Path, target: PathBuf) -> Result<DeviceNode> {
    let meta = fs::metadata(host).map_err(|e| text(host, e))?;
    let kind = if meta.file_type().is_block_device() {
        SFlag::S_IFBLK
    } else if meta.file_type().is_char_device() {
        SFlag::S_IFCHR
    } else {
        return Err(format!("{} is not a device", host.display()));
    };
    Ok(DeviceNode {
        path: target,
        host: host.to_path_buf(),
        kind,
        device: meta.rdev(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}

/// A node that needs no look at the host's.
fn described(node: &SpecNode) -> DeviceNode {
    let kind = match node.kind {
        'b' => SFlag::S_IFBLK,
        'p' => SFlag::S_IFIFO,
        _ => SFlag::S_IFCHR,
    };
    DeviceNode {
        path: node.path.clone(),
        host: node.host.clone(),
        kind,
        device: makedev(u64::from(node.major), u64::from(node.minor)),
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
    }
}

/// Devices a container asked for: a single one, or all below a directory.
fn devices_of(host: &Path, target: &Path, depth: u32, nodes: &mut Vec<DeviceNode>) -> Result<()> {
    let meta =
        fs::metadata(host).map_err(|e| format!("error gathering device information: {}", text(host, e)))?;
    if !meta.is_dir() {
        nodes.push(device_node(host, target.to_path_buf())?);
        return Ok(());
    }
    for entry in fs::read_dir(host).map_err(|e| text(host, e))?.flatten() {
        let name = entry.file_name();
        let skip = ["pts", "shm", "fd", "mqueue", ".udev", ".lxc", ".lxd-mounts", "console"];
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() || skip.iter().any(|s| name == *s) || depth > 8 {
            continue;
        }
        if kind.is_dir() {
            devices_of(&entry.path(), &target.join(&name), depth + 1, nodes)?;
        } else if kind.is_block_device() || kind.is_char_device() {
            nodes.push(device_node(&entry.path(), target.join(&name))?);
        }
    }
    Ok(())
}

/// The device rules for a container's cgroup.
pub(super) fn device_rules(spec: &Spec) -> Result<Vec<DeviceRule>> {
    if spec.privileged {
        return Ok(DeviceRule::everything());
    }
    let mut rules = DeviceRule::defaults();
    for device in &spec.devices {
        let mut nodes = Vec::new();
        devices_of(&device.host_path, &device.container_path, 0, &mut nodes)?;
        for node in nodes {
            let kind = if node.kind == SFlag::S_IFBLK { 'b' } else { 'c' };
            let (major, minor) = (nix::sys::stat::major(node.device), nix::sys::stat::minor(node.device));
            let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
            rules.push(DeviceRule::new(kind, Some(major as u32), Some(minor as u32), Access::parse(access)));
        }
    }
    let numbered = spec.nodes.iter().filter(|n| n.kind != 'p');
    rules.extend(
        numbered.map(|n| DeviceRule::new(n.kind, Some(n.major), Some(n.minor), Access::parse(&n.access))),
    );
    Ok(rules)
}

impl Sources {
    /// Takes hold of everything the container needs from the host.
    pub(super) fn collect(spec: &Spec, cgroups: &Cgroups, userns: Option<&UserNs>) -> Result<Self> {
        let mut mounts = Vec::with_capacity(spec.mounts.len());
        for m in &spec.mounts {
            let tree = open_source(spec, m, userns)?;
            let directory = fs::File::from(tree.try_clone().map_err(|e| e.to_string())?)
                .metadata()
                .map_err(|e| text(&m.source, e))?
                .is_dir();
            mounts.push((m.target.clone(), tree, directory));
        }
        mounts.sort_by_key(|(target, _, _)| target.components().count());
        let shm = match spec.shm.as_os_str().is_empty() {
            true => None,
            false => Some(sys::open_tree_clone(&spec.shm, false).map_err(|e| text(&spec.shm, e))?),
        };
        let mut groups = Vec::new();
        if !cgroups.unified() {
            for (name, dir) in cgroups.mounts(&spec.cgroup) {
                groups.push((name, sys::open_tree_clone(&dir, false).map_err(|e| text(&dir, e))?));
            }
        }
        let mut devices = Vec::new();
        if spec.privileged {
            devices_of(Path::new("/dev"), Path::new("/dev"), 0, &mut devices)?;
        }
        for device in &spec.devices {
            devices_of(&device.host_path, &device.container_path, 0, &mut devices)?;
        }
        devices.extend(spec.nodes.iter().map(described));
        let mut bound_devices = Vec::new();
        if userns.is_some() {
            let names = DEVICES.iter().map(|(name, _, _)| Path::new("/dev").join(name));
            for (path, host) in
                names.map(|n| (n.clone(), n)).chain(devices.drain(..).map(|d| (d.path, d.host)))
            {
                let tree = sys::open_tree_clone(&host, false).map_err(|e| text(&host, e))?;
                bound_devices.push((path, tree));
            }
        }
        Ok(Self { mounts, cgroups: groups, shm, devices, bound_devices, kernel: Vec::new() })
    }

    /// Mounts the filesystems that show the kernel, inside the user namespace and before the host is out of sight.
    pub(super) fn mount_kernel(&mut self, spec: &Spec) -> Result<()> {
        let safe = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
        let proc =
            sys::new_filesystem(c"proc", &[], safe).map_err(|e| format!("mount proc at /proc: {e}"))?;
        self.kernel.push(("/proc", proc));
        let readonly = if spec.privileged { 0 } else { MOUNT_ATTR_RDONLY };
        match sys::new_filesystem(c"sysfs", &[], safe | readonly) {
            Ok(sysfs) => self.kernel.push(("/sys", sysfs)),
            // With the node's network it may not have its own; it then has none.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => return Err(format!("mount sysfs at /sys: {e}")),
        }
        Ok(())
    }
}

fn open_source(spec: &Spec, m: &SpecMount, userns: Option<&UserNs>) -> Result<OwnedFd> {
    let context = |e: &dyn std::fmt::Display| {
        format!("error mounting {:?} to rootfs at {:?}: {e}", m.source.display(), m.target.display())
    };
    if !m.layers.is_empty() {
        let tree = overlay(&spec.layer_root, &m.layers, None).map_err(|e| context(&e))?;
        let tree = if m.source.as_os_str().is_empty() {
            tree
        } else {
            sub_tree(&tree, &m.source).map_err(|e| context(&e))?
        };
        let attr = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        sys::mount_setattr(tree.as_fd(), false, MountAttr { set: attr, ..MountAttr::default() })
            .map_err(|e| context(&e))?;
        return Ok(tree);
    }
    if m.create_source && !m.source.exists() {
        fs::create_dir_all(&m.source).map_err(|e| context(&e))?;
    }
    let tree = sys::open_tree_clone(&m.source, true).map_err(|e| context(&e))?;
    if m.propagation == MountPropagation::Bidirectional {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| context(&e))?;
        shared(&table, &m.source).map_err(|e| context(&e))?;
    }
    let propagation = match m.propagation {
        MountPropagation::Private => libc::MS_PRIVATE,
        MountPropagation::HostToContainer => libc::MS_SLAVE,
        MountPropagation::Bidirectional => libc::MS_SHARED,
    };
    let attr = MountAttr { propagation, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), true, attr).map_err(|e| context(&e))?;
    if let Some(userns) = userns {
        idmap(&tree, userns, true).map_err(|e| {
            context(&format!("the filesystem cannot map ids for a pod with a user namespace of its own: {e}"))
        })?;
    }
    if m.readonly || m.recursive_readonly {
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), m.recursive_readonly, attr).map_err(|e| context(&e))?;
    }
    if m.attributes != 0 {
        let attr = MountAttr { set: m.attributes, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), false, attr).map_err(|e| context(&e))?;
    }
    Ok(tree)
}

/// Whether the mount that a path is on shares what is mounted below it: only then a container's mounts can reach
/// the host.
fn shared(mountinfo: &str, path: &Path) -> Result<()> {
    let on = mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let mountpoint = fields.nth(4)?;
            let is_shared = fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"));
            path.starts_with(mountpoint).then_some((mountpoint, is_shared))
        })
        // The longest, and of those on top of each other the last.
        .max_by_key(|(mountpoint, _)| mountpoint.len());
    match on {
        Some((_, true)) => Ok(()),
        Some((mountpoint, false)) => Err(format!(
            "path {:?} is mounted on {mountpoint:?} but it is not a shared mount",
            path.display()
        )),
        None => Err(format!("path {:?} is on no mount", path.display())),
    }
}

/// Shows a detached mount's ids as those inside a user namespace.
fn idmap(tree: &OwnedFd, userns: &UserNs, recursive: bool) -> io::Result<()> {
    let userns_fd = std::os::fd::AsRawFd::as_raw_fd(&userns.fd) as u64;
    sys::mount_setattr(
        tree.as_fd(),
        recursive,
        MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() },
    )
}

/// The root filesystem for a user namespace, detached: the layers with their ids mapped, and a writable layer that
/// belongs to its root. Runs in a mount namespace of this process's own, outside the user namespace. Leaves the
/// working directory where the root can be attached.
pub(super) fn mapped_overlay(spec: &Spec, dir: &Path, userns: &UserNs) -> Result<OwnedFd> {
    let place = dir.join("rootfs");
    let error =
        |e: &dyn std::fmt::Display| format!("mount overlay with mapped ids at {}: {e}", place.display());
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| error(&e))?;
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

/// The same with a detached mount, attaching it at the working directory: paths may be out of reach by now, and
/// an open directory would still be the one of the former mount namespace.
pub(super) fn enter_tree(tree: &OwnedFd) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| format!("make / a slave: {e}"))?;
    let place = open_path(Path::new(".")).map_err(|e| format!("open the working directory: {e}"))?;
    sys::move_mount(tree.as_fd(), place.as_fd()).map_err(|e| format!("attach the root filesystem: {e}"))?;
    nix::unistd::fchdir(tree).map_err(|e| format!("enter the root filesystem: {e}"))
}

/// A directory or file of a detached filesystem as a mount of its own.
fn sub_tree(tree: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    // Only attached mounts can be cloned on older kernels, so attach it for a moment, in our own namespace.
    let inside = sys::open_in_root(tree.as_fd(), path, libc::O_PATH)?;
    let magic = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inside)));
    match sys::open_tree_clone(&magic, false) {
        Ok(sub) => Ok(sub),
        Err(_) => {
            let holder = fs::File::open("/mnt").or_else(|_| fs::File::open("/tmp"))?;
            sys::move_mount(tree.as_fd(), holder.as_fd())?;
            sys::open_tree_clone(&magic, false)
        }
    }
}

/// An overlay as a detached mount. Layer names are relative, so that many fit.
fn overlay(layer_root: &Path, layers: &[String], writable: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    let c = |s: &std::ffi::OsStr| std::ffi::CString::new(s.as_encoded_bytes()).map_err(io::Error::other);
    let mut options: Vec<(std::ffi::CString, std::ffi::CString)> = Vec::new();
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

/// Mounts the overlay with `mount(2)`: one call, and known to every kernel.
fn mount_overlay(spec: &Spec, dir: &Path) -> Result<()> {
    std::env::set_current_dir(&spec.layer_root).map_err(|e| text(&spec.layer_root, e))?;
    let base = format!(
        "lowerdir={},upperdir={},workdir={}",
        spec.layers.join(":"),
        dir.join("upper").display(),
        dir.join("work").display()
    );
    if base.len() > 4000 {
        // Over a page: only the newer interface takes it.
        let tree = overlay(&spec.layer_root, &spec.layers, Some((&dir.join("upper"), &dir.join("work"))))
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

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    Ok(file.into())
}

/// Mounts the overlay and goes to where it is, so that [`Root`] can be made of it.
pub(super) fn enter(spec: &Spec, dir: &Path) -> Result<()> {
    // Mounts made here stay here, while unmounts on the host still arrive.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| format!("make / a slave: {e}"))?;
    mount_overlay(spec, dir)?;
    let root = dir.join("rootfs");
    std::env::set_current_dir(&root).map_err(|e| text(&root, e))
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
        make_dev(spec, &sources, userns)?;
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

fn make_dev(spec: &Spec, sources: &Sources, userns: bool) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    mount_new("tmpfs", "/dev", flags, Some("mode=755,size=65536k"))?;
    mount_new(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=0620,gid=5"),
    )
    .or_else(|_| {
        mount_new(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Some("newinstance,ptmxmode=0666,mode=0620"),
        )
    })?;
    mount_new("mqueue", "/dev/mqueue", SAFE, None)?;
    if let Some(shm) = &sources.shm {
        attach(shm, Path::new("/dev/shm"), true)?;
    } else {
        mount_new("tmpfs", "/dev/shm", SAFE, Some("mode=1777,size=65536k"))?;
    }
    let before = nix::sys::stat::umask(Mode::empty());
    for (path, tree) in &sources.bound_devices {
        attach(tree, path, false)?;
    }
    if !userns {
        for (name, major, minor) in DEVICES {
            let path = Path::new("/dev").join(name);
            mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
                .map_err(|e| text(&path, e))?;
        }
    }
    for node in &sources.devices {
        if let Some(parent) = node.path.parent() {
            make_dir(parent)?;
        }
        match mknod(&node.path, node.kind, Mode::from_bits_truncate(node.mode), node.device) {
            Ok(()) => {
                let _ = std::os::unix::fs::chown(&node.path, Some(node.uid), Some(node.gid));
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(text(&node.path, e)),
        }
    }
    nix::sys::stat::umask(before);
    for (to, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        match std::os::unix::fs::symlink(to, link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(text(Path::new(link), e)),
            _ => {}
        }
    }
    if spec.pid == NamespaceMode::Node && Path::new("/proc/kcore").exists() {
        let _ = std::os::unix::fs::symlink("/proc/kcore", "/dev/core");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_mounts_reach_the_host() {
        let table = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw\n\
                     2 1 0:5 / /private rw - tmpfs t rw\n\
                     3 2 0:6 / /private/pods rw master:3 shared:9 - tmpfs t rw\n";
        assert!(shared(table, Path::new("/var/lib")).is_ok());
        assert!(shared(table, Path::new("/privateer")).is_ok());
        assert!(shared(table, Path::new("/private/pods/x")).is_ok());
        let error = shared(table, Path::new("/private/x")).unwrap_err();
        assert_eq!(error, "path \"/private/x\" is mounted on \"/private\" but it is not a shared mount");
    }
}
