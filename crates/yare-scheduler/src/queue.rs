//! Pods that wait: ready to be tried (highest priority first), backing off after a failure, or unschedulable
//! until something changes that could help.
//!
//! Time comes in as an argument, so that a test can drive it.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use yare_client::ObjectKey;

use crate::{
    metrics::{self, Metrics, Waiting},
    plugins::Events,
    pod::PodInfo,
};

/// First and longest wait after a failed attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// After this long an unschedulable pod is tried again even if nothing seemed to help.
const STUCK: Duration = Duration::from_secs(5 * 60);

/// A pod that waits.
#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    /// When it was last tried; its back-off counts from here.
    tried: Option<Instant>,
    /// When it was tried first.
    first: Option<Instant>,
    /// Plugins that turned it down the last time.
    turned_down_by: Vec<&'static str>,
    /// When it was added, which orders pods of one priority.
    sequence: u64,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    BackingOff(Instant),
    /// Waits for one of these events, or until the time.
    Unschedulable(Events, Instant),
    Gated,
    /// Being scheduled or bound. An event meanwhile is remembered.
    InFlight(Events),
}

impl Place {
    fn waiting(self) -> Option<Waiting> {
        match self {
            Self::Active => Some(Waiting::Active),
            Self::BackingOff(_) => Some(Waiting::Backoff),
            Self::Unschedulable(..) => Some(Waiting::Unschedulable),
            Self::Gated => Some(Waiting::Gated),
            Self::InFlight(_) => None,
        }
    }
}

/// How often a pod was tried, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// This one included.
    pub count: u32,
    /// When the first began.
    pub first: Instant,
    /// When this one began.
    pub this: Instant,
}

#[derive(Debug, PartialEq, Eq)]
struct Rank {
    priority: i32,
    sequence: Reverse<u64>,
    key: ObjectKey,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.priority, &self.sequence).cmp(&(other.priority, &other.sequence))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The scheduling queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<ObjectKey, Entry>,
    /// May hold ranks of pods that have moved on; they are skipped.
    active: BinaryHeap<Rank>,
    /// When a pod that waits becomes ready; may hold stale times.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    by_sequence: HashMap<u64, ObjectKey>,
    next_sequence: u64,
    metrics: Arc<Metrics>,
}

/// Why a pod comes to a place where it is not an event of the cluster.
const POD_ADDED: &str = "UnschedulablePodAdd";
const POD_CHANGED: &str = "UnschedulablePodUpdate";
const FAILED: &str = "ScheduleAttemptFailure";

impl Entry {
    fn rank(&self, key: &ObjectKey) -> Rank {
        Rank { priority: self.pod.priority, sequence: Reverse(self.sequence), key: key.clone() }
    }

    /// Takes it to another place.
    fn put(&mut self, to: Place, event: &str, metrics: &Metrics) {
        metrics.moved(self.place.waiting(), to.waiting(), event);
        self.place = to;
    }

    /// Nobody turns it down any more.
    fn clear_turned_down(&mut self, metrics: &Metrics) {
        metrics.turned_down(&std::mem::take(&mut self.turned_down_by), &self.pod.scheduler, false);
    }
}

