//! `NodePorts`: a host port serves one pod.

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

pub struct NodePorts;

impl Plugin for NodePorts {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.ports.iter().any(|p| node.ports.iter().any(|used| used.conflicts(p))) {
            return Err("node(s) didn't have free ports for the requested pod ports".into());
        }
        Ok(())
    }
}
