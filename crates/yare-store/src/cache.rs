//! What is visible: the newest map of every kind as one immutable state, and the recent history behind it.
//! In: batches that an engine has made durable, in revision order. Out: consistent reads, reads of the past,
//! watchers. The engine is the only writer; readers never make it wait for more than a pointer's copy.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::error::SnapshotError;
use crate::history::{Channel, ROOT_EVERY, Ring, cost};
use crate::object::{Event, EventKind, Kind, Object};
use crate::options::{Clock, HistoryBounds};
use crate::sealer::Value;
use crate::snapshot::Snapshot;
use crate::tree::{Keyed, Tree};
use crate::watch::Watcher;

/// Everything that is visible at one revision. Swapped as a whole, so a reader sees all of a transaction or
/// nothing of it, in every kind.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub revision: u64,
    pub kinds: Tree<KindRoot>,
}

/// One kind's map within a [`State`]; a kind without objects has none.
#[derive(Clone)]
pub(crate) struct KindRoot {
    pub kind: Kind,
    pub objects: Tree<Arc<Object>>,
    /// What their JSON comes to.
    pub bytes: u64,
}

impl Keyed for KindRoot {
    fn key(&self) -> &str {
        &self.kind
    }
}

impl State {
    pub fn objects(&self, kind: &str) -> Option<&Tree<Arc<Object>>> {
        self.kinds.get(kind).map(|root| &root.objects)
    }
}

/// The visible state and its history.
pub(crate) struct Cache {
    state: RwLock<Arc<State>>,
    revision: AtomicU64,
    channels: RwLock<HashMap<Kind, Arc<Channel>>>,
    /// Events up to here are gone for every kind: the checkpoint that was loaded, or an explicit compaction.
    floor: AtomicU64,
    /// Lists at revisions before this are refused, however little has changed since: a client that pages
    /// through a list learns in time that its view is old.
    read_floor: AtomicU64,
    /// Every event in history, oldest first; what the bounds are applied to.
    ledger: Mutex<Ledger>,
    bounds: HistoryBounds,
    clock: Arc<dyn Clock>,
    published: Notify,
    closed: AtomicBool,
    /// Some object may be locked, or may have been at a revision that is still kept.
    locked: AtomicBool,
}

#[derive(Default)]
struct Ledger {
    entries: VecDeque<Entry>,
    /// Events that are still in a ring; entries of others are skipped when they come to the front.
    events: usize,
    bytes: usize,
    /// Which revision was visible when, at most one for each [`MARK_EVERY`].
    marks: VecDeque<(Duration, u64)>,
}

/// How exactly the age of a revision is known.
const MARK_EVERY: Duration = Duration::from_secs(10);

impl Ledger {
    /// Drops the oldest revision of a ring from the accounts.
    fn pop(&mut self, ring: &mut Ring) {
        let (events, bytes) = ring.pop();
        self.events -= events;
        self.bytes -= bytes;
    }
}

struct Entry {
    channel: Arc<Channel>,
    position: u64,
    at: Duration,
}

