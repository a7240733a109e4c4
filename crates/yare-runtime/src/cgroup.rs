//! Control groups by plain file I/O: v1, hybrid and v2 hierarchies behind one set of operations.
//!
//! [`Cgroups::detect`] reads the mount table once. A group is named by its path relative to every hierarchy's root.
//! In hybrid setups the controllers are v1's, while killing and CPU time come from the (controller-less) v2
//! hierarchy, which is quicker and race-free.

mod devices;
mod limits;
mod tree;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, access};

use crate::api::{ContainerStats, Resources};
pub(crate) use devices::{Access, DeviceRule};
pub use tree::{CgroupTree, GroupMemory, MemoryAlarm, hugepage_name};
pub use usage::{GroupCpu, GroupIo, GroupMemoryUsage, GroupUsage, Stall, StallTimes};

/// v1 controllers a container always joins, where they exist.
const ALWAYS: [&str; 6] = ["cpu", "memory", "pids", "devices", "freezer", "blkio"];
/// v1 controllers a container joins when a limit asks for them.
const ON_DEMAND: [&str; 2] = ["cpuset", "hugetlb"];

/// The machine's hierarchies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    /// v2's mount point, if mounted.
    pub v2: Option<PathBuf>,
    /// Controllers usable in v2.
    v2_controllers: Vec<String>,
    /// v1 controller → mount point.
    v1: BTreeMap<String, PathBuf>,
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(|e| at(path, e))?;
    file.write_all(value.as_bytes())
        .map_err(|e| io::Error::new(e.kind(), format!("write {value:?} to {}: {e}", path.display())))
}

