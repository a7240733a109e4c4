//! The groups above pods, as a kubelet tends them: made, limited, read, and watched for pressure.
//!
//! A runtime owns the groups of its sandboxes and containers; those that hold all pods, or all of a class, belong
//! to the node. A group is named by its path relative to every hierarchy's root.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroups, keyed, read_u64};
use crate::api::Resources;
use crate::error::{IoContext as _, Result, RuntimeError};

/// Where v1 says "no limit": the largest multiple of a page.
const UNLIMITED: u64 = 1 << 62;

/// The machine's cgroups, for whoever tends those above pods.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    pub(super) cgroups: Cgroups,
}

/// Memory of a group and all groups below it, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupMemory {
    /// In use, page cache included.
    pub usage_bytes: u64,
    /// In use without inactive page cache: what the kernel cannot simply take back.
    pub working_set_bytes: u64,
    /// The limit; absent: none.
    pub limit_bytes: Option<u64>,
}

impl CgroupTree {
    /// Reads which hierarchies are mounted.
    pub fn detect() -> Self {
        Self { cgroups: Cgroups::detect() }
    }

    /// Whether v2 alone rules.
    pub fn unified(&self) -> bool {
        self.cgroups.unified()
    }

    /// Whether a group is there in any hierarchy.
    pub fn exists(&self, group: &str) -> bool {
        self.cgroups.exists(Path::new(group))
    }

    /// Makes a group with its parents where it is not there, and sets its limits; absent ones stay.
    pub fn ensure(&self, group: &str, resources: &Resources) -> Result<()> {
        self.cgroups.create(Path::new(group), resources).ctx(|| format!("cgroup {group}"))
    }

    /// Sets limits of a group that is there; absent ones stay.
    pub fn update(&self, group: &str, resources: &Resources) -> Result<()> {
        if !self.exists(group) {
            return Err(RuntimeError::NotFound { kind: "cgroup", id: group.to_owned() });
        }
        self.cgroups.apply(Path::new(group), resources).ctx(|| format!("cgroup {group}"))
    }

    /// Memory of a group; the root's is empty. Absent where no hierarchy counts it.
    pub fn memory(&self, group: &str) -> Option<GroupMemory> {
        let group = Path::new(group);
        let (dir, usage, limit, inactive) = match self.cgroups.v1_dir("memory", group) {
            Some(dir) => (dir, "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
            None => (self.cgroups.v2_dir(group)?, "memory.current", "memory.max", "inactive_file"),
        };
        let usage_bytes = read_u64(&dir.join(usage))?;
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        Some(GroupMemory {
            usage_bytes,
            working_set_bytes: usage_bytes.saturating_sub(keyed(&stat, inactive).unwrap_or(0)),
            limit_bytes: read_u64(&dir.join(limit)).filter(|l| *l < UNLIMITED),
        })
    }

    /// Processes and threads of a group and all groups below it.
    pub fn tasks(&self, group: &str) -> Option<u64> {
        let group = Path::new(group);
        let dir = self.cgroups.v1_dir("pids", group).or_else(|| self.cgroups.v2_dir(group))?;
        read_u64(&dir.join("pids.current"))
    }

    /// Whether swap can be limited.
    pub fn limits_swap(&self) -> bool {
        if let Some(root) = self.cgroups.v1_dir("memory", Path::new("")) {
            return root.join("memory.memsw.limit_in_bytes").exists();
        }
        // The root group has no such file; the one this process is in does, unless that is the root.
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
        let below = |group: &str| {
            self.cgroups.v2_dir(Path::new(group)).is_some_and(|d| d.join("memory.swap.max").exists())
        };
        below(&own) || below("kubepods")
    }

    /// Huge page sizes that can be limited, as cgroup files name them (`2MB`).
    pub fn hugepage_sizes(&self) -> Vec<String> {
        if self.cgroups.v1_dir("hugetlb", Path::new("")).is_none() && !self.cgroups.has_v2("hugetlb") {
            return Vec::new();
        }
        let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let mut sizes: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                Some(hugepage_name(kib << 10))
            })
            .collect();
        sizes.sort();
        sizes
    }

    /// Tells when a group's memory usage crosses `usage_bytes`: v1's own notification, exact and free. `None` where
    /// v1 does not count memory.
    pub fn memory_threshold(&self, group: &str, usage_bytes: u64) -> Option<Result<MemoryAlarm>> {
        let dir = self.cgroups.v1_dir("memory", Path::new(group))?;
        Some(
            threshold(&dir, usage_bytes)
                .ctx(|| format!("threshold of {usage_bytes} bytes in cgroup {group}")),
        )
    }

    /// Tells when tasks of a group (empty: of the machine) stall for memory: `stall_us` within `window_us`.
    /// `None` where the kernel has no pressure information.
    pub fn memory_stall(&self, group: &str, stall_us: u64, window_us: u64) -> Option<Result<MemoryAlarm>> {
        let path = match group {
            "" => PathBuf::from("/proc/pressure/memory"),
            group => self.cgroups.v2_dir(Path::new(group))?.join("memory.pressure"),
        };
        if !path.exists() {
            return None;
        }
        Some(stall(&path, stall_us, window_us).ctx(|| format!("trigger in {}", path.display())))
    }
}

