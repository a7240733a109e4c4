//! The table of plugins, in the order in which they filter.
//!
//! Each plugin is one file. A row says its weight in scoring (0: it does not score) and which events make its
//! rejections worth a retry.

mod balanced_allocation;
mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod resources_fit;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::{borrow::Cow, sync::Arc};

use crate::{
    cluster::{Cluster, NodeInfo},
    devices::claim::Claim,
    pod::PodInfo,
    storage::Decision,
};

pub use dynamic_resources::{Decision as DevicesDecision, claims};
pub use node_declared_features::Features as NodeFeatures;

/// The best score of a node.
pub const MAX_SCORE: i64 = 100;

/// What happened in the cluster: a set of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// No event.
    pub const NONE: Self = Self(0);
    /// A node came.
    pub const NODE_ADDED: Self = Self(1);
    /// A node's labels changed.
    pub const NODE_LABELS: Self = Self(1 << 1);
    /// A node's taints or cordon changed.
    pub const NODE_TAINTS: Self = Self(1 << 2);
    /// A node's resources changed.
    pub const NODE_ALLOCATABLE: Self = Self(1 << 3);
    /// A pod came to a node, or its labels changed there.
    pub const POD_ADDED: Self = Self(1 << 4);
    /// A pod left a node.
    pub const POD_REMOVED: Self = Self(1 << 5);
    /// A claim came or changed; matters to pods that use it.
    pub const CLAIM: Self = Self(1 << 6);
    /// A volume came or changed.
    pub const VOLUME: Self = Self(1 << 7);
    /// A storage class came, or allows more nodes.
    pub const STORAGE_CLASS: Self = Self(1 << 8);
    /// A node's CSI drivers attach more volumes.
    pub const CSI_NODE: Self = Self(1 << 9);
    /// A CSI driver no longer has to be asked for its room.
    pub const CSI_DRIVER: Self = Self(1 << 10);
    /// A CSI driver has more room.
    pub const CSI_CAPACITY: Self = Self(1 << 11);
    /// A volume was detached from a node.
    pub const DETACHED: Self = Self(1 << 12);
    /// A claim for devices came or changed; matters to pods that use it.
    pub const RESOURCE_CLAIM: Self = Self(1 << 13);
    /// Devices have become free.
    pub const DEVICES_FREED: Self = Self(1 << 14);
    /// A class of devices came or changed.
    pub const DEVICE_CLASS: Self = Self(1 << 15);
    /// Devices came or changed.
    pub const RESOURCE_SLICE: Self = Self(1 << 16);

    /// A pod holds less of its node than before.
    pub const POD_SHRANK: Self = Self(1 << 17);
    /// A node declares other features.
    pub const NODE_FEATURES: Self = Self(1 << 18);

    /// Both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets share an event.
    pub const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a node does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// As upstream words them: `Insufficient cpu`.
    pub reasons: Vec<Cow<'static, str>>,
    /// It would stay so whichever pods left the node: preemption cannot help.
    pub lasting: bool,
    /// Something is wrong that no other node would make right: the attempt ends.
    pub error: bool,
}

impl Rejection {
    /// A rejection that no pod's leaving would cure.
    fn lasting(reason: &'static str) -> Self {
        Self { lasting: true, ..reason.into() }
    }

    /// The end of the attempt.
    fn error(reason: String) -> Self {
        Self { error: true, ..reason.into() }
    }
}

impl From<&'static str> for Rejection {
    fn from(reason: &'static str) -> Self {
        Self { reasons: vec![Cow::Borrowed(reason)], lasting: false, error: false }
    }
}

impl From<String> for Rejection {
    fn from(reason: String) -> Self {
        Self { reasons: vec![Cow::Owned(reason)], lasting: false, error: false }
    }
}

/// A plugin's word that no node will do, whichever pods went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose word it is.
    pub plugin: &'static str,
    /// Why, as upstream words it.
    pub reason: String,
    /// Events that may lift it.
    pub events: Events,
    /// Something is wrong, and it is tried again anyway.
    pub error: bool,
}

/// What is worked out once for a pod, before any node is looked at.
#[derive(Default)]
pub struct State {
    spread: pod_topology_spread::Prepared,
    affinity: inter_pod_affinity::Prepared,
    /// Whether the plugins for volumes have anything to look at.
    volumes: bool,
    /// Whether the pod needs features of its node.
    features: bool,
    restrictions: volume_restrictions::Prepared,
    zones: volume_zone::Prepared,
    /// What becomes of the pod's claims.
    binding: volume_binding::Prepared,
    /// What becomes of its claims for devices.
    devices: dynamic_resources::Prepared,
    /// Set where no node needs to be looked at.
    pub refusal: Option<Refusal>,
}

