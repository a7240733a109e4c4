//! The device manager: device plugins register, list their devices, and are asked for them when pods are admitted.
//!
//! In: registrations on `<dir>/kubelet.sock` or from the plugin watcher, lists of devices, pods. Out: devices, mounts,
//! environment, annotations and CDI names for containers, the node's capacity, the health of what pods have.
//! The API and the checkpoint are upstream's, so that plugins written for it work unchanged (KEP-3573).
//!
//! Admission is one pod at a time (see [`Managers`](super::Managers)), so that a plan stays good while a plugin is
//! asked.

pub mod api;
mod held;
mod names;
mod state;

pub(crate) use held::Held;
pub(crate) use names::Refused;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use yare_grpc::{Client, Server, Status, describe};

use self::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Device,
    DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use self::held::{load, save};
use self::state::{Plan, Plugin, Request, State};
use super::checkpoint::Unusable;
use super::topology::{Hint, Hints};
use crate::clock::Seams;
use crate::metrics::{Metrics, table};
use crate::quantity;
use crate::view::{Container, Pod};

/// Who has which devices; upstream's name.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// Time for a plugin to answer what it knows anyway.
const QUICK: Duration = Duration::from_secs(10);
/// Time for a plugin to make devices ready.
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(300);
/// As upstream has it.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);
/// Devices of one resource beyond these are not looked at.
const DEVICES_MAX: usize = 65_536;

/// What a container gets for its devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Additions {
    pub(crate) env: BTreeMap<String, String>,
    /// Path in the container → path on the node, permissions.
    pub(crate) devices: BTreeMap<String, (String, String)>,
    /// Path in the container → path on the node, read-only.
    pub(crate) mounts: BTreeMap<String, (String, bool)>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cdi: Vec<String>,
}

/// See the module.
pub(crate) struct DeviceManager {
    dir: PathBuf,
    seams: Seams,
    /// The machine's NUMA nodes.
    nodes: Vec<u32>,
    state: Mutex<State>,
    generation: AtomicU64,
    /// Counts changes of what the node has.
    changes: watch::Sender<u64>,
    /// Pods whose devices changed their health.
    affected: mpsc::Sender<String>,
    metrics: Metrics,
}

impl DeviceManager {
    /// A manager over a directory. It takes over what an earlier life wrote down.
    pub(crate) fn new(
        dir: PathBuf,
        nodes: Vec<u32>,
        seams: Seams,
        affected: mpsc::Sender<String>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let mut state = State::default();
        match load(&dir.join(CHECKPOINT)) {
            Ok((holders, resources)) => {
                state.holders = holders;
                let now = seams.now();
                for resource in resources {
                    state.remember(resource, now);
                }
            }
            Err(Unusable::NotFound) => {}
            // As upstream: pods that run keep their devices, new ones may be given the same.
            Err(error) => tracing::error!(%error, "the device manager's checkpoint is not used"),
        }
        Arc::new(DeviceManager {
            dir,
            seams,
            nodes,
            state: Mutex::new(state),
            generation: AtomicU64::new(0),
            changes: watch::channel(0).0,
            affected,
            metrics,
        })
    }

    /// Whether nothing is known of an earlier life with plugins.
    pub(crate) fn is_new(&self) -> bool {
        !self.dir.join(CHECKPOINT).exists()
    }

    /// Changes of what the node has.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Serves registrations. Sockets of plugins are removed first: that is how they learn to register anew.
    pub(crate) fn serve(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        remove_sockets(&self.dir);
        let listener = UnixListener::bind(self.dir.join("kubelet.sock"))?;
        let manager = self.clone();
        let server = Server::new().unary(api::REGISTER, move |request: RegisterRequest| {
            let manager = manager.clone();
            async move { manager.register(request).await.map(|()| Empty {}).map_err(Status::unknown) }
        });
        tasks.spawn(server.serve(listener, std::future::pending()));
        Ok(())
    }

    async fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<(), String> {
        let RegisterRequest { version, endpoint, resource_name, .. } = request;
        self.metrics.count(&table::DEVICE_REGISTRATIONS, &[&resource_name]);
        self.validate(&resource_name, std::slice::from_ref(&version)).map_err(|error| match error {
            names::Refused::Version => format!(
                "requested API version {version:?} is not supported by kubelet. Supported version is [\"{}\"]",
                api::VERSION
            ),
            names::Refused::Name => format!("the ResourceName {resource_name:?} is invalid"),
        })?;
        // A plugin names a file beside the kubelet's socket, and nothing else.
        if endpoint.is_empty() || endpoint.contains('/') || endpoint == ".." {
            return Err(format!("failed to dial device plugin: {endpoint:?} is not a file's name"));
        }
        self.connect(&resource_name, &self.dir.join(endpoint)).await
    }

