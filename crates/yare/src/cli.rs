//! Commands and flags. Every flag of the server has an environment variable `YARE_*` and a place in its
//! configuration file ([`crate::config`]).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{ArgAction, ArgMatches, Args, CommandFactory as _, Parser, Subcommand};
use yare_apiserver::zpages::CLASSIFIED;
use yare_runtime::ulimit::Ulimit;

use crate::{
    audit::AuditArgs, auth::AuthArgs, encryption::EncryptionArgs, outgoing::OutgoingArgs,
    requests::RequestArgs, serving::ServingArgs, signing::SigningArgs,
};

/// All of Kubernetes in one binary.
#[derive(Parser, Debug)]
#[command(name = "yare", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The flags of the command that was given, with their defaults, for `/flagz`. A flag whose variable is not shown in
/// the help holds a secret and is not shown here either.
pub fn flags(matches: &ArgMatches) -> BTreeMap<String, String> {
    let cli = Cli::command();
    let Some((name, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let Some(command) = cli.find_subcommand(name) else { return BTreeMap::new() };
    let mut out = BTreeMap::new();
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        let values = matches.try_get_raw(arg.get_id().as_str()).ok().flatten().into_iter().flatten();
        let values = values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
        let value = match arg.get_action() {
            _ if arg.is_hide_env_values_set() => CLASSIFIED.to_owned(),
            ArgAction::Append => format!("[{values}]"),
            _ => values,
        };
        out.insert(long.to_owned(), value);
    }
    out
}

/// What `yare` does.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the control plane and, unless --disable-agent, this machine as a node.
    Server(Box<ServerArgs>),
    /// Join this machine to a cluster as a node.
    Agent(Box<AgentArgs>),
    /// Manage the tokens with which machines join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Manage the images of this node.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Print the administrator's kubeconfig.
    Kubeconfig(DataDir),
    /// End all pods of this node and remove their mounts and network; needs a stopped server.
    Cleanup(CleanupArgs),
    /// Serve the demonstration page (what runs inside the image yare.local/hello).
    #[command(hide = true)]
    Hello(HelloArgs),
}

/// Where state is.
#[derive(Args, Debug, Clone)]
pub struct DataDir {
    /// Directory for all state.
    #[arg(long, default_value = "/var/lib/yare", env = "YARE_DATA_DIR", value_parser = absolute)]
    pub data_dir: PathBuf,
}

