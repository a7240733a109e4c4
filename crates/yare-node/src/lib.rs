//! The node agent: pod lifecycle, probes, volumes, logs, its HTTP API.
//!
//! [`Node::start`] registers a node and runs the pods that are bound to it, on any [`Runtime`]. Pods come by a
//! watch on this node's pods, the runtime's events say when something ends, and one task per pod ([`pod`])
//! drives it from what is to what should be. Nothing here is kept on disk that could not be found again: after
//! a restart the agent takes over what the runtime still runs, without touching it.
//!
//! ```no_run
//! # async fn example(client: yare_client::Client, runtime: std::sync::Arc<dyn yare_runtime::Runtime>) {
//! let mut config = yare_node::NodeConfig::new(client, runtime, "node-1", "10.0.0.1".parse().unwrap(), "/var/lib/yare/agent");
//! let sources = yare_node::config::Sources { inline: vec!["maxPods: 50".into()], ..Default::default() };
//! config.configuration = sources.load().unwrap();
//! let node = yare_node::Node::start(config).await.unwrap();
//! // Containers go on when the agent stops.
//! node.shutdown().await;
//! # }
//! ```

mod allocation;
mod api;
pub mod certificates;
mod clock;
pub mod config;
pub mod csi;
mod error;
mod eviction;
mod gc;
mod hooks;
mod http;
pub mod images;
mod kubelet;
mod logs;
pub mod managers;
mod manifests;
mod metrics;
mod node;
mod objects;
pub mod plugins;
mod pod;
mod probe;
pub mod quantity;
mod resources;
mod shutdown;
mod streaming;
pub mod trace;
mod usage;
pub mod view;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use yare_client::{Client, HangUp, Selection};
use yare_runtime::{CgroupTree, Runtime};

pub use clock::{Seams, machine_seams};
pub use error::{Error, Result};
pub use eviction::{Layout, Observation, Observations, Observer, Pressure, Signal};
pub use http::KubeletServer;
pub use node::NetworkReadiness;
pub use node::capacity::Capacity;
pub use pod::qos::CGROUPS;
pub use resources::{
    Amounts, DeadContainers, EvictionSettings, ImageGcSettings, MemoryReservation, ResourceSettings,
    SwapBehavior,
};
pub use shutdown::Logind;
pub use view::Taint;

use allocation::Allocations;
use config::{Configuration, Sources};
use error::Context;
use eviction::{Evictor, Machine};
use kubelet::{Kubelet, Parts};
use managers::{ManagerSettings, Managers};
use node::heartbeat::Heartbeat;
use pod::admission::Offer;
use pod::manager::Manager;
use resources::NodeResources;

/// How a node is set up.
pub struct NodeConfig {
    /// The API server.
    pub client: Client,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Programs that know logins for registries.
    pub credential_providers: images::providers::Providers,
    /// The node's name; lower case, a DNS subdomain.
    pub node_name: String,
    /// The node's addresses, the primary first; at most one of each family.
    pub node_ips: Vec<IpAddr>,
    /// Labels beyond those every node has.
    pub labels: BTreeMap<String, String>,
    /// Where pods' files are kept: `<data dir>/pods/<uid>`.
    pub data_dir: PathBuf,
    /// Where logs are kept: `<log dir>/pods/…`.
    pub log_dir: PathBuf,
    /// `KubeletConfiguration`.
    pub configuration: Configuration,
    /// The kubelet's HTTPS API; none: it is not served.
    pub server: Option<KubeletServer>,
    /// What the machine has; none: it is asked.
    pub capacity: Option<Capacity>,
    /// Devices, and which parts of the machine containers get; none: as the configuration has them.
    pub managers: Option<ManagerSettings>,
    /// Reservations, limits, evictions, garbage; none: as the configuration has them.
    pub resources: Option<ResourceSettings>,
    /// The machine's cgroups, for the node to tend those above pods; none: it leaves them alone.
    pub cgroups: Option<CgroupTree>,
    /// Says what is left of memory, disk and process ids; none: the machine is asked.
    pub observer: Option<Arc<dyn Observer>>,
    /// What pods get less of here than they are told; it becomes an event of the node.
    pub clamps: Option<String>,
    /// Whether pods can get a network.
    pub network: watch::Receiver<NetworkReadiness>,
    /// Clock and chance.
    pub seams: Seams,
    /// Who tells of the machine's shutdown.
    pub logind: Logind,
    /// Which start of the machine this is; none: the kernel says it.
    pub boot_id: Option<String>,
    /// Where certificates of the node's own are kept.
    pub certificates: PathBuf,
    /// Ends connections to an API server that does not answer; none: it is in this process.
    pub hang_up: Option<HangUp>,
    /// Where traces of its work go (see [`trace::start`]); none: nowhere.
    pub tracer: Option<trace::Tracer>,
}

