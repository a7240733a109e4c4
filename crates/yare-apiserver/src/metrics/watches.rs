//! Events that were sent to watchers, by resource.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{text::Page, timing::Timing};
use crate::{path::RequestInfo, registry::Served};

/// Upper bounds of `apiserver_watch_events_sizes`.
const BOUNDS_BYTES: [f64; 8] = [1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0];

/// Upper bounds of `apiserver_watch_list_duration_seconds`.
const LIST_BOUNDS_S: [f64; 17] =
    [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
const SCOPES: [&str; 3] = ["resource", "namespace", "cluster"];

/// How much a watch is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One object.
    Resource,
    /// A namespace.
    Namespace,
    /// All.
    Cluster,
}

impl Scope {
    /// Of a request.
    pub fn of(info: &RequestInfo) -> Self {
        match (info.name.is_empty(), info.namespace.is_empty()) {
            (false, _) => Self::Resource,
            (true, false) => Self::Namespace,
            (true, true) => Self::Cluster,
        }
    }
}

/// Counts of one resource, shared by all of its watches.
#[derive(Default)]
pub struct Watched {
    buckets: [AtomicU64; 8],
    count: AtomicU64,
    bytes: AtomicU64,
    initial: AtomicU64,
    terminated: AtomicU64,
    /// Open watches of a shard, and events that were outside of it.
    shards: AtomicU64,
    filtered: AtomicU64,
    /// By scope.
    lists: [Timing<17>; SCOPES.len()],
}

impl Watched {
    /// That many objects are sent as the state at the start.
    pub fn begins(&self, objects: usize) {
        self.initial.fetch_add(objects as u64, Ordering::Relaxed);
    }

    /// The state at the start was sent, which is what was asked for.
    pub fn listed(&self, scope: Scope, took: Duration) {
        self.lists[scope as usize].observe(&LIST_BOUNDS_S, took);
    }

    /// A watch is ended because its client was too slow.
    pub fn terminated(&self) {
        self.terminated.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch of a shard, open until what is returned goes.
    pub fn sharded(self: &Arc<Self>) -> Sharded {
        self.shards.fetch_add(1, Ordering::Relaxed);
        Sharded(self.clone())
    }

    /// An event is not of the shard.
    pub fn filtered(&self) {
        self.filtered.fetch_add(1, Ordering::Relaxed);
    }

    /// An event of that many bytes was sent.
    pub fn event(&self, bytes: usize) {
        if let Some(at) = BOUNDS_BYTES.iter().position(|bound| bytes as f64 <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// An open watch of a shard.
pub struct Sharded(Arc<Watched>);

impl Drop for Sharded {
    fn drop(&mut self) {
        self.0.shards.fetch_sub(1, Ordering::Relaxed);
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
        let name = "apiserver_watch_list_duration_seconds";
        page.family(name, "histogram", "[BETA] Response latency distribution in seconds for watch list requests broken by group, version, resource and scope.");
        for ([group, version, resource], watched) in all.iter() {
            for (scope, timing) in SCOPES.iter().zip(&watched.lists) {
                let labels: [(&str, &str); 4] =
                    [("group", group), ("resource", resource), ("scope", scope), ("version", version)];
                timing.expose(page, name, &labels, &LIST_BOUNDS_S);
            }
        }
        for (name, kind, help, value) in [
            (
                "apiserver_init_events_total",
                "counter",
                "[ALPHA] Counter of init events processed in watch cache broken by resource type.",
                (|w| &w.initial) as fn(&Watched) -> &AtomicU64,
            ),
            (
                "apiserver_terminated_watchers_total",
                "counter",
                "[ALPHA] Counter of watchers closed due to unresponsiveness broken by resource type.",
                |w| &w.terminated,
            ),
            (
                "apiserver_watch_shards_total",
                "gauge",
                "[ALPHA] Number of active sharded watch connections broken by resource type.",
                |w| &w.shards,
            ),
            (
                "apiserver_watch_filtered_events_total",
                "counter",
                "[ALPHA] Counter of events filtered out by shard selector during watch dispatch, broken by resource type.",
                |w| &w.filtered,
            ),
        ] {
            // Of all versions together.
            let mut sums: BTreeMap<[&str; 2], u64> = BTreeMap::new();
            for ([group, _, resource], watched) in all.iter() {
                *sums.entry([group, resource]).or_default() += value(watched).load(Ordering::Relaxed);
            }
            page.family(name, kind, help);
            for ([group, resource], sum) in sums.into_iter().filter(|(_, sum)| *sum > 0) {
                page.sample(name, &[("group", group), ("resource", resource)], sum);
            }
        }
    }
}
