//! A runtime of its own for each test, and checks that it leaves nothing behind.
#![allow(dead_code, missing_docs, reason = "each test file uses a part")]

pub mod image;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use yare_runtime::*;

/// The image every test can use.
pub const BUSYBOX: &str = "yare.test/busybox";

/// A network that only remembers who is attached.
#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<BTreeSet<String>>,
    pub refuse: Mutex<bool>,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, pod: PodNetworkRequest) -> Result<Vec<IpAddr>, String> {
        assert!(pod.netns.exists(), "the namespace is there before the network");
        if *self.refuse.lock() {
            return Err("no address left".into());
        }
        self.attached.lock().insert(pod.sandbox_id);
        Ok(vec!["10.42.0.7".parse().unwrap()])
    }

    async fn close_ports(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn detach(&self, sandbox_id: &str, _netns: Option<&Path>) -> Result<(), String> {
        self.attached.lock().remove(sandbox_id);
        Ok(())
    }
}

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub name: String,
    pub network: Arc<FakeNetwork>,
    pub engine: Option<Engine>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Rig {
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("yrt").tempdir().unwrap();
        let name = format!("yrt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut rig = Self { dir, name, network: Arc::default(), engine: None };
        rig.open().await;
        let archive = rig.dir.path().join("busybox.tar");
        image::docker_archive(
            &archive,
            BUSYBOX,
            &[image::busybox_layer()],
            serde_json::json!({"Cmd": ["sh"]}),
        );
        rig.engine().images().import(&archive, None).unwrap();
        rig
    }

    pub fn config(&self) -> EngineConfig {
        let mut config = EngineConfig::new(self.dir.path().join("data"), self.dir.path().join("run"));
        config.shim_command = vec![env!("CARGO_BIN_EXE_yare-shim-test").into(), "shim".into()];
        config.shim_cgroup = format!("{}/shims", self.name);
        config.cdi_directories = vec![self.dir.path().join("cdi")];
        config.network = Some(Arc::clone(&self.network) as Arc<dyn PodNetwork>);
        config
    }

    pub async fn open(&mut self) {
        self.engine = Some(Engine::open(self.config()).await.unwrap());
    }

    /// As after a restart of the engine's process: all its connections close.
    pub async fn reopen(&mut self) {
        self.engine = None;
        self.open().await;
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn pod(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            hostname: name.into(),
            log_directory: self.dir.path().join("logs").join(name),
            cgroup_parent: format!("{}/pod-{name}", self.name),
            ..SandboxConfig::default()
        }
    }

    /// Runs a pod with one container; answers sandbox and container.
    pub async fn run(&self, pod: SandboxConfig, container: ContainerConfig) -> (String, String) {
        let sandbox = self.engine().run_sandbox(pod).await.unwrap();
        let id = self.engine().create_container(&sandbox, container).await.unwrap();
        self.engine().start_container(&id).await.unwrap();
        (sandbox, id)
    }

    /// Runs a script to its end; answers its status and its log's content without stamps.
    pub async fn script(
        &self,
        text: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> (ContainerStatus, String) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut config = sh(text);
        change(&mut config);
        let (sandbox, id) = self.run(self.pod(&name), config).await;
        let status = self.wait(&id).await;
        let log = self.log(&status);
        self.engine().remove_sandbox(&sandbox).await.unwrap();
        (status, log)
    }

    pub async fn wait(&self, id: &str) -> ContainerStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.engine().container(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            assert!(Instant::now() < end, "container {id} does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn log(&self, status: &ContainerStatus) -> String {
        let text = std::fs::read_to_string(&status.log_path).unwrap_or_default();
        text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).map(|l| format!("{l}\n")).collect()
    }

    /// Removes everything, and checks that nothing is left.
    pub async fn finish(mut self) {
        self.settle();
        for s in self.engine().sandboxes().await.unwrap() {
            self.engine().remove_sandbox(&s.id).await.unwrap();
        }
        self.engine = None;
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "left behind: {left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(self.network.attached.lock().is_empty(), "still attached");
    }

    /// Waits until the spawner has made its cgroup: one that comes later would be left behind.
    fn settle(&self) {
        let procs = Path::new("/sys/fs/cgroup/unified").join(&self.name).join("shims/cgroup.procs");
        for _ in 0..200 {
            if self.engine.is_none() || std::fs::read_to_string(&procs).is_ok_and(|p| !p.is_empty()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Mounts, cgroups, files and processes of this rig, apart from images.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let root = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(&root)).map(|l| format!("mount {l}")));
        for sub in ["run/netns", "run/shm", "run/s", "data/runtime/sandboxes", "data/runtime/containers"] {
            for entry in std::fs::read_dir(self.dir.path().join(sub)).into_iter().flatten().flatten() {
                left.push(format!("file {}", entry.path().display()));
            }
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = hierarchy.path().join(&self.name);
            for entry in std::fs::read_dir(&group).into_iter().flatten().flatten() {
                if entry.path().is_dir() && entry.file_name() != "shims" {
                    left.push(format!("cgroup {}", entry.path().display()));
                }
            }
            let procs = std::fs::read_to_string(group.join("shims/cgroup.procs")).unwrap_or_default();
            left.extend(procs.lines().map(|p| format!("process {p} in {}", hierarchy.path().display())));
        }
        left
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.settle();
        // Also after a failure: kill by cgroup, unmount, remove.
        self.engine = None;
        let kill = |dir: &Path| {
            for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse() {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        };
        for _ in 0..50 {
            let mut busy = false;
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let group = hierarchy.path().join(&self.name);
                if !group.is_dir() {
                    continue;
                }
                let mut dirs = vec![group];
                let mut at = 0;
                while at < dirs.len() {
                    let more: Vec<PathBuf> = std::fs::read_dir(&dirs[at])
                        .into_iter()
                        .flatten()
                        .flatten()
                        .map(|e| e.path())
                        .filter(|p| p.is_dir())
                        .collect();
                    dirs.extend(more);
                    at += 1;
                }
                for dir in dirs.iter().rev() {
                    kill(dir);
                    busy |= std::fs::remove_dir(dir).is_err();
                }
            }
            if !busy {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let root = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            if let Some(path) = line.split(' ').nth(4).filter(|p| p.starts_with(&root)) {
                let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// A container that runs a shell script.
pub fn sh(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image: BUSYBOX.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: "main/0.log".into(),
        ..ContainerConfig::default()
    }
}

/// An argument vector.
pub fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}
