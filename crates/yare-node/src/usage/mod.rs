//! What the node, its pods and their containers use: measured when somebody asks, by `/metrics/cadvisor`,
//! `/metrics/resource` and `/stats/summary` alike.
//!
//! In: the pods that run here and the runtime's word on their containers. Out: a [`NodeUse`], the kernel's numbers
//! by cgroup. Where no cgroup can be read (a runtime on another kernel), the runtime's own numbers stand in.

pub(crate) mod network;
pub(crate) mod processes;
pub(crate) mod rates;

use std::collections::HashMap;
use std::sync::Arc;

use yare_runtime::{
    CgroupTree, ContainerState, ContainerStats, ContainerStatus, GroupCpu, GroupMemoryUsage, GroupUsage,
    RuntimeError,
};

use crate::kubelet::{Kubelet, PodState};
use crate::pod::qos;
use network::Interface;
use processes::Processes;

/// What was measured, all in one go.
pub(crate) struct NodeUse {
    /// Nanoseconds since 1970.
    pub(crate) at_ns: i64,
    /// The machine.
    pub(crate) root: GroupUsage,
    /// The machine's interfaces.
    pub(crate) network: Vec<Interface>,
    /// Groups above pods, by their paths: that of all pods first.
    pub(crate) groups: Vec<(String, GroupUsage)>,
    /// The group of this process and what it uses, where it has one of its own.
    pub(crate) own: Option<(String, GroupUsage)>,
    /// Pods with a sandbox.
    pub(crate) pods: Vec<PodUse>,
}

/// One pod.
pub(crate) struct PodUse {
    pub(crate) state: PodState,
    /// Its cgroup's path, without a slash at its start.
    pub(crate) group: String,
    pub(crate) usage: GroupUsage,
    /// Its interfaces; none with the node's network, and while nothing runs.
    pub(crate) network: Vec<Interface>,
    /// Containers that run.
    pub(crate) containers: Vec<ContainerUse>,
}

/// One container.
pub(crate) struct ContainerUse {
    pub(crate) status: ContainerStatus,
    pub(crate) stats: ContainerStats,
    pub(crate) usage: GroupUsage,
    /// What its processes hold, where that was asked for.
    pub(crate) processes: Option<Processes>,
}

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Groups and interfaces.
    Groups,
    /// Also what each process holds, which takes a look at each of its files.
    Processes,
}

/// The pods that this node knows, as they are published.
pub(crate) fn states(kubelet: &Kubelet) -> Vec<PodState> {
    let published: Vec<_> = kubelet.published.lock().values().cloned().collect();
    published.iter().map(|p| p.0.lock().clone()).collect()
}

/// Measures.
pub(crate) async fn collect(kubelet: &Arc<Kubelet>, depth: Depth) -> Result<NodeUse, RuntimeError> {
    let stats = kubelet.runtime.stats().await?;
    let stats: HashMap<String, ContainerStats> = stats.into_iter().map(|s| (s.id.clone(), s)).collect();
    let states = states(kubelet);
    let tree = kubelet.resources.tree.as_ref().map(|tree| tree.groups.clone());
    let root = kubelet.resources.root_group();
    let now = kubelet.seams.now();
    // Hundreds of small files, none of which waits long; but a thread that serves others should not wait at all.
    let measured = tokio::task::spawn_blocking(move || {
        let tree = tree.unwrap_or_else(CgroupTree::detect);
        let at_ns = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        measure(&tree, &root, states, &stats, depth, at_ns)
    });
    let measured = measured.await;
    measured.map_err(|e| RuntimeError::FailedPrecondition(format!("measuring was abandoned: {e}")))
}

fn measure(
    tree: &CgroupTree,
    root: &str,
    states: Vec<PodState>,
    stats: &HashMap<String, ContainerStats>,
    depth: Depth,
    at_ns: i64,
) -> NodeUse {
    let of = |group: &str| Some((group.to_owned(), tree.usage(group)?));
    let above = [root.to_owned(), format!("{root}/besteffort"), format!("{root}/burstable")];
    let sandboxed = states.into_iter().filter(|s| s.sandbox.is_some());
    NodeUse {
        at_ns,
        root: tree.usage("").unwrap_or_default(),
        network: network::of_process("self"),
        groups: above.iter().filter_map(|group| of(group)).collect(),
        own: own_group().and_then(|group| of(&group)),
        pods: sandboxed.map(|state| pod(tree, root, state, stats, depth)).collect(),
    }
}

