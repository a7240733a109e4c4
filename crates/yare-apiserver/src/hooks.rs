//! What the server itself does around writes of a few kinds, because it cannot be done afterwards by a
//! controller: addresses that must be unique, and objects that hold themselves while they are taken down.
//!
//! [`TABLE`] has one row per resource; absent columns mean nothing happens.

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use yare_kinds::{
    strategy::scheduling,
    view::{View, ViewMut},
};
use yare_store::Write;

use crate::{
    admission::policy,
    aggregation::trust,
    alloc::{self, Reserved},
    auth::tracking,
    core::Call,
    crd, escalation,
    metrics::csr,
    registry::Served,
    status::{ApiError, ApiResult},
};

type Create = for<'a> fn(&'a Call, &mut Value, bool) -> ApiResult<Reserved<'a>>;
type Update = for<'a> fn(&'a Call, &mut Value, &Value, bool) -> ApiResult<Reserved<'a>>;
type Beside = fn(&Call, Option<&Value>, Option<&Value>) -> ApiResult<Vec<Write>>;
type Ask = for<'a> fn(&'a Call, &'a Value, Option<&'a Value>) -> BoxFuture<'a, ApiResult<()>>;

/// One resource with something of its own.
pub struct Row {
    resource: (&'static str, &'static str),
    /// Before a new or changed object is validated: asks the authorizers whether the caller may give it away.
    ask: Option<Ask>,
    /// Before a new object is validated: may take what must be unique.
    create: Option<Create>,
    /// Before a changed object is validated: the same.
    update: Option<Update>,
    /// What is written with an object that is made, changed or removed, in the same transaction: from the new one and
    /// the old one.
    beside: Option<Beside>,
    /// After an object changed.
    updated: Option<fn(&Call, &Value, &Value)>,
    /// Why the object of a name may never be deleted, where it may not.
    kept: Option<fn(&str) -> Option<&'static str>>,
    /// When an object's deletion starts, with the time.
    deleting: Option<fn(&mut Value, &str)>,
    /// Whether something beside finalizers holds the object.
    held: Option<fn(&Value) -> bool>,
    /// After an object is gone.
    deleted: Option<fn(&Call, &Value)>,
}

/// Most resources have nothing.
const NOTHING: Row = Row {
    resource: ("", ""),
    ask: None,
    create: None,
    update: None,
    beside: None,
    updated: None,
    kept: None,
    deleting: None,
    held: None,
    deleted: None,
};

/// What writes of admission policies and their bindings have in common.
const POLICY: Row =
    Row { ask: Some(|call, new, old| policy::check_permissions(call, new, old).boxed()), ..NOTHING };
/// What writes of roles have in common.
const ROLE: Row = Row { ask: Some(|call, new, old| escalation::role(call, new, old).boxed()), ..NOTHING };
/// And of their bindings.
const BINDING: Row =
    Row { ask: Some(|call, new, old| escalation::binding(call, new, old).boxed()), ..NOTHING };

const TABLE: &[Row] = &[
    Row {
        resource: ("", "namespaces"),
        deleting: Some(|namespace, _| namespace.set("status.phase", "Terminating")),
        held: Some(|namespace| !namespace.items("spec.finalizers").is_empty()),
        ..NOTHING
    },
    Row {
        resource: ("", "configmaps"),
        updated: Some(|call, map, _| tracking::changed(call, map)),
        deleted: Some(|call, map| {
            trust::deleted(call, map);
            tracking::changed(call, map);
        }),
        ..NOTHING
    },
    Row {
        resource: ("", "services"),
        create: Some(alloc::create),
        update: Some(alloc::update),
        beside: Some(alloc::objects::beside),
        updated: Some(alloc::updated),
        deleted: Some(alloc::deleted),
        ..NOTHING
    },
    Row { resource: ("admissionregistration.k8s.io", "validatingadmissionpolicies"), ..POLICY },
    Row { resource: ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"), ..POLICY },
    Row { resource: ("admissionregistration.k8s.io", "mutatingadmissionpolicies"), ..POLICY },
    Row { resource: ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings"), ..POLICY },
    Row {
        resource: ("apiextensions.k8s.io", "customresourcedefinitions"),
        deleting: Some(hold_definition),
        ..NOTHING
    },
    Row {
        resource: ("certificates.k8s.io", "certificatesigningrequests"),
        create: Some(record_asker),
        updated: Some(csr::changed),
        ..NOTHING
    },
    Row {
        resource: ("networking.k8s.io", "ipaddresses"),
        create: Some(alloc::objects::create),
        deleted: Some(alloc::objects::deleted),
        ..NOTHING
    },
    Row { resource: ("rbac.authorization.k8s.io", "roles"), ..ROLE },
    Row { resource: ("rbac.authorization.k8s.io", "clusterroles"), ..ROLE },
    Row { resource: ("rbac.authorization.k8s.io", "rolebindings"), ..BINDING },
    Row { resource: ("rbac.authorization.k8s.io", "clusterrolebindings"), ..BINDING },
    Row {
        resource: ("scheduling.k8s.io", "priorityclasses"),
        kept: Some(|name| {
            scheduling::is_system_class(name)
                .then_some("this is a system priority class and cannot be deleted")
        }),
        ..NOTHING
    },
];

/// The row of a resource.
pub fn row(group: &str, plural: &str) -> &'static Row {
    TABLE.iter().find(|r| r.resource == (group, plural)).unwrap_or(&NOTHING)
}

/// Whether the caller may write it, where that is a question of what it may do itself. `None`: it is none.
pub fn ask<'a>(
    call: &'a Call,
    served: &Served,
    new: &'a Value,
    old: Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>> {
    served.stored.hooks.ask.map(|ask| ask(call, new, old))
}

/// Refuses to delete what the server cannot be without.
pub fn spare(served: &Served, name: &str) -> ApiResult<()> {
    match served.stored.hooks.kept.and_then(|kept| kept(name)) {
        Some(why) => Err(ApiError::forbidden(served.group_resource(), name, why)),
        None => Ok(()),
    }
}

/// Before a new object is validated.
pub fn before_create<'a>(
    call: &'a Call,
    served: &Served,
    object: &mut Value,
    dry_run: bool,
) -> ApiResult<Reserved<'a>> {
    match served.stored.hooks.create {
        Some(create) => create(call, object, dry_run),
        None => Ok(Reserved::nothing()),
    }
}

