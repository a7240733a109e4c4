//! OwnerReferencesPermissionEnforcement: whoever sets owners may delete the object, and whoever holds an owner's
//! deletion up may touch its finalizers.

use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use yare_auth::Action;
use yare_kinds::view::{View, same};

use super::{Attributes, Operation};
use crate::{auth, status::ApiResult};

/// Asks the authorizers about changed owners.
pub fn ask<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>> {
    // A pod's status is its kubelet's business.
    if attributes.is("", "pods") && attributes.subresource == "status" {
        return None;
    }
    const OWNERS: &str = "metadata.ownerReferences";
    let new = object?;
    let before = old.map_or(&Value::Null, |old| old.at(OWNERS));
    (!same(new.at(OWNERS), before)).then(|| check(attributes, new.items(OWNERS), before).boxed())
}

async fn check(attributes: &Attributes<'_>, owners: &[Value], before: &Value) -> ApiResult<()> {
    let call = attributes.call;
    if attributes.operation != Operation::Create {
        let action = Action {
            verb: "delete",
            group: &attributes.served.group,
            resource: &attributes.served.plural,
            subresource: attributes.subresource,
            namespace: attributes.namespace,
            name: attributes.name,
            ..Action::default()
        };
        if let Err(reason) = auth::decide(&call.core, &call.user, &action).await {
            return Err(attributes.forbidden(format!(
                "cannot set an ownerRef on a resource you can't delete: {reason}, <nil>"
            )));
        }
    }
    let held = |uid: &str| {
        before.items("").iter().any(|o| o.str_at("uid") == uid && o.bool_at("blockOwnerDeletion"))
    };
    let is_new = |o: &Value| o.bool_at("blockOwnerDeletion") && !held(o.str_at("uid"));
    if !owners.iter().any(is_new) {
        return Ok(());
    }
    let anything = Action {
        verb: "update",
        group: "*",
        resource: "*",
        subresource: "finalizers",
        name: "*",
        ..Action::default()
    };
    if auth::decide(&call.core, &call.user, &anything).await.is_ok() {
        return Ok(());
    }
    let registry = call.core.registry.load_full();
    for owner in owners {
        if !is_new(owner) {
            continue;
        }
        let (api_version, kind) = (owner.str_at("apiVersion"), owner.str_at("kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let known = registry
            .groups()
            .get(group)
            .and_then(|versions| versions.get(version))
            .into_iter()
            .flatten()
            .filter(|s| &*s.kind == kind && !s.verbs.is_empty());
        let mut found = false;
        for served in known {
            found = true;
            let action = Action {
                verb: "update",
                group: &served.group,
                resource: &served.plural,
                subresource: "finalizers",
                namespace: if served.namespaced { attributes.namespace } else { "" },
                name: owner.str_at("name"),
                ..Action::default()
            };
            if let Err(reason) = auth::decide(&call.core, &call.user, &action).await {
                return Err(attributes.forbidden(format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>"
                )));
            }
        }
        if !found {
            return Err(attributes.forbidden(format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} Kind {kind}: no matches for kind {kind:?} in version {api_version:?}"
            )));
        }
    }
    Ok(())
}
