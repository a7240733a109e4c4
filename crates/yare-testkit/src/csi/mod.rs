//! A CSI driver: a real gRPC server on a unix socket (identity, controller and node services), with volumes that
//! are directories and image files of this machine. Tests script what it can do and how it fails, and read what
//! it was asked.
//!
//! It registers with a node as drivers do, by a second socket in the node's `plugins_registry`. It runs in a
//! thread of its own; stopped and started again it keeps its volumes, like a driver whose pod is replaced.

mod backing;
mod controller;
mod node;
mod sidecars;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
pub use yare_grpc::Code;
use yare_grpc::{Server, Status};
pub use yare_node::csi::proto;
use yare_node::{
    csi::proto::{ControllerCapability, NodeCapability},
    plugins::proto::{GET_INFO, NOTIFY, Nothing, PluginInfo, RegistrationStatus},
};

use backing::Backing;
pub use sidecars::Sidecars;

/// What the driver can do and what it says of its node. Tests change it while it runs.
#[derive(Clone, Debug)]
pub struct CsiBehaviour {
    /// What its node service can do.
    pub node: BTreeSet<NodeCapability>,
    /// What its controller service can do.
    pub controller: BTreeSet<ControllerCapability>,
    /// Its name for the node.
    pub node_id: String,
    /// Volumes that it can serve on the node; 0: it does not say.
    pub max_volumes: i64,
    /// Labels that it wants on the node.
    pub topology: BTreeMap<String, String>,
    /// Why its volumes are not well.
    pub abnormal: Option<String>,
    /// What methods do instead of their work, by name (`NodeStageVolume`).
    pub faults: BTreeMap<String, CsiFault>,
    /// Versions that it says it speaks when it registers.
    pub versions: Vec<String>,
}

impl Default for CsiBehaviour {
    fn default() -> Self {
        Self {
            node: [
                NodeCapability::StageUnstageVolume,
                NodeCapability::GetVolumeStats,
                NodeCapability::ExpandVolume,
                NodeCapability::VolumeCondition,
                NodeCapability::SingleNodeMultiWriter,
            ]
            .into(),
            controller: [
                ControllerCapability::CreateDeleteVolume,
                ControllerCapability::PublishUnpublishVolume,
                ControllerCapability::GetCapacity,
                ControllerCapability::ExpandVolume,
            ]
            .into(),
            node_id: "test-node".into(),
            max_volumes: 0,
            topology: BTreeMap::new(),
            abnormal: None,
            faults: BTreeMap::new(),
            versions: vec!["1.0.0".into()],
        }
    }
}

/// How a method fails.
#[derive(Clone, Debug)]
pub enum CsiFault {
    /// It does nothing and fails.
    Fails(Code, String),
    /// It does its work and fails all the same.
    DoneButFails(Code, String),
    /// It does nothing and never answers.
    Hangs,
}

/// A call that the driver got.
#[derive(Clone, Debug, PartialEq)]
pub struct CsiCall {
    /// `NodeStageVolume`
    pub method: &'static str,
    /// The volume's id; empty where a method has none.
    pub volume: String,
    /// The request's fields: `target`, `staging`, `readonly`, `context`, `publish_context`, `secrets`, `mode`,
    /// `fs_type`, `flags`, `group`, `block`, `bytes`, `path`, `node`.
    pub fields: Value,
}

struct Shared {
    name: String,
    behaviour: Mutex<CsiBehaviour>,
    calls: Mutex<Vec<CsiCall>>,
    notified: Mutex<Vec<RegistrationStatus>>,
    backing: Backing,
}

impl Shared {
    /// Notes a call and lets it go as the test wants: `Err` at once, or the error to answer in the end.
    async fn enter(
        &self,
        method: &'static str,
        volume: &str,
        fields: Value,
    ) -> Result<Result<(), Status>, Status> {
        self.calls.lock().push(CsiCall { method, volume: volume.to_owned(), fields });
        let fault = self.behaviour.lock().faults.get(method).cloned();
        match fault {
            None => Ok(Ok(())),
            Some(CsiFault::Fails(code, message)) => Err(Status::new(code, message)),
            Some(CsiFault::DoneButFails(code, message)) => Ok(Err(Status::new(code, message))),
            Some(CsiFault::Hangs) => std::future::pending().await,
        }
    }
}

/// A CSI driver. It stops when it is dropped, and takes away its volumes and every mount it made.
pub struct CsiDriver {
    shared: Arc<Shared>,
    /// The node's directory, below which its sockets are.
    kubelet: PathBuf,
    /// What its sockets are called.
    socket: String,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    _directory: TempDir,
}

