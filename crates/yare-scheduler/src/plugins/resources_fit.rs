//! `NodeResourcesFit`: requests must be free; nodes with more left over are better (`LeastAllocated`).

use std::borrow::Cow;

use super::{MAX_SCORE, Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct ResourcesFit;

impl Plugin for ResourcesFit {
    fn filter(&self, pod: &PodInfo, _: &State, cluster: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        let (want, have, used) = (&pod.requests, &node.allocatable, &node.requested);
        let short = |want: i64, have: i64, used: i64| want > 0 && want > have - used;
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if node.pods.len() as i64 + 1 > node.max_pods {
            reasons.push("Too many pods".into());
        }
        if short(want.cpu_milli, have.cpu_milli, used.cpu_milli) {
            reasons.push("Insufficient cpu".into());
        }
        if short(want.memory_bytes, have.memory_bytes, used.memory_bytes) {
            reasons.push("Insufficient memory".into());
        }
        if short(want.ephemeral_bytes, have.ephemeral_bytes, used.ephemeral_bytes) {
            reasons.push("Insufficient ephemeral-storage".into());
        }
        // What no plugin counts on this node may be there as devices: that is another plugin's question.
        let counted = |name: &str| have.other(name) > 0 || cluster.devices.class_of_resource(name).is_none();
        for (name, amount) in want.other.iter().filter(|(name, _)| counted(name)) {
            if short(*amount, have.other(name), used.other(name)) {
                reasons.push(format!("Insufficient {name}").into());
            }
        }
        if reasons.is_empty() {
            return Ok(());
        }
        // What the node does not have at all, nobody can make free.
        let lasting = want.cpu_milli > have.cpu_milli
            || want.memory_bytes > have.memory_bytes
            || want.ephemeral_bytes > have.ephemeral_bytes
            || want.other.iter().any(|(name, amount)| *amount > have.other(name) && counted(name));
        Err(Rejection { reasons, lasting, error: false })
    }

    fn score(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let free = |want: i64, have: i64, used: i64| {
            if have == 0 || want + used > have { 0 } else { (have - used - want) * MAX_SCORE / have }
        };
        let (want, have, used) = (&pod.scored, &node.allocatable, &node.scored);
        let cpu = free(want.cpu_milli, have.cpu_milli, used.cpu_milli);
        let memory = free(want.memory_bytes, have.memory_bytes, used.memory_bytes);
        (cpu + memory) / 2
    }
}
