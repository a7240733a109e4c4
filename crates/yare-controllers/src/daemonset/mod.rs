//! DaemonSets: one pod on every node that fits.
//!
//! Pods are made for their node (a required affinity to its name) and bound by the scheduler. An update
//! replaces them within `maxUnavailable`, or with `maxSurge` brings the new pod before the old one goes.

mod placement;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use yare_client::{CONTROLLER_REVISIONS, Cached, Change, DAEMON_SETS, Informer, NODES, ObjectKey, PODS};

use self::placement::{Placement, add_tolerations};
use crate::{
    context::{Context, Error},
    expectations::Expectations,
    harness::{Next, Reconcile},
    history::{self, Current, REVISION_HASH},
    node_affinity::{NodeChoice, pin},
    node_view::NodeView,
    ownership,
    replicaset::slow_start,
    selector::LabelSelector,
    template,
    views::{Condition, IntOrString, Meta, PodView, nullable},
};

/// Pods created or deleted in one round.
const BURST: usize = 250;
const FAILED_BACKOFF: Duration = Duration::from_secs(1);
const FAILED_BACKOFF_MAX: Duration = Duration::from_secs(900);
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

struct DaemonSets {
    context: Context,
    own: Informer,
    pods: Informer,
    nodes: Informer,
    revisions: Informer,
    expectations: Expectations,
    /// Failed pods by set and node: how many in a row, and when the last was replaced.
    failures: Mutex<HashMap<(String, String), (u32, Instant)>>,
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
    selector: LabelSelector,
    template: Value,
    min_ready_seconds: i32,
    update_strategy: Strategy,
    revision_history_limit: Option<i32>,
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
    max_unavailable: Option<IntOrString>,
    max_surge: Option<IntOrString>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    current_number_scheduled: i32,
    number_misscheduled: i32,
    desired_number_scheduled: i32,
    number_ready: i32,
    #[serde(skip_serializing_if = "is_zero")]
    observed_generation: i64,
    #[serde(skip_serializing_if = "is_zero32")]
    updated_number_scheduled: i32,
    #[serde(skip_serializing_if = "is_zero32")]
    number_available: i32,
    #[serde(skip_serializing_if = "is_zero32")]
    number_unavailable: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    collision_count: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn is_zero32(n: &i32) -> bool {
    *n == 0
}

#[derive(Clone)]
struct Pod {
    cached: Cached,
    view: PodView,
}

/// The controller.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(DaemonSets {
        own: context.informer(DAEMON_SETS),
        pods: context.informer(PODS),
        nodes: context.informer(NODES),
        revisions: context.informer(CONTROLLER_REVISIONS),
        expectations: Expectations::default(),
        failures: Mutex::default(),
        context: context.clone(),
    })
}

/// A node that comes, goes, or changes what daemons look at concerns all sets.
pub fn changed_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let (Some(old), Some(new)) = (&change.old, &change.new) {
        let taints = |n: &Cached| n.view::<NodeView>().map(|v| v.spec.taints).unwrap_or_default();
        if old.labels() == new.labels() && taints(old) == taints(new) {
            return;
        }
    }
    for set in context.informer(DAEMON_SETS).list() {
        add(set.key().clone());
    }
}

#[async_trait]
impl Reconcile for DaemonSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.own.get(key) else {
            self.expectations.forget(key);
            return Ok(Next::Done);
        };
        let view: View = set.view()?;
        if view.spec.selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.warning(&DAEMON_SETS, &set, "SelectingAll", message);
            return Ok(Next::Done);
        }
        if set.deletion_timestamp().is_some() {
            return Ok(Next::Done);
        }
        let owner = history::Owner {
            resource: &DAEMON_SETS,
            object: &set,
            selector: &view.spec.selector,
            template: &view.spec.template,
            annotations: &view.metadata.annotations,
        };
        let mut revisions = owner.revisions(&self.context, &self.revisions).await?;
        let current = match owner.current(&self.context, &mut revisions, view.status.collision_count).await? {
            Current::Found(revision) => revision,
            Current::Collision => {
                let count = view.status.collision_count.unwrap_or(0).saturating_add(1);
                let status = Status { collision_count: Some(count), ..view.status };
                self.context.api.update_status(&DAEMON_SETS, &set, &status).await?;
                return Err(Error::Other(format!(
                    "DaemonSet {key}: hash collision of its template, trying another"
                )));
            }
        };
        let hash = current.hash().to_owned();
        let mut nodes = Vec::new();
        for node in self.nodes.list() {
            nodes.push((node.view::<NodeView>()?, node));
        }
        let round = Round {
            this: self,
            placement: Placement::new(&view.spec.template),
            pods: self.pods_by_node(&set, &view.spec.selector).await?,
            now: self.context.now(),
            set,
            view,
            hash,
            nodes,
        };
        let may_act = self.expectations.satisfied(key, &self.pods);
        let (managed, requeue) = if may_act { round.manage().await } else { (Ok(()), None) };
        if may_act && managed.is_ok() {
            let limit = round.view.spec.revision_history_limit.unwrap_or(10);
            let used = |r: &history::Revision| r.hash() == round.hash || round.uses(r.hash());
            history::truncate(&self.context, &revisions, limit, used).await?;
        }
        let slow = round.write_status(may_act).await?;
        managed?;
        Ok([requeue, slow].into_iter().flatten().min().map_or(Next::Done, Next::After))
    }
}

