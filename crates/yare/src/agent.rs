//! This machine as a node: runtime, pod network, node agent, service proxy, DNS.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use rustls::server::ResolvesServerCert;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use yare_client::{Client, HangUp, NODES, Selection};
use yare_net::{
    HostPort, PodNetwork, Protocol,
    cni::install::Whose,
    dns::{self, Dns},
    ipam::Cidr,
    proxy::{self, Proxy},
};
use yare_node::{
    KubeletServer, NetworkReadiness, Node, NodeConfig, NodeHandle,
    config::Configuration,
    images::providers::Providers,
    trace::{self, Tracer},
};
use yare_runtime::{
    CriRuntime, Engine, EngineConfig, PodNetworkRequest, PortMapping, PortProtocol, Runtime, SandboxState,
    machine, ulimit::Ulimit,
};

use crate::{
    cli::NodeArgs,
    cri::{self, Connected},
    image::{self, Images},
    kube_proxy_arg, kubelet_arg,
    progress::{Progress, complain},
};

/// The user that publishes and serves cluster DNS.
pub const DNS_USER: &str = "system:yare-dns";
/// The user in whose name the API server speaks to nodes.
pub const KUBELET_CLIENT_USER: &str = "kube-apiserver-kubelet-client";
/// The image of the demonstration: this very binary.
const HELLO_IMAGE: &str = "yare.local/hello";
/// The port of DNS on the node's address in the pod range.
const DNS_PORT: u16 = 53;

/// How long a node that was here before waits for its pod network before it says that it has none.
const NETWORK_PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to tell the API server something.
const RETRY: Duration = Duration::from_secs(1);

/// What a node is told of its cluster.
pub struct ClusterPlan {
    /// Ranges of pods.
    pub cluster_cidrs: Vec<Cidr>,
    /// Ranges of services.
    pub service_cidrs: Vec<Cidr>,
    /// Cluster DNS, if there is one.
    pub cluster_dns: Option<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
}

/// What is worked out from the flags before the node starts.
pub struct Plan {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// How it is told to behave.
    pub kubelet: Configuration,
    /// Labels beyond those of `--node-label`.
    labels: BTreeMap<String, String>,
    /// How a container runtime behind CRI is spoken to.
    cri: cri::Told,
    /// The node's directory: volumes of pods, sockets of plugins.
    root_dir: PathBuf,
    /// The configuration of providers of logins for registries, and where their programs are.
    credential_providers: Option<(PathBuf, PathBuf)>,
    cluster: ClusterPlan,
}