impl CsiDriver {
    /// A driver that does not run yet, for the node whose directory is `kubelet` (`<data dir>/agent`).
    pub fn new(name: &str, kubelet: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("yare-csi-").tempdir()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            behaviour: Mutex::default(),
            calls: Mutex::default(),
            notified: Mutex::default(),
            backing: Backing::new(directory.path()),
        });
        let socket = name.to_owned();
        Ok(Self { shared, kubelet: kubelet.to_owned(), socket, running: None, _directory: directory })
    }

    /// A driver that runs and registers.
    pub fn started(name: &str, kubelet: &Path) -> anyhow::Result<Self> {
        let mut driver = Self::new(name, kubelet)?;
        driver.start()?;
        Ok(driver)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Gives its sockets another name than the driver's, before it starts.
    pub fn socket_name(&mut self, name: &str) {
        name.clone_into(&mut self.socket);
    }

    /// The socket of its services.
    pub fn endpoint(&self) -> PathBuf {
        self.kubelet.join("plugins").join(&self.socket).join("csi.sock")
    }

    fn registry(&self) -> PathBuf {
        self.kubelet.join("plugins_registry").join(format!("{}-reg.sock", self.socket))
    }

    /// Changes what it does.
    pub fn change(&self, change: impl FnOnce(&mut CsiBehaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// Lets a method fail, or mends it.
    pub fn fault(&self, method: &str, fault: Option<CsiFault>) {
        self.change(|b| match fault {
            Some(fault) => drop(b.faults.insert(method.to_owned(), fault)),
            None => drop(b.faults.remove(method)),
        });
    }

    /// All calls so far but questions (capabilities, information, statistics), in order.
    pub fn calls(&self) -> Vec<CsiCall> {
        let asks = |method: &str| method.contains("Get") || method == "Probe";
        self.shared.calls.lock().iter().filter(|c| !asks(c.method)).cloned().collect()
    }

    /// The calls of one method, in order.
    pub fn calls_of(&self, method: &str) -> Vec<CsiCall> {
        self.shared.calls.lock().iter().filter(|c| c.method == method).cloned().collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.shared.calls.lock().clear();
    }

    /// What nodes said of its registration: whether it was taken, and else why not.
    pub fn registrations(&self) -> Vec<(bool, String)> {
        self.shared.notified.lock().iter().map(|s| (s.plugin_registered, s.error.clone())).collect()
    }

    /// Makes a volume as `CreateVolume` does, and answers its id.
    pub fn create(&self, name: &str, bytes: i64, block: bool) -> anyhow::Result<String> {
        Ok(self.shared.backing.create(name, bytes, block, None)?)
    }

    /// Where the files of a volume are.
    pub fn files(&self, volume: &str) -> PathBuf {
        self.shared.backing.directory(volume)
    }

    /// Where the driver mounted something that is still mounted.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.shared.backing.mounted()
    }

    /// Listens and registers.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let services = listen(&self.endpoint())?;
        let registry = listen(&self.registry())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (stop, shared) = (CancellationToken::new(), self.shared.clone());
        let endpoint = self.endpoint().display().to_string();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let (Ok(services), Ok(registry)) =
                    (UnixListener::from_std(services), UnixListener::from_std(registry))
                else {
                    return;
                };
                tokio::join!(
                    service(&shared).serve(services, stopped.clone().cancelled_owned()),
                    registration(&shared, endpoint).serve(registry, stopped.clone().cancelled_owned()),
                );
            });
            // Calls that hang end here.
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Stops, and takes its sockets away: its node forgets it.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            for socket in [self.registry(), self.endpoint()] {
                let _ = std::fs::remove_file(socket);
            }
            stop.cancel();
            let _ = thread.join();
        }
    }
}

impl Drop for CsiDriver {
    fn drop(&mut self) {
        self.stop();
        self.shared.backing.release();
    }
}

fn listen(socket: &Path) -> anyhow::Result<std::os::unix::net::UnixListener> {
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket)
        .with_context(|| format!("listen on {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn service(shared: &Arc<Shared>) -> Server {
    let server = controller::identity(shared, Server::new());
    node::service(shared, controller::service(shared, server))
}

fn registration(shared: &Arc<Shared>, endpoint: String) -> Server {
    let (info, notified) = (shared.clone(), shared.clone());
    Server::new()
        .unary(GET_INFO, move |_: Nothing| {
            let info = PluginInfo {
                kind: "CSIPlugin".into(),
                name: info.name.clone(),
                endpoint: endpoint.clone(),
                supported_versions: info.behaviour.lock().versions.clone(),
            };
            async move { Ok(info) }
        })
        .unary(NOTIFY, move |status: RegistrationStatus| {
            notified.notified.lock().push(status);
            async move { Ok(Nothing {}) }
        })
}
