//! Debian's containerd for one cluster: its own directories, its own socket, its own network plugins. All of it lies
//! below a directory for data and one for sockets, whose path is short.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{Namespace, registry};

/// Where the registry of its images listens, in the cluster's network.
pub const REGISTRY_PORT: u16 = 5900;
/// The images there, which containerd knows as `yare.local/NAME:1`.
pub const IMAGES: &[(&str, registry::Layer)] =
    &[("busybox", registry::Layer::Whole), (registry::PAUSE, registry::Layer::Whole)];
/// The image of sandboxes: it only waits.
const PAUSE: &str = "yare.local/pause:1";
/// How long containerd may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running containerd. The cluster's warden ends it.
#[derive(Debug)]
pub(crate) struct Containerd {
    socket: PathBuf,
    process: Child,
}

/// Its socket below a cluster's run directory.
pub fn socket(run_directory: &Path) -> PathBuf {
    run_directory.join("c.sock")
}

/// Where it keeps the network namespaces of its pods.
pub(crate) fn namespaces(run_directory: &Path) -> PathBuf {
    run_directory.join("c/io.containerd.grpc.v1.cri/netns")
}

impl Containerd {
    /// Starts one for the cluster in these directories, with a registry beside it from which it has `yare.local/`.
    pub(crate) fn start(
        namespace: &Namespace,
        directory: &Path,
        run_directory: &Path,
    ) -> anyhow::Result<Self> {
        registry::serve(namespace, REGISTRY_PORT, IMAGES)?;
        prepare(directory, run_directory)?;
        let process = spawn(namespace, directory, run_directory)?;
        let mut this = Self { socket: socket(run_directory), process };
        this.wait()?;
        Ok(this)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            let ended = self.process.try_wait()?;
            ensure!(ended.is_none(), "containerd ended: {ended:?}; see containerd.log");
            ensure!(Instant::now() < deadline, "containerd does not listen within {START_TIMEOUT:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills it, as a machine's administrator would not; its containers go on.
    pub(crate) fn restart(
        &mut self,
        namespace: &Namespace,
        directory: &Path,
        run_directory: &Path,
    ) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(namespace, directory, run_directory)?;
        self.wait()
    }

    /// Waits for the end that the warden brought.
    pub(crate) fn ended(&mut self) {
        let _ = self.process.wait();
    }
}

/// Writes its configuration.
pub fn prepare(directory: &Path, run_directory: &Path) -> anyhow::Result<()> {
    let own = directory.join("containerd");
    let mirror = own.join("certs.d/yare.local");
    fs::create_dir_all(&mirror)?;
    let hosts =
        format!("[host.\"http://127.0.0.1:{REGISTRY_PORT}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    fs::write(mirror.join("hosts.toml"), hosts)?;
    // Without CAP_SYS_RESOURCE, as in many a CI, no process may be made less likely to be killed.
    let text = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{own}/cni/bin"
  conf_dir = "{own}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{own}/certs.d"
"#,
        root = own.join("root").display(),
        state = run_directory.join("c").display(),
        socket = socket(run_directory).display(),
        own = own.display(),
    );
    Ok(fs::write(run_directory.join("c.toml"), text)?)
}

/// The command that it is, with its output in a log.
pub fn command(directory: &Path, run_directory: &Path) -> anyhow::Result<Command> {
    let log = File::options().create(true).append(true).open(directory.join("containerd.log"))?;
    let mut command = Command::new("containerd");
    command
        .arg("--config")
        .arg(run_directory.join("c.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// Whether it is on this machine.
pub fn find() -> anyhow::Result<()> {
    for program in ["containerd", "runc"] {
        let there = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        there
            .map(drop)
            .with_context(|| format!("{program} is not there: apt-get install containerd runc"))?;
    }
    Ok(())
}

fn spawn(namespace: &Namespace, directory: &Path, run_directory: &Path) -> anyhow::Result<Child> {
    let mut command = command(directory, run_directory)?;
    Ok(namespace.run(|| command.spawn())??)
}