/// Flags of `yare server`.
#[derive(Args, Debug, Clone)]
#[command(args_override_self = true)]
pub struct ServerArgs {
    /// YAML file with flags by name; by default /etc/yare/config.yaml, if it is there. Flags given here go
    /// first.
    #[arg(long, env = "YARE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where state is, and this machine as a node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Port of the Kubernetes API; 0 takes a free one.
    #[arg(long, default_value_t = 6443, env = "YARE_HTTPS_LISTEN_PORT")]
    pub https_listen_port: u16,
    /// Addresses of pods.
    #[arg(long, default_value = "10.42.0.0/16", env = "YARE_CLUSTER_CIDR")]
    pub cluster_cidr: String,
    /// How much of them a node gets: the length of its prefix. By default 24, or 64 of IPv6.
    #[arg(long, value_name = "BITS", env = "YARE_NODE_CIDR_MASK_SIZE")]
    pub node_cidr_mask_size: Option<u8>,
    /// Addresses of services: a range, or two of different families with `,` between them.
    #[arg(long, default_value = "10.43.0.0/16", env = "YARE_SERVICE_CIDR")]
    pub service_cidr: String,
    /// Ports of nodes that services may have, both ends included.
    #[arg(long, default_value = "30000-32767", env = "YARE_SERVICE_NODE_PORT_RANGE", value_parser = ports)]
    pub service_node_port_range: (u16, u16),
    /// Address of the cluster DNS; by default the tenth of the service range.
    #[arg(long, env = "YARE_CLUSTER_DNS")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster.
    #[arg(long, default_value = "cluster.local", env = "YARE_CLUSTER_DOMAIN")]
    pub cluster_domain: String,
    /// Where to write the administrator's kubeconfig beside DATA_DIR/kubeconfig.
    #[arg(long, env = "YARE_WRITE_KUBECONFIG")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Its mode, octal.
    #[arg(long, default_value = "600", env = "YARE_WRITE_KUBECONFIG_MODE", value_parser = octal)]
    pub write_kubeconfig_mode: Octal,
    /// Further names and addresses in the server's certificate.
    #[arg(long, env = "YARE_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// A bearer token for the administrator, beside the kubeconfig's certificate.
    #[arg(long, env = "YARE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Admission plugins that run beside those that do by default.
    #[arg(long, env = "YARE_ENABLE_ADMISSION_PLUGINS", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins that do not run.
    #[arg(long, env = "YARE_DISABLE_ADMISSION_PLUGINS", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// File with an AdmissionConfiguration: Pod Security defaults and exemptions, limited resources, event rates.
    #[arg(long, env = "YARE_ADMISSION_CONTROL_CONFIG_FILE")]
    pub admission_control_config_file: Option<PathBuf>,
    /// How long pods stay on a node that is not ready, where they do not say.
    #[arg(long, default_value_t = 300, env = "YARE_DEFAULT_NOT_READY_TOLERATION_SECONDS")]
    pub default_not_ready_toleration_seconds: i64,
    /// How long pods stay on a node that is not reachable, where they do not say.
    #[arg(long, default_value_t = 300, env = "YARE_DEFAULT_UNREACHABLE_TOLERATION_SECONDS")]
    pub default_unreachable_toleration_seconds: i64,
    /// Directory on each node for the volumes of the StorageClass local-path; by default `storage` in the data
    /// directory.
    #[arg(long, env = "YARE_DEFAULT_LOCAL_STORAGE_PATH")]
    pub default_local_storage_path: Option<PathBuf>,
    /// Built-in API versions to serve or not: api/all, api/ga, api/beta, api/alpha, GROUP/VERSION or
    /// GROUP/VERSION/RESOURCE, each with =true or =false.
    #[arg(long, env = "YARE_RUNTIME_CONFIG", value_delimiter = ',')]
    pub runtime_config: Vec<String>,
    /// As which version of Kubernetes the API behaves: features and API versions that came later are not there. From
    /// 1.33 to 1.36.
    #[arg(long, env = "YARE_EMULATED_VERSION", value_delimiter = ',')]
    pub emulated_version: Vec<String>,
    /// The oldest version that other components have: new expressions may use no more than it knows. The one before
    /// the emulated version where not given.
    #[arg(long, env = "YARE_MIN_COMPATIBILITY_VERSION", value_delimiter = ',')]
    pub min_compatibility_version: Vec<String>,
    /// Of what is served in a beta version, serve the better versions that came after the emulated version, too.
    #[arg(long, env = "YARE_EMULATION_FORWARD_COMPATIBLE")]
    pub emulation_forward_compatible: bool,
    /// Serve what --runtime-config names although it came after the emulated version.
    #[arg(long, env = "YARE_RUNTIME_CONFIG_EMULATION_FORWARD_COMPATIBLE")]
    pub runtime_config_emulation_forward_compatible: bool,
    /// Run the control plane only. Needs no root.
    #[arg(long, env = "YARE_DISABLE_AGENT")]
    pub disable_agent: bool,
    /// A flag of upstream's API server, NAME=VALUE (max-requests-inflight=800); several times, or with `;` between
    /// them. Most of them are flags here, too.
    #[arg(long, env = "YARE_KUBE_APISERVER_ARG", value_delimiter = ';')]
    pub kube_apiserver_arg: Vec<String>,
    /// About where the API server is found, and how it is spoken to.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// About how it speaks to nodes and to other API servers.
    #[command(flatten)]
    pub outgoing: OutgoingArgs,
    /// About requests.
    #[command(flatten)]
    pub requests: RequestArgs,
    /// About what is written down of them.
    #[command(flatten)]
    pub audit: AuditArgs,
    /// About what rests encrypted.
    #[command(flatten)]
    pub encryption: EncryptionArgs,
    /// About who may come in and what they may do.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// About what is signed.
    #[command(flatten)]
    pub signing: SigningArgs,
}

