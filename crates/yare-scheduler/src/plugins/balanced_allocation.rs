//! `NodeResourcesBalancedAllocation`: CPU and memory should run out together.

use super::{MAX_SCORE, Plugin, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn scores(&self, pod: &PodInfo, _: &State) -> bool {
        // A pod without requests changes no balance.
        pod.requests.cpu_milli > 0 || pod.requests.memory_bytes > 0
    }

    fn score(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let (have, used, want) = (&node.allocatable, &node.requested, &pod.requests);
        let share = |used: i64, have: i64| if have == 0 { 1.0 } else { (used as f64 / have as f64).min(1.0) };
        let cpu = share(used.cpu_milli + want.cpu_milli, have.cpu_milli);
        let memory = share(used.memory_bytes + want.memory_bytes, have.memory_bytes);
        // The standard deviation of two shares is half their distance.
        let deviation = (cpu - memory).abs() / 2.0;
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