impl Plan {
    /// Reads `--kubelet-arg` and what it names. `authority`: the file with the cluster's authority; `further`:
    /// fields with other defaults.
    pub fn new(
        args: &NodeArgs,
        name: String,
        ip: IpAddr,
        authority: &Path,
        cluster: ClusterPlan,
        further: &[(&'static str, Value)],
    ) -> anyhow::Result<Self> {
        let given = kubelet_arg::Arguments::parse(&args.cri.kubelet_arg)?;
        let mut base = kubelet_arg::base(args, authority, cluster.cluster_dns, &cluster.cluster_domain);
        base.extend(further.iter().cloned());
        let kubelet = given.load(&args.feature_gates.join(","), base)?;
        let cri = cri::Told::new(&given, &kubelet)?;
        let credential_providers = given.credential_providers()?;
        let root_dir = given.root_dir(&args.data.data_dir);
        Ok(Self { name, ip, kubelet, labels: given.labels, cri, root_dir, credential_providers, cluster })
    }
}

/// The name of the node: what the flag says, or the machine's.
pub fn node_name(args: &NodeArgs) -> anyhow::Result<String> {
    match &args.node_name {
        Some(name) => Ok(name.clone()),
        None => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("this machine's name")?;
            Ok(name.trim().to_ascii_lowercase())
        }
    }
}

/// The address of the node: what the flag says, or the one address that it listens on; where it listens on all,
/// the usual one.
pub fn node_ip(args: &NodeArgs, usual: impl FnOnce() -> Option<IpAddr>) -> Option<IpAddr> {
    let bound = || Some(args.bind_address).filter(|address| !address.is_unspecified());
    args.node_ip.or_else(bound).or_else(usual)
}

/// In whose names the node's parts speak to the API server, and how.
pub struct Clients {
    /// The node itself.
    pub node: Client,
    /// The service proxy.
    pub proxy: Client,
    /// The DNS server.
    pub dns: Client,
    /// Ends the connections, where there are any.
    pub hang_up: Option<HangUp>,
}

/// A running node.
pub struct Agent {
    node: NodeHandle,
    network: JoinHandle<()>,
    helpers: Vec<JoinHandle<()>>,
}

/// The container runtime, and what comes with it.
struct Containers {
    runtime: Arc<dyn Runtime>,
    images: Images,
    /// A runtime behind CRI.
    cri: Option<Connected>,
    /// What it gives containers less of than they are told.
    clamps: Option<String>,
}

/// Says in one line what this machine lacks.
pub fn check_machine(args: &NodeArgs) -> anyhow::Result<()> {
    // What containers need is another runtime's business, if there is one.
    let embedded = args.cri.container_runtime_endpoint.is_none();
    let lack = embedded.then(machine::lack).flatten().map(|lack| lack.to_string());
    let lack = lack.or_else(|| {
        // Services, host ports and policies are rules of nftables.
        let error = yare_net::nft::check().err()?;
        Some(format!(
            "this kernel has no nftables ({error}): load it (modprobe nf_tables), or boot one that has it"
        ))
    });
    if let Some(lack) = lack {
        bail!("{lack}, or run the control plane only with --disable-agent");
    }
    Ok(())
}

/// The permissions of components that upstream does not know.
pub fn bootstrap_objects() -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}});
    let role = "system:yare-dns";
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta(role),
            "rules": [
                {"apiGroups": [""], "resources": ["services", "namespaces", "nodes"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                    "verbs": ["list", "watch"]},
                {"apiGroups": [""], "resources": ["services"], "verbs": ["create", "get", "patch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                    "verbs": ["create", "get", "patch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta(role),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": DNS_USER}],
        }),
        // Nodes ask what the API server may do, like anybody else.
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": meta("system:yare-kubelet-client"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT_USER}],
        }),
    ]
}

