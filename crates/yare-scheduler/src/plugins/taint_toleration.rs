//! `TaintToleration`: taints keep pods away unless they are tolerated; `PreferNoSchedule` only weighs.

use super::{Plugin, Rejection, State, normalize_to_max};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        let hard = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        match node.spec.taints.iter().find(|t| hard(&t.effect) && !pod.tolerates(t)) {
            None => Ok(()),
            Some(_) => Err(Rejection::lasting("node(s) had untolerated taint(s)")),
        }
    }

    fn score(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> i64 {
        let soft = node.spec.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        soft.filter(|t| !pod.tolerates(t)).count() as i64
    }

    fn normalize(&self, _: &State, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }
}
