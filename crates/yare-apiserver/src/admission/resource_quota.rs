//! ResourceQuota: what a namespace's quotas do not leave room for is refused, and what is taken is written to
//! their status in the same transaction as the object.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::OwnedMutexGuard;
use yare_kinds::{
    quota::{self, Change, DeviceClasses, Usage},
    view::{View, ViewMut},
};
use yare_store::{Expect, Op, Write};

use super::Attributes;
use crate::{
    codec,
    status::{ApiError, ApiResult},
};

/// Kind of quotas in the store.
pub const QUOTAS: &str = "resourcequotas";
const DEVICE_CLASSES: &str = "resource.k8s.io/deviceclasses";
const RESOURCE_CLAIMS: &str = "resource.k8s.io/resourceclaims";

/// Whose turn it is to write to a namespace's quotas: without turns, writers that share a quota would refuse each
/// other's transactions.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// A turn, for as long as it is held.
pub struct Turn(#[allow(dead_code, reason = "held, not used")] Option<OwnedMutexGuard<()>>);

/// Namespaces whose turns are remembered before those that nobody waits for are forgotten.
const MAX_TURNS: usize = 256;

/// Waits for the turn to be charged. A namespace without quotas has none to wait for.
pub async fn turn(attributes: &Attributes<'_>) -> Turn {
    let admission = attributes.admission();
    let store = attributes.call.core.store();
    if !admission.quota || attributes.namespace.is_empty() || attributes.dry_run {
        return Turn(None);
    }
    let snapshot = store.snapshot(QUOTAS);
    if snapshot.is_empty() || snapshot.count(&format!("{}/", attributes.namespace)) == 0 {
        return Turn(None);
    }
    let lock = {
        let mut turns = admission.turns.0.lock();
        if turns.len() > MAX_TURNS {
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        turns.entry(attributes.namespace.to_owned()).or_default().clone()
    };
    Turn(Some(lock.lock_owned().await))
}

/// Checks the object against the quotas of its namespace. Gives the writes that record what it takes.
pub fn charge(attributes: &Attributes<'_>, new: &Value, old: Option<&Value>) -> ApiResult<Vec<Write>> {
    let stored = &attributes.served.stored;
    let change = Change {
        group: &stored.group,
        plural: &stored.plural,
        subresource: attributes.subresource,
        new,
        old,
    };
    if !attributes.admission().quota || !stored.namespaced || !change.is_counted() {
        return Ok(Vec::new());
    }
    let core = &attributes.call.core;
    let snapshot = core.store().snapshot(QUOTAS);
    let prefix = format!("{}/", attributes.namespace);
    let limited = attributes
        .settings()
        .limited_resources
        .iter()
        .any(|l| l.group == change.group && l.resource == change.plural || !l.match_scopes.is_empty());
    if !limited && (snapshot.is_empty() || snapshot.count(&prefix) == 0) {
        return Ok(Vec::new());
    }
    let objects: Vec<_> = snapshot.range(std::ops::Bound::Unbounded, &prefix).collect();
    let mut quotas: Vec<Value> =
        objects.iter().map(|o| serde_json::from_slice(&o.bytes).unwrap_or_default()).collect();
    let check = Check { attributes, change };
    let touched = check.run(&mut quotas)?;
    if attributes.dry_run {
        return Ok(Vec::new());
    }
    let registry = core.registry.load();
    let Some(served) = registry.stored(QUOTAS) else { return Ok(Vec::new()) };
    let mut writes = Vec::new();
    for i in touched {
        writes.push(Write {
            kind: objects[i].kind.clone(),
            key: objects[i].key.to_string(),
            expect: Expect::Revision(objects[i].revision),
            op: Op::Put(codec::draft(&served.stored, &mut quotas[i])?),
        });
    }
    Ok(writes)
}

/// One write against the quotas of its namespace.
struct Check<'a> {
    attributes: &'a Attributes<'a>,
    change: Change<'a>,
}

/// What claims for devices are counted by beside the classes that they name.
struct Devices<'a> {
    classes: DeviceClasses,
    attributes: &'a Attributes<'a>,
}

impl<'a> Devices<'a> {
    /// None: the write is no claim's, or extended resources stand for no classes here.
    fn of(attributes: &'a Attributes<'a>, change: Change<'_>) -> Option<Self> {
        let core = &attributes.call.core;
        let is_claim = (change.group, change.plural) == ("resource.k8s.io", "resourceclaims");
        if !is_claim || !core.config.gates.is_on("DRAExtendedResource") {
            return None;
        }
        let snapshot = core.store().snapshot(DEVICE_CLASSES);
        let objects = snapshot.range(std::ops::Bound::Unbounded, "");
        let classes = objects.map(|object| serde_json::from_slice(&object.bytes).unwrap_or_default());
        Some(Devices { classes: DeviceClasses::new(classes), attributes })
    }

