//! Sandboxes: made, stopped, removed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::shim_client::{ShimClient, ShimEvent, kill_shim};
use super::state::{SandboxEntry, SandboxLive, SandboxPhase, SandboxRecord};
use super::{Inner, blocking, new_id};
use crate::api::*;
use crate::error::{IoContext, Result, RuntimeError};
use crate::proto::{Ask, ExitRecord, SandboxSpec, read_json, write_json};

/// How long a shim may take to kill everything.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);

impl Inner {
    pub(super) async fn run_sandbox(self: &Arc<Self>, config: SandboxConfig) -> Result<SandboxId> {
        check(&config)?;
        let key = (config.uid.clone(), config.attempt);
        let making = Arc::clone(self.state.lock().making.entry(key.clone()).or_default());
        let guard = making.lock().await;
        let result = self.make_sandbox(config).await;
        drop(guard);
        let mut state = self.state.lock();
        // The map and this task hold it: nobody else waits.
        if Arc::strong_count(&making) <= 2 {
            state.making.remove(&key);
        }
        result
    }

    async fn make_sandbox(self: &Arc<Self>, config: SandboxConfig) -> Result<SandboxId> {
        let existing = {
            let state = self.state.lock();
            let same = |s: &&Arc<SandboxEntry>| {
                s.record.config.uid == config.uid && s.record.config.attempt == config.attempt
            };
            state.sandboxes.values().find(same).cloned()
        };
        if let Some(existing) = existing {
            if existing.status().state == SandboxState::Ready {
                return Ok(existing.id.clone());
            }
            self.remove_sandbox(&existing.id).await?;
        }
        if config.namespaces.network != NamespaceMode::Node && self.config.network.is_none() {
            return Err(RuntimeError::FailedPrecondition(
                "there is no pod network: only pods with hostNetwork can run".into(),
            ));
        }
        let id = new_id()?;
        let cgroup = match config.cgroup_parent.trim_start_matches('/') {
            "" => format!("yare/{}", &id[..32]),
            parent => parent.to_owned(),
        };
        let mut record = SandboxRecord {
            created_at_ns: crate::sys::now_ns(),
            phase: SandboxPhase::Making,
            ips: Vec::new(),
            own_cgroup: config.cgroup_parent.is_empty(),
            cgroup,
            config,
        };
        // Whoever made the pod's cgroup removes it; we may have made it for an earlier sandbox of the pod.
        record.own_cgroup |= !self.cgroups.exists(Path::new(&record.cgroup))
            || self.shares_cgroup(&id, &record.cgroup).unwrap_or(false);
        // The ledger comes first: whatever happens from here on, the next engine knows what to look for.
        let dir = self.sandbox_dir(&id);
        std::fs::create_dir_all(&dir).ctx(|| format!("create {}", dir.display()))?;
        save(&dir, &record)?;
        match self.build_sandbox(&id, &dir, &mut record).await {
            Ok(entry) => {
                self.state.lock().sandboxes.insert(id.clone(), entry);
                Ok(id)
            }
            Err(e) => {
                self.tear_down(&id, &record).await;
                self.discard(&dir);
                Err(e)
            }
        }
    }

    async fn build_sandbox(
        self: &Arc<Self>,
        id: &str,
        dir: &Path,
        record: &mut SandboxRecord,
    ) -> Result<Arc<SandboxEntry>> {
        let config = &record.config;
        write_files(dir, config)?;
        if !config.log_directory.as_os_str().is_empty() {
            let logs = &config.log_directory;
            std::fs::create_dir_all(logs).ctx(|| format!("create {}", logs.display()))?;
        }
        let group = PathBuf::from(&record.cgroup);
        self.cgroups.create(&group, &config.resources).ctx(|| format!("cgroup of sandbox {id}"))?;
        let pod_network = config.namespaces.network != NamespaceMode::Node;
        let netns = pod_network.then(|| self.netns_path(id));
        let spec = SandboxSpec {
            id: id.to_owned(),
            dir: dir.to_path_buf(),
            containers_dir: self.containers_dir(),
            socket: self.socket_path(id),
            netns: netns.clone(),
            shm: (config.namespaces.ipc != NamespaceMode::Node).then(|| self.shm_path(id)),
            hostname: config.hostname.clone(),
            sysctls: config.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            namespaces: config.namespaces.clone(),
        };
        let connection = self.spawner.spawn(&spec, &self.lock).await?;
        let (tx, rx) = mpsc::unbounded_channel();
        let shim = ShimClient::adopt(id, connection, tx).await?;
        if let (Some(netns), Some(network)) = (&netns, &self.config.network) {
            let request = PodNetworkRequest {
                sandbox_id: id.to_owned(),
                namespace: config.namespace.clone(),
                name: config.name.clone(),
                uid: config.uid.clone(),
                netns: netns.clone(),
                port_mappings: config.port_mappings.clone(),
                bandwidth: bandwidth(&config.annotations)?,
            };
            record.ips = network
                .attach(request)
                .await
                .map_err(|message| RuntimeError::Network { sandbox: id.to_owned(), message })?;
        }
        record.phase = SandboxPhase::Ready;
        save(dir, record)?;
        let entry = self.entry(id, record.clone(), Some(Arc::clone(&shim)));
        tokio::spawn(follow(Arc::downgrade(self), id.to_owned(), rx));
        Ok(entry)
    }

