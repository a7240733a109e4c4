//! How a definition goes: all of its objects first, then what keeps the definition itself.

use std::{ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, de::IgnoredAny};
use tokio::time::sleep;
use yare_kinds::view::View;
use yare_store::{Event, EventKind};

use super::{DEFINITIONS, compile, controller::terminating};
use crate::{
    bootstrap::internal_call,
    changes::{Change, Changes},
    core::Core,
    hooks::CLEANUP,
    options::DeleteOptions,
    registry::{Served, store_kind},
    verbs::delete,
};

/// Before objects are deleted again that somebody would not let go.
const AGAIN: Duration = Duration::from_secs(5);

/// Deletes all objects of a definition that is going, then lets it go.
pub(super) async fn clean(core: Arc<Core>, name: String, established: bool) {
    let done = if overlaps(&core, &name) {
        // Its objects would be those of the built-in resource.
        let message = "instances overlap with built-in resources in storage";
        terminating(&core, &name, "False", "OverlappingBuiltInResource", message).await
    } else if established {
        terminating(
            &core,
            &name,
            "True",
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        )
        .await
            && remove_objects(&core, &name).await
            && terminating(&core, &name, "False", "InstanceDeletionCompleted", "removed all instances").await
    } else {
        terminating(&core, &name, "False", "NeverEstablished", "resource was never established").await
    };
    if done && let Some(served) = core.builtin.stored(DEFINITIONS) {
        let call = internal_call(&core, "update", "customresourcedefinitions", "", &name);
        if let Err(error) = delete::finish(&call, served, "", &name, CLEANUP).await {
            tracing::warn!(%error, definition = name, "cannot finish the deletion of a custom resource definition");
        }
    }
    core.cleaning.lock().remove(&name);
}

/// Whether a definition is of a resource that is built in, and whose objects lie where its own would.
fn overlaps(core: &Core, name: &str) -> bool {
    core.read(DEFINITIONS, name).is_some_and(|definition| {
        let kind = store_kind(definition.str_at("spec.group"), definition.str_at("spec.names.plural"));
        core.builtin.stored(&kind).is_some()
    })
}

/// `false`: the server stops first.
async fn remove_objects(core: &Arc<Core>, name: &str) -> bool {
    let Some(definition) = core.read(DEFINITIONS, name) else { return true };
    let mut compiled = compile(&definition, definition.at("status.acceptedNames"), 0, Arc::downgrade(core));
    let storage = compiled.iter().position(Served::is_storage).unwrap_or(0);
    if compiled.is_empty() {
        return true;
    }
    let served = Arc::new(compiled.swap_remove(storage));
    let kind = &served.stored.kind_key;
    let mut changes = Changes::from_now(core, [&**kind]);
    loop {
        let mut refused = false;
        for object in core.store().snapshot(kind).range(std::ops::Bound::Unbounded, "") {
            let (namespace, name) = object.key.split_once('/').unwrap_or(("", &object.key));
            let call = internal_call(core, "delete", &served.plural, namespace, name);
            if let Err(error) =
                delete::object(&call, &served, namespace, name, &DeleteOptions::default()).await
                && error.reason != "NotFound"
            {
                tracing::warn!(%error, kind = &**kind, key = &*object.key, "cannot delete a custom resource");
                refused = true;
            }
        }
        if let ControlFlow::Break(gone) = held(core, kind, &mut changes, refused).await {
            return gone;
        }
    }
}

/// Waits until no object is left (`true`), the server stops (`false`), or some have to be deleted again: those that
/// were `refused`, and one whose creation was under way when the definition went.
async fn held(core: &Core, kind: &str, changes: &mut Changes, refused: bool) -> ControlFlow<bool> {
    let mut again = pin!(sleep(AGAIN));
    while !core.store().snapshot(kind).is_empty() {
        tokio::select! {
            change = changes.next() => match change {
                None => return ControlFlow::Break(false),
                Some(Change::Missed) => return ControlFlow::Continue(()),
                Some(Change::Of(_, batch)) if batch.iter().any(|event| is_late(event)) => {
                    return ControlFlow::Continue(());
                }
                // Whoever holds the others by finalizers lets them go one by one.
                Some(Change::Of(..)) => {}
            },
            () = &mut again, if refused => return ControlFlow::Continue(()),
        }
    }
    ControlFlow::Break(true)
}

/// Whether an object came that nobody has deleted.
fn is_late(event: &Event) -> bool {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        deletion_timestamp: Option<IgnoredAny>,
    }
    let stays = |object: Object| object.metadata.deletion_timestamp.is_none();
    event.kind == EventKind::Put && serde_json::from_slice(&event.object.bytes).is_ok_and(stays)
}
