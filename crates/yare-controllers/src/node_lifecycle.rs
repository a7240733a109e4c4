//! Watches over nodes: a node that falls silent gets unknown conditions, and conditions become taints.
//!
//! A node shows that it lives by renewing its Lease or its status; what counts is when this controller saw
//! that, so clocks need not agree. `NoExecute` taints, which cost pods their place, are added slowly, more
//! slowly still when a large part of a zone is down, and not at all when everything seems down: then it is
//! more likely we who cannot see.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yare_client::{Cached, EventKind, Informer, LEASES, NODES, ObjectKey, ObjectRef, PODS, Queue, Selection};

use crate::{
    api::Patch,
    context::{Context, Error},
    harness::{Next, Reconcile},
    metrics::{EVICTIONS, ZONE_HEALTH, ZONE_SIZE, ZONE_UNHEALTHY},
    node_view::{NodeView, Taint},
    service_pods::ZONE_LABEL,
    views::{Condition, PodView, condition, whole_second},
};

/// Namespace of the nodes' Leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a new node may take to report for the first time.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// A zone is partially disrupted when this part of its nodes, and more than two, are not ready.
const UNHEALTHY_ZONE_THRESHOLD: f64 = 0.55;
/// Zones up to this size stop evicting when partially disrupted; larger ones slow down.
const LARGE_CLUSTER: usize = 50;
const SECONDARY_RATE: f64 = 0.01;

/// Conditions whose status puts a `NoSchedule` taint on the node.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

struct NodeLifecycle {
    context: Context,
    nodes: Informer,
    leases: Informer,
    pods: Informer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    health: HashMap<ObjectKey, Health>,
    /// When the next node of a zone may be tainted.
    next_eviction: HashMap<String, Instant>,
}

/// What was last seen of a node.
struct Health {
    zone: String,
    ready: bool,
    /// Lease and heartbeat last seen, and when that was.
    sign: (u64, Option<jiff::Timestamp>),
    seen: Instant,
}

/// How much of a zone is down.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Zone {
    Normal,
    Partial,
    Full,
}

/// The controller; keys are nodes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(NodeLifecycle {
        nodes: context.informer(NODES),
        leases: leases(context),
        pods: context.informer(PODS),
        state: Mutex::default(),
        context: context.clone(),
    })
}

fn leases(context: &Context) -> Informer {
    let selection = Selection { namespace: Some(LEASE_NAMESPACE.into()), ..Selection::default() };
    context.client.informers().select(LEASES, selection)
}

#[async_trait]
impl Reconcile for NodeLifecycle {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(mut node) = self.nodes.get(key) else {
            if self.state.lock().health.remove(key).is_some() {
                let message = format!("Node {0} event: Removing Node {0} from Controller", key.name);
                self.event(&key.name, None, "RemovingNode", message);
            }
            return Ok(Next::Done);
        };
        let mut view: NodeView = node.view()?;
        let was_ready = view.is_ready();
        let left = self.observe(&node, &view);
        if left.is_zero()
            && let Some(conditions) = silent(&view, self.context.now())
        {
            let write = |body: &mut Value| body["status"]["conditions"] = json!(conditions);
            node = self.context.api.put(&NODES, &node, "/status", write).await?;
            view = node.view()?;
        }
        let ready = view.ready().map_or("Unknown", |c| &*c.status).to_owned();
        if let Some(health) = self.state.lock().health.get_mut(key) {
            health.ready = ready == "True";
        }
        if ready != "True" {
            if was_ready {
                let message = format!("Node {} status is now: NodeNotReady", key.name);
                self.event(&key.name, Some(&node), "NodeNotReady", message);
            }
            if view.ready().is_some() {
                self.mark_pods_not_ready(&key.name).await?;
            }
        }
        let wait = self.taint(&node, &view, &ready).await?;
        let left = if left.is_zero() { None } else { Some(left) };
        Ok([left, wait].into_iter().flatten().min().map_or(Next::Done, Next::After))
    }

    async fn background(&self, queue: Queue<ObjectKey>, _: CancellationToken) {
        self.follow_leases(queue).await;
    }
}

impl NodeLifecycle {
    /// A row of the table watches whole resources; the Leases of one namespace are an informer of its own.
    async fn follow_leases(&self, queue: Queue<ObjectKey>) {
        let mut changes = self.leases.subscribe();
        while let Some(change) = changes.recv().await {
            // A renewed Lease is a sign of life.
            if let Some(lease) = change.new {
                queue.add(ObjectKey::cluster(lease.name()));
            }
        }
    }

    fn event(&self, name: &str, node: Option<&Cached>, reason: &str, message: String) {
        let about = match node {
            Some(node) => ObjectRef::of(&NODES, node),
            None => ObjectRef {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.into(),
                ..ObjectRef::default()
            },
        };
        self.context.recorder.event(about, EventKind::Normal, reason, message);
    }

