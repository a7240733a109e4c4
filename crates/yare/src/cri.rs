//! A container runtime behind CRI in the embedded one's place: its connection, and whose network its pods get.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{sync::watch, task::JoinHandle};
use yare_net::{
    PodNetwork,
    cni::{
        self,
        install::{Places, Whose},
    },
};
use yare_node::{
    NetworkReadiness,
    config::Configuration,
    trace::{self, Tracer},
};
use yare_runtime::{CgroupDriver, CriConfig, CriRuntime, Runtime as _};

use crate::{cli::CriArgs, kubelet_arg};

/// The socket of the pod network below the run directory.
const SOCKET: &str = "cni.sock";
/// Where runtimes look for network configurations and plugins, if they say nothing else.
const CONFIGURATIONS: &str = "/etc/cni/net.d";
const PLUGINS: &str = "/opt/cni/bin";
/// Between looks at whether the runtime's network is ready, which it cannot tell by itself: upstream's period, and
/// sooner while it is not.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
const STATUS_SOON: Duration = Duration::from_millis(50);

/// A connected runtime.
pub struct Connected {
    /// The runtime.
    pub runtime: CriRuntime,
    /// Whose network its pods get.
    pub network: Whose,
    /// What answers the runtime's network plugin.
    pub plugin: JoinHandle<()>,
}

/// What the kubelet is told of the runtime.
#[derive(Debug, Clone)]
pub struct Told {
    /// How cgroups are named, where the runtime cannot say it itself.
    cgroup_driver: CgroupDriver,
    /// How long its answers may take.
    request_timeout: Duration,
    cni_bin_dir: Option<PathBuf>,
    cni_conf_dir: Option<PathBuf>,
}

impl Told {
    /// From flags and `KubeletConfiguration`.
    pub fn new(arguments: &kubelet_arg::Arguments, kubelet: &Configuration) -> anyhow::Result<Self> {
        let document = kubelet.document();
        let text = |field: &str| document[field].as_str().unwrap_or_default();
        let request_timeout = match text("runtimeRequestTimeout") {
            "" => Duration::from_secs(120),
            text => {
                let given = text.parse::<jiff::SignedDuration>().ok();
                let given = given.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
                given.with_context(|| format!("runtimeRequestTimeout {text:?} is not positive"))?
            }
        };
        Ok(Self {
            cgroup_driver: match text("cgroupDriver") {
                "" | "cgroupfs" => CgroupDriver::Cgroupfs,
                "systemd" => CgroupDriver::Systemd,
                other => bail!("cgroupDriver {other:?} is neither cgroupfs nor systemd"),
            },
            request_timeout,
            cni_bin_dir: arguments.cni_bin_dir.clone(),
            cni_conf_dir: arguments.cni_conf_dir.clone(),
        })
    }
}

fn config(args: &CriArgs, endpoint: &str, told: &Told) -> anyhow::Result<CriConfig> {
    let socket = |flag: &str, endpoint: &str| {
        yare_runtime::socket_of(endpoint).map_err(|e| anyhow::anyhow!("--{flag}: {e}"))
    };
    let mut config = CriConfig::new(socket("container-runtime-endpoint", endpoint)?);
    if let Some(images) = &args.image_service_endpoint {
        config.image_socket = socket("image-service-endpoint", images)?;
    }
    config.cgroup_driver = told.cgroup_driver;
    config.request_timeout = told.request_timeout;
    Ok(config)
}

/// Where the runtime looks for its network: as it was told to us, as it says itself, or the usual places.
async fn places(runtime: &CriRuntime, told: &Told) -> anyhow::Result<Places> {
    let info = runtime.info().await.context("container runtime")?;
    // containerd's way to show its configuration.
    let shown: serde_json::Value =
        info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let place = |given: &Option<PathBuf>, key: &str, usual: &str| {
        let shown = || shown["cni"][key].as_str().filter(|p| !p.is_empty()).map(PathBuf::from);
        given.clone().or_else(shown).unwrap_or_else(|| usual.into())
    };
    Ok(Places {
        configurations: place(&told.cni_conf_dir, "confDir", CONFIGURATIONS),
        plugins: place(&told.cni_bin_dir, "binDir", PLUGINS),
    })
}

