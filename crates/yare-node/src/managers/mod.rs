//! The node's resource managers: devices, and which of the machine's parts a container gets.
//!
//! In: pods that ask to be admitted, plugins, the machine. Out: what each container gets beyond counts, or why its pod
//! is turned away. A pod that asks for nothing that is managed passes without waiting.
//!
//! ```text
//! pod ─► one at a time ─► topology: hints of all ─► choice ─► devices ─► CPUs ─► memory ─► counts of the node
//! ```

pub(crate) mod checkpoint;
pub(crate) mod cpu;
pub mod devices;
pub mod dra;
pub mod machine;
mod memory;
pub(crate) mod plugins;
pub mod pod_resources;
mod settings;
mod topology;

pub use machine::Machine;
pub use settings::ManagerSettings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use yare_metrics::table::Family;
use yare_runtime::{ContainerState, Resources, RuntimeEvent};
use yare_schema::quantity::Quantity;

use self::cpu::CpuManager;
use self::devices::DeviceManager;
use self::dra::DraManager;
use self::memory::MemoryManager;
use self::topology::{Distances, Hint, Hints, Policy, Scope, Settings, merge};
use crate::clock::Seams;
use crate::error::{Context as _, Error, Result};
use crate::kubelet::Kubelet;
use crate::metrics::{Metrics, table};
use crate::pod::admission::Rejection;
use crate::view::{Container, ContainerStatus, Pod, PodStatus, ResourceHealth, ResourceStatus};

/// Pods whose status is to be looked at again.
const AFFECTED_MAX: usize = 256;

/// See the module.
pub(crate) struct Managers {
    /// Held while a pod is admitted: what one manager plans stays good while another one is asked.
    turn: tokio::sync::Mutex<()>,
    pub(crate) devices: Arc<DeviceManager>,
    pub(crate) dra: Arc<DraManager>,
    pub(crate) cpu: CpuManager,
    pub(crate) memory: MemoryManager,
    topology: Settings,
    distances: Distances,
    affected: parking_lot::Mutex<Option<mpsc::Receiver<String>>>,
    /// After a container could not be moved.
    reconcile_period: Duration,
    metrics: Metrics,
}

/// Why a manager turned a pod away.
pub(crate) enum Refusal {
    /// A reason of its own, and a message.
    Named(&'static str, String),
    /// Anything else.
    Unexpected(String),
}

impl From<String> for Refusal {
    fn from(error: String) -> Self {
        Refusal::Unexpected(error)
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Named(reason, message) => Rejection { reason: reason.to_owned(), message },
            Refusal::Unexpected(error) => Rejection {
                reason: "UnexpectedAdmissionError".to_owned(),
                message: format!("Allocate failed due to {error}, which is unexpected"),
            },
        }
    }
}

impl Managers {
    /// Managers with their files below a data directory. `kept`: what is held back for the system, by resource.
    pub(crate) fn new(
        settings: ManagerSettings,
        kept: &BTreeMap<String, Quantity>,
        data_dir: &Path,
        seams: Seams,
        metrics: Metrics,
    ) -> Result<Self> {
        let machine = settings.machine.clone().unwrap_or_else(|| Machine::read(Path::new("/")));
        let topology = Settings::new(
            &settings.topology_policy,
            &settings.topology_scope,
            &settings.topology_options,
            &machine,
        )
        .map_err(|e| Error::Config(format!("topology manager: {e}")))?;
        let cpu_kept = kept.get("cpu").map_or(0, |amount| amount.milli_value());
        let cpu = CpuManager::new(&settings, &machine, topology.policy, cpu_kept, data_dir)
            .map_err(|e| Error::Config(format!("CPU manager: {e}")))?;
        let bytes = |amount: &Quantity| u64::try_from(amount.value()).unwrap_or(0);
        let memory_kept = kept.iter().map(|(name, amount)| (name.clone(), bytes(amount))).collect();
        let memory = MemoryManager::new(&settings, &machine, &memory_kept, data_dir)
            .map_err(|e| Error::Config(format!("memory manager: {e}")))?;
        let (sender, affected) = mpsc::channel(AFFECTED_MAX);
        let dra = DraManager::new(&settings, data_dir, seams.clone(), sender.clone())
            .map_err(|e| Error::Config(format!("DRA manager: {e}")))?;
        let nodes = machine.nodes.iter().map(|n| n.id).collect();
        Ok(Managers {
            turn: tokio::sync::Mutex::new(()),
            devices: DeviceManager::new(
                data_dir.join("device-plugins"),
                nodes,
                seams,
                sender,
                metrics.clone(),
            ),
            dra: Arc::new(dra),
            cpu,
            memory,
            topology,
            distances: Distances::of(&machine),
            affected: parking_lot::Mutex::new(Some(affected)),
            reconcile_period: settings.cpu_reconcile_period.max(Duration::from_secs(1)),
            metrics,
        })
    }

