//! `NodeName`: a pod that names its node goes nowhere else. (Such a pod is normally bound already; this holds
//! for one whose name was set while it waited.)

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct NodeName;

impl Plugin for NodeName {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node.is_empty() || &*pod.node == node.name() {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) didn't match the requested node name"))
    }
}
