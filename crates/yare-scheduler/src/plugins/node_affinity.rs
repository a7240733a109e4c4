//! `NodeAffinity`: `nodeSelector`, required and preferred node affinity.

use super::{Plugin, Rejection, State, normalize_to_max};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.allows_node(node.name(), node.labels()) {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) didn't match Pod's node affinity/selector"))
    }

    fn scores(&self, pod: &PodInfo, _: &State) -> bool {
        !pod.preferred_nodes.is_empty()
    }

    fn score(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let matching = pod.preferred_nodes.iter().filter(|(_, t)| t.matches(node.name(), node.labels()));
        matching.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _: &State, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}