fn pod(
    tree: &CgroupTree,
    root: &str,
    state: PodState,
    stats: &HashMap<String, ContainerStats>,
    depth: Depth,
) -> PodUse {
    let group = qos::cgroup_parent(root, &state.pod);
    let containers: Vec<ContainerUse> = state
        .containers
        .iter()
        .filter(|c| c.state == ContainerState::Running)
        .filter_map(|status| {
            let stats = stats.get(&status.id)?.clone();
            let path = stats.cgroup.to_string_lossy();
            let known = (!path.is_empty()).then(|| tree.usage(&path)).flatten();
            let processes = (depth == Depth::Processes && !path.is_empty())
                .then(|| Processes::read(&tree.own_processes(&path), status.pid));
            let usage = known.unwrap_or_else(|| told(&stats));
            Some(ContainerUse { status: status.clone(), usage, processes, stats })
        })
        .collect();
    // Any process of the pod is in its network.
    let network = match state.pod.spec.host_network {
        true => Vec::new(),
        false => {
            let first = containers.iter().map(|c| c.status.pid).find(|pid| *pid > 0);
            let first = first.or_else(|| tree.processes(&group).first().copied());
            first.map(|pid| network::of_process(&pid.to_string())).unwrap_or_default()
        }
    };
    let usage = tree.usage(&group).unwrap_or_else(|| sum(containers.iter().map(|c| &c.usage)));
    PodUse { state, group, usage, network, containers }
}

/// What a runtime tells of a container, where the kernel cannot be asked.
fn told(stats: &ContainerStats) -> GroupUsage {
    GroupUsage {
        cpu: GroupCpu { usage_ns: stats.cpu_usage_ns, ..GroupCpu::default() },
        memory: Some(GroupMemoryUsage {
            usage_bytes: stats.memory_usage_bytes,
            working_set_bytes: stats.memory_working_set_bytes,
            rss_bytes: stats.memory_rss_bytes,
            page_faults: stats.page_faults,
            major_page_faults: stats.major_page_faults,
            limit_bytes: Some(stats.memory_limit_bytes).filter(|l| *l > 0),
            ..GroupMemoryUsage::default()
        }),
        threads: stats.pids,
        ..GroupUsage::default()
    }
}

/// A pod without a group of its own is its containers.
fn sum<'a>(containers: impl Iterator<Item = &'a GroupUsage>) -> GroupUsage {
    let mut all = GroupUsage::default();
    for container in containers {
        all.cpu.usage_ns += container.cpu.usage_ns;
        all.threads += container.threads;
        let one = container.memory.clone().unwrap_or_default();
        let memory = all.memory.get_or_insert_with(GroupMemoryUsage::default);
        memory.usage_bytes += one.usage_bytes;
        memory.working_set_bytes += one.working_set_bytes;
        memory.rss_bytes += one.rss_bytes;
        memory.page_faults += one.page_faults;
        memory.major_page_faults += one.major_page_faults;
    }
    all
}

/// The group that this process is in, where that is not the root.
fn own_group() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.trim_matches('/');
    (!path.is_empty()).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_that_count_alone_are_believed() {
        let stats = ContainerStats {
            id: "a".into(),
            cpu_usage_ns: 7,
            memory_working_set_bytes: 5,
            memory_limit_bytes: 0,
            pids: 2,
            ..ContainerStats::default()
        };
        let usage = told(&stats);
        assert_eq!(usage.memory.as_ref().unwrap().limit_bytes, None);
        let both = sum([&usage, &usage].into_iter());
        assert_eq!((both.cpu.usage_ns, both.threads, both.memory.unwrap().working_set_bytes), (14, 4, 10));
        assert_eq!(sum([].into_iter()).memory, None);
    }
}
