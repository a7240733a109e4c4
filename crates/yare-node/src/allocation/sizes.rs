//! What the containers of a pod, and the pod as a whole, ask for and may use: read off a pod, put into a pod,
//! compared by amount.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use yare_schema::features::Gates;

use crate::quantity;
use crate::view::{Container, Pod, ResourceRequirements, nullable};

/// Resources that can be resized.
const RESIZED: [&str; 2] = ["cpu", "memory"];

/// What of a pod can be resized here, by feature gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switches {
    /// `InPlacePodVerticalScalingInitContainers`: init containers that are no sidecars.
    pub(crate) init: bool,
    /// `InPlacePodLevelResourcesVerticalScaling`: the pod as a whole.
    pub(crate) pod: bool,
    /// `InPlacePodVerticalScalingExclusiveCPUs`
    pub(crate) exclusive_cpus: bool,
    /// `InPlacePodVerticalScalingExclusiveMemory`
    pub(crate) exclusive_memory: bool,
}

impl Switches {
    pub(crate) fn new(gates: &Gates) -> Self {
        Switches {
            init: gates.is_on("InPlacePodVerticalScalingInitContainers"),
            pod: gates.is_on("InPlacePodLevelResourcesVerticalScaling"),
            exclusive_cpus: gates.is_on("InPlacePodVerticalScalingExclusiveCPUs"),
            exclusive_memory: gates.is_on("InPlacePodVerticalScalingExclusiveMemory"),
        }
    }

    /// The containers of a pod that can be resized, init containers first.
    pub(crate) fn resizable<'a>(&self, pod: &'a Pod) -> impl Iterator<Item = &'a Container> {
        let all = self.init;
        let init = pod.spec.init_containers.iter().filter(move |c| all || c.is_sidecar());
        init.chain(&pod.spec.containers)
    }
}

/// Sizes of one pod, in the form of upstream's checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Sizes {
    /// By container.
    #[serde(rename = "ContainerResources", deserialize_with = "nullable")]
    pub(crate) containers: BTreeMap<String, ResourceRequirements>,
    /// Of the pod as a whole.
    #[serde(rename = "PodLevelResources")]
    pub(crate) pod: Option<ResourceRequirements>,
}

impl Sizes {
    /// What a pod's spec says.
    pub(crate) fn of(pod: &Pod, switches: Switches) -> Self {
        let containers = switches.resizable(pod).map(|c| (c.name.clone(), c.resources.clone()));
        Sizes { containers: containers.collect(), pod: pod.spec.resources.clone().filter(|_| switches.pod) }
    }

    /// What a pod's status says that its containers were given, where it says so: allocated with what it asks for, and
    /// in force. `None` where no status has sizes.
    pub(crate) fn told(pod: &Pod, switches: Switches) -> Option<(Self, Self)> {
        let (mut allocated, mut in_force) = (Self::of(pod, switches), Self::of(pod, switches));
        let mut any = false;
        for (name, size) in &mut allocated.containers {
            let Some(status) = pod.status.container(name) else { continue };
            let Some(actual) = status.resources.as_ref().filter(|_| status.state.running.is_some()) else {
                continue;
            };
            any = true;
            in_force.containers.insert(name.clone(), actual.clone());
            size.limits.clone_from(&actual.limits);
            size.requests.clone_from(&status.allocated_resources);
        }
        if let (Some(of_pod), Some(actual)) = (&mut allocated.pod, &pod.status.resources) {
            // The status counts overhead and has sums of what the pod itself does not say.
            for (mine, theirs) in
                [(&mut of_pod.requests, &actual.requests), (&mut of_pod.limits, &actual.limits)]
            {
                for (name, amount) in mine.iter_mut().filter(|(n, _)| RESIZED.contains(&n.as_str())) {
                    if let Some(told) = theirs.get(name).filter(|_| pod.spec.overhead.is_empty()) {
                        amount.clone_from(told);
                    }
                }
            }
            in_force.pod.clone_from(&allocated.pod);
        }
        any.then_some((allocated, in_force))
    }

    /// Whether a pod asks for anything else than this.
    pub(crate) fn differs(&self, pod: &Pod, switches: Switches) -> bool {
        let of_pod = |set: &Option<ResourceRequirements>| set.clone().unwrap_or_default();
        let other =
            |c: &Container| self.containers.get(&c.name).is_some_and(|size| !same(size, &c.resources));
        switches.resizable(pod).any(other)
            || (switches.pod
                && self.pod != pod.spec.resources
                && !same(&of_pod(&self.pod), &of_pod(&pod.spec.resources)))
    }

    /// The pod with these sizes in the place of those that it asks for.
    pub(crate) fn apply(&self, pod: &Arc<Pod>, switches: Switches) -> Arc<Pod> {
        if !self.differs(pod, switches) {
            return pod.clone();
        }
        let mut pod = Pod::clone(pod);
        let all = pod.spec.init_containers.iter_mut().chain(&mut pod.spec.containers);
        for container in all {
            if let Some(size) = self.containers.get(&container.name) {
                container.resources.clone_from(size);
            }
        }
        if switches.pod {
            pod.spec.resources.clone_from(&self.pod);
        }
        Arc::new(pod)
    }

