//! Follows CustomResourceDefinitions: accepts their names, serves them, and takes their objects away when
//! they go. Level-triggered: what is done depends on the definitions as they are, not on the event.
//!
//! Of a definition only a summary is kept ([`Entry`]); its text rests in the store. What is served of it is
//! compiled again only where its specification, its names or its end changed, not when its status did.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use futures::future::join_all;
use serde_json::{Value, json};
use yare_kinds::{
    conditions,
    strategy::apiextensions::{approval_condition, has_bad_ca_bundle},
    view::{View, ViewMut, same},
};
use yare_schema::{
    crd,
    field::{FieldError, Path},
};

use super::{
    DEFINITIONS, compile,
    names::{self, Claims, Names, Verdict},
    removal,
};
use crate::{
    bootstrap::internal_call,
    changes::{Change, Changes},
    core::Core,
    hooks::CLEANUP,
    registry::Served,
    span,
    verbs::write,
};

/// What is kept of a definition.
struct Entry {
    /// Revision of the definition as it was read last.
    revision: u64,
    /// Revision at which its specification became what it is.
    since: u64,
    /// Digest of the specification.
    spec: u64,
    names: Names,
    /// Its conditions.
    conditions: Value,
    /// The condition about protected groups that it should have.
    approval: Option<Value>,
    /// What is wrong with its schemas, nothing for most.
    violations: Option<Value>,
    /// Its webhook's certificates make no sense.
    bad_ca_bundle: bool,
    deleting: bool,
    /// It waits for its objects to be removed.
    cleanup: bool,
    /// What `served` was compiled from beside the specification.
    compiled: Option<(Value, bool)>,
    served: Vec<Arc<Served>>,
    /// What of it is in the registry.
    registered: Vec<Arc<Served>>,
}

/// What is known of the definitions. What one event costs does not depend on how many there are.
#[derive(Default)]
struct Known {
    entries: BTreeMap<String, Entry>,
    claims: Claims,
    /// Definitions that do not have the names they want.
    unsettled: BTreeSet<String>,
    /// Definitions that are being deleted.
    going: BTreeSet<String>,
}

/// What there is to do for the registry.
#[derive(Default)]
struct Swap {
    gone: Vec<Arc<Served>>,
    come: Vec<Arc<Served>>,
}

/// Serves the custom resources there are, and follows their definitions until the server stops.
pub async fn start(core: &Arc<Core>) {
    let mut changes = Changes::from_now(core, [DEFINITIONS]);
    let mut known = Known::default();
    settle(core, &mut known, None).await;
    let core = core.clone();
    tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            let names = match change {
                Change::Of(_, batch) => {
                    Some(batch.iter().map(|event| event.object.key.to_string()).collect())
                }
                Change::Missed => None,
            };
            settle(&core, &mut known, names).await;
        }
    });
}

impl Known {
    /// Reads what changed, of all definitions or of those named, and says what that was.
    fn read(&mut self, core: &Core, named: Option<BTreeSet<String>>, swap: &mut Swap) -> BTreeSet<String> {
        let snapshot = core.store().snapshot(DEFINITIONS);
        let named = named.unwrap_or_else(|| {
            let there = snapshot.range(std::ops::Bound::Unbounded, "").map(|o| o.key.to_string());
            self.entries.keys().cloned().chain(there).collect()
        });
        let mut changed = BTreeSet::new();
        for name in named {
            let object = snapshot.get(&name);
            let revision = object.as_ref().map(|o| o.revision);
            if self.entries.get(&name).map(|entry| entry.revision) == revision {
                continue;
            }
            let before = self.forget(&name);
            let entry = match object {
                Some(object) => Entry::read(&object.bytes, object.revision, before),
                None => {
                    swap.gone.extend(before.into_iter().flat_map(|before| before.registered));
                    None
                }
            };
            if let Some(entry) = entry {
                self.claims.add(&name, &entry.names.group, &entry.names.accepted);
                if !entry.names.are_settled() {
                    self.unsettled.insert(name.clone());
                }
                if entry.deleting {
                    self.going.insert(name.clone());
                }
                self.entries.insert(name.clone(), entry);
            }
            changed.insert(name);
        }
        changed
    }

    fn forget(&mut self, name: &str) -> Option<Entry> {
        self.unsettled.remove(name);
        self.going.remove(name);
        let entry = self.entries.remove(name)?;
        // What it wanted it may have been given since.
        for names in [&entry.names.accepted, &entry.names.wanted] {
            self.claims.remove(name, &entry.names.group, names);
        }
        Some(entry)
    }
}

