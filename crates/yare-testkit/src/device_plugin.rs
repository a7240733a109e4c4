//! A device plugin: a real gRPC server beside a kubelet's socket, whose devices and answers tests change while it runs.
//!
//! Its messages are written down here once more, so that a wrong number in the node's own shows.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::stream;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use yare_grpc::{Client, Server, Status, describe};

/// A device that the plugin lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginDevice {
    /// Its id.
    pub id: String,
    /// Whether it can be used.
    pub healthy: bool,
    /// The NUMA nodes it is near to.
    pub nodes: Vec<i64>,
}

impl PluginDevice {
    /// A healthy device without a NUMA node.
    pub fn new(id: &str) -> Self {
        PluginDevice { id: id.to_owned(), healthy: true, nodes: Vec::new() }
    }
}

/// What containers get for their devices.
#[derive(Debug, Clone, Default)]
pub struct DeviceAnswer {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Path in the container, path on the node, read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Path in the container, path on the node, permissions.
    pub devices: Vec<(String, String, String)>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// CDI names.
    pub cdi: Vec<String>,
}

/// How the plugin behaves. Tests change it while it runs.
#[derive(Debug, Clone, Default)]
pub struct DeviceBehaviour {
    /// What each container gets, whatever its devices; their ids are in `YARE_TEST_DEVICES` besides.
    pub answer: DeviceAnswer,
    /// Devices it prefers; none: it is not asked.
    pub prefers: Option<Vec<String>>,
    /// It wants to know before containers start.
    pub pre_start: bool,
    /// It refuses to allocate, in these words.
    pub refuses: Option<String>,
    /// It refuses the start of containers, in these words.
    pub refuses_start: Option<String>,
}

struct Shared {
    behaviour: Mutex<DeviceBehaviour>,
    calls: Mutex<Vec<String>>,
    devices: watch::Sender<Vec<PluginDevice>>,
}

/// See the module. It stops when it is dropped.
pub struct DevicePlugin {
    dir: PathBuf,
    resource: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl DevicePlugin {
    /// Starts a plugin beside the kubelet's socket in a directory, and registers it.
    pub async fn start(dir: &Path, resource: &str, devices: Vec<PluginDevice>) -> anyhow::Result<Self> {
        Self::start_with(dir, resource, devices, DeviceBehaviour::default()).await
    }

    /// The same, with a behaviour from the beginning.
    pub async fn start_with(
        dir: &Path,
        resource: &str,
        devices: Vec<PluginDevice>,
        behaviour: DeviceBehaviour,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            calls: Mutex::default(),
            devices: watch::channel(devices).0,
        });
        let plugin = DevicePlugin {
            dir: dir.to_owned(),
            resource: resource.to_owned(),
            task: serve(&dir.join(socket(resource)), &shared)?,
            shared,
        };
        plugin.register().await?;
        Ok(plugin)
    }

    /// Tells the kubelet that it is there; again after the kubelet has started anew.
    pub async fn register(&self) -> anyhow::Result<()> {
        self.register_as("v1beta1", &self.resource).await
    }

    /// Registers with a version and a name of the test's choice.
    pub async fn register_as(&self, version: &str, resource: &str) -> anyhow::Result<()> {
        let client = Client::unix(self.dir.join("kubelet.sock")).waiting();
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: socket(&self.resource),
            resource_name: resource.to_owned(),
        };
        client
            .call::<_, Empty>("/v1beta1.Registration/Register", request, Duration::from_secs(10))
            .await
            .map(drop)
            .map_err(|status| anyhow::anyhow!("{}", describe(&status)))
    }

    /// Serves its socket anew, which a kubelet that starts removes, and registers.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.task.abort();
        self.task = serve(&self.dir.join(socket(&self.resource)), &self.shared)?;
        self.register().await
    }

    /// Stops: its connections break.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Lists other devices from now on.
    pub fn list(&self, devices: Vec<PluginDevice>) {
        self.shared.devices.send_replace(devices);
    }

    /// Changes its behaviour.
    pub fn change(&self, change: impl FnOnce(&mut DeviceBehaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// What it was asked, in order: `allocate a b`, `prefer 2 of a b c`, `start a b`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().clone()
    }
}

impl Drop for DevicePlugin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn socket(resource: &str) -> String {
    format!("{}.sock", resource.replace('/', "-"))
}

