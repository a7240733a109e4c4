//! What pods are given: CPU and memory that the node has agreed to, and that are in force (KEP-1287, KEP-5419).
//!
//! A pod's spec says what it wants. The node runs pods with what it has *allocated*, which is what they wanted when
//! they were admitted, and follows a resize once it has agreed to it. What containers were started with or updated to is
//! *in force*.
//!
//! ```text
//! wants ─► infeasible? ─► room? ─► allocated (on disk, event, PodResizeInProgress) ─► the pod's task: in force
//!             │            └─► Deferred: again when room or the wish changes, the most urgent first
//!             └─► Infeasible: again when the wish changes
//! ```
//!
//! Nothing polls: whoever gives something back says so ([`Allocations::freed`]).

mod conditions;
mod feasible;
mod messages;
mod queue;
mod sizes;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use yare_client::EventKind;
use yare_schema::features::Gates;

pub(crate) use conditions::KINDS as CONDITIONS;
use conditions::{Conditions, DEFERRED, ERROR, INFEASIBLE};
use feasible::Case;
pub(crate) use messages::message;
pub(crate) use sizes::{Sizes, Switches, effective};
use store::Store;

use crate::error::Result;
use crate::kubelet::Kubelet;
use crate::metrics::{Metrics, table};
use crate::quantity;
use crate::view::{Container, Pod, PodCondition, ResourceRequirements};

const ALLOCATED_FILE: &str = "allocated_pods_state";
const IN_FORCE_FILE: &str = "actuated_pods_state";
/// First sizes of pods are written together.
const SETTLE: Duration = Duration::from_secs(1);
/// Upstream's word for looking again without a cause.
pub(crate) const PERIODIC: &str = "periodic_retry";
/// After a file could not be written.
const RETRY: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Allocations {
    pub(crate) switches: Switches,
    state: Mutex<State>,
    /// Held while the files are written, which may take a moment; `state` is not.
    disk: Mutex<()>,
    /// One at a time decides who gets what is free.
    turn: Mutex<()>,
    dirty: Notify,
    freed: Notify,
    /// What last gave hope.
    freed_by: Mutex<&'static str>,
}

struct State {
    allocated: Store,
    in_force: Store,
    resizes: HashMap<String, Resize>,
}

/// A pod that wants another size, or wanted one.
#[derive(Default)]
struct Resize {
    conditions: Conditions,
    /// What it wanted when that was last judged.
    judged: Option<Sizes>,
    /// To be judged (again) when there may be room.
    waits: bool,
}

impl Allocations {
    /// As an earlier life of the agent left them below `data_dir`.
    pub(crate) fn restore(data_dir: &Path, gates: &Gates) -> Result<Self> {
        let state = State {
            allocated: Store::load(data_dir.join(ALLOCATED_FILE))?,
            in_force: Store::load(data_dir.join(IN_FORCE_FILE))?,
            resizes: HashMap::new(),
        };
        Ok(Allocations {
            switches: Switches::new(gates),
            state: Mutex::new(state),
            disk: Mutex::new(()),
            turn: Mutex::new(()),
            dirty: Notify::new(),
            freed: Notify::new(),
            freed_by: Mutex::new(""),
        })
    }