    /// Begins to serve plugins, and to tell pods of what happens to their resources.
    pub(crate) fn start(&self, kubelet: &Arc<Kubelet>, tasks: &mut JoinSet<()>) -> Result<()> {
        self.devices.serve(tasks).context(|| "serve the registration of device plugins".to_owned())?;
        let dir = kubelet.data_dir.join("pod-resources");
        pod_resources::serve(kubelet, &dir, tasks)
            .context(|| format!("serve pod resources in {}", dir.display()))?;
        if let Some(mut affected) = self.affected.lock().take() {
            let kubelet = kubelet.clone();
            tasks.spawn(async move {
                while let Some(uid) = affected.recv().await {
                    kubelet.wake_pod(&uid);
                }
            });
        }
        let node = Arc::downgrade(kubelet);
        // Drivers publish anew when they register; what is there is of those that are gone.
        tasks.spawn(async move { dra::wipe(&node, None, || true).await });
        if self.cpu.active() {
            tasks.spawn(keep_in_place(kubelet.clone()));
        }
        Ok(())
    }

    /// Whether any manager has to do with a pod.
    fn concerns(&self, pod: &Pod) -> bool {
        self.topology.policy != Policy::None
            || self.cpu.active()
            || self.memory.active()
            || containers(pod).any(|c| self.devices.concerns(pod, c))
    }

    /// Admits a pod: its containers get what they ask for, or none does.
    pub(crate) async fn admit(&self, pod: &Pod) -> std::result::Result<(), Rejection> {
        self.metrics.count(&table::TOPOLOGY_REQUESTS, &[]);
        let began = Instant::now();
        let outcome = match self.concerns(pod) {
            true => self.allocate_alone(pod).await,
            false => Ok(()),
        };
        if outcome.is_err() {
            self.metrics.count(&table::TOPOLOGY_ERRORS, &[]);
        }
        self.metrics.observe(&table::TOPOLOGY_DURATION, &[], began.elapsed().as_secs_f64() * 1000.0);
        outcome.map_err(Rejection::from)
    }

