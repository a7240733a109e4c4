//! What the node keeps for itself and what it offers to pods: settings, reservations, the tree of cgroups.
//!
//! In: the machine's capacity and [`ResourceSettings`]. Out: `status.allocatable`, and limits of the groups that
//! hold all pods, so that pods together cannot take what is reserved.

pub(crate) mod oom;
pub(crate) mod reservations;
mod settings;
pub(crate) mod tree;

use yare_runtime::{CgroupTree, Resources};

pub use settings::{
    Amounts, DeadContainers, EvictionSettings, ImageGcSettings, MemoryReservation, ResourceSettings,
    SwapBehavior,
};

use crate::error::{Error, Result};
use crate::eviction::thresholds::{self, Threshold};
use crate::node::capacity::Capacity;
use crate::pod::limits::Policy;
use reservations::Reservations;
use tree::Tree;

/// The settings, and all that follows from them on this machine.
pub(crate) struct NodeResources {
    pub(crate) settings: ResourceSettings,
    capacity: Capacity,
    pub(crate) reservations: Reservations,
    /// Signals and amounts below which they are acted upon.
    pub(crate) thresholds: Vec<Threshold>,
    /// Absent: pods' cgroups are the runtime's alone.
    pub(crate) tree: Option<Tree>,
    /// What becomes of pods' requests and limits.
    pub(crate) policy: Policy,
}

impl NodeResources {
    /// Checks the settings and makes the tree. `groups`: the machine's cgroups, where the node tends them.
    pub(crate) fn new(
        settings: ResourceSettings,
        capacity: Capacity,
        groups: Option<CgroupTree>,
    ) -> Result<Self> {
        let one = Error::Settings;
        let unified = groups.as_ref().is_some_and(CgroupTree::unified);
        if settings.single_process_oom_kill == Some(false) && groups.is_some() && !unified {
            let text = "invalid configuration: singleProcessOOMKill must not be explicitly set to false when using \
                        cgroup v1";
            return Err(one(text.to_owned()));
        }
        let pods_enforced = settings.cgroups_per_qos && settings.enforces("pods");
        let thresholds = thresholds::parse(&settings.eviction, pods_enforced).map_err(one)?;
        let hard = thresholds::hard(&settings.eviction).map_err(one)?;
        let reservations = Reservations::resolve(&settings, &hard, &capacity).map_err(one)?;
        let enforced = settings.enforces("pods");
        let tree = groups
            .clone()
            .filter(|_| settings.cgroups_per_qos)
            .map(|groups| Tree::new(groups, tree::root(&settings.cgroup_root)));
        if let Some(tree) = &tree {
            tree.check_own_groups(&settings).map_err(one)?;
            tree.set_up(&reservations.pods_limits(&capacity, enforced))?;
        }
        // After the tree is made: what its groups can do is seen there.
        let policy = Policy::new(&settings, &capacity, &reservations.allocatable(&capacity), groups.as_ref());
        Ok(NodeResources { settings, capacity, reservations, thresholds, tree, policy })
    }

    /// `status.allocatable`, without what devices add.
    pub(crate) fn allocatable(&self) -> Amounts {
        self.reservations.allocatable(&self.capacity)
    }

    /// Limits of all pods together.
    pub(crate) fn pods_limits(&self) -> Resources {
        self.reservations.pods_limits(&self.capacity, self.settings.enforces("pods"))
    }

    /// The group of all pods.
    pub(crate) fn root_group(&self) -> String {
        tree::root(&self.settings.cgroup_root)
    }
}