impl DaemonSets {
    async fn pods_by_node(
        &self,
        set: &Cached,
        selector: &LabelSelector,
    ) -> Result<BTreeMap<String, Vec<Pod>>, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Target {
            spec: NodeChoice,
        }
        let mut candidates = self.pods.by_owner(set.uid());
        let orphans = self.pods.in_namespace(set.namespace()).into_iter();
        candidates.extend(orphans.filter(|p| p.controller().is_none() && selector.matches(p.labels())));
        let claimed =
            ownership::claim(&self.context, &DAEMON_SETS, set, selector, &PODS, candidates, None).await?;
        let mut by_node: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
        for cached in claimed {
            let view: PodView = cached.view()?;
            let target = cached.view::<Target>()?.spec.target().map(str::to_owned);
            if let Some(target) = target {
                by_node.entry(target).or_default().push(Pod { cached, view });
            }
        }
        for pods in by_node.values_mut() {
            // Bound before unbound, oldest first.
            pods.sort_by(|a, b| {
                let order = |p: &Pod| (p.cached.node_name().is_none(), p.view.metadata.creation_timestamp);
                order(a).cmp(&order(b)).then_with(|| a.cached.name().cmp(b.cached.name()))
            });
        }
        Ok(by_node)
    }

    /// How long to wait before a failed pod is replaced; counts the failure if not at all.
    fn failed(&self, set: &Cached, node: &str) -> Duration {
        let key = (set.uid().to_owned(), node.to_owned());
        let now = Instant::now();
        let mut failures = self.failures.lock();
        failures.retain(|_, (_, at)| now - *at < FAILED_BACKOFF_MAX * 2);
        let entry = failures.entry(key).or_insert((0, now));
        if entry.0 > 0 {
            let delay =
                FAILED_BACKOFF.saturating_mul(2u32.saturating_pow(entry.0 - 1)).min(FAILED_BACKOFF_MAX);
            let left = delay.saturating_sub(now - entry.1);
            if !left.is_zero() {
                return left;
            }
        }
        *entry = (entry.0 + 1, now);
        Duration::ZERO
    }
}

struct Round<'a> {
    this: &'a DaemonSets,
    set: Cached,
    view: View,
    hash: String,
    placement: Placement,
    nodes: Vec<(NodeView, Cached)>,
    pods: BTreeMap<String, Vec<Pod>>,
    now: Timestamp,
}

/// Nodes that get a pod, and pods that go.
#[derive(Default)]
struct Plan {
    create: Vec<String>,
    delete: Vec<Cached>,
}

