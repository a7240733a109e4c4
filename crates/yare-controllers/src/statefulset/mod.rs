//! StatefulSets: pods with a name, a place in an order, and storage of their own.
//!
//! With the policy `OrderedReady` each pod waits for the one before it; with `Parallel` none does. Updates
//! go from the last pod to the first, down to `partition`. Claims are made from templates and outlive the
//! pods unless the retention policy says otherwise.

mod claims;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{
    CONTROLLER_REVISIONS, Cached, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS,
};

use yare_metrics::table::Family;

use crate::{
    api::{Deletion, Patch},
    claim_owners::Party,
    context::{Context, Error},
    expectations::Expectations,
    harness::{Next, Reconcile},
    history::{self, Current, REVISION_HASH, Revision},
    metrics, ownership,
    selector::LabelSelector,
    template,
    views::{Condition, IntOrString, Meta, PodView, nullable},
};

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

struct StatefulSets {
    context: Context,
    own: Informer,
    pods: Informer,
    claims: Informer,
    revisions: Informer,
    expectations: Expectations,
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
    replicas: Option<i32>,
    selector: LabelSelector,
    template: Value,
    #[serde(deserialize_with = "nullable")]
    volume_claim_templates: Vec<Value>,
    service_name: String,
    pod_management_policy: String,
    update_strategy: Strategy,
    revision_history_limit: Option<i32>,
    min_ready_seconds: i32,
    persistent_volume_claim_retention_policy: Option<Retention>,
    ordinals: Option<Ordinals>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ordinals {
    start: i32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Retention {
    when_deleted: String,
    when_scaled: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Strategy {
    #[serde(rename = "type")]
    kind: String,
    rolling_update: Option<RollingUpdate>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RollingUpdate {
    partition: Option<i32>,
    max_unavailable: Option<IntOrString>,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
    replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    ready_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    current_replicas: i32,
    #[serde(skip_serializing_if = "is_zero")]
    updated_replicas: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    current_revision: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    update_revision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    collision_count: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    available_replicas: i32,
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(StatefulSets {
        own: context.informer(STATEFUL_SETS),
        pods: context.informer(PODS),
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        revisions: context.informer(CONTROLLER_REVISIONS),
        expectations: Expectations::default(),
        context: context.clone(),
    })
}

/// A pod that exists.
#[derive(Clone)]
struct Pod {
    cached: Cached,
    view: PodView,
    ordinal: i32,
}

impl Pod {
    fn revision(&self) -> &str {
        self.cached.label(REVISION_HASH).unwrap_or_default()
    }

    fn is_terminating(&self) -> bool {
        self.view.metadata.deletion_timestamp.is_some()
    }

    fn is_running_and_ready(&self) -> bool {
        self.view.status.phase == "Running" && self.view.is_ready()
    }
}

/// `3` of `web-3`, if the rest is the set's name.
fn ordinal(pod: &str, set: &str) -> Option<i32> {
    // `web--3` belongs to a set `web-`: only digits make an ordinal.
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[async_trait]
impl Reconcile for StatefulSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.own.get(key) else {
            self.expectations.forget(key);
            let others = |labels: &[Box<str>]| (&*labels[1], &*labels[2]) != (&*key.name, &*key.namespace);
            for family in [&metrics::SET_UNAVAILABLE, &metrics::SET_MAX_UNAVAILABLE] {
                self.context.config.metrics.table.retain(family, others);
            }
            return Ok(Next::Done);
        };
        let view: View = set.view()?;
        if view.spec.selector.is_empty() || !self.expectations.satisfied(key, &self.pods) {
            return Ok(Next::Done);
        }
        let owner = history::Owner {
            resource: &STATEFUL_SETS,
            object: &set,
            selector: &view.spec.selector,
            template: &view.spec.template,
            annotations: &view.metadata.annotations,
        };
        let mut revisions = owner.revisions(&self.context, &self.revisions).await?;
        let update = match owner.current(&self.context, &mut revisions, view.status.collision_count).await? {
            Current::Found(revision) => revision,
            Current::Collision => {
                let count = view.status.collision_count.unwrap_or(0).saturating_add(1);
                let status = Status { collision_count: Some(count), ..view.status };
                self.context.api.update_status(&STATEFUL_SETS, &set, &status).await?;
                return Err(Error::Other(format!(
                    "StatefulSet {key}: hash collision of its template, trying another"
                )));
            }
        };
        let named = revisions.iter().find(|r| r.cached.name() == view.status.current_revision);
        let current = named.cloned().unwrap_or_else(|| update.clone());
        let pods = self.pods_of(&set, &view.spec.selector).await?;
        let limit = view.spec.revision_history_limit.unwrap_or(10);
        let mut round = Round { this: self, now: self.context.now(), set, view, current, update, pods };
        let acted = if round.set.deletion_timestamp().is_none() { round.act().await } else { Ok(()) };
        round.write_status().await?;
        acted?;
        let used = |r: &Revision| {
            let name = r.cached.name();
            name == round.current.cached.name()
                || name == round.update.cached.name()
                || round.pods.iter().any(|p| p.revision() == name)
        };
        history::truncate(&self.context, &revisions, limit, used).await?;
        Ok(round.next_available().map_or(Next::Done, Next::After))
    }
}

impl StatefulSets {
    async fn pods_of(&self, set: &Cached, selector: &LabelSelector) -> Result<Vec<Pod>, Error> {
        let mut candidates = self.pods.by_owner(set.uid());
        let orphans = self.pods.in_namespace(set.namespace()).into_iter();
        candidates.extend(orphans.filter(|p| {
            p.controller().is_none()
                && selector.matches(p.labels())
                && ordinal(p.name(), set.name()).is_some()
        }));
        let claimed =
            ownership::claim(&self.context, &STATEFUL_SETS, set, selector, &PODS, candidates, None).await?;
        let mut pods = Vec::with_capacity(claimed.len());
        for cached in claimed {
            if let Some(ordinal) = ordinal(cached.name(), set.name()) {
                pods.push(Pod { view: cached.view()?, ordinal, cached });
            }
        }
        pods.sort_by_key(|p| p.ordinal);
        Ok(pods)
    }
}

struct Round<'a> {
    this: &'a StatefulSets,
    set: Cached,
    view: View,
    /// What pods that are not to be updated have.
    current: Revision,
    /// What the set asks for now.
    update: Revision,
    pods: Vec<Pod>,
    now: Timestamp,
}

impl Round<'_> {
    fn start(&self) -> i32 {
        self.view.spec.ordinals.as_ref().map_or(0, |o| o.start)
    }

    fn replicas(&self) -> i32 {
        self.view.spec.replicas.unwrap_or(1)
    }

    /// The ordinal after the last wanted one.
    fn end(&self) -> i32 {
        self.start().saturating_add(self.replicas())
    }

    fn partition(&self) -> i32 {
        self.view.spec.update_strategy.rolling_update.as_ref().and_then(|r| r.partition).unwrap_or(0)
    }

    fn wants(&self, ordinal: i32) -> bool {
        (self.start()..self.end()).contains(&ordinal)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.is_running_and_ready() && pod.view.is_available(self.view.spec.min_ready_seconds, self.now)
    }

    /// Counts against `maxUnavailable`.
    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || pod.is_terminating()
    }

