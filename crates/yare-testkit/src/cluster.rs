//! A whole cluster: `yare server` with one node.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Https, Namespace,
    containerd::{self, Containerd},
    kubectl,
    leftovers::{self, Owned},
    machine::{self, Machine},
    warden::Warden,
};

/// How long a server may take to be ready; far more than it needs.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of the server's log that a failed test shows.
const LOG_LINES: usize = 80;

/// How a cluster is set up.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Further flags of `yare server`; `DIRECTORY` stands for the cluster's own.
    pub args: Vec<String>,
    /// Only the control plane.
    pub control_plane_only: bool,
    /// What runs its containers.
    pub runtime: Runtime,
    /// Whether other machines can join ([`Cluster::machine`]).
    pub joinable: bool,
}

/// A container runtime.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Yare's own.
    #[default]
    Embedded,
    /// Debian's containerd, over CRI.
    Containerd,
}

impl Options {
    /// Only the control plane: no root is needed for it, and no container runs.
    pub fn control_plane() -> Self {
        Self { control_plane_only: true, ..Self::default() }
    }

    /// With this runtime.
    pub fn on(runtime: Runtime) -> Self {
        Self { runtime, ..Self::default() }
    }

    /// With further flags, on a machine that others can join.
    pub fn joinable(args: &[&str]) -> Self {
        Self { joinable: true, ..Self::with(args) }
    }

    /// With further flags.
    pub fn with(args: &[&str]) -> Self {
        Self { args: args.iter().map(|a| (*a).to_owned()).collect(), ..Self::default() }
    }
}

/// A running cluster. Dropping it ends its processes, takes its containers away, and fails the test if
/// something stays.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    options: Options,
    namespace: Namespace,
    directory: PathBuf,
    run_directory: PathBuf,
    server: Option<Child>,
    containerd: Option<Containerd>,
    warden: Warden,
    kubectl: PathBuf,
}

impl Cluster {
    /// Runs a test on a cluster of its own; its error is shown with the end of the server's log.
    pub fn test(
        binary: impl AsRef<Path>,
        options: Options,
        test: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) {
        let mut cluster = Self::start(binary, options).expect("a cluster");
        if let Err(error) = test(&mut cluster) {
            panic!("{error:#}");
        }
    }

    /// Starts the server `binary` and waits until it is ready (and its node too).
    pub fn start(binary: impl AsRef<Path>, options: Options) -> anyhow::Result<Self> {
        let kubectl = kubectl::find()?;
        if options.runtime == Runtime::Containerd {
            containerd::find()?;
        }
        let namespace = Namespace::new()?;
        if options.joinable {
            machine::prepare(&namespace)?;
        }
        let directory = tempfile::Builder::new().prefix("yare-test-").tempdir()?.keep();
        // Paths of sockets must be short.
        let run_directory = tempfile::Builder::new().prefix("y").rand_bytes(4).tempdir_in("/run")?.keep();
        let warden = Warden::start(
            &namespace,
            binary.as_ref(),
            &directory.join("pid"),
            &directory,
            &run_directory,
            (options.runtime == Runtime::Containerd).then(|| containerd::socket(&run_directory)),
        )?;
        let mut cluster = Self {
            binary: binary.as_ref().to_owned(),
            options,
            namespace,
            directory,
            run_directory,
            server: None,
            containerd: None,
            warden,
            kubectl,
        };
        if cluster.options.runtime == Runtime::Containerd {
            let started = Containerd::start(&cluster.namespace, &cluster.directory, &cluster.run_directory)?;
            cluster.containerd = Some(started);
        }
        std::fs::write(cluster.path("resolv.conf"), "")?;
        cluster.launch()?;
        Ok(cluster)
    }

    /// A machine with a link to this one, that has not joined yet; its name ends with a digit.
    pub fn machine(&self, name: &str) -> anyhow::Result<Machine> {
        Machine::new(self, &self.binary, name)
    }

    /// A path below the cluster's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// The network namespace that stands for the machine.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Where `kubectl` is.
    pub fn kubectl_path(&self) -> &Path {
        &self.kubectl
    }

