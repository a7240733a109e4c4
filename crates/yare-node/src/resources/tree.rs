//! The tree of cgroups that pods live in: `kubepods`, and below it one group for burstable and one for best-effort
//! pods.
//!
//! In: limits of all pods together, and what the admitted pods ask for. Out: the groups with their limits. The
//! classes' CPU shares follow the pods, told by admission; nothing is looked at in between.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use yare_client::EventKind;
use yare_runtime::{CgroupTree, Resources};

use super::settings::{MemoryReservation, ResourceSettings};
use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::pod::admission::Claims;
use crate::pod::limits;

/// Hugepage limits of the classes: none.
const UNBOUNDED: u64 = 1 << 62;
/// Pods often come and go in numbers; their sums are taken once for all.
const SETTLE: Duration = Duration::from_millis(200);
/// Between attempts to limit all pods, while they use more than that.
const RETRY: Duration = Duration::from_secs(60);

/// A group that is not the pods', limited to what is reserved for it.
struct Own {
    word: &'static str,
    group: fn(&ResourceSettings) -> &String,
    system: bool,
    /// Only what slows down and does not kill.
    compressible: bool,
    done: &'static str,
    failed: &'static str,
}

/// By the word in `enforceNodeAllocatable`.
const OWN: &[Own] = &[
    Own {
        word: "system-reserved",
        group: |s| &s.system_reserved_cgroup,
        system: true,
        compressible: false,
        done: "Updated limits on system reserved cgroup",
        failed: "Failed to enforce System Reserved Cgroup Limits",
    },
    Own {
        word: "kube-reserved",
        group: |s| &s.kube_reserved_cgroup,
        system: false,
        compressible: false,
        done: "Updated limits on kube reserved cgroup",
        failed: "Failed to enforce Kube Reserved Cgroup Limits",
    },
    Own {
        word: "system-reserved-compressible",
        group: |s| &s.system_reserved_cgroup,
        system: true,
        compressible: true,
        done: "Updated limits on system reserved cgroup",
        failed: "Failed to enforce System Reserved Compressible Cgroup Limits",
    },
    Own {
        word: "kube-reserved-compressible",
        group: |s| &s.kube_reserved_cgroup,
        system: false,
        compressible: true,
        done: "Updated limits on kube reserved cgroup",
        failed: "Failed to enforce Kube Reserved Compressible Cgroup Limits",
    },
];

/// The tree of one node.
pub(crate) struct Tree {
    pub(crate) groups: CgroupTree,
    /// `kubepods`, below the configured root.
    pub(crate) root: String,
    changed: Notify,
}

/// The group of all pods below a configured root.
pub(crate) fn root(cgroup_root: &str) -> String {
    match cgroup_root.trim_matches('/') {
        "" => "kubepods".to_owned(),
        root => format!("{root}/kubepods"),
    }
}

impl Tree {
    pub(crate) fn new(groups: CgroupTree, root: String) -> Self {
        Tree { groups, root, changed: Notify::new() }
    }

    /// The pods that were admitted are others now.
    pub(crate) fn pods_changed(&self) {
        self.changed.notify_one();
    }

    /// Groups of the system and the node agent that are to be limited have to be there.
    pub(crate) fn check_own_groups(&self, settings: &ResourceSettings) -> Result<(), String> {
        for own in OWN {
            let group = (own.group)(settings);
            if settings.enforces(own.word) && !self.groups.exists(group.trim_start_matches('/')) {
                return Err(format!("{} on {group:?}: cgroup does not exist", own.failed));
            }
        }
        Ok(())
    }

