//! Events that were sent to watchers, by resource.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::text::Page;
use crate::registry::Served;

/// Upper bounds of `apiserver_watch_events_sizes`.
const BOUNDS_BYTES: [f64; 8] = [1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0];

/// Counts of one resource, shared by all of its watches.
#[derive(Default)]
pub struct Watched {
    buckets: [AtomicU64; 8],
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Watched {
    /// An event of that many bytes was sent.
    pub fn event(&self, bytes: usize) {
        if let Some(at) = BOUNDS_BYTES.iter().position(|bound| bytes as f64 <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Counts of all resources.
#[derive(Default)]
pub struct WatchEvents(Mutex<BTreeMap<[Box<str>; 3], Arc<Watched>>>);

impl WatchEvents {
    /// The counts of a resource, for a watch that begins.
    pub fn of(&self, served: &Served) -> Arc<Watched> {
        let key = [served.group.clone(), served.version.clone(), served.plural.clone()];
        self.0.lock().entry(key).or_default().clone()
    }

    /// Adds all metrics.
    pub fn expose(&self, page: &mut Page) {
        let all = self.0.lock();
        let name = "apiserver_watch_events_total";
        page.family(name, "counter", "[ALPHA] Number of events sent in watch clients");
        for ([group, version, resource], watched) in all.iter() {
            let labels = [("group", &**group), ("resource", &**resource), ("version", &**version)];
            page.sample(name, &labels, watched.count.load(Ordering::Relaxed));
        }
        let name = "apiserver_watch_events_sizes";
        page.family(name, "histogram", "[ALPHA] Watch event size distribution in bytes");
        for ([group, version, resource], watched) in all.iter() {
            let labels = [("group", &**group), ("resource", &**resource), ("version", &**version)];
            let buckets = watched.buckets.each_ref().map(|b| b.load(Ordering::Relaxed));
            let (count, bytes) =
                (watched.count.load(Ordering::Relaxed), watched.bytes.load(Ordering::Relaxed));
            page.histogram(name, &labels, &BOUNDS_BYTES, &buckets, count, bytes as f64);
        }
    }
}
