//! Evicts pods whose devices have a `NoExecute` taint that their claims do not tolerate, at once or when their
//! `tolerationSeconds` have passed. Taints are those that drivers put into slices and, where the feature is on, those
//! of DeviceTaintRules, whose status says how far their evictions are.

mod rule;
mod taints;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use yare_client::{
    Cached, Change, DEVICE_TAINT_RULES, Informer, ObjectKey, PODS, Queue, RESOURCE_CLAIMS, RESOURCE_SLICES,
};

use self::{
    rule::Counts,
    taints::{ClaimView, Given, RuleSpec, RuleView, SliceSpec, SliceView, Taint, due, newest},
};
use crate::{
    api::Patch,
    context::{Context, Error},
    harness::{Next, Reconcile},
    metrics::{DEVICE_EVICTION_S, DEVICE_EVICTIONS},
    ownership::is_controlled_by,
    pod_end,
    resource_claim::{Named, PodClaims},
    views::{PodView, condition, since},
};

/// The feature that DeviceTaintRules belong to.
pub const RULES_GATE: &str = "DRADeviceTaintRules";
/// The shortest time between two conditions of a rule that has not changed.
const RULE_STATUS_PERIOD: Duration = Duration::from_secs(10);

struct DeviceTaintEviction {
    context: Context,
    pods: Informer,
    claims: Informer,
    slices: Informer,
    rules: Option<Informer>,
    /// Pods that have to go or were sent away, until they are on their way out.
    noted: Mutex<HashMap<ObjectKey, Noted>>,
    /// How many pods were evicted because of a rule, by its name.
    evicted: Mutex<HashMap<Box<str>, Evicted>>,
    /// Rules whose status may not be true any more.
    stale: Mutex<BTreeSet<ObjectKey>>,
    told: Notify,
}

/// A pod that has to go.
struct Noted {
    uid: Box<str>,
    rules: Vec<RuleId>,
    /// It was sent away. The cache may not show it yet.
    gone: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct RuleId {
    name: Box<str>,
    uid: Box<str>,
}

struct Evicted {
    uid: Box<str>,
    pods: usize,
}

/// When a pod has to go, and because of which rules.
struct Eviction {
    due: Timestamp,
    rules: Vec<RuleId>,
}

/// The controller; keys are pods and, without a namespace, rules.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    let rules = context.config.gates.is_on(RULES_GATE).then(|| context.informer(DEVICE_TAINT_RULES));
    Arc::new(DeviceTaintEviction {
        pods: context.informer(PODS),
        claims: context.informer(RESOURCE_CLAIMS),
        slices: context.informer(RESOURCE_SLICES),
        rules,
        noted: Mutex::default(),
        evicted: Mutex::default(),
        stale: Mutex::default(),
        told: Notify::new(),
        context: context.clone(),
    })
}

/// Pods that were placed, whose claims are others now, or that are on their way out.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object().filter(|p| p.node_name().is_some()) else { return };
    if pod.view::<PodClaims>().is_ok_and(|view| !view.has_none()) {
        add(pod.key().clone());
    }
}

fn users(namespace: &str, claim: &ClaimView, add: &mut dyn FnMut(ObjectKey)) {
    for user in claim.status.reserved_for.iter().filter(|c| c.is_pod()) {
        add(ObjectKey::new(namespace, &user.name));
    }
}

/// Pods that have the claim, and that had it.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    for claim in [&change.old, &change.new].into_iter().flatten() {
        if let Ok(view) = claim.view::<ClaimView>() {
            users(claim.namespace(), &view, add);
        }
    }
}

/// Pods that have one of the devices.
fn users_of(context: &Context, has: impl Fn(&Given) -> bool, add: &mut dyn FnMut(ObjectKey)) {
    for claim in context.informer(RESOURCE_CLAIMS).list() {
        let Ok(view) = claim.view::<ClaimView>() else { continue };
        if view.status.given().iter().any(&has) {
            users(claim.namespace(), &view, add);
        }
    }
}

/// Pods that have devices of the slice's pool, where taints may have come or gone.
pub fn changed_slice(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let read = |slice: &Cached| slice.view::<SliceView>().ok().map(|view| view.spec);
    let slices = [&change.new, &change.old].map(|slice| slice.as_ref().and_then(read));
    let Some(spec) = slices.into_iter().flatten().find(SliceSpec::evicts) else { return };
    users_of(context, |given| given.driver == spec.driver && given.pool == spec.pool.name, add);
}

