//! `NodeVolumeLimits`: a CSI driver attaches no more volumes to a node than it said it can.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plugin, Rejection, State};
use crate::{
    cluster::{Cluster, NodeInfo},
    pod::PodInfo,
    storage::Claim,
};

/// A volume by its driver and the driver's name for it; one that is still to be made, by its claim's.
type Name<'a> = (&'a str, String);

pub struct NodeVolumeLimits;

/// The driver's name for a claim's volume. A claim without a volume counts for the driver that will make it.
fn name<'a>(claim: &'a Claim, cluster: &'a Cluster) -> Option<Name<'a>> {
    if let Some(volume) = cluster.storage.volume(&claim.volume).filter(|_| !claim.volume.is_empty()) {
        let (driver, handle) = volume.csi.as_ref()?;
        return Some((driver, handle.to_string()));
    }
    let class = cluster.storage.class(&claim.class)?;
    // No driver names its volumes so.
    Some((&class.provisioner, format!("\0{}", claim.object.key())))
}

fn volumes<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Vec<Name<'a>> {
    let claims = pod.claims.iter().filter_map(|c| cluster.storage.claim(&pod.claim_key(c)));
    claims.filter_map(|claim| name(claim, cluster)).collect()
}

impl Plugin for NodeVolumeLimits {
    fn filter(&self, pod: &PodInfo, _: &State, cluster: &Cluster, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.claims.is_empty() {
            return Ok(());
        }
        let storage = &cluster.storage;
        let drivers = storage.csi_node(node.name());
        let mut new: BTreeSet<Name<'_>> = volumes(pod, cluster).into_iter().collect();
        for (driver, _) in &new {
            let prevents = storage.driver(driver).is_some_and(|d| d.prevents_if_missing);
            if prevents && !drivers.is_some_and(|d| d.has(driver)) {
                return Err(format!("{driver} CSI driver is not installed on the node").into());
            }
        }
        let Some(drivers) = drivers.filter(|d| d.has_limits() && !new.is_empty()) else { return Ok(()) };
        let others = node.pods.values().filter(|p| !p.claims.is_empty());
        let mut there: BTreeSet<Name<'_>> = others.flat_map(|p| volumes(p, cluster)).collect();
        for name in &there {
            new.remove(name);
        }
        // Volumes of pods that are gone stay attached for a while.
        for attachment in storage.attachments_of(node.name()) {
            if let Some(volume) = storage.volume(&attachment.volume)
                && let Some((_, handle)) = &volume.csi
            {
                there.insert((&attachment.attacher, handle.to_string()));
            }
        }
        let mut count: BTreeMap<&str, i64> = BTreeMap::new();
        for (driver, _) in there.iter().chain(&new) {
            *count.entry(driver).or_default() += 1;
        }
        let over = |(driver, _): &Name<'_>| drivers.limit(driver).is_some_and(|most| count[driver] > most);
        if new.iter().any(over) {
            return Err("node(s) exceed max volume count".into());
        }
        Ok(())
    }
}
