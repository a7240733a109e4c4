//! Evicts pods whose devices have a `NoExecute` taint that their claims do not tolerate, at once or when their
//! `tolerationSeconds` have passed. Taints are those that drivers put into slices.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use yare_client::{Cached, Change, Informer, ObjectKey, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    metrics::{DEVICE_EVICTION_S, DEVICE_EVICTIONS},
    ownership::is_controlled_by,
    pod_end,
    resource_claim::{Consumer, Named, PodClaims},
    views::{PodView, after, nullable, since},
};

struct DeviceTaintEviction {
    context: Context,
    pods: Informer,
    claims: Informer,
    slices: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClaimView {
    status: ClaimStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Allocation>,
    #[serde(deserialize_with = "nullable")]
    reserved_for: Vec<Consumer>,
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
struct Given {
    driver: String,
    pool: String,
    device: String,
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
struct SliceView {
    spec: SliceSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SliceSpec {
    driver: String,
    pool: Pool,
    #[serde(deserialize_with = "nullable")]
    devices: Vec<Device>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pool {
    name: String,
    generation: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Device {
    name: String,
    #[serde(deserialize_with = "nullable")]
    taints: Vec<Taint>,
}

#[derive(Clone, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Taint {
    key: String,
    value: String,
    effect: String,
    time_added: Option<Timestamp>,
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
    fn evicts(&self) -> bool {
        self.devices.iter().flat_map(|d| &d.taints).any(|t| t.effect == "NoExecute")
    }
}

/// The controller; keys are pods.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(DeviceTaintEviction {
        pods: context.informer(PODS),
        claims: context.informer(RESOURCE_CLAIMS),
        slices: context.informer(RESOURCE_SLICES),
        context: context.clone(),
    })
}

/// Pods that were placed, or whose claims are others now.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.new.as_ref().filter(|p| p.node_name().is_some()) else { return };
    if pod.view::<PodClaims>().is_ok_and(|view| !view.has_none()) {
        add(pod.key().clone());
    }
}

fn users(claim: &Cached, add: &mut dyn FnMut(ObjectKey)) {
    let Ok(ClaimView { status }) = claim.view() else { return };
    for user in status.reserved_for.iter().filter(|c| c.is_pod()) {
        add(ObjectKey::new(claim.namespace(), &user.name));
    }
}

/// Pods that have the claim.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(claim) = &change.new {
        users(claim, add);
    }
}

/// Pods that have devices of the slice's pool, where taints may have come or gone.
pub fn changed_slice(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let read = |slice: &Cached| slice.view::<SliceView>().ok().map(|view| view.spec);
    let slices = [&change.new, &change.old].map(|slice| slice.as_ref().and_then(read));
    let Some(spec) = slices.into_iter().flatten().find(SliceSpec::evicts) else { return };
    for claim in context.informer(RESOURCE_CLAIMS).list() {
        let Ok(ClaimView { status }) = claim.view() else { continue };
        let has = |given: &Given| given.driver == spec.driver && given.pool == spec.pool.name;
        if status.allocation.is_some_and(|a| a.devices.results.iter().any(has)) {
            users(&claim, add);
        }
    }
}

#[async_trait]
impl Reconcile for DeviceTaintEviction {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let pod = self.pods.get(key).filter(|p| p.deletion_timestamp().is_none() && p.node_name().is_some());
        let Some(pod) = pod else { return Ok(Next::Done) };
        let (state, now): (PodView, _) = (pod.view()?, self.context.now());
        let given = self.devices_of(&pod)?;
        if given.is_empty() {
            return Ok(Next::Done);
        }
        let taints = self.taints(&given)?;
        match evict_in(&given, &taints, now) {
            None => Ok(Next::Done),
            Some(delay) if !delay.is_zero() => Ok(Next::After(delay)),
            Some(_) => {
                self.context.normal(&PODS, &pod, "DeviceTaintManagerEviction", "Marking for deletion");
                let why = "Device Taint manager: deleting due to NoExecute taint";
                let condition = pod_end::disruption("DeletionByDeviceTaintManager", why, now);
                pod_end::mark(&self.context, &pod, &state, false, Some(&condition)).await?;
                pod_end::delete(&self.context, &pod).await?;
                let table = &self.context.config.metrics.table;
                table.count(&DEVICE_EVICTIONS, &[]);
                if let Some(due) = due_at(&given, &taints, now) {
                    table.observe(&DEVICE_EVICTION_S, &[], since(self.context.now(), due).as_secs_f64());
                }
                Ok(Next::Done)
            }
        }
    }
}

