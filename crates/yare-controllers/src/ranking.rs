//! Which pods to delete first when there are too many.

use std::cmp::Ordering;

use jiff::Timestamp;
use yare_client::Cached;

use crate::views::{PodView, since};

/// Overrides the order: pods with a lower value are deleted first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod that may be deleted.
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Cached,
    /// Its view.
    pub view: &'a PodView,
    /// Active pods of the same family on its node.
    pub related_on_node: usize,
}

/// Indexes of the candidates, the one whose deletion costs least first: not yet assigned to a node before
/// assigned; pending before unknown before running; not ready before ready; lower deletion cost; more
/// relatives on the node; ready for a shorter time (on a logarithmic scale, so that pods of about the same
/// age are chosen at random by uid); more restarts; created later (likewise).
pub fn deletion_order(candidates: &[Candidate<'_>], now: Timestamp) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| compare(&candidates[a], &candidates[b], now));
    order
}

fn compare(a: &Candidate<'_>, b: &Candidate<'_>, now: Timestamp) -> Ordering {
    let phase = |v: &PodView| match &*v.status.phase {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |v: &PodView| {
        v.metadata.annotations.get(DELETION_COST).and_then(|c| c.parse::<i32>().ok()).unwrap_or(0)
    };
    a.pod
        .node_name()
        .is_some()
        .cmp(&b.pod.node_name().is_some())
        .then_with(|| phase(a.view).cmp(&phase(b.view)))
        .then_with(|| a.view.is_ready().cmp(&b.view.is_ready()))
        .then_with(|| cost(a.view).cmp(&cost(b.view)))
        .then_with(|| b.related_on_node.cmp(&a.related_on_node))
        .then_with(|| by_age(a, b, now, PodView::ready_since))
        .then_with(|| most_restarts(b.view).cmp(&most_restarts(a.view)))
        .then_with(|| by_age(a, b, now, |v| v.metadata.creation_timestamp))
        .then_with(|| a.pod.uid().cmp(b.pod.uid()))
}

/// Younger first; within the same power of two of seconds, by uid.
fn by_age(
    a: &Candidate<'_>,
    b: &Candidate<'_>,
    now: Timestamp,
    start: fn(&PodView) -> Option<Timestamp>,
) -> Ordering {
    let (Some(x), Some(y)) = (start(a.view), start(b.view)) else {
        return start(a.view).is_some().cmp(&start(b.view).is_some());
    };
    if x == y {
        return Ordering::Equal;
    }
    let scale = |t: Timestamp| since(now, t).as_secs().checked_ilog2();
    match scale(x).cmp(&scale(y)) {
        Ordering::Equal => a.pod.uid().cmp(b.pod.uid()),
        order => order,
    }
}

fn most_restarts(view: &PodView) -> i32 {
    let all = view.status.container_statuses.iter().chain(&view.status.init_container_statuses);
    all.map(|c| c.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn cheapest_first() {
        let pod = |uid: &str,
                   node: bool,
                   phase: &str,
                   ready: Option<&str>,
                   cost: &str,
                   restarts: i32|
         -> Value {
            let mut v = json!({
                "metadata": {"name": uid, "uid": uid, "annotations": {DELETION_COST: cost}, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {},
                "status": {"phase": phase, "containerStatuses": [{"restartCount": restarts}]},
            });
            if node {
                v["spec"]["nodeName"] = "n".into();
            }
            if let Some(at) = ready {
                v["status"]["conditions"] =
                    json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
            }
            v
        };
        let long = Some("2026-01-01T00:00:00Z");
        let pods = [
            ("i", pod("i", true, "Running", long, "5", 0), 1),
            ("h", pod("h", true, "Running", long, "0", 0), 1),
            ("g", pod("g", true, "Running", long, "0", 3), 1),
            ("f", pod("f", true, "Running", Some("2026-01-02T00:00:00Z"), "0", 0), 1),
            ("e", pod("e", true, "Running", long, "0", 0), 2),
            ("d", pod("d", true, "Running", long, "-5", 0), 1),
            ("c", pod("c", true, "Running", None, "0", 0), 1),
            ("b", pod("b", true, "Pending", None, "0", 0), 1),
            ("a", pod("a", false, "Pending", None, "0", 0), 1),
        ];
        let decoded: Vec<_> = pods
            .iter()
            .map(|(_, json, related)| {
                let cached = Cached::new(json.to_string().into()).unwrap();
                let view: PodView = cached.view().unwrap();
                (cached, view, *related)
            })
            .collect();
        let candidates: Vec<_> =
            decoded.iter().map(|(pod, view, n)| Candidate { pod, view, related_on_node: *n }).collect();
        let order = deletion_order(&candidates, "2026-01-02T00:01:00Z".parse().unwrap());
        let names: Vec<_> = order.into_iter().map(|i| pods[i].0).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    }
}
