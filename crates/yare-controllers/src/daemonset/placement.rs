//! Where a DaemonSet's pods run: which nodes fit, and what its pods tolerate there.

use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::Cached;

use crate::{
    node_affinity::NodeChoice,
    node_view::{NodeView, Toleration},
    views::nullable,
};

/// What daemons tolerate besides what their template says: key, effect, only with the host's network.
const TOLERATIONS: [(&str, &str, bool); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute", false),
    ("node.kubernetes.io/unreachable", "NoExecute", false),
    ("node.kubernetes.io/disk-pressure", "NoSchedule", false),
    ("node.kubernetes.io/memory-pressure", "NoSchedule", false),
    ("node.kubernetes.io/pid-pressure", "NoSchedule", false),
    ("node.kubernetes.io/unschedulable", "NoSchedule", false),
    ("node.kubernetes.io/network-unavailable", "NoSchedule", true),
];

/// What decides where a daemon runs.
pub(super) struct Placement {
    choice: NodeChoice,
    tolerations: Vec<Toleration>,
}

impl Placement {
    /// As the template says.
    pub(super) fn new(template: &Value) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Tolerations {
            #[serde(deserialize_with = "nullable")]
            tolerations: Vec<Toleration>,
        }
        let mut spec = template.get("spec").cloned().unwrap_or_default();
        add_tolerations(&mut spec);
        Self {
            choice: serde_json::from_value(spec.clone()).unwrap_or_default(),
            tolerations: serde_json::from_value::<Tolerations>(spec).unwrap_or_default().tolerations,
        }
    }

    /// Whether a daemon should be started there, and whether one that runs there may stay.
    pub(super) fn on(&self, node: &Cached, view: &NodeView) -> (bool, bool) {
        let named = &self.choice.node_name;
        if (!named.is_empty() && named != node.name()) || !self.choice.allows(node) {
            return (false, false);
        }
        let tolerated = |effects: &[&str]| {
            let mut taints = view.spec.taints.iter().filter(|t| effects.contains(&&*t.effect));
            taints.all(|taint| self.tolerations.iter().any(|t| t.tolerates(taint)))
        };
        (tolerated(&["NoSchedule", "NoExecute"]), tolerated(&["NoExecute"]))
    }
}

/// What the set's pods tolerate, in the spec of one.
pub(super) fn add_tolerations(spec: &mut Value) {
    let host_network = spec["hostNetwork"] == true;
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect, only_host) in TOLERATIONS {
        if only_host && !host_network {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec["tolerations"] = tolerations.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_follows_selectors_and_taints() {
        let node = |labels: Value, taints: Value| {
            let json = json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}});
            let cached = Cached::new(json.to_string().into()).unwrap();
            (cached.view::<NodeView>().unwrap(), cached)
        };
        let plain = Placement::new(&json!({"spec": {}}));
        let picky = Placement::new(&json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
        let (view, cached) =
            node(json!({}), json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]));
        assert_eq!(plain.on(&cached, &view), (true, true), "daemons run on cordoned nodes");
        assert_eq!(picky.on(&cached, &view), (false, false));
        let (view, cached) = node(json!({"disk": "ssd"}), json!([{"key": "x", "effect": "NoSchedule"}]));
        assert_eq!(picky.on(&cached, &view), (false, true), "what runs may stay");
        let (view, cached) = node(json!({"disk": "ssd"}), json!([{"key": "x", "effect": "NoExecute"}]));
        assert_eq!(picky.on(&cached, &view), (false, false));
    }
}
