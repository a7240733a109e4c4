//! What is forwarded and in which order groups are listed: the APIServices of the store, as a table that is
//! swapped in whole when one of them changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use serde_json::Value;
use yare_kinds::view::View;

use super::{available, backend::Backend, priorities::Priority, register::Managed};
use crate::{changes::Changes, core::Core};

/// Kind of APIServices in the store.
pub const KIND: &str = "apiregistration.k8s.io/apiservices";

/// One APIService.
#[derive(Clone)]
pub struct Entry {
    /// Where it stands in discovery.
    pub priority: Priority,
    /// Whether the server keeps it up.
    pub managed: Managed,
    /// Who serves it, where that is not this server.
    pub backend: Option<Arc<Backend>>,
}

/// All APIServices by group and version.
#[derive(Default)]
pub struct Table {
    entries: BTreeMap<String, BTreeMap<String, Entry>>,
    /// How many have a backend.
    remote: usize,
}

impl Table {
    /// Whether everything is served here.
    pub fn is_local(&self) -> bool {
        self.remote == 0
    }

    /// The APIService of a version.
    pub fn entry(&self, group: &str, version: &str) -> Option<&Entry> {
        self.entries.get(group)?.get(version)
    }

    /// Who serves this version, where that is not this server.
    pub fn backend(&self, group: &str, version: &str) -> Option<&Arc<Backend>> {
        self.entry(group, version)?.backend.as_ref()
    }

    /// Group, version and entry of all.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.entries.iter().flat_map(|(g, versions)| versions.iter().map(move |(v, e)| (&**g, &**v, e)))
    }

    /// The APIServices of a group by version.
    pub fn versions(&self, group: &str) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.get(group).into_iter().flatten().map(|(v, e)| (&**v, e))
    }

    /// All that others serve.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.all().filter_map(|(_, _, entry)| entry.backend.as_ref())
    }
}

/// An APIService as it was read last.
struct Known {
    revision: u64,
    group: String,
    version: String,
    spec: Value,
    entry: Entry,
}

/// Keeps the table in step with the store until the server stops. What is in the store already is taken in
/// before this returns.
pub fn follow(core: &Arc<Core>) {
    let mut changes = Changes::from_now(core, [KIND]);
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    settle(core, &mut known);
    let core = core.clone();
    tokio::spawn(async move {
        while changes.next().await.is_some() {
            settle(&core, &mut known);
        }
    });
}

fn settle(core: &Arc<Core>, known: &mut BTreeMap<String, Known>) {
    let snapshot = core.store().snapshot(KIND);
    known.retain(|name, known| {
        let stays = snapshot.get(name).is_some();
        if !stays && let Some(backend) = &known.entry.backend {
            backend.close();
            core.aggregation.metrics.forget(name);
            core.openapi.forget();
        }
        stays
    });
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        let before = known.get(&*object.key);
        if before.is_some_and(|k| k.revision == object.revision) {
            continue;
        }
        let Ok(service) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let read = read(core, &service, object.revision, before);
        known.insert(object.key.to_string(), read);
    }
    let mut table = Table::default();
    for known in known.values() {
        table.remote += usize::from(known.entry.backend.is_some());
        table
            .entries
            .entry(known.group.clone())
            .or_default()
            .insert(known.version.clone(), known.entry.clone());
    }
    core.aggregation.table.store(Arc::new(table));
    core.aggregation.touch();
    core.aggregation.registration.notify_one();
}

fn read(core: &Arc<Core>, service: &Value, revision: u64, before: Option<&Known>) -> Known {
    let spec = service.at("spec");
    let backend = match before {
        Some(before) if before.spec == *spec => before.entry.backend.clone(),
        _ => {
            if let Some(old) = before.and_then(|b| b.entry.backend.as_ref()) {
                old.close();
                core.openapi.forget();
            }
            spec.has("service").then(|| {
                let backend = Arc::new(Backend::new(core, service));
                tokio::spawn(available::keep(core.clone(), backend.clone()));
                backend
            })
        }
    };
    let condition = available::condition(service);
    match &backend {
        Some(backend) => {
            let available = condition.is_some_and(|c| c.str_at("status") == "True");
            backend.available.store(available, Ordering::Release);
        }
        // One that had a service and has none any more.
        None if condition.is_none_or(|c| c.str_at("reason") != "Local") => {
            let (core, name) = (core.clone(), service.str_at("metadata.name").to_owned());
            tokio::spawn(async move { available::write(&core, &name, &available::LOCAL.into()).await });
        }
        None => {}
    }
    Known {
        revision,
        group: spec.str_at("group").to_owned(),
        version: spec.str_at("version").to_owned(),
        entry: Entry {
            priority: Priority {
                group: spec.int_at("groupPriorityMinimum"),
                version: spec.int_at("versionPriority"),
            },
            managed: Managed::of(service),
            backend,
        },
        spec: spec.clone(),
    }
}
