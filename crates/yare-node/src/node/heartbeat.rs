//! The node's life signs: registration, a lease that is renewed when a quarter of it is over, its status when it
//! changes or is some minutes old.
//!
//! In: runtime, pod network, pressures, the node's own object by watch. Out: writes to the API server. The runtime
//! is looked at every `nodeStatusUpdateFrequency`; changes of network and pressures come by themselves. Waits are by
//! a clock that nobody sets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use yare_client::{EventKind, HangUp, Informer};

use super::advertised;
use super::conditions::{self, Observed};
use super::object;
use super::startup::Startup;
use crate::allocation;
use crate::api::PatchKind;
use crate::clock;
use crate::error::{Error, Result};
use crate::kubelet::Kubelet;
use crate::view::{NodeCondition, NodeStatusView, NodeView};

/// How long the first status waits until volumes can be served.
const STORAGE_PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts to renew the lease.
const RENEW_RETRY: Duration = Duration::from_secs(1);
/// Between attempts while the API server is away.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// What the heartbeat needs beyond the kubelet.
pub(crate) struct Heartbeat {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) node: Informer,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) port: u16,
    pub(crate) runtime_version: String,
    /// Ends connections to an API server that does not answer.
    pub(crate) hang_up: Option<HangUp>,
    /// Which start of the machine this is.
    pub(crate) boot_id: String,
    /// What pods get less of here than they are told.
    pub(crate) clamps: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Registered {
    metadata: crate::view::Metadata,
    status: RegisteredStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RegisteredStatus {
    node_info: NodeInfo,
    #[serde(flatten)]
    view: NodeStatusView,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    #[serde(rename = "bootID")]
    boot_id: String,
}

/// What of the node's own object others may have changed and is put right at the next look.
struct Seen {
    conditions: Vec<NodeCondition>,
    lost_labels: Map<String, Value>,
}

impl Seen {
    fn of(node: &NodeView) -> Self {
        let lost = object::machine_labels().into_iter();
        let lost =
            lost.filter(|(name, value)| node.metadata.labels.get(*name).is_none_or(|own| own != value));
        Self {
            conditions: node.status.conditions.clone(),
            lost_labels: lost.map(|(name, value)| (name.to_owned(), json!(value))).collect(),
        }
    }
}

impl Heartbeat {
    /// Runs for as long as the node.
    pub(crate) async fn run(self) {
        self.kubelet.node_event(EventKind::Normal, "Starting", "Starting kubelet.".to_owned());
        if let Some(clamps) = &self.clamps {
            self.kubelet.node_event(EventKind::Warning, "ClampedLimits", clamps.clone());
        }
        let mut startup = Startup::begin();
        let (uid, mut held) = self.register(&mut startup).await;
        self.kubelet.csi.node.registered(&uid);
        let mut network = self.kubelet.network.clone();
        let mut storage = self.kubelet.csi.node.ready();
        // A node that was ready does not become unready for the moment that this takes.
        let initialized = storage.wait_for(Result::is_ok);
        drop(tokio::time::timeout(STORAGE_PATIENCE, initialized).await);
        let mut in_use = self.kubelet.volumes.in_use();
        let mut devices = self.kubelet.managers.devices.changes();
        let mut pressures = self.kubelet.pressures.subscribe();
        let mut shutting_down = self.kubelet.shutting_down.subscribe();
        let mut changes = self.node.subscribe();
        let settings = self.kubelet.config.settings();
        let (look_every, write_every) =
            (settings.node_status_update_frequency.get(), settings.node_status_report_frequency.get());
        let mut reporting = true;
        let mut written: Option<Value> = None;
        let mut written_at = Instant::now();
        // What somebody else advertised and is not allocatable yet.
        let mut corrections = Map::new();
        // The node's own object as it was last seen, since it was last looked at.
        let mut seen: Option<Seen> = None;
        let mut lease_at = Instant::now();
        loop {
            let others = self.changed_by_others(seen.as_ref(), &held).await;
            if others.is_ok() {
                seen = None;
            }
            let (overwritten, lost) = others.unwrap_or_default();
            let mut news = overwritten.is_some() || !lost.is_empty();
            held = overwritten.unwrap_or(held);
            let (conditions, events) =
                conditions::compute(&held, &self.observe().await, &self.kubelet.seams.now_text());
            let images = match self.kubelet.runtime.images().await {
                Ok(list) => object::images(list, settings.node_status_max_images),
                Err(_) => json!([]),
            };
            let volumes = in_use.borrow_and_update().clone();
            let mut status = self.status(&conditions, images);
            if let Ok(runtime) = self.kubelet.runtime.status().await {
                object::abilities(&runtime, &mut status);
                self.kubelet.offer.lock().strict_groups = runtime.supplemental_groups_policy;
            }
            news |= written.as_ref().is_none_or(|before| !same(before, &status));
            if news || !corrections.is_empty() || written_at.elapsed() >= write_every {
                match self.write_status(&status, written.as_ref(), &corrections, &lost).await {
                    Ok(()) => {
                        corrections.clear();
                        self.kubelet.volumes.was_reported(volumes);
                        for event in events {
                            let text = format!("Node {} status is now: {event}", self.kubelet.node_name);
                            self.kubelet.node_event(EventKind::Normal, event, text);
                        }
                        if conditions.iter().any(|c| c.kind == "Ready" && c.status == "True") {
                            startup.ready(&self.kubelet.metrics);
                        }
                        held = conditions;
                        written = Some(status);
                        written_at = Instant::now();
                    }
                    Err(error) => tracing::warn!(%error, "writing the node's status"),
                }
            }
            let look_at = Instant::now() + look_every;
            // Wait for the next look or for news; a change of the node's own object is mostly only taken in.
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(look_at) => break,
                    () = tokio::time::sleep_until(lease_at) => lease_at = self.renewal(&uid).await,
                    changed = network.changed(), if reporting => {
                        // Once nobody reports any more the last word is kept.
                        reporting = changed.is_ok();
                        if reporting {
                            break;
                        }
                    }
                    Ok(()) = storage.changed() => break,
                    Ok(()) = in_use.changed() => break,
                    // Whoever counts is the manager itself, which lives as long as this.
                    Ok(()) = devices.changed() => break,
                    // The sender lives as long as the kubelet.
                    Ok(()) = pressures.changed() => break,
                    Ok(()) = shutting_down.changed() => break,
                    Some(change) = changes.recv() => {
                        if let Some(node) = change.new.and_then(|c| c.view::<NodeView>().ok()) {
                            seen = Some(Seen::of(&node));
                            corrections = self.take_in(node);
                            if !corrections.is_empty() {
                                break;
                            }
                        }
                    }
                }
            }
        }
    }

    /// How long the lease holds.
    fn lease(&self) -> Duration {
        let seconds = self.kubelet.config.settings().node_lease_duration_seconds;
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
    }

    /// Renews the lease; when that is to be done again.
    async fn renewal(&self, uid: &str) -> Instant {
        let every = self.lease() / 4;
        let renewed = self.renew(uid, every).await;
        if let Err(error) = &renewed {
            tracing::warn!(%error, "renewing the node's lease");
            // A connection that was cut somewhere on its way looks like a slow server for long.
            self.hang_up.iter().for_each(HangUp::all);
        }
        Instant::now() + if renewed.is_ok() { every } else { RENEW_RETRY.min(every) }
    }

    fn status(&self, conditions: &[NodeCondition], images: Value) -> Value {
        object::status(&self.kubelet, self.port, &self.runtime_version, &self.boot_id, conditions, images)
    }

    /// What pods may count on: the node's labels and taints as they are now, and what others advertise for it. Answers
    /// what is to be corrected for that.
    fn take_in(&self, node: NodeView) -> Map<String, Value> {
        let counted = self.kubelet.managers.devices.counts();
        let own = |name: &str| counted.contains_key(name);
        let advertised = advertised::read(&node.status, own);
        let corrections = advertised::corrections(&node.status, &advertised, own);
        let attached = node.status.volumes_attached.unwrap_or_default();
        self.kubelet.volumes.were_attached(attached.into_iter().map(|v| v.name).collect());
        let mut offer = self.kubelet.offer.lock();
        offer.labels = node.metadata.labels;
        offer.taints = node.spec.taints;
        offer.advertised = advertised;
        drop(offer);
        self.kubelet.allocations.freed(allocation::PERIODIC);
        corrections
    }

    /// The conditions that others left, where they are not those that were written, and labels that were lost.
    async fn changed_by_others(
        &self,
        seen: Option<&Seen>,
        held: &[NodeCondition],
    ) -> Result<(Option<Vec<NodeCondition>>, Map<String, Value>)> {
        let changed = |seen: &Seen| conditions::overwritten(held, &seen.conditions);
        if seen.is_none_or(|seen| seen.lost_labels.is_empty() && changed(seen).is_none()) {
            return Ok((None, Map::new()));
        }
        // What the watch brought may be older than what was written since.
        let path = format!("/api/v1/nodes/{}", self.kubelet.node_name);
        let seen = Seen::of(&self.kubelet.api.get::<NodeView>(&path).await?);
        Ok((changed(&seen), seen.lost_labels))
    }

    async fn observe(&self) -> Observed {
        let pressures = self.kubelet.pressures.borrow().clone();
        Observed {
            pressures,
            runtime: conditions::of_runtime(&self.kubelet.runtime.status().await),
            network: self.kubelet.network.borrow().clone(),
            storage: self.kubelet.csi.node.ready().borrow().clone(),
            shutting_down: *self.kubelet.shutting_down.borrow(),
        }
    }

    /// Creates the Node, or brings an existing one's labels up to date. Answers its uid and conditions.
    async fn register(&self, startup: &mut Startup) -> (String, Vec<NodeCondition>) {
        let mut wait = RETRY_MIN;
        loop {
            match self.try_register(startup).await {
                Ok(registered) => return registered,
                Err(error) => {
                    tracing::debug!(%error, "registering the node, will retry");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn try_register(&self, startup: &mut Startup) -> Result<(String, Vec<NodeCondition>)> {
        let kubelet = &self.kubelet;
        let observed = Observed {
            network: super::NetworkReadiness::NotReady("the node is starting".to_owned()),
            ..self.observe().await
        };
        let (conditions, _) = conditions::compute(&[], &observed, &kubelet.seams.now_text());
        if !kubelet.config.settings().register_node {
            // Somebody else makes it.
            let found: Registered = kubelet.api.get(&format!("/api/v1/nodes/{}", kubelet.node_name)).await?;
            self.compare_boots(&found);
            return Ok((found.metadata.uid, found.status.view.conditions));
        }
        startup.attempt();
        let status = self.status(&conditions, json!([]));
        let node = object::registration(kubelet, &self.labels, status);
        match kubelet.api.create::<Registered>("/api/v1/nodes", &node).await {
            Ok(made) => {
                startup.registered(&kubelet.metrics);
                return Ok((made.metadata.uid, made.status.view.conditions));
            }
            Err(error) if error.status_code() == Some(409) => {}
            Err(error) => return Err(error),
        }
        let path = format!("/api/v1/nodes/{}", kubelet.node_name);
        let patch = json!({ "metadata": { "labels": self.labels } });
        let found: Registered = kubelet.api.patch_for(&path, PatchKind::Merge, &patch).await?;
        self.compare_boots(&found);
        if kubelet.managers.devices.is_new()
            && let Some(patch) = advertised::none(&found.status.view)
        {
            kubelet.api.patch(&format!("{path}/status"), PatchKind::Strategic, &patch).await?;
        }
        Ok((found.metadata.uid, found.status.view.conditions))
    }

    /// Says that the machine was started anew since the node was last seen.
    fn compare_boots(&self, found: &Registered) {
        let before = &found.status.node_info.boot_id;
        if !before.is_empty() && *before != self.boot_id {
            let (name, id) = (&self.kubelet.node_name, &self.boot_id);
            let text = format!("Node {name} has been rebooted, boot id: {id}");
            self.kubelet.node_event(EventKind::Warning, "Rebooted", text);
        }
    }

    /// Writes what differs from the last status, or everything, with corrections of what is allocatable and labels that
    /// were lost.
    async fn write_status(
        &self,
        status: &Value,
        before: Option<&Value>,
        corrections: &Map<String, Value>,
        labels: &Map<String, Value>,
    ) -> Result<()> {
        let mut patch = Map::new();
        for (name, value) in status.as_object().into_iter().flatten() {
            if name == "conditions" || before.is_none_or(|b| b.get(name) != Some(value)) {
                patch.insert(name.clone(), value.clone());
            }
        }
        if !corrections.is_empty()
            && let Some(allocatable) = patch.entry("allocatable").or_insert_with(|| json!({})).as_object_mut()
        {
            allocatable.extend(corrections.clone());
        }
        let mut patch = json!({ "status": patch });
        if !labels.is_empty() {
            patch["metadata"] = json!({ "labels": labels });
        }
        let path = format!("/api/v1/nodes/{}/status", self.kubelet.node_name);
        self.kubelet.api.patch(&path, PatchKind::Strategic, &patch).await
    }

    async fn renew(&self, uid: &str, patience: Duration) -> Result<()> {
        tokio::time::timeout(patience, self.try_renew(uid))
            .await
            .unwrap_or_else(|_| Err(Error::Request(format!("no answer within {} s", patience.as_secs()))))
    }

    async fn try_renew(&self, uid: &str) -> Result<()> {
        let name = &self.kubelet.node_name;
        let now = clock::rfc3339_micro(self.kubelet.seams.now());
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let spec = json!({ "holderIdentity": name, "leaseDurationSeconds": self.lease().as_secs(), "renewTime": now });
        match self
            .kubelet
            .api
            .patch(&format!("{path}/{name}"), PatchKind::Merge, &json!({ "spec": spec }))
            .await
        {
            Err(error) if error.is_not_found() => {}
            outcome => return outcome,
        }
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "namespace": "kube-node-lease",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }],
            },
            "spec": spec,
        });
        self.kubelet.api.create::<serde::de::IgnoredAny>(path, &lease).await.map(drop)
    }
}

/// Whether two statuses differ in nothing but heartbeat times.
fn same(a: &Value, b: &Value) -> bool {
    let strip = |status: &Value| {
        let mut status = status.clone();
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = condition.as_object_mut() {
                map.remove("lastHeartbeatTime");
            }
        }
        status
    };
    strip(a) == strip(b)
}
