//! StorageVersions (KEP-2339): for each built-in resource, in which version this server writes its objects, and which
//! versions it reads. A server that writes before the others know could leave objects behind that they cannot read:
//! until its versions are on record, writes of a resource are refused.
//!
//! In: what is built in and served. Out: one StorageVersion per resource with an entry for this server, made at the
//! start and looked after from then on.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use parking_lot::RwLock;
use serde_json::{Value, json};
use yare_kinds::{
    storage_versions::set_common,
    table::{RESOURCES, Resource},
    view::{View, ViewMut},
};

use super::{GATE, GROUP as LEASES, NAMESPACE, id};
use crate::{
    bootstrap::{ensure, rewrite},
    core::{Call, Config, Core},
    registry::{Registry, Served, api_version, store_kind},
    status::{ApiError, ApiResult},
    verbs::write,
};

const GROUP: &str = "internal.apiserver.k8s.io";
const PLURAL: &str = "storageversions";

/// Between two looks at whether the records are still right.
const AGAIN: Duration = Duration::from_secs(600);
/// Records that are written at the same time.
const AT_ONCE: usize = 32;
/// How often a record is tried in one round.
const ATTEMPTS: usize = 3;

/// Group and plural of a resource.
type Name = (&'static str, &'static str);

/// The resources whose versions are on record, and those whose are not yet.
#[derive(Default)]
pub struct Versions {
    complete: AtomicBool,
    /// Why the last attempt failed, if there was one.
    pending: RwLock<BTreeMap<Name, Option<String>>>,
}

impl Versions {
    /// For a server that is to put its versions on record.
    pub fn of(config: &Config, builtin: &Registry) -> Option<Self> {
        let gates = &config.gates;
        if config.identity.is_none() || !gates.is_on(GATE) || !gates.is_on("StorageVersionAPI") {
            return None;
        }
        let names = records(builtin).into_iter().flat_map(|record| record.names);
        Some(Self {
            complete: AtomicBool::new(false),
            pending: RwLock::new(names.map(|name| (name, None)).collect()),
        })
    }

    /// Whether all are on record.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn note(&self, record: &Record, outcome: Result<(), String>) -> bool {
        let mut pending = self.pending.write();
        for name in &record.names {
            match &outcome {
                Ok(()) => {
                    pending.remove(name);
                }
                Err(why) => {
                    if let Some(last) = pending.get_mut(name) {
                        *last = Some(why.clone());
                    }
                }
            }
        }
        outcome.is_ok()
    }
}

/// Refuses the write of a resource whose version is not on record yet.
pub fn check(call: &Call) -> ApiResult<()> {
    let Some(versions) = call.core.storage_versions.as_ref().filter(|versions| !versions.is_complete())
    else {
        return Ok(());
    };
    let info = &call.info;
    if !info.is_resource || matches!(info.verb, "get" | "list" | "watch") {
        return Ok(());
    }
    let (group, plural) = (&*info.group, &*info.resource);
    // Without these, the record could never be written.
    let own_namespace = (group, plural) == ("", "namespaces")
        && info.verb == "create"
        && call.user.name == "system:apiserver"
        && call.user.groups.iter().any(|g| g == "system:masters");
    let own_lease = (group, plural) == (LEASES, "leases") && info.namespace == NAMESPACE;
    if (group, plural) == (GROUP, PLURAL) || own_namespace || own_lease {
        return Ok(());
    }
    let pending = versions.pending.read();
    let Some((_, last)) = pending.iter().find(|(name, _)| **name == (group, plural)) else { return Ok(()) };
    let mut what = plural.to_owned();
    if !group.is_empty() {
        let _ = write!(what, ".{group}");
    }
    let last = last.as_deref().unwrap_or("<nil>");
    Err(ApiError::unavailable(format!(
        "wait for storage version registration to complete for resource: {what}, last seen error: {last}"
    )))
}

/// What is said of one resource.
struct Record {
    /// It and those that rest as the same objects; the record has the first one's name.
    names: Vec<Name>,
    encoding: String,
    decodable: Vec<String>,
    served: Vec<String>,
}

impl Record {
    fn name(&self) -> String {
        let (group, plural) = self.names.first().copied().unwrap_or_default();
        format!("{}.{plural}", if group.is_empty() { "core" } else { group })
    }

    /// What this server says.
    fn entry(&self) -> Value {
        json!({
            "apiServerID": id(), "encodingVersion": self.encoding,
            "decodableVersions": self.decodable, "servedVersions": self.served,
        })
    }
}

