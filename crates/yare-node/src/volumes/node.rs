//! The volumes that pods of one node share: who uses each, whether it is staged, and what the attach/detach
//! controller is told of it.
//!
//! A volume is here from the moment a pod wants it until the last one that did is gone and it is no longer
//! staged. All operations on one volume take turns. What was staged by an earlier life of the agent is found by
//! its records on disk ([`NodeVolumes::restore`]), so that nothing stays behind and nothing is taken from a pod
//! that still runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::pod_certificate::Standing;
use super::{Failure, KINDS, stats};
use crate::kubelet::Kubelet;
use crate::pod::mailbox::Mailbox;

/// Between attempts to give a volume back, doubling.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// Something staged, as its record on disk tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    /// The row of the table it belongs to.
    pub(crate) plugin: &'static str,
    /// The directory of its record.
    pub(crate) dir: PathBuf,
    /// As a device.
    pub(crate) block: bool,
}

/// What one volume's operations know of it; whoever holds it has the turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// It may be staged: there is a record.
    pub(crate) staged: Option<Staged>,
    /// It is staged, without a doubt.
    pub(crate) sure: bool,
    /// Bytes of the claim that the node has served.
    pub(crate) claim_bytes: Option<i64>,
    /// The driver will not expand it while it is used.
    pub(crate) not_in_use: bool,
    /// Expanding it failed for good once.
    pub(crate) failed_expansion: bool,
}

/// One shared volume.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) turn: tokio::sync::Mutex<Turn>,
    /// Uids of the pods that want it; whether it may be mounted for them.
    users: Mutex<BTreeMap<String, bool>>,
    attachable: AtomicBool,
}

impl Shared {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Shared {
            name: name.to_owned(),
            turn: tokio::sync::Mutex::default(),
            users: Mutex::default(),
            attachable: AtomicBool::new(false),
        })
    }

    /// The pod's mount begins.
    pub(crate) fn mounting(&self, uid: &str) {
        if let Some(mounted) = self.users.lock().get_mut(uid) {
            *mounted = true;
        }
    }

    /// Whether it may be mounted for another pod.
    pub(crate) fn is_elsewhere(&self, uid: &str) -> bool {
        self.users.lock().iter().any(|(user, mounted)| *mounted && user != uid)
    }

    fn is_idle(&self) -> bool {
        self.users.lock().is_empty()
    }
}

/// How certificates stand, by volume and place in it, with their signers.
type PodCertificates = BTreeMap<(String, usize), (String, Standing)>;

/// See the module.
#[derive(Default)]
pub(crate) struct NodeVolumes {
    shared: Mutex<HashMap<String, Arc<Shared>>>,
    /// Pods that wait for a driver or for the attach/detach controller.
    waiting: Mutex<HashMap<String, Arc<Mailbox>>>,
    /// `status.volumesInUse` as it should be.
    in_use: watch::Sender<BTreeSet<String>>,
    /// `status.volumesInUse` as it was written.
    reported: Mutex<BTreeSet<String>>,
    /// `status.volumesAttached` as it was read.
    attached: Mutex<BTreeSet<String>>,
    /// A volume lost its last user.
    idle: Notify,
    /// A driver came, which may be needed to give a volume back.
    driver: Notify,
    /// What each pod has mounted, for statistics.
    pub(super) measured: Mutex<HashMap<String, stats::PodVolumes>>,
    /// How the certificates of each pod stand.
    certificates: Mutex<HashMap<String, PodCertificates>>,
}

impl NodeVolumes {
    /// Finds what an earlier life of the agent left staged, and for whom.
    pub(crate) fn restore(data_dir: &std::path::Path) -> Self {
        let this = Self::default();
        for kind in KINDS {
            for found in kind.restore(data_dir) {
                let shared = this.entry(&found.name);
                if let Some(staged) = found.staged
                    && let Ok(mut turn) = shared.turn.try_lock()
                {
                    turn.staged = Some(staged);
                }
                if let Some(uid) = found.user {
                    shared.users.lock().insert(uid, true);
                }
                if found.attachable {
                    shared.attachable.store(true, Ordering::Relaxed);
                }
            }
        }
        this.tell_in_use();
        this
    }

    fn entry(&self, name: &str) -> Arc<Shared> {
        self.shared.lock().entry(name.to_owned()).or_insert_with(|| Shared::new(name)).clone()
    }

    /// A pod wants a volume.
    pub(crate) fn join(&self, name: &str, uid: &str, attachable: bool) -> Arc<Shared> {
        let shared = {
            // Under one lock, so that nobody forgets the volume in between.
            let mut all = self.shared.lock();
            let shared = all.entry(name.to_owned()).or_insert_with(|| Shared::new(name)).clone();
            shared.users.lock().entry(uid.to_owned()).or_insert(false);
            shared
        };
        if shared.attachable.swap(attachable, Ordering::Relaxed) != attachable {
            self.tell_in_use();
        }
        shared
    }

    /// Whether another pod has the volume mounted.
    pub(crate) fn is_elsewhere(&self, name: &str, uid: &str) -> bool {
        let shared = self.shared.lock().get(name).cloned();
        shared.is_some_and(|shared| shared.is_elsewhere(uid))
    }

    /// Whether a volume is attached, as far as the node's object tells; otherwise the pod has to wait.
    pub(crate) fn check_attached(&self, name: &str) -> Result<(), Failure> {
        if !self.reported.lock().contains(name) {
            return Err(Failure::waiting(format!("volume {name} is not yet reported in use")));
        }
        if !self.attached.lock().contains(name) {
            return Err(Failure::waiting(format!("volume {name} is not yet in node's status")));
        }
        Ok(())
    }

