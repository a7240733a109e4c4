//! Whom to evict first, and what of a node can be won back before.
//!
//! One table: for each signal and layout of the disks, what counts as a pod's use, and which garbage helps.

use std::cmp::Ordering;
use std::sync::Arc;

use super::signals::{Signal, Starved};
use super::thresholds::Layout;
use super::usage::{PodUsage, Usage};
use crate::pod::totals;
use crate::view::Pod;

/// What of a pod's disk use lies on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measure {
    /// Writable layers.
    root: bool,
    logs: bool,
    /// Volumes on the node.
    volumes: bool,
}

const EVERYTHING: Measure = Measure { root: true, logs: true, volumes: true };
const LAYERS: Measure = Measure { root: true, logs: false, volumes: false };
const DATA: Measure = Measure { root: false, logs: true, volumes: true };
const NOTHING: Measure = Measure { root: false, logs: false, volumes: false };

/// Garbage whose removal helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Garbage {
    Containers,
    Images,
}

/// The three file systems, whose bytes and inodes are ranked alike.
#[derive(Clone, Copy)]
enum Fs {
    Node,
    Image,
    Container,
}

fn file_system(signal: Signal) -> Option<Fs> {
    match signal {
        Signal::NodeFsAvailable | Signal::NodeFsInodesFree => Some(Fs::Node),
        Signal::ImageFsAvailable | Signal::ImageFsInodesFree => Some(Fs::Image),
        Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree => Some(Fs::Container),
        Signal::MemoryAvailable | Signal::AllocatableMemory | Signal::PidAvailable => None,
    }
}

/// By layout: what is measured of pods, and what is removed before any of them.
fn row(layout: Layout, fs: Fs) -> (Measure, &'static [Garbage]) {
    use Garbage::{Containers, Images};
    match (layout, fs) {
        (Layout::Single, _) => (EVERYTHING, &[Containers, Images]),
        (Layout::ImageFs, Fs::Node) => (DATA, &[]),
        (Layout::ImageFs, Fs::Image | Fs::Container) => (LAYERS, &[Containers, Images]),
        (Layout::Split, Fs::Node | Fs::Container) => (EVERYTHING, &[Containers]),
        (Layout::Split, Fs::Image) => (NOTHING, &[Images]),
    }
}

/// What to remove before pods are evicted.
pub(crate) fn garbage(signal: Signal, layout: Layout) -> &'static [Garbage] {
    file_system(signal).map_or(&[], |fs| row(layout, fs).1)
}

/// A pod that may be evicted, with what it uses, if that is known.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) pod: Arc<Pod>,
    pub(crate) usage: Option<PodUsage>,
}

/// Sorts the candidates, the first to go first.
pub(crate) fn sort(signal: Signal, layout: Layout, candidates: &mut [Candidate]) {
    match file_system(signal) {
        None if signal == Signal::PidAvailable => {
            candidates.sort_by(|a, b| by_priority(a, b).then_with(|| known(a, b, &|c| processes(&c.usage))));
        }
        None => {
            let over = |c: &Candidate| memory(&c.usage) - request(&c.pod, "memory");
            sort_by_excess(candidates, &over, &over);
        }
        Some(fs) => {
            let measure = row(layout, fs).0;
            let inodes = signal.row().starved == Starved::Inodes;
            let used = move |c: &Candidate| disk(c, measure, inodes);
            // Nobody asks for inodes. The second comparison takes the bytes that were asked for off either, as
            // upstream's does.
            let exceeds = |c: &Candidate| used(c) - if inodes { 0 } else { request(&c.pod, STORAGE) };
            let over = |c: &Candidate| used(c) - request(&c.pod, STORAGE);
            sort_by_excess(candidates, &exceeds, &over);
        }
    }
}

const STORAGE: &str = "ephemeral-storage";

type Amount<'a> = &'a dyn Fn(&Candidate) -> i128;

/// Those that use more than they asked for, then lower priorities, then the largest use beyond the request.
fn sort_by_excess(candidates: &mut [Candidate], exceeds: Amount<'_>, over: Amount<'_>) {
    candidates.sort_by(|a, b| {
        let excess = known(a, b, &|c| i128::from(exceeds(c) > 0));
        excess.then_with(|| by_priority(a, b)).then_with(|| known(a, b, over))
    });
}