/// The rule, and pods that have devices which it selects or has selected.
pub fn changed_rule(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let read = |rule: &Cached| rule.view::<RuleView>().ok().map(|view| view.spec);
    let [new, old] = [&change.new, &change.old].map(|rule| rule.as_ref().and_then(read));
    if new == old {
        return;
    }
    // First of all it is told what is going to happen.
    if let Some(rule) = change.object() {
        add(rule.key().clone());
    }
    let evicting: Vec<RuleSpec> = [new, old].into_iter().flatten().filter(|r| r.taint.evicts()).collect();
    if !evicting.is_empty() {
        let selects = |given: &Given| {
            evicting.iter().any(|rule| rule.selects(&given.driver, &given.pool, &given.device))
        };
        users_of(context, selects, add);
    }
}

#[async_trait]
impl Reconcile for DeviceTaintEviction {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if key.namespace.is_empty() { self.sync_rule(key).await } else { self.sync_pod(key).await }
    }

    async fn background(&self, queue: Queue<ObjectKey>, _: CancellationToken) {
        loop {
            self.told.notified().await;
            // Later: more pods of the rule may be about to follow, and the cache does not show their end yet.
            let stale = std::mem::take(&mut *self.stale.lock());
            for rule in stale {
                queue.add_after(rule, RULE_STATUS_PERIOD);
            }
        }
    }
}

impl DeviceTaintEviction {
    async fn sync_pod(&self, key: &ObjectKey) -> Result<Next, Error> {
        let there = |p: &Cached| p.deletion_timestamp().is_none() && p.node_name().is_some();
        let Some(pod) = self.pods.get(key).filter(there) else {
            self.forget(key);
            return Ok(Next::Done);
        };
        let now = self.context.now();
        let Some(Eviction { due, rules }) = self.eviction(&pod, now)? else {
            if self.forget(key).is_some_and(|noted| &*noted.uid == pod.uid() && !noted.gone) {
                self.context.normal(&PODS, &pod, "DeviceTaintManagerEviction", "Cancelling deletion");
            }
            return Ok(Next::Done);
        };
        if !self.note(&pod, &rules) {
            return Ok(Next::Done);
        }
        let delay = since(due, now);
        if !delay.is_zero() {
            return Ok(Next::After(delay));
        }
        self.context.normal(&PODS, &pod, "DeviceTaintManagerEviction", "Marking for deletion");
        let why = "Device Taint manager: deleting due to NoExecute taint";
        let condition = pod_end::disruption("DeletionByDeviceTaintManager", why, now);
        let state: PodView = pod.view()?;
        pod_end::mark(&self.context, &pod, &state, false, Some(&condition)).await?;
        if pod_end::delete(&self.context, &pod).await? {
            let table = &self.context.config.metrics.table;
            table.count(&DEVICE_EVICTIONS, &[]);
            table.observe(&DEVICE_EVICTION_S, &[], since(self.context.now(), due).as_secs_f64());
            self.count(&rules);
        }
        if let Some(noted) = self.noted.lock().get_mut(key) {
            noted.gone = true;
        }
        self.refresh(&rules);
        Ok(Next::Done)
    }

    /// Remembers that a pod has to go; whether it was not sent away already.
    fn note(&self, pod: &Cached, rules: &[RuleId]) -> bool {
        let noted = Noted { uid: pod.uid().into(), rules: rules.to_vec(), gone: false };
        let before = {
            let mut all = self.noted.lock();
            if all.get(pod.key()).is_some_and(|n| n.uid == noted.uid && n.gone) {
                return false;
            }
            all.insert(pod.key().clone(), noted)
        };
        let before = before.map(|noted| noted.rules).unwrap_or_default();
        if before != rules {
            self.refresh(&before);
            self.refresh(rules);
        }
        true
    }

    /// Forgets that a pod has to go.
    fn forget(&self, key: &ObjectKey) -> Option<Noted> {
        let noted = self.noted.lock().remove(key)?;
        self.refresh(&noted.rules);
        Some(noted)
    }

    /// Sees to it that the status of rules is looked at.
    fn refresh(&self, rules: &[RuleId]) {
        if !rules.is_empty() {
            self.stale.lock().extend(rules.iter().map(|rule| ObjectKey::cluster(&rule.name)));
            self.told.notify_one();
        }
    }

    fn count(&self, rules: &[RuleId]) {
        let mut evicted = self.evicted.lock();
        for rule in rules {
            let of = evicted
                .entry(rule.name.clone())
                .or_insert_with(|| Evicted { uid: rule.uid.clone(), pods: 0 });
            if of.uid != rule.uid {
                *of = Evicted { uid: rule.uid.clone(), pods: 0 };
            }
            of.pods += 1;
        }
    }

