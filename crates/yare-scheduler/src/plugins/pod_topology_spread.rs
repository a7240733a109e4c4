//! `PodTopologySpread`: matching pods are spread evenly over topologies (zones, nodes).

use std::collections::HashMap;

use super::{MAX_SCORE, Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::{PodInfo, Spread},
    selector::label,
};

pub struct PodTopologySpread;

/// How many matching pods each topology holds, for each constraint of the pod.
#[derive(Default)]
pub struct Prepared(Vec<Counts>);

struct Counts {
    pods: HashMap<Box<str>, i64>,
    /// The fewest in any topology; 0 where fewer topologies exist than the constraint wants.
    least: i64,
}

impl Prepared {
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Self {
        Self(pod.spread.iter().map(|constraint| count(pod, constraint, cluster)).collect())
    }
}

fn count(pod: &PodInfo, constraint: &Spread, cluster: &Cluster) -> Counts {
    let mut pods: HashMap<Box<str>, i64> = HashMap::new();
    for node in cluster.nodes() {
        let Some(topology) = label(node.labels(), &constraint.topology_key) else { continue };
        if !counts(pod, constraint, node) {
            continue;
        }
        let here = node
            .pods
            .values()
            .filter(|p| p.object.deletion_timestamp().is_none())
            .filter(|p| p.object.namespace() == pod.object.namespace())
            .filter(|p| constraint.selector.matches(p.object.labels()))
            .count() as i64;
        *pods.entry(topology.into()).or_default() += here;
    }
    let least = if (pods.len() as i64) < constraint.min_domains {
        0
    } else {
        pods.values().copied().min().unwrap_or_default()
    };
    Counts { pods, least }
}

/// Whether a node's topology counts for the pod at all.
fn counts(pod: &PodInfo, constraint: &Spread, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || pod.allows_node(node.name(), node.labels()))
        && (!constraint.honor_taints
            || node.spec.taints.iter().all(|t| t.effect == "PreferNoSchedule" || pod.tolerates(t)))
}

impl Plugin for PodTopologySpread {
    fn filter(&self, pod: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        for (constraint, counts) in pod.spread.iter().zip(&state.spread.0).filter(|(c, _)| c.hard) {
            let Some(topology) = label(node.labels(), &constraint.topology_key) else {
                return Err(Rejection::lasting(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let own = i64::from(constraint.selector.matches(pod.object.labels()));
            let here = counts.pods.get(topology).copied().unwrap_or_default();
            if here + own - counts.least > constraint.max_skew {
                return Err("node(s) didn't match pod topology spread constraints".into());
            }
        }
        Ok(())
    }

    fn scores(&self, pod: &PodInfo, _: &State) -> bool {
        pod.spread.iter().any(|c| !c.hard)
    }

    fn score(&self, pod: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let soft = pod.spread.iter().zip(&state.spread.0).filter(|(c, _)| !c.hard);
        let mut sum = 0.0;
        for (constraint, counts) in soft {
            let Some(topology) = label(node.labels(), &constraint.topology_key) else { return i64::MAX };
            // Rare topologies (few zones) weigh less than common ones (many nodes).
            let weight = ((counts.pods.len() + 2) as f64).ln();
            let here = counts.pods.get(topology).copied().unwrap_or_default();
            sum += here as f64 * weight + (constraint.max_skew - 1) as f64;
        }
        sum.round() as i64
    }

    fn normalize(&self, _: &State, _: &[&NodeInfo], scores: &mut [i64]) {
        // `i64::MAX` marks a node without the topology label: it scores nothing.
        let known = || scores.iter().copied().filter(|s| *s != i64::MAX);
        let (Some(least), Some(most)) = (known().min(), known().max()) else { return scores.fill(0) };
        for score in scores {
            *score = match *score {
                i64::MAX => 0,
                _ if most == 0 => MAX_SCORE,
                s => MAX_SCORE * (most + least - s) / most,
            };
        }
    }
}
