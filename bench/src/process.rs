//! What the kernel says of a process: CPU time, memory, wake-ups. A process's number in, figures out.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

const KIB: f64 = 1024.0;

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    fn read(self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        fs::read_to_string(&path).context(path)
    }

    /// CPU seconds so far, of threads that ended too, in steps of a clock tick.
    pub fn cpu_s(self) -> anyhow::Result<f64> {
        let ticks_per_s = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(stat_fields(&self.read("stat")?, 11, 2).iter().sum::<f64>() / ticks_per_s as f64)
    }

    /// The process that started it.
    fn parent(self) -> Option<u32> {
        Some(*stat_fields(&self.read("stat").ok()?, 1, 1).first()? as u32)
    }

    /// A figure of `/proc/PID/status` that is in KiB, in MiB.
    fn status_mib(self, name: &str) -> anyhow::Result<f64> {
        line_kib(&self.read("status")?, name).map(|kib| kib / KIB).with_context(|| format!("no {name}"))
    }

    /// Resident memory.
    pub fn rss_mib(self) -> anyhow::Result<f64> {
        self.status_mib("VmRSS")
    }

    /// Resident memory that is not backed by files: heap and stacks.
    pub fn anonymous_mib(self) -> anyhow::Result<f64> {
        self.status_mib("RssAnon")
    }

    /// The most resident memory since [`Process::reset_peak`].
    pub fn peak_mib(self) -> anyhow::Result<f64> {
        self.status_mib("VmHWM")
    }

    /// Lets the peak count from now.
    pub fn reset_peak(self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.0);
        fs::write(&path, "5").context(path)
    }

    /// A figure of `/proc/PID/smaps_rollup`, in KiB.
    pub fn rollup_kib(self, name: &str) -> anyhow::Result<f64> {
        line_kib(&self.read("smaps_rollup")?, name).with_context(|| format!("no {name}"))
    }

    /// How often each of its threads went to sleep by itself: each time ends in a wake-up.
    pub fn sleeps(self) -> anyhow::Result<BTreeMap<OsString, f64>> {
        let mut sleeps = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let task = task?;
            // Threads come and go.
            let Ok(text) = fs::read_to_string(task.path().join("status")) else { continue };
            sleeps.insert(task.file_name(), line_kib(&text, "voluntary_ctxt_switches").unwrap_or_default());
        }
        Ok(sleeps)
    }

    /// How often threads that still are there woke up since `before`.
    pub fn wakeups_since(self, before: &BTreeMap<OsString, f64>) -> anyhow::Result<f64> {
        let now = self.sleeps()?;
        Ok(now.iter().map(|(thread, sleeps)| sleeps - before.get(thread).copied().unwrap_or_default()).sum())
    }
}

/// Fields of `/proc/PID/stat` after the command's name, which may hold blanks and brackets.
fn stat_fields(stat: &str, skip: usize, take: usize) -> Vec<f64> {
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(skip).take(take).filter_map(|n| n.parse().ok()).collect()
}

fn line_kib(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The pods' shims that were forked by `server`, which runs from the file `binary`.
pub fn shims(binary: &Path, server: Process) -> anyhow::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|n| n.parse().ok()).map(Process) else { continue };
        let exe: Option<PathBuf> = fs::read_link(format!("/proc/{}/exe", process.0)).ok();
        let is_shim = process.read("cmdline").is_ok_and(|c| c.split('\0').nth(1) == Some("shim"));
        // The server's own child is what forks them.
        if is_shim && exe.as_deref() == Some(binary) && process.parent() != Some(server.0) {
            found.push(process);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_odd_names() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 25 75 0 0";
        assert_eq!(stat_fields(stat, 1, 1), [1.0]);
        assert_eq!(stat_fields(stat, 11, 2), [25.0, 75.0]);
    }

    #[test]
    fn names_match_whole() {
        let text = "VmRSSX:\t1 kB\nVmRSS:\t  1536 kB\n";
        assert_eq!(line_kib(text, "VmRSS"), Some(1536.0));
        assert_eq!(line_kib(text, "Vm"), None);
    }

    #[test]
    fn own_process() {
        let own = Process(std::process::id());
        assert!(own.cpu_s().unwrap() >= 0.0);
        assert!(own.rss_mib().unwrap() > 0.5);
        assert!(own.parent().is_some());
    }
}