    /// The larger of each amount: what a pod holds while it is being resized.
    pub(crate) fn larger(&self, other: &Self) -> Self {
        let mut out = self.clone();
        for (name, size) in &mut out.containers {
            if let Some(other) = other.containers.get(name) {
                raise(size, other);
            }
        }
        if let (Some(mine), Some(other)) = (&mut out.pod, &other.pod) {
            raise(mine, other);
        }
        out
    }
}

fn raise(size: &mut ResourceRequirements, other: &ResourceRequirements) {
    for (mine, theirs) in [(&mut size.requests, &other.requests), (&mut size.limits, &other.limits)] {
        for name in RESIZED {
            if let (Some(amount), Some(more)) = (mine.get_mut(name), theirs.get(name))
                && quantity::nanos(more) > quantity::nanos(amount)
            {
                amount.clone_from(more);
            }
        }
    }
}

/// Whether two sizes are the same amounts, however written.
pub(crate) fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    let amounts = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
        a.len() == b.len()
            && a.iter().zip(b).all(|((an, av), (bn, bv))| {
                an == bn && (av == bv || quantity::nanos(av) == quantity::nanos(bv))
            })
    };
    a == b || (a.claims == b.claims && amounts(&a.limits, &b.limits) && amounts(&a.requests, &b.requests))
}

/// The limits that hold for a container: its own, and of the pod's those that it has none of.
pub(crate) fn effective(
    container: &ResourceRequirements,
    pod: Option<&ResourceRequirements>,
) -> ResourceRequirements {
    let mut out = container.clone();
    for name in RESIZED {
        if let Some(limit) = pod.and_then(|p| p.limits.get(name)) {
            out.limits.entry(name.to_owned()).or_insert_with(|| limit.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Switches = Switches { init: true, pod: true, exclusive_cpus: false, exclusive_memory: false };

    fn pod(spec: serde_json::Value, status: serde_json::Value) -> Arc<Pod> {
        let pod = serde_json::json!({"metadata": {"uid": "u"}, "spec": spec, "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn spec(a: &str, level: &str) -> serde_json::Value {
        serde_json::json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": a}, "limits": {"memory": "1Gi"}}}],
            "resources": {"requests": {"cpu": level}}})
    }

    #[test]
    fn amounts_count_and_not_how_they_are_written() {
        let none = serde_json::json!({});
        let had = pod(spec("100m", "2"), none.clone());
        let sizes = Sizes::of(&had, ALL);
        for (a, level, switches, differs) in [
            ("0.1", "2000m", ALL, false),
            ("200m", "2", ALL, true),
            ("100m", "3", ALL, true),
            ("100m", "3", Switches { pod: false, ..ALL }, false),
        ] {
            let wants = pod(spec(a, level), none.clone());
            let sizes = Sizes::of(&had, switches);
            assert_eq!(sizes.differs(&wants, switches), differs, "{a} {level}");
            let applied = sizes.apply(&wants, switches);
            assert_eq!(Arc::ptr_eq(&applied, &wants), !differs);
            if differs {
                assert!(!sizes.differs(&applied, switches));
            }
        }
        // A container that cannot be resized is what its spec says.
        let less = Switches { init: false, ..ALL };
        assert!(!Sizes::of(&had, less).containers.contains_key("i") && sizes.containers.contains_key("i"));
    }

    #[test]
    fn while_it_is_resized_a_pod_holds_the_larger_amounts() {
        let none = serde_json::json!({});
        let [small, large] = ["100m", "200m"].map(|a| Sizes::of(&pod(spec(a, "2"), none.clone()), ALL));
        assert_eq!(small.larger(&large).containers["a"].requests["cpu"], "200m");
        assert_eq!(large.larger(&small), large);
    }

    #[test]
    fn a_status_tells_what_was_given() {
        let status = serde_json::json!({"containerStatuses": [{"name": "a", "state": {"running": {}},
            "allocatedResources": {"cpu": "50m"}, "resources": {"requests": {"cpu": "40m"}, "limits": {"memory": "1Gi"}}}],
            "resources": {"requests": {"cpu": "1", "memory": "5"}}});
        let (allocated, in_force) = Sizes::told(&pod(spec("100m", "2"), status), ALL).unwrap();
        assert_eq!(allocated.containers["a"].requests["cpu"], "50m");
        assert_eq!(in_force.containers["a"].requests["cpu"], "40m");
        assert_eq!(allocated.pod.unwrap().requests, BTreeMap::from([("cpu".to_owned(), "1".to_owned())]));
        assert_eq!(Sizes::told(&pod(spec("100m", "2"), serde_json::json!({})), ALL), None);
    }

    #[test]
    fn a_container_without_a_limit_has_the_pods() {
        let set = |text: serde_json::Value| serde_json::from_value::<ResourceRequirements>(text).unwrap();
        let whole = set(serde_json::json!({"limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "2Mi"}}));
        let own = set(serde_json::json!({"limits": {"cpu": "1"}}));
        assert_eq!(
            effective(&own, Some(&whole)),
            set(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}))
        );
        assert_eq!(effective(&own, None), own);
    }
}