/// A page size in bytes as cgroup files name it: `64KB`, `2MB`, `1GB`.
pub fn hugepage_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// News of memory pressure from the kernel. Dropping it ends the watch.
#[derive(Debug)]
pub struct MemoryAlarm {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// v1: a counter that the kernel raises.
    Threshold(AsyncFd<fs::File>),
    /// Pressure stall information: an exceptional condition of the file.
    Stall(AsyncFd<fs::File>),
}

impl MemoryAlarm {
    /// Waits for the next one. An error is final: the group is gone, or the kernel gave the watch up.
    pub async fn rung(&self) -> Result<()> {
        match &self.source {
            Source::Threshold(fd) => loop {
                let mut ready = fd.readable().await.ctx(|| "wait for a memory threshold".into())?;
                let mut counter = [0; 8];
                match ready.try_io(|fd| fd.get_ref().read(&mut counter)) {
                    Ok(read) => return read.map(drop).ctx(|| "read a memory threshold".into()),
                    Err(_) => continue,
                }
            },
            Source::Stall(fd) => {
                let mut ready =
                    fd.ready(Interest::PRIORITY).await.ctx(|| "wait for memory pressure".into())?;
                let gone = ready.ready().is_error();
                ready.clear_ready();
                if gone {
                    return Err(RuntimeError::FailedPrecondition("the watched cgroup is gone".into()));
                }
                Ok(())
            }
        }
    }
}

fn threshold(dir: &Path, usage_bytes: u64) -> io::Result<MemoryAlarm> {
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let usage = fs::File::open(dir.join("memory.usage_in_bytes"))?;
    let mut control = fs::OpenOptions::new().write(true).open(dir.join("cgroup.event_control"))?;
    let line = format!("{} {} {usage_bytes}", event.as_raw_fd(), usage.as_raw_fd());
    control.write_all(line.as_bytes())?;
    let file = fs::File::from(std::os::fd::OwnedFd::from(event));
    Ok(MemoryAlarm { source: Source::Threshold(watched(file, Interest::READABLE)?) })
}

fn stall(path: &Path, stall_us: u64, window_us: u64) -> io::Result<MemoryAlarm> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // The kernel wants its text ended by a zero.
    file.write_all(format!("some {stall_us} {window_us}\0").as_bytes())?;
    Ok(MemoryAlarm { source: Source::Stall(watched(file, Interest::PRIORITY)?) })
}

fn watched(file: fs::File, interest: Interest) -> io::Result<AsyncFd<fs::File>> {
    #[expect(
        deprecated,
        reason = "its successor is an unsafe function; a file keeps its descriptor open as it asks"
    )]
    AsyncFd::with_interest(file, interest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_names() {
        for (bytes, name) in [(64 << 10, "64KB"), (2 << 20, "2MB"), (1 << 30, "1GB")] {
            assert_eq!(hugepage_name(bytes), name);
        }
    }

    /// As root on a machine with cgroups: a group of our own is made, limited, read and taken away.
    #[test]
    fn a_group_is_limited_and_read() {
        let tree = CgroupTree::detect();
        if !nix::unistd::geteuid().is_root() || !tree.cgroups.lacking().is_empty() {
            return;
        }
        let group = format!("yare-tree-test-{}", std::process::id());
        let limits =
            Resources { memory_limit_bytes: Some(64 << 20), pids_limit: Some(50), ..Resources::default() };
        let none = tree.update(&group, &limits);
        let made = tree.ensure(&group, &limits);
        let memory = tree.memory(&group);
        let tasks = tree.tasks(&group);
        let _ = tree.cgroups.remove(Path::new(&group));
        assert!(none.is_err_and(|e| e.is_not_found()), "a group that is not there is not made by an update");
        made.unwrap();
        assert_eq!(memory.unwrap().limit_bytes, Some(64 << 20));
        assert_eq!(tasks, Some(0));
        assert!(!tree.exists(&group));
    }
}
