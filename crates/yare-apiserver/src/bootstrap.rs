//! Objects that every cluster has from the start: namespaces, priority classes, the API server's own service,
//! and what the binary adds (RBAC). Each is created where it is absent; what is there stays as it is.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use yare_kinds::view::View;

use crate::{
    auth::User,
    core::{Call, Core},
    options::{DeleteOptions, FieldValidation, WriteOptions},
    own_service,
    path::{Query, RequestInfo},
    registry::store_kind,
    server::StartError,
    status::{ApiError, ApiResult, GroupResource},
    verbs::{
        create, delete,
        write::{self, Make, Target, Update},
    },
};

/// Objects that are made at the same time.
const AT_ONCE: usize = 64;

/// Makes the objects that are absent, and takes in the addresses that services have.
pub async fn run(core: &Arc<Core>) -> Result<(), StartError> {
    restore_services(core);
    // Namespaces first, since others are in them; the rest together, so that they share the disk's syncs.
    let (namespaces, others): (Vec<Value>, Vec<Value>) = objects(core)
        .into_iter()
        .chain(core.config.objects.iter().cloned())
        .chain(crate::aggregation::register::objects(&core.builtin))
        .partition(|object| object.str_at("kind") == "Namespace");
    for object in namespaces {
        ensure_in_time(core, object).await?;
    }
    let make = |object| ensure_in_time(core, object);
    stream::iter(others).map(Ok).try_for_each_concurrent(AT_ONCE, make).await?;
    crate::alloc::objects::own_range(core).await;
    own_service::reconcile(core).await;
    Ok(())
}

/// Takes in the addresses and ports that services have.
pub(crate) fn restore_services(core: &Core) {
    let snapshot = core.store().snapshot("services");
    for service in snapshot.range(std::ops::Bound::Unbounded, "") {
        if let Ok(service) = serde_json::from_slice::<Value>(&service.bytes) {
            core.allocators.restore(&service);
        }
    }
    let snapshot = core.store().snapshot("networking.k8s.io/ipaddresses");
    for address in snapshot.range(std::ops::Bound::Unbounded, "") {
        if let Ok(address) = serde_json::from_slice::<Value>(&address.bytes) {
            core.allocators.restore_object(&address);
        }
    }
}

/// Makes an object; later, where it cannot be encrypted yet: the plugin for it may come up after this server,
/// and with its help.
async fn ensure_in_time(core: &Arc<Core>, object: Value) -> Result<(), StartError> {
    let outcome = ensure(core, object.clone()).await;
    let Some(encryption) = core.config.encryption.as_ref().filter(|e| outcome.is_err() && !e.is_well())
    else {
        return outcome;
    };
    let (core, encryption) = (core.clone(), encryption.clone());
    tokio::spawn(async move {
        while let Err(error) = ensure(&core, object.clone()).await {
            tracing::warn!(%error, "tried again");
            tokio::select! {
                () = encryption.until_well() => {}
                () = core.stop.cancelled() => return,
            }
        }
    });
    Ok(())
}

fn objects(core: &Core) -> Vec<Value> {
    let mut all: Vec<Value> = ["kube-system", "kube-public", "kube-node-lease", "default"]
        .iter()
        .map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
        .collect();
    for (name, value, what) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        all.push(json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": what,
        }));
    }
    all.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": core.config.service_cidrs },
    }));
    all.extend(own_service::objects(core));
    all
}

/// Creates an object where it is absent, with the same rules as everybody's objects.
pub async fn ensure(core: &Arc<Core>, object: Value) -> Result<(), StartError> {
    let (api_version, kind) = (object.str_at("apiVersion"), object.str_at("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let name = object.str_at("metadata.name").to_owned();
    let what = format!("{kind} {name}");
    let failed = |why: String| StartError::Bootstrap { what: what.clone(), why };
    let registry = core.registry.load_full();
    let found = registry
        .groups()
        .get(group)
        .and_then(|v| v.get(version))
        .and_then(|list| list.iter().find(|s| &*s.kind == kind && s.has_verb("create")));
    let Some(served) = found else {
        // What is switched off needs no objects.
        if yare_kinds::table::find_kind(group, kind).is_some() {
            return Ok(());
        }
        return Err(failed(format!("{api_version} {kind} is not served")));
    };
    let namespace = object.str_at("metadata.namespace").to_owned();
    if core.store().get(&served.stored.kind_key, &served.stored.key(&namespace, &name)).is_some() {
        return Ok(());
    }
    let call = internal_call(core, "create", served.group_resource().resource, &namespace, "");
    match create::object_of(&call, served, object, &own_options(), create::By::Create).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(failed(error.message)),
    }
}

/// Changes an object (or one of its subresources) with the same rules as everybody's writes. `of`: its group and plural.
pub async fn rewrite(
    core: &Arc<Core>,
    of: (&str, &str),
    target: &Target,
    (namespace, name): (&str, &str),
    make: &Make<'_>,
) -> ApiResult<()> {
    let (group, plural) = of;
    let registry = core.registry.load_full();
    let Some(served) = registry.stored(&store_kind(group, plural)) else {
        return Err(ApiError::not_found(GroupResource { group, resource: plural }, name));
    };
    let call = internal_call(core, "update", plural, namespace, name);
    let options = own_options();
    let update = Update {
        call: &call,
        served,
        name,
        target,
        options: &options,
        make,
        apply: false,
        retry: true,
        view: None,
    };
    write::update(&update).await.map(drop)
}

/// Removes an object with the same rules as everybody's; one that is absent is well. `of`: its group and plural.
pub async fn remove(
    core: &Arc<Core>,
    (group, plural): (&str, &str),
    (namespace, name): (&str, &str),
) -> ApiResult<()> {
    remove_if(core, (group, plural), (namespace, name), &DeleteOptions::default()).await
}

/// Removes an object that has not changed since it was read; `Conflict` when it has. One that is absent is well.
pub async fn remove_as_read(core: &Arc<Core>, of: (&str, &str), read: &Value) -> ApiResult<()> {
    let metadata = read.at("metadata");
    let options = DeleteOptions {
        uid: Some(metadata.str_at("uid").to_owned()),
        resource_version: Some(metadata.str_at("resourceVersion").to_owned()),
        ..DeleteOptions::default()
    };
    remove_if(core, of, (metadata.str_at("namespace"), metadata.str_at("name")), &options).await
}

async fn remove_if(
    core: &Arc<Core>,
    (group, plural): (&str, &str),
    (namespace, name): (&str, &str),
    options: &DeleteOptions,
) -> ApiResult<()> {
    let Some(served) = core.builtin.stored(&store_kind(group, plural)) else { return Ok(()) };
    let call = internal_call(core, "delete", plural, namespace, name);
    match delete::object(&call, served, namespace, name, options).await {
        Err(error) if error.reason != "NotFound" => Err(error),
        _ => Ok(()),
    }
}

/// Options of the server's own writes.
pub(crate) fn own_options() -> WriteOptions {
    WriteOptions {
        dry_run: false,
        field_manager: "kube-apiserver".into(),
        field_validation: FieldValidation::Strict,
        force: false,
    }
}

/// A request of the server itself.
pub fn internal_call(
    core: &Arc<Core>,
    verb: &'static str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Call {
    let info = RequestInfo {
        is_resource: true,
        verb,
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..RequestInfo::default()
    };
    let user = User::new("system:apiserver", &["system:masters"]);
    Call::new(core.clone(), Method::POST, info, Query::default(), HeaderMap::new(), user, true)
}