    /// The pod with what it is allocated, as it has to run; as it is where that is what it wants.
    pub(crate) fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.state.lock().allocated.get(&pod.metadata.uid) {
            Some(sizes) => sizes.apply(pod, self.switches),
            None => pod.clone(),
        }
    }

    /// The pod with what is in force.
    pub(crate) fn as_in_force(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.state.lock().in_force.get(&pod.metadata.uid) {
            Some(sizes) => sizes.apply(pod, self.switches),
            None => pod.clone(),
        }
    }

    /// What is in force of a pod.
    pub(crate) fn in_force(&self, uid: &str) -> Option<Sizes> {
        self.state.lock().in_force.get(uid).cloned()
    }

    /// What a pod holds of the node: what it is allocated, and what it has not given back of what is in force.
    pub(crate) fn held(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let state = self.state.lock();
        match state.in_force.get(&pod.metadata.uid) {
            Some(sizes) if sizes.differs(pod, self.switches) => {
                Sizes::of(pod, self.switches).larger(sizes).apply(pod, self.switches)
            }
            _ => pod.clone(),
        }
    }

    /// A pod that runs comes into view: what it was given and how its resize stood, from the files or else from its
    /// status.
    pub(crate) fn recall(&self, pod: &Pod) {
        let uid = &pod.metadata.uid;
        let mut state = self.state.lock();
        let found = Conditions::found(pod);
        if found != Conditions::default() {
            state.resizes.entry(uid.clone()).or_default().conditions = found;
        }
        let (allocated, in_force) = (state.allocated.get(uid).is_some(), state.in_force.get(uid).is_some());
        if (allocated && in_force) || pod.is_static() {
            return;
        }
        if let Some(told) = Sizes::told(pod, self.switches) {
            if !allocated {
                state.allocated.set(uid, told.0);
            }
            if !in_force {
                state.in_force.set(uid, told.1);
            }
            self.dirty.notify_one();
        }
    }

    /// A pod was admitted with what it asks for, unless something was allocated to it before.
    pub(crate) fn admitted(&self, pod: &Pod) {
        let mut state = self.state.lock();
        if state.allocated.get(&pod.metadata.uid).is_none() {
            state.allocated.set(&pod.metadata.uid, Sizes::of(pod, self.switches));
            self.dirty.notify_one();
        }
    }

    /// A pod's sandbox was made.
    pub(crate) fn sandbox_made(&self, pod: &Pod) {
        if self.switches.pod && pod.spec.resources.as_ref().is_some_and(|r| !r.is_empty()) {
            self.state.lock().in_force.entry(&pod.metadata.uid).pod.clone_from(&pod.spec.resources);
            self.dirty.notify_one();
        }
    }

    /// A container was made.
    pub(crate) fn container_made(&self, pod: &Pod, container: &Container) {
        if !self.switches.resizable(pod).any(|c| c.name == container.name) {
            return;
        }
        let size = self.effective(pod, container);
        let uid = &pod.metadata.uid;
        let before =
            self.state.lock().in_force.entry(uid).containers.insert(container.name.clone(), size.clone());
        // Another size than before must not be taken for one that is still to come.
        if before.is_some_and(|before| before != size) {
            self.flush_or_later();
        } else {
            self.dirty.notify_one();
        }
    }

    /// Notes what an update put in force.
    pub(crate) fn put_in_force(&self, uid: &str, change: impl FnOnce(&mut Sizes)) {
        change(self.state.lock().in_force.entry(uid));
        self.flush_or_later();
    }

    /// Writes what is not on disk.
    fn flush(&self) -> std::io::Result<()> {
        let _disk = self.disk.lock();
        let stores: [fn(&mut State) -> &mut Store; 2] = [|s| &mut s.allocated, |s| &mut s.in_force];
        for store in stores {
            let Some((path, bytes)) = store(&mut self.state.lock()).take() else { continue };
            if let Err(error) = store::write(&path, &bytes) {
                store(&mut self.state.lock()).failed();
                return Err(error);
            }
        }
        Ok(())
    }

    fn flush_or_later(&self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "writing what pods are allocated, will retry");
            self.dirty.notify_one();
        }
    }

    /// A container's size with the limits of its pod where it has none.
    pub(crate) fn effective(&self, pod: &Pod, container: &Container) -> ResourceRequirements {
        effective(&container.resources, pod.spec.resources.as_ref().filter(|_| self.switches.pod))
    }

    /// Everything of a pod may go.
    pub(crate) fn forget(&self, uid: &str) {
        let mut state = self.state.lock();
        state.allocated.remove(uid);
        state.in_force.remove(uid);
        state.resizes.remove(uid);
        if state.allocated.is_dirty() || state.in_force.is_dirty() {
            self.dirty.notify_one();
        }
    }

    /// Forgets pods that are not there any more.
    pub(crate) fn retain(&self, uids: &BTreeSet<String>) {
        let mut state = self.state.lock();
        state.allocated.retain(uids);
        state.in_force.retain(uids);
        self.dirty.notify_one();
    }

    /// There may be room: pods that wait for it are looked at again. `why`: upstream's word for it.
    pub(crate) fn freed(&self, why: &'static str) {
        if self.state.lock().resizes.values().any(|r| r.waits) {
            *self.freed_by.lock() = why;
            self.freed.notify_one();
        }
    }

    /// For the pod's status.
    pub(crate) fn conditions(&self, uid: &str) -> Vec<PodCondition> {
        self.state.lock().resizes.get(uid).map(|r| r.conditions.list()).unwrap_or_default()
    }

    /// The pod has ended: it will not be resized.
    pub(crate) fn end(&self, uid: &str) {
        self.state.lock().resizes.remove(uid);
    }

    /// Takes up what a pod wants: whether that is to be judged now.
    fn take_up(&self, metrics: &Metrics, wants: &Pod) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let uid = &wants.metadata.uid;
        let Some(allocated) = state.allocated.get(uid) else { return false };
        if !allocated.differs(wants, self.switches) {
            if let Some(resize) = state.resizes.get_mut(uid) {
                resize.conditions.pending = None;
                if let Some(before) = resize.judged.take() {
                    count_requested(metrics, &before, allocated);
                }
                resize.waits = false;
            }
            return false;
        }
        let sizes = Sizes::of(wants, self.switches);
        let resize = state.resizes.entry(uid.clone()).or_default();
        let before = resize.judged.as_ref().unwrap_or(allocated);
        let news = resize.judged.as_ref() != Some(&sizes);
        if news {
            count_requested(metrics, before, &sizes);
        }
        resize.waits |= news;
        news
    }

    /// Agrees to what a pod wants, on disk before anybody acts upon it. Says why that failed.
    fn agree(&self, wants: &Pod, now: Timestamp) -> std::io::Result<()> {
        let uid = &wants.metadata.uid;
        let before = self.state.lock().allocated.set(uid, Sizes::of(wants, self.switches));
        let written = self.flush();
        let mut state = self.state.lock();
        if let Err(error) = written {
            match before {
                Some(before) => drop(state.allocated.set(uid, before)),
                None => state.allocated.remove(uid),
            }
            return Err(error);
        }
        let resize = state.resizes.entry(uid.clone()).or_default();
        resize.waits = false;
        resize.judged = None;
        // What is said of an earlier resize, errors too, is over.
        resize.conditions = Conditions::default();
        resize.conditions.set_in_progress("", "", wants.metadata.generation, now);
        Ok(())
    }

    /// Declines what a pod wants. Whether that is news.
    fn decline(&self, wants: &Pod, reason: &str, message: &str, now: Timestamp) -> bool {
        let mut state = self.state.lock();
        let resize = state.resizes.entry(wants.metadata.uid.clone()).or_default();
        resize.waits = reason == DEFERRED;
        resize.judged = Some(Sizes::of(wants, self.switches));
        resize.conditions.set_pending(reason, message, wants.metadata.generation, now)
    }

    /// What is allocated to a pod is not in force yet; with a message, because of an error. Whether that is news.
    pub(crate) fn in_progress(&self, pod: &Pod, error: Option<&str>, now: Timestamp) -> bool {
        let mut state = self.state.lock();
        let conditions = &mut state.resizes.entry(pod.metadata.uid.clone()).or_default().conditions;
        let reason = if error.is_some() { ERROR } else { "" };
        conditions.set_in_progress(reason, error.unwrap_or_default(), pod.metadata.generation, now)
    }

    /// What is allocated to a pod is in force. The generation that asked for it, if a resize was on its way.
    pub(crate) fn completed(&self, uid: &str) -> Option<i64> {
        self.state.lock().resizes.get_mut(uid)?.conditions.clear_in_progress()
    }

    /// How many pods wait for their node's word, by reason, and how many are being resized.
    pub(crate) fn unfinished(&self) -> (BTreeMap<String, u32>, u32) {
        let state = self.state.lock();
        let mut pending: BTreeMap<String, u32> = BTreeMap::new();
        let mut in_progress = 0;
        for resize in state.resizes.values() {
            if let Some(reason) = resize.conditions.pending.as_ref().and_then(|c| c.reason.clone()) {
                *pending.entry(reason).or_default() += 1;
            }
            in_progress += u32::from(resize.conditions.in_progress.is_some());
        }
        (pending, in_progress)
    }

    fn waiting(&self) -> Vec<String> {
        self.state.lock().resizes.iter().filter(|(_, r)| r.waits).map(|(uid, _)| uid.clone()).collect()
    }

    fn deferred_since(&self, uid: &str) -> Option<String> {
        let state = self.state.lock();
        let conditions = &state.resizes.get(uid)?.conditions;
        conditions.is_deferred().then(|| conditions.pending.clone()?.last_transition_time).flatten()
    }
}

