//! What pods use: memory and processes as the kernel counts them, disk by walking.
//!
//! Asked for when something has to be ranked, explained or held to a limit, never on an idle node's tick. A walk
//! counts blocks and inodes once, stays on its file system, and gives up after a bounded number of entries.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use yare_runtime::{ContainerState, ContainerStats};

use crate::kubelet::{Kubelet, PodState};
use crate::pod::dirs::PodDirs;
use crate::pod::qos;
use crate::view::{Pod, Volume};

/// Entries of one walk; what lies beyond is not counted.
const WALK_ENTRIES_MAX: usize = 2_000_000;

/// Disk space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// One container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    /// Working set.
    pub(crate) memory_bytes: Option<u64>,
    /// The writable layer.
    pub(crate) rootfs: Usage,
    pub(crate) logs: Usage,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodUsage {
    /// Working set of the pod as a whole, memory-backed volumes included.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) processes: u64,
    pub(crate) containers: Vec<ContainerUsage>,
    /// By volume: those that lie on the node.
    pub(crate) volumes: BTreeMap<String, Usage>,
    /// Writable layers, logs, local volumes on disk, the pod's own files.
    pub(crate) ephemeral: Usage,
}

/// Uses of the given pods, by uid. `disk`: also what takes a walk.
pub(crate) async fn of_pods(kubelet: &Kubelet, pods: &[PodState], disk: bool) -> HashMap<String, PodUsage> {
    let ids: Vec<String> = pods
        .iter()
        .flat_map(|p| &p.containers)
        .filter(|c| c.state == ContainerState::Running)
        .map(|c| c.id.clone())
        .collect();
    let stats: HashMap<String, ContainerStats> = match kubelet.runtime.container_stats(&ids).await {
        Ok(list) => list.into_iter().map(|s| (s.id.clone(), s)).collect(),
        Err(error) => {
            tracing::warn!(%error, "what containers use cannot be read");
            return HashMap::new();
        }
    };
    let mut uses = HashMap::new();
    let mut walks = Vec::new();
    for state in pods {
        let uid = state.pod.metadata.uid.clone();
        let mut usage = counted(kubelet, state, &stats);
        if usage.containers.is_empty() && !state.containers.is_empty() && !ids.is_empty() {
            // Nothing of it runs any more.
            usage.memory_bytes = Some(0);
        }
        uses.insert(uid.clone(), usage);
        if disk {
            let dirs = PodDirs::new(&kubelet.data_dir, &kubelet.log_dir, &state.pod);
            walks.push((uid, state.pod.clone(), dirs));
        }
    }
    // On a thread of its own: a walk may take long, and may wait for a disk.
    let walked = tokio::task::spawn_blocking(move || {
        walks.into_iter().map(|(uid, pod, dirs)| (uid, Walked::of(&pod, &dirs))).collect::<Vec<_>>()
    })
    .await
    .unwrap_or_default();
    for (uid, walked) in walked {
        if let Some(usage) = uses.get_mut(&uid) {
            walked.add_to(usage);
        }
    }
    uses
}

/// What the kernel counts.
fn counted(kubelet: &Kubelet, state: &PodState, stats: &HashMap<String, ContainerStats>) -> PodUsage {
    let mut usage = PodUsage::default();
    let mut memory = None;
    for container in &state.containers {
        let Some(s) = stats.get(&container.id) else { continue };
        *memory.get_or_insert(0) += s.memory_working_set_bytes;
        usage.processes += s.pids;
        usage.containers.push(ContainerUsage {
            name: container.name.clone(),
            memory_bytes: Some(s.memory_working_set_bytes),
            rootfs: Usage { bytes: s.writable_layer_bytes, inodes: s.writable_layer_inodes },
            logs: Usage::default(),
        });
    }
    let group = qos::cgroup_parent(&kubelet.resources.root_group(), &state.pod);
    let whole = kubelet.resources.tree.as_ref().and_then(|tree| tree.groups.memory(&group));
    usage.memory_bytes = whole.map(|m| m.working_set_bytes).or(memory);
    usage
}

