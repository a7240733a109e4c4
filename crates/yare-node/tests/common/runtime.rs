//! A runtime without processes. What a container does is its command's first word:
//! `run` runs until it is stopped, `exit N` ends at once, `ignore` ends only when it is killed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot};
use yare_runtime::*;

pub struct FakeRuntime {
    dir: PathBuf,
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Pulls wait while somebody writes here.
    pub pulls: tokio::sync::RwLock<()>,
}

#[derive(Default)]
struct State {
    next: u32,
    calls: Vec<String>,
    sandboxes: BTreeMap<String, (SandboxStatus, SandboxConfig)>,
    containers: BTreeMap<String, (ContainerStatus, ContainerConfig)>,
    /// Exit codes of exec commands, by the command's words.
    execs: HashMap<String, i32>,
    /// Commands that cannot be run, and why.
    broken: HashMap<String, String>,
    /// What containers use, by name.
    uses: HashMap<String, ContainerStats>,
    /// Images beside the one that is always there: name and size.
    images: Vec<(String, u64)>,
    /// Of the images' file system: size, and what is free.
    image_fs: (u64, u64),
}

fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap()
}

/// What an update says of CPU and memory: ` shares=102 quota=20000 memory=-1`.
fn sizes(resources: &Resources) -> String {
    let one = |name: &str, n: Option<i64>| n.map(|n| format!(" {name}={n}")).unwrap_or_default();
    one("shares", resources.cpu_shares.and_then(|n| i64::try_from(n).ok()))
        + &one("quota", resources.cpu_quota_us)
        + &one("memory", resources.memory_limit_bytes)
}

fn not_found(kind: &'static str, id: &str) -> RuntimeError {
    RuntimeError::NotFound { kind, id: id.to_owned() }
}

