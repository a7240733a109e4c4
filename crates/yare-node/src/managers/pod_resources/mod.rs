//! The pod resources API: what monitors and schedulers on the node ask, by gRPC on `pod-resources/kubelet.sock`.
//!
//! In: pods that are there and what the managers gave them. Out: devices, processors and memory by container
//! (KEP-606, KEP-2043, KEP-3695).

pub mod api;
mod limit;

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Weak};

use tokio::net::UnixListener;
use tokio::task::JoinSet;
use yare_grpc::{Code, Server, Status};
use yare_metrics::table::Family;

use self::api::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerMemory, ContainerResources, DynamicResource, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesRequest, ListPodResourcesResponse, NumaNode, PodResources, TopologyInfo,
};
use self::limit::Limiter;
use super::Managers;
use super::dra::ClaimInfo;
use super::memory::Block;
use crate::kubelet::Kubelet;
use crate::metrics::table;
use crate::view::{Container, Pod};

/// Calls a second, and at once: what upstream allows.
const CALLS_PER_SECOND: f64 = 100.0;
const BURST: f64 = 10.0;

/// Serves the API in a directory.
pub(super) fn serve(kubelet: &Arc<Kubelet>, dir: &Path, tasks: &mut JoinSet<()>) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    let (socket, temporary) = (dir.join("kubelet.sock"), dir.join(".kubelet.sock"));
    // Whoever finds the socket can connect to it: it is moved into place when it listens.
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, &socket)?;
    let answers = Arc::new(Answers {
        kubelet: Arc::downgrade(kubelet),
        limiter: Limiter::new(CALLS_PER_SECOND, BURST, kubelet.seams.clone()),
    });
    let (list, get, allocatable) = (answers.clone(), answers.clone(), answers);
    let server = Server::new()
        .unary(api::LIST, move |_: ListPodResourcesRequest| {
            let answer = list.answer(&LIST, Answers::list);
            async move { answer }
        })
        .unary(api::GET, move |request: GetPodResourcesRequest| {
            let answer = get.answer(&GET, |answers| answers.get(&request));
            async move { answer }
        })
        .unary(api::ALLOCATABLE, move |_: AllocatableResourcesRequest| {
            let answer = allocatable.answer(&ALLOCATABLE, Answers::allocatable);
            async move { answer }
        });
    tasks.spawn(server.serve(listener, std::future::pending()));
    Ok(())
}

struct Answers {
    kubelet: Weak<Kubelet>,
    limiter: Limiter,
}

/// How calls of a method are counted, and those that failed.
struct Counted(&'static Family, &'static Family);

const LIST: Counted = Counted(&table::POD_RESOURCES_LISTS, &table::POD_RESOURCES_LIST_ERRORS);
const GET: Counted = Counted(&table::POD_RESOURCES_GETS, &table::POD_RESOURCES_GET_ERRORS);
const ALLOCATABLE: Counted =
    Counted(&table::POD_RESOURCES_ALLOCATABLES, &table::POD_RESOURCES_ALLOCATABLE_ERRORS);

impl Answers {
    fn answer<T>(
        &self,
        counted: &Counted,
        ask: impl FnOnce(&Self) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let answer = ask(self);
        // Whom the limiter turned away has not come so far.
        let is_limited = answer.as_ref().is_err_and(|s| s.code() == Code::ResourceExhausted);
        if let Some(kubelet) = self.kubelet.upgrade().filter(|_| !is_limited) {
            let version = &["v1"];
            kubelet.metrics.count(&table::POD_RESOURCES_REQUESTS, version);
            kubelet.metrics.count(counted.0, version);
            if answer.is_err() {
                kubelet.metrics.count(counted.1, version);
            }
        }
        answer
    }

