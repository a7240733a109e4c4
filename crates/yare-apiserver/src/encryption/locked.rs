//! Objects that cannot be decrypted: what requests about them get, when they are tried again, and how they can
//! be deleted all the same. Nothing here costs a request anything while no object is locked.

use std::{ops::Bound, sync::Arc};

use http::StatusCode;
use serde_json::{Value, json};
use yare_auth::Action;
use yare_store::{CommitError, Expect, Object, Op, Snapshot, Write};

use super::chain::path;
use crate::{
    auth::authorizers,
    body::Reply,
    core::{Call, Core},
    registry::Served,
    render,
    status::{ApiError, ApiResult, Cause, GroupResource},
};

/// The feature that lets them be deleted, and errors say more.
const GATE: &str = "AllowUnsafeMalformedObjectDeletion";
/// What whoever deletes one must be allowed to do.
const VERB: &str = "unsafe-delete-ignore-read-errors";
/// Objects that the error of a list names.
const MAX_CAUSES: usize = 100;
const SERVICES: &str = "services";

/// Whether the feature is on.
pub(crate) fn may_delete(core: &Core) -> bool {
    core.config.gates.is_on(GATE)
}

/// After the file changed: what the new keys cannot decrypt is locked, as it would be after a restart, and what is
/// locked is tried with them. (Upstream's reads of single objects fail at once, those from its cache when it
/// restarts.)
pub(super) async fn recheck(core: &Core) {
    let Some(encryption) = &core.config.encryption else { return };
    let turn = encryption.trying.lock().await;
    match core.store().lock_unreadable().await {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, "objects cannot be decrypted any more"),
        Err(error) => tracing::error!(%error, "objects cannot be tried with the new keys"),
    }
    drop(turn);
    unlock(core).await;
}

/// Tries everything that is locked once more.
pub(crate) async fn unlock(core: &Core) {
    let Some(encryption) = &core.config.encryption else { return };
    let store = core.store();
    let _turn = encryption.trying.lock().await;
    if !store.is_locked() {
        return;
    }
    let services = !of(&store.snapshot(SERVICES), "").is_empty();
    match store.unlock().await {
        Ok(0) => tracing::info!("all objects are decrypted"),
        Ok(left) => tracing::warn!(left, "objects cannot be decrypted"),
        Err(error) => tracing::error!(%error, "objects cannot be unlocked"),
    }
    if services {
        crate::bootstrap::restore_services(core);
    }
}

/// Refuses a request that needs what is locked, after it was tried again.
pub(crate) async fn guard(call: &Call, served: &Served) -> ApiResult<()> {
    if find(call, served).is_empty() {
        return Ok(());
    }
    if let Some(encryption) = &call.core.config.encryption {
        if let Err(error) = encryption.check().await {
            tracing::debug!(error, "a KMS plugin is not well");
        }
        unlock(&call.core).await;
    }
    let locked = find(call, served);
    if locked.is_empty() { Ok(()) } else { Err(error(call, served, locked).await) }
}

/// Refuses to list a state that has locked objects.
pub(crate) async fn guard_list(call: &Call, served: &Served, snapshot: &Snapshot) -> ApiResult<()> {
    let locked = of(snapshot, &call.info.namespace);
    if locked.is_empty() { Ok(()) } else { Err(error(call, served, locked).await) }
}

/// The locked objects that a request needs.
fn find(call: &Call, served: &Served) -> Vec<Arc<Object>> {
    let (store, kind) = (call.core.store(), &served.stored.kind_key);
    if !call.info.name.is_empty() {
        let object = store.get(kind, &served.stored.key(&call.info.namespace, &call.info.name));
        return object.filter(|o| o.is_locked()).into_iter().collect();
    }
    if call.info.verb == "create" {
        // A new service could take an address that one of them has.
        return if &**kind == SERVICES { of(&store.snapshot(kind), "") } else { Vec::new() };
    }
    of(&store.snapshot(kind), if served.namespaced { &call.info.namespace } else { "" })
}

fn of(snapshot: &Snapshot, namespace: &str) -> Vec<Arc<Object>> {
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    snapshot.range(Bound::Unbounded, &prefix).filter(|o| o.is_locked()).cloned().collect()
}

