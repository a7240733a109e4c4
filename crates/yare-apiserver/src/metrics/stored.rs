//! What is in the store, by kind, and what was read of it.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use yare_metrics::Histogram;
use yare_store::Kind;

use super::text::Page;
use crate::core::Core;

/// Upper bounds of `apiserver_watch_cache_read_wait_seconds`.
const WAIT_BOUNDS_S: [f64; 13] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0];

/// How reads of a kind went.
#[derive(Clone, Default)]
struct Listed {
    lists: u64,
    /// Of those, the ones that had to show the present.
    consistent: u64,
    /// Objects that were looked at.
    fetched: u64,
    /// Objects that were sent.
    returned: u64,
    /// Waiting for the revision that a client named.
    waits_s: Histogram<13>,
}

/// Reads of all kinds.
#[derive(Default)]
pub struct Lists(Mutex<HashMap<Kind, Listed>>);

impl Lists {
    fn with(&self, kind: &Kind, change: impl FnOnce(&mut Listed)) {
        let mut all = self.0.lock();
        if !all.contains_key(kind) {
            all.insert(kind.clone(), Listed::default());
        }
        if let Some(listed) = all.get_mut(kind) {
            change(listed);
        }
    }

    /// Counts a list. `consistent`: it had to show the present.
    pub fn listed(&self, kind: &Kind, consistent: bool, fetched: usize, returned: usize) {
        self.with(kind, |listed| {
            listed.lists += 1;
            listed.consistent += u64::from(consistent);
            listed.fetched += fetched as u64;
            listed.returned += returned as u64;
        });
    }

    /// Counts a read that had to show a revision, and waited so long for it.
    pub fn waited(&self, kind: &Kind, took: Duration) {
        self.with(kind, |listed| listed.waits_s.observe(&WAIT_BOUNDS_S, took.as_secs_f64()));
    }
}

/// Group and plural of a kind of the store.
fn names(kind: &str) -> (&str, &str) {
    kind.split_once('/').unwrap_or(("", kind))
}

