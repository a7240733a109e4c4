//! A watcher: a position in a kind's shared history. It holds no events of its own, so a slow one costs
//! nothing and makes nobody wait; when history has moved past it, it is told so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::Cache;
use crate::error::Lagged;
use crate::history::Channel;
use crate::object::Event;

/// Most events of one [`Watcher::next`]: bounds what a slow reader holds at once.
const BATCH: usize = 256;

/// Events of one kind, in order, each exactly once. See [`crate::Store::watch`].
pub struct Watcher {
    cache: Arc<Cache>,
    channel: Arc<Channel>,
    /// The position of the next event.
    position: u64,
    /// Everything up to here has been handed out.
    seen: u64,
}

impl Watcher {
    pub(crate) fn new(cache: Arc<Cache>, channel: Arc<Channel>, position: u64, seen: u64) -> Self {
        channel.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher { cache, channel, position, seen }
    }

    /// The next events in order: those that are ready now (at most 256), at least one. `Err(Lagged)` when
    /// this watcher fell out of history and its client must get 410 Gone, and when the store was closed.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, Lagged> {
        let channel = self.channel.clone();
        loop {
            // Created before the look, so that an event in between wakes it.
            let notified = channel.notify.notified();
            if let Some(events) = self.ready()? {
                return Ok(events);
            }
            if self.cache.is_closed() {
                return Err(Lagged);
            }
            notified.await;
        }
    }

    /// What [`Watcher::next`] would return without waiting; `None` when there is nothing new.
    pub fn ready(&mut self) -> Result<Option<Vec<Arc<Event>>>, Lagged> {
        // Read first: everything up to this revision is in the ring already.
        let revision = self.cache.revision();
        let ring = self.channel.ring.read();
        if self.position < ring.base() {
            return Err(Lagged);
        }
        let events = ring.read(self.position, revision, BATCH);
        let Some(last) = events.last() else {
            self.seen = self.seen.max(revision);
            return Ok(None);
        };
        self.position += events.len() as u64;
        // A transaction may go on in the next batch.
        self.seen = match ring.at(self.position) {
            Some(next) if next.revision == last.revision => self.seen.max(last.revision - 1),
            _ => self.seen.max(last.revision),
        };
        Ok(Some(events))
    }

    /// The revision up to which this watcher has handed out everything; grows also with the writes of other
    /// kinds, without waking the watcher (for bookmarks).
    pub fn seen(&self) -> u64 {
        let revision = self.cache.revision();
        // Nothing of this kind after what was handed out: then all of `revision` has been seen.
        if self.channel.newest.load(Ordering::Acquire) <= self.seen {
            return self.seen.max(revision);
        }
        let ring = self.channel.ring.read();
        match ring.at(self.position) {
            Some(next) if next.revision <= revision => self.seen.max(next.revision - 1),
            Some(_) => self.seen.max(revision),
            None if self.position < ring.base() => self.seen,
            None => self.seen.max(revision),
        }
    }

    /// How many watchers this kind has, this one included.
    pub fn peers(&self) -> usize {
        self.channel.watchers.load(Ordering::Relaxed)
    }

    /// The kind that is watched.
    pub fn kind(&self) -> &str {
        &self.channel.kind
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.channel.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}
