//! A bounded cache of answers that are good for a while: what a token or an access review came to.
//!
//! Two generations: entries go into the young one; when it is full it becomes the old one, and the old one is
//! forgotten. Every operation is constant in time, and what is asked for often stays.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What an answer is filed under: a digest, so that secrets are not kept.
pub type Key = [u8; 32];

/// The digest of `parts`, each with its length, so that no two lists of parts are alike.
pub fn key(parts: &[&[u8]]) -> Key {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// Locks that a cache is divided into, so that threads seldom meet.
const SHARDS: usize = 8;

/// A cache of `V`, cheap to clone (an `Arc`).
pub struct Cache<V> {
    shards: [Mutex<Generations<V>>; SHARDS],
    hits: AtomicU64,
    misses: AtomicU64,
    kept: AtomicU64,
    /// Entries of one generation of one shard.
    half: usize,
}

/// How a cache was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Answers that were there.
    pub hits: u64,
    /// Answers that were not.
    pub misses: u64,
    /// Answers that were put in.
    pub kept: u64,
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            kept: self.kept + other.kept,
        }
    }
}

struct Generations<V> {
    young: HashMap<Key, (V, i64)>,
    old: HashMap<Key, (V, i64)>,
}

impl<V: Clone> Cache<V> {
    /// A cache that holds at most `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        let empty = || Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() });
        let [hits, misses, kept] = [const { AtomicU64::new(0) }; 3];
        Self {
            shards: std::array::from_fn(|_| empty()),
            hits,
            misses,
            kept,
            half: (capacity / SHARDS / 2).max(1),
        }
    }

    fn shard(&self, key: &Key) -> std::sync::MutexGuard<'_, Generations<V>> {
        // A poisoned lock means a panic elsewhere; the maps hold whole entries all the same.
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there under `key` and still good at `now_ms`.
    pub fn get(&self, key: &Key, now_ms: i64) -> Option<V> {
        let found = self.find(key, now_ms);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// How it was used.
    pub fn usage(&self) -> Usage {
        let [hits, misses, kept] =
            [&self.hits, &self.misses, &self.kept].map(|count| count.load(Ordering::Relaxed));
        Usage { hits, misses, kept }
    }

    fn find(&self, key: &Key, now_ms: i64) -> Option<V> {
        let mut shard = self.shard(key);
        if let Some((value, until)) = shard.young.get(key) {
            return (now_ms < *until).then(|| value.clone());
        }
        let (value, until) = shard.old.remove(key)?;
        if now_ms >= until {
            return None;
        }
        let out = value.clone();
        shard.put(*key, value, until, self.half);
        Some(out)
    }

    /// Keeps `value` until `until_ms`.
    pub fn put(&self, key: Key, value: V, until_ms: i64) {
        self.kept.fetch_add(1, Ordering::Relaxed);
        self.shard(&key).put(key, value, until_ms, self.half);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.young.clear();
            shard.old.clear();
        }
    }
}

impl<V> Generations<V> {
    fn put(&mut self, key: Key, value: V, until: i64, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, (value, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_good_for_their_time_and_bounded_in_number() {
        let cache = Cache::new(32);
        let name = |i: u32| key(&[&i.to_be_bytes()]);
        cache.put(name(1), 1, 100);
        assert_eq!(
            (cache.get(&name(1), 99), cache.get(&name(1), 100), cache.get(&name(2), 0)),
            (Some(1), None, None)
        );
        for i in 0..10_000 {
            cache.put(name(i), i, 100);
            // What is used stays.
            assert_eq!(cache.get(&name(0), 0), Some(0), "{i}");
        }
        let kept = (0..10_000).filter(|i| cache.get(&name(*i), 0).is_some()).count();
        assert!((1..=32).contains(&kept), "{kept}");
        cache.clear();
        assert_eq!(cache.get(&name(0), 0), None);
    }

    #[test]
    fn keys_of_different_parts_differ() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"ab"]), key(&[b"ab", b""]));
    }
}
