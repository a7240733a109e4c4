//! Rows about a pod's start in the runtime alone: sandbox, network, container. The embedded engine, and beside it, in
//! the same run and on the same pod network, Debian's containerd with runc over CRI.

use std::{
    net::IpAddr,
    path::Path,
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_trait::async_trait;
use yare_net::{
    PodNetwork,
    cni::{self, install::Places},
};
use yare_runtime::{
    ContainerConfig, CriConfig, CriRuntime, Engine, EngineConfig, PodNetworkRequest, Runtime, SandboxConfig,
};
use yare_testkit::{containerd, registry};

use crate::{
    Scale,
    table::{Table, complain, median, ms},
};

/// The image of the container: a shell's tools, of which it sleeps.
const IMAGE: &str = "yare.local/busybox:1";
/// The pods' range, of which nobody else knows in this network namespace.
const RANGE: &str = "10.77.0.0/24";
/// How many times as long the other one takes, at least.
const RATIO: f64 = 7.0;

/// Milliseconds: until a pod's container runs, and until the pod is gone.
struct Figures {
    start: f64,
    end: f64,
}

/// Measures both.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let binary = std::path::absolute(binary)?;
    let ours = embedded(&binary, scale.pods).await.context("embedded engine")?;
    let what = "runtime: sandbox, network and container";
    table.at_most(format!("{what}, {} in turn: p50", scale.pods), ours.start, 20.0, "ms");
    table.note("runtime: the same taken away: p50", ours.end, "ms");
    if let Err(error) = containerd::find() {
        complain(&format!("no ratio to containerd: {error:#}"));
        return Ok(());
    }
    let theirs = beside(&binary, scale.pods).await.context("containerd")?;
    table.note(
        format!("containerd + runc over CRI: {}: p50", &what["runtime: ".len()..]),
        theirs.start,
        "ms",
    );
    table.note("containerd + runc over CRI: the same taken away: p50", theirs.end, "ms");
    table.at_least("runtime: as quick as containerd + runc", theirs.start / ours.start, RATIO, "times");
    Ok(())
}

/// Directories of one runtime under measurement. Paths of sockets must be short.
fn directories() -> anyhow::Result<(tempfile::TempDir, tempfile::TempDir)> {
    let data = tempfile::Builder::new().prefix("yare-bench-").tempdir()?;
    let run = tempfile::Builder::new().prefix("yb").rand_bytes(4).tempdir_in("/run")?;
    Ok((data, run))
}

fn network(directory: &Path) -> anyhow::Result<Arc<PodNetwork>> {
    let pods = PodNetwork::new(&directory.join("network"));
    pods.configure(RANGE.parse().map_err(anyhow::Error::msg)?, |_| false)?;
    Ok(Arc::new(pods))
}

async fn embedded(binary: &Path, count: usize) -> anyhow::Result<Figures> {
    let (data, run) = directories()?;
    let mut config = EngineConfig::new(data.path(), run.path());
    config.shim_command = vec![binary.into(), "shim".into()];
    config.network = Some(Arc::new(Attach(network(data.path())?)));
    let engine = Engine::open(config).await?;
    let archive = yare_testkit::busybox(data.path(), IMAGE)?;
    let images = engine.images();
    tokio::task::spawn_blocking(move || images.import(&archive, None)).await??;
    let figures = lives(&engine, data.path(), count).await;
    engine.close().await;
    let cgroups = [&["kubepods/besteffort", "kubepods"][..], &yare_runtime::CGROUPS].concat();
    yare_runtime::remove_empty_cgroups(&cgroups, Duration::from_secs(2)).await;
    figures
}

/// containerd's process, ended when this is dropped; its pods are gone by then.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn beside(binary: &Path, count: usize) -> anyhow::Result<Figures> {
    let (data, run) = directories()?;
    registry::serve_here(containerd::REGISTRY_PORT, containerd::IMAGES)?;
    containerd::prepare(data.path(), run.path())?;
    let process = Process(containerd::command(data.path(), run.path())?.spawn()?);
    let socket = run.path().join("cni.sock");
    let plugin = cni::server::serve(&socket, network(data.path())?)?;
    let own = data.path().join("containerd/cni");
    let places = Places { configurations: own.join("net.d"), plugins: own.join("bin") };
    cni::install::install(&places, binary, &socket)?;
    let runtime = CriRuntime::connect(CriConfig::new(containerd::socket(run.path()))).await?;
    runtime.pull_image(IMAGE, None, None).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while runtime.status().await?.condition("NetworkReady").is_none_or(|c| !c.holds) {
        anyhow::ensure!(Instant::now() < deadline, "its network is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let figures = lives(&runtime, data.path(), count).await;
    runtime.remove_empty_cgroups(&["kubepods/besteffort", "kubepods"]);
    plugin.abort();
    drop(process);
    figures
}

/// Starts and ends pods, one after the other. The first one warms up.
async fn lives(runtime: &dyn Runtime, directory: &Path, count: usize) -> anyhow::Result<Figures> {
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for number in 0..=count {
        let uid = format!("bench-{}-{number}", std::process::id());
        let sandbox = SandboxConfig {
            name: format!("pod-{number}"),
            namespace: "bench".into(),
            hostname: format!("pod-{number}"),
            log_directory: directory.join("log").join(&uid),
            cgroup_parent: format!("kubepods/besteffort/pod{uid}"),
            uid,
            ..SandboxConfig::default()
        };
        let container = ContainerConfig {
            name: "main".into(),
            image: IMAGE.into(),
            command: vec!["sleep".into(), "1000".into()],
            log_path: "main.log".into(),
            ..ContainerConfig::default()
        };
        let began = Instant::now();
        let id = runtime.run_sandbox(sandbox).await?;
        let started = async {
            let container = runtime.create_container(&id, container).await?;
            runtime.start_container(&container).await?;
            anyhow::Ok(Instant::now())
        };
        let started = started.await;
        let ending = Instant::now();
        runtime.stop_sandbox(&id).await?;
        runtime.remove_sandbox(&id).await?;
        let started = started?;
        if number > 0 {
            starts.push(ms(started - began));
            ends.push(ms(ending.elapsed()));
        }
    }
    Ok(Figures { start: median(&mut starts), end: median(&mut ends) })
}

/// The engine's view of the pod network, as the agent has it.
struct Attach(Arc<PodNetwork>);

#[async_trait]
impl yare_runtime::PodNetwork for Attach {
    async fn attach(&self, pod: PodNetworkRequest) -> Result<Vec<IpAddr>, String> {
        let network = self.0.clone();
        let attached =
            tokio::task::spawn_blocking(move || network.attach(&pod.sandbox_id, &pod.netns, &[])).await;
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
