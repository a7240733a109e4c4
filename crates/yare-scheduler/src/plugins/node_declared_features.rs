//! `NodeDeclaredFeatures` (KEP-5328): what a pod needs of its node's agent, the node must say that it can do.

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
    view::PodSpec,
};

pub struct NodeDeclaredFeatures;

/// A set of features, by their places in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

/// A feature, and whether a pod needs it.
type Row = (&'static str, fn(&PodSpec) -> bool);

/// Features that pods can need when they are placed. Others concern changes of pods only.
const FEATURES: [Row; 2] = [
    ("RestartAllContainersOnContainerExits", |spec| {
        let rules = spec.containers.iter().chain(&spec.init_containers).flat_map(|c| &c.restart_policy_rules);
        rules.into_iter().any(|rule| rule.action == "RestartAllContainers")
    }),
    ("UserNamespacesHostNetworkSupport", |spec| spec.host_network && spec.host_users == Some(false)),
];

impl Features {
    fn of(is_in: impl Fn(&Row) -> bool) -> Self {
        let places = FEATURES.iter().enumerate().filter(|(_, row)| is_in(row));
        Self(places.fold(0, |bits, (place, _)| bits | 1 << place))
    }

    /// What a pod needs.
    pub fn needed(spec: &PodSpec) -> Self {
        Self::of(|(_, needs)| needs(spec))
    }

    /// What a node declares.
    pub fn declared(names: &[String]) -> Self {
        Self::of(|(name, _)| names.iter().any(|n| n == name))
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Plugin for NodeDeclaredFeatures {
    fn filter(&self, pod: &PodInfo, _: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.features.0 & !node.features.0 == 0 {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) didn't match Pod's required features"))
    }
}