/// Counts what is to change of containers.
fn count_requested(metrics: &Metrics, before: &Sizes, after: &Sizes) {
    let none = ResourceRequirements::default();
    for (name, new) in &after.containers {
        let old = before.containers.get(name).unwrap_or(&none);
        for resource in ["memory", "cpu"] {
            for (requirement, old, new) in
                [("requests", &old.requests, &new.requests), ("limits", &old.limits, &new.limits)]
            {
                let nanos = |list: &BTreeMap<String, String>| {
                    list.get(resource).and_then(|t| quantity::nanos(t)).unwrap_or(0)
                };
                let operation = match (nanos(old), nanos(new)) {
                    (old, new) if old == new => continue,
                    (_, 0) => "remove",
                    (0, _) => "add",
                    (old, new) if old < new => "increase",
                    _ => "decrease",
                };
                metrics.count(&table::REQUESTED_RESIZES, &[operation, requirement, resource]);
            }
        }
    }
}

/// Takes up what a pod wants; conditions and allocation are as they should be afterwards.
pub(crate) fn consider(kubelet: &Kubelet, wants: &Arc<Pod>) {
    if kubelet.allocations.take_up(&kubelet.metrics, wants) {
        judge_all(kubelet, "pod_updated");
    }
}

/// Judges every pod that waits, the most urgent first.
fn judge_all(kubelet: &Kubelet, trigger: &str) {
    let allocations = &kubelet.allocations;
    let _turn = allocations.turn.lock();
    let mut waiting = Vec::new();
    for uid in allocations.waiting() {
        let mailbox = kubelet.mailboxes.lock().get(&uid).cloned();
        let Some(mailbox) = mailbox.filter(|m| !m.is_stopping()) else { continue };
        let wants = mailbox.pod();
        let has = allocations.apply(&wants);
        waiting.push(queue::Entry { since: allocations.deferred_since(&uid), has, wants, mailbox });
    }
    queue::sort(&mut waiting);
    for entry in waiting {
        if judge(kubelet, &entry.has, &entry.wants, trigger) {
            entry.mailbox.wake();
        }
    }
}