impl State {
    /// Looks at the whole cluster, where the pod has rules that need it.
    pub fn new(pod: &PodInfo, cluster: &Cluster) -> Self {
        let mut out = Self {
            volumes: !(pod.claims.is_empty() && pod.disks.is_empty()),
            features: cluster.asks_for_features() && !pod.features.is_empty(),
            ..Self::default()
        };
        if out.volumes
            && let Err((plugin, reason)) = out.look_at_volumes(pod, cluster)
        {
            out.refusal = Some(Refusal { plugin, reason, events: events_of(plugin), error: false });
            return out;
        }
        if pod.needs_devices()
            && let Err(obstacle) = out.look_at_devices(pod, cluster)
        {
            let (plugin, events) = (DYNAMIC_RESOURCES, events_of(DYNAMIC_RESOURCES));
            out.refusal = Some(match obstacle {
                dynamic_resources::Obstacle::Wait(reason) => Refusal { plugin, reason, events, error: false },
                dynamic_resources::Obstacle::Error(why) => {
                    let reason = format!("running PreFilter plugin \"{DYNAMIC_RESOURCES}\": {why}");
                    Refusal { plugin, reason, events, error: true }
                }
            });
            return out;
        }
        out.spread = pod_topology_spread::Prepared::new(pod, cluster);
        out.affinity = inter_pod_affinity::Prepared::new(pod, cluster);
        out
    }

    /// Whether a plugin has anything to look at.
    pub fn concerns(&self, row: &Row) -> bool {
        match row.only {
            Only::Every => true,
            Only::Volumes => self.volumes,
            Only::Features => self.features,
            Only::Devices => !self.devices.is_empty(),
        }
    }

    /// What a node would mean for the pod's claims.
    pub fn decide(&self, cluster: &Cluster, node: &str) -> Option<Decision> {
        let place = cluster.nodes().iter().find(|n| n.name() == node)?;
        self.binding.decide(&cluster.storage, place).ok()
    }

    /// What a node would mean for the pod's claims for devices.
    pub fn decide_devices(&self, cluster: &Cluster, node: &str) -> Option<dynamic_resources::Decision> {
        let place = cluster.nodes().iter().find(|n| n.name() == node)?;
        self.devices.decide(&cluster.devices, place).ok()
    }

    /// Claims for devices whose allocation kept the pod off some node that was looked at.
    pub fn unavailable_claims(&self) -> Vec<Arc<Claim>> {
        self.devices.unavailable()
    }