impl DeviceTaintEviction {
    /// Devices of all claims that are reserved for the pod.
    fn devices_of(&self, pod: &Cached) -> Result<Vec<Given>, Error> {
        let view: PodClaims = pod.view()?;
        let mut out = Vec::new();
        for entry in view.entries() {
            let Named::Claim { name, made } = view.named(entry) else { continue };
            let Some(claim) = self.claims.get(&ObjectKey::new(pod.namespace(), name)) else { continue };
            let ClaimView { status } = claim.view()?;
            let reserved = status.reserved_for.iter().any(|c| c.uid == pod.uid());
            if reserved && (!made || is_controlled_by(&claim, pod)) {
                out.extend(status.allocation.into_iter().flat_map(|a| a.devices.results));
            }
        }
        Ok(out)
    }

    /// The taints of each of the devices, as the newest generation of its pool says.
    fn taints(&self, given: &[Given]) -> Result<Vec<Vec<Taint>>, Error> {
        let pools: BTreeSet<(&str, &str)> = given.iter().map(|g| (&*g.driver, &*g.pool)).collect();
        let mut slices = Vec::new();
        for slice in self.slices.list() {
            let SliceView { spec } = slice.view()?;
            if pools.contains(&(&*spec.driver, &*spec.pool.name)) {
                slices.push(spec);
            }
        }
        let of = |g: &Given| {
            let pool = slices.iter().filter(|s| s.driver == g.driver && s.pool.name == g.pool);
            let newest = pool.clone().map(|s| s.pool.generation).max();
            let mut devices = pool.filter(|s| Some(s.pool.generation) == newest).flat_map(|s| &s.devices);
            devices.find(|d| d.name == g.device).map(|d| d.taints.clone()).unwrap_or_default()
        };
        Ok(given.iter().map(of).collect())
    }
}

/// How long until the pod has to go; `None`: it may stay for ever.
fn evict_in(given: &[Given], taints: &[Vec<Taint>], now: Timestamp) -> Option<Duration> {
    due_at(given, taints, now).map(|due| since(due, now))
}

/// When the pod has to go; `None`: it may stay for ever.
fn due_at(given: &[Given], taints: &[Vec<Taint>], now: Timestamp) -> Option<Timestamp> {
    let left = |given: &Given, taint: &Taint| {
        let matching: Vec<&Toleration> = given.tolerations.iter().filter(|t| t.tolerates(taint)).collect();
        if matching.iter().any(|t| t.toleration_seconds.is_none()) {
            return None;
        }
        let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min().unwrap_or(0);
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Some(after(taint.time_added.unwrap_or(now), seconds))
    };
    let each = given.iter().zip(taints).flat_map(|(given, taints)| {
        let evicting = taints.iter().filter(|t| t.effect == "NoExecute");
        evicting.filter_map(move |taint| left(given, taint))
    });
    each.min()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_first_limit_counts() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taint = |effect: &str| json!({"key": "k", "value": "v", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
        let tolerates = |seconds: Value| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let cases = [
            (json!([]), json!([taint("NoSchedule")]), None),
            (json!([]), json!([taint("NoExecute")]), Some(0)),
            (json!([tolerates(Value::Null)]), json!([taint("NoExecute")]), None),
            (json!([tolerates(json!(300))]), json!([taint("NoExecute")]), Some(240)),
            (json!([tolerates(json!(30))]), json!([taint("NoExecute")]), Some(0)),
            (json!([tolerates(json!(300)), tolerates(Value::Null)]), json!([taint("NoExecute")]), None),
            // A toleration of every effect is about scheduling only.
            (json!([{"operator": "Exists"}]), json!([taint("NoExecute")]), Some(0)),
            (
                json!([{"operator": "Equal", "effect": "NoExecute", "key": "k", "value": "w"}]),
                json!([taint("NoExecute")]),
                Some(0),
            ),
        ];
        for (tolerations, taints, expected) in cases {
            let given = [Given {
                tolerations: serde_json::from_value(tolerations.clone()).unwrap(),
                ..Given::default()
            }];
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            let got = evict_in(&given, &[taints], now).map(|d| d.as_secs());
            assert_eq!(got, expected, "{tolerations}");
        }
    }
}
