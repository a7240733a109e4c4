//! One `yare server` under measurement: its directories, its process, the moments at which it is ready.
//! Dropping it ends the process and takes its containers away.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    client::{Access, Connection},
    process::Process,
    table,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often something is tried that nobody can announce.
const TRY_EVERY: Duration = Duration::from_millis(1);
const NODE: &str = "node-1";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// A server and its directories.
pub struct Server {
    binary: PathBuf,
    directory: tempfile::TempDir,
    run: tempfile::TempDir,
    agent: bool,
    flags: Vec<String>,
    child: Option<Child>,
    started: Instant,
}

impl Server {
    /// Starts a server with fresh directories, with a node or without.
    pub fn start(binary: &Path, agent: bool) -> anyhow::Result<Self> {
        Self::start_with(binary, agent, &[])
    }

    /// The same with further flags.
    pub fn start_with(binary: &Path, agent: bool, flags: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("yare-bench-").tempdir()?;
        // Paths of sockets must be short.
        let under = if Path::new("/run").is_dir() && agent { Path::new("/run") } else { directory.path() };
        let run = tempfile::Builder::new().prefix("yb").rand_bytes(4).tempdir_in(under)?;
        // A file of its own tells its processes apart, and a build in between changes nothing.
        let own = directory.path().join("yare");
        fs::hard_link(binary, &own)
            .or_else(|_| fs::copy(binary, &own).map(drop))
            .with_context(|| binary.display().to_string())?;
        fs::write(directory.path().join("resolv.conf"), "")?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut server =
            Self { binary: own, directory, run, agent, flags, child: None, started: Instant::now() };
        server.launch()?;
        Ok(server)
    }

    /// Starts the process (again) on the same directories.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.path("server.log"))?;
        let mut command = Command::new(&self.binary);
        command.arg("server").arg("--data-dir").arg(self.path("data"));
        command.arg("--write-kubeconfig").arg(self.path("kubeconfig"));
        command.arg("--run-dir").arg(self.run.path()).arg("--log-dir").arg(self.path("log"));
        command.arg("--resolv-conf").arg(self.path("resolv.conf"));
        command.args(["--node-name", NODE, "--bind-address", "127.0.0.1"]);
        if !self.agent {
            command.arg("--disable-agent");
        }
        command.args(&self.flags);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.started = Instant::now();
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file that it runs from.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Its process.
    pub fn process(&self) -> anyhow::Result<Process> {
        Ok(Process(self.child.as_ref().context("the server does not run")?.id()))
    }

    /// How to reach it, once it has written its kubeconfig.
    pub fn access(&self) -> anyhow::Result<Access> {
        Access::read(&self.path("kubeconfig"))
    }

    /// Waits until `/readyz` says ok; the time since the start of the process.
    pub async fn ready(&mut self) -> anyhow::Result<(Connection, Duration)> {
        let deadline = self.started + START_TIMEOUT;
        loop {
            let attempt = async {
                let mut connection = self.access()?.connect().await?;
                connection.get("/readyz").await?;
                anyhow::Ok(connection)
            };
            match timeout(START_TIMEOUT, attempt).await? {
                Ok(connection) => return Ok((connection, self.started.elapsed())),
                Err(error) => self.still_starts(error, deadline)?,
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// Waits until the node is Ready; the time since the start of the process. A node that was Ready before
    /// counts again from its first heartbeat that is not `old`.
    pub async fn node_ready(&mut self, client: &mut Connection, old: &str) -> anyhow::Result<Duration> {
        let path = format!("/api/v1/nodes?fieldSelector=metadata.name%3D{NODE}&watch=true&timeoutSeconds=60");
        let leases = format!("{LEASES}?watch=true&timeoutSeconds=60");
        let work = async {
            let mut watch = client.watch(&leases).await?;
            while renewed(&watch.event().await?["object"]).is_none_or(|time| time == old) {}
            let mut watch = client.watch(&path).await?;
            while !is_ready(&watch.event().await?["object"]) {}
            anyhow::Ok(self.started.elapsed())
        };
        timeout(START_TIMEOUT, work).await.with_context(|| format!("no node Ready\n{}", self.log_tail()))?
    }

    /// The node's last heartbeat.
    pub async fn heartbeat(&self, client: &mut Connection) -> anyhow::Result<String> {
        let lease = client.get_value(&format!("{LEASES}/{NODE}")).await?;
        Ok(renewed(&lease).context("a lease without renewTime")?.to_owned())
    }

    fn still_starts(&mut self, error: anyhow::Error, deadline: Instant) -> anyhow::Result<()> {
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            bail!("yare server ended: {status}\n{}", self.log_tail());
        }
        if Instant::now() > deadline {
            return Err(error.context(format!("not ready in {START_TIMEOUT:?}\n{}", self.log_tail())));
        }
        Ok(())
    }

    /// The last lines that it wrote.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends the process with SIGTERM; containers go on. The time that it took.
    pub async fn stop(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            while child.try_wait()?.is_none() {
                if start.elapsed() > STOP_TIMEOUT {
                    child.kill()?;
                    child.wait()?;
                    bail!("the server did not end in {STOP_TIMEOUT:?}");
                }
                sleep(TRY_EVERY).await;
            }
        }
        Ok(start.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Best effort, each step: a failed measurement must leave the machine clean all the same.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.agent {
            let mut command = Command::new(&self.binary);
            command.arg("cleanup").arg("--data-dir").arg(self.path("data"));
            command.arg("--run-dir").arg(self.run.path()).stdin(Stdio::null()).stdout(Stdio::null());
            if !command.status().is_ok_and(|status| status.success()) {
                table::complain("yare cleanup failed");
            }
        }
    }
}

fn renewed(lease: &Value) -> Option<&str> {
    lease["spec"]["renewTime"].as_str()
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
