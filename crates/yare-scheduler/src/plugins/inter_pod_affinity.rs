//! `InterPodAffinity`: pods that want to be near others, or far from them.

use std::collections::HashMap;

use super::{MAX_SCORE, Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::{PodInfo, PodTerm},
    selector::label,
};

/// What a required affinity of a pod already there adds to the score of its topology.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

type Topology = (Box<str>, Box<str>);

/// Per topology (key and value): how many pods meet the incoming pod's terms, or reject it.
#[derive(Default)]
pub struct Prepared {
    affinity: HashMap<Topology, i64>,
    anti_affinity: HashMap<Topology, i64>,
    /// Pods already there whose own anti-affinity speaks of the incoming pod.
    existing_anti: HashMap<Topology, i64>,
    scores: HashMap<Topology, i64>,
}

impl Prepared {
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Self {
        let mut out = Self::default();
        let own_terms =
            !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty());
        if !own_terms && !cluster.any_affinity() {
            return out;
        }
        let labels_of = |p: &PodInfo| cluster.namespace_labels(p.object.namespace());
        let own_labels = labels_of(pod);
        for node in cluster.nodes() {
            if !own_terms && node.pods_with_affinity == 0 {
                continue;
            }
            let at = |term: &PodTerm| {
                label(node.labels(), &term.topology_key)
                    .map(|value| (term.topology_key.clone(), Box::<str>::from(value)))
            };
            for other in node.pods.values() {
                let speaks_of_other = |t: &PodTerm| {
                    t.matches(other.object.namespace(), labels_of(other), other.object.labels())
                };
                let speaks_of_pod =
                    |t: &PodTerm| t.matches(pod.object.namespace(), own_labels, pod.object.labels());
                // The terms of required affinity hold together: a pod counts when it meets all of them.
                if !pod.affinity.is_empty() && pod.affinity.iter().all(speaks_of_other) {
                    pod.affinity.iter().filter_map(at).for_each(|t| *out.affinity.entry(t).or_default() += 1);
                }
                for term in pod.anti_affinity.iter().filter(|t| speaks_of_other(t)) {
                    at(term).into_iter().for_each(|t| *out.anti_affinity.entry(t).or_default() += 1);
                }
                for term in pod.preferred_pods.iter().filter(|t| speaks_of_other(t)) {
                    at(term).into_iter().for_each(|t| *out.scores.entry(t).or_default() += term.weight);
                }
                for term in other.anti_affinity.iter().filter(|t| speaks_of_pod(t)) {
                    at(term).into_iter().for_each(|t| *out.existing_anti.entry(t).or_default() += 1);
                }
                for term in other.affinity.iter().filter(|t| speaks_of_pod(t)) {
                    at(term)
                        .into_iter()
                        .for_each(|t| *out.scores.entry(t).or_default() += HARD_AFFINITY_WEIGHT);
                }
                for term in other.preferred_pods.iter().filter(|t| speaks_of_pod(t)) {
                    at(term).into_iter().for_each(|t| *out.scores.entry(t).or_default() += term.weight);
                }
            }
        }
        out
    }
}

impl Plugin for InterPodAffinity {
    fn filter(
        &self,
        pod: &PodInfo,
        state: &State,
        cluster: &Cluster,
        node: &NodeInfo,
    ) -> Result<(), Rejection> {
        let prepared = &state.affinity;
        let count = |counts: &HashMap<Topology, i64>, term: &PodTerm| {
            label(node.labels(), &term.topology_key)
                .and_then(|value| counts.get(&(term.topology_key.clone(), value.into())).copied())
                .unwrap_or_default()
        };
        if !pod.affinity.is_empty() {
            if pod.affinity.iter().any(|t| label(node.labels(), &t.topology_key).is_none()) {
                return Err(Rejection::lasting("node(s) didn't match pod affinity rules"));
            }
            let all_met = pod.affinity.iter().all(|t| count(&prepared.affinity, t) > 0);
            // The first pod of a group that wants its own company may start anywhere.
            let own_labels = cluster.namespace_labels(pod.object.namespace());
            let first = prepared.affinity.is_empty()
                && pod
                    .affinity
                    .iter()
                    .all(|t| t.matches(pod.object.namespace(), own_labels, pod.object.labels()));
            if !all_met && !first {
                return Err(Rejection::lasting("node(s) didn't match pod affinity rules"));
            }
        }
        if pod.anti_affinity.iter().any(|t| count(&prepared.anti_affinity, t) > 0) {
            return Err("node(s) didn't match pod anti-affinity rules".into());
        }
        let rejected = prepared
            .existing_anti
            .keys()
            .any(|(key, value)| label(node.labels(), key).is_some_and(|v| v == &**value));
        if rejected {
            return Err("node(s) didn't satisfy existing pods anti-affinity rules".into());
        }
        Ok(())
    }

    fn scores(&self, _: &PodInfo, state: &State) -> bool {
        !state.affinity.scores.is_empty()
    }

    fn score(&self, _: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let scores = state.affinity.scores.iter();
        scores
            .filter(|((key, value), _)| label(node.labels(), key).is_some_and(|v| v == &**value))
            .map(|(_, score)| score)
            .sum()
    }

    fn normalize(&self, _: &State, _: &[&NodeInfo], scores: &mut [i64]) {
        let (least, most) = scores.iter().fold((i64::MAX, i64::MIN), |(l, m), s| (l.min(*s), m.max(*s)));
        for score in scores {
            *score = if most > least { MAX_SCORE * (*score - least) / (most - least) } else { 0 };
        }
    }
}
