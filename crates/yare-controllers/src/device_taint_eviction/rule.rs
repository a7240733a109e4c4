//! What the status of a DeviceTaintRule says of evictions.

use jiff::Timestamp;

use super::taints::{RuleSpec, SliceSpec, newest};
use crate::views::Condition;

/// The type of the condition.
pub(super) const EVICTION_IN_PROGRESS: &str = "EvictionInProgress";

/// What is counted for a rule.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Devices that drivers publish and the rule selects.
    pub(super) published: usize,
    /// The same of devices that claims have.
    pub(super) allocated: usize,
    /// Pods that have to go, now or later.
    pub(super) pods: usize,
    /// In how many namespaces they are.
    pub(super) namespaces: usize,
    /// Pods that were evicted because of it.
    pub(super) evicted: usize,
}

/// How many devices of the slices the rule selects.
pub(super) fn published(rule: &RuleSpec, slices: &[SliceSpec]) -> usize {
    newest(slices)
        .map(|s| s.devices.iter().filter(|d| rule.selects(&s.driver, &s.pool.name, &d.name)).count())
        .sum()
}

/// `1 pod` or `3 pods`.
fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// The condition of a rule with the effect, as of `now`.
pub(super) fn condition(effect: &str, generation: i64, counts: &Counts, now: Timestamp) -> Condition {
    let pending = counts.pods > 0;
    let (mut status, mut message) = ("False", String::new());
    let reason = match effect {
        "NoExecute" if pending => {
            status = "True";
            message = format!(
                "{} in {}.",
                count(counts.pods, "pod needs to be evicted", "pods need to be evicted"),
                count(counts.namespaces, "namespace", "different namespaces"),
            );
            "PodsPendingEviction"
        }
        "NoExecute" if counts.evicted > 0 => "Completed",
        "NoExecute" => "NotStarted",
        "None" => {
            message = format!(
                "{} selected. {} selected. {} would be evicted in {} if the effect was NoExecute. This \
                 information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
                count(counts.published, "published device", "published devices"),
                count(counts.allocated, "allocated device", "allocated devices"),
                count(counts.pods, "pod", "pods"),
                count(counts.namespaces, "namespace", "different namespaces"),
            );
            "NoEffect"
        }
        _ => {
            message = "Eviction only happens for the NoExecute effect.".into();
            "OtherEffect"
        }
    };
    if counts.evicted > 0 {
        let evicted = count(counts.evicted, "pod", "pods");
        let separator = if message.is_empty() { "" } else { " " };
        message = format!("{message}{separator}{evicted} evicted since starting the controller.");
    }
    let condition = Condition::new(EVICTION_IN_PROGRESS, status, reason, message, now);
    Condition { observed_generation: Some(generation), ..condition }
}

/// Whether two conditions say the same.
pub(super) fn says_the_same(a: &Condition, b: &Condition) -> bool {
    let said = |c: &Condition| Condition { last_transition_time: None, ..c.clone() };
    said(a) == said(b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions() {
        let counts = |pods, namespaces, evicted| Counts { pods, namespaces, evicted, ..Counts::default() };
        let seen = |published, allocated, counts| Counts { published, allocated, ..counts };
        let cases = [
            ("NoExecute", counts(0, 0, 0), "False", "NotStarted", ""),
            (
                "NoExecute",
                counts(1, 1, 0),
                "True",
                "PodsPendingEviction",
                "1 pod needs to be evicted in 1 namespace.",
            ),
            (
                "NoExecute",
                counts(3, 2, 1),
                "True",
                "PodsPendingEviction",
                "3 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.",
            ),
            (
                "NoExecute",
                counts(0, 0, 2),
                "False",
                "Completed",
                "2 pods evicted since starting the controller.",
            ),
            (
                "NoSchedule",
                counts(0, 0, 0),
                "False",
                "OtherEffect",
                "Eviction only happens for the NoExecute effect.",
            ),
            (
                "None",
                seen(1, 2, counts(1, 1, 0)),
                "False",
                "NoEffect",
                "1 published device selected. 2 allocated devices selected. 1 pod would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
            ),
            (
                "None",
                seen(0, 1, counts(0, 0, 0)),
                "False",
                "NoEffect",
                "0 published devices selected. 1 allocated device selected. 0 pods would be evicted in 0 different namespaces if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
            ),
        ];
        let now = Timestamp::UNIX_EPOCH;
        for (effect, counts, status, reason, message) in cases {
            let got = condition(effect, 3, &counts, now);
            let said = (&*got.status, &*got.reason, &*got.message);
            assert_eq!(said, (status, reason, message), "{effect} {counts:?}");
            assert_eq!((&*got.kind, got.observed_generation), (EVICTION_IN_PROGRESS, Some(3)));
        }
    }

    #[test]
    fn published_devices_are_those_of_the_newest_generation() {
        let rule: RuleSpec = serde_json::from_value(json!({"deviceSelector": {"driver": "d"}})).unwrap();
        let slice = |driver: &str, generation: i64, devices: &[&str]| {
            let devices: Vec<_> = devices.iter().map(|name| json!({"name": name})).collect();
            let spec = json!({"driver": driver, "pool": {"name": "p", "generation": generation}, "devices": devices});
            serde_json::from_value::<SliceSpec>(spec).unwrap()
        };
        let slices = [slice("d", 1, &["x", "y", "z"]), slice("d", 2, &["x", "y"]), slice("e", 1, &["x"])];
        assert_eq!(published(&rule, &slices), 2);
    }
}
