//! What is in the store, by kind, and what was read of it.

use std::collections::HashMap;

use parking_lot::Mutex;
use yare_store::Kind;

use super::text::Page;
use crate::core::Core;

/// How lists of a kind went.
#[derive(Clone, Copy, Default)]
struct Listed {
    lists: u64,
    /// Objects that were looked at.
    fetched: u64,
    /// Objects that were sent.
    returned: u64,
}

/// Lists of all kinds.
#[derive(Default)]
pub struct Lists(Mutex<HashMap<Kind, Listed>>);

impl Lists {
    /// Counts a list.
    pub fn listed(&self, kind: &Kind, fetched: usize, returned: usize) {
        let mut all = self.0.lock();
        if !all.contains_key(kind) {
            all.insert(kind.clone(), Listed::default());
        }
        if let Some(listed) = all.get_mut(kind) {
            listed.lists += 1;
            listed.fetched += fetched as u64;
            listed.returned += returned as u64;
        }
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
    let revision = store.revision();
    let revisions: Vec<(Kind, u64)> = kinds.iter().map(|(kind, _)| (kind.clone(), revision)).collect();
    by_kind(
        "apiserver_watch_cache_resource_version",
        "gauge",
        "[ALPHA] Current resource version of watch cache broken by resource type.",
        &revisions,
    );
    let mut lists: Vec<(Kind, Listed)> =
        core.metrics.lists.0.lock().iter().map(|(kind, listed)| (kind.clone(), *listed)).collect();
    lists.sort_by(|a, b| a.0.cmp(&b.0));
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
    ] {
        page.family(name, "counter", help);
        for (kind, listed) in &lists {
            let (group, resource) = names(kind);
            let labels = [("group", group), ("index", ""), ("resource", resource)];
            let plain = [("group", group), ("resource", resource)];
            page.sample(name, if indexed { &labels } else { &plain }, value(listed));
        }
    }
    let name = "apiserver_storage_objects";
    page.family(name, "gauge", "[STABLE] [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
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