    /// An entry for a record.
    pub(super) fn entry(
        &self,
        id: &str,
        record: SandboxRecord,
        shim: Option<Arc<ShimClient>>,
    ) -> Arc<SandboxEntry> {
        let pod_network = record.config.namespaces.network != NamespaceMode::Node;
        Arc::new(SandboxEntry {
            id: id.to_owned(),
            netns: pod_network.then(|| self.netns_path(id)),
            live: parking_lot::Mutex::new(SandboxLive { phase: record.phase, ips: record.ips.clone(), shim }),
            given_back: tokio::sync::Mutex::new(record.phase == SandboxPhase::Stopped),
            record,
            lock: tokio::sync::Mutex::default(),
        })
    }

    /// A shim's connection closed. If nobody wanted that, its sandbox is stopped.
    async fn shim_gone(self: &Arc<Self>, id: &str) {
        let Ok(sandbox) = self.sandbox_entry(id) else { return };
        let unexpected = {
            let mut live = sandbox.live.lock();
            live.shim = None;
            live.phase == SandboxPhase::Ready
        };
        if unexpected {
            tracing::warn!(sandbox = %id, pod = %sandbox.record.config.name, "the shim died; stopping its sandbox");
            if let Err(e) = self.stop_sandbox(id).await {
                tracing::warn!(sandbox = %id, error = %e, "cleaning up after a dead shim");
            }
        }
    }

