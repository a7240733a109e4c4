//! What NUMA nodes have: at first, and as memory is taken from them and given back; and which of them may give
//! together.

use std::collections::BTreeMap;

use super::state::{NodeState, Nodes, Table};
use crate::managers::machine::Machine;
use crate::managers::topology::Mask;

/// Bytes by resource.
pub(super) type Amounts = BTreeMap<String, u64>;

/// What is reserved for the system: NUMA node → bytes by resource.
pub(super) type Reserved = BTreeMap<u32, Amounts>;

/// `hugepages-2Mi` from a page size in KiB.
fn hugepage_resource(kib: u64) -> String {
    match kib {
        k if k % (1 << 20) == 0 => format!("hugepages-{}Gi", k >> 20),
        k if k % (1 << 10) == 0 => format!("hugepages-{}Mi", k >> 10),
        k => format!("hugepages-{k}Ki"),
    }
}

/// A machine of which nothing is taken yet.
pub(super) fn fresh(machine: &Machine, reserved: &Reserved) -> Nodes {
    let mut nodes = Nodes::new();
    for node in &machine.nodes {
        let kept =
            |resource: &str| reserved.get(&node.id).and_then(|r| r.get(resource)).copied().unwrap_or(0);
        let table = |total: u64, usable: u64, resource: &str| {
            let allocatable = usable.saturating_sub(kept(resource));
            Table { total, system_reserved: kept(resource), allocatable, reserved: 0, free: allocatable }
        };
        let mut memory_map = BTreeMap::new();
        let mut in_pages = 0;
        for (kib, pages) in &node.hugepages {
            let (resource, bytes) = (hugepage_resource(*kib), kib * pages * 1024);
            memory_map.insert(resource.clone(), table(bytes, bytes, &resource));
            in_pages += bytes;
        }
        let usable = node.memory_bytes.saturating_sub(in_pages);
        memory_map.insert("memory".to_owned(), table(node.memory_bytes, usable, "memory"));
        nodes.insert(node.id, NodeState { number_of_assignments: 0, memory_map, cells: vec![node.id] });
    }
    nodes
}

/// Takes memory from nodes, in their order.
pub(super) fn take(nodes: &mut Nodes, from: &[u32], resource: &str, mut size: u64) {
    for id in from {
        let Some(node) = nodes.get_mut(id) else { continue };
        node.number_of_assignments += 1;
        node.cells = from.to_vec();
        let Some(table) = node.memory_map.get_mut(resource) else { continue };
        let taken = size.min(table.free);
        table.reserved += taken;
        table.free -= taken;
        size -= taken;
    }
}

/// Gives memory back to the nodes it was taken from.
pub(super) fn give_back(nodes: &mut Nodes, from: &[u32], resource: &str, mut size: u64) {
    for id in from {
        let Some(node) = nodes.get_mut(id) else { continue };
        node.number_of_assignments -= 1;
        if node.number_of_assignments == 0 {
            node.cells = vec![*id];
        }
        let Some(table) = node.memory_map.get_mut(resource) else { continue };
        let back = size.min(table.reserved);
        table.free += back;
        table.reserved -= back;
        size -= back;
    }
}

/// Whether nodes together have so much left.
pub(super) fn enough(nodes: &Nodes, mask: Mask, wanted: &Amounts) -> bool {
    let free = |resource: &String| -> u64 {
        mask.nodes().filter_map(|id| nodes.get(&id)?.memory_map.get(resource)).map(|t| t.free).sum()
    };
    wanted.iter().all(|(resource, size)| free(resource) >= *size)
}

/// Whether a node may give memory together with others: it gives none, or gives with these.
pub(super) fn may_join(node: &NodeState, mask: Mask) -> bool {
    node.number_of_assignments == 0 || (node.cells.len() > 1 && Mask::of(node.cells.iter().copied()) == mask)
}

/// Whether one of several nodes may not give together with the others.
pub(super) fn breaks_groups(nodes: &Nodes, mask: Mask) -> bool {
    mask.count() > 1 && mask.nodes().filter_map(|id| nodes.get(&id)).any(|node| !may_join(node, mask))
}

/// Whether two states of a machine are the same, however memory is spread within groups of nodes.
pub(super) fn same(a: &Nodes, b: &Nodes) -> bool {
    let group = |nodes: &Nodes, cells: &[u32], resource: &str| {
        let tables = cells.iter().filter_map(|id| nodes.get(id)?.memory_map.get(resource));
        tables.fold((0, 0), |sum, t| (sum.0 + t.free, sum.1 + t.reserved))
    };
    let fixed = |t: &Table| (t.total, t.system_reserved, t.allocatable);
    a.len() == b.len()
        && a.iter().all(|(id, one)| {
            b.get(id).is_some_and(|two| {
                one.number_of_assignments == two.number_of_assignments
                    && Mask::of(one.cells.iter().copied()) == Mask::of(two.cells.iter().copied())
                    && one.memory_map.len() == two.memory_map.len()
                    && one.memory_map.iter().all(|(resource, table)| {
                        two.memory_map.get(resource).map(fixed) == Some(fixed(table))
                            && group(a, &one.cells, resource) == group(b, &one.cells, resource)
                    })
            })
        })
}
