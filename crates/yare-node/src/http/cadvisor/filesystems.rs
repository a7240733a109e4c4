//! File systems on disks, and the names of disks.

use std::path::{Path, PathBuf};

use super::Disks;
use crate::node::capacity::disk;

/// A file system, and how much of it somebody uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSystem {
    /// `/dev/vda1`
    pub(super) device: String,
    pub(super) total_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// File systems that are told.
const FILE_SYSTEMS_MAX: usize = 256;

/// Device and mount point of each mounted disk, each disk once.
fn mounted(mountinfo: &str) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mountpoint), Some(device)) = (left.split(' ').nth(4), right.split(' ').nth(1)) else {
            continue;
        };
        if device.starts_with("/dev/")
            && !found.iter().any(|(d, _)| d == device)
            && found.len() < FILE_SYSTEMS_MAX
        {
            found.push((device.to_owned(), PathBuf::from(mountpoint)));
        }
    }
    found
}

fn measured(device: String, path: &Path) -> Option<FileSystem> {
    let d = disk(path)?;
    Some(FileSystem {
        device,
        total_bytes: d.total_bytes,
        used_bytes: d.total_bytes.saturating_sub(d.available_bytes),
        inodes: d.inodes,
        inodes_free: d.inodes_free,
    })
}

/// The file systems of the machine.
pub(super) fn of_machine() -> Vec<FileSystem> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounted(&text).into_iter().filter_map(|(device, path)| measured(device, &path)).collect()
}

/// The file system that holds a directory.
pub(super) fn holding(path: &Path) -> Option<FileSystem> {
    use std::os::unix::fs::MetadataExt as _;
    let found = path.ancestors().find_map(|p| std::fs::metadata(p).ok())?;
    let device = found.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    measured(device_name(u32::try_from(major).ok()?, u32::try_from(minor).ok()?)?, path)
}

/// `/dev/vda` of 253:0.
fn device_name(major: u32, minor: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}"))
}

/// Names of the machine's disks.
pub(super) fn disks() -> Disks {
    let entries = std::fs::read_dir("/sys/dev/block").into_iter().flatten().flatten();
    let named = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let (major, minor) = name.to_str()?.split_once(':')?;
        let numbers = (major.parse().ok()?, minor.parse().ok()?);
        Some((numbers, device_name(numbers.0, numbers.1)?))
    };
    entries.filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_told_once() {
        let text = "22 1 253:0 / / rw - ext4 /dev/vda rw\n\
            23 1 253:0 /x /y rw shared:1 - ext4 /dev/vda rw\n\
            24 1 0:5 / /proc rw - proc proc rw\n25 1 253:1 / /boot rw - vfat /dev/vdb rw\n";
        assert_eq!(
            mounted(text),
            [("/dev/vda".to_owned(), "/".into()), ("/dev/vdb".to_owned(), PathBuf::from("/boot"))]
        );
    }
}