    pub(super) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let sandbox = match self.sandbox_entry(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let _guard = sandbox.lock.lock().await;
        if sandbox.live.lock().phase == SandboxPhase::Stopped {
            return Ok(());
        }
        let shim = sandbox.shim();
        sandbox.live.lock().phase = SandboxPhase::Stopped;
        if let Some(shim) = shim {
            let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, shim.ask(Ask::Shutdown, Vec::new())).await;
            if tokio::time::timeout(Duration::from_secs(2), shim.ended()).await.is_err() {
                // It hangs, perhaps in a dead network filesystem; its pid is held by our connection's peer.
                kill_shim(shim.pid);
            }
        }
        sandbox.live.lock().shim = None;
        let (inner, containers) = (Arc::clone(self), self.containers_of(id));
        blocking(move || {
            containers.iter().for_each(|c| inner.settle_dead(c));
            Ok(())
        })
        .await?;
        let pod_network = sandbox.record.config.namespaces.network != NamespaceMode::Node;
        if let Some(network) = self.config.network.as_ref().filter(|_| pod_network)
            && let Err(message) = network.close_ports(id).await
        {
            // The next stop tries again.
            sandbox.live.lock().phase = SandboxPhase::Ready;
            return Err(RuntimeError::Network { sandbox: id.to_owned(), message });
        }
        // Nothing runs in it and nobody reaches it. What is left is the kernel's work, most of it waiting; whoever
        // removes the sandbox waits for it.
        let (inner, stopped) = (Arc::clone(self), Arc::clone(&sandbox));
        tokio::spawn(async move {
            if let Err(e) = inner.give_back(&stopped).await {
                tracing::warn!(sandbox = %stopped.id, error = %e, "giving back what a sandbox had; its removal tries again");
            }
        });
        self.emit(RuntimeEvent::SandboxGone { sandbox: id.to_owned() });
        Ok(())
    }

    /// Gives back network, mounts and socket of a stopped sandbox, once. Until then it is on disk as if it ran, so
    /// that a later engine does it if this one cannot.
    async fn give_back(&self, sandbox: &SandboxEntry) -> Result<()> {
        let mut done = sandbox.given_back.lock().await;
        if *done {
            return Ok(());
        }
        let mut record = sandbox.record.clone();
        record.ips = sandbox.live.lock().ips.clone();
        self.release(&sandbox.id, &record).await?;
        record.phase = SandboxPhase::Stopped;
        save(&self.sandbox_dir(&sandbox.id), &record)?;
        *done = true;
        Ok(())
    }

    pub(super) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        let Ok(sandbox) = self.sandbox_entry(id) else { return Ok(()) };
        for c in self.containers_of(id) {
            self.remove_container(&c.id).await?;
        }
        let _guard = sandbox.lock.lock().await;
        self.give_back(&sandbox).await?;
        if sandbox.record.own_cgroup && self.shares_cgroup(id, &sandbox.record.cgroup).is_none() {
            let _ = self.cgroups.remove(Path::new(&sandbox.record.cgroup));
        }
        self.discard(&self.sandbox_dir(id));
        self.state.lock().sandboxes.remove(id);
        Ok(())
    }

    /// Whether another sandbox is in the same cgroup, and if so, whether that cgroup is ours.
    fn shares_cgroup(&self, id: &str, cgroup: &str) -> Option<bool> {
        let state = self.state.lock();
        state
            .sandboxes
            .values()
            .find(|s| s.id != id && s.record.cgroup == cgroup)
            .map(|s| s.record.own_cgroup)
    }

    /// Undoes whatever there is of a sandbox that is not complete.
    pub(super) async fn tear_down(self: &Arc<Self>, id: &str, record: &SandboxRecord) {
        let (tx, _rx) = mpsc::unbounded_channel();
        if let Ok(Some(shim)) = ShimClient::connect(id, &self.socket_path(id), tx).await {
            let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, shim.ask(Ask::Shutdown, Vec::new())).await;
            if tokio::time::timeout(Duration::from_secs(2), shim.ended()).await.is_err() {
                kill_shim(shim.pid);
            }
        }
        if let Err(e) = self.release(id, record).await {
            tracing::warn!(sandbox = %id, error = %e, "cleaning up a sandbox");
        }
        if record.own_cgroup && self.shares_cgroup(id, &record.cgroup).is_none() {
            let _ = self.cgroups.remove(Path::new(&record.cgroup));
        }
    }

    /// Gives back network, mounts and socket.
    async fn release(&self, id: &str, record: &SandboxRecord) -> Result<()> {
        let netns = self.netns_path(id);
        if record.config.namespaces.network != NamespaceMode::Node
            && let Some(network) = &self.config.network
        {
            let path = Some(netns.as_path()).filter(|p| p.exists());
            network
                .detach(id, path)
                .await
                .map_err(|message| RuntimeError::Network { sandbox: id.to_owned(), message })?;
        }
        let (shm, socket) = (self.shm_path(id), self.socket_path(id));
        blocking(move || {
            unmount(&netns)?;
            unmount(&shm)?;
            let _ = std::fs::remove_file(&netns);
            let _ = std::fs::remove_dir(&shm);
            let _ = std::fs::remove_file(&socket);
            Ok(())
        })
        .await
    }

    pub(super) fn container_exited(self: &Arc<Self>, id: &str) {
        let Ok(c) = self.container_entry(id) else { return };
        if c.current() != ContainerState::Created {
            self.read_exit(&c);
            return;
        }
        // It ended before its start was noted: first things first.
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let _started = c.lock.lock().await;
            inner.read_exit(&c);
        });
    }

    /// Takes over what the shim wrote about a container's end. `false`: there is nothing.
    pub(super) fn read_exit(&self, c: &super::state::ContainerEntry) -> bool {
        let Ok(exit) = read_json::<ExitRecord>(&self.container_dir(&c.id).join("exit.json")) else {
            return false;
        };
        let exit_code = exit.exit_code;
        c.live.lock().exit = Some(exit);
        if c.state.send_replace(ContainerState::Exited) != ContainerState::Exited {
            self.emit(RuntimeEvent::ContainerExited {
                id: c.id.clone(),
                sandbox: c.record.sandbox_id.clone(),
                exit_code,
            });
        }
        true
    }

    /// A container whose shim is gone: reads how it ended, or kills it and says so.
    pub(super) fn settle_dead(&self, c: &super::state::ContainerEntry) {
        let ran =
            self.container_dir(&c.id).join("run.json").exists() || c.current() == ContainerState::Running;
        if c.current() == ContainerState::Exited || self.read_exit(c) {
            let _ = self.cgroups.destroy(&c.record.cgroup, Duration::from_millis(500));
            return;
        }
        let _ = self.cgroups.destroy(&c.record.cgroup, Duration::from_secs(2));
        if !ran {
            return;
        }
        let run: Option<crate::proto::RunRecord> =
            read_json(&self.container_dir(&c.id).join("run.json")).ok();
        let exit = ExitRecord {
            exit_code: 137,
            started_at_ns: run.map_or(0, |r| r.started_at_ns),
            finished_at_ns: crate::sys::now_ns(),
            reason: "Error".into(),
            message: "the shim of the container's sandbox died, and the container was killed".into(),
        };
        let _ = write_json(&self.container_dir(&c.id).join("exit.json"), &exit);
        self.read_exit(c);
    }
}