    async fn act(&mut self) -> Result<(), Error> {
        let monotonic = self.view.spec.pod_management_policy != "Parallel";
        for ordinal in self.start()..self.end() {
            let pod = self.pods.iter().find(|p| p.ordinal == ordinal).cloned();
            let blocked = match self.ensure(ordinal, pod, monotonic).await {
                Ok(blocked) => blocked,
                // The others do not depend on this one.
                Err(error) if !monotonic => {
                    tracing::debug!(set = %self.set.key(), ordinal, %error, "pod could not be made");
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            if blocked && monotonic {
                return Ok(());
            }
        }
        if self.remove_surplus(monotonic).await? {
            return Ok(());
        }
        if self.view.spec.update_strategy.kind == "OnDelete" {
            return Ok(());
        }
        self.roll().await
    }

    /// Brings one pod up; whether those after it have to wait.
    async fn ensure(&mut self, ordinal: i32, pod: Option<Pod>, monotonic: bool) -> Result<bool, Error> {
        let Some(pod) = pod else {
            self.create(ordinal).await?;
            return Ok(true);
        };
        if pod.view.is_finished() {
            if !pod.is_terminating() {
                self.delete(&pod).await?;
            }
            return Ok(true);
        }
        if pod.view.status.phase == "Pending" {
            self.ensure_claims(&pod.cached, ordinal, false).await?;
        }
        if monotonic && (pod.is_terminating() || !self.is_available(&pod)) {
            return Ok(true);
        }
        self.ensure_claims(&pod.cached, ordinal, false).await?;
        self.ensure_identity(&pod).await?;
        Ok(false)
    }

    async fn create(&mut self, ordinal: i32) -> Result<(), Error> {
        let revision = self.revision_for(ordinal);
        let (template, name) = (revision.template.clone(), revision.cached.name().to_owned());
        let mut pod = template::pod(&template, &STATEFUL_SETS, &self.set);
        let pod_name = format!("{}-{ordinal}", self.set.name());
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("generateName");
            metadata.insert("name".into(), pod_name.clone().into());
        }
        let labels = &mut pod["metadata"]["labels"];
        labels[POD_NAME_LABEL] = pod_name.clone().into();
        labels[POD_INDEX_LABEL] = ordinal.to_string().into();
        labels[REVISION_HASH] = name.into();
        pod["spec"]["hostname"] = pod_name.clone().into();
        pod["spec"]["subdomain"] = self.view.spec.service_name.clone().into();
        let claims: Vec<(String, String)> = self.claim_names(ordinal);
        let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        volumes.retain(|v| !claims.iter().any(|(template, _)| v["name"] == **template));
        for (template, claim) in &claims {
            volumes.push(
                json!({"name": template, "persistentVolumeClaim": {"claimName": claim, "readOnly": false}}),
            );
        }
        if !volumes.is_empty() {
            pod["spec"]["volumes"] = volumes.into();
        }
        let absent = Party { api_version: "v1", kind: "Pod", name: &pod_name, uid: "" };
        let claimants = self.claimants(absent, false);
        for (_, name) in &claims {
            let key = ObjectKey::new(self.set.namespace(), name);
            if self.this.claims.get(&key).is_some_and(|c| claimants.is_of_earlier_pod(c.owners())) {
                return Err(Error::Other(format!("PersistentVolumeClaim {key} goes with an earlier pod")));
            }
        }
        self.create_claims(ordinal).await?;
        let context = &self.this.context;
        let set = self.set.name();
        match context.api.create(&PODS, self.set.namespace(), &pod).await {
            Ok(created) => {
                self.this.expectations.created(self.set.key(), &created);
                let message = format!("create Pod {pod_name} in StatefulSet {set} successful");
                context.normal(&STATEFUL_SETS, &self.set, "SuccessfulCreate", message);
                let view: PodView = created.view()?;
                self.pods.push(Pod { view, cached: created, ordinal });
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("create Pod {pod_name} in StatefulSet {set} failed error: {error}");
                context.warning(&STATEFUL_SETS, &self.set, "FailedCreate", message);
                Err(error.into())
            }
        }
    }

    /// A new pod below the partition, or one of those that have not been updated yet, gets the current
    /// revision; all others get the new one.
    fn revision_for(&self, ordinal: i32) -> &Revision {
        let status = &self.view.status;
        let rolling = self.view.spec.update_strategy.kind != "OnDelete";
        let partition = self.view.spec.update_strategy.rolling_update.as_ref().and_then(|r| r.partition);
        let keeps = match partition {
            _ if !rolling => false,
            None => ordinal < self.start().saturating_add(status.current_replicas),
            Some(partition) => ordinal < self.start().saturating_add(partition),
        };
        if keeps { &self.current } else { &self.update }
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Error> {
        let context = &self.this.context;
        let (name, set) = (pod.cached.name(), self.set.name());
        match context.api.delete(&PODS, pod.cached.key(), Deletion::of(&pod.cached)).await {
            Ok(_) => {
                self.this.expectations.deleted(self.set.key(), &pod.cached);
                let message = format!("delete Pod {name} in StatefulSet {set} successful");
                context.normal(&STATEFUL_SETS, &self.set, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => {
                let message = format!("delete Pod {name} in StatefulSet {set} failed error: {error}");
                context.warning(&STATEFUL_SETS, &self.set, "FailedDelete", message);
                Err(error.into())
            }
        }
    }

    /// Deletes pods beyond the wanted ones, the last first; whether that has to go on later.
    async fn remove_surplus(&mut self, monotonic: bool) -> Result<bool, Error> {
        let mut surplus: Vec<Pod> = self.pods.iter().filter(|p| !self.wants(p.ordinal)).cloned().collect();
        surplus.reverse();
        for pod in &surplus {
            self.ensure_claims(&pod.cached, pod.ordinal, true).await?;
        }
        let first_unavailable = {
            let wanted = self.pods.iter().filter(|p| self.wants(p.ordinal));
            let all = wanted.chain(surplus.iter().rev());
            all.into_iter().find(|p| self.is_unavailable(p)).map(|p| p.cached.uid().to_owned())
        };
        for pod in &surplus {
            if pod.is_terminating() {
                if monotonic {
                    return Ok(true);
                }
                continue;
            }
            let is_first = first_unavailable.as_deref() == Some(pod.cached.uid());
            if monotonic && !self.is_available(pod) && !is_first {
                return Ok(true);
            }
            self.delete(pod).await?;
            if monotonic {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes pods of older revisions, the last first: one after the other, or up to `maxUnavailable`.
    async fn roll(&self) -> Result<(), Error> {
        let rolling = self.view.spec.update_strategy.rolling_update.as_ref();
        let lowest = self.start().saturating_add(self.partition());
        let end = self.end();
        let pod = |ordinal: i32| self.pods.iter().find(|p| p.ordinal == ordinal);
        let outdated = |p: &Pod| p.revision() != self.update.cached.name() && !p.is_terminating();
        let unavailable =
            (self.start()..end).filter(|i| pod(*i).is_none_or(|p| self.is_unavailable(p))).count();
        self.tell(&metrics::SET_UNAVAILABLE, unavailable as f64);
        let max =
            rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|m| m.scaled(self.replicas(), true));
        let Some(max) = max else {
            for ordinal in (lowest..end).rev() {
                match pod(ordinal) {
                    Some(pod) if outdated(pod) => return self.delete(pod).await,
                    Some(pod) if !self.is_unavailable(pod) => {}
                    _ => return Ok(()),
                }
            }
            return Ok(());
        };
        let left = usize::try_from(max.max(1)).unwrap_or(1).saturating_sub(unavailable);
        for pod in (lowest..end).rev().filter_map(pod).filter(|p| outdated(p)).take(left) {
            self.delete(pod).await?;
        }
        Ok(())
    }

    /// Sets one of the gauges that there are for each set where several of its pods may be unavailable at once.
    fn tell(&self, family: &'static Family, value: f64) {
        let config = &self.this.context.config;
        if config.gates.is_on("MaxUnavailableStatefulSet") {
            let labels = [&*self.view.spec.pod_management_policy, self.set.name(), self.set.namespace()];
            config.metrics.table.set(family, &labels, value);
        }
    }

    /// An adopted pod gets the labels of its place.
    async fn ensure_identity(&self, pod: &Pod) -> Result<(), Error> {
        let index = pod.ordinal.to_string();
        let right = pod.cached.label(POD_NAME_LABEL) == Some(pod.cached.name())
            && pod.cached.label(POD_INDEX_LABEL).is_none_or(|i| i == index);
        if right {
            return Ok(());
        }
        let labels = json!({POD_NAME_LABEL: pod.cached.name(), POD_INDEX_LABEL: index});
        let patch = json!({"metadata": {"uid": pod.cached.uid(), "labels": labels}});
        self.this.context.api.patch(&PODS, pod.cached.key(), "", Patch::Merge, &patch).await?;
        Ok(())
    }

    fn next_available(&self) -> Option<Duration> {
        let seconds = self.view.spec.min_ready_seconds;
        let waits = self.pods.iter().filter_map(|p| p.view.available_in(seconds, self.now));
        waits.filter(|w| !w.is_zero()).min()
    }

    async fn write_status(&self) -> Result<(), Error> {
        let (current, update) = (self.current.cached.name(), self.update.cached.name());
        let count =
            |f: &dyn Fn(&&Pod) -> bool| i32::try_from(self.pods.iter().filter(f).count()).unwrap_or(i32::MAX);
        let of = |revision: &str| count(&|p| !p.is_terminating() && p.revision() == revision);
        let mut status = Status {
            observed_generation: self.view.metadata.generation,
            replicas: count(&|_| true),
            ready_replicas: count(&|p| p.is_running_and_ready()),
            available_replicas: count(&|p| self.is_available(p)),
            current_replicas: of(current),
            updated_replicas: of(update),
            current_revision: current.to_owned(),
            update_revision: update.to_owned(),
            collision_count: Some(self.view.status.collision_count.unwrap_or(0)),
            conditions: self.view.status.conditions.clone(),
        };
        let rolling = self.view.spec.update_strategy.kind != "OnDelete";
        // The update is complete: what was new is current.
        if rolling && status.updated_replicas == status.replicas && status.ready_replicas == status.replicas {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
        let max =
            self.view.spec.update_strategy.rolling_update.as_ref().and_then(|r| r.max_unavailable.as_ref());
        let max = max.and_then(|m| m.scaled(self.replicas(), true)).unwrap_or(1);
        self.tell(&metrics::SET_MAX_UNAVAILABLE, f64::from(max.max(1)));
        if status != self.view.status {
            self.this.context.api.update_status(&STATEFUL_SETS, &self.set, &status).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ordinals() {
        let found: BTreeMap<_, _> =
            ["web-0", "web-12", "web-x", "web", "other-1", "web-1-2"].map(|n| (n, ordinal(n, "web"))).into();
        assert_eq!(found["web-0"], Some(0));
        assert_eq!(found["web-12"], Some(12));
        assert_eq!(found.values().filter(|o| o.is_some()).count(), 2);
    }
}
