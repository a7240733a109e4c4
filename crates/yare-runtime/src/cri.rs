//! A container runtime that is reached over CRI v1 (containerd, CRI-O) as a [`Runtime`].
//!
//! In: the trait's operations. Out: calls over the runtime's socket ([`messages`]), worded by [`map`]. What the
//! runtime holds is asked of it every time; kept here is only which sandbox a container belongs to, which never
//! changes and which CRI's status of a container leaves out. The runtime may restart at any time: a call then fails
//! with `Unavailable`, and the next one connects anew. When containers end is learnt in [`events`], the streams of
//! exec, attach and port forwarding are those of [`streams`].
//!
//! The pod's own cgroup is the kubelet's under CRI, so it is made, limited and removed here.

mod events;
mod images;
mod map;
mod messages;
mod pods;
mod stats;
mod streams;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::broadcast;
use yare_grpc::{Client, Code, Observer, Status};

use crate::Runtime;
use crate::api::*;
use crate::cgroup::Cgroups;
use crate::error::{Result, RuntimeError};
pub use map::CgroupDriver;
use messages as cri;

/// The largest answer that is read: a list of many containers.
const ANSWER_MAX_BYTES: usize = 16 << 20;
/// For what ends when it ends, a pull or a command: against a runtime that never answers.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How long the runtime may take to come up beside this process.
const CONNECT_PATIENCE: Duration = Duration::from_secs(120);
/// How deep cgroups of a pod are looked at: containers may have made some of their own.
const CGROUP_DEPTH: u32 = 16;
/// The version that upstream's kubelet says it speaks.
const KUBE_API_VERSION: &str = "0.1.0";

macro_rules! method {
    (runtime $name:literal) => {
        concat!("/runtime.v1.RuntimeService/", $name)
    };
    (image $name:literal) => {
        concat!("/runtime.v1.ImageService/", $name)
    };
}
use method;

/// How a runtime is reached.
#[derive(Clone)]
pub struct CriConfig {
    /// The runtime's socket.
    pub runtime_socket: PathBuf,
    /// The image service's socket; usually the same.
    pub image_socket: PathBuf,
    /// How long a call may take; upstream's `--runtime-request-timeout`.
    pub request_timeout: Duration,
    /// How cgroups are named where the runtime cannot say it (before containerd 2.0 and CRI-O 1.28).
    pub cgroup_driver: CgroupDriver,
    /// Between looks at all containers while nothing tells that one ended.
    pub relist_period: Duration,
    /// Who is told of calls; none: nobody.
    pub observer: Option<Arc<dyn Observer>>,
}

impl CriConfig {
    /// Upstream's defaults for one socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        Self {
            image_socket: socket.clone(),
            runtime_socket: socket,
            request_timeout: Duration::from_secs(120),
            cgroup_driver: CgroupDriver::Cgroupfs,
            relist_period: Duration::from_secs(1),
            observer: None,
        }
    }
}

/// The socket of an endpoint, `unix:///run/containerd/containerd.sock`. A bare path will do.
pub fn socket_of(endpoint: &str) -> std::result::Result<PathBuf, String> {
    let path = match endpoint.split_once("://") {
        Some(("unix", path)) => path,
        Some((other, _)) => return Err(format!("protocol {other:?} not supported: only unix:///PATH is")),
        None => endpoint,
    };
    if !path.starts_with('/') {
        return Err(format!("{endpoint:?} is not a socket such as unix:///run/containerd/containerd.sock"));
    }
    Ok(path.into())
}

/// A runtime behind a socket. Cheap to clone.
#[derive(Clone)]
pub struct CriRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Client,
    images: Client,
    timeout: Duration,
    relist_period: Duration,
    driver: CgroupDriver,
    cgroups: Cgroups,
    /// Where hierarchies of cgroups are mounted: a runtime joins more of them than we do.
    hierarchies: Vec<PathBuf>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Which sandbox a container is in.
    sandbox_of: Mutex<BTreeMap<ContainerId, SandboxId>>,
    /// The cgroup of a sandbox's pod.
    group_of: Mutex<BTreeMap<SandboxId, PathBuf>>,
}

/// What a question was about, for errors.
#[derive(Clone, Copy)]
struct About<'a>(&'static str, &'a str);

/// Of nothing that could be missing.
const NOTHING: About<'static> = About("", "");

