//! `create`: from a body to a stored object.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use yare_auth::rbac::Action;
use yare_kinds::{
    meta,
    view::{View, ViewMut},
};
use yare_store::{CommitError, Expect, Op, Write};

use crate::{
    admission::{self, Operation},
    audit::Layer,
    auth,
    body::Reply,
    codec,
    core::Call,
    hooks, managed,
    negotiate::Asked,
    options::WriteOptions,
    owner_references::{self, Seen},
    registry::Served,
    render::Renderer,
    status::{ApiError, ApiResult, GroupResource},
    trace::{self, Storing},
    verbs::write::{self, Written},
};

/// How often a generated name that is taken is replaced by another.
const MAX_GENERATED: usize = 8;
/// How often a create is tried while its namespace changes.
const MAX_ATTEMPTS: usize = 16;

/// How an object comes to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// It is created.
    Create,
    /// It is updated, and was not there.
    Update,
    /// It is applied by the server, and was not there; its managed fields are set already.
    Apply,
}

/// Creates from a request's body.
pub async fn create(call: &Call, served: &Arc<Served>, body: Bytes) -> ApiResult<Reply> {
    // Whoever takes no answer that can be given changes nothing.
    let renderer = Renderer::new(call, served, Asked::One)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let object = write::decode(call, served, &body, options.field_validation)?;
    yare_trace::event("About to store object in database", &[]);
    let written = trace::written(body.len(), object_of(call, served, object, &options, By::Create).await)?;
    write::answer(call, &renderer, &written)
}

/// Creates an object given in the served version.
pub async fn object_of(
    call: &Call,
    served: &Arc<Served>,
    mut object: Value,
    options: &WriteOptions,
    by: By,
) -> ApiResult<Written> {
    let namespace = &call.info.namespace;
    if served.namespaced && namespace.is_empty() {
        return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
    }
    crate::crd::check_create(call, served)?;
    let version = object.str_at("metadata.resourceVersion");
    // Whoever updates or applies may have seen the object before it went.
    let is_versioned = by == By::Create && version.parse().is_ok_and(|version: u64| version != 0);
    write::settle_namespace(served, &mut object, namespace)?;
    served.default_own(&mut object);
    served.to_storage(&mut object)?;
    clear_system_fields(&mut object);
    if by != By::Apply {
        owner_references::deduplicate(call, &mut object, Seen::Sent);
    }
    let system = System { created: call.core.now_rfc3339(), uid: call.core.new_uid() };
    let generates = by == By::Create && object.is_set("metadata.generateName");
    // Who gives a name besides is told the same as who was given one, but not given another.
    let attempts = if object.str_at("metadata.name").is_empty() { MAX_GENERATED } else { 1 };
    let mut taken = String::new();
    for _ in 0..attempts {
        match commit(call, served, &object, &system, options, by, is_versioned).await {
            Err(error) if generates && error.reason == "AlreadyExists" => taken = error.details.name,
            done => return done,
        }
    }
    let what = GroupResource { group: &served.stored.group, resource: &served.plural };
    Err(ApiError::generate_name_conflict(what, &taken))
}

/// Whoever creates by an update or an apply must be allowed to create as well.
pub async fn authorize(call: &Call) -> ApiResult<()> {
    let selectors = auth::Selectors::default();
    let action = Action { verb: "create", ..selectors.action(&call.info) };
    let outcome = auth::authorizers::decide(&call.core, &call.user, &action).await;
    auth::refuse(&outcome, &call.user, &action)
}

/// What the server alone says of an object, once those have seen it who may change it.
struct System {
    created: String,
    uid: String,
}

fn clear_system_fields(object: &mut Value) {
    for path in [
        "metadata.resourceVersion",
        "metadata.selfLink",
        "metadata.deletionTimestamp",
        "metadata.deletionGracePeriodSeconds",
        "metadata.creationTimestamp",
        "metadata.uid",
    ] {
        object.remove(path);
    }
}