/// Before a changed object is validated.
pub fn before_update<'a>(
    call: &'a Call,
    served: &Served,
    new: &mut Value,
    old: &Value,
    dry_run: bool,
) -> ApiResult<Reserved<'a>> {
    match served.stored.hooks.update {
        Some(update) => update(call, new, old, dry_run),
        None => Ok(Reserved::nothing()),
    }
}

/// What is written together with an object: it is new, changed, or (without `new`) to be removed.
pub fn beside(
    call: &Call,
    served: &Served,
    new: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<Vec<Write>> {
    served.stored.hooks.beside.map_or(Ok(Vec::new()), |beside| beside(call, new, old))
}

/// After an object was created.
pub fn after_create(call: &Call, served: &Served, _object: &Value) {
    call.core.metrics.written(served, "create");
    crate::admission::written(&call.core, served);
}

/// After an object changed.
pub fn after_update(call: &Call, served: &Served, new: &Value, old: &Value) {
    call.core.metrics.written(served, "update");
    crate::admission::written(&call.core, served);
    if let Some(updated) = served.stored.hooks.updated {
        updated(call, new, old);
    }
}

/// Whether there is more to a deletion than its time: upstream marks such objects itself, and they have no period of
/// grace, not even none.
pub fn ends_its_own_way(served: &Served) -> bool {
    served.stored.hooks.deleting.is_some()
}

/// When a deletion starts: marks the object, and says whether something beside finalizers holds it.
pub fn before_delete(served: &Served, object: &mut Value, now: &str) -> bool {
    if let Some(deleting) = served.stored.hooks.deleting {
        deleting(object, now);
    }
    is_held(served, object)
}

/// Whether something beside finalizers holds the object.
pub fn is_held(served: &Served, object: &Value) -> bool {
    served.stored.hooks.held.is_some_and(|held| held(object))
}

/// After an object is gone.
pub fn after_delete(call: &Call, served: &Served, object: &Value) {
    call.core.metrics.written(served, "delete");
    crate::admission::written(&call.core, served);
    if let Some(deleted) = served.stored.hooks.deleted {
        deleted(call, object);
    }
}

/// Who asks for a certificate: the name is there already, the rest of what is known of the caller is not. Whether
/// a request is approved hangs on all of it.
fn record_asker<'a>(call: &'a Call, request: &mut Value, _: bool) -> ApiResult<Reserved<'a>> {
    let user = &call.user;
    if !user.uid.is_empty() {
        request.set("spec.uid", user.uid.clone());
    }
    if !user.groups.is_empty() {
        request.set("spec.groups", user.groups.clone());
    }
    if !user.extra.is_empty() {
        request.set("spec.extra", json!(user.extra));
    }
    Ok(Reserved::nothing())
}

/// The finalizer under which the instances of a definition are removed first.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

fn hold_definition(definition: &mut Value, now: &str) {
    if definition.has("metadata.deletionTimestamp")
        && !definition.strings("metadata.finalizers").contains(&CLEANUP)
    {
        // The cleanup is done already, or under way.
        return;
    }
    if !definition.has("metadata.deletionTimestamp") {
        crd::mark_for_deletion(definition, now);
    }
    let mut finalizers = definition.items("metadata.finalizers").to_vec();
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(json!(CLEANUP));
        definition.set("metadata.finalizers", finalizers);
    }
}