    fn look_at_devices(
        &mut self,
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<(), dynamic_resources::Obstacle> {
        self.devices = dynamic_resources::Prepared::new(pod, &cluster.devices)?;
        Ok(())
    }

    /// `Err`: who refuses the pod, and why.
    fn look_at_volumes(&mut self, pod: &PodInfo, cluster: &Cluster) -> Result<(), (&'static str, String)> {
        let by = |plugin| move |reason| (plugin, reason);
        self.restrictions =
            volume_restrictions::Prepared::new(pod, cluster).map_err(by("VolumeRestrictions"))?;
        self.binding = volume_binding::Prepared::new(pod, &cluster.storage).map_err(by("VolumeBinding"))?;
        self.zones = volume_zone::Prepared::new(pod, cluster).map_err(by("VolumeZone"))?;
        Ok(())
    }
}

const DYNAMIC_RESOURCES: &str = "DynamicResources";

/// What may lift a plugin's refusal.
fn events_of(plugin: &str) -> Events {
    PLUGINS.iter().find(|row| row.name == plugin).map_or(Events::NONE, |row| row.events)
}

/// What makes a node fit or good.
pub trait Plugin: Sync {
    /// Whether the node can run the pod.
    fn filter(&self, _: &PodInfo, _: &State, _: &Cluster, _: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// Whether scoring can tell nodes apart for this pod.
    fn scores(&self, _: &PodInfo, _: &State) -> bool {
        true
    }

    /// How good the node is; any scale if `normalize` brings it to 0..=[`MAX_SCORE`].
    fn score(&self, _: &PodInfo, _: &State, _: &Cluster, _: &NodeInfo) -> i64 {
        0
    }

    /// Brings the scores of all fitting nodes to 0..=[`MAX_SCORE`].
    fn normalize(&self, _: &State, _: &[&NodeInfo], _: &mut [i64]) {}
}

/// A row of the table.
pub struct Row {
    /// Upstream's name.
    pub name: &'static str,
    /// The behaviour.
    pub plugin: &'static dyn Plugin,
    /// Weight in scoring.
    pub weight: i64,
    /// Events that may turn a rejection into a fit.
    pub events: Events,
    /// Whom it is asked about.
    pub only: Only,
}

/// Which pods a plugin has something to say of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// All.
    Every,
    /// Those with volumes.
    Volumes,
    /// Those with claims for devices.
    Devices,
    /// Those that need features of their nodes.
    Features,
}

const fn row(name: &'static str, plugin: &'static dyn Plugin, weight: i64, events: Events) -> Row {
    Row { name, plugin, weight, events, only: Only::Every }
}

const fn volumes(name: &'static str, plugin: &'static dyn Plugin, events: Events) -> Row {
    Row { name, plugin, weight: 0, events, only: Only::Volumes }
}

/// All plugins.
pub static PLUGINS: &[Row] = &[
    row("NodeUnschedulable", &node_unschedulable::NodeUnschedulable, 0, Events::NODE_TAINTS),
    row("NodeName", &node_name::NodeName, 0, Events::NONE),
    row("TaintToleration", &taint_toleration::TaintToleration, 3, Events::NODE_TAINTS),
    row("NodeAffinity", &node_affinity::NodeAffinity, 2, Events::NODE_LABELS),
    row("NodePorts", &node_ports::NodePorts, 0, Events::POD_REMOVED),
    row(
        "NodeResourcesFit",
        &resources_fit::ResourcesFit,
        1,
        Events::POD_REMOVED.and(Events::POD_SHRANK).and(Events::NODE_ALLOCATABLE).and(Events::DEVICE_CLASS),
    ),
    volumes(
        "VolumeRestrictions",
        &volume_restrictions::VolumeRestrictions,
        Events::POD_REMOVED.and(Events::CLAIM),
    ),
    volumes(
        "NodeVolumeLimits",
        &node_volume_limits::NodeVolumeLimits,
        Events::POD_REMOVED.and(Events::CLAIM).and(Events::CSI_NODE).and(Events::DETACHED),
    ),
    volumes(
        "VolumeBinding",
        &volume_binding::VolumeBinding,
        Events::CLAIM
            .and(Events::VOLUME)
            .and(Events::STORAGE_CLASS)
            .and(Events::NODE_LABELS)
            .and(Events::CSI_NODE)
            .and(Events::CSI_DRIVER)
            .and(Events::CSI_CAPACITY),
    ),
    volumes(
        "VolumeZone",
        &volume_zone::VolumeZone,
        Events::CLAIM.and(Events::VOLUME).and(Events::STORAGE_CLASS).and(Events::NODE_LABELS),
    ),
    row(
        "PodTopologySpread",
        &pod_topology_spread::PodTopologySpread,
        2,
        Events::POD_REMOVED.and(Events::POD_ADDED).and(Events::NODE_LABELS),
    ),
    row(
        "InterPodAffinity",
        &inter_pod_affinity::InterPodAffinity,
        2,
        Events::POD_REMOVED.and(Events::POD_ADDED).and(Events::NODE_LABELS),
    ),
    Row {
        name: "NodeDeclaredFeatures",
        plugin: &node_declared_features::NodeDeclaredFeatures,
        weight: 0,
        events: Events::NODE_FEATURES,
        only: Only::Features,
    },
    Row {
        name: DYNAMIC_RESOURCES,
        plugin: &dynamic_resources::DynamicResources,
        weight: 2,
        events: Events::NODE_LABELS
            .and(Events::NODE_ALLOCATABLE)
            .and(Events::RESOURCE_CLAIM)
            .and(Events::DEVICES_FREED)
            .and(Events::DEVICE_CLASS)
            .and(Events::RESOURCE_SLICE),
        only: Only::Devices,
    },
    row("NodeResourcesBalancedAllocation", &balanced_allocation::BalancedAllocation, 1, Events::NONE),
    row("ImageLocality", &image_locality::ImageLocality, 1, Events::NONE),
];

/// The places of some rows, as bits.
pub fn places(which: impl Fn(&Row) -> bool) -> u64 {
    PLUGINS.iter().enumerate().filter(|(_, row)| which(row)).fold(0, |bits, (place, _)| bits | 1 << place)
}

/// Asks each plugin in turn; the first that turns the node down wins. The number is its row.
pub fn filter(
    pod: &PodInfo,
    state: &State,
    cluster: &Cluster,
    node: &NodeInfo,
) -> Result<(), (usize, Rejection)> {
    for (index, row) in PLUGINS.iter().enumerate() {
        if !state.concerns(row) {
            continue;
        }
        row.plugin.filter(pod, state, cluster, node).map_err(|rejection| (index, rejection))?;
    }
    Ok(())
}

/// Scales scores so that the best becomes [`MAX_SCORE`]; `reverse`: the lowest is the best.
fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        if most == 0 {
            *score = if reverse { MAX_SCORE } else { 0 };
            continue;
        }
        *score = MAX_SCORE * *score / most;
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}