/// What upstream says of objects that it cannot read.
async fn error(call: &Call, served: &Served, mut locked: Vec<Arc<Object>>) -> ApiError {
    let (is_on, what) = (may_delete(&call.core), served.group_resource());
    let truncated = locked.len() > MAX_CAUSES;
    let named = !call.info.name.is_empty();
    locked.truncate(if named || !is_on { 1 } else { MAX_CAUSES });
    let store = call.core.store().clone();
    // A plugin may have to be asked.
    let reasons = tokio::task::spawn_blocking(move || {
        let why = |o: &Arc<Object>| store.why_locked(o).unwrap_or_else(|| "it can be decrypted again".into());
        locked.iter().map(|o| (path(&o.kind, &o.key), why(o))).collect::<Vec<_>>()
    });
    let reasons = reasons.await.unwrap_or_default();
    let corrupt = |path: &str, why: &str| {
        format!(
            "StorageError: corrupt object, Code: 7, Key: {path}, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: {why}"
        )
    };
    let Some((path, why)) = reasons.first() else { return ApiError::internal("objects cannot be decrypted") };
    match (named, is_on) {
        (true, false) => ApiError::internal(why),
        (true, true) => ApiError::internal(corrupt(path, why)),
        (false, false) => ApiError::internal(format!("unable to transform key {path:?}: {why}")),
        (false, true) => {
            let causes = reasons.iter().map(|(path, why)| Cause {
                reason: "UnexpectedServerResponse".into(),
                message: corrupt(path, why),
                field: path.clone(),
            });
            unreadable(what, causes.collect(), truncated)
        }
    }
}

fn unreadable(what: GroupResource<'_>, mut causes: Vec<Cause>, truncated: bool) -> ApiError {
    let message = format!("failed to read one or more {what} from the storage");
    if truncated {
        causes.push(Cause {
            reason: "FieldValueTooMany".into(),
            message: "too many errors, the list is truncated".into(),
            field: String::new(),
        });
    }
    let mut error = ApiError::new(500, "StorageReadError", message);
    error.details.present = true;
    error.details.group = what.group.into();
    error.details.kind = what.resource.into();
    error.details.name = "list".into();
    error.details.causes = causes;
    error
}

/// What a watch ends with where an object is deleted that could not be read.
pub(crate) fn deleted() -> ApiError {
    let why = "saw a DELETED event, but object data is corrupt - data from the storage is not transformable revision=0: the object was deleted unread";
    ApiError::new(500, "StorageReadError", why)
}

/// Deletes an object that cannot be read: no preconditions, no finalizers, no admission, nothing that would
/// follow a deletion. May break what relies on any of these, so it takes a permission of its own.
pub(crate) async fn delete(call: &Call, served: &Served) -> ApiResult<Reply> {
    call.annotate("apiserver.k8s.io/unsafe-delete-ignore-read-error", "");
    let info = &call.info;
    let what = served.group_resource();
    let action = Action {
        verb: VERB,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        namespace: &info.namespace,
        name: &info.name,
        ..Action::default()
    };
    let outcome = authorizers::decide(&call.core, &call.user, &action).await;
    if !outcome.is_allowed() {
        let why = if outcome.error.is_empty() {
            format!("not permitted to do {VERB:?}, reason: {}", outcome.reason())
        } else {
            format!("error while checking permission for {VERB:?}, {}", outcome.error)
        };
        return Err(ApiError::forbidden(what, &info.name, why));
    }
    // It may be readable by now, and is then deleted like any other.
    let _ = guard(call, served).await;
    let store = call.core.store();
    let key = served.stored.key(&info.namespace, &info.name);
    let object = store.get(&served.stored.kind_key, &key).filter(|object| object.is_locked());
    let Some(object) = object else {
        let field = yare_schema::field::Path::new("ignoreStoreReadErrorWithClusterBreakingPotential");
        let why = "is exclusively used to delete corrupt object(s), try again by removing this option";
        let error = yare_schema::field::FieldError::invalid(&field, true, why);
        return Err(ApiError::invalid(what, &info.name, &[error]));
    };
    tracing::warn!(kind = %object.kind, key, "an object that cannot be read is deleted");
    let write =
        Write { kind: object.kind.clone(), key, expect: Expect::Revision(object.revision), op: Op::Delete };
    match store.commit(vec![write]).await {
        Ok(_) | Err(CommitError::Missing { .. }) => {}
        Err(error) => return Err(ApiError::from_commit(error, what, &info.name)),
    }
    let status: Value = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": info.name, "kind": served.kind }, "code": 200,
    });
    render::document(call, StatusCode::OK, &status)
}
