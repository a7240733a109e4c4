//! `VolumeRestrictions`: a claim that one pod may use has one user in the cluster, and a disk that only one
//! pod can write to has one user on the node.

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
};

const IN_USE: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

pub struct VolumeRestrictions;

/// What is known before any node is looked at.
#[derive(Default)]
pub struct Prepared {
    /// A placed pod has a claim that only one may use.
    in_use: bool,
}

impl Prepared {
    /// `Err`: why no node will do.
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Result<Self, String> {
        let mut out = Self::default();
        for claim in pod.claims.iter().filter(|c| !c.ephemeral) {
            let key = pod.claim_key(claim);
            let Some(found) = cluster.storage.claim(&key) else {
                return Err(format!("persistentvolumeclaim \"{}\" not found", key.name));
            };
            out.in_use |= found.access_modes.iter().any(|m| **m == *"ReadWriteOncePod")
                && cluster.claim_users(&key) > 0;
        }
        Ok(out)
    }
}

impl Plugin for VolumeRestrictions {
    fn filter(&self, pod: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        let others = || node.pods.values().flat_map(|p| p.disks.iter());
        if pod.disks.iter().any(|disk| others().any(|other| disk.conflicts(other))) {
            return Err("node(s) had no available disk".into());
        }
        if state.restrictions.in_use {
            return Err(IN_USE.into());
        }
        Ok(())
    }
}
