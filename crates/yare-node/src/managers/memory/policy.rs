//! The static policy: containers of Guaranteed pods get memory and huge pages from as few NUMA nodes as can be.
//!
//! A node gives memory alone, or together with a fixed group of others, and never both at a time: what crosses nodes
//! must not take from a container that relies on one (KEP-1769).

use std::collections::BTreeMap;

use super::nodes::{Amounts, Reserved, breaks_groups, enough, fresh, give_back, may_join, same, take};
use super::state::{Block, Nodes, State, Table};
use crate::managers::machine::Machine;
use crate::managers::topology::{Hint, Hints, Mask, combinations};
use crate::pod::qos;
use crate::quantity;
use crate::view::{Container, Pod};

/// See the module.
pub(crate) struct StaticPolicy {
    fresh: Nodes,
    /// Memory of a pod's init containers, which its next ones may have: the pod, and by nodes and resource.
    reusable: (String, BTreeMap<(Mask, String), u64>),
}

/// Which memory this is: `memory`, or a size of huge pages.
pub(super) fn is_memory(resource: &str) -> bool {
    resource == "memory" || resource.starts_with("hugepages-")
}

/// A container's requests.
fn requests(container: &Container) -> Amounts {
    let resources = &container.resources;
    let of = |name: &String| resources.requests.get(name).or(resources.limits.get(name));
    let names = resources.requests.keys().chain(resources.limits.keys()).filter(|n| is_memory(n));
    names.filter_map(|name| Some((name.clone(), u64::try_from(quantity::value(of(name)?)).ok()?))).collect()
}

/// The most that a pod's containers have at a time.
fn requests_of_pod(pod: &Pod) -> Amounts {
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in &pod.spec.init_containers {
        for (name, amount) in requests(container) {
            if container.is_sidecar() {
                *sidecars.entry(name).or_default() += amount;
            } else {
                let now = sidecars.get(&name).copied().unwrap_or(0) + amount;
                let most = peak.entry(name).or_default();
                *most = (*most).max(now);
            }
        }
    }
    let mut main = Amounts::new();
    for container in &pod.spec.containers {
        for (name, amount) in requests(container) {
            *main.entry(name).or_default() += amount;
        }
    }
    for (name, amount) in &mut main {
        let together = *amount + sidecars.get(name).copied().unwrap_or(0);
        *amount = together.max(peak.get(name).copied().unwrap_or(0));
    }
    main
}

/// Whether a pod's containers get memory of their own.
fn qualifies(pod: &Pod) -> bool {
    // With resources of the pod as a whole, containers have none of their own: that gate is off.
    qos::class(pod) == "Guaranteed" && pod.spec.resources.is_none()
}

impl StaticPolicy {
    /// A policy on a machine, of which some is the system's.
    pub(crate) fn new(machine: &Machine, reserved: &Reserved) -> Result<Self, String> {
        if reserved.values().filter_map(|r| r.get("memory")).sum::<u64>() == 0 {
            return Err("[memorymanager] you should specify the system reserved memory".to_owned());
        }
        Ok(StaticPolicy { fresh: fresh(machine, reserved), reusable: Default::default() })
    }

    /// Begins a state, or checks one that was written down.
    pub(crate) fn start(&self, state: &mut State) -> Result<(), String> {
        if state.nodes.is_empty() {
            if !state.assigned.is_empty() {
                return Err("[memorymanager] machine state can not be empty when it has memory assignments"
                    .to_owned());
            }
            state.nodes = self.fresh.clone();
            state.save();
            return Ok(());
        }
        let mut expected = self.fresh.clone();
        for (uid, containers) in &state.assigned {
            for (container, blocks) in containers {
                for block in blocks {
                    for id in &block.nodes {
                        let known = expected.get(id).map(|n| n.memory_map.contains_key(&block.resource));
                        let what = match known {
                            None => "the memory assignment uses the NUMA that does not exist",
                            Some(false) => "the memory assignment uses memory resource that does not exist",
                            Some(true) => continue,
                        };
                        return Err(format!("[memorymanager] (pod: {uid}, container: {container}) {what}"));
                    }
                    take(&mut expected, &block.nodes, &block.resource, block.size);
                }
            }
        }
        if same(&state.nodes, &expected) {
            Ok(())
        } else {
            Err("[memorymanager] the expected machine state is different from the real one".to_owned())
        }
    }

