//! Who of those who offer themselves leads (coordinated leader election, KEP-4355).
//!
//! In: LeaseCandidates, in which components offer themselves for a Lease, and the Leases. Out: candidates are asked
//! whether they are still there, a Lease gets its holder, and where a better one has come the preferred holder, for
//! whom the present one makes room. What is to be done is read off the objects each time ([`election`]).
//!
//! There is one API server to a store, so that it need not be elected for this itself.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, interval, sleep_until};
use yare_kinds::view::{View as _, ViewMut as _};
use yare_store::{Event, Object};

use self::election::{Step, is_pending, is_stale, step};
use crate::{
    bootstrap::{ensure, remove_as_read, rewrite},
    changes::{Change, Changes},
    core::Core,
    lease::micro_time,
    verbs::write,
};

mod election;

/// The gate of all this.
pub const GATE: &str = "CoordinatedLeaderElection";

const GROUP: &str = "coordination.k8s.io";
const LEASES: (&str, &str) = (GROUP, "leases");
const LEASE_KIND: &str = "coordination.k8s.io/leases";
const CANDIDATES: (&str, &str) = (GROUP, "leasecandidates");
const CANDIDATE_KIND: &str = "coordination.k8s.io/leasecandidates";

/// Between two looks for candidates that are gone.
const GC: Duration = Duration::from_secs(30 * 60);
/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A Lease: namespace and name.
type Key = (String, String);

/// Holds elections until the server stops, where that is switched on.
pub fn start(core: &Arc<Core>) {
    if core.config.gates.is_on(GATE) {
        tokio::spawn(run(core.clone()));
        tokio::spawn(collect(core.clone()));
    }
}

async fn run(core: Arc<Core>) {
    let mut changes = Changes::from_now(&core, [CANDIDATE_KIND, LEASE_KIND]);
    let mut due = all_due(&core);
    loop {
        elect_due(&core, &mut due).await;
        let next = due.values().min().copied();
        tokio::select! {
            change = changes.next() => match change {
                Some(Change::Of(0, events)) => {
                    for candidate in events.iter().filter_map(|event| parsed(&event.object)) {
                        // Who was just asked and has not answered tells nothing new.
                        if !is_pending(&candidate) {
                            due.insert(lease_of(&candidate), Instant::now());
                        }
                    }
                }
                Some(Change::Of(_, events)) => {
                    due.extend(events.iter().filter_map(|event| Some((key_of(event)?, Instant::now()))));
                }
                Some(Change::Missed) => due = all_due(&core),
                None => return,
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// Every election, now.
fn all_due(core: &Core) -> BTreeMap<Key, Instant> {
    let now = Instant::now();
    all(core).iter().map(|candidate| (lease_of(candidate), now)).collect()
}

/// Brings those further whose time has come.
async fn elect_due(core: &Arc<Core>, due: &mut BTreeMap<Key, Instant>) {
    let now = Instant::now();
    let ready: Vec<Key> = due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
    for key in ready {
        due.remove(&key);
        if let Some(again) = elect(core, &key).await {
            due.insert(key, Instant::now() + again);
        }
    }
}

fn key_of(event: &Event) -> Option<Key> {
    let (namespace, name) = event.object.key.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}

fn parsed(object: &Object) -> Option<Value> {
    serde_json::from_slice(&object.bytes).ok()
}

/// The Lease that a candidate is for.
fn lease_of(candidate: &Value) -> Key {
    (candidate.str_at("metadata.namespace").to_owned(), candidate.str_at("spec.leaseName").to_owned())
}

fn all(core: &Core) -> Vec<Value> {
    let snapshot = core.store().snapshot(CANDIDATE_KIND);
    snapshot.range(Bound::Unbounded, "").filter_map(|object| parsed(object)).collect()
}

/// Brings one election a step further. When to look again.
async fn elect(core: &Arc<Core>, key: &Key) -> Option<Duration> {
    if core.store().snapshot(CANDIDATE_KIND).is_empty() {
        return None;
    }
    let (namespace, name) = key;
    let mut candidates = all(core);
    candidates.retain(|candidate| lease_of(candidate) == *key);
    let lease = core.read(LEASE_KIND, &format!("{namespace}/{name}"));
    let Step { ask, spec, again, error } = step(lease.as_ref(), &candidates, core.now());
    if let Some(error) = error {
        tracing::warn!(namespace, lease = name, error, "an election does not go on");
    }
    for candidate in ask {
        let now = micro_time(core.now());
        let asked = |object: &Value| {
            let mut object = object.clone();
            object.set("spec.pingTime", now.clone());
            Ok(object)
        };
        let asked = rewrite(core, CANDIDATES, &write::MAIN, (namespace, &candidate), &asked).await;
        if let Err(error) = asked
            && error.reason != "NotFound"
        {
            tracing::warn!(namespace, candidate, why = error.message, "a candidate cannot be asked");
            return Some(RETRY);
        }
    }
    let Some(spec) = spec else { return again };
    match set(core, key, lease.as_ref(), spec).await {
        Ok(()) => again,
        Err(why) => {
            tracing::warn!(namespace, lease = name, why, "a leader cannot be written down");
            Some(RETRY)
        }
    }
}

/// Writes a Lease, unless it has changed since it was read.
async fn set(core: &Arc<Core>, key: &Key, lease: Option<&Value>, spec: Value) -> Result<(), String> {
    let (namespace, name) = key;
    let Some(lease) = lease else {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "namespace": namespace }, "spec": spec,
        });
        return ensure(core, lease).await.map_err(|error| error.to_string());
    };
    let version = lease.str_at("metadata.resourceVersion");
    let make = |object: &Value| {
        let mut object = object.clone();
        // Whoever was faster is looked at anew: the change itself tells of it.
        object.set("metadata.resourceVersion", version);
        object.set("spec", spec.clone());
        Ok(object)
    };
    match rewrite(core, LEASES, &write::MAIN, (namespace, name), &make).await {
        Err(error) if !matches!(&*error.reason, "Conflict" | "NotFound") => Err(error.message),
        _ => Ok(()),
    }
}

/// Removes candidates that have not been heard of for long, now and again until the server stops.
async fn collect(core: Arc<Core>) {
    let mut again = interval(GC);
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = core.stop.cancelled() => return,
        }
        for candidate in all(&core).iter().filter(|candidate| is_stale(candidate, core.now())) {
            // One that has just been heard of is another state of it.
            if let Err(error) = remove_as_read(&core, CANDIDATES, candidate).await
                && error.reason != "Conflict"
            {
                let (namespace, name) =
                    (candidate.str_at("metadata.namespace"), candidate.str_at("metadata.name"));
                tracing::warn!(namespace, name, why = error.message, "a silent candidate stays");
            }
        }
    }
}
