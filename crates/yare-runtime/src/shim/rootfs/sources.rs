//! What a container has from the host: each thing is taken hold of as a detached mount, while its path still means
//! the host's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::devices::{self, DeviceNode};
use super::{Result, overlay, text};
use crate::api::MountPropagation;
use crate::cgroup::Cgroups;
use crate::proto::{Spec, SpecMount};
use crate::shim::sandbox::UserNs;
use crate::sys::{
    self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr,
};

/// Detached mounts of everything that comes from the host.
pub(in crate::shim) struct Sources {
    /// Target, mount, whether it is a directory.
    pub(super) mounts: Vec<(PathBuf, OwnedFd, bool)>,
    pub(super) cgroups: Vec<(String, OwnedFd)>,
    pub(super) shm: Option<OwnedFd>,
    pub(super) devices: Vec<DeviceNode>,
    /// A user namespace forbids making device nodes: then the host's are bound.
    pub(super) bound_devices: Vec<(PathBuf, OwnedFd)>,
    /// In a user namespace `/proc` and `/sys` can only be mounted while the host's can still be seen.
    pub(super) kernel: Vec<(&'static str, OwnedFd)>,
}

impl Sources {
    /// Takes hold of everything the container needs from the host.
    pub(in crate::shim) fn collect(spec: &Spec, cgroups: &Cgroups, userns: Option<&UserNs>) -> Result<Self> {
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
        let mut nodes = Vec::new();
        if spec.privileged {
            devices::below(Path::new("/dev"), Path::new("/dev"), 0, &mut nodes)?;
        }
        for device in &spec.devices {
            devices::below(&device.host_path, &device.container_path, 0, &mut nodes)?;
        }
        nodes.extend(spec.nodes.iter().map(devices::described));
        let mut bound_devices = Vec::new();
        if userns.is_some() {
            let names = devices::ALWAYS.iter().map(|(name, _, _)| Path::new("/dev").join(name));
            for (path, host) in names.map(|n| (n.clone(), n)).chain(nodes.drain(..).map(|d| (d.path, d.host)))
            {
                let tree = sys::open_tree_clone(&host, false).map_err(|e| text(&host, e))?;
                bound_devices.push((path, tree));
            }
        }
        Ok(Self { mounts, cgroups: groups, shm, devices: nodes, bound_devices, kernel: Vec::new() })
    }

    /// Mounts the filesystems that show the kernel, inside the user namespace and before the host is out of sight.
    pub(in crate::shim) fn mount_kernel(&mut self, spec: &Spec) -> Result<()> {
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
        let tree = overlay::detached(&spec.layer_root, &m.layers, None).map_err(|e| context(&e))?;
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
        overlay::idmap(&tree, userns, true).map_err(|e| {
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

/// A directory or file of a detached filesystem as a mount of its own.
fn sub_tree(tree: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    // Only attached mounts can be cloned on older kernels, so attach it for a moment, in our own namespace.
    let inside = sys::open_in_root(tree.as_fd(), path, libc::O_PATH)?;
    let magic = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
    match sys::open_tree_clone(&magic, false) {
        Ok(sub) => Ok(sub),
        Err(_) => {
            let holder = fs::File::open("/mnt").or_else(|_| fs::File::open("/tmp"))?;
            sys::move_mount(tree.as_fd(), holder.as_fd())?;
            sys::open_tree_clone(&magic, false)
        }
    }
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