/// The larger first; before all those of whom nothing is known.
fn known(a: &Candidate, b: &Candidate, amount: Amount<'_>) -> Ordering {
    match (&a.usage, &b.usage) {
        (Some(_), Some(_)) => amount(b).cmp(&amount(a)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

fn by_priority(a: &Candidate, b: &Candidate) -> Ordering {
    a.pod.spec.priority.unwrap_or(0).cmp(&b.pod.spec.priority.unwrap_or(0))
}

fn memory(usage: &Option<PodUsage>) -> i128 {
    usage.as_ref().and_then(|u| u.memory_bytes).map_or(0, i128::from)
}

fn processes(usage: &Option<PodUsage>) -> i128 {
    usage.as_ref().map_or(0, |u| i128::from(u.processes))
}

/// Whole units of what the pod asks for.
fn request(pod: &Pod, name: &str) -> i128 {
    totals::requests(pod).get(name).map_or(0, |nanos| nanos / 1_000_000_000)
}

fn disk(candidate: &Candidate, measure: Measure, inodes: bool) -> i128 {
    let Some(usage) = &candidate.usage else { return 0 };
    let mut total = Usage::default();
    for container in &usage.containers {
        if measure.root {
            total += container.rootfs;
        }
        if measure.logs {
            total += container.logs;
        }
    }
    if measure.volumes {
        // Memory-backed ones are no use of a disk.
        let on_disk =
            candidate.pod.spec.volumes.iter().filter(|v| {
                v.config_map.is_some() || v.empty_dir.as_ref().is_some_and(|e| e.medium.is_empty())
            });
        for volume in on_disk {
            total += usage.volumes.get(&volume.name).copied().unwrap_or_default();
        }
    }
    i128::from(if inodes { total.inodes } else { total.bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eviction::usage::ContainerUsage;

    /// name, priority, memory request, memory in use (absent: unknown), disk request, layer, log bytes, processes.
    type Case = (&'static str, i32, &'static str, Option<u64>, &'static str, u64, u64, u64);

    fn candidate(
        (name, priority, memory_request, memory, disk_request, root, logs, processes): Case,
    ) -> Candidate {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {
                "requests": {"memory": memory_request, "ephemeral-storage": disk_request}}}]}}))
        .unwrap();
        let usage = memory.map(|bytes| PodUsage {
            memory_bytes: Some(bytes),
            processes,
            containers: vec![ContainerUsage {
                name: "c".into(),
                memory_bytes: Some(bytes),
                rootfs: Usage { bytes: root, inodes: root / 10 },
                logs: Usage { bytes: logs, inodes: 1 },
            }],
            ..PodUsage::default()
        });
        Candidate { pod: Arc::new(pod), usage }
    }

    #[test]
    fn orders() {
        let pods: &[Case] = &[
            ("within", 0, "100", Some(90), "100", 50, 10, 3),
            ("over", 5, "100", Some(150), "100", 200, 10, 9),
            ("over-cheap", 1, "100", Some(110), "100", 110, 10, 1),
            ("over-more", 5, "100", Some(300), "0", 500, 1, 2),
            ("unknown", 9, "100", None, "100", 0, 0, 0),
            ("important-within", 9, "400", Some(300), "900", 800, 90, 30),
        ];
        let cases: &[(Signal, Layout, [&str; 6])] = &[
            (
                Signal::MemoryAvailable,
                Layout::Single,
                ["unknown", "over-cheap", "over-more", "over", "within", "important-within"],
            ),
            (
                Signal::PidAvailable,
                Layout::Single,
                ["within", "over-cheap", "over", "over-more", "unknown", "important-within"],
            ),
            (
                Signal::NodeFsAvailable,
                Layout::Single,
                ["unknown", "over-cheap", "over-more", "over", "within", "important-within"],
            ),
            // On its own file system only logs count, and nobody writes more than was asked for but one.
            (
                Signal::NodeFsAvailable,
                Layout::ImageFs,
                ["unknown", "over-more", "within", "over-cheap", "over", "important-within"],
            ),
        ];
        for (signal, layout, want) in cases {
            let mut list: Vec<Candidate> = pods.iter().copied().map(candidate).collect();
            sort(*signal, *layout, &mut list);
            let names: Vec<&str> = list.iter().map(|c| c.pod.metadata.name.as_str()).collect();
            assert_eq!(names, want, "{signal:?} {layout:?}");
        }
    }

    #[test]
    fn garbage_goes_where_it_helps() {
        use Garbage::{Containers, Images};
        let cases: &[(Signal, Layout, &[Garbage])] = &[
            (Signal::MemoryAvailable, Layout::Single, &[]),
            (Signal::NodeFsInodesFree, Layout::Single, &[Containers, Images]),
            (Signal::NodeFsAvailable, Layout::ImageFs, &[]),
            (Signal::ContainerFsAvailable, Layout::ImageFs, &[Containers, Images]),
            (Signal::ImageFsAvailable, Layout::Split, &[Images]),
            (Signal::NodeFsAvailable, Layout::Split, &[Containers]),
        ];
        for (signal, layout, want) in cases {
            assert_eq!(garbage(*signal, *layout), *want, "{signal:?} {layout:?}");
        }
    }
}