    /// A pod is gone, with all its mounts.
    pub(crate) fn release(&self, uid: &str) {
        self.waiting.lock().remove(uid);
        self.measured.lock().remove(uid);
        let mut left = false;
        for shared in self.shared.lock().values() {
            left |= shared.users.lock().remove(uid).is_some();
        }
        if left {
            self.idle.notify_one();
        }
    }

    /// Wakes a pod when a driver comes or a volume is attached.
    pub(crate) fn wait(&self, uid: &str, mailbox: &Arc<Mailbox>) {
        self.waiting.lock().insert(uid.to_owned(), mailbox.clone());
    }

    fn wake(&self) {
        let waiting: Vec<_> = self.waiting.lock().drain().map(|(_, mailbox)| mailbox).collect();
        for mailbox in waiting {
            mailbox.wake();
        }
    }

    /// A driver registered.
    pub(crate) fn driver_came(&self) {
        self.wake();
        self.driver.notify_waiters();
    }

    /// Waits for a driver to register, for some time.
    pub(crate) async fn next_driver(&self, at_most: Duration) {
        tokio::select! {
            () = self.driver.notified() => {}
            () = tokio::time::sleep(at_most) => {}
        }
    }

    /// The volumes to report in the node's status, and their changes.
    pub(crate) fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.in_use.subscribe()
    }

    fn tell_in_use(&self) {
        let all: BTreeSet<String> = {
            let shared = self.shared.lock();
            let attachable = shared.values().filter(|s| s.attachable.load(Ordering::Relaxed));
            attachable.map(|s| s.name.clone()).collect()
        };
        self.in_use.send_if_modified(|before| {
            let differs = *before != all;
            *before = all;
            differs
        });
    }

    /// The node's status was written with these volumes in use.
    pub(crate) fn was_reported(&self, names: BTreeSet<String>) {
        let before = std::mem::replace(&mut *self.reported.lock(), names.clone());
        if before != names {
            self.wake();
        }
    }

    /// The node's object says that these volumes are attached.
    pub(crate) fn were_attached(&self, names: BTreeSet<String>) {
        let before = std::mem::replace(&mut *self.attached.lock(), names.clone());
        if before != names {
            self.wake();
        }
    }

    /// How a pod's certificate stands from now on.
    pub(super) fn tell_certificate(
        &self,
        uid: &str,
        place: (String, usize),
        signer: &str,
        standing: Standing,
    ) {
        let mut all = self.certificates.lock();
        all.entry(uid.to_owned()).or_default().insert(place, (signer.to_owned(), standing));
    }

    /// A pod is gone, and its certificates with it.
    pub(crate) fn forget_certificates(&self, uid: &str) {
        self.certificates.lock().remove(uid);
    }

    /// How many certificates there are by signer and state.
    pub(crate) fn certificates(&self, now: Timestamp) -> BTreeMap<(String, &'static str), u32> {
        let mut counts = BTreeMap::new();
        for (signer, standing) in self.certificates.lock().values().flat_map(BTreeMap::values) {
            *counts.entry((signer.clone(), standing.word(now))).or_default() += 1;
        }
        counts
    }
}

/// Gives back what no pod uses any more, for as long as the node runs.
pub(crate) async fn give_back(kubelet: Arc<Kubelet>) {
    // Which pods there are is known from then on; those that are gone give their volumes back one by one.
    kubelet.pods.synced().await;
    let volumes = &kubelet.volumes;
    let mut busy = BTreeSet::new();
    let mut under_way = FuturesUnordered::new();
    loop {
        let idle: Vec<Arc<Shared>> = {
            let shared = volumes.shared.lock();
            shared.values().filter(|s| s.is_idle() && !busy.contains(&s.name)).cloned().collect()
        };
        for shared in idle {
            busy.insert(shared.name.clone());
            under_way.push(forget(&kubelet, shared));
        }
        tokio::select! {
            () = volumes.idle.notified() => {}
            Some(name) = under_way.next(), if !under_way.is_empty() => {
                busy.remove(&name);
            }
        }
    }
}

/// Unstages a volume, again and again until it is done or somebody wants it again. Answers its name.
async fn forget(kubelet: &Arc<Kubelet>, shared: Arc<Shared>) -> String {
    let mut wait = RETRY_MIN;
    loop {
        {
            let mut turn = shared.turn.lock().await;
            if !shared.is_idle() {
                return shared.name.clone();
            }
            let given_back = match turn.staged.clone() {
                Some(staged) => {
                    turn.sure = false;
                    match KINDS.iter().find(|k| k.plugin() == staged.plugin) {
                        Some(kind) => kind.unstage(kubelet, &staged).await,
                        None => Ok(()),
                    }
                }
                None => Ok(()),
            };
            match given_back {
                Ok(()) => {
                    turn.staged = None;
                    let mut all = kubelet.volumes.shared.lock();
                    // Whoever came meanwhile waits for the turn, and finds it not staged.
                    if shared.is_idle() {
                        all.remove(&shared.name);
                        drop(all);
                        kubelet.volumes.tell_in_use();
                    }
                    return shared.name.clone();
                }
                Err(error) => tracing::warn!(error, volume = shared.name, "unstaging a volume"),
            }
        }
        kubelet.volumes.next_driver(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}
