//! `delete` and `deletecollection`: preconditions, grace periods, finalizers, propagation.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use yare_kinds::view::{View, ViewMut};
use yare_store::{CommitError, Expect, Object, Op, Write};

use crate::{
    admission::{self, Operation},
    audit::Layer,
    body::Reply,
    codec,
    core::{Call, rfc3339},
    encodings::Items,
    encryption::locked,
    hooks,
    negotiate::Asked,
    options::{DeleteOptions, ListOptions, Propagation},
    registry::Served,
    render::Renderer,
    selection::Selection,
    status::{ApiError, ApiResult, success},
    trace::{self, Storing},
    verbs::{
        list::{metadata, page},
        write,
    },
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const MAX_ATTEMPTS: usize = 64;

/// Resources that have always left their dependents behind, unless told otherwise.
const ORPHANED: [(&str, &str); 2] = [("", "replicationcontrollers"), ("batch", "jobs")];

/// Resources whose deletion is never about dependents.
const CHILDLESS: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

/// What a deletion comes to.
pub struct Deleted {
    /// The object's bytes, at its end or on its way there.
    pub bytes: Bytes,
    /// It is gone.
    pub gone: bool,
    /// Its UID.
    pub uid: String,
}

/// Deletes the object that the request names.
pub async fn delete(call: &Call, served: &Arc<Served>, body: &[u8]) -> ApiResult<Reply> {
    let renderer = Renderer::new(call, served, Asked::One)?;
    let options = options(call, body)?;
    if options.ignore_read_error {
        return locked::delete(call, served).await;
    }
    if call.core.store().is_locked() {
        locked::guard(call, served).await?;
    }
    warn_of_orphans(call, served, &options);
    yare_trace::event("About to delete object from database", &[]);
    let deleted = object(call, served, &call.info.namespace, &call.info.name, &options).await?;
    yare_trace::event("Object deleted from database", &[]);
    let returns = served.stored.builtin.is_some_and(|row| row.returns_deleted());
    if deleted.gone && !returns {
        let status = success(served.group_resource(), &call.info.name, &deleted.uid);
        // A Status is no table: it comes as it is in the encoding that was found.
        return trace::answer(call, renderer.media_type(), || {
            crate::render::encoded(StatusCode::OK, &status, renderer.accepted)
        });
    }
    trace::answer(call, renderer.media_type(), || renderer.reply(StatusCode::OK, &deleted.bytes))
}

/// A service's endpoints go with it at once: the next of its name does not send traffic to them.
async fn delete_endpoints(call: &Call, key: String) {
    let write = Write { kind: "endpoints".into(), key, expect: Expect::Anything, op: Op::Delete };
    match call.timed(Layer::Storage, call.core.store().commit(vec![write])).await {
        Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
        Err(error) => tracing::warn!(%error, "endpoints of a deleted service stay"),
    }
}

/// Who deletes a job may not know that its pods stay.
fn warn_of_orphans(call: &Call, served: &Served, options: &DeleteOptions) {
    if options.propagation.is_none() && (&*served.stored.group, &*served.stored.plural) == ("batch", "jobs") {
        call.warn(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
                .to_owned(),
        );
    }
}

fn options(call: &Call, body: &[u8]) -> ApiResult<DeleteOptions> {
    let mut options = if body.is_empty() {
        DeleteOptions::parse(&call.query, None)?
    } else {
        let value = codec::decode_loose(call, "", "v1", "DeleteOptions", body)?;
        yare_trace::event("Decoded delete options", &[]);
        if let Some(record) = &call.audit {
            record.request(&value);
        }
        yare_trace::event("Recorded the audit event", &[]);
        DeleteOptions::parse(&call.query, Some(&value))?
    };
    options.settle_ignore_read_error(locked::may_delete(&call.core))?;
    Ok(options)
}

/// Deletes every object of a selection.
pub async fn collection(call: &Call, served: &Arc<Served>, body: &[u8]) -> ApiResult<Reply> {
    let renderer = Renderer::new(call, served, Asked::List)?;
    let options = options(call, body)?;
    warn_of_orphans(call, served, &options);
    options.refuse_ignore_read_error(
        "is not allowed with DELETECOLLECTION, try again after removing the option",
    )?;
    if call.core.store().is_locked() {
        locked::guard(call, served).await?;
    }
    let selectors = ListOptions::parse(&call.query, false, &call.core.config.gates)?;
    let selection = Selection::new(served, &call.info, &selectors)?;
    let snapshot = call.core.store().snapshot(&served.stored.kind_key);
    let found = page(&snapshot, &selection, None, selectors.limit);
    let metadata = metadata(&snapshot, &selection, &found);
    for target in &found.objects {
        let (namespace, name) = target.key.split_once('/').unwrap_or(("", &target.key));
        match self::object(call, served, namespace, name, &options).await {
            // Or somebody else deleted it in between.
            Err(error) if error.reason != "NotFound" => return Err(error),
            _ => {}
        }
    }
    // As they were found.
    renderer.list(metadata, Items::Stored(found.objects), call.in_process)
}

/// Deletes one object, or starts its deletion.
pub async fn object(
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> ApiResult<Deleted> {
    run(call, served, namespace, name, options, true).await
}

/// [`object`] for a deletion that admission has seen in another form.
pub async fn admitted(
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> ApiResult<Deleted> {
    run(call, served, namespace, name, options, false).await
}

async fn run(
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
    admit: bool,
) -> ApiResult<Deleted> {
    let stored = &served.stored;
    let what = served.group_resource();
    let key = stored.key(namespace, name);
    let store = call.core.store();
    let attributes = admission::Attributes {
        call,
        served,
        operation: Operation::Delete,
        name,
        namespace,
        subresource: "",
        dry_run: options.dry_run,
        deletion: Some(options),
    };
    hooks::spare(served, name)?;
    let mut options = Cow::Borrowed(options);
    // What was marked here with no time left, and goes in the next round.
    let mut ended: Option<Deleted> = None;
    for _ in 0..MAX_ATTEMPTS {
        let Some(current) = store.get(&stored.kind_key, &key) else {
            return ended.ok_or_else(|| ApiError::not_found(what, name));
        };
        let old: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        check_preconditions(served, name, &old, &current, &options)?;
        if admit && ended.is_none() {
            admission::validate(&attributes, None, Some(&old)).await?;
        }
        let uid = old.str_at("metadata.uid").to_owned();
        let plan = plan(served, &old, &options, call.core.now());
        // What goes at once is no update.
        let goes = options.dry_run || !matches!(plan, Plan::Mark(_) | Plan::End(_));
        let storing = Storing::updates(call, stored, &key, goes);
        let ends = matches!(plan, Plan::End(_));
        let (op, new) = match plan {
            Plan::Pending => return Ok(Deleted { bytes: current.bytes.clone(), gone: false, uid }),
            Plan::Delete if options.dry_run => {
                return Ok(Deleted { bytes: current.bytes.clone(), gone: true, uid });
            }
            Plan::Mark(new) | Plan::End(new) => {
                let mut new = *new;
                storing.step("initial value restored");
                let draft = storing.encode(|| codec::draft(stored, &mut new))?;
                if options.dry_run {
                    return Ok(Deleted { bytes: write::dry(draft, Some(current.revision)), gone: ends, uid });
                }
                (Op::Put(draft), Some(new))
            }
            Plan::Delete => (Op::Delete, None),
        };
        let gone = new.is_none();
        let write = Write {
            kind: stored.kind_key.clone(),
            key: key.clone(),
            expect: Expect::Revision(current.revision),
            op,
        };
        let mut writes = vec![write];
        writes.extend(hooks::beside(call, served, new.as_ref(), Some(&old))?);
        storing.step("Transaction prepared");
        let done = call.timed(Layer::Storage, store.commit(writes)).await;
        storing.answered(&done);
        match done {
            Ok(objects) => {
                let bytes = objects.first().map_or_else(|| current.bytes.clone(), |o| o.bytes.clone());
                match &new {
                    Some(new) => hooks::after_update(call, served, new, &old),
                    None => hooks::after_delete(call, served, &old),
                }
                if ends {
                    if let (Some(wanted), Some(marked)) =
                        (&mut options.to_mut().resource_version, objects.first())
                    {
                        *wanted = marked.revision.to_string();
                    }
                    ended = Some(Deleted { bytes, gone: true, uid });
                    continue;
                }
                if gone && (&*stored.group, &*stored.plural) == ("", "services") {
                    delete_endpoints(call, key).await;
                }
                return Ok(Deleted { bytes, gone, uid });
            }
            Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
            Err(error) => return Err(ApiError::from_commit(error, what, name)),
        }
    }
    Err(ApiError::modified(what, name))
}

/// Takes a finalizer off an object that is being deleted, in the server's own name; the last one off deletes it.
pub async fn finish(
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
    name: &str,
    finalizer: &str,
) -> ApiResult<()> {
    let stored = &served.stored;
    let key = stored.key(namespace, name);
    for _ in 0..MAX_ATTEMPTS {
        let Some(current) = call.core.store().get(&stored.kind_key, &key) else { return Ok(()) };
        let mut object: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        let left: Vec<Value> =
            object.items("metadata.finalizers").iter().filter(|f| *f != finalizer).cloned().collect();
        let op = if left.is_empty() && !hooks::is_held(served, &object) {
            Op::Delete
        } else {
            object.set("metadata.finalizers", left);
            Op::Put(codec::draft(stored, &mut object)?)
        };
        let write = Write {
            kind: stored.kind_key.clone(),
            key: key.clone(),
            expect: Expect::Revision(current.revision),
            op,
        };
        match call.timed(Layer::Storage, call.core.store().commit(vec![write])).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
            Err(error) => return Err(ApiError::from_commit(error, served.group_resource(), name)),
        }
    }
    Err(ApiError::modified(served.group_resource(), name))
}

/// Whether the object is the one that the deletion means.
pub fn check_preconditions(
    served: &Served,
    name: &str,
    old: &Value,
    current: &Object,
    options: &DeleteOptions,
) -> ApiResult<()> {
    let kind = served.stored.group_kind();
    if let Some(wanted) = &options.uid {
        let have = old.str_at("metadata.uid");
        if wanted != have {
            return Err(ApiError::conflict(
                kind,
                name,
                format!(
                    "the UID in the precondition ({wanted}) does not match the UID in record ({have}). The object might have been deleted and then recreated"
                ),
            ));
        }
    }
    if let Some(wanted) = &options.resource_version {
        let have = current.revision.to_string();
        if *wanted != have {
            return Err(ApiError::conflict(
                kind,
                name,
                format!(
                    "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({have}). The object might have been modified"
                ),
            ));
        }
    }
    Ok(())
}

/// What a deletion does to an object.
enum Plan {
    /// It is on its way already.
    Pending,
    /// It stays for now, marked.
    Mark(Box<Value>),
    /// It has no time left: it is marked, for all who watch to see, and goes.
    End(Box<Value>),
    /// It goes.
    Delete,
}

fn plan(served: &Served, old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut new = old.clone();
    let deleting = old.has("metadata.deletionTimestamp");
    // Grace: only kinds that end in their own time have one, and a second request can only shorten it.
    let mut grace_s = 0;
    let mut graceful = false;
    if let Some(default_s) = served.stored.strategy.graceful_deletion_s(old) {
        if deleting {
            let left_s = old.int_at("metadata.deletionGracePeriodSeconds");
            if left_s > 0 {
                let Some(wanted_s) = options.grace_period_s.filter(|s| *s < left_s) else {
                    return Plan::Pending;
                };
                graceful = true;
                grace_s = shorten(&mut new, old, left_s, wanted_s, now);
            }
        } else {
            graceful = true;
            grace_s = options.grace_period_s.unwrap_or(default_s).max(0);
            new.set("metadata.deletionTimestamp", later(now, grace_s));
            new.set("metadata.deletionGracePeriodSeconds", grace_s);
            bump_generation(&mut new);
        }
    }
    let finalizers = finalizers(served, old, options);
    if finalizers.is_empty() {
        if old.has("metadata.finalizers") {
            new.remove("metadata.finalizers");
        }
    } else {
        new.set("metadata.finalizers", finalizers.clone());
    }
    let held = hooks::before_delete(served, &mut new, &rfc3339(now));
    let pending = held || !new.items("metadata.finalizers").is_empty();
    if graceful && grace_s > 0 {
        return Plan::Mark(Box::new(new));
    }
    if !pending {
        return if graceful { Plan::End(Box::new(new)) } else { Plan::Delete };
    }
    // Finalizers hold it: whoever set them sees the mark and acts.
    if !deleting && !graceful && !hooks::ends_its_own_way(served) {
        bump_generation(&mut new);
    }
    let marked = new.str_at("metadata.deletionTimestamp").parse::<Timestamp>().ok();
    if marked.is_none_or(|at| at > now) {
        new.set("metadata.deletionTimestamp", rfc3339(now));
    }
    if !hooks::ends_its_own_way(served) {
        new.set("metadata.deletionGracePeriodSeconds", 0);
    }
    if new == *old { Plan::Pending } else { Plan::Mark(Box::new(new)) }
}

fn bump_generation(object: &mut Value) {
    let generation = object.int_at("metadata.generation");
    if generation > 0 {
        object.set("metadata.generation", generation + 1);
    }
}

fn later(now: Timestamp, seconds: i64) -> String {
    rfc3339(now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now))
}

/// Moves a deletion forward in time, never into the past.
fn shorten(new: &mut Value, old: &Value, left_s: i64, wanted_s: i64, now: Timestamp) -> i64 {
    let mut grace_s = wanted_s;
    let at = old.str_at("metadata.deletionTimestamp").parse::<Timestamp>().unwrap_or(now);
    let mut moved = at.checked_add(jiff::SignedDuration::from_secs(wanted_s - left_s)).unwrap_or(now);
    if moved < now {
        moved = now;
        if grace_s != 0 {
            grace_s = 1;
        }
    }
    new.set("metadata.deletionTimestamp", rfc3339(moved));
    new.set("metadata.deletionGracePeriodSeconds", grace_s);
    grace_s
}

/// The finalizers after the request's propagation policy has had its say.
fn finalizers(served: &Served, old: &Value, options: &DeleteOptions) -> Vec<String> {
    let resource = (&*served.stored.group, &*served.stored.plural);
    let have = old.strings("metadata.finalizers");
    let (orphan, foreground) = match options.propagation {
        _ if CHILDLESS.contains(&resource) => (false, false),
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if have.contains(&ORPHAN) => (true, false),
        None if have.contains(&FOREGROUND) => (false, true),
        None => (ORPHANED.contains(&resource), false),
    };
    let mut out: Vec<String> =
        have.iter().filter(|f| **f != ORPHAN && **f != FOREGROUND).map(|f| (*f).to_owned()).collect();
    if orphan {
        out.push(ORPHAN.into());
    }
    if foreground {
        out.push(FOREGROUND.into());
    }
    out
}