/// Judges one pod; whether anything is different now.
fn judge(kubelet: &Kubelet, has: &Arc<Pod>, wants: &Arc<Pod>, trigger: &str) -> bool {
    let allocations = &kubelet.allocations;
    let was_deferred = allocations.deferred_since(&wants.metadata.uid).is_some();
    let now = kubelet.seams.now();
    let event = |kind, reason: &str, text: String| kubelet.pod_event(wants, None, kind, reason, text);
    let generation = wants.metadata.generation;
    let case = Case {
        has,
        wants,
        switches: allocations.switches,
        policy: &kubelet.resources.policy,
        exclusive_cpus: kubelet.managers.cpu.active(),
        exclusive_memory: kubelet.managers.memory.active(),
    };
    let declined = match feasible::obstacle(&case) {
        Some((word, obstacle)) => {
            kubelet.metrics.count(&table::INFEASIBLE_RESIZES, &[word]);
            Some((INFEASIBLE, "ResizeInfeasible", obstacle))
        }
        None => kubelet.admit_resize(wants).err().map(|r| (DEFERRED, "ResizeDeferred", r.message)),
    };
    if let Some((reason, name, text)) = declined {
        let news = allocations.decline(wants, reason, &text, now);
        if news {
            let sentence = format!("Pod resize {reason}");
            event(EventKind::Warning, name, message(&sentence, wants, generation, &text));
        }
        return news;
    }
    if let Err(error) = allocations.agree(wants, now) {
        tracing::warn!(%error, pod = %wants.full_name(), "a resize cannot be noted");
        kubelet.recharge(has);
        // It waits on; the files are tried again in a while.
        allocations.dirty.notify_one();
        return false;
    }
    if was_deferred {
        kubelet.metrics.count(&table::DEFERRED_RESIZES, &[trigger]);
    }
    event(EventKind::Normal, "ResizeStarted", message("Pod resize started", wants, generation, ""));
    true
}

/// Keeps the files, and looks again at pods that wait when there may be room.
pub(crate) async fn tend(kubelet: Arc<Kubelet>) {
    let allocations = &kubelet.allocations;
    tokio::join!(
        async {
            loop {
                allocations.freed.notified().await;
                let trigger = std::mem::take(&mut *allocations.freed_by.lock());
                judge_all(&kubelet, trigger);
            }
        },
        async {
            loop {
                allocations.dirty.notified().await;
                tokio::time::sleep(SETTLE).await;
                let node = kubelet.clone();
                let written = tokio::task::spawn_blocking(move || node.allocations.flush()).await;
                if let Ok(Err(error)) = written {
                    tracing::warn!(%error, "writing what pods are allocated, will retry");
                    tokio::time::sleep(RETRY).await;
                    allocations.dirty.notify_one();
                    continue;
                }
                // What could not be agreed to because nothing could be written.
                allocations.freed(PERIODIC);
            }
        }
    );
}
