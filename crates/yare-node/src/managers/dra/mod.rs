//! Dynamic resource allocation, the node's side: drivers make the devices of claims ready before a pod's sandbox is made,
//! and take them back when its containers have ended (KEP-4381).
//!
//! In: pods whose claims are allocated and reserved for them, drivers that registered. Out: CDI names for containers,
//! the health of claimed devices, and an end to what drivers published once they are gone.
//!
//! ```text
//! claims of the pod ─► all there, allocated, reserved? ─► written down ─► NodePrepareResources ─► CDI names
//! containers ended ─► last pod of the claim? ─► NodeUnprepareResources ─► forgotten
//! ```

pub mod api;
mod drivers;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::mpsc;
use yare_grpc::{Client, Status, code_name, describe};

pub(crate) use self::drivers::service;
pub(crate) use self::state::ClaimInfo;

use self::api::{Claim, Claims as ClaimList, NodePrepareResourcesResponse, NodeUnprepareResourcesResponse};
use self::drivers::Drivers;
use self::state::{Claims, Device, DriverState, Empty};
use super::ManagerSettings;
use crate::clock::Seams;
use crate::kubelet::Kubelet;
use crate::metrics::{Metrics, table};
use crate::view::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};

/// Where claims are written down; upstream's name.
const CHECKPOINT: &str = "dra_manager_state";
/// Time for a driver; as upstream has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// Between attempts to remove what a driver published.
const WIPE_RETRY_MIN: Duration = Duration::from_secs(1);
const WIPE_RETRY_MAX: Duration = Duration::from_secs(300);

/// See the module.
pub(crate) struct DraManager {
    path: PathBuf,
    seams: Seams,
    claims: Mutex<Claims>,
    drivers: Arc<Drivers>,
    /// Held while drivers are asked: two pods may share a claim.
    turn: tokio::sync::Mutex<()>,
    /// Pods that went while the agent was away, whose claims are yet to be taken back.
    left: Mutex<BTreeSet<String>>,
    affected: mpsc::Sender<String>,
    /// Time for a driver that went away to come back, before what it published is removed.
    wiping_delay: Duration,
}

