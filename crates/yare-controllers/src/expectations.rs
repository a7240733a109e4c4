//! Read your own writes: a controller that has created or deleted pods must not act on a cache that does
//! not show it yet, or it would do so twice.
//!
//! A creation is visible when the cache has reached its resource version, a deletion when the object is
//! gone from the cache or shows its deletion timestamp. Nothing has to be counted, so nothing can be
//! miscounted; and what never becomes visible is given up after a while.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use yare_client::{Cached, Informer, ObjectKey};

/// Upstream's timeout of expectations.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The outstanding writes of one controller, by the object on whose behalf they were made.
#[derive(Default)]
pub struct Expectations {
    pending: Mutex<HashMap<ObjectKey, Pending>>,
}

struct Pending {
    since: Instant,
    created: u64,
    deleted: Vec<(ObjectKey, Box<str>)>,
}

impl Expectations {
    /// `object` was created for `owner`.
    pub fn created(&self, owner: &ObjectKey, object: &Cached) {
        self.with(owner, |p| p.created = p.created.max(object.resource_version()));
    }

    /// `object` was deleted for `owner`.
    pub fn deleted(&self, owner: &ObjectKey, object: &Cached) {
        self.with(owner, |p| p.deleted.push((object.key().clone(), object.uid().into())));
    }

    fn with(&self, owner: &ObjectKey, change: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock();
        let entry = pending.entry(owner.clone()).or_insert_with(|| Pending {
            since: Instant::now(),
            created: 0,
            deleted: Vec::new(),
        });
        entry.since = Instant::now();
        change(entry);
    }

    /// Whether the cache shows everything that was written for `owner`.
    pub fn satisfied(&self, owner: &ObjectKey, cache: &Informer) -> bool {
        let mut all = self.pending.lock();
        let Some(pending) = all.get_mut(owner) else { return true };
        pending.deleted.retain(|(key, uid)| {
            cache.get(key).is_some_and(|o| o.uid() == &**uid && o.deletion_timestamp().is_none())
        });
        let visible = pending.deleted.is_empty() && pending.created <= cache.version();
        if visible || pending.since.elapsed() > TIMEOUT {
            all.remove(owner);
            return true;
        }
        false
    }

    /// `owner` is gone.
    pub fn forget(&self, owner: &ObjectKey) {
        self.pending.lock().remove(owner);
    }
}