impl FakeRuntime {
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(FakeRuntime {
            dir,
            state: Mutex::default(),
            events: broadcast::channel(64).0,
            pulls: tokio::sync::RwLock::default(),
        })
    }

    /// What was asked of it, in order: `start web`, `stop web`.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub fn set_exec(&self, command: &str, code: i32) {
        self.state.lock().execs.insert(command.to_owned(), code);
    }

    /// Whether a command can be run: `Some`, why not.
    pub fn set_broken(&self, command: &str, why: Option<&str>) {
        let broken = &mut self.state.lock().broken;
        match why {
            Some(why) => broken.insert(command.to_owned(), why.to_owned()),
            None => broken.remove(command),
        };
    }

    /// How often this was asked of it.
    pub fn times(&self, call: &str) -> usize {
        self.state.lock().calls.iter().filter(|c| *c == call).count()
    }

    /// What a container uses from now on.
    pub fn set_use(&self, name: &str, usage: ContainerStats) {
        self.state.lock().uses.insert(name.to_owned(), usage);
    }

    /// Images beside the one that is always there, and the file system they are on: its size, what is free.
    pub fn set_images(&self, images: &[(&str, u64)], size: u64, free: u64) {
        let mut state = self.state.lock();
        state.images = images.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        state.image_fs = (size, free);
    }

    pub fn image_names(&self) -> Vec<String> {
        self.state.lock().images.iter().map(|(name, _)| name.clone()).collect()
    }

    pub fn container_named(&self, name: &str) -> Option<(ContainerStatus, ContainerConfig)> {
        self.state
            .lock()
            .containers
            .values()
            .filter(|(s, _)| s.name == name)
            .max_by_key(|(s, _)| s.attempt)
            .cloned()
    }

    pub fn sandbox_config(&self) -> Option<SandboxConfig> {
        self.state.lock().sandboxes.values().next_back().map(|(_, c)| c.clone())
    }

    pub fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.sandboxes.len(), state.containers.len())
    }

    /// A container ends by itself.
    pub fn exit(&self, name: &str, code: i32) {
        let id = self.container_named(name).unwrap().0.id;
        self.end(&id, code);
    }

    /// A sandbox dies with everything in it.
    pub fn kill_sandbox(&self) {
        let (id, containers) = {
            let mut state = self.state.lock();
            let id = state.sandboxes.keys().next_back().unwrap().clone();
            state.sandboxes.get_mut(&id).unwrap().0.state = SandboxState::NotReady;
            let containers: Vec<String> = state
                .containers
                .values()
                .filter(|(s, _)| s.sandbox_id == id)
                .map(|(s, _)| s.id.clone())
                .collect();
            (id, containers)
        };
        for container in containers {
            self.end(&container, 137);
        }
        let _ = self.events.send(RuntimeEvent::SandboxGone { sandbox: id });
    }

    fn end(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        let Some((status, _)) = state.containers.get_mut(id) else { return };
        if status.state != ContainerState::Running {
            return;
        }
        status.state = ContainerState::Exited;
        status.exit_code = code;
        status.finished_at_ns = now_ns();
        status.reason = if code == 0 { "Completed".into() } else { "Error".into() };
        let event = RuntimeEvent::ContainerExited {
            id: id.to_owned(),
            sandbox: status.sandbox_id.clone(),
            exit_code: code,
        };
        drop(state);
        let _ = self.events.send(event);
    }

    fn note(&self, call: String) {
        self.state.lock().calls.push(call);
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion { name: "fake".into(), version: "1.0".into(), api_version: "v1".into() })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let able = RuntimeHandler { user_namespaces: true, ..RuntimeHandler::default() };
        let deep = RuntimeHandler {
            name: "deep".into(),
            recursive_readonly_mounts: true,
            ..RuntimeHandler::default()
        };
        Ok(RuntimeStatus {
            handlers: vec![able, deep],
            supplemental_groups_policy: true,
            ..RuntimeStatus::default()
        })
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("sandbox-{:04}", state.next);
        state.calls.push(format!("sandbox {} {}", config.name, config.attempt));
        let ip = format!("10.42.0.{}", state.next);
        let host = config.namespaces.network == NamespaceMode::Node;
        let status = SandboxStatus {
            id: id.clone(),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at_ns: now_ns(),
            ips: if host { vec![] } else { vec![ip.parse().unwrap()] },
            netns: None,
            shim_pid: 1,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            namespaces: config.namespaces.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            runtime_handler: config.runtime_handler.clone(),
        };
        state.sandboxes.insert(id.clone(), (status, config));
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let ids: Vec<String> = {
            let mut state = self.state.lock();
            state.calls.push("stop sandbox".into());
            if let Some((status, _)) = state.sandboxes.get_mut(id) {
                status.state = SandboxState::NotReady;
            }
            state.containers.values().filter(|(s, _)| s.sandbox_id == id).map(|(s, _)| s.id.clone()).collect()
        };
        for id in ids {
            self.end(&id, 137);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.sandboxes.remove(id);
        state.containers.retain(|_, (s, _)| s.sandbox_id != id);
        Ok(())
    }

    async fn sandbox(&self, id: &str) -> Result<SandboxStatus> {
        self.state.lock().sandboxes.get(id).map(|(s, _)| s.clone()).ok_or_else(|| not_found("sandbox", id))
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.state.lock().sandboxes.values().map(|(s, _)| s.clone()).collect())
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<ContainerId> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("container-{:04}", state.next);
        let logs = state.sandboxes.get(sandbox).map(|(_, c)| c.log_directory.clone()).unwrap_or_default();
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox.to_owned(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at_ns: now_ns(),
            started_at_ns: 0,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: config.image.clone(),
            image_id: "sha256:abc".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: logs.join(&config.log_path),
            pid: 0,
            mounts: config.mounts.clone(),
            resources: config.resources.clone(),
            user: None,
        };
        std::fs::write(&status.log_path, "2026-01-01T00:00:00.000000000Z stdout F hello\n").unwrap();
        state.containers.insert(id.clone(), (status, config));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let (name, command) = {
            let mut state = self.state.lock();
            let (status, config) = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
            status.state = ContainerState::Running;
            status.started_at_ns = now_ns();
            (status.name.clone(), config.command.clone())
        };
        self.note(format!("start {name}"));
        let code = match command.first().map(String::as_str) {
            Some("exit") => command.get(1).and_then(|c| c.parse().ok()),
            _ => None,
        };
        if let Some(code) = code {
            self.end(id, code);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let found = self.state.lock().containers.get(id).cloned();
        let Some((status, config)) = found else { return Ok(()) };
        self.note(format!("stop {}", status.name));
        if config.command.first().map(String::as_str) == Some("ignore") {
            tokio::time::sleep(grace).await;
            self.end(id, 137);
        } else {
            self.end(id, 143);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().containers.remove(id);
        Ok(())
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus> {
        self.state.lock().containers.get(id).map(|(s, _)| s.clone()).ok_or_else(|| not_found("container", id))
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>> {
        Ok(self.state.lock().containers.values().map(|(s, _)| s.clone()).collect())
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let mut state = self.state.lock();
        let (status, _) = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        if resources.cpuset_cpus.is_some() {
            status.resources.cpuset_cpus = resources.cpuset_cpus;
            return Ok(());
        }
        let call = format!("update {}{}", status.name, sizes(&resources));
        // What is absent stays.
        let limit = |old: Option<i64>, new: Option<i64>| new.or(old).filter(|n| *n >= 0);
        let now = &mut status.resources;
        now.cpu_shares = resources.cpu_shares.or(now.cpu_shares);
        now.cpu_quota_us = limit(now.cpu_quota_us, resources.cpu_quota_us);
        now.memory_limit_bytes = limit(now.memory_limit_bytes, resources.memory_limit_bytes);
        state.calls.push(call);
        Ok(())
    }

    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let mut state = self.state.lock();
        let (status, _) = state.sandboxes.get(id).ok_or_else(|| not_found("sandbox", id))?;
        let call = format!("update pod {}{}", status.name, sizes(&resources));
        state.calls.push(call);
        Ok(())
    }

    async fn exec_sync(&self, _: &str, argv: Vec<String>, _: Option<Duration>) -> Result<ExecOutput> {
        let words = argv.join(" ");
        self.note(format!("exec {words}"));
        let state = self.state.lock();
        if let Some(why) = state.broken.get(&words) {
            return Err(RuntimeError::CannotRun(why.clone()));
        }
        let exit_code = state.execs.get(&words).copied().unwrap_or(0);
        Ok(ExecOutput { stdout: format!("ran {words}").into_bytes(), stderr: vec![], exit_code })
    }

    /// Says its command, then gives back what it is told; ends with the last word as exit code.
    async fn exec(&self, _: &str, argv: Vec<String>, tty: bool, stdin: bool) -> Result<ExecSession> {
        let (process_in, client_in) = tokio::io::duplex(4096);
        let (client_out, mut process_out) = tokio::io::duplex(4096);
        let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
        let (done, exit) = oneshot::channel();
        let code = argv.last().and_then(|c| c.parse().ok()).unwrap_or(0);
        tokio::spawn(async move {
            process_out.write_all(argv.join(" ").as_bytes()).await.unwrap();
            process_out.write_all(b"\n").await.unwrap();
            if tty && let Some((columns, rows)) = sizes.recv().await {
                process_out.write_all(format!("{columns}x{rows}\n").as_bytes()).await.unwrap();
            }
            if stdin {
                let mut input = Vec::new();
                let (mut reader, _keep) = tokio::io::split(process_in);
                reader.read_to_end(&mut input).await.unwrap();
                process_out.write_all(&input).await.unwrap();
            }
            drop(process_out);
            let _ = done.send(code);
        });
        Ok(ExecSession {
            stdin: stdin.then(|| Box::new(client_in) as BoxWrite),
            stdout: Some(Box::new(client_out)),
            stderr: None,
            resize,
            exit: Box::pin(async move { Ok(exit.await.unwrap_or(-1)) }),
        })
    }

    async fn attach(&self, id: &str, _: bool, _: bool) -> Result<ExecSession> {
        self.exec(id, vec!["attached".into()], false, true).await
    }

    /// Echoes, with the port first.
    async fn port_forward(&self, _: &str, port: u16) -> Result<Box<dyn Duplex>> {
        if port == 1 {
            return Err(RuntimeError::FailedPrecondition("connection refused".into()));
        }
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let _ = theirs.write_all(format!("port {port}\n").as_bytes()).await;
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
        Ok(Box::new(ours))
    }

    async fn reopen_log(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<Vec<ContainerStats>> {
        let state = self.state.lock();
        Ok(state
            .containers
            .values()
            .filter(|(s, _)| s.state == ContainerState::Running)
            .map(|(s, _)| ContainerStats {
                id: s.id.clone(),
                sandbox_id: s.sandbox_id.clone(),
                name: s.name.clone(),
                cpu_usage_ns: 1_500_000_000,
                memory_working_set_bytes: 4096,
                ..state.uses.get(&s.name).cloned().unwrap_or_default()
            })
            .map(|mut s| {
                if let Some(own) = state.uses.get(&s.name) {
                    s.memory_working_set_bytes = own.memory_working_set_bytes;
                }
                s
            })
            .collect())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    async fn pull_image(
        &self,
        reference: &str,
        _: Option<RegistryAuth>,
        _: Option<ProgressFn>,
    ) -> Result<ImageId> {
        self.note(format!("pull {reference}"));
        let _goes_on = self.pulls.read().await;
        if reference.contains("missing") {
            return Err(RuntimeError::Pull { reference: reference.into(), message: "not found".into() });
        }
        std::fs::create_dir_all(&self.dir).unwrap();
        Ok(format!("sha256:{reference}"))
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageStatus>> {
        let present = reference.starts_with("sha256:") || reference.contains("present");
        Ok(present.then(|| ImageStatus { id: reference.into(), size_bytes: 10, ..ImageStatus::default() }))
    }

    async fn images(&self) -> Result<Vec<ImageStatus>> {
        let image = |name: &str, id: &str, size_bytes: u64| ImageStatus {
            id: id.to_owned(),
            repo_tags: vec![format!("{name}:1")],
            size_bytes,
            ..ImageStatus::default()
        };
        let state = self.state.lock();
        let others = state.images.iter().map(|(name, size)| image(name, name, *size));
        Ok([image("present", "sha256:1", 10)].into_iter().chain(others).collect())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.calls.push(format!("remove image {id}"));
        state.images.retain(|(name, _)| name != id);
        Ok(())
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        let (capacity_bytes, available_bytes) = self.state.lock().image_fs;
        Ok(FsUsage { capacity_bytes, available_bytes, ..FsUsage::default() })
    }
}