/// Flags about this machine as a node, of `yare server` and `yare agent`.
#[derive(Args, Debug, Clone)]
pub struct NodeArgs {
    /// Where state is.
    #[command(flatten)]
    pub data: DataDir,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0", env = "YARE_BIND_ADDRESS")]
    pub bind_address: IpAddr,
    /// Port of the node's own API; 0 takes a free one.
    #[arg(long, default_value_t = 10250, env = "YARE_KUBELET_PORT")]
    pub kubelet_port: u16,
    /// Name of this node; by default the machine's.
    #[arg(long, env = "YARE_NODE_NAME")]
    pub node_name: Option<String>,
    /// Address of this node; by default the one it listens on, and where that is all of them, the one towards the
    /// default route.
    #[arg(long, env = "YARE_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Labels of this node, KEY=VALUE.
    #[arg(long, env = "YARE_NODE_LABEL", value_delimiter = ',')]
    pub node_label: Vec<String>,
    /// How many pods this node takes.
    #[arg(long, default_value_t = 110, env = "YARE_MAX_PODS")]
    pub max_pods: u32,
    /// About the container runtime.
    #[command(flatten)]
    pub cri: CriArgs,
    /// Sockets and namespaces of containers.
    #[arg(long, default_value = "/run/yare", env = "YARE_RUN_DIR", value_parser = absolute)]
    pub run_dir: PathBuf,
    /// Logs of pods.
    #[arg(long, default_value = "/var/log", env = "YARE_LOG_DIR", value_parser = absolute)]
    pub log_dir: PathBuf,
    /// The node's resolver configuration.
    #[arg(long, default_value = "/etc/resolv.conf", env = "YARE_RESOLV_CONF")]
    pub resolv_conf: PathBuf,
    /// Registries (HOST:PORT) that are spoken to over plain HTTP.
    #[arg(long, env = "YARE_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// A limit of each process in a container, NAME=SOFT[:HARD] (nofile=1024:524288, core=0, memlock=-1); by default
    /// nofile=1048576, or as many as this machine lets us have. Of the embedded runtime alone.
    #[arg(
        long,
        env = "YARE_DEFAULT_ULIMIT",
        value_delimiter = ',',
        value_name = "NAME=LIMIT",
        conflicts_with = "container_runtime_endpoint"
    )]
    pub default_ulimit: Vec<Ulimit>,
    /// A flag of upstream's service proxy, NAME=VALUE: healthz-bind-address, metrics-bind-address,
    /// conntrack-max-per-core, conntrack-min; several times, or with `;` between them.
    #[arg(long, env = "YARE_KUBE_PROXY_ARG", value_delimiter = ';')]
    pub kube_proxy_arg: Vec<String>,
    /// Components that do not run: dns, service-proxy; of a server also scheduler, local-storage, or a controller's
    /// name.
    #[arg(long, env = "YARE_DISABLE", value_delimiter = ',')]
    pub disable: Vec<String>,
    /// Features to switch, NAME=true or NAME=false; AllAlpha and AllBeta stand for all of a stage.
    #[arg(long, env = "YARE_FEATURE_GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
}

/// Flags of `yare agent`.
#[derive(Args, Debug, Clone)]
#[command(args_override_self = true)]
pub struct AgentArgs {
    /// YAML file with flags by name; by default /etc/yare/config.yaml, if it is there. Flags given here go
    /// first.
    #[arg(long, env = "YARE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The API server: https://HOST:PORT.
    #[arg(long, env = "YARE_SERVER")]
    pub server: String,
    /// What lets this machine join: a bootstrap token, with or without the hash of the cluster's authority in front
    /// of it (K10HASH::ID.SECRET), as `yare token create` prints it. Of no more use once the node has its
    /// certificate.
    #[arg(long, env = "YARE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the token.
    #[arg(long, env = "YARE_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Key of the cluster's authority, sha256:HEX as kubeadm prints it; several times for several.
    #[arg(long, env = "YARE_DISCOVERY_TOKEN_CA_CERT_HASH", value_delimiter = ',')]
    pub discovery_token_ca_cert_hash: Vec<String>,
    /// This machine as a node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses of pods; this and what follows is by default as the server says.
    #[arg(long, env = "YARE_CLUSTER_CIDR")]
    pub cluster_cidr: Option<String>,
    /// Addresses of services.
    #[arg(long, env = "YARE_SERVICE_CIDR")]
    pub service_cidr: Option<String>,
    /// Address of the cluster DNS.
    #[arg(long, env = "YARE_CLUSTER_DNS")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster.
    #[arg(long, env = "YARE_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
}

/// Token commands.
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Make a token with which machines join, and print it.
    Create {
        /// How long it is good; 0: for ever.
        #[arg(long, default_value = "24h", value_parser = crate::token::ttl)]
        ttl: std::time::Duration,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
    /// List tokens, without their secrets.
    Ls {
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
    /// Remove tokens: nobody joins with them any more. Nodes that have joined stay.
    Rm {
        /// Tokens, or what is before their dot.
        #[arg(required = true)]
        tokens: Vec<String>,
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
}

/// Flags about the container runtime, and about the kubelet that speaks to it.
#[derive(Args, Debug, Clone, Default)]
pub struct CriArgs {
    /// Socket of a container runtime that speaks CRI v1, unix:///run/containerd/containerd.sock; without it, the
    /// embedded one runs.
    #[arg(long, env = "YARE_CONTAINER_RUNTIME_ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// Socket of its image service, where that is another one.
    #[arg(long, env = "YARE_IMAGE_SERVICE_ENDPOINT", requires = "container_runtime_endpoint")]
    pub image_service_endpoint: Option<String>,
    /// A flag of upstream's kubelet, NAME=VALUE (pod-max-pids=1000); several times, or with `;` between them.
    #[arg(long, env = "YARE_KUBELET_ARG", value_delimiter = ';')]
    pub kubelet_arg: Vec<String>,
}

/// A file mode.
#[derive(Clone, Copy, Debug)]
pub struct Octal(pub u32);

/// A path that means the same wherever a process stands: shims and plugins have directories of their own.
fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| e.to_string())
}