impl Agent {
    /// Starts the node. `serving`: what its own API shows, unless the configuration says something else.
    pub async fn start(
        args: &NodeArgs,
        plan: &Plan,
        clients: Clients,
        serving: Arc<dyn ResolvesServerCert>,
        progress: &mut Progress,
    ) -> anyhow::Result<Self> {
        let network_dir = args.data.data_dir.join("network");
        let known = network_dir.exists();
        let pods = Arc::new(PodNetwork::new(&network_dir));
        let tracer = trace::start(&plan.kubelet, &plan.name);
        let Containers { runtime, images, cri, clamps } =
            containers(args, plan, &pods, tracer.as_ref(), progress).await?;
        let mut helpers = vec![image::serve(&args.data.data_dir, images)?];
        let (cri, network_of_others) = match cri {
            None => (None, false),
            Some(Connected { runtime, network, plugin }) => {
                helpers.push(plugin);
                (Some(runtime), network != Whose::Ours)
            }
        };

        let settings = plan.kubelet.settings();
        let address = settings.address.parse().with_context(|| format!("address {:?}", settings.address))?;
        // In a configuration 0 is no port: it stands for the usual one.
        let usual = args.kubelet_port == 0 && settings.port == 10250;
        let port = if usual { 0 } else { u16::try_from(settings.port)? };
        let listener = yare_node::bind(SocketAddr::new(address, port)).await?;
        let kubelet_port = listener.local_addr()?.port();
        let (readiness, mut network) =
            watch::channel(NetworkReadiness::NotReady("the node has no podCIDR yet".into()));
        let mut config = NodeConfig::new(
            clients.node.clone(),
            runtime.clone(),
            plan.name.clone(),
            plan.ip,
            plan.root_dir.clone(),
        );
        config.labels = labels(&args.node_label)?;
        config.labels.extend(plan.labels.clone());
        config.log_dir.clone_from(&args.log_dir);
        config.configuration = plan.kubelet.clone();
        if let Some((file, bin_dir)) = &plan.credential_providers {
            config.credential_providers = Providers::load(file, bin_dir)?;
        }
        config.cgroups = Some(yare_runtime::CgroupTree::detect());
        config.clamps = clamps;
        config.network = network.clone();
        config.server = Some(KubeletServer { listener, serving: Some(serving) });
        config.hang_up = clients.hang_up;
        config.tracer = tracer;
        config.seams = yare_node::machine_seams();
        if let Some(bus) = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok().and_then(|a| bus_socket(&a)) {
            config.logind.bus = bus;
        }
        let told = kube_proxy_arg::parse(&args.kube_proxy_arg, plan.ip)?;
        let parts = NetworkParts {
            pods,
            runtime,
            cri,
            network_of_others,
            node_ip: plan.ip,
            node_client: clients.node,
            proxy_client: (!disabled(args, "service-proxy")).then_some(clients.proxy),
            dns_client: (!disabled(args, "dns")).then_some(clients.dns),
            proxy: proxy::Config {
                node_name: plan.name.clone(),
                cluster_cidrs: plan.cluster.cluster_cidrs.clone(),
                service_cidrs: plan.cluster.service_cidrs.clone(),
                tracked: told.tracked,
            },
            proxy_listen: told.listen,
            cluster_dns: plan.cluster.cluster_dns,
            cluster_domain: plan.cluster.cluster_domain.clone(),
            resolv_conf: args.resolv_conf.clone(),
            readiness,
        };
        let running = tokio::spawn(parts.run());
        if known {
            // A node that comes back must not look broken meanwhile: its pods would lose their traffic.
            let ready = network.wait_for(|state| *state == NetworkReadiness::Ready);
            // What is not there by then is reported as what the node lacks.
            let _ = tokio::time::timeout(NETWORK_PATIENCE, ready).await;
        }
        let node = Node::start(config).await?;
        progress.done("node agent", &format!("{} on port {kubelet_port}", plan.name));

        Ok(Self { node, network: running, helpers })
    }

    /// Stops the agent; containers and service rules stay.
    pub async fn shutdown(self) {
        self.network.abort();
        self.helpers.iter().for_each(JoinHandle::abort);
        self.node.shutdown().await;
    }
}

/// The embedded runtime, or the one behind the endpoint that was given.
async fn containers(
    args: &NodeArgs,
    plan: &Plan,
    pods: &Arc<PodNetwork>,
    tracer: Option<&Tracer>,
    progress: &mut Progress,
) -> anyhow::Result<Containers> {
    if let Some(endpoint) = &args.cri.container_runtime_endpoint {
        let connected = cri::connect(&args.cri, endpoint, &args.run_dir, &plan.cri, pods, tracer).await?;
        let version = connected.runtime.version().await?;
        progress.done("container runtime", &format!("{} {} at {endpoint}", version.name, version.version));
        if let Whose::Theirs(configuration) = &connected.network {
            progress.done("pod network", &format!("by {}", configuration.display()));
        }
        let runtime: Arc<dyn Runtime> = Arc::new(connected.runtime.clone());
        let images = Images { runtime: runtime.clone(), store: None };
        return Ok(Containers { runtime, images, cri: Some(connected), clamps: None });
    }
    let mut config = EngineConfig::new(&args.data.data_dir, &args.run_dir);
    config.network = Some(Arc::new(Attach(pods.clone())));
    config.insecure_registries = args.insecure_registry.clone();
    config.ulimits = Ulimit::with(&args.default_ulimit);
    let clamps = machine::clamps(&config.ulimits);
    let engine = Engine::open(config).await.context("container runtime")?;
    let own = std::env::current_exe().context("this program's file")?;
    engine.images().add_builtin(HELLO_IMAGE, &own).context("image of the demonstration")?;
    progress.done("container runtime", "embedded");
    let store = Some(engine.images());
    let runtime: Arc<dyn Runtime> = Arc::new(engine);
    Ok(Containers { images: Images { runtime: runtime.clone(), store }, runtime, cri: None, clamps })
}