/// A claim as the API server has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimView {
    metadata: ClaimMeta,
    status: ClaimStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimMeta {
    uid: String,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    uid: String,
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Allocation>,
    reserved_for: Vec<Consumer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Consumer {
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Allocation {
    devices: Devices,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Devices {
    results: Vec<ResultView>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResultView {
    driver: String,
}

/// The claim that stands behind one of a pod's: its name, and whether it was made for the pod. None: there is none,
/// and needs to be none.
fn claim_name(pod: &Pod, name: &str) -> Result<Option<(String, bool)>, String> {
    let m = &pod.metadata;
    let Some(claim) = pod.spec.resource_claims.iter().find(|c| c.name == name) else { return Ok(None) };
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    if claim.resource_claim_template_name.is_none() {
        return Err(format!(
            "pod \"{}/{}\", spec.resourceClaim {name:?}: none of the supported fields are set",
            m.namespace, m.name
        ));
    }
    match pod.status.resource_claim_statuses.iter().find(|s| s.name == name) {
        Some(status) => Ok(status.resource_claim_name.clone().map(|name| (name, true))),
        None => Err(format!("pod \"{}/{}\": ResourceClaim not created yet", m.namespace, m.name)),
    }
}

impl DraManager {
    /// A manager with its checkpoint in a directory.
    pub(crate) fn new(
        settings: &ManagerSettings,
        dir: &Path,
        seams: Seams,
        affected: mpsc::Sender<String>,
    ) -> Result<Self, String> {
        let path = dir.join(CHECKPOINT);
        let claims = Claims::load(&path).map_err(|e| {
            format!("could not initialize checkpoint manager, please drain node and remove DRA state file, err: {e}")
        })?;
        Ok(DraManager {
            path,
            seams,
            claims: Mutex::new(claims),
            drivers: Arc::default(),
            turn: tokio::sync::Mutex::new(()),
            left: Mutex::default(),
            affected,
            wiping_delay: settings.dra_wiping_delay,
        })
    }

    /// Takes a driver into use, and catches up with what it was not there for.
    pub(crate) async fn register(
        self: &Arc<Self>,
        metrics: &Metrics,
        name: &str,
        endpoint: &str,
        versions: &[String],
    ) -> Result<(), String> {
        let manager = Arc::downgrade(self);
        let changed = move |driver: &str, devices: &[(String, String)]| {
            if let Some(manager) = manager.upgrade() {
                manager.tell_pods(driver, devices);
            }
        };
        self.drivers.add(name, endpoint, versions, self.seams.now.clone(), changed)?;
        self.take_back_left(metrics).await;
        Ok(())
    }

    /// A driver's socket is gone.
    pub(crate) fn deregister(self: &Arc<Self>, kubelet: &Arc<Kubelet>, name: &str, endpoint: &str) {
        let Some(changes) = self.drivers.remove(name, endpoint) else { return };
        let (manager, kubelet, name) = (self.clone(), Arc::downgrade(kubelet), name.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(manager.wiping_delay).await;
            wipe(&kubelet, Some(&name), || manager.drivers.gone_since(&name, changes)).await;
        });
    }

    /// Wakes the pods that use devices.
    fn tell_pods(&self, driver: &str, devices: &[(String, String)]) {
        let claims = self.claims.lock();
        let uses = |claim: &&ClaimInfo| {
            claim.devices().any(|(d, device)| {
                d == driver
                    && devices
                        .iter()
                        .any(|(pool, name)| *pool == device.pool_name && *name == device.device_name)
            })
        };
        for uid in claims.0.values().filter(uses).flat_map(|c| c.pod_uids.keys()) {
            // A full queue: the pods are looked at soon anyway.
            let _ = self.affected.try_send(uid.clone());
        }
    }

    fn save(&self, claims: &Claims) -> Result<(), String> {
        claims.save(&self.path).map_err(|e| format!("checkpoint ResourceClaim cache: {e}"))
    }

    /// Makes a pod's claims ready.
    pub(crate) async fn prepare(&self, kubelet: &Kubelet, pod: &Pod) -> Result<(), String> {
        if pod.spec.resource_claims.is_empty() && pod.status.extended_resource_claim_status.is_none() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let began = std::time::Instant::now();
        let outcome = self.prepare_all(kubelet, pod).await;
        handled(&kubelet.metrics, "PrepareResources", outcome.is_err(), began);
        outcome.map_err(|e| format!("prepare dynamic resources: {e}"))
    }

    /// How many claims are in use, by driver; `<any>`: all together.
    pub(crate) fn claims_in_use(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::from([("<any>".to_owned(), 0)]);
        for claim in self.claims.lock().0.values() {
            for driver in claim.driver_state.keys().map(String::as_str).chain(["<any>"]) {
                *counts.entry(driver.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    async fn prepare_all(&self, kubelet: &Kubelet, pod: &Pod) -> Result<(), String> {
        let (namespace, uid) = (&pod.metadata.namespace, &pod.metadata.uid);
        // Nothing is written down before all is known to be there: a pod that cannot start can go again.
        let mut wanted = Vec::new();
        for claim in &pod.spec.resource_claims {
            let Some((name, owned)) = claim_name(pod, &claim.name)? else { continue };
            wanted.push(look_at(kubelet, pod, &name, owned).await?);
        }
        if let Some(extended) = &pod.status.extended_resource_claim_status {
            wanted.push(look_at(kubelet, pod, &extended.resource_claim_name, false).await?);
        }
        for claim in &wanted {
            for driver in claim.driver_state.keys() {
                self.drivers.get(driver)?;
            }
        }
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        {
            let mut claims = self.claims.lock();
            for claim in wanted {
                let key = (namespace.clone(), claim.claim_name.clone());
                let info = claims.0.entry(key).or_insert_with(|| claim.clone());
                if info.claim_uid != claim.claim_uid {
                    return Err(format!(
                        "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                        claim.claim_name, info.claim_uid
                    ));
                }
                info.pod_uids.insert(uid.clone(), Empty {});
                if info.prepared {
                    continue;
                }
                for driver in info.driver_state.keys() {
                    batches.entry(driver.clone()).or_default().push(call_claim(info));
                }
            }
            self.save(&claims)?;
        }
        let mut ready = Vec::new();
        for (name, list) in batches {
            let driver = self.drivers.get(&name)?;
            let ask = ClaimList { claims: list.clone() };
            let answer: NodePrepareResourcesResponse =
                ask_driver(&kubelet.metrics, &name, &driver.client, driver.prepare, ask)
                    .await
                    .map_err(|s| format!("NodePrepareResources: {}", describe(&s)))?;
            for (uid, result) in &answer.claims {
                let Some(claim) = list.iter().find(|c| c.uid == *uid) else {
                    return Err(format!("NodePrepareResources returned result for unknown claim UID {uid}"));
                };
                if !result.error.is_empty() {
                    return Err(format!(
                        "NodePrepareResources failed for ResourceClaim {}: {}",
                        claim.name, result.error
                    ));
                }
                let devices = result.devices.iter().map(device).collect();
                let mut claims = self.claims.lock();
                if let Some(info) = claims.0.get_mut(&(claim.namespace.clone(), claim.name.clone())) {
                    info.driver_state.insert(name.clone(), DriverState { devices: Some(devices) });
                }
            }
            let skipped = list.len() - answer.claims.len();
            if skipped > 0 {
                return Err(format!("NodePrepareResources skipped {skipped} ResourceClaims"));
            }
            ready.extend(list.into_iter().map(|c| (c.namespace, c.name)));
        }
        let mut claims = self.claims.lock();
        for key in ready {
            if let Some(info) = claims.0.get_mut(&key) {
                info.prepared = true;
            }
        }
        self.save(&claims)
    }

    /// Takes back what a pod's claims were given, where no other pod uses them. May run again and again.
    pub(crate) async fn unprepare(&self, metrics: &Metrics, uid: &str) -> Result<(), String> {
        if self.claims.lock().of_pod(uid).is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let began = std::time::Instant::now();
        let outcome = self.unprepare_all(metrics, uid).await;
        handled(metrics, "UnprepareResources", outcome.is_err(), began);
        outcome.map_err(|e| format!("unprepare dynamic resources: {e}"))
    }

    async fn unprepare_all(&self, metrics: &Metrics, uid: &str) -> Result<(), String> {
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let mut last = Vec::new();
        {
            let mut claims = self.claims.lock();
            for key in claims.of_pod(uid) {
                let Some(info) = claims.0.get_mut(&key) else { continue };
                if info.pod_uids.len() > 1 {
                    info.pod_uids.remove(uid);
                    continue;
                }
                for driver in info.driver_state.keys() {
                    batches.entry(driver.clone()).or_default().push(call_claim(info));
                }
                last.push(key);
            }
        }
        for (name, list) in batches {
            let driver = self.drivers.get(&name)?;
            let ask = ClaimList { claims: list.clone() };
            let answer: NodeUnprepareResourcesResponse =
                ask_driver(metrics, &name, &driver.client, driver.unprepare, ask)
                    .await
                    .map_err(|s| format!("NodeUnprepareResources: {}", describe(&s)))?;
            for (uid, result) in &answer.claims {
                let Some(claim) = list.iter().find(|c| c.uid == *uid) else {
                    return Err(format!(
                        "NodeUnprepareResources returned result for unknown claim UID {uid}"
                    ));
                };
                if !result.error.is_empty() {
                    return Err(format!(
                        "NodeUnprepareResources failed for ResourceClaim {}: {}",
                        claim.name, result.error
                    ));
                }
            }
            let skipped = list.len() - answer.claims.len();
            if skipped > 0 {
                return Err(format!("NodeUnprepareResources skipped {skipped} ResourceClaims"));
            }
        }
        let mut claims = self.claims.lock();
        for key in last {
            claims.0.remove(&key);
        }
        self.save(&claims)
    }

    /// Notes which pods are gone that claims were made ready for: their drivers have yet to register.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        let gone = self.claims.lock().pods().into_iter().filter(|uid| !uids.contains(uid));
        self.left.lock().extend(gone);
    }

    async fn take_back_left(&self, metrics: &Metrics) {
        let left: Vec<String> = self.left.lock().iter().cloned().collect();
        for uid in left {
            match self.unprepare(metrics, &uid).await {
                Ok(()) => {
                    self.left.lock().remove(&uid);
                }
                Err(error) => tracing::info!(uid, error, "a pod that is gone has claims, tried again later"),
            }
        }
    }

    /// The CDI names of what a container claims.
    pub(crate) fn cdi(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut wanted: Vec<(String, &str)> = Vec::new();
        for claim in &container.resources.claims {
            if let Some((name, _)) = claim_name(pod, &claim.name)? {
                wanted.push((name, &claim.request));
            }
        }
        wanted.extend(extended(pod, container));
        let mut names: Vec<String> = Vec::new();
        for (name, request) in wanted {
            let claims = self.claims.lock();
            let Some(info) = claims.get(&pod.metadata.namespace, &name) else {
                return Err(format!(
                    "internal error: unable to get claim info for ResourceClaim {name} in namespace {}",
                    pod.metadata.namespace
                ));
            };
            for (_, device) in info.devices().filter(|(_, d)| d.serves(request)) {
                names.extend(device.cdi().iter().filter(|n| !names.contains(n)).cloned().collect::<Vec<_>>());
            }
        }
        Ok(names)
    }

    /// The claims of a container.
    pub(crate) fn claims(&self, pod: &Pod, container: &Container) -> Vec<ClaimInfo> {
        let claims = self.claims.lock();
        let wanted: BTreeSet<&str> = container.resources.claims.iter().map(|c| c.name.as_str()).collect();
        let names = wanted.into_iter().filter_map(|name| claim_name(pod, name).ok().flatten());
        let extended = extended(pod, container).next().map(|(name, _)| (name, true));
        names
            .chain(extended)
            .filter_map(|(name, _)| claims.get(&pod.metadata.namespace, &name).cloned())
            .collect()
    }

    /// Adds to a status how the claimed devices are.
    pub(crate) fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        let now = self.seams.now();
        for container in &pod.spec.containers {
            if container.resources.claims.is_empty() {
                continue;
            }
            let Some(status) = status.container_statuses.iter_mut().find(|s| s.name == container.name) else {
                continue;
            };
            for wanted in &container.resources.claims {
                let Ok(Some((name, _))) = claim_name(pod, &wanted.name) else { continue };
                let claims = self.claims.lock();
                let Some(info) = claims.get(&pod.metadata.namespace, &name) else { continue };
                let base = wanted.request.split('/').next().unwrap_or_default();
                let mut resources: Vec<ResourceHealth> = Vec::new();
                for (driver, device) in info.devices().filter(|(_, d)| d.serves(base)) {
                    let id =
                        device.cdi().first().cloned().unwrap_or_else(|| {
                            format!("{driver}/{}/{}", device.pool_name, device.device_name)
                        });
                    if resources.iter().any(|r| r.resource_id == id) {
                        continue;
                    }
                    let (health, message) =
                        self.drivers.health(driver, &device.pool_name, &device.device_name, now);
                    resources.push(ResourceHealth { resource_id: id, health: health.to_owned(), message });
                }
                let name = match wanted.request.as_str() {
                    "" => format!("claim:{}", wanted.name),
                    request => format!("claim:{}/{request}", wanted.name),
                };
                status.allocated_resources_status.retain(|s| s.name != name);
                if !resources.is_empty() {
                    status.allocated_resources_status.push(ResourceStatus { name, resources });
                }
            }
        }
    }
}

/// The claim behind a container's extended resources, with each request of it that serves the container.
fn extended<'p>(pod: &'p Pod, container: &'p Container) -> impl Iterator<Item = (String, &'p str)> {
    let status = pod.status.extended_resource_claim_status.iter();
    let asks = |resource: &str| {
        let amount = container.resources.requests.get(resource);
        amount.is_some_and(|a| crate::quantity::value(a) > 0)
    };
    status.flat_map(move |status| {
        let own = status.request_mappings.iter().filter(move |m| m.container_name == container.name);
        own.filter(move |m| asks(&m.resource_name))
            .map(|m| (status.resource_claim_name.clone(), m.request_name.as_str()))
    })
}

/// The claims of a pod were handled.
fn handled(metrics: &Metrics, operation: &str, is_error: bool, began: std::time::Instant) {
    let is_error = if is_error { "true" } else { "false" };
    metrics.took(&table::DRA_DURATION, &[is_error, operation], began.elapsed());
}

/// Asks a driver.
async fn ask_driver<Q, R>(
    metrics: &Metrics,
    name: &str,
    client: &Client,
    method: &'static str,
    ask: Q,
) -> Result<R, Status>
where
    Q: prost::Message + Clone + 'static,
    R: prost::Message + Default + 'static,
{
    let began = std::time::Instant::now();
    let answer = client.call(method, ask, CALL_TIMEOUT).await;
    let code = answer.as_ref().map_or_else(|s: &Status| code_name(s.code()), |_| "OK");
    metrics.took(&table::DRA_GRPC_DURATION, &[name, code, method], began.elapsed());
    answer
}

fn call_claim(info: &ClaimInfo) -> Claim {
    Claim { namespace: info.namespace.clone(), uid: info.claim_uid.clone(), name: info.claim_name.clone() }
}

fn device(device: &api::Device) -> Device {
    Device {
        pool_name: device.pool_name.clone(),
        device_name: device.device_name.clone(),
        share_id: device.share_id.clone(),
        request_names: Some(device.request_names.clone()).filter(|n| !n.is_empty()),
        cdi_device_ids: Some(device.cdi_device_ids.clone()).filter(|n| !n.is_empty()),
    }
}

/// Whether a pod may have a claim now, and what is known of it.
async fn look_at(kubelet: &Kubelet, pod: &Pod, name: &str, owned: bool) -> Result<ClaimInfo, String> {
    let m = &pod.metadata;
    let path = format!("/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims/{name}", m.namespace);
    let claim: ClaimView =
        kubelet.api.get(&path).await.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?;
    if owned && !claim.metadata.owner_references.iter().any(|o| o.controller && o.uid == m.uid) {
        return Err(format!(
            "ResourceClaim {}/{name} was not created for Pod {}/{} (Pod is not owner)",
            m.namespace, m.namespace, m.name
        ));
    }
    if !claim.status.reserved_for.iter().any(|c| c.uid == m.uid) {
        return Err(format!(
            "pod {} ({}) is not allowed to use ResourceClaim {name} ({})",
            m.name, m.uid, claim.metadata.uid
        ));
    }
    let allocation = claim.status.allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let drivers = allocation.devices.results.into_iter().map(|r| (r.driver, DriverState::default()));
    Ok(ClaimInfo {
        claim_uid: claim.metadata.uid,
        claim_name: name.to_owned(),
        namespace: m.namespace.clone(),
        pod_uids: BTreeMap::new(),
        driver_state: drivers.collect(),
        prepared: false,
    })
}

/// Removes what a driver, or every driver, published for this node.
pub(crate) async fn wipe(kubelet: &std::sync::Weak<Kubelet>, driver: Option<&str>, still: impl Fn() -> bool) {
    let mut wait = WIPE_RETRY_MIN;
    while still() {
        let Some(kubelet) = kubelet.upgrade() else { return };
        let mut selector = format!("spec.nodeName%3D{}", kubelet.node_name);
        if let Some(driver) = driver {
            selector.push_str(&format!("%2Cspec.driver%3D{driver}"));
        }
        let path = format!("/apis/resource.k8s.io/v1/resourceslices?fieldSelector={selector}");
        match kubelet.api.delete(&path).await {
            Ok(()) => return,
            Err(error) if error.is_not_found() => return,
            Err(error) => tracing::debug!(%error, "removing ResourceSlices, will retry"),
        }
        drop(kubelet);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WIPE_RETRY_MAX);
    }
}
