//! What every write has in common: decoding bodies, the transaction with its retries, and the answer.
//!
//! A write is described by a [`Target`] (the object itself or one of its subresources) and a function from
//! the present object to the wanted one; [`update`] runs it until it commits or must fail.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use yare_kinds::{
    meta, reset,
    strategy::Context,
    view::{View, ViewMut},
};
use yare_schema::{
    encode,
    field::{FieldError, Path},
};
use yare_store::{CommitError, Draft, Expect, Object, Op, Write};

use crate::{
    admission::{self, Operation},
    audit::Layer,
    body::Reply,
    bootstrap::own_options,
    codec,
    core::Call,
    hooks, managed,
    options::{FieldValidation, WriteOptions},
    owner_references::{self, Seen},
    registry::{Served, Stored},
    render::Renderer,
    span,
    status::{ApiError, ApiResult, GroupResource, quote},
    trace::{self, Storing},
};

/// What of an object a write is about.
#[derive(Clone, Copy)]
pub struct Target {
    /// Subresource, empty for the object itself.
    pub subresource: &'static str,
    /// Puts back what this write must not change.
    pub prepare: fn(&Served, &mut Value, &Value, &Context<'_>),
    /// Errors of the prepared object, and warnings of what was wrong with it before.
    pub validate: fn(&Served, &Value, &Value, &Context<'_>, &mut Vec<String>) -> Vec<FieldError>,
}

/// The object itself.
pub const MAIN: Target = Target {
    subresource: "",
    prepare: |served, new, old, ctx| served.strategy.prepare_for_update(new, old, ctx),
    validate: |served, new, old, ctx, warnings| served.strategy.judge_update("", new, old, ctx, warnings),
};

/// Its `status`.
pub const STATUS: Target = Target {
    subresource: "status",
    prepare: |served, new, old, ctx| {
        served.strategy.prepare_for_status_update(new, old, ctx);
        if let Some(reset) = managed::reset_of(served, "status").filter(|_| served.stored.custom.is_none()) {
            reset::restore_metadata(reset, new, old);
        }
    },
    validate: |served, new, old, ctx, warnings| {
        served.strategy.judge_update("status", new, old, ctx, warnings)
    },
};

/// How often a write without a revision of its own is tried against an object that keeps changing.
const MAX_ATTEMPTS: usize = 64;

/// What a write left behind.
pub struct Written {
    /// The object's bytes as they rest (or would, in a dry run).
    pub bytes: Bytes,
    /// It was not there before.
    pub created: bool,
}

/// A body as an object of the resource's version, checked against its schema.
pub fn decode(call: &Call, served: &Served, body: &[u8], validation: FieldValidation) -> ApiResult<Value> {
    let expected = codec::Expected {
        group: &served.group,
        version: &served.version,
        kind: &served.kind,
        custom: served.stored.custom.is_some(),
    };
    codec::decode_body(call, &served.ty, &expected, body, validation)
}

/// The namespace of an object must be the request's; an absent one becomes it. Objects beside the namespaces
/// have none, whatever they say.
pub fn settle_namespace(served: &Served, object: &mut Value, namespace: &str) -> ApiResult<()> {
    if !served.namespaced {
        object.remove("metadata.namespace");
        return Ok(());
    }
    let given = object.str_at("metadata.namespace");
    if given.is_empty() {
        object.set("metadata.namespace", namespace);
    } else if given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The name of an object must be the URL's.
pub fn check_name(object: &Value, name: &str) -> ApiResult<()> {
    let given = object.str_at("metadata.name");
    if given.is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

/// Context for strategies.
pub fn context<'a>(now: &'a str, call: &'a Call) -> Context<'a> {
    Context { now, namespace: &call.info.namespace, user: &call.user.name, gates: &call.core.config.gates }
}

/// Bytes of a draft that is not stored. `revision`: of the present object, none where there is none.
pub fn dry(draft: Draft, revision: Option<u64>) -> Bytes {
    let mut json = draft.json;
    match revision {
        Some(revision) => {
            json.splice(draft.rv_at..draft.rv_at, revision.to_string().into_bytes());
        }
        None => {
            const KEY: usize = "\"resourceVersion\":\"".len();
            let (mut from, mut to) = (draft.rv_at - KEY, draft.rv_at + 1);
            if json.get(to) == Some(&b',') {
                to += 1;
            } else if from > 0 && json[from - 1] == b',' {
                from -= 1;
            }
            json.drain(from..to);
        }
    }
    json.into()
}

/// Whether a draft says nothing that the present object does not say already.
fn is_same(draft: &Draft, current: &Object) -> bool {
    let old = &current.bytes;
    let digits = current.revision.to_string().len();
    let (head, tail) = draft.json.split_at(draft.rv_at);
    old.len() == draft.json.len() + digits && old.starts_with(head) && old[draft.rv_at + digits..] == *tail
}

/// Whether the object would rest in another form than it does, were it written now.
async fn is_stale(call: &Call, current: &Arc<Object>) -> ApiResult<bool> {
    match &call.core.config.encryption {
        Some(encryption) => encryption.is_stale(current).await.map_err(ApiError::internal),
        None => Ok(false),
    }
}

/// What the object is to become, from what it is (in the served version).
pub type Make<'a> = dyn Fn(&Value) -> ApiResult<Value> + Send + Sync + 'a;

/// One update, patch or apply of an object.
pub struct Update<'a> {
    /// The request.
    pub call: &'a Call,
    /// The resource in the request's version.
    pub served: &'a Arc<Served>,
    /// The object's name.
    pub name: &'a str,
    /// What of it is written.
    pub target: &'a Target,
    /// The request's options.
    pub options: &'a WriteOptions,
    /// From what is to what shall be.
    pub make: &'a Make<'a>,
    /// Server-side apply keeps its own record of who owns what.
    pub apply: bool,
    /// For metrics, authorization and admission: how the object is changed.
    pub retry: bool,
    /// What admission sees in the object's place.
    pub view: Option<&'a dyn AdmissionView>,
}

/// A body of another kind (a `Scale`) that stands for an object while it is admitted.
pub trait AdmissionView: Send + Sync {
    /// What the object (of the served version) shows of itself.
    fn show(&self, object: &Value) -> Value;
    /// Brings what admission changed in `shown` into the object.
    fn put(&self, object: &mut Value, shown: &Value);
}

fn shown_by(view: &dyn AdmissionView, served: &Served, object: &Value) -> ApiResult<Value> {
    let mut object = object.clone();
    served.from_storage(&mut object)?;
    Ok(view.show(&object))
}

/// Runs an update of an object that exists.
pub async fn update(update: &Update<'_>) -> ApiResult<Written> {
    let Update { call, served, name, target, options, make, apply, retry, view } = *update;
    let stored = &served.stored;
    let what = served.group_resource();
    let key = stored.key(&call.info.namespace, name);
    let store = call.core.store();
    let storing = Storing::updates(call, stored, &key, options.dry_run);
    for attempt in 0..MAX_ATTEMPTS {
        let Some(current) = store.get(&stored.kind_key, &key) else {
            return Err(ApiError::not_found(what, name));
        };
        storing.step(if attempt == 0 { "initial value restored" } else { "Retry value restored" });
        let mut old: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        stored.freshen(&mut old)?;
        let old = old;
        let mut new = if served.is_storage() {
            make(&old)?
        } else {
            let mut shown = old.clone();
            served.from_storage(&mut shown)?;
            make(&shown)?
        };
        check_identity(&mut new, &old, update)?;
        if call.info.verb == "update" {
            owner_references::deduplicate(call, &mut new, Seen::Sent);
        }
        let wanted = new.str_at("metadata.resourceVersion").to_owned();
        let conditional = !wanted.is_empty() && wanted != "0";
        if conditional && wanted.parse::<u64>().is_err() {
            let why = format!("strconv.ParseUint: parsing {}: invalid syntax", quote(&wanted));
            return Err(ApiError::new(500, "", why));
        }
        if conditional && wanted != current.revision.to_string() {
            return Err(ApiError::modified(what, name));
        }
        if wanted.is_empty() && !stored.strategy.allow_unconditional_update() && !apply {
            let path = Path::new("metadata");
            let error =
                FieldError::invalid(&path.child("resourceVersion"), 0, "must be specified for an update");
            // Upstream names the resource here, where it names the kind elsewhere.
            return Err(ApiError::invalid(what, name, &[error]));
        }
        let now = call.core.now_rfc3339();
        let ctx = context(&now, call);
        served.default_own(&mut new);
        served.to_storage(&mut new)?;
        stored.strategy.default(&mut new);
        stored.strategy.default_in(&mut new, &ctx);
        if stored.builtin.is_some() {
            // What a client left out is no change where the same is always written.
            encode::fill(stored.ty.at(), &mut new);
        }
        if !apply {
            // Of what was sent: whoever leaves out what is put back lets go of it.
            managed::update(call, served, Some(&old), &mut new, options, target.subresource, &now);
        }
        let attributes = admission::Attributes {
            call,
            served,
            operation: Operation::Update,
            name,
            namespace: &call.info.namespace,
            subresource: target.subresource,
            dry_run: options.dry_run,
            deletion: None,
        };
        if call.info.verb == "patch" {
            yare_trace::event("About to check admission control", &[]);
        }
        let shown = match view {
            Some(view) => {
                let mut seen = (shown_by(view, served, &new)?, shown_by(view, served, &old)?);
                if admission::mutate(&attributes, &mut seen.0, Some(&seen.1)).await?.from_outside {
                    served.from_storage(&mut new)?;
                    view.put(&mut new, &seen.0);
                    served.to_storage(&mut new)?;
                }
                Some(seen)
            }
            None => {
                admission::mutate(&attributes, &mut new, Some(&old)).await?;
                None
            }
        };
        owner_references::deduplicate(call, &mut new, Seen::Admitted);
        // Also what admission must not change is put back; the generation counts what it did.
        if !stored.gated.is_empty() {
            stored.gated.drop(&mut new, Some(&old));
        }
        (target.prepare)(served, &mut new, &old, &ctx);
        if let Some(asked) = hooks::ask(call, served, &new, Some(&old)) {
            asked.await?;
        }
        let reserved = hooks::before_update(call, served, &mut new, &old, options.dry_run)?;
        let mut errors = admission::claims::errors(&attributes, &new, Some(&old)).await;
        errors.extend(match stored.builtin {
            Some(row) => row.validate_metadata_update(target.subresource, &*served.strategy, &new, &old),
            None => {
                let mut errors = meta::validate_update(&new, &old, stored.namespaced);
                errors.extend(meta::validate_change(&new, &old));
                errors
            }
        });
        let mut warnings = Vec::new();
        let judged = (served.judged(&new)?, served.judged(&old)?);
        errors.extend((target.validate)(served, &judged.0, &judged.1, &ctx, &mut warnings));
        for warning in warnings {
            call.warn(warning);
        }
        if let Some(row) = stored.builtin {
            errors.extend(row.check_switched(&new, Some(&old), &ctx));
        }
        if errors.is_empty() {
            errors.extend(admission::certificates::signing_errors(&attributes, &new, &old).await);
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(stored.group_kind(), name, &errors));
        }
        // Also whoever is refused by admission is told of them.
        let warnings = match target.subresource {
            "" | "scale" => served.strategy.warnings(&new, Some(&old)),
            subresource => served.strategy.subresource_warnings(subresource, &new),
        };
        for warning in warnings {
            call.warn(warning);
        }
        if !conditional {
            // Whoever names no revision means this one, and those who may refuse it see that.
            new.set("metadata.resourceVersion", current.revision.to_string());
        }
        let (seen, seen_old) = shown.as_ref().map_or((&new, &old), |(new, old)| (new, old));
        admission::validate(&attributes, Some(seen), Some(seen_old)).await?;
        let _turn = admission::resource_quota::turn(&attributes).await;
        let charges = admission::resource_quota::charge(&attributes, &new, Some(&old))?;
        managed::settle(&old, &mut new);
        let finished = is_finished(&new, &old, served);
        let draft = storing.encode(|| codec::draft(stored, &mut new))?;
        if !finished && is_same(&draft, &current) && !is_stale(call, &current).await? {
            return Ok(Written { bytes: current.bytes.clone(), created: false });
        }
        if options.dry_run {
            return Ok(Written { bytes: dry(draft, Some(current.revision)), created: false });
        }
        let op = if finished { Op::Delete } else { Op::Put(draft.clone()) };
        let write = Write {
            kind: stored.kind_key.clone(),
            key: key.clone(),
            expect: Expect::Revision(current.revision),
            op,
        };
        let mut writes = vec![write];
        writes.extend(charges);
        writes.extend(hooks::beside(call, served, (!finished).then_some(&new), Some(&old))?);
        storing.step("Transaction prepared");
        let done = call.timed(Layer::Storage, store.commit(writes)).await;
        storing.answered(&done);
        match done {
            Ok(objects) => {
                reserved.keep();
                let revision = objects.first().map_or(current.revision, |o| o.revision);
                let bytes = match objects.into_iter().next() {
                    Some(object) if !finished => object.bytes.clone(),
                    _ => dry(draft, Some(revision)),
                };
                if finished {
                    hooks::after_delete(call, served, &new);
                } else {
                    hooks::after_update(call, served, &new, &old);
                }
                return Ok(Written { bytes, created: false });
            }
            // A patch that does not name a version carries that of the object it was applied to: it is applied
            // again to the newer one. One that does name a version fails in the next round.
            Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) if retry => {}
            // Something beside the object changed.
            Err(
                CommitError::Conflict { kind, key: at, .. }
                | CommitError::Missing { kind, key: at, .. }
                | CommitError::Exists { kind, key: at, .. },
            ) if (&*kind, &at) != (&*stored.kind_key, &key) => {}
            Err(error) => return Err(ApiError::from_commit(error, what, name)),
        }
    }
    Err(ApiError::modified(what, name))
}

/// An update that takes the last finalizer off an object that is being deleted deletes it.
fn is_finished(new: &Value, old: &Value, served: &Served) -> bool {
    old.has("metadata.deletionTimestamp")
        && new.items("metadata.finalizers").is_empty()
        && old.int_at("metadata.deletionGracePeriodSeconds") == 0
        && !hooks::is_held(served, new)
}

fn check_identity(new: &mut Value, old: &Value, update: &Update<'_>) -> ApiResult<()> {
    let Update { call, served, name, target, options, .. } = *update;
    settle_namespace(served, new, &call.info.namespace)?;
    check_name(new, name)?;
    let (given, have) = (new.str_at("metadata.uid"), old.str_at("metadata.uid"));
    if given.is_empty() || given == have {
        return Ok(());
    }
    if call.info.verb == "update" {
        return Err(another_uid(call, served, name, (given, have), options.dry_run));
    }
    if target.subresource == "scale" {
        let resource = format!("{}/scale", served.plural);
        let what = GroupResource { group: &served.group, resource: &resource };
        return Err(ApiError::conflict(what, name, differs(given, have)));
    }
    // What a patch makes of the UID is judged with the rest of the object.
    Ok(())
}

fn differs(given: &str, have: &str) -> String {
    format!("Precondition failed: UID in precondition: {given}, UID in object meta: {have}")
}

/// What is said to who means another object of this name: the UID that was given, and that of the object (none
/// where there is none).
pub fn another_uid(
    call: &Call,
    served: &Served,
    name: &str,
    (given, have): (&str, &str),
    dry_run: bool,
) -> ApiError {
    let place = place(&served.stored, &call.info.namespace, name);
    let root = if dry_run { "" } else { "/registry" };
    let why = differs(given, have);
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {root}/{place}, ResourceVersion: 0, AdditionalErrorMsg: {why}"
    );
    ApiError::conflict(served.group_resource(), name, why)
}

