//! Follows CustomResourceDefinitions: accepts their names, serves them, and takes their objects away when
//! they go. Level-triggered: what is done depends on the definitions as they are, not on the event.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::{DEFINITIONS, compile};
use crate::{
    bootstrap::internal_call,
    core::Core,
    hooks::CLEANUP,
    options::DeleteOptions,
    registry::Served,
    verbs::{delete, write},
};

/// Definitions as they were compiled last, by name.
#[derive(Default)]
struct Known {
    definitions: BTreeMap<String, (u64, Value, Vec<Arc<Served>>)>,
}

/// Serves the custom resources there are, and follows their definitions until the server stops.
pub async fn start(core: &Arc<Core>) {
    // The revision comes before reading, so that nothing falls in between.
    let mut from = core.store().revision();
    let mut known = Known::default();
    settle(core, &mut known).await;
    let core = core.clone();
    tokio::spawn(async move {
        loop {
            if let Ok(mut watcher) = core.store().watch(DEFINITIONS, from) {
                loop {
                    let batch = tokio::select! {
                        batch = watcher.next() => batch,
                        () = core.stop.cancelled() => return,
                    };
                    if batch.is_err() {
                        break;
                    }
                    settle(&core, &mut known).await;
                }
            }
            from = core.store().revision();
            settle(&core, &mut known).await;
        }
    });
}

/// Brings registry and definitions into step with each other. Only what changed is compiled.
async fn settle(core: &Arc<Core>, known: &mut Known) {
    let snapshot = core.store().snapshot(DEFINITIONS);
    known.definitions.retain(|name, _| snapshot.get(name).is_some());
    let mut changed: Vec<String> = Vec::new();
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        if known.definitions.get(&*object.key).is_some_and(|(revision, ..)| *revision == object.revision) {
            continue;
        }
        let Ok(definition) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let since = match known.definitions.get(&*object.key) {
            Some((_, before, served)) if before.at("spec") == definition.at("spec") => served
                .iter()
                .find_map(|s| s.stored.custom.as_ref().map(|c| c.since))
                .unwrap_or(object.revision),
            _ => object.revision,
        };
        let served = compile(&definition, since, Arc::downgrade(core)).into_iter().map(Arc::new).collect();
        changed.push(object.key.to_string());
        known.definitions.insert(object.key.to_string(), (object.revision, definition, served));
    }
    let conflicts = conflicts(known.definitions.values().map(|(_, definition, _)| definition));
    let served = known
        .definitions
        .iter()
        .filter(|(name, _)| !conflicts.contains_key(*name))
        .flat_map(|(_, (_, _, served))| served.iter().cloned());
    core.registry.store(Arc::new(core.builtin.with_custom(served)));
    core.openapi.forget();
    for (name, (_, definition, _)) in &known.definitions {
        if definition.has("metadata.deletionTimestamp") {
            if definition.strings("metadata.finalizers").contains(&CLEANUP)
                && core.cleaning.lock().insert(name.to_owned())
            {
                tokio::spawn(clean(core.clone(), definition.clone()));
            }
        } else if changed.contains(name) || waits_for_names(definition) {
            accept(core, definition, conflicts.get(name)).await;
        }
    }
}

/// Whether another definition's end may make this one's names free.
fn waits_for_names(definition: &Value) -> bool {
    definition
        .items("status.conditions")
        .iter()
        .any(|c| c.str_at("type") == "NamesAccepted" && c.str_at("status") != "True")
}