fn serve(path: &Path, shared: &Arc<Shared>) -> anyhow::Result<JoinHandle<()>> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    let (options, lists, prefers, allocates, starts) =
        (shared.clone(), shared.clone(), shared.clone(), shared.clone(), shared.clone());
    let server = Server::new()
        .unary("/v1beta1.DevicePlugin/GetDevicePluginOptions", move |_: Empty| {
            let behaviour = options.behaviour.lock().clone();
            let answer = Options { pre_start: behaviour.pre_start, prefers: behaviour.prefers.is_some() };
            async move { Ok(answer) }
        })
        .stream("/v1beta1.DevicePlugin/ListAndWatch", move |_: Empty| {
            let mut devices = lists.devices.subscribe();
            devices.mark_changed();
            async move {
                Ok(stream::unfold(devices, async |mut devices| {
                    devices.changed().await.ok()?;
                    let list = list(&devices.borrow_and_update());
                    Some((Ok(list), devices))
                }))
            }
        })
        .unary("/v1beta1.DevicePlugin/GetPreferredAllocation", move |request: PreferRequest| {
            let ask = request.containers.into_iter().next().unwrap_or_default();
            let mut available = ask.available;
            available.sort();
            prefers.calls.lock().push(format!("prefer {} of {}", ask.size, available.join(" ")));
            let ids = prefers.behaviour.lock().prefers.clone().unwrap_or_default();
            async move { Ok(PreferResponse { containers: vec![Ids { ids }] }) }
        })
        .unary("/v1beta1.DevicePlugin/Allocate", move |request: AllocateRequest| {
            let ids = request.containers.into_iter().next().unwrap_or_default().ids;
            allocates.calls.lock().push(format!("allocate {}", ids.join(" ")));
            let answer = allocate(&allocates.behaviour.lock(), &ids);
            async move { answer }
        })
        .unary("/v1beta1.DevicePlugin/PreStartContainer", move |request: Ids| {
            starts.calls.lock().push(format!("start {}", request.ids.join(" ")));
            let refused = starts.behaviour.lock().refuses_start.clone();
            async move { refused.map_or(Ok(Empty {}), |why| Err(Status::unknown(why))) }
        });
    Ok(tokio::spawn(server.serve(listener, std::future::pending())))
}

fn list(devices: &[PluginDevice]) -> ListResponse {
    let device = |d: &PluginDevice| Device {
        id: d.id.clone(),
        health: if d.healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        topology: (!d.nodes.is_empty())
            .then(|| Topology { nodes: d.nodes.iter().map(|id| Node { id: *id }).collect() }),
    };
    ListResponse { devices: devices.iter().map(device).collect() }
}

fn allocate(behaviour: &DeviceBehaviour, ids: &[String]) -> Result<AllocateResponse, Status> {
    if let Some(why) = &behaviour.refuses {
        return Err(Status::unknown(why.clone()));
    }
    let answer = &behaviour.answer;
    let mut env: HashMap<String, String> = answer.env.clone().into_iter().collect();
    env.insert("YARE_TEST_DEVICES".to_owned(), ids.join(","));
    let mount = |(container, host, read_only): &(String, String, bool)| Mount {
        container: container.clone(),
        host: host.clone(),
        read_only: *read_only,
    };
    let device = |(container, host, permissions): &(String, String, String)| DeviceNode {
        container: container.clone(),
        host: host.clone(),
        permissions: permissions.clone(),
    };
    let container = ContainerResponse {
        env,
        mounts: answer.mounts.iter().map(mount).collect(),
        devices: answer.devices.iter().map(device).collect(),
        annotations: answer.annotations.clone().into_iter().collect(),
        cdi: answer.cdi.iter().map(|name| Cdi { name: name.clone() }).collect(),
    };
    Ok(AllocateResponse { containers: vec![container] })
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(bool, tag = "1")]
    pre_start: bool,
    #[prost(bool, tag = "2")]
    prefers: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
    #[prost(message, optional, tag = "3")]
    topology: Option<Topology>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Topology {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(int64, tag = "1")]
    id: i64,
}

/// `ContainerAllocateRequest`, `PreStartContainerRequest`, `ContainerPreferredAllocationResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Ids {
    #[prost(string, repeated, tag = "1")]
    ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Ids>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<ContainerResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerResponse {
    #[prost(map = "string, string", tag = "1")]
    env: HashMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "3")]
    devices: Vec<DeviceNode>,
    #[prost(map = "string, string", tag = "4")]
    annotations: HashMap<String, String>,
    #[prost(message, repeated, tag = "5")]
    cdi: Vec<Cdi>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, tag = "2")]
    host: String,
    #[prost(bool, tag = "3")]
    read_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceNode {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, tag = "2")]
    host: String,
    #[prost(string, tag = "3")]
    permissions: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Cdi {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PreferRequest {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<PreferContainer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PreferContainer {
    #[prost(string, repeated, tag = "1")]
    available: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    must_include: Vec<String>,
    #[prost(int32, tag = "3")]
    size: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PreferResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Ids>,
}
