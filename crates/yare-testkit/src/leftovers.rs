//! What a cluster left on the machine: processes, mounts, cgroups.
//!
//! In flows what a running cluster owns ([`Owned::of`]), out flows one line for each thing still there.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Says what was wrong while a server was taken away, with what it wrote itself where its test failed.
///
/// # Panics
/// Something was wrong, and the test does not panic already.
pub(crate) fn tell(name: &str, log: &str, problems: &[String]) {
    let shown = if thread::panicking() || !problems.is_empty() { log } else { "" };
    let lines = shown.lines().chain(problems.iter().map(String::as_str));
    let text: String = lines.map(|line| format!("{name}: {line}\n")).collect();
    // Where the test's output is closed, nobody wants to know.
    let _ = std::io::stderr().write_all(text.as_bytes());
    if !problems.is_empty() && !thread::panicking() {
        panic!("{name} could not be taken away whole");
    }
}

/// What belongs to a cluster.
#[derive(Debug, Default)]
pub(crate) struct Owned {
    /// Inodes of its network namespaces: the machine's and each pod's.
    namespaces: BTreeSet<u64>,
    /// The pods' namespaces, held: the kernel gives the inode of one that is gone to the next, which may be another
    /// cluster's.
    _held: Vec<fs::File>,
    /// Identifiers of its pods, which name their cgroups.
    pods: BTreeSet<String>,
    /// Its directories.
    directories: Vec<PathBuf>,
}

impl Owned {
    /// What the cluster in these directories owns now; `machine` is its machine's network namespace.
    pub(crate) fn of(machine: Option<u64>, directory: &Path, run_directory: &Path) -> Self {
        let names = |path: PathBuf| {
            fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
        };
        let made = [run_directory.join("netns"), crate::containerd::namespaces(run_directory)];
        let held: Vec<_> =
            made.into_iter().flat_map(names).filter_map(|path| fs::File::open(path).ok()).collect();
        let inode = |file: &fs::File| file.metadata().ok().map(|m| m.ino());
        let pods = names(directory.join("data/agent/pods"));
        Self {
            namespaces: held.iter().filter_map(inode).chain(machine).collect(),
            _held: held,
            pods: pods.iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect(),
            directories: vec![directory.to_owned(), run_directory.to_owned()],
        }
    }

    /// The processes in its network namespaces.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let inside = |entry: &fs::DirEntry| {
            fs::metadata(entry.path().join("ns/net")).is_ok_and(|m| self.namespaces.contains(&m.ino()))
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter(inside).filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }

    /// What stays, one line each. A process that was told to end takes a moment.
    pub(crate) fn remaining_in_time(&self) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let left = self.remaining();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is still there, one line each.
    fn remaining(&self) -> Vec<String> {
        let mut found = Vec::new();
        // Threads of the test itself are inside for a while.
        for pid in self.processes().into_iter().filter(|pid| *pid != std::process::id()) {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.push(format!("process {pid}: {}", line.replace('\0', " ")));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for path in mounts.lines().filter_map(|l| l.split(' ').nth(4)) {
            if self.directories.iter().any(|d| Path::new(path).starts_with(d)) {
                found.push(format!("mount {path}"));
            }
        }
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if self.directories.iter().any(|d| Path::new(file.trim_end()).starts_with(d)) {
                found.push(format!("loop device {} of {}", entry.file_name().display(), file.trim_end()));
            }
        }
        let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
        hierarchies.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
        for pod in &self.pods {
            for place in hierarchies.iter().flat_map(|h| {
                ["kubepods", "kubepods/burstable", "kubepods/besteffort"].map(|class| h.join(class))
            }) {
                let cgroup = place.join(format!("pod{pod}"));
                if cgroup.exists() {
                    found.push(format!("cgroup {}", cgroup.display()));
                }
            }
        }
        found.extend(
            self.directories.iter().filter(|d| d.exists()).map(|d| format!("directory {}", d.display())),
        );
        found
    }
}
