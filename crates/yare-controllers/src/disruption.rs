//! PodDisruptionBudgets: how many pods may be evicted now.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use yare_client::{
    Cached, Change, DEPLOYMENTS, Informer, ObjectKey, OwnerRef, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS,
    REPLICATION_CONTROLLERS, STATEFUL_SETS,
};

use crate::{
    context::{Context, Error},
    discovery::discover,
    harness::{Next, Reconcile, group_of},
    selector::LabelSelector,
    views::{Condition, IntOrString, Meta, PodView, after, condition, nullable, since},
};

/// How long an eviction may take to become a deletion.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

struct Disruption {
    context: Context,
    budgets: Informer,
    pods: Informer,
    /// Where the number of replicas of a controller can be read without asking.
    workloads: Vec<Informer>,
    replica_sets: Informer,
    deployments: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    selector: Option<LabelSelector>,
    min_available: Option<IntOrString>,
    max_unavailable: Option<IntOrString>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    disrupted_pods: BTreeMap<String, Timestamp>,
    disruptions_allowed: i32,
    current_healthy: i32,
    desired_healthy: i32,
    expected_pods: i32,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Scale {
    spec: ScaleSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ScaleSpec {
    replicas: Option<i32>,
}

/// The controller; keys are budgets.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Disruption {
        budgets: context.informer(POD_DISRUPTION_BUDGETS),
        pods: context.informer(PODS),
        workloads: vec![context.informer(REPLICATION_CONTROLLERS), context.informer(STATEFUL_SETS)],
        replica_sets: context.informer(REPLICA_SETS),
        deployments: context.informer(DEPLOYMENTS),
        context: context.clone(),
    })
}

/// The budgets that select a pod, or did.
pub fn budgets_of_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object() else { return };
    for budget in context.informer(POD_DISRUPTION_BUDGETS).in_namespace(pod.namespace()) {
        let selector = budget.view::<View>().ok().and_then(|v| v.spec.selector);
        let states = [&change.old, &change.new].into_iter().flatten();
        if selector.is_some_and(|s| states.into_iter().any(|p| s.matches(p.labels()))) {
            add(budget.key().clone());
        }
    }
}

/// A workload's new size may change what its budgets expect.
pub fn resized(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let replicas =
        |o: &Option<Cached>| o.as_ref().and_then(|o| o.view::<Scale>().ok()).and_then(|s| s.spec.replicas);
    let Some(workload) = &change.new else { return };
    if replicas(&change.old) == replicas(&change.new) {
        return;
    }
    for budget in context.informer(POD_DISRUPTION_BUDGETS).in_namespace(workload.namespace()) {
        add(budget.key().clone());
    }
}

/// What a budget expects: pods there should be, and how many of them healthy.
fn expectation(spec: &Spec, selected: i32, scale: i32) -> Option<(i32, i32)> {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => Some((scale, (scale - max.scaled(scale, true)?).max(0))),
        (None, Some(IntOrString::Int(min))) => Some((selected, *min)),
        (None, Some(min)) => Some((scale, min.scaled(scale, true)?)),
        (None, None) => Some((0, 0)),
    }
}

#[async_trait]
impl Reconcile for Disruption {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Next::Done) };
        let view: View = budget.view()?;
        match self.sync(&budget, &view).await {
            Ok(next) => Ok(next),
            Err(error) if error.is_race() => Err(error),
            Err(error) => {
                // What cannot be computed must not allow anything.
                let mut status = view.status.clone();
                status.disruptions_allowed = 0;
                let now = self.context.now();
                set_allowed(&mut status, "False", "SyncFailed", error.to_string(), now);
                if status != view.status {
                    self.context.api.update_status(&POD_DISRUPTION_BUDGETS, &budget, &status).await?;
                }
                Err(error)
            }
        }
    }
}

