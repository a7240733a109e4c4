//! Further machines of a cluster: `yare agent` in a network namespace of its own, with a link to the server's.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Cluster, Namespace,
    leftovers::{self, Owned},
    warden::Warden,
};

/// The address of a server that machines join.
pub(crate) const SERVER: &str = "192.168.77.1";
/// How long a machine may take to join; far more than it needs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of the agent's log that a failed test shows.
const LOG_LINES: usize = 80;

/// A machine that has joined a cluster. Dropping it ends its processes, takes its containers away, and fails the test
/// if something stays.
#[derive(Debug)]
pub struct Machine {
    name: String,
    binary: PathBuf,
    namespace: Namespace,
    directory: PathBuf,
    run_directory: PathBuf,
    agent: Option<Child>,
    warden: Warden,
}

/// Gives a server the address that machines join.
pub(crate) fn prepare(namespace: &Namespace) -> anyhow::Result<()> {
    ip(namespace, &["address", "add", &format!("{SERVER}/32"), "dev", "lo"])
}

fn ip(namespace: &Namespace, args: &[&str]) -> anyhow::Result<()> {
    let output = namespace.run(|| Command::new("ip").args(args).output())??;
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Machine {
    /// A machine with a link to the cluster's server, on which nothing runs yet. Its name ends with a number of
    /// one digit.
    pub(crate) fn new(cluster: &Cluster, binary: &Path, name: &str) -> anyhow::Result<Self> {
        let number = name.chars().next_back().and_then(|c| c.to_digit(10)).unwrap_or(9);
        let address = format!("192.168.77.{}/32", 10 + number);
        let namespace = Namespace::new()?;
        // Made on the new machine, and one end of it given away: a name on the server's side may be taken.
        let (near, far) = ("eth0", format!("m{number}"));
        ip(&namespace, &["link", "add", near, "type", "veth", "peer", "name", &far])?;
        namespace.give_link(&far, cluster.namespace())?;
        ip(&namespace, &["address", "add", &address, "dev", near])?;
        ip(&namespace, &["link", "set", near, "up"])?;
        ip(&namespace, &["route", "add", SERVER, "dev", near, "scope", "link"])?;
        ip(&namespace, &["route", "add", "default", "via", SERVER, "dev", near, "onlink"])?;
        ip(cluster.namespace(), &["link", "set", &far, "up"])?;
        ip(cluster.namespace(), &["route", "add", &address, "dev", &far, "src", SERVER])?;
        let directory = tempfile::Builder::new().prefix("yare-test-").tempdir()?.keep();
        let run_directory = tempfile::Builder::new().prefix("y").rand_bytes(4).tempdir_in("/run")?.keep();
        let warden =
            Warden::start(&namespace, binary, &directory.join("pid"), &directory, &run_directory, None)?;
        std::fs::write(directory.join("resolv.conf"), "")?;
        Ok(Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            namespace,
            directory,
            run_directory,
            agent: None,
            warden,
        })
    }

    /// A path below the machine's own directory; the agent's data is in `data`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `yare agent` as it runs here, with its output in the log.
    pub fn agent_command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(self.path("agent.log"))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("agent")
            .arg("--server")
            .arg(format!("https://{SERVER}:6443"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--run-dir")
            .arg(&self.run_directory)
            .arg("--log-dir")
            .arg(self.path("log"))
            .arg("--resolv-conf")
            .arg(self.path("resolv.conf"))
            .args(["--node-name", &self.name])
            .arg("--kubelet-arg=eviction-hard=memory.available<100Mi")
            .arg("--kubelet-arg=image-gc-high-threshold=100")
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    /// Starts the agent.
    pub fn launch(&mut self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.agent_command(args)?;
        let agent = self.namespace.run(|| command.spawn())??;
        std::fs::write(self.path("pid"), agent.id().to_string())?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Waits until the cluster finds this node ready.
    pub fn wait_ready(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let node = format!("node/{}", self.name);
        loop {
            if let Some(status) = self.agent.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("yare agent ended: {status}\n{}", self.log());
            }
            if cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=1s"]).is_ok() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} has not joined within {JOIN_TIMEOUT:?}\n{}",
                self.name,
                self.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs an agent that must end by itself without success; what it wrote.
    pub fn refused(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.agent_command(args)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.namespace.run(|| command.output())??;
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        ensure!(!output.status.success(), "yare agent {} succeeds: {said}", args.join(" "));
        Ok(said)
    }

    /// `yare` with arguments, on this machine's data.
    pub fn yare(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(args).env("YARE_DATA_DIR", self.path("data")).env("YARE_RUN_DIR", &self.run_directory);
        let output = self.namespace.run(|| command.output())??;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "yare {}: {}\n{err}", args.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Imports an image with busybox under `name`.
    pub fn import_busybox(&self, name: &str) -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let archive = crate::busybox(directory.path(), name)?;
        self.yare(&["image", "import", &archive.display().to_string()]).map(drop)
    }

    /// Ends the agent with SIGTERM and waits for it.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Kills the agent with SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            kill(Pid::from_raw(i32::try_from(agent.id())?), signal)?;
            let status = agent.wait()?;
            std::fs::write(self.path("pid"), "")?;
            ensure!(signal != Signal::SIGTERM || status.success(), "SIGTERM ends the agent with {status}");
        }
        Ok(())
    }

    /// What the agent wrote, its end.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.path("agent.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Takes everything away; what stays, one line each.
    fn take_away(&mut self) -> Vec<String> {
        let owned = Owned::of(self.namespace.inode().ok(), &self.directory, &self.run_directory);
        let mut problems: Vec<String> = self.kill().err().map(|e| format!("{e:#}")).into_iter().collect();
        let cleanup = self.warden.finish();
        problems.extend(cleanup.err().map(|e| format!("{e:#}")));
        problems.extend(owned.remaining_in_time().into_iter().map(|l| format!("left behind: {l}")));
        problems
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let log = self.log();
        let problems = self.take_away();
        leftovers::tell(&self.name, &log, &problems);
    }
}
