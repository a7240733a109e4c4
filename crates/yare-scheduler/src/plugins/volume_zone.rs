//! `VolumeZone`: a pod runs in the zone of its volumes, where these say so in their labels.

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
    selector::label,
    storage::ZONE_LABELS,
};

pub struct VolumeZone;

/// Labels (their places in [`ZONE_LABELS`]) and the values that the pod's volumes allow.
#[derive(Default)]
pub struct Prepared(Vec<(usize, Vec<Box<str>>)>);

impl Prepared {
    /// `Err`: why no node will do.
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Result<Self, String> {
        let mut zones = Vec::new();
        for claim in pod.claims.iter().filter(|c| !c.ephemeral) {
            let Some(claim) = cluster.storage.claim(&pod.claim_key(claim)) else { continue };
            // One without a volume waits for its first consumer, or VolumeBinding has refused the pod.
            if claim.volume.is_empty() {
                continue;
            }
            let Some(volume) = cluster.storage.volume(&claim.volume) else {
                return Err(format!("persistentvolume \"{}\" not found", claim.volume));
            };
            zones.extend(volume.zones.iter().cloned());
        }
        Ok(Self(zones))
    }
}

impl Plugin for VolumeZone {
    fn filter(&self, _: &PodInfo, state: &State, _: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        let zones = &state.zones.0;
        if zones.is_empty() {
            return Ok(());
        }
        let labels = node.labels();
        // A cluster of one zone need not say so.
        if ZONE_LABELS.iter().all(|(name, _)| label(labels, name).is_none()) {
            return Ok(());
        }
        let fits = |(at, values): &(usize, Vec<Box<str>>)| {
            let (name, instead) = ZONE_LABELS[*at];
            let have = label(labels, name).or_else(|| label(labels, instead));
            have.is_some_and(|have| values.iter().any(|v| **v == *have))
        };
        if zones.iter().all(fits) {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) had no available volume zone"))
    }
}
