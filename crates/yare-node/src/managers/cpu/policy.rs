//! The static policy: containers of Guaranteed pods that ask for whole processors get some for themselves.
//!
//! ```text
//! all ── reserved for the system (stay shared) ── shared pool ──► own processors of containers
//! ```
//!
//! In: pods, hints of the topology manager. Out: changes of [`State`], or upstream's errors.

use std::collections::{BTreeMap, BTreeSet};

use super::options::Options;
use super::set::CpuSet;
use super::state::State;
use super::take::{How, cpus_per_core, distributed, packed};
use crate::managers::Refusal;
use crate::managers::machine::Machine;
use crate::managers::topology::{Hint, Hints, Mask, combinations};
use crate::pod::qos;
use crate::quantity;
use crate::view::{Container, Pod};

/// See the module.
pub(crate) struct StaticPolicy {
    machine: Machine,
    options: Options,
    /// Processors that no container has for itself.
    pub(crate) reserved: CpuSet,
    /// Those and the others of their cores.
    reserved_cores: CpuSet,
    per_core: usize,
    /// Processors of a pod's init containers, which its next ones may have.
    reusable: (String, CpuSet),
}

impl StaticPolicy {
    /// A policy that keeps so many processors, or exactly these, for the system.
    pub(crate) fn new(
        machine: Machine,
        options: Options,
        reserved_count: usize,
        reserved_cpus: &CpuSet,
    ) -> Result<Self, String> {
        let mut policy = StaticPolicy {
            per_core: cpus_per_core(&machine).max(1),
            machine,
            options,
            reserved: CpuSet::default(),
            reserved_cores: CpuSet::default(),
            reusable: Default::default(),
        };
        policy.reserved = if reserved_cpus.is_empty() {
            policy.take(&policy.all(), reserved_count).unwrap_or_default()
        } else {
            reserved_cpus.clone()
        };
        if policy.reserved.len() != reserved_count {
            return Err(format!(
                "[cpumanager] unable to reserve the required amount of CPUs (size of {} did not equal {reserved_count})",
                policy.reserved
            ));
        }
        let places = &policy.machine.cpus;
        let mut cores = BTreeSet::new();
        for cpu in policy.reserved.iter() {
            let place = places.get(&cpu).ok_or_else(|| {
                format!(
                    "[cpumanager] unable to build the reserved physical CPUs from the reserved set: unknown CPU ID: {cpu}"
                )
            })?;
            cores.insert(place.core);
        }
        let in_cores = places.iter().filter(|(_, p)| cores.contains(&p.core));
        policy.reserved_cores = CpuSet::of(in_cores.map(|(cpu, _)| *cpu));
        Ok(policy)
    }

    fn all(&self) -> CpuSet {
        CpuSet::of(self.machine.cpus.keys().copied())
    }

    /// Processors that containers may get for themselves.
    pub(crate) fn allocatable(&self) -> CpuSet {
        self.all().difference(&self.reserved)
    }

