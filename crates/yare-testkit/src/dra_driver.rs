//! A driver of dynamic resources: real gRPC servers that register with a kubelet, make claims ready, and tell of health.
//!
//! Its messages are written down here once more, so that a wrong number in the node's own shows.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use futures::stream;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use yare_grpc::{Server, Status};

/// A device that the driver gives for a claim.
#[derive(Debug, Clone, Default)]
pub struct ClaimedDevice {
    /// Requests of the claim that it serves; none: all.
    pub requests: Vec<String>,
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub name: String,
    /// Its CDI names.
    pub cdi: Vec<String>,
}

/// How the driver behaves. Tests change it while it runs.
#[derive(Debug, Clone, Default)]
pub struct DraBehaviour {
    /// What it gives for claims, by the claim's name.
    pub devices: BTreeMap<String, Vec<ClaimedDevice>>,
    /// What it gives for all others.
    pub others: Vec<ClaimedDevice>,
    /// It refuses claims, in these words.
    pub refuses: Option<String>,
    /// It cannot take claims back, in these words.
    pub refuses_back: Option<String>,
}

struct Shared {
    behaviour: Mutex<DraBehaviour>,
    calls: Mutex<Vec<String>>,
    /// What the kubelet said of the registration.
    registered: Mutex<Vec<(bool, String)>>,
    /// Pool, device, health (0 unknown, 1 healthy, 2 unhealthy), message.
    health: watch::Sender<Vec<(String, String, i32, String)>>,
}

/// See the module. It stops when it is dropped.
pub struct DraDriver {
    socket: PathBuf,
    registration: PathBuf,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl DraDriver {
    /// Starts a driver whose sockets are below a kubelet's directory.
    pub fn start(kubelet_dir: &Path, name: &str, behaviour: DraBehaviour) -> anyhow::Result<Self> {
        Self::start_with(kubelet_dir, name, &["v1.DRAPlugin"], behaviour)
    }

    /// The same, with versions of the test's choice.
    pub fn start_with(
        kubelet_dir: &Path,
        name: &str,
        versions: &[&str],
        behaviour: DraBehaviour,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            calls: Mutex::default(),
            registered: Mutex::default(),
            health: watch::channel(Vec::new()).0,
        });
        let socket = kubelet_dir.join("plugins").join(name).join("dra.sock");
        let registration = kubelet_dir.join("plugins_registry").join(format!("{name}-reg.sock"));
        let listen = |path: &Path| -> anyhow::Result<UnixListener> {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let _ = std::fs::remove_file(path);
            UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))
        };
        let info = Info {
            kind: "DRAPlugin".to_owned(),
            name: name.to_owned(),
            endpoint: socket.display().to_string(),
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        };
        let driver = server(&shared).serve(listen(&socket)?, std::future::pending());
        let registrar = registrar(info, &shared).serve(listen(&registration)?, std::future::pending());
        let tasks = vec![tokio::spawn(driver), tokio::spawn(registrar)];
        Ok(DraDriver { socket, registration, shared, tasks })
    }

    /// Changes its behaviour.
    pub fn change(&self, change: impl FnOnce(&mut DraBehaviour)) {
        change(&mut self.shared.behaviour.lock());
    }

    /// Tells of its devices' health: pool, device, 0 unknown, 1 healthy or 2 unhealthy, and a message.
    pub fn tell_health(&self, health: Vec<(String, String, i32, String)>) {
        self.shared.health.send_replace(health);
    }

    /// What it was asked, in order: `prepare claim`, `unprepare claim`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().clone()
    }

    /// What the kubelet said of its registration, in order.
    pub fn registered(&self) -> Vec<(bool, String)> {
        self.shared.registered.lock().clone()
    }
}

impl Drop for DraDriver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = std::fs::remove_file(&self.registration);
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn registrar(info: Info, shared: &Arc<Shared>) -> Server {
    let shared = shared.clone();
    Server::new()
        .unary("/pluginregistration.Registration/GetInfo", move |_: Empty| {
            let info = info.clone();
            async move { Ok::<_, Status>(info) }
        })
        .unary("/pluginregistration.Registration/NotifyRegistrationStatus", move |status: Registered| {
            shared.registered.lock().push((status.registered, status.error));
            async move { Ok::<_, Status>(Empty {}) }
        })
}

fn server(shared: &Arc<Shared>) -> Server {
    let mut server = Server::new();
    for (prepare, unprepare) in [
        (
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources",
        ),
        (
            "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources",
            "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources",
        ),
    ] {
        let (giving, taking) = (shared.clone(), shared.clone());
        server = server
            .unary(prepare, move |claims: Claims| {
                let answer = claims.claims.into_iter().map(|claim| {
                    giving.calls.lock().push(format!("prepare {}", claim.name));
                    (claim.uid, give(&giving.behaviour.lock(), &claim.name))
                });
                let answer = Prepared { claims: answer.collect() };
                async move { Ok(answer) }
            })
            .unary(unprepare, move |claims: Claims| {
                let error = taking.behaviour.lock().refuses_back.clone().unwrap_or_default();
                let answer = claims.claims.into_iter().map(|claim| {
                    taking.calls.lock().push(format!("unprepare {}", claim.name));
                    (claim.uid, Taken { error: error.clone() })
                });
                let answer = Unprepared { claims: answer.collect() };
                async move { Ok(answer) }
            });
    }
    let health = shared.clone();
    server.stream("/v1alpha1.DRAResourceHealth/NodeWatchResources", move |_: Empty| {
        let mut reports = health.health.subscribe();
        reports.mark_changed();
        async move {
            Ok(stream::unfold(reports, async |mut reports| {
                reports.changed().await.ok()?;
                let report = report(&reports.borrow_and_update());
                Some((Ok(report), reports))
            }))
        }
    })
}

fn give(behaviour: &DraBehaviour, claim: &str) -> Given {
    if let Some(why) = &behaviour.refuses {
        return Given { devices: Vec::new(), error: why.clone() };
    }
    let device = |d: &ClaimedDevice| Device {
        requests: d.requests.clone(),
        pool: d.pool.clone(),
        name: d.name.clone(),
        cdi: d.cdi.clone(),
    };
    let devices = behaviour.devices.get(claim).unwrap_or(&behaviour.others).iter().map(device).collect();
    Given { devices, error: String::new() }
}

fn report(health: &[(String, String, i32, String)]) -> Report {
    let device = |(pool, name, health, message): &(String, String, i32, String)| Health {
        device: Some(Identifier { pool: pool.clone(), name: name.clone() }),
        health: *health,
        timeout_seconds: 600,
        message: message.clone(),
    };
    Report { devices: health.iter().map(device).collect() }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Info {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Registered {
    #[prost(bool, tag = "1")]
    registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Claims {
    #[prost(message, repeated, tag = "1")]
    claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Claim {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Prepared {
    #[prost(map = "string, message", tag = "1")]
    claims: HashMap<String, Given>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Given {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Device {
    #[prost(string, repeated, tag = "1")]
    requests: Vec<String>,
    #[prost(string, tag = "2")]
    pool: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    cdi: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Unprepared {
    #[prost(map = "string, message", tag = "1")]
    claims: HashMap<String, Taken>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Taken {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Report {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Health>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(message, optional, tag = "1")]
    device: Option<Identifier>,
    #[prost(int32, tag = "2")]
    health: i32,
    #[prost(int64, tag = "4")]
    timeout_seconds: i64,
    #[prost(string, tag = "5")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Identifier {
    #[prost(string, tag = "1")]
    pool: String,
    #[prost(string, tag = "2")]
    name: String,
}