/// The socket in the address of a message bus, if one of its forms is a path.
fn bus_socket(address: &str) -> Option<PathBuf> {
    let forms = address.split(';').filter_map(|form| form.strip_prefix("unix:"));
    let mut values = forms.flat_map(|form| form.split(','));
    values.find_map(|value| value.strip_prefix("path=")).map(PathBuf::from)
}

fn disabled(args: &NodeArgs, component: &str) -> bool {
    args.disable.iter().any(|d| d == component)
}

fn labels(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    given
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => bail!("--node-label {label:?} is not KEY=VALUE"),
        })
        .collect()
}

/// What waits for the node's pod range.
struct NetworkParts {
    pods: Arc<PodNetwork>,
    runtime: Arc<dyn Runtime>,
    /// The runtime again, where it is behind CRI and has a network plugin of its own to be ready.
    cri: Option<CriRuntime>,
    /// The pods' network is not ours.
    network_of_others: bool,
    node_ip: IpAddr,
    node_client: Client,
    proxy_client: Option<Client>,
    dns_client: Option<Client>,
    proxy: proxy::Config,
    proxy_listen: proxy::Listen,
    cluster_dns: Option<IpAddr>,
    cluster_domain: String,
    resolv_conf: PathBuf,
    readiness: watch::Sender<NetworkReadiness>,
}

/// The node's specification.
#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct NodeView {
    metadata: NodeMetadata,
    spec: NodeSpec,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct NodeMetadata {
    annotations: BTreeMap<String, String>,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
}

impl NetworkParts {
    async fn run(self) {
        let fields = Some(format!("metadata.name={}", self.proxy.node_name));
        let node = self.node_client.informers().select(NODES, Selection { fields, ..Selection::default() });
        let mut changes = node.subscribe();
        while let Some(change) = changes.recv().await {
            let Some(view) = change.new.and_then(|n| n.view::<NodeView>().ok()) else { continue };
            if view.spec.pod_cidr.is_empty() {
                continue;
            }
            match self.start(&view.spec.pod_cidr).await {
                // They live as long as this task.
                Ok((_proxy, dns)) => {
                    let address = dns.as_ref().map(Dns::address);
                    // Before the node takes pods, which look for it.
                    let told = self.tell_of_dns(address, &view).await;
                    let ready = async {
                        match self.cri.clone() {
                            Some(runtime) => cri::follow_network(runtime, self.readiness.clone()).await,
                            None => drop(self.readiness.send_replace(NetworkReadiness::Ready)),
                        }
                    };
                    tokio::join!(ready, self.keep_told(address, told, changes));
                    return std::future::pending().await;
                }
                Err(error) => {
                    complain(&format!("pod network: {error:#}"));
                    self.readiness.send_replace(NetworkReadiness::NotReady(format!("{error:#}")));
                }
            }
        }
    }

    async fn start(&self, pod_cidr: &str) -> anyhow::Result<(Option<Proxy>, Option<Dns>)> {
        if !self.network_of_others {
            let range = pod_cidr.parse().map_err(|e| anyhow::anyhow!("podCIDR: {e}"))?;
            let sandboxes = self.runtime.sandboxes().await?;
            let ready: BTreeSet<String> =
                sandboxes.into_iter().filter(|s| s.state == SandboxState::Ready).map(|s| s.id).collect();
            // One that a runtime behind CRI is still making is in no list yet, but has its link.
            let making = |id: &str| self.cri.is_some() && self.pods.linked(id);
            self.pods.configure(range, |id| ready.contains(id) || making(id))?;
        }
        let proxy = match &self.proxy_client {
            Some(client) => Some(Proxy::start(client.clone(), self.proxy.clone(), self.proxy_listen)?),
            None => None,
        };
        let own = if self.network_of_others { Some(self.node_ip) } else { self.pods.gateway() };
        let dns = match (&self.dns_client, own) {
            (Some(client), Some(gateway)) => Some(self.start_dns(client, gateway).await?),
            _ => None,
        };
        Ok((proxy, dns))
    }