    fn reusable(&self, uid: &str, mask: Mask, resource: &str) -> u64 {
        if self.reusable.0 != uid {
            return 0;
        }
        self.reusable.1.get(&(mask, resource.to_owned())).copied().unwrap_or(0)
    }

    fn served(&mut self, pod: &Pod, container: &Container, blocks: &[Block]) {
        let uid = &pod.metadata.uid;
        if self.reusable.0 != *uid {
            self.reusable = (uid.clone(), BTreeMap::new());
        }
        let ends = pod.spec.init_containers.iter().any(|c| c.name == container.name && !c.is_sidecar());
        for block in blocks {
            let key = (Mask::of(block.nodes.iter().copied()), block.resource.clone());
            if ends {
                let most = self.reusable.1.entry(key).or_default();
                *most = (*most).max(block.size);
            } else if let Some(left) = self.reusable.1.get_mut(&key) {
                *left = left.saturating_sub(block.size);
            }
        }
    }

    /// Gives a container memory of its own, if it has a right to it; whether it has.
    pub(crate) fn allocate(
        &mut self,
        state: &mut State,
        pod: &Pod,
        container: &Container,
        hint: Hint,
    ) -> Result<bool, String> {
        if !qualifies(pod) {
            return Ok(false);
        }
        let uid = &pod.metadata.uid;
        if let Some(blocks) = state.blocks(uid, &container.name).cloned() {
            self.served(pod, container, &blocks);
            return Ok(true);
        }
        let wanted = requests(container);
        let mut best = hint;
        let mut mask = match hint.affinity {
            Some(mask) => mask,
            None => {
                let hints = self.hints_for(&state.nodes, uid, &wanted);
                if hints.is_empty() {
                    return Err(
                        "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available"
                            .to_owned(),
                    );
                }
                let found = pick(&hints).filter(|found| found.preferred || !hint.preferred);
                best = found.ok_or("[memorymanager] failed to find the default preferred hint")?;
                best.affinity.unwrap_or_default()
            }
        };
        if !enough(&state.nodes, mask, &wanted) {
            let hints = self.hints_for(&state.nodes, uid, &wanted);
            let wider: Vec<Hint> =
                hints.into_iter().filter(|h| h.affinity.is_some_and(|m| m.covers(mask))).collect();
            if wider.is_empty() {
                return Err("[memorymanager] failed to find NUMA nodes to extend the current topology hint"
                    .to_owned());
            }
            let found = pick(&wider).filter(|found| found.preferred || !best.preferred);
            best = found.ok_or("[memorymanager] failed to find the extended preferred hint")?;
            mask = best.affinity.unwrap_or_default();
        }
        if breaks_groups(&state.nodes, mask) {
            return Err("[memorymanager] preferred hint violates NUMA node allocation".to_owned());
        }
        let nodes: Vec<u32> = mask.nodes().collect();
        let mut blocks = Vec::new();
        for (resource, size) in &wanted {
            blocks.push(Block { nodes: nodes.clone(), resource: resource.clone(), size: *size });
            let fresh = size.saturating_sub(self.reusable(uid, mask, resource));
            take(&mut state.nodes, &nodes, resource, fresh);
        }
        self.served(pod, container, &blocks);
        hand_on(state, pod, container, &blocks);
        state.assigned.entry(uid.clone()).or_default().insert(container.name.clone(), blocks);
        state.save();
        Ok(true)
    }

