//! What the machine is and has: processors, memory, disk, kernel, identity.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use yare_schema::release::{KUBERNETES_VERSION, architecture};

use crate::resources::reservations;

/// What a node has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of processors.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file system that holds the data directory.
    pub ephemeral_storage_bytes: u64,
    /// Bytes of huge pages by resource name (`hugepages-2Mi`).
    pub hugepages: BTreeMap<String, u64>,
    /// Pods that may run.
    pub pods: u32,
    /// Process ids.
    pub pids: u64,
    /// Bytes of swap.
    pub swap_bytes: u64,
}

impl Capacity {
    /// Reads the machine. `data_dir` tells which file system counts.
    pub fn detect(data_dir: &Path, pods: u32) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Capacity {
            cpu_milli: processors() * 1000,
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
            ephemeral_storage_bytes: disk(data_dir).map_or(0, |d| d.total_bytes),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            pods,
            pids: process_ids(),
            swap_bytes: meminfo_bytes(&meminfo, "SwapTotal").unwrap_or(0),
        }
    }

    /// Lowers the number of pods to so many per processor (`podsPerCore`); 0 is no limit.
    pub(crate) fn limit_pods_per_core(&mut self, per_core: i32) {
        let limit = u64::try_from(per_core).unwrap_or(0) * (self.cpu_milli / 1000).max(1);
        if let Some(limit) = u32::try_from(limit).ok().filter(|limit| *limit > 0) {
            self.pods = self.pods.min(limit);
        }
    }

    /// `status.capacity`.
    pub(crate) fn capacity(&self) -> BTreeMap<String, String> {
        reservations::amounts(self).into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
    }
}

/// Tasks that the kernel lets there be.
fn process_ids() -> u64 {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
    limits.into_iter().filter_map(number).min().unwrap_or(32768)
}

/// A file system's space.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// The file system that holds `path`, or the nearest directory above it that exists.
pub(crate) fn disk(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let fragment = stat.fragment_size();
    Some(Disk {
        total_bytes: stat.blocks() * fragment,
        available_bytes: stat.blocks_available() * fragment,
        inodes: stat.files(),
        inodes_free: stat.files_available(),
    })
}

fn processors() -> u64 {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let listed = text.lines().filter(|l| l.starts_with("processor")).count();
    let count = if listed > 0 { listed } else { std::thread::available_parallelism().map_or(1, usize::from) };
    u64::try_from(count).unwrap_or(1)
}

/// A line of `/proc/meminfo` in bytes.
pub(crate) fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn hugepages(root: &Path) -> BTreeMap<String, u64> {
    std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages: u64 =
                std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            let size = match kib {
                k if k % (1 << 20) == 0 => format!("{}Gi", k >> 20),
                k if k % (1 << 10) == 0 => format!("{}Mi", k >> 10),
                k => format!("{k}Ki"),
            };
            Some((format!("hugepages-{size}"), pages * kib * 1024))
        })
        .collect()
}

/// Which start of the machine this is, by the kernel.
pub(crate) fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// `status.nodeInfo`.
pub(crate) fn node_info(runtime_version: &str, boot_id: &str) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let os_image = release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned());
    json!({
        "machineID": read("/etc/machine-id"),
        "systemUUID": read("/sys/class/dmi/id/product_uuid"),
        "bootID": boot_id,
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "osImage": os_image,
        "containerRuntimeVersion": runtime_version,
        "kubeletVersion": KUBERNETES_VERSION,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        assert_eq!(meminfo_bytes("MemTotal:       100 kB\nMemAvailable: 5 kB\n", "MemAvailable"), Some(5120));
        assert_eq!(meminfo_bytes("MemTotal: 1 kB\n", "Mem"), None);
    }
}
