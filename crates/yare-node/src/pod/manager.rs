//! Where pods come from and go to: the watch on this node's pods, the runtime's events, and what an earlier
//! life of the agent left running.
//!
//! In: changes of pods, runtime events. Out: one [`Worker`] task per pod, woken.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::{Id, JoinSet};
use yare_client::{Cached, Change, ObjectKey, Subscription};
use yare_runtime::{ContainerStatus, RuntimeEvent, SandboxStatus};

use super::dirs::PodDirs;
use super::mailbox::Mailbox;
use super::worker::Worker;
use crate::error::Result;
use crate::hooks::POD_HOOKS;
use crate::kubelet::Kubelet;
use crate::manifests::{self, Source, mirror};
use crate::metrics::table;
use crate::view::{Metadata, Pod};

/// Between attempts to clean up after a pod that is gone, doubling.
const ORPHAN_RETRY_MIN: Duration = Duration::from_millis(500);
const ORPHAN_RETRY_MAX: Duration = Duration::from_secs(122);

/// A static pod that has a task.
struct Static {
    key: ObjectKey,
    /// Its manifest is gone or says something else.
    ends: bool,
}

/// Everything the runtime holds, by pod uid.
type Found = HashMap<String, (Vec<SandboxStatus>, Vec<ContainerStatus>)>;

pub(crate) struct Manager {
    kubelet: Arc<Kubelet>,
    found: Found,
    mailboxes: HashMap<String, Arc<Mailbox>>,
    /// What each source of manifests says.
    sources: BTreeMap<Source, Vec<Cached>>,
    /// Static pods with a task, by uid.
    statics: HashMap<String, Static>,
    workers: JoinSet<()>,
    uids: HashMap<Id, String>,
}

impl Manager {
    /// Finds what runs already. The pods' tasks start with [`Manager::run`].
    pub(crate) async fn new(kubelet: Arc<Kubelet>) -> Result<Self> {
        let found = inventory(&kubelet).await?;
        for is_static in ["", "true"] {
            kubelet.metrics.add(&table::RESTARTED_PODS, &[is_static], 0.0);
        }
        Ok(Manager {
            kubelet,
            found,
            mailboxes: HashMap::new(),
            sources: BTreeMap::new(),
            statics: HashMap::new(),
            workers: JoinSet::new(),
            uids: HashMap::new(),
        })
    }