    /// What the pod that a claim was made for is charged for.
    fn charged(&self, claim: &Value, now: Timestamp) -> Usage {
        let Some((pod, _)) = quota::pod_with_extended_resources(claim) else { return Usage::new() };
        let store = self.attributes.call.core.store();
        let prefix = format!("{}/", self.attributes.namespace);
        let pods = store.snapshot("pods");
        let Some(pod) = pods.get(&format!("{prefix}{pod}")) else { return Usage::new() };
        let pod: Value = serde_json::from_slice(&pod.bytes).unwrap_or_default();
        let claims = store.snapshot(RESOURCE_CLAIMS);
        let claims: Vec<Value> = claims
            .range(std::ops::Bound::Unbounded, &prefix)
            .map(|object| serde_json::from_slice(&object.bytes).unwrap_or_default())
            .collect();
        quota::of_pod(claim, &pod, claims.iter(), now)
    }
}

/// What a quota is about to be charged.
struct Charge {
    quota: usize,
    hard: Usage,
    delta: Usage,
}

fn listed(usage: &Usage, names: &BTreeSet<&String>) -> String {
    let shown = usage.iter().filter(|(k, _)| names.contains(k)).map(|(k, v)| format!("{k}={v}"));
    shown.collect::<Vec<_>>().join(",")
}