impl Cache {
    pub fn new(state: State, bounds: HistoryBounds, clock: Arc<dyn Clock>) -> Self {
        let revision = state.revision;
        Cache {
            state: RwLock::new(Arc::new(state)),
            revision: AtomicU64::new(revision),
            channels: RwLock::default(),
            floor: AtomicU64::new(if revision <= 1 { 0 } else { revision }),
            read_floor: AtomicU64::new(0),
            ledger: Mutex::default(),
            bounds,
            clock,
            published: Notify::new(),
            closed: AtomicBool::new(false),
            locked: AtomicBool::new(false),
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends every watcher; reads go on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for channel in self.channels.read().values() {
            channel.notify.notify_waiters();
        }
        self.published.notify_waiters();
    }

    pub fn get(&self, kind: &str, key: &str) -> Option<Arc<Object>> {
        let state = self.state.read();
        state.objects(kind)?.get(key).cloned()
    }

    pub fn snapshot(&self, kind: &str) -> Snapshot {
        let state = self.state.read();
        let objects = state.objects(kind).cloned().unwrap_or_default();
        Snapshot { revision: state.revision, objects }
    }

    pub fn snapshot_at(&self, kind: &str, revision: u64) -> Result<Snapshot, SnapshotError> {
        let channel = self.channel(kind);
        // The lock is taken before the state is read: the state then shows no event that the ring lacks.
        let ring = channel.ring.read();
        let now = self.snapshot(kind);
        if revision == now.revision {
            return Ok(now);
        }
        let floor = ring.floor.max(self.read_floor.load(Ordering::Acquire));
        self.check_bounds(revision, floor, now.revision)?;
        Ok(Snapshot { revision, objects: ring.rewind(now.objects, revision) })
    }

    pub fn watch(self: &Arc<Self>, kind: &str, from: u64) -> Result<Watcher, SnapshotError> {
        let channel = self.channel(kind);
        let position = {
            let ring = channel.ring.read();
            self.check_bounds(from, ring.floor, self.revision())?;
            ring.after(from)
        };
        Ok(Watcher::new(self.clone(), channel, position, from))
    }

    fn check_bounds(&self, requested: u64, ring_floor: u64, newest: u64) -> Result<(), SnapshotError> {
        let oldest = ring_floor.max(self.floor.load(Ordering::Acquire));
        if requested < oldest {
            return Err(SnapshotError::Compacted { requested, oldest });
        }
        if requested > newest {
            return Err(SnapshotError::Future { requested, newest });
        }
        Ok(())
    }

    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        self.state().kinds.iter().map(|root| (root.kind.clone(), root.objects.len())).collect()
    }

    pub fn sizes(&self) -> Vec<(Kind, u64)> {
        self.state().kinds.iter().map(|root| (root.kind.clone(), root.bytes)).collect()
    }

    /// How many events each kind had, in the order of their names.
    pub fn events(&self) -> Vec<(Kind, u64)> {
        let channels = self.channels.read();
        let mut all: Vec<_> = channels.values().map(|c| (c.kind.clone(), c.ring.read().end())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.retain(|(_, events)| *events > 0);
        all
    }

    /// The oldest revision that every kind still reaches back to.
    pub fn oldest(&self) -> u64 {
        let floor = self.floor.load(Ordering::Acquire);
        let channels = self.channels.read();
        let rings = channels.values().map(|c| c.ring.read().floor).max().unwrap_or(0);
        floor.max(rings).max(1)
    }

    pub async fn wait_for(&self, revision: u64, timeout: Duration) -> bool {
        let wait = async {
            loop {
                // Created before the check, so that a publication in between is not missed.
                let published = self.published.notified();
                if self.revision() >= revision {
                    return true;
                }
                if self.is_closed() {
                    return false;
                }
                published.await;
            }
        };
        tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| self.revision() >= revision)
    }

    /// The channel of a kind, made when it is first asked for.
    fn channel(&self, kind: &str) -> Arc<Channel> {
        if let Some(channel) = self.channels.read().get(kind) {
            return channel.clone();
        }
        let mut channels = self.channels.write();
        if let Some(channel) = channels.get(kind) {
            return channel.clone();
        }
        let channel = Arc::new(Channel::new(kind, self.floor.load(Ordering::Acquire)));
        channels.insert(channel.kind.clone(), channel.clone());
        channel
    }

    /// Starts a batch on top of what is visible.
    pub fn begin(self: &Arc<Self>) -> Batch {
        let base = self.state();
        Batch { cache: self.clone(), revision: base.revision, base, touched: HashMap::new() }
    }

    /// Makes a batch visible to readers. Watchers are told by [`Cache::tell`], so that who wrote it can have the
    /// answer before them. Only the engine calls this, one batch at a time.
    pub fn publish(&self, batch: Batch) -> Published {
        let Batch { base, touched, revision, .. } = batch;
        let mut next = State { revision, kinds: base.kinds.clone() };
        drop(base);
        let at = self.clock.now();
        let mut channels = Vec::with_capacity(touched.len());
        let mut cut = Vec::new();
        {
            let mut ledger = self.ledger.lock();
            for touched in touched.into_values() {
                let Touched { channel, objects, bytes, events, roots, first, reread } = touched;
                if reread {
                    cut.push(channel.clone());
                }
                if objects.is_empty() {
                    next.kinds.remove(&channel.kind);
                } else {
                    next.kinds.insert(KindRoot { kind: channel.kind.clone(), objects, bytes });
                }
                if events.is_empty() {
                    continue;
                }
                ledger.events += events.len();
                ledger.bytes += events.iter().map(|e| cost(e)).sum::<usize>();
                ledger.entries.extend((first..first + events.len() as u64).map(|position| Entry {
                    channel: channel.clone(),
                    position,
                    at,
                }));
                channel.set_newest(events.last().map_or(0, |e| e.revision));
                channel.ring.write().append(events, roots);
                channels.push(channel);
            }
        }
        // The rings are ahead of the state for a moment; watchers read no further than the state's revision.
        let old = {
            let mut state = self.state.write();
            self.revision.store(revision, Ordering::Release);
            std::mem::replace(&mut *state, Arc::new(next))
        };
        drop(old);
        for channel in &cut {
            // After the state: who starts over finds the objects open.
            self.cut(channel, revision);
        }
        self.trim(&channels, at);
        Published(channels)
    }