    /// Sets of NUMA nodes that could serve a container, or a pod as a whole; none: it does not care.
    pub(crate) fn hints(&self, state: &State, pod: &Pod, container: Option<&Container>) -> Hints {
        if !qualifies(pod) {
            return Hints::new();
        }
        let uid = &pod.metadata.uid;
        let wanted = container.map_or_else(|| requests_of_pod(pod), requests);
        if wanted.is_empty() {
            return Hints::new();
        }
        let mut containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let held = match container {
            Some(container) => state.blocks(uid, &container.name),
            None => containers.find_map(|c| state.blocks(uid, &c.name)),
        };
        if let Some(blocks) = held {
            return again(blocks, &wanted);
        }
        let list = self.hints_for(&state.nodes, uid, &wanted);
        // As upstream: where nothing fits there is no hint at all, and the allocation says why.
        if list.is_empty() {
            return Hints::new();
        }
        wanted.into_keys().map(|resource| (resource, Some(list.clone()))).collect()
    }

    fn hints_for(&self, nodes: &Nodes, uid: &str, wanted: &Amounts) -> Vec<Hint> {
        let ids: Vec<u32> = nodes.keys().copied().collect();
        let sum = |mask: Mask, resource: &str, of: fn(&Table) -> u64| -> u64 {
            mask.nodes().filter_map(|id| nodes.get(&id)?.memory_map.get(resource)).map(of).sum()
        };
        let mut least = ids.len();
        let mut found = Vec::new();
        for mask in combinations(&ids) {
            if wanted.iter().any(|(resource, size)| sum(mask, resource, |t| t.allocatable) < *size) {
                continue;
            }
            least = least.min(mask.count());
            let alone = mask.count() == 1;
            let fits = mask
                .nodes()
                .filter_map(|id| nodes.get(&id))
                .all(|node| if alone { node.cells.len() <= 1 } else { may_join(node, mask) });
            let free = |(resource, size): (&String, &u64)| {
                sum(mask, resource, |t| t.free) + self.reusable(uid, mask, resource) >= *size
            };
            if fits && wanted.iter().all(free) {
                found.push(mask);
            }
        }
        let hint = |mask: Mask| Hint { affinity: Some(mask), preferred: mask.count() == least };
        found.into_iter().map(hint).collect()
    }

    /// What of each node containers may get.
    pub(crate) fn allocatable(&self) -> Vec<Block> {
        let mut all = Vec::new();
        for (id, node) in &self.fresh {
            for (resource, table) in node.memory_map.iter().filter(|(_, t)| t.allocatable > 0) {
                all.push(Block { nodes: vec![*id], resource: resource.clone(), size: table.allocatable });
            }
        }
        all
    }
}

/// Gives back a container's memory.
pub(crate) fn release(state: &mut State, uid: &str, container: &str) -> bool {
    let Some(containers) = state.assigned.get_mut(uid) else { return false };
    let Some(blocks) = containers.remove(container) else { return false };
    if containers.is_empty() {
        state.assigned.remove(uid);
    }
    for block in blocks {
        give_back(&mut state.nodes, &block.nodes, &block.resource, block.size);
    }
    state.save();
    true
}

/// What a container takes over from the init containers before it is theirs no more.
fn hand_on(state: &mut State, pod: &Pod, container: &Container, blocks: &[Block]) {
    let before = pod.spec.init_containers.iter().take_while(|c| c.name != container.name);
    let names: Vec<&String> = before.filter(|c| !c.is_sidecar()).map(|c| &c.name).collect();
    let Some(containers) = state.assigned.get_mut(&pod.metadata.uid) else { return };
    for block in blocks {
        let mask = Mask::of(block.nodes.iter().copied());
        let mut left = block.size;
        for name in &names {
            for old in containers.get_mut(*name).into_iter().flatten() {
                if old.resource == block.resource && Mask::of(old.nodes.iter().copied()) == mask {
                    let moved = left.min(old.size);
                    old.size -= moved;
                    left -= moved;
                }
            }
        }
    }
}

/// The hints that a container was served by.
fn again(blocks: &[Block], wanted: &Amounts) -> Hints {
    if blocks.len() != wanted.len() || blocks.iter().any(|b| wanted.get(&b.resource) != Some(&b.size)) {
        return Hints::new();
    }
    let hint = |b: &Block| Hint { affinity: Some(Mask::of(b.nodes.iter().copied())), preferred: true };
    blocks.iter().map(|b| (b.resource.clone(), Some(vec![hint(b)]))).collect()
}

