//! Which processors a container gets: whole sockets, NUMA nodes, caches and cores where they fit, and as few others as
//! can be.
//!
//! In: the machine, the processors that are free, how many are wanted. Out: a set of that size. The order in which
//! parts of the machine are looked at is upstream's, so that the same requests end on the same processors.

use std::collections::{BTreeMap, BTreeSet};

use super::set::CpuSet;
use crate::managers::machine::{CpuPlace, Machine};

/// How processors are taken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// Each from another core, where that goes.
    pub(crate) spread: bool,
    /// From as few last-level caches as can be.
    pub(crate) by_cache: bool,
}

/// A part of a machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Node,
    Socket,
    Cache,
    Core,
}

impl Level {
    fn of(self, place: &CpuPlace) -> u32 {
        match self {
            Level::Node => place.node,
            Level::Socket => place.socket,
            Level::Cache => place.cache,
            Level::Core => place.core,
        }
    }
}

type Cpus = BTreeMap<u32, CpuPlace>;

fn members(cpus: &Cpus, level: Level, id: u32) -> CpuSet {
    CpuSet::of(cpus.iter().filter(|(_, place)| level.of(place) == id).map(|(cpu, _)| *cpu))
}

fn ids(cpus: &Cpus, level: Level) -> BTreeSet<u32> {
    cpus.values().map(|place| level.of(place)).collect()
}

/// How many processors a core has, on average.
pub(crate) fn cpus_per_core(machine: &Machine) -> usize {
    machine.cpus.len() / ids(&machine.cpus, Level::Core).len().max(1)
}

/// Processors on their way from free to taken.
struct Taking<'a> {
    machine: &'a Cpus,
    free: Cpus,
    needed: usize,
    taken: CpuSet,
    /// NUMA nodes hold sockets, and not the other way round.
    nodes_first: bool,
    how: How,
}

impl<'a> Taking<'a> {
    fn new(machine: &'a Machine, available: &CpuSet, wanted: usize, how: How) -> Self {
        let cpus = &machine.cpus;
        Taking {
            free: cpus.iter().filter(|(cpu, _)| available.contains(**cpu)).map(|(c, p)| (*c, *p)).collect(),
            needed: wanted,
            taken: CpuSet::default(),
            nodes_first: ids(cpus, Level::Socket).len() >= ids(cpus, Level::Node).len(),
            machine: cpus,
            how,
        }
    }

    fn done(&self) -> bool {
        self.needed == 0
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.free.retain(|cpu, _| !cpus.contains(*cpu));
        self.needed = self.needed.saturating_sub(cpus.len());
        self.taken = self.taken.union(cpus);
    }