    /// Wakes those that wait for what was published.
    pub fn tell(&self, Published(channels): Published) {
        for channel in channels {
            channel.notify.notify_waiters();
        }
        self.published.notify_waiters();
    }

    /// Applies the bounds of history.
    fn trim(&self, written: &[Arc<Channel>], now: Duration) {
        let mut ledger = self.ledger.lock();
        for channel in written {
            let mut ring = channel.ring.write();
            while ring.len() > self.bounds.events_per_kind {
                ledger.pop(&mut ring);
            }
        }
        if ledger.marks.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= MARK_EVERY) {
            ledger.marks.push_back((now, self.revision()));
        }
        while let Some((at, revision)) = ledger.marks.front().copied()
            && now.saturating_sub(at) > self.bounds.age
        {
            self.read_floor.fetch_max(revision, Ordering::AcqRel);
            ledger.marks.pop_front();
        }
        while let Some(entry) = ledger.entries.front() {
            let gone = entry.position < entry.channel.ring.read().base();
            let over = ledger.bytes > self.bounds.bytes || now.saturating_sub(entry.at) > self.bounds.age;
            if !gone && !over {
                break;
            }
            let Some(entry) = ledger.entries.pop_front() else { break };
            if !gone {
                ledger.pop(&mut entry.channel.ring.write());
            }
        }
        if ledger.entries.len() > 2 * ledger.events + 1024 {
            ledger.entries.retain(|entry| entry.position >= entry.channel.ring.read().base());
        }
        if ledger.entries.len() < ledger.entries.capacity() / 4 {
            let keep = ledger.entries.len() * 2;
            ledger.entries.shrink_to(keep);
        }
    }

    /// Whether some object may be locked.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// Some object is locked.
    pub fn set_locked(&self) {
        self.locked.store(true, Ordering::Release);
    }

    /// None is locked any more. Those that were deleted while they were go from history.
    pub fn set_unlocked(&self) {
        let channels: Vec<_> = self.channels.read().values().cloned().collect();
        for channel in channels {
            let locked = channel.ring.read().has_locked();
            if locked {
                self.cut(&channel, self.revision());
            }
        }
        self.locked.store(false, Ordering::Release);
    }

    /// All objects of which this holds.
    pub fn all(&self, holds: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        let state = self.state();
        let all = state.kinds.iter().flat_map(|root| root.objects.iter());
        all.filter(|object| holds(object)).cloned().collect()
    }

    /// Forgets the history of a kind: some of it cannot be shown.
    pub fn forget(&self, kind: &str) {
        self.cut(&self.channel(kind), self.revision());
    }

    fn cut(&self, channel: &Channel, revision: u64) {
        let mut ledger = self.ledger.lock();
        let (events, bytes) = channel.ring.write().cut(revision);
        ledger.events -= events;
        ledger.bytes -= bytes;
        channel.notify.notify_waiters();
    }

    /// Forgets history before `revision`, which itself stays readable.
    pub fn compact(&self, revision: u64) {
        let revision = revision.min(self.revision());
        let mut ledger = self.ledger.lock();
        self.floor.fetch_max(revision, Ordering::AcqRel);
        let channels: Vec<_> = self.channels.read().values().cloned().collect();
        for channel in channels {
            let mut ring = channel.ring.write();
            while ring.first_revision().is_some_and(|first| first <= revision) {
                ledger.pop(&mut ring);
            }
        }
        ledger.entries.retain(|entry| entry.position >= entry.channel.ring.read().base());
    }
}