/// Adds all metrics.
pub(super) fn expose(core: &Core, page: &mut Page) {
    let (store, kinds) = (core.store(), core.store().kinds());
    let mut by_kind = |name: &str, kind: &str, help: &str, samples: &[(Kind, u64)]| {
        page.family(name, kind, help);
        for (kind, value) in samples {
            let (group, resource) = names(kind);
            page.sample(name, &[("group", group), ("resource", resource)], value);
        }
    };
    let objects: Vec<(Kind, u64)> = kinds.iter().map(|(kind, count)| (kind.clone(), *count as u64)).collect();
    by_kind(
        "apiserver_resource_objects",
        "gauge",
        "[ALPHA] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
        &objects,
    );
    if core.config.gates.is_on("SizeBasedListCostEstimate") {
        by_kind(
            "apiserver_resource_size_estimate_bytes",
            "gauge",
            "[ALPHA] Estimated size of stored objects in database. Estimate is based on sum of last observed sizes of serialized objects. In case of a fetching error, the value will be -1.",
            &store.sizes(),
        );
    }
    let events = store.events();
    by_kind(
        "apiserver_storage_events_received_total",
        "counter",
        "[BETA] Number of etcd events received split by kind.",
        &events,
    );
    by_kind(
        "apiserver_watch_cache_events_received_total",
        "counter",
        "[ALPHA] Counter of events received in watch cache broken by resource type.",
        &events,
    );
    by_kind(
        "apiserver_watch_cache_events_dispatched_total",
        "counter",
        "[ALPHA] Counter of events dispatched in watch cache broken by resource type.",
        &events,
    );
    // All of the store is read once, when the server begins.
    let once: Vec<(Kind, u64)> = kinds.iter().map(|(kind, _)| (kind.clone(), 1)).collect();
    by_kind(
        "apiserver_watch_cache_initializations_total",
        "counter",
        "[ALPHA] Counter of watch cache initializations broken by resource type.",
        &once,
    );
    let revision = store.revision();
    let revisions: Vec<(Kind, u64)> =
        kinds.iter().map(|(kind, _)| (kind.clone(), revision % 1_000_000_000_000_000)).collect();
    by_kind(
        "apiserver_watch_cache_resource_version",
        "gauge",
        "[ALPHA] Current resource version of watch cache broken by resource type. This is truncated to the 15 least significant digits.",
        &revisions,
    );
    let mut lists: Vec<(Kind, Listed)> =
        core.metrics.lists.0.lock().iter().map(|(kind, listed)| (kind.clone(), listed.clone())).collect();
    lists.sort_by(|a, b| a.0.cmp(&b.0));
    // The store is its own cache: a list is served from the one as much as from the other.
    for (name, help, value, indexed) in [
        (
            "apiserver_cache_list_total",
            "[ALPHA] Number of LIST requests served from watch cache",
            (|l| l.lists) as fn(&Listed) -> u64,
            true,
        ),
        (
            "apiserver_cache_list_fetched_objects_total",
            "[ALPHA] Number of objects read from watch cache in the course of serving a LIST request",
            |l| l.fetched,
            true,
        ),
        (
            "apiserver_cache_list_returned_objects_total",
            "[ALPHA] Number of objects returned for a LIST request from watch cache",
            |l| l.returned,
            false,
        ),
        (
            "apiserver_storage_list_total",
            "[ALPHA] Number of LIST requests served from storage",
            |l| l.lists,
            false,
        ),
        (
            "apiserver_storage_list_fetched_objects_total",
            "[ALPHA] Number of objects read from storage in the course of serving a LIST request",
            |l| l.fetched,
            false,
        ),
        (
            "apiserver_storage_list_evaluated_objects_total",
            "[ALPHA] Number of objects tested in the course of serving a LIST request from storage",
            |l| l.fetched,
            false,
        ),
        (
            "apiserver_storage_list_returned_objects_total",
            "[ALPHA] Number of objects returned for a LIST request from storage",
            |l| l.returned,
            false,
        ),
    ] {
        page.family(name, "counter", help);
        for (kind, listed) in lists.iter().filter(|(_, listed)| listed.lists > 0) {
            let (group, resource) = names(kind);
            let labels = [("group", group), ("index", ""), ("resource", resource)];
            let plain = [("group", group), ("resource", resource)];
            page.sample(name, if indexed { &labels } else { &plain }, value(listed));
        }
    }
    let name = "apiserver_watch_cache_consistent_read_total";
    page.family(name, "counter", "[ALPHA] Counter for consistent reads from cache.");
    for (kind, listed) in lists.iter().filter(|(_, listed)| listed.consistent > 0) {
        let (group, resource) = names(kind);
        let labels = [("fallback", "false"), ("group", group), ("resource", resource), ("success", "true")];
        page.sample(name, &labels, listed.consistent);
    }
    let name = "apiserver_watch_cache_read_wait_seconds";
    page.family(
        name,
        "histogram",
        "[ALPHA] Histogram of time spent waiting for a watch cache to become fresh.",
    );
    for (kind, listed) in lists.iter().filter(|(_, listed)| listed.waits_s.count > 0) {
        let (group, resource) = names(kind);
        listed.waits_s.expose(page, name, &[("group", group), ("resource", resource)], &WAIT_BOUNDS_S);
    }
    let name = "apiserver_storage_objects";
    page.family(name, "gauge", "[STABLE] (Deprecated since 1.34.0) [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (kind, count) in &kinds {
        let (group, plural) = names(kind);
        let dot = if group.is_empty() { "" } else { "." };
        page.sample(name, &[("resource", &format!("{plural}{dot}{group}"))], count);
    }
    if let Some(bytes) = store.disk_bytes() {
        let name = "apiserver_storage_size_bytes";
        page.family(
            name,
            "gauge",
            "[STABLE] Size of the storage database file physically allocated in bytes.",
        );
        page.sample(name, &[("storage_cluster_id", "embedded")], bytes);
    }
}