/// Where upstream keeps an object: what its errors name.
fn place(stored: &Stored, namespace: &str, name: &str) -> String {
    let kind = match (&*stored.group, &*stored.plural) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("networking.k8s.io", "ingresses") => "ingress",
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", _) => &stored.kind_key,
        (_, plural) if stored.builtin.is_some() => plural,
        _ => &stored.kind_key,
    };
    format!("{kind}/{}", stored.key(namespace, name))
}

/// Changes an object in the server's own name (a binding, say): no admission, no validation beyond `change`
/// itself, tried again while others write. `owned`: the subresource in whose name the server, as one client among
/// others, owns what it changes; none where it writes beneath them all.
pub async fn modify(
    call: &Call,
    served: &Served,
    namespace: &str,
    name: &str,
    owned: Option<&str>,
    dry_run: bool,
    change: impl Fn(&mut Value) -> ApiResult<()>,
) -> ApiResult<()> {
    let stored = &served.stored;
    let key = stored.key(namespace, name);
    let store = call.core.store();
    let storing = Storing::updates(call, stored, &key, dry_run);
    for attempt in 0..MAX_ATTEMPTS {
        let Some(current) = store.get(&stored.kind_key, &key) else {
            return Err(ApiError::not_found(served.group_resource(), name));
        };
        storing.step(if attempt == 0 { "initial value restored" } else { "Retry value restored" });
        let mut object: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        let old = owned.map(|_| object.clone());
        change(&mut object)?;
        if dry_run {
            return Ok(());
        }
        if let (Some(subresource), Some(old)) = (owned, &old) {
            let (options, now) = (own_options(), call.core.now_rfc3339());
            managed::update(call, served, Some(old), &mut object, &options, subresource, &now);
            managed::settle(old, &mut object);
        }
        let draft = storing.encode(|| codec::draft(stored, &mut object))?;
        if is_same(&draft, &current) && !is_stale(call, &current).await? {
            return Ok(());
        }
        let write = Write {
            kind: stored.kind_key.clone(),
            key: key.clone(),
            expect: Expect::Revision(current.revision),
            op: Op::Put(draft),
        };
        storing.step("Transaction prepared");
        let done = call.timed(Layer::Storage, store.commit(vec![write])).await;
        storing.answered(&done);
        match done {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
            Err(error) => return Err(ApiError::from_commit(error, served.group_resource(), name)),
        }
    }
    Err(ApiError::modified(served.group_resource(), name))
}

/// The answer to a write.
pub fn answer(call: &Call, renderer: &Renderer, written: &Written) -> ApiResult<Reply> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    trace::answer(call, renderer.media_type(), || renderer.reply(code, &written.bytes))
}

/// `metadata.resourceVersion` of an object at rest.
pub fn revision_of(bytes: &[u8]) -> Option<u64> {
    let metadata = span::member(bytes, "metadata")?;
    let metadata = &bytes[metadata];
    let version = span::member(metadata, "resourceVersion")?;
    std::str::from_utf8(&metadata[version]).ok()?.trim_matches('"').parse().ok()
}