fn at(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn read_u64(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok()
}

/// The value after `key ` in a flat keyed file.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Cgroups {
    /// Reads which hierarchies are mounted.
    pub fn detect() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mountpoint) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => {
                    // The first one is the system's own; later ones belong to somebody's tests.
                    found.v2.get_or_insert_with(|| PathBuf::from(mountpoint));
                }
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    for option in options.split(',') {
                        if ALWAYS.contains(&option) || ON_DEMAND.contains(&option) || option == "cpuacct" {
                            found.v1.entry(option.to_owned()).or_insert_with(|| PathBuf::from(mountpoint));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(v2) = &found.v2 {
            let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
            found.v2_controllers = controllers.split_whitespace().map(str::to_owned).collect();
            // Without CPU time from v2, v1 has to count it; without cgroup.kill it has to freeze.
            found.v1.remove("freezer");
        }
        found
    }

    /// Controllers without which no limit can be kept.
    pub const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

    /// Which of those the machine does not offer.
    pub fn lacking(&self) -> Vec<&'static str> {
        let there = |controller: &str| {
            self.has_v2(controller) || self.v1_dir(controller, Path::new("")).is_some_and(|dir| dir.is_dir())
        };
        Self::NEEDED.into_iter().filter(|controller| !there(controller)).collect()
    }

    /// A hierarchy in which no group can be made, if there is one.
    pub fn read_only(&self) -> Option<&Path> {
        let mounts = self.v2.iter().chain(self.v1.values()).map(PathBuf::as_path);
        mounts.filter(|m| m.is_dir()).find(|m| access(*m, AccessFlags::W_OK).is_err())
    }

    /// Whether v2 alone rules.
    pub fn unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }

    fn v1_dir(&self, controller: &str, group: &Path) -> Option<PathBuf> {
        self.v1.get(controller).map(|m| m.join(group))
    }

    fn v2_dir(&self, group: &Path) -> Option<PathBuf> {
        self.v2.as_ref().map(|m| m.join(group))
    }

    /// v1 directories of a group that a container joins, each once (cpu and cpuacct often share a mount).
    fn v1_dirs(&self, group: &Path, resources: &Resources) -> Vec<(String, PathBuf)> {
        let mut dirs: Vec<(String, PathBuf)> = Vec::new();
        let cpuset = resources.cpuset_cpus.as_deref().is_some_and(|c| !c.is_empty())
            || resources.cpuset_mems.as_deref().is_some_and(|c| !c.is_empty());
        let accounting = if self.v2.is_none() { Some("cpuacct") } else { None };
        let wanted = ALWAYS
            .into_iter()
            .chain(cpuset.then_some("cpuset"))
            .chain((!resources.hugepages.is_empty()).then_some("hugetlb"))
            .chain(accounting);
        for controller in wanted {
            if let Some(dir) = self.v1_dir(controller, group)
                && !dirs.iter().any(|(_, d)| *d == dir)
            {
                dirs.push((controller.to_owned(), dir));
            }
        }
        dirs
    }

    /// Whether a group is there in any hierarchy.
    pub fn exists(&self, group: &Path) -> bool {
        self.v2.iter().chain(self.v1.values()).any(|m| m.join(group).is_dir())
    }

    /// Makes a group in all hierarchies and sets its limits.
    pub fn create(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        again(|| self.create_once(group, resources))
    }

    /// Makes a group and moves the calling process, which must have one thread, into it.
    pub fn join(&self, group: &Path) -> io::Result<()> {
        again(|| {
            self.create_once(group, &Resources::default())?;
            self.enter(group, true)
        })
    }

    fn create_once(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        if let Some(v2) = &self.v2 {
            let dir = v2.join(group);
            if !dir.is_dir() {
                self.make_v2(v2, group)?;
            }
        }
        for (controller, dir) in self.v1_dirs(group, resources) {
            make_v1(&controller, &self.v1[&controller], &dir)?;
        }
        self.apply(group, resources)
    }

    /// Makes the v2 directories, delegating every controller on the way down.
    fn make_v2(&self, root: &Path, group: &Path) -> io::Result<()> {
        let mut dir = root.to_path_buf();
        for component in group.components() {
            for controller in &self.v2_controllers {
                let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
                if !enabled.split_whitespace().any(|c| c == controller) {
                    // A controller that cannot be delegated shows when a limit needs it.
                    let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
                }
            }
            dir.push(component);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(at(&dir, e)),
            }
        }
        Ok(())
    }

    fn has_v2(&self, controller: &str) -> bool {
        self.v2_controllers.iter().any(|c| c == controller)
    }

    /// Limits a container's devices.
    pub fn allow_devices(&self, group: &Path, rules: &[DeviceRule]) -> io::Result<()> {
        if let Some(dir) = self.v1_dir("devices", group) {
            write(&dir.join("devices.deny"), "a")?;
            let allow = dir.join("devices.allow");
            let mut file = fs::OpenOptions::new().write(true).open(&allow).map_err(|e| at(&allow, e))?;
            for rule in rules {
                file.write_all(rule.to_string().as_bytes())?;
            }
            Ok(())
        } else if let Some(dir) = self.v2_dir(group) {
            match devices::attach_program(&dir, rules) {
                // Inside another container without CAP_BPF the outer one's device limits hold.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other,
            }
        } else {
            Ok(())
        }
    }

    /// A descriptor of the group in v2, to fork into.
    pub fn open_v2(&self, group: &Path) -> Option<OwnedFd> {
        let dir = self.v2_dir(group)?;
        fs::File::open(dir).ok().map(OwnedFd::from)
    }

    /// Moves the calling process into a group of every hierarchy; v2 only if `v2`. It must have one thread.
    ///
    /// In v1 by `tasks`: a whole process (`cgroup.procs`) waits until no process of the machine forks or ends, which
    /// is an RCU grace period of several milliseconds; a thread that moves itself does not.
    pub fn enter(&self, group: &Path, v2: bool) -> io::Result<()> {
        if v2 && let Some(dir) = self.v2_dir(group) {
            write(&dir.join("cgroup.procs"), "0")?;
        }
        let mut done: Vec<PathBuf> = Vec::new();
        for controller in self.v1.keys() {
            let dir = self.v1[controller].join(group);
            if dir.is_dir() && !done.contains(&dir) {
                write(&dir.join("tasks"), "0")?;
                done.push(dir);
            }
        }
        Ok(())
    }

    /// Directories of a group's hierarchies with the name each has below `/sys/fs/cgroup` (v1 and hybrid).
    pub fn mounts(&self, group: &Path) -> Vec<(String, PathBuf)> {
        let mut mounts: Vec<(String, PathBuf)> = Vec::new();
        for mountpoint in self.v1.values() {
            let dir = mountpoint.join(group);
            if let Some(name) = mountpoint.file_name()
                && dir.is_dir()
                && !mounts.iter().any(|(_, d)| *d == dir)
            {
                mounts.push((name.to_string_lossy().into_owned(), dir));
            }
        }
        mounts
    }

    /// The v1 controllers and the directory names they are mounted under, for compatibility links (`cpu` → `cpu,cpuacct`).
    pub fn links(&self) -> Vec<(String, String)> {
        self.v1
            .iter()
            .filter_map(|(controller, mountpoint)| {
                let name = mountpoint.file_name()?.to_string_lossy().into_owned();
                (name != *controller).then(|| (controller.clone(), name))
            })
            .collect()
    }

    /// Processes of a group and the groups below.
    pub fn pids(&self, group: &Path) -> Vec<i32> {
        let dir = self
            .v2_dir(group)
            .or_else(|| self.v1_dir("pids", group))
            .or_else(|| self.v1_dir("memory", group));
        let mut pids = Vec::new();
        if let Some(dir) = dir {
            collect_pids(&dir, &mut pids, 0);
        }
        pids
    }

    /// Kills every process of a group. Does not wait for them.
    pub fn kill(&self, group: &Path) {
        if let Some(dir) = self.v2_dir(group)
            && write(&dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let freezer = self.v1_dir("freezer", group).map(|d| d.join("freezer.state"));
        if let Some(state) = &freezer {
            let _ = write(state, "FROZEN");
        }
        for pid in self.pids(group) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(state) = &freezer {
            let _ = write(state, "THAWED");
        }
    }

    /// Kills, waits until it is empty (at most `patience`), and removes the group with all groups below.
    pub fn destroy(&self, group: &Path, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.remove(group) {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => {
                    self.kill(group);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Removes an empty group everywhere.
    pub fn remove(&self, group: &Path) -> io::Result<()> {
        if group.as_os_str().is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        let roots = self.v2.iter().chain(self.v1.values());
        for dir in roots.map(|m| m.join(group)) {
            if let Err(e) = remove_tree(&dir, 0)
                && e.kind() != io::ErrorKind::NotFound
            {
                result = Err(at(&dir, e));
            }
        }
        result
    }

    /// Removes a group where nothing is in it; whether it is gone everywhere.
    pub fn remove_empty(&self, group: &Path) -> bool {
        let roots = self.v2.iter().chain(self.v1.values());
        for dir in roots.map(|m| m.join(group)) {
            let _ = fs::remove_dir(dir);
        }
        !self.exists(group)
    }

    /// How often the kernel killed in this group for want of memory.
    pub fn oom_kills(&self, group: &Path) -> u64 {
        let file = match self.v1_dir("memory", group) {
            Some(dir) => dir.join("memory.oom_control"),
            None => self.v2_dir(group).unwrap_or_default().join("memory.events"),
        };
        keyed(&fs::read_to_string(file).unwrap_or_default(), "oom_kill").unwrap_or(0)
    }

    /// Usage of a group.
    pub fn stats(&self, group: &Path, stats: &mut ContainerStats) {
        let unified = self.v2_dir(group).and_then(|dir| fs::read_to_string(dir.join("cpu.stat")).ok());
        if let Some(text) = unified {
            stats.cpu_usage_ns = keyed(&text, "usage_usec").unwrap_or(0) * 1000;
        } else if let Some(dir) = self.v1_dir("cpuacct", group) {
            stats.cpu_usage_ns = read_u64(&dir.join("cpuacct.usage")).unwrap_or(0);
        }
        let (usage, limit, inactive, rss, dir) = if let Some(dir) = self.v1_dir("memory", group) {
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file", "total_rss", dir)
        } else {
            ("memory.current", "memory.max", "inactive_file", "anon", self.v2_dir(group).unwrap_or_default())
        };
        let text = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        stats.memory_usage_bytes = read_u64(&dir.join(usage)).unwrap_or(0);
        stats.memory_working_set_bytes =
            stats.memory_usage_bytes.saturating_sub(keyed(&text, inactive).unwrap_or(0));
        stats.memory_rss_bytes = keyed(&text, rss).unwrap_or(0);
        stats.page_faults = keyed(&text, "total_pgfault").or_else(|| keyed(&text, "pgfault")).unwrap_or(0);
        stats.major_page_faults =
            keyed(&text, "total_pgmajfault").or_else(|| keyed(&text, "pgmajfault")).unwrap_or(0);
        // v1 says "no limit" with the largest multiple of a page.
        stats.memory_limit_bytes = read_u64(&dir.join(limit)).filter(|l| *l < 1 << 62).unwrap_or(0);
        let pids = self.v1_dir("pids", group).or_else(|| self.v2_dir(group)).unwrap_or_default();
        stats.pids = read_u64(&pids.join("pids.current")).unwrap_or(0);
    }

    /// Makes moving processes quick (`favordynmods`). Best effort: old kernels lack it, and an unprivileged
    /// mount of v2 forbids it.
    pub fn favor_moves(&self) {
        if let Some(v2) = &self.v2 {
            let _ = crate::sys::cgroup2_favor_dynmods(v2);
        }
    }
}

/// Does it again when a group vanished meanwhile: another process of ours may be taking empty ones away.
fn again(mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    const ATTEMPTS: usize = 5;
    for _ in 1..ATTEMPTS {
        match work() {
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {}
            other => return other,
        }
    }
    work()
}

/// Makes a v1 directory and its parents; a cpuset inherits what its parent has. Answers whether it was new.
fn make_v1(controller: &str, root: &Path, dir: &Path) -> io::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.starts_with(root) && dir != root => {
            if let Some(parent) = dir.parent() {
                make_v1(controller, root, parent)?;
            }
            match fs::create_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at(dir, e)),
                _ => {}
            }
        }
        Err(e) => return Err(at(dir, e)),
    }
    if controller == "cpuset"
        && let Some(parent) = dir.parent()
    {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(parent.join(file))?;
            write(&dir.join(file), value.trim())?;
        }
    }
    Ok(true)
}