impl Round<'_> {
    fn is_updated(&self, pod: &Pod) -> bool {
        let generation = self.view.metadata.annotations.get(TEMPLATE_GENERATION);
        pod.cached.label(REVISION_HASH) == Some(&self.hash)
            || generation.is_some_and(|g| pod.cached.label("pod-template-generation") == Some(g))
    }

    fn uses(&self, hash: &str) -> bool {
        self.pods.values().flatten().any(|p| p.cached.label(REVISION_HASH) == Some(hash))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.view.is_available(self.view.spec.min_ready_seconds, self.now)
    }

    fn desired(&self) -> usize {
        self.nodes.iter().filter(|(view, node)| self.placement.on(node, view).0).count()
    }

    /// `maxSurge` and `maxUnavailable` as numbers.
    fn bounds(&self) -> (usize, usize) {
        let desired = i32::try_from(self.desired()).unwrap_or(i32::MAX);
        let rolling = self.view.spec.update_strategy.rolling_update.as_ref();
        let number = |v: Option<&IntOrString>, default: i32| {
            let n = v.map_or(Some(default), |v| v.scaled(desired, true)).unwrap_or(0);
            usize::try_from(n).unwrap_or(0)
        };
        let surge = number(rolling.and_then(|r| r.max_surge.as_ref()), 0);
        let unavailable = number(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        if surge == 0 && unavailable == 0 && desired > 0 { (0, 1) } else { (surge, unavailable) }
    }

    fn is_rolling(&self) -> bool {
        self.view.spec.update_strategy.kind != "OnDelete"
    }

    async fn manage(&self) -> (Result<(), Error>, Option<Duration>) {
        let (plan, requeue) = self.plan_nodes();
        let busy = !plan.create.is_empty() || !plan.delete.is_empty();
        let mut result = self.carry_out(plan).await;
        // The update sees the effects of this in the next round.
        if result.is_ok() && self.is_rolling() && !busy {
            result = self.carry_out(self.plan_update()).await;
        }
        (result, requeue)
    }

    /// A pod on every node that should have one, and no other.
    fn plan_nodes(&self) -> (Plan, Option<Duration>) {
        let (mut plan, mut requeue) = (Plan::default(), None);
        let (surge, _) = self.bounds();
        let allows_surge = self.is_rolling() && surge > 0;
        for (view, node) in &self.nodes {
            let (start, stay) = self.placement.on(node, view);
            let Some(pods) = self.pods.get(node.name()) else {
                if start {
                    plan.create.push(node.name().to_owned());
                }
                continue;
            };
            let alive: Vec<&Pod> =
                pods.iter().filter(|p| p.view.metadata.deletion_timestamp.is_none()).collect();
            if !stay {
                plan.delete.extend(alive.into_iter().map(|p| p.cached.clone()));
                continue;
            }
            let mut running = Vec::new();
            for pod in alive {
                match &*pod.view.status.phase {
                    "Failed" => {
                        let wait = self.this.failed(&self.set, node.name());
                        if !wait.is_zero() {
                            requeue = Some(requeue.map_or(wait, |r: Duration| r.min(wait)));
                            continue;
                        }
                        self.say_ended(pod, "failed", "kill");
                        plan.delete.push(pod.cached.clone());
                    }
                    "Succeeded" => {
                        self.say_ended(pod, "succeeded", "delete");
                        plan.delete.push(pod.cached.clone());
                    }
                    _ => running.push(pod),
                }
            }
            if !allows_surge {
                plan.delete.extend(running.into_iter().skip(1).map(|p| p.cached.clone()));
                continue;
            }
            if running.is_empty() && start {
                plan.create.push(node.name().to_owned());
            }
            // One of each revision may be there for a while.
            let (new, old): (Vec<&Pod>, Vec<&Pod>) =
                running.into_iter().partition(|p| p.cached.label(REVISION_HASH) == Some(&self.hash));
            plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|p| p.cached.clone()));
            if let (Some(new), Some(old)) = (new.first(), old.first())
                && (!old.view.is_ready() || self.is_available(new))
            {
                plan.delete.push(old.cached.clone());
            }
        }
        for (name, pods) in &self.pods {
            if !self.nodes.iter().any(|(_, n)| n.name() == name) {
                let unbound = pods.iter().filter(|p| p.cached.node_name().is_none());
                plan.delete.extend(unbound.map(|p| p.cached.clone()));
            }
        }
        (plan, requeue)
    }

    fn say_ended(&self, pod: &Pod, how: &str, what: &str) {
        let (key, node) = (pod.cached.key(), pod.cached.node_name().unwrap_or_default());
        let message = format!("Found {how} daemon pod {key} on node {node}, will try to {what} it");
        let context = &self.this.context;
        match how {
            "failed" => context.warning(&DAEMON_SETS, &self.set, "FailedDaemonPod", message),
            _ => context.normal(&DAEMON_SETS, &self.set, "SucceededDaemonPod", message),
        }
    }

    /// The alive pods of a node by revision: new, old. `None` if there are several of one.
    fn pair<'p>(&self, pods: &'p [Pod]) -> Option<(Option<&'p Pod>, Option<&'p Pod>)> {
        let alive = pods.iter().filter(|p| p.view.metadata.deletion_timestamp.is_none());
        let (new, old): (Vec<&Pod>, Vec<&Pod>) = alive.partition(|p| self.is_updated(p));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    fn plan_update(&self) -> Plan {
        let (surge, unavailable) = self.bounds();
        let wanted: Vec<&str> =
            self.nodes.iter().filter(|(v, n)| self.placement.on(n, v).0).map(|(_, n)| n.name()).collect();
        let mut nodes: Vec<&str> = self.pods.keys().map(String::as_str).collect();
        nodes.extend(wanted.iter().copied().filter(|n| !self.pods.contains_key(*n)));
        let pods = |node: &str| self.pods.get(node).map_or(&[][..], Vec::as_slice);
        if surge == 0 {
            return self.plan_unavailable(unavailable, &nodes, pods);
        }
        let mut plan = Plan::default();
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
        for node in nodes {
            let Some((new, old)) = self.pair(pods(node)) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|p| self.is_available(p)));
            let Some(old) = old else { continue };
            match new {
                Some(new) if self.is_available(new) => plan.delete.push(old.cached.clone()),
                Some(_) => surging += 1,
                None if !wanted.contains(&node) && self.is_available(old) => {
                    misplaced.push(old.cached.clone())
                }
                None if !wanted.contains(&node) => plan.delete.push(old.cached.clone()),
                None if self.is_available(old) => candidates.push(node.to_owned()),
                None => plan.create.push(node.to_owned()),
            }
        }
        plan.delete.extend(misplaced.into_iter().take(available.saturating_sub(wanted.len())));
        plan.create.extend(candidates.into_iter().take(surge.saturating_sub(surging)));
        plan
    }

    /// Deletes old pods; their nodes get new ones in the next round.
    fn plan_unavailable<'p>(&self, max: usize, nodes: &[&str], pods: impl Fn(&str) -> &'p [Pod]) -> Plan {
        let mut plan = Plan::default();
        let (mut missing, mut candidates) = (0, Vec::new());
        for node in nodes {
            match self.pair(pods(node)) {
                Some((Some(new), None)) => missing += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.cached.clone()),
                Some((None, Some(old))) => {
                    missing += 1;
                    plan.delete.push(old.cached.clone());
                }
                _ => missing += 1,
            }
        }
        plan.delete.extend(candidates.into_iter().take(max.saturating_sub(missing)));
        plan
    }

    async fn carry_out(&self, plan: Plan) -> Result<(), Error> {
        let (this, set) = (self.this, &self.set);
        let mut template = self.view.spec.template.clone();
        template["metadata"]["labels"][REVISION_HASH] = self.hash.clone().into();
        if let Some(generation) = self.view.metadata.annotations.get(TEMPLATE_GENERATION) {
            template["metadata"]["labels"]["pod-template-generation"] = generation.clone().into();
        }
        let mut pod = template::pod(&template, &DAEMON_SETS, set);
        add_tolerations(&mut pod["spec"]);
        let nodes: Vec<&String> = plan.create.iter().take(BURST).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let created = slow_start(nodes.len(), || {
            let node = nodes[next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)];
            let mut pod = pod.clone();
            pin(&mut pod["spec"], node);
            async move {
                match template::create_pod(&this.context, &DAEMON_SETS, set, &pod).await {
                    Ok(created) => {
                        this.expectations.created(set.key(), &created);
                        Ok(())
                    }
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => Err(Error::from(error)),
                }
            }
        })
        .await;
        let deletions = plan.delete.iter().take(BURST).map(|pod| async move {
            template::delete_pod(&this.context, &DAEMON_SETS, set, pod).await?;
            this.expectations.deleted(set.key(), pod);
            Ok::<_, Error>(())
        });
        let deleted: Result<(), Error> = join_all(deletions).await.into_iter().collect();
        created.and(deleted)
    }

    /// Writes the status; when to look again at pods that are ready but not yet available.
    async fn write_status(&self, observed: bool) -> Result<Option<Duration>, Error> {
        let old = &self.view.status;
        let mut status = Status {
            observed_generation: if observed {
                self.view.metadata.generation
            } else {
                old.observed_generation
            },
            collision_count: old.collision_count,
            conditions: old.conditions.clone(),
            ..Status::default()
        };
        let mut next = None;
        for (view, node) in &self.nodes {
            let pod = self.pods.get(node.name()).and_then(|p| p.first());
            if !self.placement.on(node, view).0 {
                status.number_misscheduled += i32::from(pod.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = pod else { continue };
            status.current_number_scheduled += 1;
            status.updated_number_scheduled += i32::from(self.is_updated(pod));
            if pod.view.is_ready() {
                status.number_ready += 1;
                let left =
                    pod.view.available_in(self.view.spec.min_ready_seconds, self.now).unwrap_or_default();
                if left.is_zero() {
                    status.number_available += 1;
                } else {
                    next = Some(next.map_or(left, |n: Duration| n.min(left)));
                }
            }
        }
        status.number_unavailable = status.desired_number_scheduled - status.number_available;
        if status != *old {
            self.this.context.api.update_status(&DAEMON_SETS, &self.set, &status).await?;
        }
        Ok(next)
    }
}