impl Entry {
    fn read(bytes: &[u8], revision: u64, before: Option<Self>) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        span::member(bytes, "spec").map(|at| &bytes[at]).hash(&mut hasher);
        let spec = hasher.finish();
        let definition: Value = serde_json::from_slice(bytes).ok()?;
        let (kept, registered) = match before {
            Some(mut before) => {
                let registered = std::mem::take(&mut before.registered);
                (Some(before).filter(|before| before.spec == spec), registered)
            }
            None => (None, Vec::new()),
        };
        let (since, compiled, served) = kept
            .map_or((revision, None, Vec::new()), |before| (before.since, before.compiled, before.served));
        Some(Self {
            revision,
            since,
            spec,
            names: Names::of(&definition),
            conditions: definition.at("status.conditions").clone(),
            approval: approval_condition(&definition),
            violations: violations(&definition),
            bad_ca_bundle: has_bad_ca_bundle(&definition),
            deleting: definition.has("metadata.deletionTimestamp"),
            cleanup: definition.strings("metadata.finalizers").contains(&CLEANUP),
            compiled,
            served,
            registered,
        })
    }

    /// What is to be done for the registry to have what is served.
    fn register(&mut self, swap: &mut Swap) {
        let same = self.served.len() == self.registered.len()
            && self.served.iter().zip(&self.registered).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            swap.gone.append(&mut self.registered);
            swap.come.extend(self.served.iter().cloned());
            self.registered.clone_from(&self.served);
        }
    }

    fn is_true(&self, kind: &str) -> bool {
        conditions::is_true(self.conditions.items(""), kind)
    }

    /// Compiles what is served, if that is not as it was.
    fn compile(&mut self, core: &Arc<Core>, name: &str, names: &Value) {
        // Names come back from the store without what is empty: they are the same names, and what readers have
        // learnt of this definition (what its webhook made of which object) stays good.
        if self.compiled.as_ref().is_some_and(|(known, was)| same(known, names) && *was == self.deleting) {
            return;
        }
        let Some(definition) = core.read(DEFINITIONS, name) else { return };
        self.served =
            compile(&definition, names, self.since, Arc::downgrade(core)).into_iter().map(Arc::new).collect();
        self.compiled = Some((names.clone(), self.deleting));
    }
}

/// The condition of a definition whose schemas are not structural: possible only in definitions from before that was
/// demanded.
fn violations(definition: &Value) -> Option<Value> {
    let mut errors = Vec::new();
    if definition.bool_at("spec.preserveUnknownFields") {
        let path = Path::new("spec");
        errors.push(FieldError::invalid(&path.child("preserveUnknownFields"), true, "must be false"));
    }
    let versions = Path::new("spec.versions");
    for (i, version) in definition.items("spec.versions").iter().enumerate() {
        let schema = version.at("schema.openAPIV3Schema");
        if schema.is_null() {
            continue;
        }
        let at = versions.index(i);
        let at = at.child("schema");
        match crd::structural_violations(schema, &at.child("openAPIV3Schema")) {
            Ok(found) => errors.extend(found),
            Err(why) => {
                let name = version.str_at("name");
                let message = format!("failed to check validation schema for version {name}: {why}");
                return Some(condition("NonStructuralSchema", "Unknown", "StructuralError", &message));
            }
        }
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let message = match &texts[..] {
        [] => return None,
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    };
    Some(condition("NonStructuralSchema", "True", "Violations", &message))
}

/// How many definitions get their status written at once: their commits share a sync of the disk.
const REPORTS: usize = 32;

/// Brings registry and definitions into step with each other: all of them, or those named and those that are
/// not done: without their names, or going.
async fn settle(core: &Arc<Core>, known: &mut Known, named: Option<BTreeSet<String>>) {
    let mut swap = Swap::default();
    let changed = known.read(core, named, &mut swap);
    let Known { entries, claims, unsettled, going } = known;
    let waiting = unsettled.iter().filter_map(|name| Some((name.as_str(), &entries.get(name)?.names)));
    let verdicts = names::judge(claims, waiting);
    let mut reports = Vec::new();
    let unfinished: BTreeSet<&String> = changed.iter().chain(&*unsettled).chain(&*going).collect();
    for name in unfinished {
        let Some(entry) = entries.get_mut(name) else { continue };
        let verdict = match verdicts.get(name) {
            Some(verdict) => verdict.clone(),
            None => Verdict { accepted: entry.names.accepted.clone(), conflict: None },
        };
        if verdict.conflict.is_none() || entry.is_true("Established") {
            entry.compile(core, name, &verdict.accepted);
        } else {
            entry.served.clear();
            entry.compiled = None;
        }
        entry.register(&mut swap);
        if entry.deleting {
            if entry.cleanup && core.cleaning.lock().insert(name.to_owned()) {
                tokio::spawn(removal::clean(core.clone(), name.clone(), entry.is_true("Established")));
            }
        } else {
            reports.push((name, verdict));
        }
    }
    if !swap.gone.is_empty() || !swap.come.is_empty() {
        let registry = core.registry.load().patched(&core.builtin, &swap.gone, &swap.come);
        core.registry.store(Arc::new(registry));
        core.openapi.forget();
        core.aggregation.registration.notify_one();
    }
    // Only now: what a status says is served is served.
    for some in reports.chunks(REPORTS) {
        let some = some.iter().filter_map(|(name, verdict)| Some((name, entries.get(*name)?, verdict)));
        join_all(some.map(|(name, entry, verdict)| report(core, name, entry, verdict))).await;
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "message": message })
}

