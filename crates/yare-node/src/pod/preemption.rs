//! Which pods go so that a critical one has room (upstream's critical pod admission).
//!
//! In: the pod, what it lacks, the pods that use the node. Out: as few as do, those of the lowest class first, and of
//! equally good ones those that ask for least. What becomes of them is the kubelet's.

use std::sync::Arc;

use super::{qos, totals};
use crate::view::Pod;

/// `status.reason` of a pod that made room, and the reason of its event.
pub(crate) const REASON: &str = "Preempting";
/// Its `status.message`, and the event's.
pub(crate) const MESSAGE: &str = "Preempted in order to admit critical pod";
/// What its condition `DisruptionTarget` says.
pub(crate) const DISRUPTED: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// What a pod lacks: CPU in thousandths, anything else in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) resource: String,
    pub(crate) amount: i128,
}

/// The pods that have to go.
pub(crate) fn choose(
    preemptor: &Pod,
    pods: &[Arc<Pod>],
    short: &[Shortage],
) -> Result<Vec<Arc<Pod>>, String> {
    let of_class = |class: &str| -> Vec<Arc<Pod>> {
        let may = |pod: &&Arc<Pod>| preemptable(preemptor, pod) && qos::class(pod) == class;
        pods.iter().filter(may).cloned().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of_class("BestEffort"), of_class("Burstable"), of_class("Guaranteed"));
    let lower: Vec<Arc<Pod>> = [&best_effort[..], &burstable].concat();
    let unmet = left(&left(short, &lower), &guaranteed);
    if !unmet.is_empty() {
        return Err(nobody(&unmet));
    }
    // Of the highest class those without whom all lower pods would not do, and so on down.
    let guaranteed = nearest(guaranteed, left(short, &lower))?;
    let burstable = nearest(burstable, left(short, &[&best_effort[..], &guaranteed].concat()))?;
    let best_effort = nearest(best_effort, left(short, &[&burstable[..], &guaranteed].concat()))?;
    Ok([best_effort, burstable, guaranteed].concat())
}

fn preemptable(preemptor: &Pod, pod: &Pod) -> bool {
    let higher = preemptor.spec.priority.zip(pod.spec.priority).is_some_and(|(a, b)| a > b);
    (qos::is_critical(preemptor) && !qos::is_critical(pod)) || higher
}

/// What a pod asks for of a resource.
fn request(pod: &Pod, resource: &str) -> i128 {
    let nanos = || totals::requests(pod).get(resource).copied().unwrap_or(0);
    match resource {
        "pods" => 1,
        "cpu" => nanos() / 1_000_000,
        _ => nanos() / 1_000_000_000,
    }
}

/// What is still lacking once these pods are gone.
fn left(short: &[Shortage], pods: &[Arc<Pod>]) -> Vec<Shortage> {
    let one = |s: &Shortage| {
        let freed: i128 = pods.iter().map(|pod| request(pod, &s.resource)).sum();
        Shortage { resource: s.resource.clone(), amount: s.amount - freed }
    };
    short.iter().map(one).filter(|s| s.amount > 0).collect()
}

/// How far a pod's end is from what is lacking, each resource counting alike.
#[allow(clippy::cast_precision_loss, reason = "only compared, and to a fraction of one pod")]
fn distance(pod: &Pod, short: &[Shortage]) -> f64 {
    short
        .iter()
        .map(|s| (s.amount - request(pod, &s.resource)).max(0) as f64 / s.amount as f64)
        .map(|part| part * part)
        .sum()
}

/// Takes the pod that brings most, again and again.
fn nearest(mut pods: Vec<Arc<Pod>>, mut short: Vec<Shortage>) -> Result<Vec<Arc<Pod>>, String> {
    let mut chosen = Vec::new();
    while !short.is_empty() {
        let smaller = |pod: &Pod| (request(pod, "memory"), request(pod, "cpu"));
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            distance(a, &short).total_cmp(&distance(b, &short)).then_with(|| smaller(a).cmp(&smaller(b)))
        });
        let Some((index, _)) = best else { return Err(nobody(&short)) };
        let pod = pods.swap_remove(index);
        short = left(&short, std::slice::from_ref(&pod));
        chosen.push(pod);
    }
    Ok(chosen)
}

fn nobody(short: &[Shortage]) -> String {
    let all: String = short.iter().map(|s| format!("(res: {}, q: {}), ", s.resource, s.amount)).collect();
    format!("no set of running pods found to reclaim resources: [{all}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32, cpu: &str, memory: &str, guaranteed: bool) -> Arc<Pod> {
        let mut resources = serde_json::json!({"requests": {}});
        for (key, amount) in [("cpu", cpu), ("memory", memory)] {
            if !amount.is_empty() {
                resources["requests"][key] = amount.into();
            }
        }
        if guaranteed {
            resources["limits"] = resources["requests"].clone();
        }
        let pod = serde_json::json!({"metadata": {"name": name, "uid": name}, "spec": {
            "priority": priority, "containers": [{"name": "a", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn as_few_as_do_of_the_lowest_class() {
        let critical = pod("critical", 2_000_000_000, "1", "1Gi", false);
        let all = [
            pod("best-effort", 0, "", "", false),
            pod("small", 0, "100m", "100Mi", false),
            pod("medium", 0, "500m", "200Mi", false),
            pod("large", 0, "1", "1Gi", false),
            pod("guaranteed", 0, "1", "1Gi", true),
            pod("other-critical", 2_000_000_000, "4", "4Gi", false),
        ];
        type Lacks<'a> = &'a [(&'a str, i128)];
        let cases: &[(Lacks<'_>, Result<&[&str], &str>)] = &[
            (&[], Ok(&[])),
            (&[("pods", 1)], Ok(&["best-effort"])),
            (&[("cpu", 50)], Ok(&["small"])),
            (&[("cpu", 300)], Ok(&["medium"])),
            (&[("cpu", 300), ("memory", 500 << 20)], Ok(&["large"])),
            (&[("cpu", 1550)], Ok(&["large", "medium", "small"])),
            (&[("cpu", 2000)], Ok(&["large", "guaranteed"])),
            (
                &[("cpu", 9000)],
                Err("no set of running pods found to reclaim resources: [(res: cpu, q: 6400), ]"),
            ),
            (
                &[("vendor.com/gpu", 1)],
                Err("no set of running pods found to reclaim resources: [(res: vendor.com/gpu, q: 1), ]"),
            ),
        ];
        for (lacks, want) in cases {
            let short: Vec<Shortage> =
                lacks.iter().map(|(r, n)| Shortage { resource: (*r).to_owned(), amount: *n }).collect();
            let got = choose(&critical, &all, &short);
            let names =
                got.as_ref().map(|pods| pods.iter().map(|p| p.metadata.name.as_str()).collect::<Vec<_>>());
            assert_eq!(names.as_deref().map_err(|e| e.as_str()), *want, "{lacks:?}");
        }
        let ordinary = pod("ordinary", 5, "1", "", false);
        let short = [Shortage { resource: "cpu".into(), amount: 50 }];
        assert_eq!(choose(&ordinary, &all, &short).unwrap()[0].metadata.name, "small");
        assert!(choose(&pod("lowest", -1, "1", "", false), &all, &short).is_err());
    }
}