    fn kubelet(&self) -> Result<Arc<Kubelet>, Status> {
        if !self.limiter.allow() {
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        self.kubelet.upgrade().ok_or_else(|| Status::unavailable("the node agent is stopping"))
    }

    fn list(&self) -> Result<ListPodResourcesResponse, Status> {
        let kubelet = self.kubelet()?;
        let pods = active(&kubelet);
        let pod_resources = pods.iter().map(|pod| of_pod(&kubelet.managers, pod)).collect();
        Ok(ListPodResourcesResponse { pod_resources })
    }

    fn get(&self, request: &GetPodResourcesRequest) -> Result<GetPodResourcesResponse, Status> {
        let kubelet = self.kubelet()?;
        let (name, namespace) = (&request.pod_name, &request.pod_namespace);
        let mut pods = active(&kubelet).into_iter();
        match pods.find(|p| p.metadata.name == *name && p.metadata.namespace == *namespace) {
            Some(pod) => Ok(GetPodResourcesResponse { pod_resources: Some(of_pod(&kubelet.managers, &pod)) }),
            None => Err(Status::unknown(format!("pod {name} in namespace {namespace} not found"))),
        }
    }

    fn allocatable(&self) -> Result<AllocatableResourcesResponse, Status> {
        let kubelet = self.kubelet()?;
        let mut devices = Vec::new();
        for (resource, list) in kubelet.managers.devices.allocatable() {
            for device in list {
                let nodes: Vec<i64> = device.numa_nodes().collect();
                devices.extend(by_node(&resource, &device.id, &nodes));
            }
        }
        let cpu_ids = kubelet.managers.cpu.allocatable().iter().map(i64::from).collect();
        let memory = kubelet.managers.memory.allocatable().into_iter().map(memory).collect();
        Ok(AllocatableResourcesResponse { devices, cpu_ids, memory })
    }
}

/// Pods that have not ended.
fn active(kubelet: &Kubelet) -> Vec<Arc<Pod>> {
    let published = kubelet.published.lock();
    let states = published.values().map(|p| p.0.lock());
    let lives = |phase: &str| !matches!(phase, "Succeeded" | "Failed");
    let mut pods: Vec<Arc<Pod>> = states
        .filter(|s| !s.pod.metadata.uid.is_empty() && lives(&s.status.phase))
        .map(|s| s.pod.clone())
        .collect();
    pods.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    pods
}

fn of_pod(managers: &Managers, pod: &Pod) -> PodResources {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar());
    PodResources {
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        containers: sidecars.chain(&pod.spec.containers).map(|c| of_container(managers, pod, c)).collect(),
    }
}

fn of_container(managers: &Managers, pod: &Pod, container: &Container) -> ContainerResources {
    let uid = &pod.metadata.uid;
    let mut devices = Vec::new();
    for (resource, held) in managers.devices.held(uid, &container.name) {
        for id in held.ids() {
            devices.extend(by_node(&resource, &id, &held.nodes_of(&id)));
        }
    }
    ContainerResources {
        name: container.name.clone(),
        devices,
        cpu_ids: managers.cpu.own(uid, &container.name).iter().map(i64::from).collect(),
        memory: managers.memory.blocks(uid, &container.name).into_iter().map(memory).collect(),
        dynamic_resources: managers.dra.claims(pod, container).into_iter().map(claim).collect(),
    }
}

fn claim(info: ClaimInfo) -> DynamicResource {
    let cdi = |name: &String| CdiDevice { name: name.clone() };
    let resources = info.devices().map(|(driver, device)| ClaimResource {
        cdi_devices: device.cdi().iter().map(cdi).collect(),
        driver_name: driver.clone(),
        pool_name: device.pool_name.clone(),
        device_name: device.device_name.clone(),
        share_id: device.share_id.clone(),
    });
    let claim_resources = resources.collect();
    DynamicResource { claim_name: info.claim_name, claim_namespace: info.namespace, claim_resources }
}

fn memory(block: Block) -> ContainerMemory {
    let nodes = block.nodes.into_iter().map(|id| NumaNode { id: i64::from(id) }).collect();
    ContainerMemory { memory_type: block.resource, size: block.size, topology: Some(TopologyInfo { nodes }) }
}

/// A device, once for each NUMA node that it is near to.
fn by_node(resource: &str, id: &str, nodes: &[i64]) -> Vec<ContainerDevices> {
    let one = |topology| ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology,
    };
    if nodes.is_empty() {
        return vec![one(None)];
    }
    nodes.iter().map(|id| one(Some(TopologyInfo { nodes: vec![NumaNode { id: *id }] }))).collect()
}
