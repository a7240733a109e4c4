//! A whole cluster: `yare server` with one node.

use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Namespace;

/// How long a server may take to be ready; far more than it needs.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How a cluster is set up.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Further flags of `yare server`.
    pub args: Vec<String>,
    /// Only the control plane.
    pub control_plane_only: bool,
}

/// A running cluster. Dropping it ends its processes and takes its containers away.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    options: Options,
    namespace: Namespace,
    directory: tempfile::TempDir,
    run_directory: tempfile::TempDir,
    server: Option<Child>,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts the server `binary` and waits until it is ready (and its node too).
    pub fn start(binary: impl AsRef<Path>, options: Options) -> anyhow::Result<Self> {
        // Paths of sockets must be short.
        let run_directory = tempfile::Builder::new().prefix("y").rand_bytes(4).tempdir_in("/run")?;
        let mut cluster = Self {
            binary: binary.as_ref().to_owned(),
            options,
            namespace: Namespace::new()?,
            directory: tempfile::Builder::new().prefix("yare-test-").tempdir()?,
            run_directory,
            server: None,
            kubectl: find_kubectl()?,
        };
        std::fs::write(cluster.path("resolv.conf"), "")?;
        cluster.launch()?;
        Ok(cluster)
    }

    /// A path below the cluster's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
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

    /// Starts the server (again) and waits until it is ready.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.path("server.log"))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .arg("--run-dir")
            .arg(self.run_directory.path())
            .arg("--log-dir")
            .arg(self.path("log"))
            .arg("--resolv-conf")
            .arg(self.path("resolv.conf"))
            .args(["--node-name", "node-1"])
            .args(&self.options.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.options.control_plane_only {
            command.arg("--disable-agent");
        }
        self.server = Some(self.namespace.run(|| command.spawn())??);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = self.server.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("yare server ended: {status}\n{}", self.log());
            }
            let up = self.kubeconfig().exists() && self.kubectl(&["get", "--raw", "/readyz"]).is_ok();
            let node = self.options.control_plane_only
                || self.kubectl(&["wait", "--for=condition=Ready", "node/node-1", "--timeout=1s"]).is_ok();
            if up && node {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready within {START_TIMEOUT:?}\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.path("server.log")) {
            // What cannot be read is not shown.
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// A command that runs as on the cluster's machine: in its network, with its kubeconfig.
    pub fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.directory.path());
        command
    }

    /// Runs `kubectl` and returns what it printed; a failure is an error with both outputs.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run(self.command(&self.kubectl).args(args))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            bail!("kubectl {}: {}\n{out}{err}", args.join(" "), output.status);
        }
        Ok(text(&output.stdout))
    }

    /// Runs `kubectl` with `input` on its standard input; success or not, both outputs.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<(ExitStatus, String, String)> {
        use std::io::Write as _;
        let mut command = self.command(&self.kubectl);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.namespace.run(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read its input closes it early.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status, text(output.stdout), text(output.stderr)))
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let (status, out, err) = self.kubectl_with(&["apply", "-f", "-"], manifest)?;
        if !status.success() {
            bail!("kubectl apply: {status}\n{out}{err}");
        }
        Ok(out)
    }

    /// Starts `kubectl` in the background, with its output captured.
    pub fn kubectl_spawn(&self, args: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.command(&self.kubectl);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.namespace.run(|| command.spawn())??)
    }

    /// Runs a command on the cluster's machine.
    pub fn run(&self, command: &mut Command) -> anyhow::Result<std::process::Output> {
        Ok(self.namespace.run(|| command.output())??)
    }

    /// `yare` with arguments, on this cluster's data.
    pub fn yare(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(&self.binary);
        command
            .args(args)
            .env("YARE_DATA_DIR", self.path("data"))
            .env("YARE_RUN_DIR", self.run_directory.path());
        let output = self.run(&mut command)?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("yare {}: {}\n{err}", args.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Imports an image with busybox under `name`.
    pub fn import_busybox(&self, name: &str) -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let archive = crate::busybox(directory.path(), name)?;
        self.yare(&["image", "import", &archive.display().to_string()]).map(drop)
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
                    return Err(error.context(format!("not within {timeout:?}\n{}", self.log())));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Ends the server with SIGTERM and waits for it.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM)?;
            server.wait()?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Best effort, each step: a test that failed must leave the machine clean all the same.
        let _ = self.kill();
        if !self.options.control_plane_only
            && let Err(error) = self.yare(&["cleanup"])
        {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}\n").as_bytes());
        }
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            for line in tail.iter().rev() {
                let _ =
                    std::io::Write::write_all(&mut std::io::stderr(), format!("server: {line}\n").as_bytes());
            }
        }
    }
}

/// The machine's `kubectl`, or the one that the project's script finds.
fn find_kubectl() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/kubectl");
    let output = Command::new(&script).output().with_context(|| script.display().to_string())?;
    if !output.status.success() {
        bail!("{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().into())
}
