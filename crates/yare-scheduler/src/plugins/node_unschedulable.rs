//! `NodeUnschedulable`: a cordoned node takes no new pods, unless they tolerate the cordon's taint.

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
    view::Taint,
};

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.spec.unschedulable {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            value: String::new(),
            effect: "NoSchedule".into(),
        };
        if pod.tolerates(&taint) { Ok(()) } else { Err(Rejection::lasting("node(s) were unschedulable")) }
    }
}