impl About<'_> {
    fn error(self, status: &Status) -> RuntimeError {
        let text = || yare_grpc::describe(status);
        match status.code() {
            Code::NotFound if !self.0.is_empty() => {
                RuntimeError::NotFound { kind: self.0, id: self.1.to_owned() }
            }
            Code::InvalidArgument => RuntimeError::InvalidArgument(text()),
            Code::FailedPrecondition => RuntimeError::FailedPrecondition(text()),
            Code::DeadlineExceeded => RuntimeError::DeadlineExceeded(text()),
            Code::Unavailable => RuntimeError::Unavailable(text()),
            _ => RuntimeError::Remote(text()),
        }
    }
}

impl CriRuntime {
    /// Connects to a runtime, waiting for it to come up, and begins to watch it.
    pub async fn connect(config: CriConfig) -> Result<Self> {
        let client = |socket: &Path| {
            let client = Client::unix(socket).answers_up_to(ANSWER_MAX_BYTES);
            match &config.observer {
                Some(observer) => client.observed(observer.clone()),
                None => client,
            }
        };
        let runtime = client(&config.runtime_socket);
        let images = match config.image_socket == config.runtime_socket {
            true => runtime.clone(),
            false => client(&config.image_socket),
        };
        let first: cri::VersionResponse = runtime
            .clone()
            .waiting()
            .call(
                method!(runtime "Version"),
                cri::VersionRequest { version: KUBE_API_VERSION.into() },
                CONNECT_PATIENCE,
            )
            .await
            .map_err(|status| unsuitable(&config.runtime_socket, &status))?;
        tracing::debug!(
            runtime = first.runtime_name,
            version = first.runtime_version,
            "container runtime over CRI"
        );
        let asked =
            runtime.call(method!(runtime "RuntimeConfig"), cri::Nothing {}, config.request_timeout).await;
        let driver = match asked {
            Ok(cri::RuntimeConfigResponse { linux: Some(linux) }) => {
                match cri::CgroupDriver::try_from(linux.cgroup_driver) {
                    Ok(cri::CgroupDriver::Cgroupfs) => CgroupDriver::Cgroupfs,
                    _ => CgroupDriver::Systemd,
                }
            }
            Ok(_) => config.cgroup_driver,
            Err(status) if status.code() == Code::Unimplemented => config.cgroup_driver,
            Err(status) => return Err(NOTHING.error(&status)),
        };
        let inner = Arc::new(Inner {
            runtime,
            images,
            timeout: config.request_timeout,
            relist_period: config.relist_period,
            driver,
            cgroups: Cgroups::detect(),
            hierarchies: hierarchies(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            events: broadcast::channel(1024).0,
            sandbox_of: Mutex::default(),
            group_of: Mutex::default(),
        });
        tokio::spawn(events::follow(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// The runtime's own configuration, where it shows it: JSON by name (containerd: `config`).
    pub async fn info(&self) -> Result<BTreeMap<String, String>> {
        let request = cri::StatusRequest { verbose: true };
        let answer: cri::StatusResponse = self.inner.ask(method!(runtime "Status"), request, NOTHING).await?;
        Ok(answer.info)
    }

    /// Removes cgroups in which nothing is left, the inner ones first: the parents of those that pods had.
    pub fn remove_empty_cgroups(&self, groups: &[&str]) {
        for group in groups.iter().filter_map(|group| self.inner.cgroup(group)) {
            self.inner.remove_cgroup(&group);
        }
    }
}

/// Where cgroups are mounted, of either version.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Removes a directory of cgroups, the inner ones first. One with processes stays. `true`: it is gone.
fn remove_empty(dir: &Path, depth: u32) -> bool {
    let inner = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in inner.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()) && depth < CGROUP_DEPTH) {
        remove_empty(&entry.path(), depth + 1);
    }
    match std::fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Why what listens there is no runtime for us.
fn unsuitable(socket: &Path, status: &Status) -> RuntimeError {
    let text = yare_grpc::describe(status);
    if status.code() == Code::Unimplemented {
        return RuntimeError::FailedPrecondition(format!(
            "validate CRI v1 runtime API for endpoint \"unix://{}\": {text}",
            socket.display()
        ));
    }
    RuntimeError::Unavailable(format!("container runtime at unix://{}: {text}", socket.display()))
}

impl Inner {
    async fn ask<Q, R>(&self, method: &'static str, request: Q, about: About<'_>) -> Result<R>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.ask_for(method, request, about, self.timeout).await
    }

    async fn ask_for<Q, R>(
        &self,
        method: &'static str,
        request: Q,
        about: About<'_>,
        timeout: Duration,
    ) -> Result<R>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.runtime.call(method, request, timeout).await.map_err(|status| about.error(&status))
    }

    /// Asks for something to be gone, or to have ended: fine when it is.
    async fn ask_gone<Q: Message + Clone + 'static>(
        &self,
        method: &'static str,
        request: Q,
        about: About<'_>,
    ) -> Result<()> {
        match self.ask::<_, cri::Nothing>(method, request, about).await {
            Ok(cri::Nothing {}) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn raw_sandbox(&self, id: &str) -> Result<cri::SandboxStatus> {
        let about = About("sandbox", id);
        let answer: cri::SandboxStatusResponse = self
            .ask(method!(runtime "PodSandboxStatus"), cri::SandboxId { id: id.to_owned() }, about)
            .await?;
        answer.status.ok_or_else(|| RuntimeError::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    async fn list_sandboxes(&self, filter: Option<cri::SandboxFilter>) -> Result<Vec<cri::Sandbox>> {
        let request = cri::ListSandboxesRequest { filter };
        let answer: cri::ListSandboxesResponse =
            self.ask(method!(runtime "ListPodSandbox"), request, NOTHING).await?;
        Ok(answer.items)
    }

    async fn list_containers(&self, filter: Option<cri::ContainerFilter>) -> Result<Vec<cri::Container>> {
        let request = cri::ListContainersRequest { filter };
        let answer: cri::ListContainersResponse =
            self.ask(method!(runtime "ListContainers"), request, NOTHING).await?;
        let mut known = self.sandbox_of.lock();
        for container in &answer.containers {
            if !known.contains_key(&container.id) {
                known.insert(container.id.clone(), container.sandbox_id.clone());
            }
        }
        Ok(answer.containers)
    }

    /// Which sandbox a container is in.
    async fn sandbox_of(&self, id: &str) -> Result<SandboxId> {
        if let Some(known) = self.sandbox_of.lock().get(id) {
            return Ok(known.clone());
        }
        let filter = cri::ContainerFilter { id: id.to_owned(), ..cri::ContainerFilter::default() };
        let found = self.list_containers(Some(filter)).await?;
        found
            .into_iter()
            .find(|c| c.id == id)
            .map(|c| c.sandbox_id)
            .ok_or_else(|| RuntimeError::NotFound { kind: "container", id: id.to_owned() })
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        let about = About("container", id);
        let answer: cri::ContainerStatusResponse = self
            .ask(method!(runtime "ContainerStatus"), cri::ContainerId { id: id.to_owned() }, about)
            .await?;
        let status =
            answer.status.ok_or_else(|| RuntimeError::NotFound { kind: "container", id: id.to_owned() })?;
        Ok(map::container::status(status, self.sandbox_of(id).await?))
    }

    /// The pod's cgroup, relative to the hierarchies' roots.
    fn cgroup(&self, parent: &str) -> Option<PathBuf> {
        let path = map::cgroup(parent, self.driver);
        Some(path.trim_start_matches('/')).filter(|p| !p.is_empty()).map(PathBuf::from)
    }

    /// Removes a cgroup, with what is empty in it, wherever the runtime made it. `true`: it is gone.
    fn remove_cgroup(&self, group: &Path) -> bool {
        let left = self.hierarchies.iter().filter(|hierarchy| !remove_empty(&hierarchy.join(group), 0));
        left.count() == 0
    }

    fn emit(&self, event: RuntimeEvent) {
        // Nobody listening is fine: events are hints.
        let _ = self.events.send(event);
    }

    /// What is gone from the runtime is forgotten here.
    fn forget_all_but(&self, sandboxes: &BTreeSet<&str>, containers: &BTreeSet<&str>) {
        self.sandbox_of.lock().retain(|id, _| containers.contains(id.as_str()));
        self.group_of.lock().retain(|id, _| sandboxes.contains(id.as_str()));
    }
}

#[async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        let request = cri::VersionRequest { version: KUBE_API_VERSION.into() };
        let answer: cri::VersionResponse =
            self.inner.ask(method!(runtime "Version"), request, NOTHING).await?;
        if answer.runtime_name.is_empty() || answer.runtime_version.is_empty() {
            return Err(RuntimeError::Remote("the runtime tells neither its name nor its version".into()));
        }
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api_version: answer.runtime_api_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let request = cri::StatusRequest { verbose: false };
        Ok(map::runtime_status(self.inner.ask(method!(runtime "Status"), request, NOTHING).await?))
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId> {
        self.inner.run_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.inner.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.inner.remove_sandbox(id).await
    }

    async fn sandbox(&self, id: &str) -> Result<SandboxStatus> {
        Ok(map::sandbox::status(self.inner.raw_sandbox(id).await?))
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        let mut list = Vec::new();
        for sandbox in self.inner.list_sandboxes(None).await? {
            match self.sandbox(&sandbox.id).await {
                Ok(status) => list.push(status),
                // Gone since.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<ContainerId> {
        Box::pin(self.inner.create_container(sandbox, config)).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.inner.start_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.inner.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.inner.remove_container(id).await
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        self.inner.container(id).await
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>> {
        let mut list = Vec::new();
        for container in self.inner.list_containers(None).await? {
            match self.inner.container(&container.id).await {
                Ok(status) => list.push(status),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let request =
            cri::UpdateContainerRequest { id: id.to_owned(), linux: Some(map::resources(&resources)) };
        let method = method!(runtime "UpdateContainerResources");
        self.inner.ask::<_, cri::Nothing>(method, request, About("container", id)).await.map(drop)
    }

    async fn checkpoint_container(&self, id: &str, location: &Path, timeout_s: i64) -> Result<()> {
        let request = cri::CheckpointRequest {
            id: id.to_owned(),
            location: location.to_string_lossy().into_owned(),
            timeout_s,
        };
        let method = method!(runtime "CheckpointContainer");
        // Writing out a large container takes its time, which the caller knows best.
        let patience = match u64::try_from(timeout_s) {
            Ok(0) | Err(_) => self.inner.timeout,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        let about = About("container", id);
        self.inner.ask_for::<_, cri::Nothing>(method, request, about, patience).await.map(drop)
    }

    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()> {
        self.inner.update_sandbox(id, resources).await
    }

    async fn exec_sync(&self, id: &str, argv: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        self.inner.exec_sync(id, argv, timeout).await
    }

    async fn exec(&self, id: &str, argv: Vec<String>, tty: bool, stdin: bool) -> Result<ExecSession> {
        self.inner.exec(id, argv, tty, stdin).await
    }

    async fn attach(&self, id: &str, tty: bool, stdin: bool) -> Result<ExecSession> {
        self.inner.attach(id, tty, stdin).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.inner.port_forward(sandbox, port).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = cri::ContainerId { id: id.to_owned() };
        let method = method!(runtime "ReopenContainerLog");
        self.inner.ask::<_, cri::Nothing>(method, request, About("container", id)).await.map(drop)
    }

    async fn stats(&self) -> Result<Vec<ContainerStats>> {
        self.inner.stats().await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        _progress: Option<ProgressFn>,
    ) -> Result<ImageId> {
        self.inner.pull_image(reference, auth).await
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageStatus>> {
        self.inner.image(reference).await
    }

    async fn images(&self) -> Result<Vec<ImageStatus>> {
        self.inner.list_images().await
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.inner.remove_image(reference).await
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        self.inner.image_fs().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (endpoint, path) in [
            ("unix:///run/containerd/containerd.sock", Some("/run/containerd/containerd.sock")),
            ("/run/crio/crio.sock", Some("/run/crio/crio.sock")),
            ("tcp://127.0.0.1:1", None),
            ("unix://relative", None),
            ("", None),
        ] {
            assert_eq!(socket_of(endpoint).ok(), path.map(PathBuf::from), "{endpoint}");
        }
    }

    #[test]
    fn codes_become_errors() {
        let about = About("sandbox", "s");
        for (status, code) in [
            (Status::not_found("x"), "NotFound"),
            (Status::invalid_argument("x"), "InvalidArgument"),
            (Status::failed_precondition("x"), "FailedPrecondition"),
            (Status::deadline_exceeded("x"), "DeadlineExceeded"),
            (Status::unavailable("x"), "Unavailable"),
            (Status::unknown("x"), "Unknown"),
        ] {
            assert_eq!(about.error(&status).code(), code);
        }
        let text = NOTHING.error(&Status::unknown("failed to set up network")).to_string();
        assert_eq!(text, "rpc error: code = Unknown desc = failed to set up network");
    }
}