fn remove_tree(dir: &Path, depth: u32) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if depth < 16 && e.kind() != io::ErrorKind::NotFound => {
            // Busy: perhaps only because a container made groups below.
            for entry in fs::read_dir(dir)?.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path(), depth + 1)?;
                }
            }
            fs::remove_dir(dir)
        }
        other => other,
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>, depth: u32) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    if depth > 16 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), pids, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let hybrid = "\
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
31 30 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n\
34 30 0:30 / /cg/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
35 30 0:31 / /cg/memory rw - cgroup cgroup rw,memory\n\
36 30 0:31 / /cg/freezer rw - cgroup cgroup rw,freezer\n";
        let c = Cgroups::parse(hybrid);
        assert!(!c.unified());
        assert_eq!(c.v2.as_deref(), Some(Path::new("/cg/unified")));
        assert_eq!(c.v1["memory"], Path::new("/cg/memory"));
        assert!(!c.v1.contains_key("freezer"), "v2 freezes and kills");
        assert_eq!(
            c.links(),
            [("cpu".to_owned(), "cpu,cpuacct".to_owned()), ("cpuacct".to_owned(), "cpu,cpuacct".to_owned())]
        );
        assert_eq!(c.v1_dirs(Path::new("a/b"), &Resources::default()).len(), 2);
        let unified = Cgroups::parse("31 30 0:27 / /cg rw - cgroup2 cgroup2 rw\n");
        assert!(unified.unified());
    }

    #[test]
    fn keyed_files_are_read() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(keyed("low 0\noom_group_kill 1\n", "oom_kill"), None);
    }
}