    async fn allocate_alone(&self, pod: &Pod) -> std::result::Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let outcome = self.allocate(pod).await;
        if outcome.is_err() {
            self.release(&pod.metadata.uid);
        }
        outcome
    }

    async fn allocate(&self, pod: &Pod) -> std::result::Result<(), Refusal> {
        let for_pod = match (self.topology.policy, self.topology.scope) {
            (Policy::None, _) => Some(Hint::default()),
            (_, Scope::Pod) => Some(self.affinity(pod, None)?),
            (_, Scope::Container) => None,
        };
        for container in containers(pod) {
            let hint = match for_pod {
                Some(hint) => hint,
                None => self.affinity(pod, Some(container))?,
            };
            self.devices.allocate(pod, container, hint).await?;
            let pinned = self.cpu.allocate(pod, container, hint);
            self.pinned(&pinned, &table::CPU_PINNINGS, &table::CPU_PINNING_ERRORS);
            pinned?;
            let pinned = self.memory.allocate(pod, container, hint);
            self.pinned(&pinned, &table::MEMORY_PINNINGS, &table::MEMORY_PINNING_ERRORS);
            pinned?;
        }
        Ok(())
    }

    /// Counts what a container was given of its own, or was not.
    fn pinned<E>(
        &self,
        outcome: &std::result::Result<bool, E>,
        all: &'static Family,
        errors: &'static Family,
    ) {
        if !matches!(outcome, Ok(false)) {
            self.metrics.count(all, &[]);
        }
        if outcome.is_err() {
            self.metrics.count(errors, &[]);
        }
    }

    fn affinity(&self, pod: &Pod, container: Option<&Container>) -> std::result::Result<Hint, Refusal> {
        let hints: [Hints; 3] = [
            self.devices.hints(pod, container),
            self.cpu.hints(pod, container),
            self.memory.hints(pod, container),
        ];
        let (hint, admitted) = merge(&self.topology, &self.distances, &hints);
        if self.topology.policy == Policy::SingleNumaNode {
            let family = if admitted { &table::ALIGNED } else { &table::UNALIGNED };
            let scope = if container.is_some() { "container" } else { "pod" };
            self.metrics.count(family, &["numa_node", scope]);
        }
        match (hint, admitted) {
            (hint, true) => Ok(hint),
            (_, false) => Err(Refusal::Named(
                "TopologyAffinityError",
                "Resources cannot be allocated with Topology locality".to_owned(),
            )),
        }
    }

    /// Before a container starts.
    pub(crate) async fn prepare(&self, pod: &Pod, container: &Container) -> std::result::Result<(), String> {
        if self.devices.pre_start(pod, container).await? {
            let _turn = self.turn.lock().await;
            self.devices.allocate(pod, container, Hint::default()).await?;
        }
        self.memory.started(pod, container);
        Ok(())
    }

    /// Puts a container's limits where it belongs: on its processors, on its memory.
    pub(crate) fn place(&self, pod: &Pod, container: &Container, resources: &mut Resources) {
        let uid = &pod.metadata.uid;
        if let Some(cpus) = self.cpu.affinity(uid, &container.name) {
            resources.cpuset_cpus = Some(cpus.to_string());
        }
        if let Some(nodes) = self.memory.affinity(uid, &container.name) {
            resources.cpuset_mems = Some(nodes);
        }
        // Processors of its own need no quota, which could only hold them back.
        if resources.cpu_quota_us.is_some() && !self.cpu.own(uid, &container.name).is_empty() {
            resources.cpu_quota_us = Some(-1);
        }
    }

    /// The same for the pod as a whole.
    pub(crate) fn place_pod(&self, pod: &Pod, resources: &mut Resources) {
        if resources.cpu_quota_us.is_some() && self.cpu.owns_any(&pod.metadata.uid) {
            resources.cpu_quota_us = Some(-1);
        }
    }

    /// What a pod had is free again.
    pub(crate) fn release(&self, uid: &str) {
        self.devices.release(uid);
        self.cpu.release(uid);
        self.memory.release(uid);
    }

    /// Frees what pods had that are not there any more.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        self.devices.retain(uids);
        self.dra.retain(uids);
        self.cpu.retain(uids);
        self.memory.retain(uids);
    }

    /// Adds to a status how the containers' resources are. What was said of a pod that has none any more stays.
    pub(crate) fn tell_health(&self, pod: &Pod, before: &PodStatus, status: &mut PodStatus) {
        for container in &mut status.container_statuses {
            let health = self.devices.health(&pod.metadata.uid, &container.name);
            let old =
                before.container(&container.name).map(|c: &ContainerStatus| &c.allocated_resources_status);
            container.allocated_resources_status = if health.is_empty() {
                old.cloned().unwrap_or_default()
            } else {
                let one = |(id, healthy)| ResourceHealth {
                    resource_id: id,
                    health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
                    message: None,
                };
                health
                    .into_iter()
                    .map(|(name, devices)| ResourceStatus {
                        name,
                        resources: devices.into_iter().map(one).collect(),
                    })
                    .collect()
            };
        }
        self.dra.tell_health(pod, status);
    }
}

/// Moves containers when the processors that they run on change.
async fn keep_in_place(kubelet: Arc<Kubelet>) {
    let mut changes = kubelet.managers.cpu.changes();
    let mut events = kubelet.runtime.events();
    loop {
        let moved = move_all(&kubelet).await;
        let again = tokio::time::sleep(kubelet.managers.reconcile_period);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // One that was being made while the pool changed.
            () = started(&mut events) => {}
            () = again, if !moved => {}
        }
    }
}

async fn started(events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>) {
    loop {
        match events.recv().await {
            Ok(RuntimeEvent::ContainerStarted { .. }) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Whether every container is where it belongs now.
async fn move_all(kubelet: &Kubelet) -> bool {
    let containers = match kubelet.runtime.containers().await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(%error, "listing containers to keep them on their processors");
            return false;
        }
    };
    let mut all = true;
    for container in containers.into_iter().filter(|c| c.state == ContainerState::Running) {
        let Some(uid) = container.labels.get("io.kubernetes.pod.uid") else { continue };
        let Some(cpus) = kubelet.managers.cpu.affinity(uid, &container.name) else { continue };
        let cpus = Some(cpus.to_string());
        if container.resources.cpuset_cpus == cpus {
            continue;
        }
        let change = Resources { cpuset_cpus: cpus, ..Resources::default() };
        if let Err(error) = kubelet.runtime.update_resources(&container.id, change).await
            && !error.is_not_found()
        {
            tracing::warn!(%error, container = container.id, "moving a container to other processors");
            all = false;
        }
    }
    all
}

/// The containers that count when a pod is admitted, in their order.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.init_containers.iter().chain(&pod.spec.containers)
}

/// A boolean as Go reads it.
fn go_bool(name: &str, text: &str) -> std::result::Result<bool, String> {
    yare_schema::features::parse_bool(text).ok_or_else(|| {
        format!("bad value for option {name:?}: strconv.ParseBool: parsing {text:?}: invalid syntax")
    })
}