async fn commit(
    call: &Call,
    served: &Arc<Served>,
    object: &Value,
    system: &System,
    options: &WriteOptions,
    by: By,
    is_versioned: bool,
) -> ApiResult<Written> {
    let stored = &served.stored;
    let store = call.core.store();
    let given = object.str_at("metadata.name");
    let what = served.group_resource();
    let now = call.core.now_rfc3339();
    let ctx = write::context(&now, call);
    let attributes = admission::Attributes {
        call,
        served,
        operation: Operation::Create,
        name: given,
        namespace: &call.info.namespace,
        subresource: "",
        dry_run: options.dry_run,
        deletion: None,
    };
    for _ in 0..MAX_ATTEMPTS {
        let mut new = object.clone();
        stored.strategy.default(&mut new);
        stored.strategy.default_in(&mut new, &ctx);
        if by != By::Apply {
            managed::update(call, served, None, &mut new, options, "", &now);
        }
        let admitted = admission::mutate(&attributes, &mut new, None).await?;
        owner_references::deduplicate(call, &mut new, Seen::Admitted);
        new.set("metadata.creationTimestamp", system.created.as_str());
        new.set("metadata.uid", system.uid.as_str());
        // Who changes the object sees that its name is still to be made; who may refuse it sees the name.
        if new.str_at("metadata.name").is_empty() {
            if new.is_set("metadata.generateName") {
                let name = call.core.generate_name(new.str_at("metadata.generateName"));
                new.set("metadata.name", name);
            } else if served.strategy.names_itself() {
                new.set("metadata.name", call.core.new_uid());
            }
        }
        let name = new.str_at("metadata.name").to_owned();
        let attributes = admission::Attributes { name: &name, ..attributes };
        let noted = served.strategy.notes_on_create(&new);
        served.strategy.prepare_for_create(&mut new, &ctx);
        if !stored.gated.is_empty() {
            stored.gated.drop(&mut new, None);
        }
        if let Some(asked) = hooks::ask(call, served, &new, None) {
            asked.await?;
        }
        let reserved = hooks::before_create(call, served, &mut new, options.dry_run)?;
        let of_metadata = || {
            let mut errors = meta::validate_create(&new, stored.namespaced, &*served.strategy);
            if let Some(row) = stored.builtin {
                errors.extend(row.check_finalizers(&new, &*served.strategy));
            }
            errors
        };
        // What is wrong with the metadata stands with the rest, except where upstream looks only after it.
        let together = stored.builtin.is_some() && served.strategy.judges_metadata();
        let mut errors = admission::claims::errors(&attributes, &new, None).await;
        if together {
            errors.extend(of_metadata());
        }
        errors.extend(served.strategy.validate(&*served.judged(&new)?, &ctx));
        if let Some(row) = stored.builtin {
            errors.extend(row.check_switched(&new, None, &ctx));
        }
        if errors.is_empty() && !together {
            errors = of_metadata();
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(stored.group_kind(), &name, &errors));
        }
        // Also whoever is refused by admission is told of them.
        for warning in noted.into_iter().chain(served.strategy.warnings(&new, None)) {
            call.warn(warning);
        }
        admission::validate(&attributes, Some(&new), None).await?;
        if is_versioned && !options.dry_run {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(ApiError::new(500, "", why));
        }
        let key = stored.key(&call.info.namespace, &name);
        let storing = Storing::creates(call, stored, &key, options.dry_run);
        let mut draft = Some(storing.encode(|| codec::draft(stored, &mut new))?);
        // Last of all, so that nothing is charged for what is refused; again while others write to the quotas.
        for _ in 0..MAX_ATTEMPTS {
            let _turn = admission::resource_quota::turn(&attributes).await;
            let charges = admission::resource_quota::charge(&attributes, &new, None)?;
            let this = if charges.is_empty() { draft.take() } else { draft.clone() };
            let Some(draft) = this else { break };
            if options.dry_run {
                if store.get(&stored.kind_key, &key).is_some() {
                    return Err(already_exists(call, served, &key, &name));
                }
                return Ok(Written { bytes: write::dry(draft, None), created: true });
            }
            let mut writes = vec![Write {
                kind: stored.kind_key.clone(),
                key: key.clone(),
                expect: Expect::Absent,
                op: Op::Put(draft),
            }];
            writes.extend(charges);
            writes.extend(hooks::beside(call, served, Some(&new), None)?);
            // The namespace must still be what admission saw when the object appears in it.
            if let Some(namespace) = &admitted.namespace {
                writes.push(Write {
                    kind: namespace.kind.clone(),
                    key: namespace.key.to_string(),
                    expect: Expect::Revision(namespace.revision),
                    op: Op::Check,
                });
            }
            let done = call.timed(Layer::Storage, store.commit(writes)).await;
            storing.answered(&done);
            match done {
                Ok(objects) => {
                    reserved.keep();
                    let bytes = objects.first().map(|o| o.bytes.clone()).unwrap_or_default();
                    hooks::after_create(call, served, &new);
                    return Ok(Written { bytes, created: true });
                }
                Err(
                    CommitError::Conflict { kind, key: at, .. }
                    | CommitError::Missing { kind, key: at, .. }
                    | CommitError::Exists { kind, key: at, .. },
                ) if (&*kind, &at) != (&*stored.kind_key, &key) => {
                    // The namespace changed: all that was thought of it is thought again.
                    if &*kind != admission::resource_quota::QUOTAS {
                        break;
                    }
                }
                Err(CommitError::Exists { .. }) => return Err(already_exists(call, served, &key, &name)),
                Err(error) => return Err(ApiError::from_commit(error, what, &name)),
            }
        }
    }
    Err(ApiError::modified(what, given))
}

/// The name is taken; whoever waits for the object that has it to go is told that it goes.
fn already_exists(call: &Call, served: &Served, key: &str, name: &str) -> ApiError {
    let mut error = ApiError::already_exists(served.group_resource(), name);
    let taken = call.core.read(&served.stored.kind_key, key);
    if taken.is_some_and(|object| object.has("metadata.deletionTimestamp")) {
        error.message.insert_str(0, "object is being deleted: ");
    }
    error
}