/// What a walk over a pod's files found.
#[derive(Default)]
struct Walked {
    logs: BTreeMap<String, Usage>,
    volumes: BTreeMap<String, (Usage, bool)>,
    /// Files of the pod itself: its hosts file, logs of containers that are gone.
    own: Usage,
}

impl Walked {
    fn of(pod: &Pod, dirs: &PodDirs) -> Self {
        let mut found = Self::default();
        for container in pod.all_containers() {
            found.logs.insert(container.name.clone(), walk(&dirs.container_logs(&container.name)));
        }
        for volume in &pod.spec.volumes {
            if let Some((path, on_disk)) = place(volume, dirs) {
                let usage = if on_disk { walk(&path) } else { mounted(&path) };
                found.volumes.insert(volume.name.clone(), (usage, on_disk));
            }
        }
        found.own = walk(&dirs.hosts_file());
        found
    }

    fn add_to(self, usage: &mut PodUsage) {
        usage.ephemeral += self.own;
        for container in &mut usage.containers {
            container.logs = self.logs.get(&container.name).copied().unwrap_or_default();
            usage.ephemeral += container.rootfs;
        }
        for logs in self.logs.values() {
            usage.ephemeral += *logs;
        }
        for (name, (of_volume, on_disk)) in self.volumes {
            if on_disk {
                usage.ephemeral += of_volume;
            }
            usage.volumes.insert(name, of_volume);
        }
    }
}

/// Where a volume that lies on the node is, and whether it takes disk space of the pod's own.
fn place(volume: &Volume, dirs: &PodDirs) -> Option<(PathBuf, bool)> {
    if let Some(empty) = &volume.empty_dir {
        let path = dirs.volume("kubernetes.io/empty-dir", &volume.name);
        return match empty.medium.as_str() {
            "" => Some((path, true)),
            "Memory" => Some((path, false)),
            _ => None,
        };
    }
    volume.config_map.as_ref().map(|_| (dirs.volume("kubernetes.io/configmap", &volume.name), true))
}

/// Use of a file system that is a volume.
fn mounted(path: &Path) -> Usage {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return Usage::default() };
    Usage {
        bytes: stat.blocks().saturating_sub(stat.blocks_free()) * stat.fragment_size(),
        inodes: stat.files().saturating_sub(stat.files_free()),
    }
}

/// Blocks and inodes at and below `root`, without what is mounted there.
pub(crate) fn walk(root: &Path) -> Usage {
    let mut usage = Usage::default();
    let Ok(top) = std::fs::symlink_metadata(root) else { return usage };
    let device = top.dev();
    let mut linked = HashSet::new();
    let mut count = |meta: &std::fs::Metadata| {
        // A file with several names is there once.
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
            return;
        }
        usage += Usage { bytes: meta.blocks() * 512, inodes: 1 };
    };
    count(&top);
    let mut entries = 0;
    let mut open = if top.is_dir() { vec![root.to_path_buf()] } else { Vec::new() };
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            entries += 1;
            if entries > WALK_ENTRIES_MAX {
                tracing::warn!(root = %root.display(), "too many files to count them all");
                return usage;
            }
            // Does not follow links; what vanished meanwhile is not there.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            count(&meta);
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_count_each_file_once_and_follow_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::fs::write(root.join("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(root.join("a"), root.join("sub/same")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("link")).unwrap();
        let usage = walk(&root);
        // The two directories, the file once, the link.
        assert_eq!(usage.inodes, 4);
        assert!((98_304..400_000).contains(&usage.bytes), "{usage:?}");
        assert_eq!(walk(&dir.path().join("none")), Usage::default());
        assert_eq!(walk(&root.join("a")).inodes, 1);
    }
}