    async fn start_dns(&self, client: &Client, gateway: IpAddr) -> anyhow::Result<Dns> {
        let own: Vec<IpAddr> = [gateway].into_iter().chain(self.cluster_dns).collect();
        Ok(Dns::start(
            client.clone(),
            dns::Config {
                listen: SocketAddr::new(gateway, DNS_PORT),
                domain: self.cluster_domain.clone(),
                upstreams: dns::upstreams(&self.resolv_conf, &own),
            },
        )
        .await?)
    }

    /// Says on the node's object where its DNS server is, where it does not say so; whether it says so then.
    async fn tell_of_dns(&self, server: Option<SocketAddr>, view: &NodeView) -> bool {
        let Some(server) = server else { return true };
        let told = view.metadata.annotations.get(dns::ANNOTATION);
        if told.is_some_and(|told| *told == server.to_string()) {
            return true;
        }
        match dns::tell(&self.node_client, &self.proxy.node_name, server).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "telling where this node's DNS server is, will retry");
                false
            }
        }
    }

    /// Keeps it said: what the control plane publishes for pods to find.
    async fn keep_told(
        &self,
        server: Option<SocketAddr>,
        mut told: bool,
        mut changes: yare_client::Subscription,
    ) {
        loop {
            let change = if told {
                changes.recv().await
            } else {
                match tokio::time::timeout(RETRY, changes.recv()).await {
                    Ok(change) => change,
                    Err(_) => {
                        told = self.tell_of_dns(server, &NodeView::default()).await;
                        continue;
                    }
                }
            };
            let Some(change) = change else { return };
            // One that is gone is told again when it is back.
            let Some(view) = change.new.and_then(|n| n.view::<NodeView>().ok()) else { continue };
            told = self.tell_of_dns(server, &view).await;
        }
    }
}

/// The runtime's view of the pod network.
struct Attach(Arc<PodNetwork>);

#[async_trait]
impl yare_runtime::PodNetwork for Attach {
    async fn attach(&self, pod: PodNetworkRequest) -> Result<Vec<IpAddr>, String> {
        let network = self.0.clone();
        let ports: Vec<HostPort> = pod.port_mappings.iter().map(host_port).collect();
        let attached =
            tokio::task::spawn_blocking(move || network.attach(&pod.sandbox_id, &pod.netns, &ports)).await;
        attached.map_err(|e| e.to_string())?.map(|ip| vec![ip]).map_err(|e| e.to_string())
    }

    async fn close_ports(&self, sandbox_id: &str) -> Result<(), String> {
        self.0.close_ports(sandbox_id).map_err(|e| e.to_string())
    }

    async fn detach(&self, sandbox_id: &str, _netns: Option<&Path>) -> Result<(), String> {
        let (network, id) = (self.0.clone(), sandbox_id.to_owned());
        let detached = tokio::task::spawn_blocking(move || network.detach(&id)).await;
        detached.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

fn host_port(mapping: &PortMapping) -> HostPort {
    HostPort {
        protocol: match mapping.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
            PortProtocol::Sctp => Protocol::Sctp,
        },
        ip: mapping.host_ip,
        port: mapping.host_port,
        pod_port: mapping.container_port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_buses() {
        for (address, expect) in [
            ("unix:path=/run/bus", Some("/run/bus")),
            ("tcp:host=a,port=1;unix:path=/b,guid=12", Some("/b")),
            ("unix:guid=12,path=/c", Some("/c")),
            ("unix:abstract=/d", None),
            ("", None),
        ] {
            assert_eq!(bus_socket(address), expect.map(PathBuf::from), "{address}");
        }
    }
}