/// `30000-32767`, or `30000+2767`: from which port on how many more.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let ends = match (text.split_once('-'), text.split_once('+')) {
        (Some((from, to)), _) => number(from).zip(number(to)),
        (_, Some((from, more))) => {
            number(from).zip(number(more)).and_then(|(from, more)| Some((from, from.checked_add(more)?)))
        }
        _ => None,
    };
    ends.filter(|(from, to)| 0 < *from && from <= to)
        .ok_or_else(|| format!("{text:?} is not a range of ports such as 30000-32767"))
}

fn octal(text: &str) -> Result<Octal, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .map(Octal)
        .ok_or_else(|| format!("{text:?} is not a file mode such as 600"))
}

/// Image commands.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Bring an image in from an OCI layout or a docker archive.
    Import {
        /// Directory or tar file (also compressed).
        path: PathBuf,
        /// Name for it, where the archive has none or another is wanted.
        #[arg(long)]
        name: Option<String>,
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
    /// List images.
    Ls {
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
    /// Remove an image.
    Rm {
        /// Name or identifier.
        image: String,
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
    /// Pull an image from its registry.
    Pull {
        /// Name.
        image: String,
        /// Registries (HOST:PORT) that are spoken to over plain HTTP.
        #[arg(long, value_delimiter = ',')]
        insecure_registry: Vec<String>,
        /// Where state is.
        #[command(flatten)]
        data: DataDir,
    },
}

/// Flags of `yare cleanup`.
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Where state is.
    #[command(flatten)]
    pub data: DataDir,
    /// Sockets and namespaces of containers.
    #[arg(long, default_value = "/run/yare", env = "YARE_RUN_DIR", value_parser = absolute)]
    pub run_dir: PathBuf,
    /// About the container runtime, as it was said to the server.
    #[command(flatten)]
    pub cri: CriArgs,
}

/// Flags of `yare hello`.
#[derive(Args, Debug)]
pub struct HelloArgs {
    /// Where to listen.
    #[arg(long, default_value = "[::]:8080", env = "HELLO_LISTEN")]
    pub listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_show_defaults_and_no_secrets() {
        let args =
            ["yare", "server", "--token=secret", "--disable=dns", "--disable=scheduler", "--disable-agent"];
        let flags = flags(&Cli::command().get_matches_from(args));
        for (name, value) in [
            ("token", CLASSIFIED),
            ("disable", "[dns,scheduler]"),
            ("disable-agent", "true"),
            ("https-listen-port", "6443"),
            ("config", ""),
            ("enable-aggregator-routing", "true"),
        ] {
            assert_eq!(flags.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!format!("{flags:?}").contains("secret"));
    }

    #[test]
    fn ranges_of_ports() {
        for (text, range) in [
            ("30000-32767", Some((30000, 32767))),
            ("30000+10", Some((30000, 30010))),
            ("8000-8000", Some((8000, 8000))),
            ("65000+1000", None),
            ("2-1", None),
            ("0-10", None),
            ("30000", None),
            ("a-b", None),
        ] {
            assert_eq!(ports(text).ok(), range, "{text}");
        }
    }

    #[test]
    fn directories_are_the_same_from_everywhere() {
        let args = [
            "yare",
            "agent",
            "--server=https://127.0.0.1:6443",
            "--data-dir=data",
            "--run-dir=./run",
            "--log-dir=/var/log",
        ];
        let cli = Cli::try_parse_from(args).unwrap();
        let Command::Agent(agent) = cli.command else { panic!("{:?}", cli.command) };
        let here = std::env::current_dir().unwrap();
        assert_eq!(agent.node.data.data_dir, here.join("data"));
        assert_eq!(agent.node.run_dir, here.join("run"));
        assert_eq!(agent.node.log_dir, std::path::Path::new("/var/log"));
    }
}