    /// Whether a plugin of these versions may have a resource of this name.
    pub(crate) fn validate(&self, resource: &str, versions: &[String]) -> Result<(), names::Refused> {
        if !versions.iter().any(|v| v == api::VERSION) {
            return Err(names::Refused::Version);
        }
        if !names::is_extended_resource(resource) {
            return Err(names::Refused::Name);
        }
        Ok(())
    }

    /// Talks to a plugin from now on: its options, then its lists for as long as it sends them.
    pub(crate) async fn connect(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<(), String> {
        let client = Client::unix(socket).waiting();
        let options: DevicePluginOptions = client
            .call(api::OPTIONS, Empty {}, QUICK)
            .await
            .map_err(|s| format!("failed to get device plugin options: {}", describe(&s)))?;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let plugin = Plugin::running(client.clone(), options, generation);
        self.state.lock().plugins.insert(resource.to_owned(), plugin);
        let (manager, resource) = (Arc::downgrade(self), resource.to_owned());
        tokio::spawn(async move {
            let lists = client.watch::<_, ListAndWatchResponse>(api::LIST_AND_WATCH, Empty {}).await;
            let why = match lists {
                Ok(mut lists) => loop {
                    match lists.message().await {
                        Ok(Some(list)) => {
                            let Some(manager) = manager.upgrade() else { return };
                            manager.update(&resource, generation, list.devices);
                        }
                        Ok(None) => break "the stream ended".to_owned(),
                        Err(status) => break describe(&status),
                    }
                },
                Err(status) => describe(&status),
            };
            tracing::info!(resource, why, "a device plugin has gone");
            if let Some(manager) = manager.upgrade() {
                manager.stop(&resource, generation);
            }
        });
        Ok(())
    }

    /// A plugin is gone, as the plugin watcher saw.
    pub(crate) fn disconnect(&self, resource: &str) {
        let current = self.state.lock().plugins.get(resource).map(|p| p.generation);
        if let Some(generation) = current {
            self.stop(resource, generation);
        }
    }

    fn stop(&self, resource: &str, generation: u64) {
        let now = self.seams.now();
        {
            let mut state = self.state.lock();
            let current = state.plugins.get(resource).map(|p| p.generation);
            if current != Some(generation) {
                // Another plugin has the resource by now.
                return;
            }
            state.stop(resource, now);
        }
        self.changed();
    }

    fn update(&self, resource: &str, generation: u64, mut devices: Vec<Device>) {
        if devices.len() > DEVICES_MAX {
            tracing::warn!(resource, devices = devices.len(), "a device plugin lists too many devices");
            devices.truncate(DEVICES_MAX);
        }
        let pods = {
            let mut state = self.state.lock();
            if state.plugins.get(resource).is_none_or(|p| p.generation != generation) {
                return;
            }
            state.update(resource, devices)
        };
        self.save();
        self.changed();
        for uid in pods {
            // A full queue: the pods are looked at soon anyway.
            let _ = self.affected.try_send(uid);
        }
    }

    fn save(&self) {
        let state = self.state.lock();
        if let Err(error) = save(&self.dir.join(CHECKPOINT), &state.holders, &state.healthy) {
            tracing::error!(%error, "writing the device manager's checkpoint");
        }
    }

    /// Devices by resource for the node's status: in all, and the healthy ones.
    pub(crate) fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let (gone, counts) = {
            let mut state = self.state.lock();
            (state.expire(self.seams.now()), state.counts())
        };
        if gone {
            self.save();
        }
        counts
    }

    /// What admission counts as the node's.
    pub(crate) fn offered(&self, uid: &str) -> BTreeMap<String, usize> {
        let state = self.state.lock();
        if state.is_empty() { BTreeMap::new() } else { state.offered(uid) }
    }

    /// A container's requests for devices of plugins.
    fn requests(&self, pod: &Pod, container: &Container) -> Vec<(String, usize)> {
        let state = self.state.lock();
        if state.is_empty() {
            return Vec::new();
        }
        let of_plugin = |name: &str| state.knows(name) && !pod.status.is_claimed(Some(&container.name), name);
        let limits = container.resources.limits.iter().filter(|(name, _)| of_plugin(name));
        limits.map(|(name, amount)| (name.clone(), count(amount))).collect()
    }