/// The best of some hints: preferred, then narrow.
fn pick(hints: &[Hint]) -> Option<Hint> {
    hints.iter().min_by_key(|h| (!h.preferred, h.affinity.unwrap_or_default().width())).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managers::machine::NumaNode;

    const GI: u64 = 1 << 30;

    fn machine(nodes: u32) -> Machine {
        let node = |id| NumaNode {
            id,
            memory_bytes: 10 * GI,
            hugepages: BTreeMap::from([(1 << 20, 2)]),
            ..NumaNode::default()
        };
        Machine { nodes: (0..nodes).map(node).collect(), ..Machine::default() }
    }

    fn container(name: &str, memory: u64, pages: u64, sidecar: bool) -> serde_json::Value {
        let mut amounts = serde_json::json!({"cpu": "1", "memory": format!("{memory}Gi")});
        if pages > 0 {
            amounts["hugepages-1Gi"] = format!("{pages}Gi").into();
        }
        let mut value =
            serde_json::json!({"name": name, "resources": {"limits": amounts, "requests": amounts}});
        if sidecar {
            value["restartPolicy"] = "Always".into();
        }
        value
    }

    fn pod(uid: &str, init: Vec<serde_json::Value>, main: Vec<serde_json::Value>) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"uid": uid}, "spec": {"initContainers": init, "containers": main}}))
        .unwrap()
    }

    struct Rig {
        policy: StaticPolicy,
        state: State,
        _dir: tempfile::TempDir,
    }

    fn rig(nodes: u32) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let reserved = Reserved::from([(0, Amounts::from([("memory".to_owned(), GI)]))]);
        let policy = StaticPolicy::new(&machine(nodes), &reserved).unwrap();
        let mut state = State::open(dir.path().join("memory_manager_state"), "Static").unwrap();
        policy.start(&mut state).unwrap();
        Rig { policy, state, _dir: dir }
    }

    impl Rig {
        fn serve(&mut self, pod: &Pod, mask: Option<Mask>, preferred: bool) -> String {
            let hint = Hint { affinity: mask, preferred };
            let mut out = Vec::new();
            for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
                if let Err(error) = self.policy.allocate(&mut self.state, pod, container, hint) {
                    return error;
                }
                let blocks = self.state.blocks(&pod.metadata.uid, &container.name);
                let nodes = blocks.into_iter().flatten().map(|b| {
                    let nodes: String = b.nodes.iter().map(u32::to_string).collect();
                    format!("{nodes}:{}", b.size / GI)
                });
                out.push(nodes.collect::<Vec<_>>().join(","));
            }
            out.join(" ")
        }

        fn free(&self) -> Vec<u64> {
            self.state.nodes.values().map(|n| n.memory_map["memory"].free / GI).collect()
        }
    }

    #[test]
    fn memory_comes_from_few_nodes() {
        // Node 0 has 7 GiB for containers (10 less 2 in pages, less 1 reserved), node 1 has 8.
        for (memory, pages, mask, preferred, want, free) in [
            (4, 0, None, true, "0:4", [3, 8]),
            (8, 0, None, true, "1:8", [7, 0]),
            (9, 0, None, true, "01:9", [0, 6]),
            (
                16,
                0,
                None,
                true,
                "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
                [7, 8],
            ),
            (4, 1, Some(Mask::of([1])), true, "1:1,1:4", [7, 4]),
            // The topology manager's choice is too small: it is widened.
            (9, 0, Some(Mask::of([1])), false, "01:9", [0, 6]),
            (9, 0, Some(Mask::of([1])), true, "01:9", [0, 6]),
        ] {
            let mut rig = rig(2);
            let got =
                rig.serve(&pod("u", vec![], vec![container("c", memory, pages, false)]), mask, preferred);
            assert_eq!((got.as_str(), rig.free()), (want, free.to_vec()), "{memory} {pages} {mask:?}");
        }
    }

    #[test]
    fn groups_of_nodes_are_kept() {
        let mut rig = rig(2);
        let one = |uid: &str, memory| pod(uid, vec![], vec![container("c", memory, 0, false)]);
        assert_eq!(rig.serve(&one("u", 9), None, true), "01:9");
        // Both nodes give together now: neither gives alone.
        assert_eq!(
            rig.serve(&one("v", 2), None, true),
            "[memorymanager] failed to find the default preferred hint"
        );
        assert_eq!(rig.serve(&one("v", 2), None, false), "01:2");
        assert!(release(&mut rig.state, "u", "c"));
        assert!(release(&mut rig.state, "v", "c"));
        assert_eq!(rig.free(), [7, 8]);
        assert_eq!(rig.serve(&one("w", 2), None, true), "0:2");
        assert_eq!(
            rig.serve(&one("x", 9), Some(Mask::of([0, 1])), true),
            "[memorymanager] preferred hint violates NUMA node allocation"
        );
        assert!(!release(&mut rig.state, "u", "c"));
    }

    #[test]
    fn init_containers_hand_their_memory_on() {
        let mut rig = rig(1);
        let pod = pod(
            "u",
            vec![container("i", 4, 0, false), container("s", 1, 0, true)],
            vec![container("m", 3, 0, false)],
        );
        // The sidecar takes one of the four, the main container three: all of it.
        assert_eq!(rig.serve(&pod, None, true), "0:4 0:1 0:3");
        assert_eq!(rig.free(), [3]);
        assert_eq!(rig.state.blocks("u", "i").unwrap()[0].size, 0);
        for name in ["i", "s", "m"] {
            assert!(release(&mut rig.state, "u", name));
        }
        assert_eq!(rig.free(), [7]);
        assert_eq!(rig.state.nodes, rig.policy.fresh);
    }

    #[test]
    fn states_are_checked() {
        let mut rig = rig(2);
        let pod = pod("u", vec![], vec![container("c", 9, 1, false)]);
        rig.serve(&pod, None, true);
        assert_eq!(rig.policy.start(&mut rig.state), Ok(()));
        let mut other = rig.state.nodes.clone();
        other.get_mut(&0).unwrap().memory_map.get_mut("memory").unwrap().total += 1;
        std::mem::swap(&mut other, &mut rig.state.nodes);
        let different = "[memorymanager] the expected machine state is different from the real one";
        assert_eq!(rig.policy.start(&mut rig.state), Err(different.to_owned()));
        rig.state.assigned.get_mut("u").unwrap().get_mut("c").unwrap()[0].nodes = vec![7];
        let gone =
            "[memorymanager] (pod: u, container: c) the memory assignment uses the NUMA that does not exist";
        assert_eq!(rig.policy.start(&mut rig.state), Err(gone.to_owned()));
        rig.state.nodes.clear();
        assert!(rig.policy.start(&mut rig.state).is_err());
        assert!(StaticPolicy::new(&machine(1), &Reserved::new()).is_err());
    }

    #[test]
    fn hints_name_nodes_with_enough() {
        let text = |hints: Hints| {
            let list = hints.get("memory").cloned().flatten().unwrap_or_default();
            let one = |h: &Hint| {
                let nodes: String = h.affinity.unwrap().nodes().map(|n| n.to_string()).collect();
                format!("{nodes}{}", if h.preferred { '+' } else { '-' })
            };
            list.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let mut rig = rig(2);
        for (memory, want) in [(4, "0+ 1+ 01-"), (8, "1+ 01-"), (9, "01+"), (16, "")] {
            let pod = pod("u", vec![], vec![container("c", memory, 0, false)]);
            assert_eq!(
                text(rig.policy.hints(&rig.state, &pod, Some(&pod.spec.containers[0]))),
                want,
                "{memory}"
            );
            assert_eq!(text(rig.policy.hints(&rig.state, &pod, None)), want, "{memory}");
        }
        let held = pod("u", vec![], vec![container("c", 4, 0, false)]);
        rig.serve(&held, Some(Mask::of([1])), true);
        assert_eq!(text(rig.policy.hints(&rig.state, &held, Some(&held.spec.containers[0]))), "1+");
        let other = pod("v", vec![], vec![container("c", 5, 0, false)]);
        assert_eq!(text(rig.policy.hints(&rig.state, &other, None)), "0+");
    }
}
