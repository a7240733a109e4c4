//! The machine as the resource managers see it: processors, cores, sockets, caches, NUMA nodes and their memory.
//!
//! In: `/sys` and `/proc` below a root, so that tests bring machines of their own. Out: a [`Machine`].

use std::collections::BTreeMap;
use std::path::Path;

use super::cpu::set::CpuSet;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Logical processors that are online, by id.
    pub cpus: BTreeMap<u32, CpuPlace>,
    /// NUMA nodes, by id ascending; a machine without NUMA has one.
    pub nodes: Vec<NumaNode>,
}

/// Where a logical processor sits. Ids of cores and caches are unique in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuPlace {
    /// Physical core: the lowest of its processors.
    pub core: u32,
    /// Socket.
    pub socket: u32,
    /// NUMA node.
    pub node: u32,
    /// Last-level cache that is shared within a socket: the lowest of its processors.
    pub cache: u32,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumaNode {
    /// Its id.
    pub id: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Huge pages: page size in KiB → how many.
    pub hugepages: BTreeMap<u64, u64>,
    /// How far the nodes are, by id; empty: not known.
    pub distances: Vec<u64>,
}

impl Machine {
    /// Reads the machine below a root: `/` for this one.
    pub fn read(root: &Path) -> Self {
        let system = root.join("sys/devices/system");
        let text = |path: &Path| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).ok();
        let online = text(&system.join("cpu/online"))
            .and_then(|t| CpuSet::parse(&t).ok())
            .filter(|set| !set.is_empty())
            .unwrap_or_else(|| {
                CpuSet::of(0..std::thread::available_parallelism().map_or(1, |n| n.get() as u32))
            });
        let mut nodes = Vec::new();
        let mut node_of = BTreeMap::new();
        let node_ids =
            text(&system.join("node/online")).and_then(|t| CpuSet::parse(&t).ok()).unwrap_or_default();
        for id in node_ids.iter() {
            let dir = system.join(format!("node/node{id}"));
            let cpus = text(&dir.join("cpulist")).and_then(|t| CpuSet::parse(&t).ok()).unwrap_or_default();
            node_of.extend(cpus.iter().map(|cpu| (cpu, id)));
            let meminfo = text(&dir.join("meminfo")).unwrap_or_default();
            nodes.push(NumaNode {
                id,
                memory_bytes: node_memory(&meminfo).unwrap_or(0),
                hugepages: hugepages(&dir.join("hugepages")),
                distances: text(&dir.join("distance"))
                    .map(|t| t.split_whitespace().filter_map(|n| n.parse().ok()).collect())
                    .unwrap_or_default(),
            });
        }
        if nodes.is_empty() {
            let meminfo = text(&root.join("proc/meminfo")).unwrap_or_default();
            nodes.push(NumaNode {
                id: 0,
                memory_bytes: crate::node::capacity::meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
                hugepages: hugepages(&root.join("sys/kernel/mm/hugepages")),
                distances: vec![10],
            });
        }
        let mut cpus = BTreeMap::new();
        for cpu in online.iter() {
            let dir = system.join(format!("cpu/cpu{cpu}"));
            let number = |path: &str| text(&dir.join(path)).and_then(|t| t.parse::<i64>().ok());
            let lowest = |path: &Path| {
                text(path)
                    .and_then(|t| CpuSet::parse(&t).ok())
                    .and_then(|s| s.intersection(&online).iter().next())
            };
            let socket =
                number("topology/physical_package_id").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            let core = lowest(&dir.join("topology/thread_siblings_list")).unwrap_or(cpu);
            let cache = uncore(&dir).and_then(|path| lowest(&path)).unwrap_or(core);
            let node = node_of.get(&cpu).copied().unwrap_or_else(|| nodes[0].id);
            cpus.insert(cpu, CpuPlace { core, socket, node, cache });
        }
        Machine { cpus, nodes }
    }
}

/// The list of processors that share the highest cache of one.
fn uncore(cpu: &Path) -> Option<std::path::PathBuf> {
    let caches = std::fs::read_dir(cpu.join("cache")).ok()?;
    caches
        .flatten()
        .filter_map(|entry| {
            let level: u32 = std::fs::read_to_string(entry.path().join("level")).ok()?.trim().parse().ok()?;
            Some((level, entry.path().join("shared_cpu_list")))
        })
        .filter(|(level, _)| *level >= 3)
        .max()
        .map(|(_, path)| path)
}

/// `Node 0 MemTotal: 123 kB`.
fn node_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.contains(" MemTotal:"))?;
    let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn hugepages(dir: &Path) -> BTreeMap<u64, u64> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let kib =
                entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages =
                std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some((kib, pages))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_machine_with_two_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join("sys/devices/system").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        };
        write("cpu/online", "0-7");
        write("node/online", "0-1");
        for node in 0..2 {
            write(&format!("node/node{node}/cpulist"), if node == 0 { "0-1,4-5" } else { "2-3,6-7" });
            write(
                &format!("node/node{node}/meminfo"),
                &format!("Node {node} MemTotal:  2048 kB\nNode {node} MemFree: 1 kB"),
            );
            write(&format!("node/node{node}/distance"), if node == 0 { "10 21" } else { "21 10" });
            write(&format!("node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"), "3");
        }
        for cpu in 0..8u32 {
            let core = cpu % 4;
            write(&format!("cpu/cpu{cpu}/topology/physical_package_id"), &(core / 2).to_string());
            write(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{core},{}", core + 4));
            write(&format!("cpu/cpu{cpu}/cache/index2/level"), "2");
            write(&format!("cpu/cpu{cpu}/cache/index3/level"), "3");
            let shared = if core < 2 { "0-1,4-5" } else { "2-3,6-7" };
            write(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), shared);
        }
        let machine = Machine::read(dir.path());
        assert_eq!(machine.cpus.len(), 8);
        assert_eq!(machine.cpus[&6], CpuPlace { core: 2, socket: 1, node: 1, cache: 2 });
        assert_eq!(machine.nodes[1].memory_bytes, 2 << 20);
        assert_eq!(machine.nodes[1].hugepages, BTreeMap::from([(2048, 3)]));
        assert_eq!(machine.nodes[1].distances, [21, 10]);
    }

    #[test]
    fn a_machine_that_says_nothing_has_one_node() {
        let machine = Machine::read(Path::new("/nonexistent"));
        assert_eq!(machine.nodes.len(), 1);
        assert!(machine.cpus.values().all(|c| c.node == 0 && c.socket == 0));
        assert!(!machine.cpus.is_empty());
    }
}