impl Check<'_> {
    fn forbidden(&self, why: impl std::fmt::Display) -> ApiError {
        self.attributes.forbidden_object(self.change.new, why)
    }

    fn in_scope(&self, scope: &Value, object: &Value) -> bool {
        quota::in_scope(scope, self.change.group, self.change.plural, object)
    }

    /// Charges the quotas; gives the places of those that changed.
    fn run(&self, quotas: &mut [Value]) -> ApiResult<Vec<usize>> {
        let Change { group, plural, new, old, .. } = self.change;
        let now = self.attributes.call.core.now();
        let devices = Devices::of(self.attributes, self.change);
        let mut charges = Vec::new();
        let mut covered: BTreeSet<String> = BTreeSet::new();
        let mut covered_scopes: Vec<Value> = Vec::new();
        for (i, quota) in quotas.iter().enumerate() {
            let scopes = quota::scopes(quota);
            covered_scopes.extend(scopes.iter().filter(|s| self.in_scope(s, new)).cloned());
            let hard = quota::amounts(quota.at("status.hard"));
            let mut ours = quota::matching(group, plural, hard.keys().map(String::as_str));
            if let Some(devices) = &devices {
                ours.extend(devices.classes.matching(hard.keys().map(String::as_str)));
            }
            if ours.is_empty() || !scopes.iter().all(|s| self.in_scope(s, new)) {
                continue;
            }
            let name = quota.str_at("metadata.name");
            if (group, plural) == ("", "pods") {
                self.check_specified(name, &ours)?;
            }
            let used = quota.at("status.used");
            if ours.iter().any(|resource| used.get(*resource).is_none()) {
                let ours: Vec<&str> = ours.into_iter().collect();
                return Err(self
                    .forbidden(format!("status unknown for quota: {name}, resources: {}", ours.join(","))));
            }
            covered.extend(ours.into_iter().map(str::to_owned));
            charges.push(Charge { quota: i, hard, delta: Usage::new() });
        }
        let usage_of = |object: &Value| {
            let mut usage = quota::usage(group, plural, object, now);
            if let Some(devices) = &devices {
                devices.classes.extend(&mut usage, &devices.charged(object, now));
            }
            usage
        };
        let usage = usage_of(new);
        let negative: Vec<&str> =
            usage.iter().filter(|(_, v)| v.signum() < 0).map(|(k, _)| k.as_str()).collect();
        if !negative.is_empty() {
            return Err(
                self.forbidden(format!("quota usage is negative for resource(s): {}", negative.join(",")))
            );
        }
        let before = old.map(usage_of).unwrap_or_default();
        let mut grown = usage.clone();
        for (name, value) in &mut grown {
            if let Some(had) = before.get(name) {
                *value -= *had;
            }
        }
        let positive = |usage: &Usage| -> Usage {
            usage.iter().filter(|(_, v)| v.signum() > 0).map(|(k, v)| (k.clone(), *v)).collect()
        };
        for charge in &mut charges {
            // What was not in the quota before is charged whole.
            let had = old.is_some_and(|old| quota::matches(&quotas[charge.quota], group, plural, old));
            charge.delta = positive(if had { &grown } else { &usage });
        }
        let takes = if charges.is_empty() {
            !positive(&grown).is_empty()
        } else {
            charges.iter().any(|c| !c.delta.is_empty())
        };
        if !takes {
            return Ok(Vec::new());
        }
        self.check_covered(&usage, &covered, &covered_scopes)?;
        let mut touched = Vec::new();
        for charge in charges {
            if self.take(&charge, &mut quotas[charge.quota])? {
                touched.push(charge.quota);
            }
        }
        Ok(touched)
    }

    /// Where a quota bounds processor or memory, containers say what they need of it.
    fn check_specified(&self, name: &str, bounded: &BTreeSet<&str>) -> ApiResult<()> {
        let missing = quota::unspecified(bounded, self.change.new);
        if missing.is_empty() {
            return Ok(());
        }
        let parts: Vec<String> = missing
            .iter()
            .map(|(resource, containers)| {
                let containers: Vec<&str> = containers.iter().map(String::as_str).collect();
                format!("{resource} for: {}", containers.join(","))
            })
            .collect();
        Err(self.forbidden(format!("failed quota: {name}: must specify {}", parts.join("; "))))
    }

    /// What the configuration limits by default needs a quota that allows it.
    fn check_covered(
        &self,
        usage: &Usage,
        covered: &BTreeSet<String>,
        covered_scopes: &[Value],
    ) -> ApiResult<()> {
        let limits = &self.attributes.settings().limited_resources;
        let ours = limits.iter().filter(|l| l.group == self.change.group && l.resource == self.change.plural);
        let uncovered: BTreeSet<&str> = ours
            .flat_map(|l| &l.match_contains)
            .flat_map(|part| usage.iter().filter(move |(k, v)| v.signum() > 0 && k.contains(part.as_str())))
            .map(|(k, _)| k.as_str())
            .filter(|k| !covered.contains(*k))
            .collect();
        if !uncovered.is_empty() {
            let list: Vec<&str> = uncovered.into_iter().collect();
            return Err(self.forbidden(format!("insufficient quota to consume: {}", list.join(","))));
        }
        let open: Vec<String> = limits
            .iter()
            .flat_map(|l| &l.match_scopes)
            .filter(|scope| self.in_scope(scope, self.change.new))
            .filter(|scope| {
                !covered_scopes.iter().any(|c| c.str_at("scopeName") == scope.str_at("scopeName"))
            })
            .map(|scope| {
                format!(
                    "{{{} {} [{}]}}",
                    scope.str_at("scopeName"),
                    scope.str_at("operator"),
                    scope.strings("values").join(" ")
                )
            })
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        Err(ApiError::internal(format!("insufficient quota to match these scopes: [{}]", open.join(" "))))
    }

    /// Charges a quota. Whether it changed.
    fn take(&self, charge: &Charge, quota: &mut Value) -> ApiResult<bool> {
        let used = quota::amounts(quota.at("status.used"));
        let requested: Usage = charge
            .delta
            .iter()
            .filter(|(k, _)| charge.hard.contains_key(*k))
            .map(|(k, v)| (k.clone(), *v))
            .collect();
        if requested.is_empty() {
            return Ok(false);
        }
        let total: BTreeMap<&String, _> =
            requested.iter().map(|(k, v)| (k, used.get(k).copied().unwrap_or_default().plus(*v))).collect();
        // What a status says has happened already.
        if self.change.subresource != "status" {
            let over: BTreeSet<&String> =
                total.iter().filter(|(k, v)| **v > charge.hard[**k]).map(|(k, _)| *k).collect();
            if !over.is_empty() {
                return Err(self.forbidden(format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    quota.str_at("metadata.name"),
                    listed(&requested, &over),
                    listed(&used, &over),
                    listed(&charge.hard, &over),
                )));
            }
        }
        let total: Vec<(String, Value)> =
            total.into_iter().map(|(k, v)| (k.clone(), v.to_string().into())).collect();
        if !quota.has("status.used") {
            quota.set("status.used", Map::new());
        }
        if let Some(map) = quota.at_mut("status.used").and_then(Value::as_object_mut) {
            map.extend(total);
        }
        Ok(true)
    }
}