/// The conditions that a definition should have, beside those about its end.
fn wanted(entry: &Entry, verdict: &Verdict) -> Vec<Value> {
    let mut out = Vec::new();
    match &verdict.conflict {
        None => out.push(condition("NamesAccepted", "True", "NoConflicts", "no conflicts found")),
        Some((reason, message)) => out.push(condition("NamesAccepted", "False", reason, message)),
    }
    if !entry.is_true("Established") {
        out.push(match &verdict.conflict {
            Some(_) => condition("Established", "False", "NotAccepted", "not all names are accepted"),
            None if entry.bad_ca_bundle => {
                let message = "The conversion webhook CABundle is invalid";
                condition("Established", "False", "InvalidCABundle", message)
            }
            None => {
                let message = "the initial names have been accepted";
                condition("Established", "True", "InitialNamesAccepted", message)
            }
        });
    }
    out.extend(entry.violations.clone());
    out.extend(entry.approval.clone());
    out
}

/// Writes what became of a definition into its status; the registry serves it already.
async fn report(core: &Arc<Core>, name: &str, entry: &Entry, verdict: &Verdict) {
    let wanted = wanted(entry, verdict);
    let now = core.now_rfc3339();
    let update = |conditions: &mut Vec<Value>| {
        let mut changed = false;
        for condition in &wanted {
            changed |= conditions::put(conditions, condition.clone(), &now);
        }
        let before = conditions.len();
        if entry.violations.is_none() {
            conditions.retain(|c| c.str_at("type") != "NonStructuralSchema");
        }
        changed || conditions.len() < before
    };
    if same(&entry.names.accepted, &verdict.accepted) && !update(&mut entry.conditions.items("").to_vec()) {
        return;
    }
    let change = |definition: &mut Value| {
        definition.set("status.acceptedNames", verdict.accepted.clone());
        let mut conditions = definition.items("status.conditions").to_vec();
        update(&mut conditions);
        definition.set("status.conditions", conditions);
        Ok(())
    };
    modify(core, name, change).await;
}

/// Changes a definition in the server's own name.
async fn modify(
    core: &Arc<Core>,
    name: &str,
    change: impl Fn(&mut Value) -> crate::status::ApiResult<()>,
) -> bool {
    let call = internal_call(core, "update", "customresourcedefinitions", "", name);
    let Some(served) = core.builtin.stored(DEFINITIONS) else { return false };
    match write::modify(&call, served, "", name, Some("status"), false, change).await {
        Ok(()) => true,
        Err(error) => {
            if error.reason != "NotFound" {
                tracing::warn!(%error, definition = name, "cannot write the status of a custom resource definition");
            }
            false
        }
    }
}

/// Says in a definition that its end has begun.
pub fn mark_for_deletion(definition: &mut Value, now: &str) {
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    conditions::set(definition, condition("Terminating", "True", "InstanceDeletionPending", message), now);
}

/// Writes how far the end of a definition has come.
pub(super) async fn terminating(
    core: &Arc<Core>,
    name: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> bool {
    let wanted = condition("Terminating", status, reason, message);
    let now = core.now_rfc3339();
    let change = |definition: &mut Value| {
        conditions::set(definition, wanted.clone(), &now);
        Ok(())
    };
    modify(core, name, change).await
}
