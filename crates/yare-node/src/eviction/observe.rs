//! Where observations come from: the machine itself, or whatever a test says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use yare_runtime::{CgroupTree, Runtime};

use super::signals::{Observation, Observations, Signal};
use super::thresholds::Layout;
use crate::node::capacity::{Disk, disk, meminfo_bytes};

/// Says what is left on a node.
#[async_trait]
pub trait Observer: Send + Sync {
    /// How images and writable layers lie on disks.
    async fn layout(&self) -> Result<Layout, String>;
    /// What is left now. Called every ten seconds, so it has to be cheap.
    async fn observe(&self) -> Observations;
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) data_dir: PathBuf,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// The group of all pods, where its limit is kept.
    pub(crate) pods: Option<(CgroupTree, String)>,
    /// Where images and writable layers are.
    places: Mutex<Option<Places>>,
}

#[derive(Clone)]
struct Places {
    images: PathBuf,
    layout: Layout,
}

impl Machine {
    pub(crate) fn new(
        data_dir: PathBuf,
        runtime: Arc<dyn Runtime>,
        pods: Option<(CgroupTree, String)>,
    ) -> Self {
        Machine { data_dir, runtime, pods, places: Mutex::default() }
    }

    async fn places(&self) -> Result<Places, String> {
        if let Some(known) = self.places.lock().clone() {
            return Ok(known);
        }
        let images = self.runtime.image_fs().await.map_err(|e| e.to_string())?.mountpoint;
        let containers = self.runtime.container_fs().await.map_err(|e| e.to_string())?;
        let containers = containers.map_or_else(|| images.clone(), |fs| fs.mountpoint);
        let layout = layout(device(&self.data_dir), device(&images), device(&containers));
        let found = Places { images, layout };
        *self.places.lock() = Some(found.clone());
        Ok(found)
    }
}

/// The file system of the nearest directory that exists.
fn device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    path.ancestors().find_map(|p| std::fs::metadata(p).ok()).map(|m| m.dev())
}

fn layout(node: Option<u64>, images: Option<u64>, containers: Option<u64>) -> Layout {
    if images.is_none() || images == node {
        Layout::Single
    } else if containers == node {
        Layout::Split
    } else {
        Layout::ImageFs
    }
}

#[async_trait]
impl Observer for Machine {
    async fn layout(&self) -> Result<Layout, String> {
        self.places().await.map(|p| p.layout)
    }

    async fn observe(&self) -> Observations {
        let places = self.places().await.ok();
        let mut found = Observations::new();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        found.extend(machine_memory(&meminfo).map(|o| (Signal::MemoryAvailable, o)));
        found.extend(self.pods_memory().map(|o| (Signal::AllocatableMemory, o)));
        found.extend(process_ids().map(|o| (Signal::PidAvailable, o)));
        let node = disk(&self.data_dir);
        let images = match &places {
            Some(p) if p.layout != Layout::Single => disk(&p.images),
            _ => node,
        };
        let containers = match &places {
            Some(p) if p.layout == Layout::ImageFs => images,
            _ => node,
        };
        for (disk, space, inodes) in [
            (node, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
            (containers, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
        ] {
            let Some(disk) = disk else { continue };
            found.insert(space, space_of(&disk));
            // Some file systems make inodes as they go, and say so with zero.
            if disk.inodes > 0 {
                let left = Observation { available: disk.inodes_free, capacity: disk.inodes };
                found.insert(inodes, left);
            }
        }
        found
    }
}

fn space_of(disk: &Disk) -> Observation {
    Observation { available: disk.available_bytes, capacity: disk.total_bytes }
}

impl Machine {
    fn pods_memory(&self) -> Option<Observation> {
        let (tree, group) = self.pods.as_ref()?;
        let memory = tree.memory(group)?;
        let capacity = memory.limit_bytes?;
        Some(Observation { available: capacity.saturating_sub(memory.working_set_bytes), capacity })
    }
}

/// Upstream's measure: the capacity without the working set, which is all that is in use but inactive page cache.
fn machine_memory(meminfo: &str) -> Option<Observation> {
    let capacity = meminfo_bytes(meminfo, "MemTotal")?;
    let free = meminfo_bytes(meminfo, "MemFree")?;
    let inactive = meminfo_bytes(meminfo, "Inactive(file)").unwrap_or(0);
    Some(Observation { available: (free + inactive).min(capacity), capacity })
}

/// Threads count, too: each takes an id.
fn process_ids() -> Option<Observation> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
    let capacity = limits.into_iter().filter_map(number).min()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running: u64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Observation { available: capacity.saturating_sub(running), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let (a, b, c) = (Some(1), Some(2), Some(3));
        for (node, images, containers, want) in [
            (a, a, a, Layout::Single),
            (a, b, b, Layout::ImageFs),
            (a, b, a, Layout::Split),
            (a, b, c, Layout::ImageFs),
            (a, None, None, Layout::Single),
        ] {
            assert_eq!(layout(node, images, containers), want);
        }
    }

    #[test]
    fn memory_is_what_is_free_and_what_can_be_taken_back() {
        let meminfo = "MemTotal:  1000 kB\nMemFree:  300 kB\nMemAvailable: 900 kB\nInactive(file): 200 kB\n";
        assert_eq!(machine_memory(meminfo), Some(Observation { available: 500 << 10, capacity: 1000 << 10 }));
        assert_eq!(machine_memory(""), None);
    }

    #[test]
    fn this_machine_has_process_ids() {
        let ids = process_ids().unwrap();
        assert!(ids.available > 0 && ids.available < ids.capacity);
    }
}
