//! What an evicted pod's status and event say, in upstream's words.

use std::collections::BTreeMap;

use yare_schema::quantity::{Format, Quantity};

use super::rank::Candidate;
use super::signals::{Observations, Starved};
use super::thresholds::Threshold;

/// `status.reason` of an evicted pod, and the reason of its event.
pub(crate) const REASON: &str = "Evicted";

/// An amount of bytes as messages write it.
fn bytes(amount: u64) -> Quantity {
    Quantity::new(i64::try_from(amount).unwrap_or(i64::MAX), Format::BinarySi)
}

fn parsed(text: Option<&String>) -> Quantity {
    text.and_then(|t| Quantity::parse(t).ok()).unwrap_or(Quantity::ZERO)
}

/// Why a pod has to go, and the annotations of the event that says so.
pub(crate) fn explain(
    starved: Starved,
    candidate: &Candidate,
    thresholds: &[Threshold],
    observations: &Observations,
) -> (String, BTreeMap<String, String>) {
    let name = starved.name();
    let mut message = format!("The node was low on resource: {name}. ");
    let of_resource = thresholds.iter().filter(|t| t.signal.row().starved == starved);
    if let Some((threshold, observed)) =
        of_resource.filter_map(|t| Some((t, observations.get(&t.signal)?))).next()
    {
        let wanted = threshold.value.of(observed.capacity);
        let left = observed.available(threshold.signal);
        message.push_str(&format!("Threshold quantity: {wanted}, available: {left}. "));
    }
    let mut annotations = BTreeMap::new();
    let Some(usage) = &candidate.usage else { return (message, annotations) };
    let mut note = |key: &str, value: String| {
        annotations.insert(key.to_owned(), value);
    };
    let pod = &candidate.pod;
    let level = pod.spec.resources.as_ref().and_then(|r| r.requests.get(name));
    if starved == Starved::Memory
        && let (Some(request), Some(used)) = (level, usage.memory_bytes)
    {
        let (used, pod) = (bytes(used), &pod.metadata.name);
        let request = parsed(Some(request));
        message.push_str(&format!(
            "Pod {pod} was using {used}, request is {request}, has larger consumption of {name}. "
        ));
        note("offending_pod", pod.clone());
        note("offending_pod_usage", used.to_string());
    }
    let (mut names, mut uses) = (Vec::new(), Vec::new());
    for of_container in &usage.containers {
        let all = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let Some(container) = all.into_iter().find(|c| c.name == of_container.name) else { continue };
        let used = match starved {
            Starved::EphemeralStorage => Some(of_container.rootfs.bytes + of_container.logs.bytes),
            Starved::Memory => of_container.memory_bytes,
            Starved::Inodes | Starved::Pids => None,
        };
        let request = parsed(container.resources.requests.get(name));
        let Some(used) = used.map(bytes).filter(|used| *used > request) else { continue };
        message.push_str(&format!(
            "Container {} was using {used}, request is {request}, has larger consumption of {name}. ",
            container.name
        ));
        names.push(container.name.clone());
        uses.push(used.to_string());
    }
    note("offending_containers", names.join(","));
    note("offending_containers_usage", uses.join(","));
    note("starved_resource", name.to_owned());
    (message, annotations)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::eviction::signals::{Observation, Signal};
    use crate::eviction::thresholds::{self, Threshold};
    use crate::eviction::usage::{ContainerUsage, PodUsage, Usage};
    use crate::resources::EvictionSettings;

    fn setting() -> (Vec<Threshold>, Observations) {
        let settings = EvictionSettings {
            hard: BTreeMap::from([
                ("memory.available".into(), "100Mi".into()),
                ("nodefs.available".into(), "10%".into()),
                ("nodefs.inodesFree".into(), "5%".into()),
            ]),
            ..EvictionSettings::default()
        };
        let observations = Observations::from([
            (Signal::MemoryAvailable, Observation { available: 90 << 20, capacity: 1 << 30 }),
            (Signal::NodeFsAvailable, Observation { available: 1 << 20, capacity: 1000 << 20 }),
            (Signal::NodeFsInodesFree, Observation { available: 10, capacity: 1000 }),
        ]);
        (thresholds::parse(&settings, false).unwrap(), observations)
    }

    #[test]
    fn words() {
        let (thresholds, observations) = setting();
        let pod = json!({"metadata": {"name": "web"}, "spec": {
            "containers": [
                {"name": "a", "resources": {"requests": {"memory": "50Mi", "ephemeral-storage": "1Gi"}}},
                {"name": "b"}],
            "resources": {"requests": {"memory": "60Mi"}}}});
        let container = |name: &str, memory: u64, root: u64, logs: u64| ContainerUsage {
            name: name.into(),
            memory_bytes: Some(memory),
            rootfs: Usage { bytes: root, inodes: 1 },
            logs: Usage { bytes: logs, inodes: 1 },
        };
        let candidate = Candidate {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            usage: Some(PodUsage {
                memory_bytes: Some(80 << 20),
                containers: vec![container("a", 64 << 20, 4096, 0), container("b", 0, 1 << 20, 1 << 20)],
                ..PodUsage::default()
            }),
        };
        for (starved, want) in [
            (
                Starved::Memory,
                "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. \
                 Pod web was using 80Mi, request is 60Mi, has larger consumption of memory. \
                 Container a was using 64Mi, request is 50Mi, has larger consumption of memory. ",
            ),
            (
                Starved::EphemeralStorage,
                "The node was low on resource: ephemeral-storage. Threshold quantity: 104857601, available: 1Mi. \
                 Container b was using 2Mi, request is 0, has larger consumption of ephemeral-storage. ",
            ),
            (
                Starved::Inodes,
                "The node was low on resource: inodes. Threshold quantity: 50, available: 10. ",
            ),
            (Starved::Pids, "The node was low on resource: pids. "),
        ] {
            let (message, annotations) = explain(starved, &candidate, &thresholds, &observations);
            assert_eq!(message, want);
            assert_eq!(annotations["starved_resource"], starved.name());
        }
        let (_, annotations) = explain(Starved::Memory, &candidate, &thresholds, &observations);
        assert_eq!(annotations["offending_containers"], "a");
        assert_eq!(annotations["offending_containers_usage"], "64Mi");
        assert_eq!(annotations["offending_pod_usage"], "80Mi");
        let unknown = Candidate { usage: None, ..candidate };
        let (message, annotations) = explain(Starved::Memory, &unknown, &thresholds, &observations);
        assert_eq!(
            message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. "
        );
        assert!(annotations.is_empty());
    }
}