    fn class(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// Makes the groups. `limits` are those of all pods together.
    pub(crate) fn set_up(&self, limits: &Resources) -> yare_runtime::Result<()> {
        // The default shares would let pods starve beside everything else; the rest is enforced in its own time.
        let shares = Resources { cpu_shares: limits.cpu_shares, ..Resources::default() };
        self.groups.ensure(&self.root, &shares)?;
        self.groups.ensure(&self.class("burstable"), &self.unbounded(None))?;
        self.groups.ensure(&self.class("besteffort"), &self.unbounded(Some(limits::shares(0))))
    }

    fn unbounded(&self, cpu_shares: Option<u64>) -> Resources {
        let hugepages = self.groups.hugepage_sizes().into_iter().map(|size| (size, UNBOUNDED)).collect();
        Resources { cpu_shares, hugepages, ..Resources::default() }
    }

    /// What the classes' groups should have while pods claim this much.
    fn follow(&self, settings: &ResourceSettings, claims: &Claims) -> Vec<(String, Resources)> {
        let mut burstable = Resources {
            cpu_shares: Some(limits::shares(claims.burstable_cpu_milli)),
            ..Resources::default()
        };
        let mut all = Resources::default();
        if settings.memory_qos && self.groups.unified() {
            let protect = settings.memory_reservation == MemoryReservation::TieredReservation;
            let amount = |bytes: i64| if protect { bytes } else { 0 }.to_string();
            // A parent's protection has to cover that of its children.
            let both = claims.guaranteed_memory_bytes.saturating_add(claims.burstable_memory_bytes);
            all.unified.insert("memory.min".to_owned(), amount(both));
            burstable.unified.insert("memory.low".to_owned(), amount(claims.burstable_memory_bytes));
        }
        vec![(self.root.clone(), all), (self.class("burstable"), burstable)]
    }
}

/// Keeps the tree for as long as the node runs.
pub(crate) async fn tend(kubelet: Arc<Kubelet>) {
    let Some(tree) = &kubelet.resources.tree else { return };
    let settings = &kubelet.resources.settings;
    tokio::join!(enforce(&kubelet, tree), async {
        let mut before = None;
        loop {
            let claims = kubelet.claims();
            if before.as_ref() != Some(&claims) {
                for (group, limits) in tree.follow(settings, &claims) {
                    if let Err(error) = tree.groups.ensure(&group, &limits) {
                        tracing::warn!(%error, group, "limits of a class of pods");
                    }
                }
                if settings.memory_qos {
                    let protect = settings.memory_reservation == MemoryReservation::TieredReservation;
                    let told = |bytes: i64| if protect { bytes as f64 } else { 0.0 };
                    let metrics = &kubelet.metrics;
                    metrics.set(&table::MEMORY_QOS_MIN, &[], told(claims.guaranteed_memory_bytes));
                    metrics.set(&table::MEMORY_QOS_LOW, &[], told(claims.burstable_memory_bytes));
                }
                before = Some(claims);
            }
            tree.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
        }
    });
}

/// Limits all pods together, and the groups of the system and the node agent where that is asked for. A limit below
/// what is in use is refused by the kernel until evictions have brought that down.
async fn enforce(kubelet: &Kubelet, tree: &Tree) {
    let resources = &kubelet.resources;
    let settings = &resources.settings;
    let event = |kind, reason: &str, text: String| kubelet.node_event(kind, reason, text);
    let enforced = |text: String| event(EventKind::Normal, "NodeAllocatableEnforced", text);
    let failed = |text: String| event(EventKind::Warning, "FailedNodeAllocatableEnforcement", text);
    for own in OWN.iter().filter(|own| settings.enforces(own.word)) {
        let group = (own.group)(settings);
        let mut limits = resources.reservations.own_limits(own.system, own.compressible);
        if settings.memory_qos
            && let Some(bytes) = limits.memory_limit_bytes
        {
            limits.unified.insert("memory.min".to_owned(), bytes.to_string());
        }
        match tree.groups.update(group.trim_start_matches('/'), &limits) {
            Ok(()) => enforced(format!("{} {group}", own.done)),
            Err(error) => failed(format!("{} on {group:?}: {error}", own.failed)),
        }
    }
    let limits = resources.pods_limits();
    loop {
        match tree.groups.ensure(&tree.root, &limits) {
            Ok(()) => {
                enforced("Updated Node Allocatable limit across pods".to_owned());
                return;
            }
            Err(error) => {
                failed(format!("Failed to update Node Allocatable Limits {:?}: {error}", tree.root));
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots() {
        for (given, want) in
            [("", "kubepods"), ("/", "kubepods"), ("/a/b/", "a/b/kubepods"), ("a", "a/kubepods")]
        {
            assert_eq!(root(given), want);
        }
    }
}