/// Connects to the runtime and leads it to `pods`, unless the machine has a network for it already.
pub async fn connect(
    args: &CriArgs,
    endpoint: &str,
    run_dir: &Path,
    told: &Told,
    pods: &Arc<PodNetwork>,
    tracer: Option<&Tracer>,
) -> anyhow::Result<Connected> {
    let mut config = config(args, endpoint, told)?;
    config.observer = tracer.map(trace::of_runtime);
    let runtime = CriRuntime::connect(config).await?;
    let places = places(&runtime, told).await?;
    let socket = run_dir.join(SOCKET);
    let plugin =
        cni::server::serve(&socket, pods.clone()).with_context(|| format!("socket {}", socket.display()))?;
    let own = std::env::current_exe().context("this program's file")?;
    let network = cni::install::install(&places, &own, &socket).context("pod network of the runtime")?;
    Ok(Connected { runtime, network, plugin })
}

/// Whether the runtime's pods can have a network.
async fn network_of(runtime: &CriRuntime) -> NetworkReadiness {
    let status = match runtime.status().await {
        Ok(status) => status,
        // That it is away is told elsewhere.
        Err(error) => return NetworkReadiness::NotReady(error.to_string()),
    };
    match status.condition("NetworkReady") {
        Some(condition) if !condition.holds => NetworkReadiness::NotReady(condition.message.clone()),
        _ => NetworkReadiness::Ready,
    }
}

/// Follows the readiness of the runtime's network.
pub async fn follow_network(runtime: CriRuntime, readiness: watch::Sender<NetworkReadiness>) {
    let mut soon = STATUS_SOON;
    loop {
        let now = network_of(&runtime).await;
        soon = if now == NetworkReadiness::Ready { STATUS_SOON } else { (soon * 2).min(STATUS_PERIOD) };
        let wait = if now == NetworkReadiness::Ready { STATUS_PERIOD } else { soon };
        readiness.send_if_modified(|before| {
            let news = *before != now;
            *before = now;
            news
        });
        tokio::time::sleep(wait).await;
    }
}

/// Ends this node's pods in the runtime and takes our network's configuration away. Answers how many pods there
/// were, and what could not be ended.
pub async fn cleanup(
    args: &CriArgs,
    endpoint: &str,
    data_dir: &Path,
    run_dir: &Path,
) -> anyhow::Result<(usize, Vec<String>)> {
    let arguments = kubelet_arg::Arguments::parse(&args.kubelet_arg)?;
    let told = Told::new(&arguments, &arguments.load("", Vec::new())?)?;
    // Nobody else answers the runtime's plugin now. Addresses are taken back by the next server.
    let pods = Arc::new(PodNetwork::new(&data_dir.join("network")));
    let runtime = CriRuntime::connect(config(args, endpoint, &told)?).await?;
    let places = places(&runtime, &told).await?;
    let socket = run_dir.join(SOCKET);
    let plugin = cni::server::serve(&socket, pods).with_context(|| format!("socket {}", socket.display()))?;
    // Others' pods have no cgroup that we know.
    let ours = runtime.sandboxes().await?.into_iter().filter(|s| !s.cgroup_parent.is_empty());
    let (mut ended, mut failed) = (0, Vec::new());
    for sandbox in ours {
        ended += 1;
        if let Err(e) = runtime.remove_sandbox(&sandbox.id).await {
            failed.push(format!("sandbox {}: {e}", sandbox.id));
        }
    }
    runtime.remove_empty_cgroups(&yare_node::CGROUPS);
    plugin.abort();
    let _ = std::fs::remove_file(&socket);
    let own = std::env::current_exe().context("this program's file")?;
    cni::install::uninstall(&places, &own).context("pod network of the runtime")?;
    Ok((ended, failed))
}
