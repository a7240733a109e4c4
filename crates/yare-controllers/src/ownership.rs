//! Who controls what: owner references, adoption of matching orphans, release of what no longer matches.

use serde_json::{Value, json};
use yare_client::{Cached, Resource};

use crate::{
    api::Patch,
    context::{Context, Error},
    selector::LabelSelector,
};

/// The owner reference that makes `owner` the controller of an object.
pub fn controller_ref(resource: &Resource, owner: &Cached) -> Value {
    json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "name": owner.name(),
        "uid": owner.uid(),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Whether `owner` is the controller of `object`.
pub fn is_controlled_by(object: &Cached, owner: &Cached) -> bool {
    object.controller().is_some_and(|c| &*c.uid == owner.uid())
}

/// Of `candidates` (objects of the resource `child` in the owner's namespace), returns those that `owner`
/// controls. Matching orphans are adopted; what is controlled but no longer matches is released. A `finalizer` by
/// which the owner holds what it controls comes with adoption and goes with release, in the same write.
pub async fn claim(
    context: &Context,
    resource: &Resource,
    owner: &Cached,
    selector: &LabelSelector,
    child: &Resource,
    candidates: Vec<Cached>,
    finalizer: Option<&str>,
) -> Result<Vec<Cached>, Error> {
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut may_adopt = None;
    for object in candidates {
        let matches = selector.matches(object.labels());
        match object.controller() {
            Some(controller) if &*controller.uid != owner.uid() => {}
            Some(_) if matches => claimed.push(object),
            Some(_) if owner.deletion_timestamp().is_some() => {}
            Some(_) => release(context, owner, child, &object, finalizer).await?,
            None if !matches || owner.deletion_timestamp().is_some() => {}
            None if object.deletion_timestamp().is_some() => {}
            None => {
                if may_adopt.is_none() {
                    may_adopt = Some(is_alive(context, resource, owner).await?);
                }
                if may_adopt == Some(true)
                    && let Some(adopted) = adopt(context, resource, owner, child, &object, finalizer).await?
                {
                    claimed.push(adopted);
                }
            }
        }
    }
    Ok(claimed)
}

/// Asks the server, since the cache may not show the owner's deletion yet.
async fn is_alive(context: &Context, resource: &Resource, owner: &Cached) -> Result<bool, Error> {
    let fresh = context.api.get(resource, owner.key()).await?;
    Ok(fresh.is_some_and(|f| f.uid() == owner.uid() && f.deletion_timestamp().is_none()))
}

async fn adopt(
    context: &Context,
    resource: &Resource,
    owner: &Cached,
    child: &Resource,
    object: &Cached,
    finalizer: Option<&str>,
) -> Result<Option<Cached>, Error> {
    let mut patch = json!({"metadata": {
        "ownerReferences": [controller_ref(resource, owner)],
        "uid": object.uid(),
    }});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["finalizers"] = json!([finalizer]);
    }
    match context.api.patch(child, object.key(), "", Patch::Strategic, &patch).await {
        Ok(adopted) => Ok(Some(adopted)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn release(
    context: &Context,
    owner: &Cached,
    child: &Resource,
    object: &Cached,
    finalizer: Option<&str>,
) -> Result<(), Error> {
    let mut patch = json!({"metadata": {
        "ownerReferences": [{"$patch": "delete", "uid": owner.uid()}],
        "uid": object.uid(),
    }});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    match context.api.patch(child, object.key(), "", Patch::Strategic, &patch).await {
        Ok(_) => Ok(()),
        // Gone, or replaced by another of the same name: nothing to release.
        Err(error) if error.is_not_found() || error.is_invalid() || error.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