    /// Whether a container asks for devices of plugins.
    pub(crate) fn concerns(&self, pod: &Pod, container: &Container) -> bool {
        !self.requests(pod, container).is_empty()
    }

    /// Gives a container its devices, when its pod is admitted.
    pub(crate) async fn allocate(&self, pod: &Pod, container: &Container, hint: Hint) -> Result<(), String> {
        let uid = &pod.metadata.uid;
        let mut given = false;
        let mut outcome = Ok(());
        for (resource, required) in self.requests(pod, container) {
            let request = Request { uid, container: &container.name, resource: &resource, required };
            match self.allocate_one(request, hint).await {
                Ok(new) => given |= new,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let ends = pod.spec.init_containers.iter().any(|c| c.name == container.name && !c.is_sidecar());
        if outcome.is_ok() {
            self.state.lock().served(uid, &container.name, ends);
        }
        if given {
            self.save();
        }
        outcome
    }

    async fn allocate_one(&self, request: Request<'_>, hint: Hint) -> Result<bool, String> {
        let resource = request.resource;
        let (plan, plugin) = {
            let state = self.state.lock();
            (state.plan(request, hint.affinity)?, state.plugins.get(resource).cloned())
        };
        if plan == Plan::Nothing {
            return Ok(false);
        }
        let plugin = plugin.ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
        let client = plugin.client(resource)?;
        let ids = match plan {
            Plan::Nothing => return Ok(false),
            Plan::Take(ids) => ids,
            Plan::Ask(choice) => {
                let mut liked = BTreeSet::new();
                if plugin.options.get_preferred_allocation_available {
                    let ask = ContainerPreferredAllocationRequest {
                        available_device_ids: choice.pool.union(&choice.taken).cloned().collect(),
                        must_include_device_ids: choice.taken.iter().cloned().collect(),
                        allocation_size: i32::try_from(choice.required).unwrap_or(i32::MAX),
                    };
                    let ask = PreferredAllocationRequest { container_requests: vec![ask] };
                    let answer: PreferredAllocationResponse = client
                        .call(api::PREFERRED, ask, QUICK)
                        .await
                        .map_err(|s| {
                        format!("device plugin GetPreferredAllocation rpc failed with err: {}", describe(&s))
                    })?;
                    liked =
                        answer.container_responses.into_iter().take(1).flat_map(|r| r.device_ids).collect();
                }
                choice.take(&liked)?
            }
        };
        let ask = ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
        let ask = AllocateRequest { container_requests: vec![ask] };
        let began = std::time::Instant::now();
        let answer = client.call::<_, AllocateResponse>(api::ALLOCATE, ask, ALLOCATE_TIMEOUT).await;
        self.metrics.took(&table::DEVICE_ALLOCATION_DURATION, &[resource], began.elapsed());
        let answer = answer.map_err(|s| describe(&s))?;
        let Some(answer) = answer.container_responses.into_iter().next() else {
            return Err("no containers return in allocation response".to_owned());
        };
        self.state.lock().give(request, &ids, answer);
        Ok(true)
    }

    /// Sets of NUMA nodes that could serve a container, or a pod as a whole.
    pub(crate) fn hints(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let uid = &pod.metadata.uid;
        let requests: Vec<(String, usize)> = match container {
            Some(container) => self.requests(pod, container),
            None => {
                let totals = crate::pod::totals::peak(pod, |r| &r.limits);
                let state = self.state.lock();
                let of_plugin = |name: &str| state.knows(name) && !pod.status.is_claimed(None, name);
                let known = totals.into_iter().filter(|(name, _)| of_plugin(name));
                known
                    .map(|(name, nanos)| (name, usize::try_from(nanos / 1_000_000_000).unwrap_or(0)))
                    .collect()
            }
        };
        let state = self.state.lock();
        let hints = requests.into_iter().map(|(resource, required)| {
            let held = match container {
                Some(c) => state.holders.get(uid, &c.name, &resource).map(Held::ids).unwrap_or_default(),
                None => state.holders.of_pod(uid, &resource),
            };
            let hints = state.hints(uid, &resource, required, &held, &self.nodes);
            (resource, hints)
        });
        hints.collect()
    }

    /// Before a container starts: tells the plugins that want to know. Answers whether some of its devices have yet to
    /// be given, because this agent has just started.
    pub(crate) async fn pre_start(&self, pod: &Pod, container: &Container) -> Result<bool, String> {
        let uid = &pod.metadata.uid;
        let mut missing = false;
        for (resource, required) in self.requests(pod, container) {
            if required == 0 {
                continue;
            }
            let (plugin, held) = {
                let state = self.state.lock();
                let held = state.holders.get(uid, &container.name, &resource).map(Held::ids);
                (state.plugins.get(&resource).cloned(), held)
            };
            let plugin = plugin.ok_or_else(|| {
                format!("endpoint not found in cache for a registered resource: {resource}")
            })?;
            missing |= held.is_none();
            if !plugin.options.pre_start_required {
                continue;
            }
            let Some(held) = held else {
                return Err(format!(
                    "no devices found allocated in local cache for pod {uid}, container {}, resource {resource}",
                    container.name
                ));
            };
            let ask = PreStartContainerRequest { devices_ids: held.into_iter().collect() };
            let failed = |why: String| format!("device plugin PreStartContainer rpc failed with err: {why}");
            let client = plugin.client(&resource).map_err(failed)?;
            client
                .call::<_, Empty>(api::PRE_START, ask, PRE_START_TIMEOUT)
                .await
                .map_err(|s| failed(describe(&s)))?;
        }
        Ok(missing)
    }

    /// What a container gets for its devices. Of two plugins that set the same thing, the first by name has it.
    pub(crate) fn additions(&self, uid: &str, container: &str) -> Additions {
        let mut all = Additions::default();
        let state = self.state.lock();
        for held in state.holders.container(uid, container).into_iter().flat_map(BTreeMap::values) {
            let answer = &held.answer;
            for (name, value) in &answer.envs {
                all.env.entry(name.clone()).or_insert_with(|| value.clone());
            }
            for device in &answer.devices {
                all.devices
                    .entry(device.container_path.clone())
                    .or_insert_with(|| (device.host_path.clone(), device.permissions.clone()));
            }
            for mount in &answer.mounts {
                all.mounts
                    .entry(mount.container_path.clone())
                    .or_insert_with(|| (mount.host_path.clone(), mount.read_only));
            }
            for (name, value) in &answer.annotations {
                all.annotations.entry(name.clone()).or_insert_with(|| value.clone());
            }
            for device in &answer.cdi_devices {
                if !all.cdi.contains(&device.name) {
                    all.cdi.push(device.name.clone());
                }
            }
        }
        all
    }

    /// The health of what a container has: resource → device → healthy. What no plugin lists is taken for healthy.
    pub(crate) fn health(&self, uid: &str, container: &str) -> BTreeMap<String, BTreeMap<String, bool>> {
        let state = self.state.lock();
        let resources = state.holders.container(uid, container).into_iter().flatten();
        let health = resources.map(|(resource, held)| {
            let devices = state.devices.get(resource);
            let healthy = |id: &str| devices.and_then(|d| d.get(id)).is_none_or(Device::is_healthy);
            (resource.clone(), held.ids().into_iter().map(|id| (id.clone(), healthy(&id))).collect())
        });
        health.collect()
    }

    /// What a container has, by resource.
    pub(crate) fn held(&self, uid: &str, container: &str) -> BTreeMap<String, Held> {
        self.state.lock().holders.container(uid, container).cloned().unwrap_or_default()
    }

    /// All healthy devices, by resource.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Vec<Device>> {
        let state = self.state.lock();
        let healthy = |devices: &BTreeMap<String, Device>| {
            devices.values().filter(|d| d.is_healthy()).cloned().collect()
        };
        let known = state.devices.iter().filter(|(resource, _)| state.healthy.contains_key(*resource));
        known.map(|(resource, devices)| (resource.clone(), healthy(devices))).collect()
    }

    /// A pod's devices are free again.
    pub(crate) fn release(&self, uid: &str) {
        if self.state.lock().holders.remove(uid) {
            self.save();
        }
    }

    /// Frees the devices of all pods but these.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        if self.state.lock().holders.retain(uids) {
            self.save();
        }
    }
}

/// A quantity as a number of devices.
fn count(amount: &str) -> usize {
    usize::try_from(quantity::value(amount)).unwrap_or(0)
}

fn remove_sockets(dir: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_socket())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "removing a device plugin's socket");
        }
    }
}