/// Listens to a shim until it is gone, or the engine is.
pub(super) async fn follow(
    inner: Weak<Inner>,
    sandbox: String,
    mut events: mpsc::UnboundedReceiver<ShimEvent>,
) {
    while let Some(event) = events.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        match event {
            ShimEvent::Exited { id } => inner.container_exited(&id),
            ShimEvent::Gone => return inner.shim_gone(&sandbox).await,
        }
    }
}

pub(super) fn save(dir: &Path, record: &SandboxRecord) -> Result<()> {
    write_json(&dir.join("sandbox.json"), record)
        .ctx(|| format!("write {}", dir.join("sandbox.json").display()))
}

fn check(config: &SandboxConfig) -> Result<()> {
    let bad = |what: String| Err(RuntimeError::InvalidArgument(what));
    if config.uid.is_empty() {
        return bad("a sandbox needs its pod's uid".into());
    }
    if Path::new(&config.cgroup_parent).components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return bad(format!("cgroup parent {:?}", config.cgroup_parent));
    }
    for name in config.sysctls.keys() {
        let spelled = name.replace('/', ".");
        let of_network = spelled.starts_with("net.") && config.namespaces.network == NamespaceMode::Pod;
        let of_ipc = config.namespaces.ipc == NamespaceMode::Pod
            && ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
                .iter()
                .any(|p| spelled.starts_with(p));
        if name.contains("..") || !(of_network || of_ipc) {
            return bad(format!("sysctl {name:?} is not in a separate kernel namespace of the pod"));
        }
    }
    if !config.runtime_handler.is_empty() {
        // As containerd words it.
        return bad(format!("no runtime for {:?} is configured", config.runtime_handler));
    }
    if config.hostname.len() > 64 {
        return bad(format!("hostname {:?} is longer than 64 bytes", config.hostname));
    }
    Ok(())
}

/// `resolv.conf`, `hostname` and `hosts` of the pod.
fn write_files(dir: &Path, config: &SandboxConfig) -> Result<()> {
    let dns = &config.dns;
    let resolv = if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    } else {
        let mut text = String::new();
        if !dns.searches.is_empty() {
            text.push_str(&format!("search {}\n", dns.searches.join(" ")));
        }
        for server in &dns.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !dns.options.is_empty() {
            text.push_str(&format!("options {}\n", dns.options.join(" ")));
        }
        text
    };
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\t{}\n",
        config.hostname
    );
    let node = nix::unistd::gethostname().unwrap_or_default();
    let hostname = if config.hostname.is_empty() {
        node.to_string_lossy().into_owned()
    } else {
        config.hostname.clone()
    };
    for (name, text) in [("resolv.conf", resolv), ("hostname", format!("{hostname}\n")), ("hosts", hosts)] {
        std::fs::write(dir.join(name), text).ctx(|| format!("write {}", dir.join(name).display()))?;
    }
    Ok(())
}

fn bandwidth(annotations: &std::collections::BTreeMap<String, String>) -> Result<Bandwidth> {
    let read = |key: &str| match annotations.get(key) {
        None => Ok(None),
        Some(text) => bits(text).map(Some).ok_or_else(|| {
            RuntimeError::InvalidArgument(format!("annotation {key}: {text:?} is not a quantity"))
        }),
    };
    Ok(Bandwidth {
        ingress_bps: read("kubernetes.io/ingress-bandwidth")?,
        egress_bps: read("kubernetes.io/egress-bandwidth")?,
    })
}

/// A quantity of bits: `10M`, `1G`, `512Ki`.
fn bits(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Unmounts lazily; nothing mounted is fine.
pub(super) fn unmount(path: &Path) -> Result<()> {
    use nix::errno::Errno;
    loop {
        match nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH) {
            // Once more: mounts can be stacked.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(e) => return Err(RuntimeError::io(format!("unmount {}", path.display()), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_quantities() {
        for (text, bits_per_second) in
            [("10M", Some(10_000_000)), ("1Ki", Some(1024)), ("7", Some(7)), ("x", None), ("1Q", None)]
        {
            assert_eq!(bits(text), bits_per_second, "{text}");
        }
    }
}
