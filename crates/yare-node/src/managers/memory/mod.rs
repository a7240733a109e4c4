//! The memory manager: memory and huge pages of NUMA nodes for containers of Guaranteed pods (KEP-1769).
//!
//! In: pods, the machine, what is reserved on each node. Out: the NUMA nodes a container's memory comes from.

mod nodes;
mod policy;
mod state;

pub(crate) use state::Block;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use parking_lot::Mutex;

use self::nodes::Reserved;
use self::policy::{StaticPolicy, is_memory, release};
use self::state::State;
use super::ManagerSettings;
use super::machine::Machine;
use super::topology::{Hint, Hints};
use crate::quantity;
use crate::view::{Container, Pod};

/// Where the assignments are written down; upstream's name.
const CHECKPOINT: &str = "memory_manager_state";

/// See the module. None: the policy `None`.
pub(crate) struct MemoryManager(Option<Mutex<(StaticPolicy, State)>>);

impl MemoryManager {
    /// A manager with its checkpoint in a directory. `kept`: what is reserved on the whole node, bytes by resource.
    pub(crate) fn new(
        settings: &ManagerSettings,
        machine: &Machine,
        kept: &BTreeMap<String, u64>,
        dir: &Path,
    ) -> Result<Self, String> {
        let path = dir.join(CHECKPOINT);
        match settings.memory_policy.as_str() {
            "None" => {
                State::open(path, "None")?;
                Ok(MemoryManager(None))
            }
            "Static" => {
                let reserved = reserved(settings, machine, kept)?;
                let policy = StaticPolicy::new(machine, &reserved)?;
                let mut state = State::open(path, "Static")?;
                policy.start(&mut state)?;
                Ok(MemoryManager(Some(Mutex::new((policy, state)))))
            }
            other => Err(format!("unknown policy: {other:?}")),
        }
    }

    /// Whether memory is kept on nodes at all.
    pub(crate) fn active(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the container has memory of its own.
    pub(crate) fn allocate(&self, pod: &Pod, container: &Container, hint: Hint) -> Result<bool, String> {
        let Some(inner) = &self.0 else { return Ok(false) };
        let (policy, state) = &mut *inner.lock();
        policy.allocate(state, pod, container, hint)
    }

    pub(crate) fn hints(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let Some(inner) = &self.0 else { return Hints::new() };
        let (policy, state) = &*inner.lock();
        policy.hints(state, pod, container)
    }

    /// A container's memory.
    pub(crate) fn blocks(&self, uid: &str, container: &str) -> Vec<Block> {
        let Some(inner) = &self.0 else { return Vec::new() };
        inner.lock().1.blocks(uid, container).cloned().unwrap_or_default()
    }

    /// The nodes a container's memory comes from, as a list for its cgroup; none: from any.
    pub(crate) fn affinity(&self, uid: &str, container: &str) -> Option<String> {
        let nodes: BTreeSet<u32> = self.blocks(uid, container).iter().flat_map(|b| b.nodes.clone()).collect();
        let words: Vec<String> = nodes.iter().map(u32::to_string).collect();
        (!words.is_empty()).then(|| words.join(","))
    }

    /// All that containers may get.
    pub(crate) fn allocatable(&self) -> Vec<Block> {
        self.0.as_ref().map_or_else(Vec::new, |inner| inner.lock().0.allocatable())
    }

    /// A container starts: the init containers before it have ended, and their memory is free.
    pub(crate) fn started(&self, pod: &Pod, container: &Container) {
        let Some(inner) = &self.0 else { return };
        let before = pod.spec.init_containers.iter().take_while(|c| c.name != container.name);
        for ended in before.filter(|c| !c.is_sidecar()) {
            release(&mut inner.lock().1, &pod.metadata.uid, &ended.name);
        }
    }

    /// A pod's memory is free again.
    pub(crate) fn release(&self, uid: &str) {
        let Some(inner) = &self.0 else { return };
        let (_, state) = &mut *inner.lock();
        let names: Vec<String> =
            state.assigned.get(uid).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        for name in names {
            release(state, uid, &name);
        }
    }

    /// The same for all pods but these.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        let Some(inner) = &self.0 else { return };
        let held: Vec<String> = inner.lock().1.assigned.keys().cloned().collect();
        for uid in held.into_iter().filter(|uid| !uids.contains(uid)) {
            self.release(&uid);
        }
    }
}

/// What is reserved on each node. Together it has to be what the node keeps for itself.
fn reserved(
    settings: &ManagerSettings,
    machine: &Machine,
    kept: &BTreeMap<String, u64>,
) -> Result<Reserved, String> {
    let mut reserved: Reserved = machine.nodes.iter().map(|n| (n.id, BTreeMap::new())).collect();
    let mut totals: BTreeMap<&str, u64> =
        kept.keys().filter(|name| is_memory(name)).map(|name| (name.as_str(), 0)).collect();
    for (node, limits) in &settings.reserved_memory {
        let Some(of_node) = reserved.get_mut(node) else {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
            ));
        };
        for (resource, amount) in limits {
            let bytes = u64::try_from(quantity::value(amount)).unwrap_or(0);
            of_node.insert(resource.clone(), bytes);
            *totals.entry(resource).or_default() += bytes;
        }
    }
    for (resource, total) in totals {
        let want = kept.get(resource).copied().unwrap_or(0);
        if total != want {
            return Err(format!(
                "the total amount \"{}\" of type {resource:?} is not equal to the value \"{}\" determined by Node Allocatable feature",
                quantity::from_bytes(total),
                quantity::from_bytes(want)
            ));
        }
    }
    Ok(reserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managers::machine::NumaNode;

    #[test]
    fn reservations_have_to_add_up() {
        let node = |id| NumaNode { id, memory_bytes: 8 << 30, ..NumaNode::default() };
        let machine = Machine { nodes: vec![node(0), node(1)], ..Machine::default() };
        for (rows, kept, want) in [
            (&[(0u32, "1Gi"), (1, "1Gi")] as &[(u32, &str)], 2u64 << 30, ""),
            (
                &[(0, "1Gi")],
                2 << 30,
                "the total amount \"1048576Ki\" of type \"memory\" is not equal to the value \"2097152Ki\" determined by Node Allocatable feature",
            ),
            (
                &[(2, "1Gi")],
                1 << 30,
                "the reserved memory configuration references a NUMA node 2 that does not exist on this machine",
            ),
            (&[], 0, "[memorymanager] you should specify the system reserved memory"),
        ] {
            let settings = ManagerSettings {
                memory_policy: "Static".to_owned(),
                reserved_memory: rows
                    .iter()
                    .map(|(node, amount)| {
                        (*node, BTreeMap::from([("memory".to_owned(), (*amount).to_owned())]))
                    })
                    .collect(),
                ..ManagerSettings::default()
            };
            let dir = tempfile::tempdir().unwrap();
            let kept = BTreeMap::from([("memory".to_owned(), kept)]);
            let got = MemoryManager::new(&settings, &machine, &kept, dir.path()).err().unwrap_or_default();
            assert_eq!(got, want);
        }
    }
}