impl Disruption {
    async fn sync(&self, budget: &Cached, view: &View) -> Result<Next, Error> {
        let context = &self.context;
        let now = context.now();
        let mut pods = Vec::new();
        if let Some(selector) = &view.spec.selector {
            for pod in self.pods.in_namespace(budget.namespace()) {
                if selector.matches(pod.labels()) {
                    pods.push((pod.view::<PodView>()?, pod));
                }
            }
        }
        if pods.is_empty() {
            context.normal(&POD_DISRUPTION_BUDGETS, budget, "NoPods", "No matching pods found");
        }
        let needs_scale = view.spec.max_unavailable.is_some()
            || matches!(view.spec.min_available, Some(IntOrString::Text(_)));
        let scale = if needs_scale { self.expected_scale(budget, &pods).await? } else { 0 };
        let selected = i32::try_from(pods.len()).unwrap_or(i32::MAX);
        let Some((expected, desired)) = expectation(&view.spec, selected, scale) else {
            return Err(Error::Other(format!(
                "PodDisruptionBudget {}: its bound is neither number nor percentage",
                budget.key()
            )));
        };
        let (mut disrupted, mut recheck) = (BTreeMap::new(), None);
        for (state, pod) in &pods {
            let Some(at) = view.status.disrupted_pods.get(pod.name()) else { continue };
            if state.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let left = since(after(*at, DELETION_TIMEOUT), now);
            if left.is_zero() {
                let message = format!(
                    "Pod was expected by PDB {0}/{0} to be deleted but it wasn't",
                    budget.namespace()
                );
                context.warning(&PODS, pod, "NotDeleted", message);
            } else {
                disrupted.insert(pod.name().to_owned(), *at);
                recheck = Some(recheck.map_or(left, |r: Duration| r.min(left)));
            }
        }
        let healthy = pods.iter().filter(|(state, pod)| {
            state.metadata.deletion_timestamp.is_none()
                && state.is_ready()
                && !disrupted.contains_key(pod.name())
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let mut status = Status {
            observed_generation: view.metadata.generation,
            disrupted_pods: disrupted,
            disruptions_allowed: allowed,
            current_healthy: healthy,
            desired_healthy: desired,
            expected_pods: expected,
            conditions: view.status.conditions.clone(),
        };
        let (value, reason) =
            if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        set_allowed(&mut status, value, reason, String::new(), now);
        if status != view.status {
            context.api.update_status(&POD_DISRUPTION_BUDGETS, budget, &status).await?;
        }
        Ok(recheck.map_or(Next::Done, Next::After))
    }

    /// The replicas that the pods' controllers ask for.
    async fn expected_scale(&self, budget: &Cached, pods: &[(PodView, Cached)]) -> Result<i32, Error> {
        let mut scales: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for (_, pod) in pods {
            let Some(owner) = pod.controller() else {
                unmanaged = true;
                continue;
            };
            if scales.contains_key(&*owner.uid) {
                continue;
            }
            let (uid, replicas) = self.scale(pod, owner).await?;
            scales.insert(uid, replicas);
            // The pods' own controller is found by its uid next time, whichever counted.
            scales.entry(owner.uid.to_string()).or_insert(0);
        }
        if unmanaged {
            let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
            self.context.warning(&POD_DISRUPTION_BUDGETS, budget, "UnmanagedPods", message);
        }
        Ok(scales.into_values().fold(0, i32::saturating_add))
    }

    /// Whose size counts (a ReplicaSet's Deployment, if it has one), and that size.
    async fn scale(&self, pod: &Cached, owner: &OwnerRef) -> Result<(String, i32), Error> {
        let key = ObjectKey::new(pod.namespace(), &owner.name);
        let replicas =
            |o: &Cached| -> Result<i32, Error> { Ok(o.view::<Scale>()?.spec.replicas.unwrap_or(1)) };
        let group = group_of(&owner.api_version);
        let is = |i: &Informer, owner: &OwnerRef| {
            i.resource().kind == *owner.kind && i.resource().group == group_of(&owner.api_version)
        };
        if is(&self.replica_sets, owner) {
            let set = self.replica_sets.get(&key).filter(|s| s.uid() == &*owner.uid);
            let Some(set) = set else { return Ok((owner.uid.to_string(), 0)) };
            if let Some(above) = set.controller().filter(|c| is(&self.deployments, c)) {
                let key = ObjectKey::new(pod.namespace(), &above.name);
                if let Some(deployment) = self.deployments.get(&key).filter(|d| d.uid() == &*above.uid) {
                    return Ok((deployment.uid().to_owned(), replicas(&deployment)?));
                }
            }
            return Ok((set.uid().to_owned(), replicas(&set)?));
        }
        if let Some(informer) = self.workloads.iter().find(|i| is(i, owner)) {
            let found = informer.get(&key).filter(|o| o.uid() == &*owner.uid);
            let size = found.map(|o| replicas(&o)).transpose()?.unwrap_or(0);
            return Ok((owner.uid.to_string(), size));
        }
        // Anything else that can be scaled says so itself.
        let found = discover(&self.context.api).await?;
        let served =
            found.resources.into_iter().find(|s| s.resource.kind == *owner.kind && s.resource.group == group);
        let Some(served) = served else { return Err(no_controller(pod)) };
        let path = format!("{}/{}/scale", served.resource.path(Some(pod.namespace())), owner.name);
        let bytes = match self.context.api.read(&path, "application/json").await {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.code(), 404 | 405) => return Err(no_controller(pod)),
            Err(error) => return Err(error.into()),
        };
        let scale: Scale = serde_json::from_slice(&bytes)
            .map_err(|source| crate::api::ApiError::Json { what: path, source })?;
        Ok((owner.uid.to_string(), scale.spec.replicas.unwrap_or(0)))
    }
}

fn no_controller(pod: &Cached) -> Error {
    Error::Other(format!("found no controllers for pod \"{}\"", pod.name()))
}

fn set_allowed(status: &mut Status, value: &str, reason: &str, message: String, now: Timestamp) {
    let mut new = Condition::new("DisruptionAllowed", value, reason, message, now);
    new.observed_generation = Some(status.observed_generation);
    if let Some(old) = condition(&status.conditions, "DisruptionAllowed")
        && old.status == new.status
    {
        new.last_transition_time = old.last_transition_time;
    }
    match status.conditions.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) => *old = new,
        None => status.conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_expect() {
        let text = |s: &str| Some(IntOrString::Text(s.into()));
        for (min, max, selected, scale, expected) in [
            (Some(IntOrString::Int(2)), None, 5, 0, (5, 2)),
            (text("50%"), None, 5, 7, (7, 4)),
            (None, Some(IntOrString::Int(1)), 5, 7, (7, 6)),
            (None, text("30%"), 5, 10, (10, 7)),
            (None, Some(IntOrString::Int(20)), 5, 10, (10, 0)),
        ] {
            let spec = Spec { min_available: min, max_unavailable: max, selector: None };
            assert_eq!(expectation(&spec, selected, scale), Some(expected));
        }
    }
}