    /// `yare server` as this cluster runs it, with its output in the log.
    pub fn server_command(&self) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(self.path("server.log"))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .arg("--run-dir")
            .arg(&self.run_directory)
            .arg("--log-dir")
            .arg(self.path("log"))
            .arg("--resolv-conf")
            .arg(self.path("resolv.conf"))
            .args(["--node-name", "node-1"])
            // Whether this machine's own disk is nearly full is nothing that a test should depend on.
            .arg("--kubelet-arg=eviction-hard=memory.available<100Mi")
            .arg("--kubelet-arg=image-gc-high-threshold=100")
            // What is in the cluster's own directory is not known before there is one.
            .args(self.options.args.iter().map(|a| a.replace("DIRECTORY", &self.directory.to_string_lossy())))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.options.joinable {
            command.args(["--node-ip", machine::SERVER]);
        }
        if self.options.control_plane_only {
            command.arg("--disable-agent");
        }
        if self.options.runtime == Runtime::Containerd {
            let socket = containerd::socket(&self.run_directory);
            command.arg("--container-runtime-endpoint").arg(format!("unix://{}", socket.display()));
        }
        Ok(command)
    }

    /// Starts the server (again) and waits until it is ready.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts the server (again) and does not wait.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = self.server_command()?;
        let server = self.namespace.run(|| command.spawn())??;
        std::fs::write(self.path("pid"), server.id().to_string())?;
        self.server = Some(server);
        Ok(())
    }

    /// Waits until the server is ready (and its node too).
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = self.server.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("yare server ended: {status}\n{}", self.log());
            }
            let node = |this: &Self| {
                this.options.control_plane_only
                    || this.kubectl(&["wait", "--for=condition=Ready", "node/node-1", "--timeout=1s"]).is_ok()
            };
            let up = self.kubeconfig().exists() && self.kubectl(&["get", "--raw", "/readyz"]).is_ok();
            if up && node(self) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not ready within {START_TIMEOUT:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the server wrote, its end.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.path("server.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// A command that runs as on the cluster's machine, with its kubeconfig; see [`Self::run`].
    pub fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.directory)
            .current_dir(&self.directory);
        command
    }

    /// Runs a command on the cluster's machine.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<Output> {
        Ok(self.namespace.run(|| command.output())??)
    }

    /// `yare` with arguments, on this cluster's data.
    pub fn yare(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(&self.binary);
        command.args(args).env("YARE_DATA_DIR", self.path("data")).env("YARE_RUN_DIR", &self.run_directory);
        let output = self.run(&mut command)?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "yare {}: {}\n{err}", args.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Imports an image with busybox under `name`.
    ///
    /// Over CRI nothing can be imported: then it is pulled, and must be `yare.local/busybox:1`.
    pub fn import_busybox(&self, name: &str) -> anyhow::Result<()> {
        if self.options.runtime == Runtime::Containerd {
            return self.yare(&["image", "pull", name]).map(drop);
        }
        let directory = tempfile::tempdir()?;
        let archive = crate::busybox(directory.path(), name)?;
        self.yare(&["image", "import", &archive.display().to_string()]).map(drop)
    }

    /// An HTTPS client of the API server with a bearer token.
    pub fn https(&self, token: &str) -> anyhow::Result<Https> {
        let ca = std::fs::read_to_string(self.path("data/tls/ca.crt")).context("the cluster's authority")?;
        Https::new(SocketAddr::from(([127, 0, 0, 1], 6443)), &ca, token)
    }

    /// Where a service port answers inside the cluster.
    pub fn service(&self, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
        let ip = self.field(&format!("service/{name}"), ".spec.clusterIP")?;
        Ok(SocketAddr::new(ip.parse().with_context(|| format!("service {name}: {ip:?}"))?, port))
    }

    /// `GET` over plain HTTP from the cluster's machine.
    pub fn http(&self, address: SocketAddr, path: &str) -> anyhow::Result<crate::Answer> {
        self.namespace.run(|| crate::get(address, path))?
    }

    /// Calls `check` until it succeeds, for `timeout`.
    pub fn eventually<T>(
        &self,
        timeout: Duration,
        mut check: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            match check() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("not within {timeout:?}")));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The processes inside the pods, shims included.
    pub fn pod_processes(&self) -> BTreeSet<u32> {
        Owned::of(None, &self.directory, &self.run_directory).processes()
    }

    /// Kills containerd and starts it again.
    pub fn restart_containerd(&mut self) -> anyhow::Result<()> {
        let containerd = self.containerd.as_mut().context("this cluster has no containerd")?;
        containerd.restart(&self.namespace, &self.directory, &self.run_directory)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
            std::fs::write(self.path("pid"), "")?;
        }
        Ok(())
    }

    /// Ends the server with SIGTERM and waits for it.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(i32::try_from(server.id())?), Signal::SIGTERM)?;
            let status = server.wait()?;
            std::fs::write(self.path("pid"), "")?;
            ensure!(status.success(), "SIGTERM ends the server with {status}\n{}", self.log());
        }
        Ok(())
    }

    /// Takes everything away; what stays, one line each.
    fn take_away(&mut self) -> Vec<String> {
        let owned = Owned::of(self.namespace.inode().ok(), &self.directory, &self.run_directory);
        let mut problems: Vec<String> = self.kill().err().map(|e| format!("{e:#}")).into_iter().collect();
        let cleanup = self.warden.finish();
        if let Some(mut containerd) = self.containerd.take() {
            containerd.ended();
        }
        problems.extend(cleanup.as_ref().err().map(|e| format!("{e:#}")));
        let left = owned.remaining_in_time();
        if !left.is_empty() {
            problems.extend(cleanup.map(|said| format!("cleanup: {said}")));
        }
        problems.extend(left.into_iter().map(|l| format!("left behind: {l}")));
        problems
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let log = self.log();
        let problems = self.take_away();
        leftovers::tell("server", &log, &problems);
    }
}
