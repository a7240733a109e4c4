//! The recent past of one kind: its events in order, by position, and now and then a root of its map, so that
//! a revision of the past is a root and a few events undone. In: events from the publisher. Out: events for
//! watchers (who keep only a position) and roots for reads at a revision.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::object::{Event, EventKind, Kind, Object};
use crate::tree::Tree;

/// A root is kept every so many events: a read of the past undoes half of that on average.
pub(crate) const ROOT_EVERY: u64 = 64;
/// What an event costs besides the bytes that it alone keeps alive: itself, its object's frame, attributes.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// What the watchers of one kind share. A kind nobody writes costs this and nothing else.
pub(crate) struct Channel {
    pub kind: Kind,
    pub ring: RwLock<Ring>,
    /// Woken when the kind has new visible events, and when the store closes.
    pub notify: Notify,
    /// The newest revision in the ring, readable without its lock.
    pub newest: AtomicU64,
    /// How many watchers there are.
    pub watchers: AtomicUsize,
}

impl Channel {
    pub fn new(kind: &str, floor: u64) -> Self {
        let ring = Ring { floor, base: 0, events: VecDeque::new(), roots: VecDeque::new() };
        Channel {
            kind: kind.into(),
            ring: RwLock::new(ring),
            notify: Notify::new(),
            newest: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
        }
    }
}

/// Events by position: positions only ever grow, and a position below `base` is gone.
pub(crate) struct Ring {
    /// Events up to this revision are gone.
    pub floor: u64,
    /// Position of `events[0]`.
    base: u64,
    events: VecDeque<Arc<Event>>,
    /// (position, the map with every event before that position applied), ascending.
    roots: VecDeque<(u64, Tree<Arc<Object>>)>,
}

impl Ring {
    /// The position that the next event gets.
    pub fn end(&self) -> u64 {
        self.base + self.events.len() as u64
    }

    /// The first position that is still here.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The position of the first event after `revision`.
    pub fn after(&self, revision: u64) -> u64 {
        self.base + self.events.partition_point(|e| e.revision <= revision) as u64
    }

    /// The event at a position.
    pub fn at(&self, position: u64) -> Option<&Arc<Event>> {
        self.events.get(position.checked_sub(self.base)? as usize)
    }

    /// At most `limit` events from `position` on, none after `revision`.
    pub fn read(&self, position: u64, revision: u64, limit: usize) -> Vec<Arc<Event>> {
        let skip = (position - self.base) as usize;
        self.events.iter().skip(skip).take(limit).take_while(|e| e.revision <= revision).cloned().collect()
    }

    /// Appends what a batch did to this kind.
    pub fn append(&mut self, events: Vec<Arc<Event>>, roots: Vec<(u64, Tree<Arc<Object>>)>) {
        self.events.extend(events);
        self.roots.extend(roots);
    }

    /// The map as of `revision` (not below the floor), starting from `now`, the map at some later moment.
    pub fn rewind(&self, now: Tree<Arc<Object>>, revision: u64) -> Tree<Arc<Object>> {
        let target = self.after(revision);
        let i = self.roots.partition_point(|(position, _)| *position < target);
        let (from, mut tree) = match self.roots.get(i) {
            Some((position, root)) => (*position, root.clone()),
            None => (self.end(), now),
        };
        // Undoing is idempotent, so it does not matter whether `now` already shows the newest events.
        for position in (target..from).rev() {
            let Some(event) = self.at(position) else { break };
            match &event.previous {
                Some(previous) => tree.insert(previous.clone()),
                None => tree.remove(&event.object.key),
            };
        }
        tree
    }

    /// Drops the oldest event and all others of its revision; returns how many and what they cost.
    pub fn pop(&mut self) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        if let Some(first) = self.events.front() {
            self.floor = first.revision;
        }
        while self.events.front().is_some_and(|e| e.revision <= self.floor) {
            let Some(event) = self.events.pop_front() else { break };
            self.base += 1;
            count += 1;
            bytes += cost(&event);
        }
        while self.roots.front().is_some_and(|(position, _)| *position < self.base) {
            self.roots.pop_front();
        }
        if self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
        (count, bytes)
    }

    /// Forgets everything up to `revision`, so that every watcher finds itself behind. Returns as `pop` does.
    pub fn cut(&mut self, revision: u64) -> (usize, usize) {
        let events = std::mem::take(&mut self.events);
        // One position more than there were, for watchers that have seen them all.
        self.base += events.len() as u64 + 1;
        self.roots.clear();
        self.floor = revision;
        (events.len(), events.iter().map(|event| cost(event)).sum())
    }

    /// Whether an event shows a locked object.
    pub fn has_locked(&self) -> bool {
        self.events.iter().any(|event| event.object.is_locked())
    }

    /// The revision of the oldest event.
    pub fn first_revision(&self) -> Option<u64> {
        self.events.front().map(|e| e.revision)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }
}

impl Channel {
    pub fn set_newest(&self, revision: u64) {
        self.newest.store(revision, Ordering::Release);
    }
}

/// The memory that an event alone keeps: the replaced object, and the altered copy a deletion shows.
pub(crate) fn cost(event: &Event) -> usize {
    let own = if event.kind == EventKind::Delete { event.object.bytes.len() } else { 0 };
    let before = |p: &Arc<Object>| p.bytes.len() + p.sealed().map_or(0, <[u8]>::len);
    EVENT_OVERHEAD_BYTES + own + event.previous.as_ref().map_or(0, before)
}
