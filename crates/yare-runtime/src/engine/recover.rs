//! Finding everything again: what an earlier engine left, running or half made.
//!
//! The directories are the ledger. A sandbox that was being made is unmade; one that was ready is asked through its
//! socket what runs; one whose shim is gone is stopped. Containers take their ends from the files that their shims
//! wrote meanwhile. Whatever lies below the run directory without a sandbox is given back.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Inner;
use super::sandbox::{follow, unmount};
use super::shim_client::ShimClient;
use super::state::{ContainerEntry, ContainerLive, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::api::*;
use crate::error::Result;
use crate::proto::{Answer, Ask, Spec, read_json};

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

impl Inner {
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let runtime = self.config.data_dir.join("runtime");
        for trash in names(&runtime.join("trash")) {
            let path = runtime.join("trash").join(trash);
            tokio::task::spawn_blocking(move || drop(std::fs::remove_dir_all(path)));
        }
        self.load_containers();
        for id in names(&runtime.join("sandboxes")) {
            self.recover_sandbox(&id).await;
        }
        let orphans: Vec<_> = {
            let state = self.state.lock();
            let known = |c: &&Arc<ContainerEntry>| !state.sandboxes.contains_key(&c.record.sandbox_id);
            state.containers.values().filter(known).cloned().collect()
        };
        for c in orphans {
            self.settle_dead(&c);
            self.discard(&self.container_dir(&c.id));
            self.state.lock().containers.remove(&c.id);
        }
        self.sweep_run_dir();
        Ok(())
    }

    fn load_containers(&self) {
        for id in names(&self.containers_dir()) {
            let dir = self.container_dir(&id);
            match read_json::<ContainerRecord>(&dir.join("container.json")) {
                Ok(record) => {
                    let spec = read_json::<Spec>(&dir.join("spec.json")).ok();
                    let live = ContainerLive {
                        run: read_json(&dir.join("run.json")).ok(),
                        exit: read_json(&dir.join("exit.json")).ok(),
                        resources: spec.map_or_else(|| record.config.resources.clone(), |s| s.resources),
                    };
                    let entry = Arc::new(ContainerEntry::new(id.clone(), record, live));
                    self.state.lock().containers.insert(id, entry);
                }
                // Half made, or written when the power failed.
                Err(_) => self.discard(&dir),
            }
        }
    }

    async fn recover_sandbox(self: &Arc<Self>, id: &str) {
        let dir = self.sandbox_dir(id);
        let record = match read_json::<SandboxRecord>(&dir.join("sandbox.json")) {
            Ok(record) => record,
            Err(e) => {
                tracing::warn!(sandbox = %id, error = %e, "unreadable sandbox; cleaning up what its name tells");
                let record = SandboxRecord {
                    config: SandboxConfig::default(),
                    created_at_ns: 0,
                    phase: SandboxPhase::Making,
                    ips: Vec::new(),
                    cgroup: String::new(),
                    own_cgroup: false,
                };
                self.tear_down(id, &record).await;
                return self.discard(&dir);
            }
        };
        match record.phase {
            SandboxPhase::Making => {
                self.tear_down(id, &record).await;
                self.discard(&dir);
            }
            SandboxPhase::Stopped => {
                let entry = self.entry(id, record, None);
                self.state.lock().sandboxes.insert(id.to_owned(), entry);
                for c in self.containers_of(id) {
                    self.settle_dead(&c);
                }
            }
            SandboxPhase::Ready => self.reconnect(id, record).await,
        }
    }

    async fn reconnect(self: &Arc<Self>, id: &str, record: SandboxRecord) {
        let (tx, rx) = mpsc::unbounded_channel();
        let shim = ShimClient::connect(id, &self.socket_path(id), tx).await.unwrap_or_else(|e| {
            tracing::warn!(sandbox = %id, error = %e, "reconnecting to its shim");
            None
        });
        let entry = self.entry(id, record, shim.clone());
        self.state.lock().sandboxes.insert(id.to_owned(), entry);
        let Some(shim) = shim else {
            if let Err(e) = self.stop_sandbox(id).await {
                tracing::warn!(sandbox = %id, error = %e, "cleaning up after a dead shim");
            }
            return;
        };
        // Ask after the connection stands: ends from now on come as events.
        let running: BTreeSet<String> = match shim.ask(Ask::List, Vec::new()).await.map(|r| r.answer) {
            Ok(Answer::Running(ids)) => ids.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        for c in self.containers_of(id) {
            if c.current() == ContainerState::Running && !running.contains(&c.id) {
                self.settle_dead(&c);
            }
        }
        tokio::spawn(follow(Arc::downgrade(self), id.to_owned(), rx));
    }

    /// Mounts and sockets that no sandbox has.
    fn sweep_run_dir(&self) {
        let known: BTreeSet<String> = self.state.lock().sandboxes.keys().cloned().collect();
        for sub in ["netns", "shm"] {
            let dir = self.config.run_dir.join(sub);
            for name in names(&dir).iter().filter(|n| !known.contains(*n)) {
                let path = dir.join(name);
                let _ = unmount(&path);
                let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
            }
        }
        let sockets = self.config.run_dir.join("s");
        for name in names(&sockets) {
            if !known.iter().any(|id| id.starts_with(&name)) {
                let _ = std::fs::remove_file(sockets.join(name));
            }
        }
    }
}