/// Kinds with new events, of which their watchers have not been told.
#[must_use = "watchers wait"]
pub(crate) struct Published(Vec<Arc<Channel>>);

/// Changes that are not visible yet: what an engine builds while it makes them durable. Dropping it undoes
/// everything.
pub(crate) struct Batch {
    cache: Arc<Cache>,
    base: Arc<State>,
    touched: HashMap<Kind, Touched>,
    /// The last revision given out.
    pub revision: u64,
}

struct Touched {
    channel: Arc<Channel>,
    objects: Tree<Arc<Object>>,
    /// What their JSON comes to.
    bytes: u64,
    events: Vec<Arc<Event>>,
    roots: Vec<(u64, Tree<Arc<Object>>)>,
    /// Position of `events[0]`.
    first: u64,
    /// Objects were locked or opened.
    reread: bool,
}

impl Batch {
    /// The object as this batch sees it.
    pub fn get(&self, kind: &str, key: &str) -> Option<&Arc<Object>> {
        match self.touched.get(kind) {
            Some(touched) => touched.objects.get(key),
            None => self.base.objects(kind)?.get(key),
        }
    }

    /// Writes an object at `revision`, whose bytes must already show it.
    pub fn put(&mut self, revision: u64, kind: &str, key: Box<str>, value: Value) -> Arc<Object> {
        self.revision = revision;
        let touched = self.touch(kind);
        let previous = touched.objects.get(&key).cloned();
        let created = previous.as_ref().map_or(revision, |p| p.created);
        let kind = touched.channel.kind.clone();
        let object = Arc::new(Object::new(kind, key, created, revision, value));
        touched.weigh(previous.as_deref(), Some(&object));
        touched.objects.insert(object.clone());
        touched.record(Event { revision, object: object.clone(), previous, kind: EventKind::Put });
        object
    }

    /// Whether there is anything to publish.
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Puts an opened value in the place of a locked one, or the other way round, unless the object was written
    /// since `revision`.
    pub fn reread(&mut self, kind: &str, key: &str, revision: u64, value: Value) {
        let touched = self.touch(kind);
        let opens = !value.bytes.is_empty();
        let same = |object: &&Arc<Object>| object.revision == revision && object.is_locked() == opens;
        if let Some(old) = touched.objects.get(key).filter(same).cloned() {
            let kind = touched.channel.kind.clone();
            let object = Object::new(kind, old.key.clone(), old.created, revision, value);
            touched.weigh(Some(&old), Some(&object));
            touched.objects.insert(Arc::new(object));
            touched.reread = true;
        }
    }

    /// Removes an object; `None` when it is not there.
    pub fn delete(&mut self, revision: u64, kind: &str, key: &str) -> Option<Arc<Object>> {
        self.get(kind, key)?;
        self.revision = revision;
        let touched = self.touch(kind);
        let previous = touched.objects.remove(key)?;
        touched.weigh(Some(&previous), None);
        let object = Arc::new(previous.deleted_at(revision));
        let previous = Some(previous);
        touched.record(Event { revision, object: object.clone(), previous, kind: EventKind::Delete });
        Some(object)
    }

    fn touch(&mut self, kind: &str) -> &mut Touched {
        if !self.touched.contains_key(kind) {
            let channel = self.cache.channel(kind);
            let first = channel.ring.read().end();
            let base = self.base.kinds.get(kind);
            let touched = Touched {
                channel: channel.clone(),
                objects: base.map(|root| root.objects.clone()).unwrap_or_default(),
                bytes: base.map_or(0, |root| root.bytes),
                events: Vec::new(),
                roots: Vec::new(),
                first,
                reread: false,
            };
            self.touched.insert(channel.kind.clone(), touched);
        }
        self.touched.get_mut(kind).expect("inserted above when it was absent")
    }
}

impl Touched {
    /// An object comes in the place of another; absent: of none, or none does.
    fn weigh(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let bytes = |object: Option<&Object>| object.map_or(0, |o| o.bytes.len() as u64);
        self.bytes = self.bytes + bytes(new) - bytes(old);
    }

    fn record(&mut self, event: Event) {
        self.events.push(Arc::new(event));
        let position = self.first + self.events.len() as u64;
        if position.is_multiple_of(ROOT_EVERY) {
            self.roots.push((position, self.objects.clone()));
        }
    }
}