    /// Writes into the status of a rule how far its evictions are.
    async fn sync_rule(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(rule) = self.rules.as_ref().and_then(|rules| rules.get(key)) else {
            self.evicted.lock().remove(&key.name);
            return Ok(Next::Done);
        };
        let RuleView { metadata, spec, status } = rule.view()?;
        let now = self.context.now();
        let existing = condition(&status.conditions, rule::EVICTION_IN_PROGRESS);
        if let Some(existing) = existing
            && existing.observed_generation == Some(metadata.generation)
            && let Some(at) = existing.last_transition_time
        {
            let left = RULE_STATUS_PERIOD.saturating_sub(since(now, at));
            if !left.is_zero() {
                return Ok(Next::After(left));
            }
        }
        let counts = self.counts(&rule, &spec)?;
        let condition = rule::condition(&spec.taint.effect, metadata.generation, &counts, now);
        if !existing.is_some_and(|existing| rule::says_the_same(existing, &condition)) {
            let mut condition = json!(condition);
            // It replaces what was said before also where it is empty.
            if condition["message"].is_null() {
                condition["message"] = "".into();
            }
            let patch = json!({"metadata": {"uid": rule.uid()}, "status": {"conditions": [condition]}});
            let api = &self.context.api;
            match api.patch(&DEVICE_TAINT_RULES, key, "/status", Patch::Strategic, &patch).await {
                // Gone, or another one of the same name, of which we will hear.
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Next::Done)
    }

    fn counts(&self, object: &Cached, rule: &RuleSpec) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        if let Some(evicted) = self.evicted.lock().get(object.name()).filter(|e| &*e.uid == object.uid()) {
            counts.evicted = evicted.pods;
        }
        let effect = &*rule.taint.effect;
        if !matches!(effect, "NoExecute" | "None") {
            return Ok(counts);
        }
        let mut may_go = BTreeSet::new();
        for claim in self.claims.list() {
            let view: ClaimView = claim.view()?;
            let given = view.status.given();
            counts.allocated += given.iter().filter(|g| rule.selects(&g.driver, &g.pool, &g.device)).count();
            if given.iter().any(|g| rule.drives_from(g)) {
                users(claim.namespace(), &view, &mut |pod| {
                    may_go.insert(pod);
                });
            }
        }
        let mut namespaces = BTreeSet::new();
        for key in may_go {
            let there = |p: &Cached| p.deletion_timestamp().is_none() && p.node_name().is_some();
            let Some(pod) = self.pods.get(&key).filter(there) else { continue };
            if self.devices_of(&pod)?.iter().any(|given| rule.drives_from(given)) {
                counts.pods += 1;
                namespaces.insert(key.namespace);
            }
        }
        counts.namespaces = namespaces.len();
        if effect == "None" {
            counts.published = rule::published(rule, &self.slices_of(|_| true)?);
        }
        Ok(counts)
    }

    /// When the pod has to go; `None`: it may stay for ever.
    fn eviction(&self, pod: &Cached, now: Timestamp) -> Result<Option<Eviction>, Error> {
        let given = self.devices_of(pod)?;
        if given.is_empty() {
            return Ok(None);
        }
        let taints = self.taints(&given)?;
        let of_slices = given.iter().zip(&taints).flat_map(|(given, taints)| {
            taints.iter().filter(|t| t.evicts()).filter_map(move |taint| due(given, taint, now))
        });
        let mut first = of_slices.min();
        let mut rules = Vec::new();
        for object in self.rules.iter().flat_map(Informer::list) {
            let RuleView { spec, .. } = object.view()?;
            if !spec.taint.evicts() {
                continue;
            }
            let selected = given.iter().filter(|g| spec.selects(&g.driver, &g.pool, &g.device));
            if let Some(due) = selected.filter_map(|given| due(given, &spec.taint, now)).min() {
                first = Some(first.map_or(due, |first| first.min(due)));
                rules.push(RuleId { name: object.name().into(), uid: object.uid().into() });
            }
        }
        Ok(first.map(|due| Eviction { due, rules }))
    }

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
                out.extend(status.into_given());
            }
        }
        Ok(out)
    }

    fn slices_of(&self, wanted: impl Fn(&SliceSpec) -> bool) -> Result<Vec<SliceSpec>, Error> {
        let mut slices = Vec::new();
        for slice in self.slices.list() {
            let SliceView { spec } = slice.view()?;
            if wanted(&spec) {
                slices.push(spec);
            }
        }
        Ok(slices)
    }

    /// The taints of each of the devices, as the newest generation of its pool says.
    fn taints(&self, given: &[Given]) -> Result<Vec<Vec<Taint>>, Error> {
        let pools: BTreeSet<(&str, &str)> = given.iter().map(|g| (&*g.driver, &*g.pool)).collect();
        let slices = self.slices_of(|spec| pools.contains(&(&*spec.driver, &*spec.pool.name)))?;
        let of = |g: &Given| {
            let pool = newest(&slices).filter(|s| s.driver == g.driver && s.pool.name == g.pool);
            let mut devices = pool.flat_map(|s| &s.devices);
            devices.find(|d| d.name == g.device).map(|d| d.taints.clone()).unwrap_or_default()
        };
        Ok(given.iter().map(of).collect())
    }
}