    /// Notes signs of life; how long the node may stay silent from now.
    fn observe(&self, node: &Cached, view: &NodeView) -> Duration {
        let lease = self.leases.get(&ObjectKey::new(LEASE_NAMESPACE, node.name()));
        let ready = view.ready();
        let grace = match ready {
            Some(_) => self.context.config.node_monitor_grace_period,
            None => STARTUP_GRACE,
        };
        let heartbeat = ready.filter(|c| c.reason != "NodeStatusUnknown").and_then(|c| c.last_heartbeat_time);
        let sign = (lease.map_or(0, |l| l.resource_version()), heartbeat);
        let zone = zone(node);
        let now = Instant::now();
        let mut state = self.state.lock();
        let fresh = !state.health.contains_key(node.key());
        let health = state.health.entry(node.key().clone()).or_insert_with(|| Health {
            zone: zone.clone(),
            ready: view.is_ready(),
            sign,
            seen: now,
        });
        if health.sign != sign {
            health.sign = sign;
            health.seen = now;
        }
        health.zone = zone;
        let left = grace.saturating_sub(now - health.seen);
        drop(state);
        if fresh {
            let message = format!("Node {0} event: Registered Node {0} in Controller", node.name());
            self.event(node.name(), Some(node), "RegisteredNode", message);
        }
        left
    }

    /// Makes taints follow conditions; when to come back if eviction has to wait.
    async fn taint(&self, node: &Cached, view: &NodeView, ready: &str) -> Result<Option<Duration>, Error> {
        let mut taints = no_schedule_taints(view);
        let effect = "NoExecute";
        let wanted = match ready {
            _ if view.ready().is_none() => None,
            "False" => Some(NOT_READY),
            "Unknown" => Some(UNREACHABLE),
            _ => None,
        };
        let has = |key: &str| view.spec.taints.iter().any(|t| t.is(key, effect));
        let other = has(NOT_READY) || has(UNREACHABLE);
        let mut wait = None;
        let (state, everything) = self.disruption(node);
        let keep = match wanted {
            None => None,
            // We are blind rather than all nodes dead.
            Some(_) if everything => None,
            Some(key) if has(key) => Some(key),
            // One reason for the other: no new eviction.
            Some(key) if other => Some(key),
            Some(key) => match self.may_evict(node, state) {
                Ok(()) => Some(key),
                Err(delay) => {
                    wait = Some(delay);
                    None
                }
            },
        };
        taints.retain(|t| !(t.effect == effect && (t.key == NOT_READY || t.key == UNREACHABLE)));
        if let Some(key) = keep {
            let old = view.spec.taints.iter().find(|t| t.is(key, effect)).cloned();
            taints.push(old.unwrap_or_else(|| Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(whole_second(self.context.now())),
                ..Taint::default()
            }));
        }
        if taints != view.spec.taints {
            let patch = json!({
                "metadata": {"resourceVersion": node.resource_version().to_string()},
                "spec": {"taints": taints},
            });
            self.context.api.patch(&NODES, node.key(), "", Patch::Merge, &patch).await?;
            if keep.is_some_and(|key| !has(key)) {
                self.context.config.metrics.table.count(&EVICTIONS, &[&zone(node)]);
            }
        }
        Ok(wait)
    }

    /// The state of the node's zone, and whether all zones are down.
    fn disruption(&self, node: &Cached) -> (Zone, bool) {
        let state = self.state.lock();
        let mut zones: HashMap<&str, (usize, usize)> = HashMap::new();
        for health in state.health.values() {
            let (ready, down) = zones.entry(&health.zone).or_default();
            *(if health.ready { ready } else { down }) += 1;
        }
        let table = &self.context.config.metrics.table;
        for (zone, (ready, down)) in &zones {
            let (ready, down) = (*ready as f64, *down as f64);
            table.set(&ZONE_SIZE, &[zone], ready + down);
            table.set(&ZONE_UNHEALTHY, &[zone], down);
            table.set(&ZONE_HEALTH, &[zone], 100.0 * ready / (ready + down));
        }
        let own = zones.get(&*zone(node)).map_or(Zone::Normal, |(ready, down)| zone_state(*ready, *down));
        (own, zones.values().all(|(ready, down)| zone_state(*ready, *down) == Zone::Full))
    }

    /// Takes the zone's next turn, or says when that is.
    fn may_evict(&self, node: &Cached, zone_state: Zone) -> Result<(), Duration> {
        let zone = zone(node);
        let mut state = self.state.lock();
        let size = state.health.values().filter(|h| h.zone == zone).count();
        let rate = match zone_state {
            Zone::Normal | Zone::Full => self.context.config.node_eviction_rate,
            Zone::Partial if size > LARGE_CLUSTER => SECONDARY_RATE,
            Zone::Partial => 0.0,
        };
        // Looked at again: the zone may recover.
        if rate <= 0.0 {
            return Err(Duration::from_secs(60));
        }
        let now = Instant::now();
        match state.next_eviction.get(&zone) {
            Some(next) if *next > now => Err(*next - now),
            _ => {
                state.next_eviction.insert(zone, now + Duration::from_secs_f64(1.0 / rate));
                Ok(())
            }
        }
    }

    /// Pods of a silent node must not get traffic.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.list() {
            if pod.node_name() != Some(node) {
                continue;
            }
            let view: PodView = pod.view()?;
            if !view.is_ready() {
                continue;
            }
            let ready = Condition::new("Ready", "False", "", "", self.context.now());
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [ready]}});
            match self.context.api.patch(&PODS, pod.key(), "/status", Patch::Strategic, &patch).await {
                Ok(_) => self.context.warning(&PODS, &pod, "NodeNotReady", "Node is not ready"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Region and zone of a node, as upstream makes a key of them; empty for a node that has neither.
fn zone(node: &Cached) -> String {
    let label = |name| node.label(name).unwrap_or("");
    match (label("topology.kubernetes.io/region"), label(ZONE_LABEL)) {
        ("", "") => String::new(),
        (region, zone) => format!("{region}:\0:{zone}"),
    }
}

fn zone_state(ready: usize, down: usize) -> Zone {
    let total = (ready + down) as f64;
    if ready == 0 && down > 0 {
        Zone::Full
    } else if down > 2 && down as f64 / total >= UNHEALTHY_ZONE_THRESHOLD {
        Zone::Partial
    } else {
        Zone::Normal
    }
}

/// The conditions of a node that has fallen silent; `None` if they say so already.
fn silent(view: &NodeView, now: jiff::Timestamp) -> Option<Vec<Condition>> {
    let mut conditions = view.status.conditions.clone();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.kind == kind) {
            None => conditions.push(Condition {
                last_heartbeat_time: view.metadata.creation_timestamp,
                ..Condition::new(
                    kind,
                    "Unknown",
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                    now,
                )
            }),
            Some(c) if c.status != "Unknown" => {
                *c = Condition {
                    last_heartbeat_time: c.last_heartbeat_time,
                    ..Condition::new(
                        kind,
                        "Unknown",
                        "NodeStatusUnknown",
                        "Kubelet stopped posting node status.",
                        now,
                    )
                };
            }
            Some(_) => {}
        }
    }
    (conditions != view.status.conditions).then_some(conditions)
}