/// All records, in the order of their names.
fn records(builtin: &Registry) -> Vec<Record> {
    let mut by_kind: BTreeMap<String, Vec<&'static Resource>> = BTreeMap::new();
    for row in RESOURCES.iter().filter(|row| !row.is_virtual()) {
        let (group, plural) = row.stored_as.unwrap_or((row.group, row.plural));
        by_kind.entry(store_kind(group, plural).to_string()).or_default().push(row);
    }
    let mut all: Vec<Record> = by_kind
        .into_iter()
        .filter_map(|(kind, mut rows)| {
            let all_served = builtin.versions_of(&kind);
            let served_of = |row: &Resource| {
                let of = |served: &&Arc<Served>| *served.group == *row.group && *served.plural == *row.plural;
                all_served.iter().filter(of).map(|s| s.api_version.to_string()).collect::<Vec<String>>()
            };
            rows.retain(|row| !served_of(row).is_empty());
            rows.sort_by_key(|row| (row.group, row.plural));
            let first = rows.first()?;
            let stored = &all_served.first()?.stored;
            let decodable = rows.iter().flat_map(|row| {
                row.versions.iter().map(|version| api_version(row.group, version.name).into_string())
            });
            Some(Record {
                encoding: stored.api_version.to_string(),
                decodable: decodable.collect(),
                served: served_of(first),
                names: rows.iter().map(|row| (row.group, row.plural)).collect(),
            })
        })
        .collect();
    all.sort_by(|a, b| a.names.cmp(&b.names));
    all
}

/// Puts everything on record, and comes back to it until the server stops.
pub(super) async fn start(core: &Arc<Core>) {
    if core.storage_versions.is_none() {
        return;
    }
    round(core).await;
    let core = core.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => round(&core).await,
                () = core.stop.cancelled() => return,
            }
        }
    });
}

async fn round(core: &Arc<Core>) {
    let Some(versions) = &core.storage_versions else { return };
    let done = stream::iter(records(&core.builtin)).map(|record| async move {
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            outcome = publish(core, &record).await;
            if outcome.is_ok() {
                break;
            }
        }
        if let Err(why) = &outcome {
            tracing::error!(why, record = record.name(), "failed to update storage version");
        }
        versions.note(&record, outcome)
    });
    let all: Vec<bool> = done.buffer_unordered(AT_ONCE).collect().await;
    if all.into_iter().all(|done| done) {
        versions.complete.store(true, Ordering::Release);
    }
}

async fn publish(core: &Arc<Core>, record: &Record) -> Result<(), String> {
    let name = record.name();
    if core.builtin.stored(&store_kind(GROUP, PLURAL)).is_none() {
        return Err("the server could not find the requested resource".into());
    }
    let object = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "StorageVersion",
        "metadata": { "name": name }, "spec": {},
    });
    ensure(core, object).await.map_err(|e| e.to_string())?;
    let entry = record.entry();
    let now = core.now_rfc3339();
    let make = |version: &Value| {
        let mut version = version.clone();
        let mut servers = version.items("status.storageVersions").to_vec();
        match servers.iter_mut().find(|server| server.str_at("apiServerID") == id()) {
            Some(server) => server.clone_from(&entry),
            None => servers.push(entry.clone()),
        }
        version.set("status.storageVersions", servers);
        set_common(&mut version, &now);
        Ok(version)
    };
    rewrite(core, (GROUP, PLURAL), &write::STATUS, ("", &name), &make).await.map_err(|e| e.message)
}

#[cfg(test)]
mod tests {
    use yare_schema::features::Gates;

    use super::*;
    use crate::runtime_config::RuntimeConfig;

    #[test]
    fn one_for_each_resource_that_is_stored() {
        let config = RuntimeConfig::parse("autoscaling/v1=false").unwrap();
        let all = records(&Registry::builtin(&Gates::default(), &config));
        let of = |name: &str| all.iter().find(|record| record.name() == name);
        let scaler = of("autoscaling.horizontalpodautoscalers").unwrap();
        assert_eq!(scaler.encoding, "autoscaling/v2");
        assert_eq!(scaler.decodable, ["autoscaling/v2", "autoscaling/v1"]);
        assert_eq!(scaler.served, ["autoscaling/v2"]);
        let events = of("core.events").unwrap();
        assert_eq!(
            (events.encoding.as_str(), &*events.decodable, &*events.served),
            ("v1", &["v1".to_owned(), "events.k8s.io/v1".to_owned()][..], &["v1".to_owned()][..])
        );
        assert_eq!(events.names, [("", "events"), ("events.k8s.io", "events")]);
        for gone in ["events.k8s.io.events", "core.bindings", "authorization.k8s.io.subjectaccessreviews"] {
            assert!(of(gone).is_none(), "{gone}");
        }
        assert!(of("apiextensions.k8s.io.customresourcedefinitions").is_some());
        assert!(of("core.pods").is_some() && of("core.namespaces").is_some());
    }
}