    /// Parts of a level below a part of another one, those with the fewest free processors first.
    fn within(&self, level: Level, outer: Option<(Level, u32)>) -> Vec<u32> {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for place in self.free.values().filter(|p| outer.is_none_or(|(l, id)| l.of(p) == id)) {
            counts.entry(level.of(place)).or_default();
        }
        for place in self.free.values() {
            if let Some(count) = counts.get_mut(&level.of(place)) {
                *count += 1;
            }
        }
        let mut order: Vec<(usize, u32)> = counts.into_iter().map(|(id, count)| (count, id)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    fn nested(&self, outer: (Level, Vec<u32>), inner: Level) -> Vec<u32> {
        outer.1.iter().flat_map(|id| self.within(inner, Some((outer.0, *id)))).collect()
    }

    fn nodes(&self) -> Vec<u32> {
        if self.nodes_first {
            self.within(Level::Node, None)
        } else {
            self.nested((Level::Socket, self.sockets()), Level::Node)
        }
    }

    fn sockets(&self) -> Vec<u32> {
        if self.nodes_first {
            self.nested((Level::Node, self.nodes()), Level::Socket)
        } else {
            self.within(Level::Socket, None)
        }
    }

    fn cores(&self) -> Vec<u32> {
        if self.nodes_first {
            self.nested((Level::Socket, self.sockets()), Level::Core)
        } else {
            self.nested((Level::Node, self.nodes()), Level::Core)
        }
    }

    fn caches(&self) -> Vec<u32> {
        self.nested((Level::Node, self.nodes()), Level::Cache)
    }

    fn order(&self, level: Level) -> Vec<u32> {
        match level {
            Level::Node => self.nodes(),
            Level::Socket => self.sockets(),
            Level::Cache => self.caches(),
            Level::Core => self.cores(),
        }
    }

    /// Single processors in the order they are taken.
    fn singles(&self) -> Vec<u32> {
        let (level, parts) =
            if self.how.spread { (Level::Socket, self.sockets()) } else { (Level::Core, self.cores()) };
        parts.into_iter().flat_map(|id| members(&self.free, level, id).iter().collect::<Vec<_>>()).collect()
    }

    /// How many processors a part has when all of it is free.
    fn whole(&self, level: Level, id: u32) -> usize {
        match level {
            // As upstream counts: machines are taken to be regular in these.
            Level::Socket | Level::Core => self.machine.len() / ids(self.machine, level).len().max(1),
            Level::Node | Level::Cache => members(self.machine, level, id).len(),
        }
    }

    /// Takes parts that are free as a whole, as long as all of one is needed.
    fn take_whole(&mut self, level: Level) {
        let free: Vec<u32> = self
            .order(level)
            .into_iter()
            .filter(|id| members(&self.free, level, *id).len() == self.whole(level, *id))
            .collect();
        for id in free {
            let cpus = members(self.machine, level, id);
            if self.needed >= cpus.len() {
                self.take(&cpus);
            }
        }
    }

    /// Takes whole caches, and the rest from one cache, when it has as many as are needed.
    fn take_caches(&mut self) {
        let per_cache = self.machine.len() / ids(self.machine, Level::Cache).len().max(1);
        for cache in self.caches() {
            if self.needed >= per_cache {
                self.take_whole(Level::Cache);
            }
            if self.done() {
                return;
            }
            self.take_part_of_cache(cache);
            if self.done() {
                return;
            }
        }
    }

    fn take_part_of_cache(&mut self, cache: u32) {
        let per_core = (self.machine.len() / ids(self.machine, Level::Core).len().max(1)).max(1);
        let cores: Vec<u32> = {
            let inside = self.free.values().filter(|p| p.cache == cache);
            inside.map(|p| p.core).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let cores = &cores[..cores.len().min(self.needed.div_ceil(per_core))];
        let mut cpus: Vec<u32> =
            self.free.iter().filter(|(_, p)| cores.contains(&p.core)).map(|(cpu, _)| *cpu).collect();
        if !self.needed.is_multiple_of(2) && per_core > 1 && cpus.len() > self.needed {
            // An odd number: the last core gives one of its two.
            cpus.pop();
        }
        if cpus.len() == self.needed {
            self.take(&CpuSet::of(cpus));
        }
    }

    fn take_singles(&mut self) {
        for cpu in self.singles() {
            self.take(&CpuSet::of([cpu]));
            if self.done() {
                return;
            }
        }
    }
}

/// Takes processors so that they are close together.
pub(crate) fn packed(
    machine: &Machine,
    available: &CpuSet,
    wanted: usize,
    how: How,
) -> Result<CpuSet, String> {
    let mut taking = Taking::new(machine, available, wanted, how);
    if taking.done() {
        return Ok(CpuSet::default());
    }
    if wanted > taking.free.len() {
        return Err(format!(
            "not enough cpus available to satisfy request: requested={wanted}, available={}",
            available.len()
        ));
    }
    let levels = if taking.nodes_first { [Level::Node, Level::Socket] } else { [Level::Socket, Level::Node] };
    for level in levels {
        taking.take_whole(level);
        if taking.done() {
            return Ok(taking.taken);
        }
    }
    if how.by_cache {
        taking.take_caches();
    }
    if !taking.done() && !how.spread {
        taking.take_whole(Level::Core);
    }
    if !taking.done() {
        taking.take_singles();
    }
    if taking.done() { Ok(taking.taken) } else { Err("failed to allocate cpus".to_owned()) }
}

/// Takes processors so that, when one NUMA node is not enough, each of as few nodes as can be gives as many as the
/// others, in groups of `group` (KEP-2902).
pub(crate) fn distributed(
    machine: &Machine,
    available: &CpuSet,
    wanted: usize,
    group: usize,
    how: How,
) -> Result<CpuSet, String> {
    let how = How { by_cache: false, ..how };
    let group = group.max(1);
    if !wanted.is_multiple_of(group) {
        return packed(machine, available, wanted, how);
    }
    let mut taking = Taking::new(machine, available, wanted, how);
    if taking.done() {
        return Ok(CpuSet::default());
    }
    if wanted > taking.free.len() {
        return packed(machine, available, wanted, how);
    }
    let nodes = taking.nodes();
    let free: BTreeMap<u32, usize> =
        nodes.iter().map(|n| (*n, members(&taking.free, Level::Node, *n).len())).collect();
    let all_nodes = ids(&machine.cpus, Level::Node).len().max(1);
    let groups_per_node = machine.cpus.len().div_ceil(group).div_ceil(all_nodes).max(1);
    let groups = wanted.div_ceil(group);
    for size in groups.div_ceil(groups_per_node)..=groups.min(nodes.len()) {
        let mut best: Option<(f64, Split)> = None;
        choose(&nodes, size, &mut |combination| {
            if best.as_ref().is_some_and(|(balance, _)| *balance == 0.0) {
                return;
            }
            let split = split(&free, combination, wanted, group);
            if let Some((balance, split)) = split
                && best.as_ref().is_none_or(|(b, _)| balance < *b)
            {
                best = Some((balance, split));
            }
        });
        let Some((_, split)) = best else { continue };
        for node in &split.nodes {
            let from = members(&taking.free, Level::Node, *node);
            taking.take(&packed(machine, &from, split.each, how)?);
        }
        while !taking.done() {
            let before = taking.needed;
            for node in &split.remainder {
                let from = members(&taking.free, Level::Node, *node);
                if taking.done() || from.len() < group {
                    continue;
                }
                taking.take(&packed(machine, &from, group, how)?);
            }
            if taking.needed == before {
                return Err(format!("accounting error, not enough CPUs allocated, remaining: {before}"));
            }
        }
        return Ok(taking.taken);
    }
    packed(machine, available, wanted, how)
}

/// How a request is split over NUMA nodes.
struct Split {
    nodes: Vec<u32>,
    /// Processors from each.
    each: usize,
    /// Nodes that give a group more, in turn.
    remainder: Vec<u32>,
}

/// The best split over these nodes, and how uneven it leaves all nodes.
fn split(free: &BTreeMap<u32, usize>, nodes: &[u32], wanted: usize, group: usize) -> Option<(f64, Split)> {
    let of = |node: &u32| free.get(node).copied().unwrap_or(0);
    let each = wanted / nodes.len() / group * group;
    let enough = nodes.iter().map(of).sum::<usize>() >= wanted
        && nodes.iter().map(|n| of(n) / group).sum::<usize>() * group >= wanted
        && nodes.iter().all(|n| of(n) >= each);
    if !enough {
        return None;
    }
    let mut after = free.clone();
    for node in nodes {
        if let Some(left) = after.get_mut(node) {
            *left -= each;
        }
    }
    let left = wanted - each * nodes.len();
    if left == 0 {
        return Some((spread(&after), Split { nodes: nodes.to_vec(), each, remainder: Vec::new() }));
    }
    let able: Vec<u32> =
        nodes.iter().copied().filter(|n| after.get(n).is_some_and(|l| *l >= group)).collect();
    let mut best: Option<(f64, Vec<u32>)> = None;
    for size in (1..=able.len()).rev() {
        choose(&able, size, &mut |subset| {
            let mut after = after.clone();
            let mut left = left;
            while left > 0 {
                let before = left;
                for node in subset {
                    if let Some(have) = after.get_mut(node)
                        && left > 0
                        && *have >= group
                    {
                        *have -= group;
                        left = left.saturating_sub(group);
                    }
                }
                if left == before {
                    // These alone have not enough whole groups.
                    return;
                }
            }
            let balance = spread(&after);
            if best.as_ref().is_none_or(|(b, _)| balance < *b) {
                best = Some((balance, subset.to_vec()));
            }
        });
    }
    best.map(|(balance, remainder)| (balance, Split { nodes: nodes.to_vec(), each, remainder }))
}

/// The standard deviation, to three digits.
fn spread(counts: &BTreeMap<u32, usize>) -> f64 {
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    let number = counts.len().max(1) as f64;
    let mean = round(counts.values().map(|c| *c as f64).sum::<f64>() / number);
    round((counts.values().map(|c| (*c as f64 - mean).powi(2)).sum::<f64>() / number).sqrt())
}

/// Calls back with every choice of `size` of these, in order.
fn choose(from: &[u32], size: usize, each: &mut impl FnMut(&[u32])) {
    fn go(from: &[u32], size: usize, taken: &mut Vec<u32>, each: &mut impl FnMut(&[u32])) {
        if size == 0 {
            return each(taken);
        }
        for i in 0..=from.len().saturating_sub(size) {
            if i < from.len() {
                taken.push(from[i]);
                go(&from[i + 1..], size - 1, taken, each);
                taken.pop();
            }
        }
    }
    go(from, size, &mut Vec::new(), each);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Core, socket, node and cache of a processor.
    type Place = fn(u32) -> (u32, u32, u32, u32);

    /// Machines that upstream's own tests use, by processor number.
    pub(crate) fn machine(name: &str) -> Machine {
        let place = |core, socket, node, cache| CpuPlace { core, socket, node, cache };
        let (cpus, of): (u32, Place) = match name {
            // One socket, two threads a core.
            "single" => (8, |c| (c % 4, 0, 0, 0)),
            // Two sockets, each a node.
            "dual" => (12, |c| (c % 6, c % 2, c % 2, c % 2)),
            // Two sockets of two nodes.
            "multi" => (80, |c| (c % 40, c % 40 / 20, c % 40 / 10, c % 40 / 10)),
            // Two nodes of two sockets.
            "sockets" => (80, |c| (c % 40, c % 40 / 10, c % 40 / 20, c % 40 / 10)),
            // Two sockets of four nodes.
            "large" => (256, |c| (c % 128, c % 128 / 64, c % 128 / 16, c % 128 / 16)),
            // No threads, four processors a cache.
            "caches" => (16, |c| (c, 0, 0, c / 4)),
            "caches of two sockets" => (16, |c| (c, c / 8, 0, c / 4)),
            "caches of two nodes" => (16, |c| (c, 0, c / 8, c / 4)),
            // Two threads a core, four cores a cache.
            "caches with threads" => (16, |c| (c % 8, 0, 0, c % 8 / 4)),
            other => panic!("no machine {other}"),
        };
        let cpus: Cpus = (0..cpus)
            .map(|cpu| {
                let (core, socket, node, cache) = of(cpu);
                (cpu, place(core, socket, node, cache))
            })
            .collect();
        let nodes = ids(&cpus, Level::Node).into_iter();
        let nodes = nodes.map(|id| crate::managers::machine::NumaNode { id, ..Default::default() });
        Machine { nodes: nodes.collect(), cpus }
    }

    fn set(text: &str) -> CpuSet {
        CpuSet::parse(text).unwrap()
    }

    #[test]
    fn processors_are_packed() {
        let all = How::default();
        let cached = How { by_cache: true, ..all };
        for (name, how, free, wanted, want) in [
            (
                "single",
                all,
                "0,2,4,6",
                5,
                "not enough cpus available to satisfy request: requested=5, available=4",
            ),
            ("single", all, "0-7", 0, ""),
            ("single", all, "0-7", 1, "0"),
            ("single", all, "1,3,5,6,7", 1, "6"),
            ("single", all, "0-7", 2, "0,4"),
            ("single", all, "0-7", 8, "0-7"),
            ("single", all, "0-3,6", 2, "2,6"),
            ("dual", all, "0-11", 6, "0,2,4,6,8,10"),
            ("dual", all, "1-5,7-11", 1, "2"),
            ("dual", all, "0-11", 8, "0-2,4,6-8,10"),
            ("multi", all, "0-79", 40, "0-19,40-59"),
            ("multi", all, "0-79", 20, "0-9,40-49"),
            ("multi", all, "10-39,50-79", 20, "10-19,50-59"),
            ("multi", all, "0-79", 60, "0-29,40-69"),
            ("multi", all, "1-39,41-79", 60, "10-39,50-79"),
            ("multi", all, "0-79", 64, "0-31,40-71"),
            ("caches", cached, "1-15", 10, "1-2,4-11"),
            ("dual", cached, "1-5,7-11", 1, "2"),
            ("caches of two sockets", cached, "0-15", 4, "0-3"),
            ("caches of two sockets", cached, "2-15", 6, "2-7"),
            ("caches of two sockets", cached, "8-15", 4, "8-11"),
            ("caches of two nodes", cached, "3-8,12", 2, "4-5"),
            ("caches with threads", cached, "2-7,10-15", 6, "4-6,12-14"),
            ("caches with threads", cached, "1-7,9-15", 10, "1,4-7,9,12-15"),
            // Spread: one thread of each core.
            ("single", How { spread: true, ..all }, "0-7", 4, "0-3"),
            ("dual", How { spread: true, ..all }, "0-11", 2, "0,2"),
        ] {
            let got = packed(&machine(name), &set(free), wanted, how).map_or_else(|e| e, |s| s.to_string());
            assert_eq!(got, want, "{wanted} of {free} of {name}");
        }
    }

    #[test]
    fn processors_are_distributed() {
        let how = How::default();
        for (name, free, wanted, group, want) in [
            (
                "single",
                "0,2,4,6",
                5,
                1,
                "not enough cpus available to satisfy request: requested=5, available=4",
            ),
            ("single", "1,3,5,6,7", 1, 1, "6"),
            ("dual", "0-11", 6, 1, "0,2,4,6,8,10"),
            ("multi", "10-39,50-79", 20, 1, "10-19,50-59"),
            ("multi", "1-39,41-79", 60, 1, "10-39,50-79"),
            ("dual", "0-11", 8, 1, "0-3,6-9"),
            ("multi", "0-79", 64, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-67,70-77"),
            ("multi", "0-79", 48, 1, "0-7,10-17,20-27,40-47,50-57,60-67"),
            ("multi", "1-29,32-39,41-69,72-79", 48, 1, "1-8,10-17,20-27,41-48,50-57,60-67"),
            ("multi", "2-29,31-39,42-69,71-79", 48, 1, "10-17,20-27,31-38,50-57,60-67,71-78"),
            (
                "multi",
                "0-2,10-12,20-22,30-32,40-41,50-51,60-61,70-71",
                16,
                1,
                "0-1,10-11,20-21,30-31,40-41,50-51,60-61,70-71",
            ),
            ("dual", "1-5,7-11", 1, 1, "1"),
            ("dual", "1-5,7-11", 1, 2, "2"),
            ("multi", "0-79", 26, 1, "0-6,10-16,40-45,50-55"),
            ("multi", "0-79", 26, 2, "0-6,10-15,40-46,50-55"),
            ("multi", "0-79", 62, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-66,70-76"),
            ("multi", "0-79", 62, 2, "0-7,10-17,20-27,30-36,40-47,50-57,60-67,70-76"),
            (
                "multi",
                "0-8,10-18,20-39,40-48,50-58,60-79",
                62,
                1,
                "0-7,10-17,20-27,30-37,40-46,50-56,60-67,70-77",
            ),
            (
                "multi",
                "0-8,10-18,20-39,40-48,50-58,60-79",
                62,
                2,
                "0-7,10-16,20-27,30-37,40-47,50-56,60-67,70-77",
            ),
            (
                "multi",
                "0-3,10-13,20-23,30-36,40-43,50-53,60-63,70-76",
                34,
                1,
                "0-3,10-13,20-23,30-34,40-43,50-53,60-63,70-74",
            ),
            (
                "large",
                "0,128,30,31,158,159,43-47,171-175,62,63,190,191,75-79,203-207,94,96,222,223,101-111,229-239,126,127,254,255",
                28,
                1,
                "43-47,75-79,96,101-105,171-174,203-206,229-232",
            ),
        ] {
            let got = distributed(&machine(name), &set(free), wanted, group, how)
                .map_or_else(|e| e, |s| s.to_string());
            assert_eq!(got, want, "{wanted} of {free} of {name} by {group}");
        }
    }

    #[test]
    fn odd_machines_come_to_an_end() {
        // Groups that no subset can give: every try ends, with an answer of the right size or an error.
        for wanted in 1..=80 {
            for group in 1..=4 {
                for free in ["0-79", "0-4,10-12,20,30-39,45-57", "1,3,5,7,9,11,13,41,43,62-79"] {
                    let how = How::default();
                    if let Ok(got) = distributed(&machine("multi"), &set(free), wanted, group, how) {
                        assert_eq!(got.len(), wanted);
                        assert_eq!(got.difference(&set(free)).len(), 0);
                    }
                }
            }
        }
    }
}