/// The node's taints with the `NoSchedule` ones that follow its conditions.
fn no_schedule_taints(view: &NodeView) -> Vec<Taint> {
    let effect = "NoSchedule";
    let is_true = |kind: &str, status: &str| {
        condition(&view.status.conditions, kind).is_some_and(|c| c.status == status)
    };
    let mut wanted: Vec<&str> =
        CONDITION_TAINTS.iter().filter(|(kind, status, _)| is_true(kind, status)).map(|t| t.2).collect();
    if view.spec.unschedulable {
        wanted.push(UNSCHEDULABLE);
    }
    let managed = |key: &str| key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|t| t.2 == key);
    let mut taints = view.spec.taints.clone();
    taints.retain(|t| !(t.effect == effect && managed(&t.key)) || wanted.contains(&&*t.key));
    for key in wanted {
        if !taints.iter().any(|t| t.is(key, effect)) {
            taints.push(Taint { key: key.into(), effect: effect.into(), ..Taint::default() });
        }
    }
    taints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(conditions: Value, taints: Value) -> NodeView {
        serde_json::from_value(json!({"spec": {"taints": taints}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn taints_follow_conditions() {
        let keys = |v: &NodeView| {
            no_schedule_taints(v).into_iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>()
        };
        let node = view(
            json!([{"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "True"}]),
            json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]),
        );
        assert_eq!(
            keys(&node),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/disk-pressure:NoSchedule"
            ]
        );
        let fine = view(
            json!([{"type": "Ready", "status": "True"}]),
            json!([{"key": UNREACHABLE, "effect": "NoExecute"}]),
        );
        assert_eq!(
            keys(&fine),
            ["node.kubernetes.io/unreachable:NoExecute"],
            "other effects are not this function's"
        );
    }

    #[test]
    fn silence_makes_conditions_unknown_once() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let node = view(
            json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2025-12-31T23:00:00Z"}]),
            json!([]),
        );
        let conditions = silent(&node, now).unwrap();
        assert_eq!(conditions.len(), 4);
        assert_eq!(condition(&conditions, "Ready").map(|c| &*c.reason), Some("NodeStatusUnknown"));
        assert_eq!(condition(&conditions, "PIDPressure").map(|c| &*c.reason), Some("NodeStatusNeverUpdated"));
        let again = NodeView { status: crate::node_view::NodeStatus { conditions }, ..NodeView::default() };
        assert!(silent(&again, now).is_none());
    }

    #[test]
    fn zones() {
        for (ready, down, expected) in [
            (0, 1, Zone::Full),
            (1, 1, Zone::Normal),
            (2, 3, Zone::Partial),
            (10, 3, Zone::Normal),
            (5, 0, Zone::Normal),
        ] {
            assert_eq!(zone_state(ready, down), expected, "{ready} {down}");
        }
    }
}
