//! What taints of devices say: which devices claims have, which taints those have, and when pods have to go because
//! of them.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    resource_claim::Consumer,
    views::{Condition, Meta, after, nullable},
};

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ClaimView {
    pub(super) status: ClaimStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ClaimStatus {
    allocation: Option<Allocation>,
    #[serde(deserialize_with = "nullable")]
    pub(super) reserved_for: Vec<Consumer>,
}

impl ClaimStatus {
    /// The devices that it has.
    pub(super) fn given(&self) -> &[Given] {
        self.allocation.as_ref().map_or(&[], |a| &a.devices.results)
    }

    /// The same, without the rest.
    pub(super) fn into_given(self) -> Vec<Given> {
        self.allocation.map(|a| a.devices.results).unwrap_or_default()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Allocation {
    devices: Devices,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Devices {
    #[serde(deserialize_with = "nullable")]
    results: Vec<Given>,
}

/// A device that a claim has.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Given {
    pub(super) driver: String,
    pub(super) pool: String,
    pub(super) device: String,
    #[serde(deserialize_with = "nullable")]
    tolerations: Vec<Toleration>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
    toleration_seconds: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SliceView {
    pub(super) spec: SliceSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SliceSpec {
    pub(super) driver: String,
    pub(super) pool: Pool,
    #[serde(deserialize_with = "nullable")]
    pub(super) devices: Vec<Device>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) name: String,
    generation: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) taints: Vec<Taint>,
}

#[derive(Clone, Deserialize, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Taint {
    key: String,
    value: String,
    pub(super) effect: String,
    time_added: Option<Timestamp>,
}

impl Taint {
    /// Whether it drives pods away.
    pub(super) fn evicts(&self) -> bool {
        self.effect == "NoExecute"
    }
}

impl Toleration {
    /// Only what names the effect keeps a pod running.
    fn tolerates(&self, taint: &Taint) -> bool {
        self.effect == "NoExecute"
            && (self.key.is_empty() || self.key == taint.key)
            && match &*self.operator {
                "" | "Equal" => self.value == taint.value,
                "Exists" => true,
                _ => false,
            }
    }
}

impl SliceSpec {
    pub(super) fn evicts(&self) -> bool {
        self.devices.iter().flat_map(|d| &d.taints).any(Taint::evicts)
    }
}

/// The slices that say what there is now: those of the newest generation of their pool.
pub(super) fn newest(slices: &[SliceSpec]) -> impl Iterator<Item = &SliceSpec> {
    let mut generations: HashMap<(&str, &str), i64> = HashMap::new();
    for slice in slices {
        let newest = generations.entry((&slice.driver, &slice.pool.name)).or_insert(slice.pool.generation);
        *newest = slice.pool.generation.max(*newest);
    }
    slices.iter().filter(move |s| generations.get(&(&*s.driver, &*s.pool.name)) == Some(&s.pool.generation))
}

/// What is read of a DeviceTaintRule.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RuleView {
    pub(super) metadata: Meta,
    pub(super) spec: RuleSpec,
    pub(super) status: RuleStatus,
}

#[derive(Clone, Deserialize, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuleSpec {
    device_selector: Option<DeviceSelector>,
    pub(super) taint: Taint,
}

#[derive(Clone, Deserialize, Default, Debug, PartialEq, Eq)]
#[serde(default)]
struct DeviceSelector {
    driver: Option<String>,
    pool: Option<String>,
    device: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RuleStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<Condition>,
}

impl RuleSpec {
    /// Whether the device has the taint. An empty selector means all devices, none means none.
    pub(super) fn selects(&self, driver: &str, pool: &str, device: &str) -> bool {
        let fits = |wanted: &Option<String>, got: &str| wanted.as_deref().is_none_or(|wanted| wanted == got);
        self.device_selector
            .as_ref()
            .is_some_and(|s| fits(&s.driver, driver) && fits(&s.pool, pool) && fits(&s.device, device))
    }

    /// Whether pods with the device would have to go at some time, if its effect were `NoExecute`.
    pub(super) fn drives_from(&self, given: &Given) -> bool {
        self.selects(&given.driver, &given.pool, &given.device)
            && due(given, &self.taint, Timestamp::UNIX_EPOCH).is_some()
    }
}

/// When pods with the device have to go because of a taint that evicts; `None`: it is tolerated. A taint that does
/// not say since when it is there is new.
pub(super) fn due(given: &Given, taint: &Taint, now: Timestamp) -> Option<Timestamp> {
    let matching = || given.tolerations.iter().filter(|t| t.tolerates(taint));
    if matching().any(|t| t.toleration_seconds.is_none()) {
        return None;
    }
    let seconds = matching().filter_map(|t| t.toleration_seconds).min().unwrap_or(0);
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(after(taint.time_added.unwrap_or(now), seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_first_limit_counts() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let added: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let taint =
            Taint { key: "k".into(), value: "v".into(), effect: "NoExecute".into(), time_added: Some(added) };
        let tolerates = |seconds: Value| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let cases = [
            (json!([]), Some(0)),
            (json!([tolerates(Value::Null)]), None),
            (json!([tolerates(json!(300))]), Some(300)),
            (json!([tolerates(json!(300)), tolerates(json!(30))]), Some(30)),
            (json!([tolerates(json!(-5))]), Some(0)),
            (json!([tolerates(json!(300)), tolerates(Value::Null)]), None),
            // A toleration of every effect is about scheduling only.
            (json!([{"operator": "Exists"}]), Some(0)),
            (json!([{"operator": "Equal", "effect": "NoExecute", "key": "k", "value": "w"}]), Some(0)),
            (json!([{"operator": "Equal", "effect": "NoExecute", "key": "k", "value": "v"}]), None),
            (json!([{"operator": "Exists", "effect": "NoExecute"}]), None),
        ];
        for (tolerations, expected) in cases {
            let given = Given {
                tolerations: serde_json::from_value(tolerations.clone()).unwrap(),
                ..Given::default()
            };
            let expected = expected.map(|s| after(added, Duration::from_secs(s)));
            assert_eq!(due(&given, &taint, now), expected, "{tolerations}");
        }
        let without = Taint { time_added: None, ..taint };
        assert_eq!(due(&Given::default(), &without, now), Some(now));
    }

    #[test]
    fn rules_select_devices() {
        let device = ("gpu.example.com", "p", "d");
        for (selector, expected) in [
            (Value::Null, false),
            (json!({}), true),
            (json!({"driver": "gpu.example.com"}), true),
            (json!({"driver": "nic.example.com"}), false),
            (json!({"driver": "gpu.example.com", "pool": "p", "device": "d"}), true),
            (json!({"pool": "p"}), true),
            (json!({"pool": "q"}), false),
            (json!({"device": "d"}), true),
            (json!({"driver": "gpu.example.com", "device": "e"}), false),
        ] {
            let rule: RuleSpec = serde_json::from_value(json!({"deviceSelector": selector})).unwrap();
            assert_eq!(rule.selects(device.0, device.1, device.2), expected, "{selector}");
        }
    }

    #[test]
    fn old_generations_do_not_count() {
        let slice = |pool: &str, generation: i64| {
            let spec = json!({"driver": "d", "pool": {"name": pool, "generation": generation}});
            serde_json::from_value::<SliceSpec>(spec).unwrap()
        };
        let slices = [slice("p", 1), slice("q", 1), slice("p", 2), slice("p", 2)];
        let left: Vec<_> = newest(&slices).map(|s| (&*s.pool.name, s.pool.generation)).collect();
        assert_eq!(left, [("q", 1), ("p", 2), ("p", 2)]);
    }
}