/// Definitions whose names another, older one of the group has already: definition name → what is wrong.
fn conflicts<'a>(definitions: impl Iterator<Item = &'a Value>) -> BTreeMap<String, (&'static str, String)> {
    let mut sorted: Vec<&Value> = definitions.collect();
    // Whoever was accepted first keeps its names.
    sorted.sort_by_key(|d| {
        let accepted = d
            .items("status.conditions")
            .iter()
            .any(|c| c.str_at("type") == "NamesAccepted" && c.str_at("status") == "True");
        (!accepted, d.str_at("metadata.creationTimestamp").to_owned(), d.str_at("metadata.name").to_owned())
    });
    let mut resources: HashSet<(String, String)> = HashSet::new();
    let mut kinds: HashSet<(String, String)> = HashSet::new();
    let mut out = BTreeMap::new();
    for definition in sorted {
        let group = definition.str_at("spec.group");
        let names = definition.at("spec.names");
        let place = |name: &str| (group.to_owned(), name.to_owned());
        let mut wanted: Vec<(&'static str, &str)> =
            vec![("PluralConflict", names.str_at("plural")), ("SingularConflict", names.str_at("singular"))];
        wanted.extend(names.strings("shortNames").into_iter().map(|n| ("ShortNamesConflict", n)));
        let taken = wanted.iter().find(|(_, n)| !n.is_empty() && resources.contains(&place(n)));
        let kind_taken =
            [("KindConflict", names.str_at("kind")), ("ListKindConflict", names.str_at("listKind"))]
                .into_iter()
                .find(|(_, n)| !n.is_empty() && kinds.contains(&place(n)));
        if let Some((reason, name)) = taken.copied().or(kind_taken) {
            out.insert(
                definition.str_at("metadata.name").to_owned(),
                (reason, format!("{name:?} is already in use")),
            );
            continue;
        }
        resources.extend(wanted.iter().filter(|(_, n)| !n.is_empty()).map(|(_, n)| place(n)));
        kinds.insert(place(names.str_at("kind")));
        kinds.insert(place(names.str_at("listKind")));
    }
    out
}

fn set_condition(definition: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    let mut conditions = definition.items("status.conditions").to_vec();
    let new = json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    match conditions.iter_mut().find(|c| c.str_at("type") == kind) {
        Some(have) => {
            let since = have.at("lastTransitionTime").clone();
            let same = have.str_at("status") == status;
            *have = new;
            if same {
                have.set("lastTransitionTime", since);
            }
        }
        None => conditions.push(new),
    }
    definition.set("status.conditions", conditions);
}

/// Writes what became of a definition's names; the registry serves it already.
async fn accept(core: &Arc<Core>, definition: &Value, conflict: Option<&(&'static str, String)>) {
    let name = definition.str_at("metadata.name");
    let call = internal_call(core, "update", "customresourcedefinitions", "", name);
    let Some(served) = core.builtin.stored(DEFINITIONS) else { return };
    let now = core.now_rfc3339();
    let change = |definition: &mut Value| {
        match conflict {
            None => {
                let names = definition.at("spec.names").clone();
                definition.set("status.acceptedNames", names);
                set_condition(definition, "NamesAccepted", "True", "NoConflicts", "no conflicts found", &now);
                set_condition(
                    definition,
                    "Established",
                    "True",
                    "InitialNamesAccepted",
                    "the initial names have been accepted",
                    &now,
                );
            }
            Some((reason, message)) => {
                set_condition(definition, "NamesAccepted", "False", reason, message, &now);
                let established = definition
                    .items("status.conditions")
                    .iter()
                    .any(|c| c.str_at("type") == "Established" && c.str_at("status") == "True");
                if !established {
                    set_condition(
                        definition,
                        "Established",
                        "False",
                        "NotAccepted",
                        "not all names are accepted",
                        &now,
                    );
                }
            }
        }
        super::record_storage_version(definition);
        Ok(())
    };
    if let Err(error) = write::modify(&call, served, "", name, false, change).await
        && error.reason != "NotFound"
    {
        tracing::warn!(%error, definition = name, "cannot write the status of a custom resource definition");
    }
}

/// How long to wait before looking again at objects that hold themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Deletes all objects of a definition that is going, then lets it go.
async fn clean(core: Arc<Core>, definition: Value) {
    let name = definition.str_at("metadata.name").to_owned();
    let done = remove_objects(&core, &definition).await;
    if done && let Some(served) = core.builtin.stored(DEFINITIONS) {
        let call = internal_call(&core, "update", "customresourcedefinitions", "", &name);
        if let Err(error) = delete::finish(&call, served, "", &name, CLEANUP).await {
            tracing::warn!(%error, definition = name, "cannot finish the deletion of a custom resource definition");
        }
    }
    core.cleaning.lock().remove(&name);
}

async fn remove_objects(core: &Arc<Core>, definition: &Value) -> bool {
    let mut compiled = compile(definition, 0, Arc::downgrade(core));
    let storage = compiled.iter().position(Served::is_storage).unwrap_or(0);
    if compiled.is_empty() {
        return true;
    }
    let served = compiled.swap_remove(storage);
    let served = Arc::new(served);
    let kind = served.stored.kind_key.clone();
    loop {
        let snapshot = core.store().snapshot(&kind);
        if snapshot.is_empty() {
            return true;
        }
        for object in snapshot.range(std::ops::Bound::Unbounded, "") {
            let (namespace, name) = object.key.split_once('/').unwrap_or(("", &object.key));
            let call = internal_call(core, "delete", &served.plural, namespace, name);
            if let Err(error) =
                delete::object(&call, &served, namespace, name, &DeleteOptions::default()).await
                && error.reason != "NotFound"
            {
                tracing::warn!(%error, kind = &*kind, key = &*object.key, "cannot delete a custom resource");
            }
        }
        if core.store().snapshot(&kind).is_empty() {
            return true;
        }
        // Finalizers hold the rest: wait until one of them changes.
        let Ok(mut watcher) = core.store().watch(&kind, core.store().revision()) else {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        tokio::select! {
            _ = watcher.next() => {}
            () = core.stop.cancelled() => return false,
        }
    }
}
