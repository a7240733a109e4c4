//! A container's devices: which it has, what its cgroup lets it do with them, and its `/dev`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod, umask};

use super::sources::Sources;
use super::{Result, SAFE, attach, make_dir, mount_new, text};
use crate::api::NamespaceMode;
use crate::cgroup::{Access, DeviceRule};
use crate::proto::{Spec, SpecNode};

/// A device to make: where, kind, number, mode, owner; and which of the host's it is.
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host: PathBuf,
    kind: SFlag,
    device: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The devices of every container: name and number.
pub(super) const ALWAYS: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

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
pub(super) fn described(node: &SpecNode) -> DeviceNode {
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
pub(super) fn below(host: &Path, target: &Path, depth: u32, nodes: &mut Vec<DeviceNode>) -> Result<()> {
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
            below(&entry.path(), &target.join(&name), depth + 1, nodes)?;
        } else if kind.is_block_device() || kind.is_char_device() {
            nodes.push(device_node(&entry.path(), target.join(&name))?);
        }
    }
    Ok(())
}

/// The device rules for a container's cgroup.
pub(in crate::shim) fn rules(spec: &Spec) -> Result<Vec<DeviceRule>> {
    if spec.privileged {
        return Ok(DeviceRule::everything());
    }
    let mut rules = DeviceRule::defaults();
    for device in &spec.devices {
        let mut nodes = Vec::new();
        below(&device.host_path, &device.container_path, 0, &mut nodes)?;
        for node in nodes {
            let kind = if node.kind == SFlag::S_IFBLK { 'b' } else { 'c' };
            let (major, minor) = (major(node.device), minor(node.device));
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

/// Makes `/dev` inside the new root.
pub(super) fn populate(spec: &Spec, sources: &Sources, userns: bool) -> Result<()> {
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
    let before = umask(Mode::empty());
    for (path, tree) in &sources.bound_devices {
        attach(tree, path, false)?;
    }
    if !userns {
        for (name, major, minor) in ALWAYS {
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
    umask(before);
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