impl Queue {
    /// An empty one.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Takes in a pod without a node, new or changed. A change of a waiting pod is worth a retry.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let gated = pod.gated;
        self.put(pod, gated, now);
    }

    /// The same with a pod that need not be tried before [`Self::release`] lets it go.
    pub fn hold(&mut self, pod: Arc<PodInfo>, now: Instant) {
        self.put(pod, true, now);
    }

    /// Lets go of pods that were held, and are ready now.
    pub fn release(&mut self, now: Instant, ready: impl Fn(&PodInfo) -> bool) {
        let held = |e: &Entry| e.place == Place::Gated && !e.pod.gated && ready(&e.pod);
        let free = self.entries.iter().filter(|(_, e)| held(e));
        let free: Vec<(ObjectKey, bool)> = free.map(|(key, e)| (key.clone(), e.tried.is_none())).collect();
        for (key, new) in free {
            if new { self.activate(&key, POD_CHANGED) } else { self.wake(&key, now, POD_CHANGED) }
        }
    }

    fn put(&mut self, pod: Arc<PodInfo>, gated: bool, now: Instant) {
        let key = pod.key().clone();
        match self.entries.get_mut(&key) {
            None => {
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                let place = if gated { Place::Gated } else { Place::Active };
                self.by_sequence.insert(sequence, key.clone());
                let entry = Entry {
                    pod,
                    attempts: 0,
                    tried: None,
                    first: None,
                    turned_down_by: Vec::new(),
                    sequence,
                    place,
                };
                self.metrics.moved(None, place.waiting(), POD_ADDED);
                let rank = entry.rank(&key);
                self.entries.insert(key, entry);
                if !gated {
                    self.active.push(rank);
                }
            }
            Some(entry) => {
                let same_spec = generation(&entry.pod) == generation(&pod);
                entry.pod = pod;
                match entry.place {
                    Place::Gated if !gated => self.activate(&key, POD_CHANGED),
                    Place::Unschedulable(..) if !same_spec => self.wake(&key, now, POD_CHANGED),
                    _ => {}
                }
            }
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, key: &ObjectKey) {
        if let Some(mut entry) = self.entries.remove(key) {
            entry.clear_turned_down(&self.metrics);
            self.metrics.moved(entry.place.waiting(), None, "");
            self.by_sequence.remove(&entry.sequence);
        }
    }

    /// The next pod to try; it is in flight until it is removed or comes back.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.fire(now);
        while let Some(rank) = self.active.pop() {
            let Some(entry) = self.entries.get_mut(&rank.key) else { continue };
            if entry.place == Place::Active && entry.sequence == rank.sequence.0 {
                entry.put(Place::InFlight(Events::NONE), "", &self.metrics);
                entry.clear_turned_down(&self.metrics);
                entry.attempts += 1;
                entry.tried = Some(now);
                entry.first.get_or_insert(now);
                return Some(entry.pod.clone());
            }
        }
        None
    }

    /// How often a pod was tried that is in flight.
    pub fn attempts(&self, key: &ObjectKey) -> Option<Attempts> {
        let entry = self.entries.get(key)?;
        Some(Attempts { count: entry.attempts, first: entry.first?, this: entry.tried? })
    }

    /// Who turned a pod down that then waits.
    pub fn turned_down(&mut self, key: &ObjectKey, plugins: Vec<&'static str>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.clear_turned_down(&self.metrics);
        self.metrics.turned_down(&plugins, &entry.pod.scheduler, true);
        entry.turned_down_by = plugins;
    }

    /// No node fits: wait for one of `events`.
    pub fn unschedulable(&mut self, key: &ObjectKey, events: Events, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let missed = match entry.place {
            Place::InFlight(seen) => seen.any_of(events),
            _ => false,
        };
        let until = now + STUCK;
        entry.put(Place::Unschedulable(events, until), FAILED, &self.metrics);
        let sequence = entry.sequence;
        if missed {
            self.wake(key, now, FAILED);
        } else {
            self.timers.push(Reverse((until, sequence)));
        }
    }

    /// The attempt failed for a reason that is not the pod's: try again after its back-off.
    pub fn retry(&mut self, key: &ObjectKey, now: Instant) {
        self.wake(key, now, FAILED);
    }

    /// Something happened in the cluster.
    pub fn event(&mut self, event: Events, now: Instant) {
        self.event_for(event, now, |_| true);
    }

    /// Something happened in the cluster that matters to some pods only.
    pub fn event_for(&mut self, event: Events, now: Instant, matters: impl Fn(&PodInfo) -> bool) {
        let mut woken = Vec::new();
        for (key, entry) in &mut self.entries {
            match &mut entry.place {
                Place::Unschedulable(wanted, _) if wanted.any_of(event) && matters(&entry.pod) => {
                    woken.push(key.clone());
                }
                Place::InFlight(seen) if matters(&entry.pod) => *seen = seen.and(event),
                _ => {}
            }
        }
        for key in woken {
            self.wake(&key, now, metrics::label(event));
        }
    }

    /// When the next waiting pod becomes ready.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether a pod may be ready.
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// How many pods wait in each place: active, backing off, unschedulable, gated.
    pub fn depths(&self) -> [usize; 4] {
        let mut out = [0; 4];
        for entry in self.entries.values() {
            match entry.place {
                Place::Active => out[0] += 1,
                Place::BackingOff(_) => out[1] += 1,
                Place::Unschedulable(..) => out[2] += 1,
                Place::Gated => out[3] += 1,
                Place::InFlight(_) => {}
            }
        }
        out
    }

    fn activate(&mut self, key: &ObjectKey, event: &str) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.put(Place::Active, event, &self.metrics);
        self.active.push(entry.rank(key));
    }

    fn wake(&mut self, key: &ObjectKey, now: Instant, event: &str) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let doublings = entry.attempts.saturating_sub(1).min(10);
        let until = entry.tried.unwrap_or(now) + (BACKOFF.0 * 2_u32.pow(doublings)).min(BACKOFF.1);
        if until <= now {
            return self.activate(key, event);
        }
        entry.put(Place::BackingOff(until), event, &self.metrics);
        let sequence = entry.sequence;
        self.timers.push(Reverse((until, sequence)));
    }

    fn fire(&mut self, now: Instant) {
        while let Some(Reverse((at, sequence))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(key) = self.by_sequence.get(&sequence).cloned() else { continue };
            let due = self.entries.get(&key).and_then(|entry| match entry.place {
                Place::BackingOff(until) if until <= now => Some("BackoffComplete"),
                Place::Unschedulable(_, until) if until <= now => Some("UnschedulableTimeout"),
                _ => None,
            });
            if let Some(event) = due {
                self.activate(&key, event);
            }
        }
    }
}

/// What may change of a pod that waits: labels, gates, requests, tolerations, and which claims were made for it.
type Changeable<'p> =
    (bool, &'p crate::pod::Amounts, &'p crate::selector::Labels, usize, &'p [crate::pod::PodResourceClaim]);

/// `metadata.generation` is not among the hot fields; what matters is whether anything but status changed.
fn generation(pod: &PodInfo) -> Changeable<'_> {
    (pod.gated, &pod.requests, pod.object.labels(), pod.tolerations.len(), &pod.resource_claims)
}