impl NodeConfig {
    /// A configuration with upstream's defaults, the network ready, no HTTPS API.
    pub fn new(
        client: Client,
        runtime: Arc<dyn Runtime>,
        node_name: impl Into<String>,
        node_ip: IpAddr,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        let data_dir = data_dir.into();
        NodeConfig {
            certificates: data_dir.join("pki"),
            hang_up: None,
            tracer: None,
            logind: Logind::default(),
            boot_id: None,
            clamps: None,
            client,
            runtime,
            credential_providers: images::providers::Providers::default(),
            node_name: node_name.into(),
            node_ips: vec![node_ip],
            labels: BTreeMap::new(),
            data_dir,
            log_dir: "/var/log".into(),
            // Nothing listens that was not asked for.
            configuration: configuration(&[
                ("clusterDomain", "cluster.local".into()),
                ("healthzPort", 0.into()),
            ]),
            server: None,
            capacity: None,
            managers: None,
            resources: None,
            cgroups: None,
            observer: None,
            network: watch::channel(NetworkReadiness::Ready).1,
            seams: Seams::default(),
        }
    }
}

/// Upstream's defaults with some fields of one's own.
fn configuration(base: &[(&'static str, serde_json::Value)]) -> Configuration {
    // A test loads them.
    Sources { base: base.to_vec(), ..Sources::default() }.load().expect("constant fields are valid")
}

/// What is left of traces at the end may take so long to go out.
const TRACES_PATIENCE: Duration = Duration::from_secs(5);

/// A node agent.
pub struct Node;

impl Node {
    /// Takes over what runs, registers the node and begins to run pods. Returns once the agent's own parts are
    /// up; the API server may still be on its way.
    pub async fn start(config: NodeConfig) -> Result<NodeHandle> {
        let version = config.runtime.version().await?;
        let configuration = config.configuration;
        let settings = configuration.settings();
        for warning in configuration.warnings() {
            tracing::warn!("kubelet configuration: {warning}");
        }
        let detect = || Capacity::detect(&config.data_dir, u32::try_from(settings.max_pods).unwrap_or(0));
        let mut capacity = config.capacity.unwrap_or_else(detect);
        capacity.limit_pods_per_core(settings.pods_per_core);
        let labels = node::object::labels(&config.node_name, &config.labels);
        let configured = || ResourceSettings::configured(settings, configuration.gates());
        let resources = config.resources.unwrap_or_else(configured);
        let resources = NodeResources::new(resources, capacity.clone(), config.cgroups)?;
        let observer = config.observer.unwrap_or_else(|| {
            let pods = resources.tree.as_ref().map(|tree| (tree.groups.clone(), tree.root.clone()));
            Arc::new(Machine::new(config.data_dir.clone(), config.runtime.clone(), pods))
        });
        let offer = Offer {
            name: config.node_name.clone(),
            labels: labels.clone(),
            taints: Vec::new(),
            allocatable: resources.allocatable(),
            advertised: BTreeMap::new(),
            pressures: BTreeSet::new(),
            allowed_sysctls: settings.allowed_unsafe_sysctls.clone(),
            strict_groups: config.runtime.status().await.is_ok_and(|s| s.supplemental_groups_policy),
            restarts_all: !configuration.gates().is_on("NodeDeclaredFeatures")
                || configuration.gates().is_on(node::object::RESTART_ALL),
        };
        let kept = resources.reservations.kept(&capacity);
        let metrics = metrics::Metrics::default();
        let configured = || ManagerSettings::configured(settings, configuration.gates());
        let managers = config.managers.unwrap_or_else(configured);
        let managers =
            Managers::new(managers, &kept, &config.data_dir, config.seams.clone(), metrics.clone())?;
        let allocations = Allocations::restore(&config.data_dir, configuration.gates())?;
        let client = config.client;
        let select = |field: &str| Selection {
            fields: Some(format!("{field}={}", config.node_name)),
            ..Selection::default()
        };
        let pods = client.informers().select(yare_client::PODS, select("spec.nodeName"));
        let node = client.informers().select(yare_client::NODES, select("metadata.name"));
        let labelled = format!("{}={}", yare_schema::local_path::NODE_LABEL, config.node_name);
        let own = Selection { labels: Some(labelled), ..Selection::default() };
        let volumes = client.informers().select(yare_client::PERSISTENT_VOLUMES, own);
        let kubelet = Kubelet::new(Parts {
            node_name: config.node_name.clone(),
            node_ips: config.node_ips,
            data_dir: config.data_dir,
            log_dir: config.log_dir,
            config: configuration.clone(),
            seams: config.seams,
            client: client.clone(),
            runtime: config.runtime,
            runtime_name: version.name.clone(),
            credential_providers: config.credential_providers,
            capacity,
            resources,
            network: config.network,
            managers,
            allocations,
            offer,
            pods,
            tracer: config.tracer.clone(),
            metrics,
        });
        // `/logs/` lists it from the first moment on.
        let pod_logs = kubelet.log_dir.join("pods");
        std::fs::create_dir_all(&pod_logs).context(|| format!("make {}", pod_logs.display()))?;
        match kubelet.runtime.images().await {
            Ok(found) => kubelet.images.restore(&found, kubelet.seams.now()),
            Err(error) => tracing::warn!(%error, "which images there are is not known yet"),
        }
        let manager = Manager::new(kubelet.clone()).await?;
        let mut tasks = JoinSet::new();
        kubelet.managers.start(&kubelet, &mut tasks)?;
        let mut server = config.server;
        if settings.server_tls_bootstrap
            && settings.tls_cert_file.is_empty()
            && let Some(server) = &mut server
        {
            let (shown, rotation) = certificates::serving(&kubelet, client.clone(), config.certificates)?;
            server.serving = Some(shown);
            tasks.spawn(rotation.run());
        }
        let address = match server {
            Some(server) if settings.enable_server => Some(http::serve(kubelet.clone(), server, &mut tasks)?),
            _ => None,
        };
        tasks.spawn(manager.run());
        tasks.spawn(plugins::run(kubelet.clone()));
        tasks.spawn(csi::keep_limits(kubelet.clone()));
        tasks.spawn(volumes::give_back(kubelet.clone()));
        tasks.spawn(csi::initialize(kubelet.clone()));
        tasks.spawn(volumes::local_path::run(kubelet.clone(), volumes));
        tasks.spawn(manifests::mirror::keep(kubelet.clone(), node.clone()));
        tasks.spawn(resources::tree::tend(kubelet.clone()));
        tasks.spawn(allocation::tend(kubelet.clone()));
        tasks.spawn(Evictor::new(kubelet.clone(), observer).run());
        tasks.spawn(resources::oom::watch(kubelet.clone()));
        tasks.spawn(gc::images::run(kubelet.clone()));
        tasks.spawn(shutdown::run(kubelet.clone(), config.logind));
        tasks.spawn(clock_steps(kubelet.clone()));
        tasks.spawn(gc::containers::run(kubelet.clone()));
        let heartbeat = Heartbeat {
            kubelet,
            node,
            labels,
            port: address.map_or(10250, |a| a.port()),
            runtime_version: format!("{}://{}", version.name, version.version),
            hang_up: config.hang_up,
            boot_id: config.boot_id.unwrap_or_else(node::capacity::boot_id),
            clamps: config.clamps,
        };
        tasks.spawn(heartbeat.run());
        Ok(NodeHandle { tasks, address, tracer: config.tracer })
    }
}

/// Pods look again at what they wait for by the wall clock, whenever that is set.
async fn clock_steps(kubelet: Arc<Kubelet>) {
    let mut stepped = kubelet.seams.stepped.clone();
    while stepped.changed().await.is_ok() {
        tracing::info!("the clock was set");
        kubelet.wake_all();
    }
}

/// A running node agent.
pub struct NodeHandle {
    tasks: JoinSet<()>,
    address: Option<SocketAddr>,
    tracer: Option<trace::Tracer>,
}

impl NodeHandle {
    /// Where the kubelet's API listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops the agent. Containers go on.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        if let Some(tracer) = &self.tracer {
            tracer.close(TRACES_PATIENCE).await;
        }
    }
}

/// Binds the listener of the kubelet's API.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Io { context: format!("listen on {address}"), source })
}