    /// Runs for as long as the node.
    pub(crate) async fn run(mut self) {
        // Subscribe before looking, so that nothing falls between.
        let mut events = self.kubelet.runtime.events();
        let mut sources = JoinSet::new();
        let mut manifests = manifests::follow(&self.kubelet, &mut sources);
        let mut unheard = Source::all(self.kubelet.config.settings());
        // Static pods do not wait for the API server.
        let api = self.kubelet.pods.clone();
        let mut changes: Option<Subscription> = None;
        let mut adopted = false;
        let mut pings = self.kubelet.pings.take();
        loop {
            // Until every source has spoken nobody is an orphan.
            if !adopted && changes.is_some() && unheard.is_empty() {
                adopted = true;
                self.kubelet.statics.heard_all();
                self.retain_resources(&[]);
                self.adopt_orphans();
            }
            tokio::select! {
                () = api.synced(), if changes.is_none() => {
                    changes = Some(api.subscribe());
                    let pods = api.list();
                    // Before any of them asks for what others had.
                    if unheard.is_empty() {
                        self.retain_resources(&pods);
                    }
                    self.take_over(&pods);
                    for cached in pods {
                        self.upsert(&cached);
                    }
                }
                change = next(&mut changes) => match change {
                    Some(change) => self.change(&change),
                    None => return,
                },
                Some(update) = manifests.recv() => {
                    unheard.retain(|source| *source != update.source);
                    self.sources.insert(update.source, update.pods);
                    self.reconcile_statics();
                }
                Some(answer) = pings.recv() => {
                    // Who asked may have gone.
                    let _ = answer.send(());
                }
                event = events.recv() => match event {
                    Ok(event) => self.event(&event),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "runtime events were missed, looking at every pod");
                        self.kubelet.wake_all();
                    }
                    Err(RecvError::Closed) => {
                        events = self.kubelet.runtime.events();
                        self.kubelet.wake_all();
                        // A runtime that hands out closed channels must not make this loop spin.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(ended) = self.workers.join_next_with_id(), if !self.workers.is_empty() => {
                    let id = match &ended {
                        Ok((id, ())) => *id,
                        Err(error) => error.id(),
                    };
                    if let Some(uid) = self.uids.remove(&id) {
                        if ended.is_err() {
                            tracing::error!(uid, "a pod's task failed; it is started again");
                            self.restart(&uid).await;
                        } else {
                            self.mailboxes.remove(&uid);
                            self.static_ended(&uid);
                        }
                    }
                }
            }
        }
    }

    /// Frees devices, processors and memory of pods that are neither running here nor among `pods`.
    fn retain_resources(&self, pods: &[Cached]) {
        let more = pods.iter().filter_map(|cached| cached.view::<Pod>().ok()).map(Arc::new);
        let all = self.mailboxes.values().map(|mailbox| mailbox.pod()).chain(more);
        let alive = all.filter(|pod| !pod.is_terminal()).map(|pod| pod.metadata.uid.clone()).collect();
        self.kubelet.managers.retain(&alive);
        self.kubelet.allocations.retain(&alive);
    }

    /// What pods that run already hold is theirs before anybody else asks for it.
    fn take_over(&self, pods: &[Cached]) {
        let running = |cached: &&Cached| {
            self.found.get(cached.uid()).is_some_and(|(_, containers)| !containers.is_empty())
        };
        for pod in pods.iter().filter(running).filter_map(|cached| cached.view::<Pod>().ok()) {
            if !pod.is_terminal() {
                self.kubelet.take_over(&Arc::new(pod));
            }
        }
    }

    /// Brings the running static pods in line with the manifests. Of two manifests for one name the first
    /// source's counts; a pod whose manifest changed ends before the new one begins.
    fn reconcile_statics(&mut self) {
        let mut wanted: BTreeMap<ObjectKey, Cached> = BTreeMap::new();
        for pod in self.sources.values().flatten() {
            wanted.entry(pod.key().clone()).or_insert_with(|| pod.clone());
        }
        self.kubelet.statics.want(wanted.clone());
        self.take_over(&wanted.values().cloned().collect::<Vec<_>>());
        for (uid, known) in &mut self.statics {
            let is_wanted = wanted.get(&known.key).is_some_and(|pod| pod.uid() == uid);
            if !is_wanted && !std::mem::replace(&mut known.ends, true) {
                self.kubelet.statics.ends(&known.key);
                if let Some(mailbox) = self.mailboxes.get(uid) {
                    mailbox.remove();
                }
            }
        }
        let taken: HashSet<ObjectKey> = self.statics.values().map(|known| known.key.clone()).collect();
        for (key, pod) in wanted {
            if !taken.contains(&key) {
                self.statics.insert(pod.uid().to_owned(), Static { key, ends: false });
                self.upsert(&pod);
            }
        }
    }

    /// A static pod has ended; under its name another may begin now.
    fn static_ended(&mut self, uid: &str) {
        if let Some(known) = self.statics.remove(uid) {
            if known.ends {
                self.kubelet.statics.ended(&known.key);
            }
            self.reconcile_statics();
            // The same manifest came back before its pod had ended.
            if self.statics.contains_key(uid) {
                self.kubelet.metrics.count(&table::RESTARTED_PODS, &["true"]);
            }
        }
    }

    fn event(&self, event: &RuntimeEvent) {
        match event {
            // Creation and start are this agent's own doing.
            RuntimeEvent::ContainerCreated { .. } | RuntimeEvent::ContainerStarted { .. } => {}
            RuntimeEvent::ContainerExited { sandbox, .. } | RuntimeEvent::SandboxGone { sandbox } => {
                self.kubelet.wake(sandbox);
            }
        }
    }

    fn change(&mut self, change: &Change) {
        let (new, old) = (change.new.as_ref(), change.old.as_ref());
        if let (None, Some(old)) = (new, old)
            && let Some(mailbox) = self.mailboxes.get(old.uid())
        {
            mailbox.remove();
            self.kubelet.disregard(old.uid());
        }
        if let Some(new) = new {
            self.upsert(new);
        }
    }

    fn upsert(&mut self, cached: &Cached) {
        // A mirror only shows what runs here anyway.
        if mirror::digest(cached).is_some() {
            return;
        }
        let pod = match cached.view::<Pod>() {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                tracing::error!(%error, "a pod that cannot be read is left alone");
                return;
            }
        };
        match self.mailboxes.get(cached.uid()) {
            Some(mailbox) => mailbox.update(pod),
            None => self.start(Mailbox::new(pod, false)),
        }
    }

    fn start(&mut self, mailbox: Arc<Mailbox>) {
        let uid = mailbox.pod().metadata.uid.clone();
        let (sandboxes, containers) = self.found.remove(&uid).unwrap_or_default();
        let worker = Worker::new(self.kubelet.clone(), mailbox.clone(), sandboxes, containers);
        let handle = self.workers.spawn(worker.run());
        self.uids.insert(handle.id(), uid.clone());
        self.mailboxes.insert(uid, mailbox);
    }

    async fn restart(&mut self, uid: &str) {
        let Some(mailbox) = self.mailboxes.remove(uid) else { return };
        if let Ok(mut found) = inventory(&self.kubelet).await
            && let Some(of_pod) = found.remove(uid)
        {
            self.found.insert(uid.to_owned(), of_pod);
        }
        self.start(mailbox);
    }

    /// Pods that were deleted while the agent was away: what runs is stopped, what lies around is removed.
    fn adopt_orphans(&mut self) {
        let orphans: Vec<String> = self.found.keys().cloned().collect();
        for uid in orphans {
            let Some((sandboxes, containers)) = self.found.get(&uid) else { continue };
            let label = |key: &str| {
                sandboxes
                    .iter()
                    .map(|s| &s.labels)
                    .chain(containers.iter().map(|c| &c.labels))
                    .find_map(|labels| labels.get(key).cloned())
                    .unwrap_or_default()
            };
            let metadata = Metadata {
                name: label("io.kubernetes.pod.name"),
                namespace: label("io.kubernetes.pod.namespace"),
                uid: uid.clone(),
                ..Metadata::default()
            };
            tracing::info!(
                pod = metadata.name,
                namespace = metadata.namespace,
                uid,
                "stopping a pod that was deleted"
            );
            self.kubelet.metrics.count(&table::ORPHANED_RUNTIME_PODS, &[]);
            self.start(Mailbox::new(Arc::new(Pod { metadata, ..Pod::default() }), true));
        }
        self.remove_orphaned_directories();
    }

    fn remove_orphaned_directories(&self) {
        let root = self.kubelet.data_dir.join("pods");
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let Some(uid) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if self.mailboxes.contains_key(&uid) {
                continue;
            }
            let pod =
                Pod { metadata: Metadata { uid: uid.clone(), ..Metadata::default() }, ..Pod::default() };
            let dirs = PodDirs::new(&self.kubelet.data_dir, &self.kubelet.log_dir, &pod);
            let kubelet = self.kubelet.clone();
            tokio::spawn(async move {
                let mut wait = ORPHAN_RETRY_MIN;
                let mut failing = false;
                while let Err(error) = tear_down(&kubelet, &dirs).await {
                    tracing::warn!(%error, uid, "cleaning up after an orphaned pod");
                    if !std::mem::replace(&mut failing, true) {
                        kubelet.metrics.add(&table::ORPHAN_VOLUMES_ERRORS, &[], 1.0);
                    }
                    // Most likely a storage driver is not there yet.
                    kubelet.volumes.next_driver(wait).await;
                    wait = (wait * 2).min(ORPHAN_RETRY_MAX);
                }
                if failing {
                    kubelet.metrics.add(&table::ORPHAN_VOLUMES_ERRORS, &[], -1.0);
                }
                kubelet.metrics.add(&table::ORPHAN_VOLUMES, &[], 1.0);
                if let Err(error) = std::fs::remove_dir_all(&dirs.root) {
                    tracing::warn!(%error, path = %dirs.root.display(), "removing an orphaned pod's directory");
                }
            });
        }
    }
}

async fn tear_down(kubelet: &Arc<Kubelet>, dirs: &PodDirs) -> Result<()> {
    for hook in POD_HOOKS.iter().rev() {
        hook.tear_down(kubelet, dirs).await?;
    }
    Ok(())
}

/// The next change, once there is somebody to tell.
async fn next(changes: &mut Option<Subscription>) -> Option<Change> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

/// Groups what the runtime holds by the pod it belongs to.
async fn inventory(kubelet: &Kubelet) -> Result<Found> {
    let mut found: Found = HashMap::new();
    for sandbox in kubelet.runtime.sandboxes().await? {
        found.entry(sandbox.uid.clone()).or_default().0.push(sandbox);
    }
    for container in kubelet.runtime.containers().await? {
        let Some(uid) = container.labels.get("io.kubernetes.pod.uid").cloned() else { continue };
        found.entry(uid).or_default().1.push(container);
    }
    // Not a pod of ours: a sandbox without a uid belongs to somebody else.
    found.remove("");
    Ok(found)
}