    /// Begins a state, or checks one that was written down.
    pub(crate) fn start(&self, state: &mut State) -> Result<(), String> {
        if state.shared.is_empty() {
            if !state.assigned.is_empty() {
                return Err("default cpuset cannot be empty".to_owned());
            }
            state.shared = if self.options.strict_reservation { self.allocatable() } else { self.all() };
            state.save();
            return Ok(());
        }
        let kept = self.reserved.intersection(&state.shared);
        if self.options.strict_reservation {
            if !kept.is_empty() {
                return Err(format!(
                    "some of strictly reserved cpus: \"{kept}\" are present in defaultCpuSet: \"{}\"",
                    state.shared
                ));
            }
        } else if kept != self.reserved {
            return Err(format!(
                "not all reserved cpus: \"{}\" are present in defaultCpuSet: \"{}\"",
                self.reserved, state.shared
            ));
        }
        let mut known = state.shared.clone();
        for (uid, containers) in &state.assigned {
            for (container, cpus) in containers {
                if !state.shared.intersection(cpus).is_empty() {
                    return Err(format!(
                        "pod: {uid}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{}\"",
                        state.shared
                    ));
                }
                known = known.union(cpus);
            }
        }
        // With strict reservation the reserved ones are in no set, which upstream forgets to allow for.
        let expected = if self.options.strict_reservation { self.allocatable() } else { self.all() };
        if known != expected {
            return Err(format!(
                "current set of available CPUs \"{expected}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(())
    }

    fn take(&self, from: &CpuSet, wanted: usize) -> Result<CpuSet, String> {
        let how = How { spread: self.options.distribute_across_cores, by_cache: self.options.prefer_uncore };
        if self.options.distribute_across_numa {
            let group = if self.options.full_pcpus_only { self.per_core } else { 1 };
            return distributed(&self.machine, from, wanted, group, how);
        }
        packed(&self.machine, from, wanted, how)
    }

    /// How many processors a container has a right to for itself.
    fn wanted(pod: &Pod, container: &Container) -> usize {
        // With resources of the pod as a whole, containers have none of their own: that gate is off.
        if qos::class(pod) != "Guaranteed" || pod.spec.resources.is_some() {
            return 0;
        }
        let Some(text) = container.resources.requests.get("cpu").or(container.resources.limits.get("cpu"))
        else {
            return 0;
        };
        let milli = quantity::milli(text);
        if milli % 1000 != 0 { 0 } else { usize::try_from(milli / 1000).unwrap_or(0) }
    }

    /// The most that a pod's containers have at a time.
    fn wanted_by_pod(pod: &Pod) -> usize {
        let (mut sidecars, mut peak) = (0, 0);
        for container in &pod.spec.init_containers {
            let wanted = Self::wanted(pod, container);
            if container.is_sidecar() {
                sidecars += wanted;
            } else {
                peak = peak.max(sidecars + wanted);
            }
        }
        let main: usize = pod.spec.containers.iter().map(|c| Self::wanted(pod, c)).sum();
        peak.max(main + sidecars)
    }

    fn reusable(&self, uid: &str) -> CpuSet {
        if self.reusable.0 == uid { self.reusable.1.clone() } else { CpuSet::default() }
    }

    fn served(&mut self, pod: &Pod, container: &Container, cpus: &CpuSet) {
        let uid = &pod.metadata.uid;
        let before = self.reusable(uid);
        let ends = pod.spec.init_containers.iter().any(|c| c.name == container.name && !c.is_sidecar());
        let now = if ends { before.union(cpus) } else { before.difference(cpus) };
        self.reusable = (uid.clone(), now);
    }

    fn check_cores(&self, state: &State, wanted: usize) -> Result<(), Refusal> {
        if !self.options.full_pcpus_only {
            return Ok(());
        }
        let refuse =
            |why: String| Err(Refusal::Named("SMTAlignmentError", format!("SMT Alignment Error: {why}")));
        if !wanted.is_multiple_of(self.per_core) {
            return refuse(format!("requested {wanted} cpus not multiple cpus per core = {}", self.per_core));
        }
        let available = state.shared.difference(&self.reserved_cores).len();
        if wanted > available {
            return refuse(format!(
                "not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {wanted}, CPUs per core = {}",
                self.per_core
            ));
        }
        Ok(())
    }

    /// Gives a container processors of its own, if it has a right to them; whether it has.
    pub(crate) fn allocate(
        &mut self,
        state: &mut State,
        pod: &Pod,
        container: &Container,
        hint: Hint,
    ) -> Result<bool, Refusal> {
        let wanted = Self::wanted(pod, container);
        if wanted == 0 {
            return Ok(false);
        }
        self.check_cores(state, wanted)?;
        let uid = &pod.metadata.uid;
        if let Some(own) = state.own(uid, &container.name).cloned() {
            self.served(pod, container, &own);
            return Ok(true);
        }
        let free = state.shared.difference(&self.reserved).union(&self.reusable(uid));
        let mut taken = CpuSet::default();
        if let Some(mask) = hint.affinity {
            let aligned = self.aligned(mask, &free);
            taken = self.take(&aligned, wanted.min(aligned.len()))?;
        }
        let rest = self.take(&free.difference(&taken), wanted - taken.len())?;
        taken = taken.union(&rest);
        state.shared = state.shared.difference(&taken);
        state.assigned.entry(uid.clone()).or_default().insert(container.name.clone(), taken.clone());
        state.save();
        self.served(pod, container, &taken);
        Ok(true)
    }

    /// What is left for containers without processors of their own, but for the system's.
    pub(crate) fn shareable(&self, state: &State) -> CpuSet {
        state.shared.difference(&self.reserved)
    }

    /// How many processors of some sets each NUMA node has.
    pub(crate) fn by_node<'a>(&self, sets: impl Iterator<Item = &'a CpuSet>) -> BTreeMap<u32, usize> {
        let mut nodes: BTreeMap<u32, usize> = self.machine.cpus.values().map(|p| (p.node, 0)).collect();
        for cpu in sets.flat_map(CpuSet::iter) {
            if let Some(place) = self.machine.cpus.get(&cpu) {
                *nodes.entry(place.node).or_default() += 1;
            }
        }
        nodes
    }

    /// The free processors of some nodes, or of their sockets.
    fn aligned(&self, mask: Mask, free: &CpuSet) -> CpuSet {
        let cpus = &self.machine.cpus;
        let sockets: BTreeSet<u32> =
            cpus.values().filter(|p| mask.contains(p.node)).map(|p| p.socket).collect();
        let near = cpus.iter().filter(|(_, p)| {
            if self.options.align_by_socket { sockets.contains(&p.socket) } else { mask.contains(p.node) }
        });
        CpuSet::of(near.map(|(cpu, _)| *cpu)).intersection(free)
    }

    /// Sets of NUMA nodes that could serve a container, or a pod as a whole; none: it does not care.
    pub(crate) fn hints(&self, state: &State, pod: &Pod, container: Option<&Container>) -> Hints {
        let wanted = match container {
            Some(container) => Self::wanted(pod, container),
            None => Self::wanted_by_pod(pod),
        };
        if wanted == 0 {
            return Hints::new();
        }
        let uid = &pod.metadata.uid;
        let list = match container {
            Some(container) => match state.own(uid, &container.name) {
                Some(own) if own.len() != wanted => Vec::new(),
                Some(own) => self.hints_from(own, &CpuSet::default(), wanted),
                None => {
                    self.hints_from(&state.shared.difference(&self.reserved), &self.reusable(uid), wanted)
                }
            },
            None => self.pod_hints(state, pod, wanted),
        };
        Hints::from([("cpu".to_owned(), Some(list))])
    }

    fn pod_hints(&self, state: &State, pod: &Pod, wanted: usize) -> Vec<Hint> {
        let uid = &pod.metadata.uid;
        let mut assigned = CpuSet::default();
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            if let Some(own) = state.own(uid, &container.name) {
                if own.len() != Self::wanted(pod, container) {
                    return Vec::new();
                }
                assigned = assigned.union(own);
            }
        }
        if assigned.len() == wanted {
            return self.hints_from(&assigned, &CpuSet::default(), wanted);
        }
        let free = state.shared.difference(&self.reserved);
        self.hints_from(&free, &self.reusable(uid).union(&assigned), wanted)
    }

    fn hints_from(&self, free: &CpuSet, reusable: &CpuSet, wanted: usize) -> Vec<Hint> {
        let cpus = &self.machine.cpus;
        let nodes: Vec<u32> = cpus.values().map(|p| p.node).collect::<BTreeSet<_>>().into_iter().collect();
        let inside = |mask: Mask, cpu: u32| cpus.get(&cpu).is_some_and(|p| mask.contains(p.node));
        let mut least = nodes.len();
        let mut hints = Vec::new();
        for mask in combinations(&nodes) {
            if cpus.values().filter(|p| mask.contains(p.node)).count() >= wanted {
                least = least.min(mask.count());
            }
            if !reusable.iter().all(|cpu| inside(mask, cpu)) {
                continue;
            }
            if reusable.len() + free.iter().filter(|cpu| inside(mask, *cpu)).count() >= wanted {
                hints.push((mask, Hint { affinity: Some(mask), preferred: false }));
            }
        }
        let mut out = Vec::with_capacity(hints.len());
        for (mask, mut hint) in hints {
            hint.preferred =
                mask.count() == least || (self.options.align_by_socket && self.socket_aligned(mask, least));
            out.push(hint);
        }
        out
    }

    /// Whether nodes come from as few sockets as can be.
    fn socket_aligned(&self, mask: Mask, least_nodes: usize) -> bool {
        let cpus = &self.machine.cpus;
        let count = |of: fn(&crate::managers::machine::CpuPlace) -> u32| {
            cpus.values().map(of).collect::<BTreeSet<_>>().len()
        };
        let per_socket = count(|p| p.node) / count(|p| p.socket).max(1);
        if per_socket == 0 {
            return false;
        }
        let sockets: BTreeSet<u32> =
            cpus.values().filter(|p| mask.contains(p.node)).map(|p| p.socket).collect();
        sockets.len() == least_nodes.div_ceil(per_socket)
    }

    /// A pod's processors are shared again. Whether it had any.
    pub(crate) fn release(&mut self, state: &mut State, uid: &str) -> bool {
        let Some(containers) = state.assigned.remove(uid) else { return false };
        for cpus in containers.values() {
            state.shared = state.shared.union(cpus);
        }
        state.save();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::take::tests::machine;
    use super::*;

    fn pod(uid: &str, init: &[(&str, &str)], main: &[&str]) -> Pod {
        let container = |name: String, cpu: &str, policy: &str| {
            let mut value = serde_json::json!({"name": name, "resources": {
                "limits": {"cpu": cpu, "memory": "1Gi"}, "requests": {"cpu": cpu, "memory": "1Gi"}}});
            if policy == "sidecar" {
                value["restartPolicy"] = "Always".into();
            }
            value
        };
        let init: Vec<_> =
            init.iter().enumerate().map(|(i, (cpu, kind))| container(format!("i{i}"), cpu, kind)).collect();
        let main: Vec<_> =
            main.iter().enumerate().map(|(i, cpu)| container(format!("m{i}"), cpu, "")).collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"uid": uid}, "spec": {"initContainers": init, "containers": main}}))
        .unwrap()
    }

    struct Rig {
        policy: StaticPolicy,
        state: State,
        _dir: tempfile::TempDir,
    }

    fn rig(name: &str, options: Options, reserved: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path().join("cpu_manager_state"), "static").unwrap();
        let policy = StaticPolicy::new(machine(name), options, reserved, &CpuSet::default()).unwrap();
        policy.start(&mut state).unwrap();
        Rig { policy, state, _dir: dir }
    }

    impl Rig {
        /// Serves a pod's containers in order; their processors, or the first error.
        fn serve(&mut self, pod: &Pod, mask: Option<Mask>) -> String {
            let hint = Hint { affinity: mask, preferred: true };
            let mut out = Vec::new();
            for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
                match self.policy.allocate(&mut self.state, pod, container, hint) {
                    Ok(_) => {
                        let own = self.state.own(&pod.metadata.uid, &container.name);
                        out.push(own.map_or("shared".to_owned(), CpuSet::to_string));
                    }
                    Err(Refusal::Named(reason, message)) => return format!("{reason}: {message}"),
                    Err(Refusal::Unexpected(error)) => return error,
                }
            }
            out.join(" ")
        }
    }

    #[test]
    fn whole_processors_are_given() {
        let full = Options { full_pcpus_only: true, ..Options::default() };
        for (name, options, reserved, init, main, mask, want) in [
            ("single", Options::default(), 1, &[] as &[(&str, &str)], &["2"] as &[&str], None, "1,5"),
            ("single", Options::default(), 1, &[], &["1", "1"], None, "4 1"),
            ("single", Options::default(), 1, &[], &["1500m"], None, "shared"),
            (
                "single",
                Options::default(),
                1,
                &[],
                &["8"],
                None,
                "not enough cpus available to satisfy request: requested=8, available=7",
            ),
            ("dual", Options::default(), 1, &[], &["4"], Some(Mask::of([1])), "1,3,7,9"),
            ("dual", Options::default(), 1, &[], &["8"], Some(Mask::of([1])), "1-3,5,7-9,11"),
            // An init container's are the main one's, too; a sidecar's are not.
            ("single", Options::default(), 1, &[("2", "")], &["2"], None, "1,5 1,5"),
            ("single", Options::default(), 1, &[("2", "sidecar")], &["2"], None, "1,5 2,6"),
            ("single", full, 2, &[], &["2"], None, "1,5"),
            (
                "single",
                full,
                2,
                &[],
                &["3"],
                None,
                "SMTAlignmentError: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
            ),
            (
                "single",
                full,
                1,
                &[],
                &["8"],
                None,
                "SMTAlignmentError: SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 6, \
                 requested CPUs = 8, CPUs per core = 2",
            ),
        ] {
            let got = rig(name, options, reserved).serve(&pod("u", init, main), mask);
            assert_eq!(got, want, "{name} {options:?} {main:?}");
        }
    }

    #[test]
    fn processors_come_back() {
        let mut rig = rig("single", Options::default(), 1);
        assert_eq!(rig.state.shared.to_string(), "0-7");
        assert_eq!(rig.serve(&pod("u", &[], &["4"]), None), "1-2,5-6");
        assert_eq!(rig.state.shared.to_string(), "0,3-4,7");
        // The same again changes nothing.
        assert_eq!(rig.serve(&pod("u", &[], &["4"]), None), "1-2,5-6");
        assert!(rig.policy.release(&mut rig.state, "u"));
        assert_eq!(rig.state.shared.to_string(), "0-7");
        assert!(!rig.policy.release(&mut rig.state, "u"));
        let strict = Options { strict_reservation: true, ..Options::default() };
        assert_eq!(self::rig("single", strict, 2).state.shared.to_string(), "1-3,5-7");
    }

    #[test]
    fn states_are_checked() {
        let strict = Options { strict_reservation: true, ..Options::default() };
        for (options, shared, own, want) in [
            (Options::default(), "0-7", "", ""),
            (Options::default(), "0,2-4,6-7", "1,5", ""),
            (Options::default(), "", "1,5", "default cpuset cannot be empty"),
            (
                Options::default(),
                "1-7",
                "",
                "not all reserved cpus: \"0\" are present in defaultCpuSet: \"1-7\"",
            ),
            (
                Options::default(),
                "0-7",
                "1,5",
                "pod: u, container: c cpuset: \"1,5\" overlaps with default cpuset \"0-7\"",
            ),
            (
                Options::default(),
                "0-6",
                "",
                "current set of available CPUs \"0-7\" doesn't match with CPUs in state \"0-6\"",
            ),
            (
                strict,
                "0-7",
                "",
                "some of strictly reserved cpus: \"0\" are present in defaultCpuSet: \"0-7\"",
            ),
            (strict, "1-7", "", ""),
        ] {
            let mut rig = rig("single", options, 1);
            rig.state.shared = CpuSet::parse(shared).unwrap();
            rig.state.assigned.clear();
            if !own.is_empty() {
                let own = [("c".to_owned(), CpuSet::parse(own).unwrap())].into();
                rig.state.assigned.insert("u".to_owned(), own);
            }
            assert_eq!(rig.policy.start(&mut rig.state).err().unwrap_or_default(), want, "{shared} {own}");
        }
        let all = CpuSet::parse("0,9").unwrap();
        assert!(StaticPolicy::new(machine("single"), Options::default(), 2, &all).is_err());
        assert!(StaticPolicy::new(machine("single"), Options::default(), 9, &CpuSet::default()).is_err());
    }

    #[test]
    fn hints_say_which_nodes_have_enough() {
        let socket = Options { align_by_socket: true, ..Options::default() };
        let text = |hints: Hints| match hints.get("cpu") {
            None => "any".to_owned(),
            Some(list) => {
                let one = |h: &Hint| {
                    let nodes: String = h.affinity.unwrap().nodes().map(|n| n.to_string()).collect();
                    format!("{nodes}{}", if h.preferred { '+' } else { '-' })
                };
                list.iter().flatten().map(one).collect::<Vec<_>>().join(" ")
            }
        };
        for (name, options, main, want) in [
            ("dual", Options::default(), &["2"] as &[&str], "0+ 1+ 01-"),
            ("dual", Options::default(), &["6"], "1+ 01-"),
            ("dual", Options::default(), &["8"], "01+"),
            ("dual", Options::default(), &["500m"], "any"),
            ("multi", socket, &["21"], "01+ 02- 03- 12- 13- 23+ 012- 013- 023- 123- 0123-"),
        ] {
            let rig = rig(name, options, 1);
            let pod = pod("u", &[], main);
            let got = text(rig.policy.hints(&rig.state, &pod, Some(&pod.spec.containers[0])));
            let whole = text(rig.policy.hints(&rig.state, &pod, None));
            assert_eq!(whole, got);
            if options == socket {
                // Both nodes of one socket are as good as can be; so are two of two, which are as few nodes.
                assert!(got.starts_with("01+") && got.contains("23+") && got.contains("012-"), "{got}");
            } else {
                assert_eq!(got, want, "{name} {main:?}");
            }
        }
    }
}
