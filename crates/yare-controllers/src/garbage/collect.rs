//! One object of the garbage collector: is it to go, and how?

use std::sync::Arc;

use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, OwnerRef, Resource};

use super::{FOREGROUND, Item, ORPHAN, Shared, Work, group_of};
use crate::{
    api::{ApiError, Deletion, Patch, Propagation},
    context::Error,
};

/// What became of an owner.
enum Owner {
    /// It is there.
    Solid,
    /// It is gone.
    Dangling,
    /// It is being deleted in the foreground and waits for its dependents.
    Waiting,
}

impl Shared {
    /// Takes work from the queue until it is closed.
    pub(super) async fn work(self: Arc<Self>) {
        while let Some(work) = self.queue.get().await {
            let result = match &work {
                Work::Collect(item) => self.collect(item).await,
                Work::Orphan(item) => self.orphan(item).await,
            };
            match result {
                Ok(()) => self.queue.forget(&work),
                Err(error) => {
                    if error.is_race() {
                        tracing::debug!(?work, %error, "garbage collection will retry");
                    } else {
                        tracing::warn!(?work, %error, "garbage collection will retry");
                    }
                    self.queue.add_rate_limited(work.clone());
                }
            }
            self.queue.done(&work);
        }
    }

    /// The object as the server has it now, if it is still the same one.
    async fn latest(&self, item: &Item) -> Result<Option<(Resource, Cached)>, Error> {
        // No longer served: nothing to collect.
        let Some(resource) = self.resource(&item.kind) else { return Ok(None) };
        let latest = self.context.api.get(&resource, &item.key).await?;
        Ok(latest.filter(|o| o.uid() == &*item.uid).map(|o| (resource, o)))
    }

    async fn collect(&self, item: &Item) -> Result<(), Error> {
        let Some((resource, object)) = self.latest(item).await? else { return Ok(()) };
        if object.deletion_timestamp().is_some() {
            // Only a foreground deletion needs our help.
            return match object.has_finalizer(FOREGROUND) {
                true => self.finish_foreground(&resource, &object).await,
                false => Ok(()),
            };
        }
        if object.owners().is_empty() {
            return Ok(());
        }
        let (mut solid, mut superfluous, mut waiting) = (0, Vec::new(), 0);
        for owner in object.owners() {
            match self.classify(&object, owner).await? {
                Owner::Solid => solid += 1,
                Owner::Dangling => superfluous.push(owner),
                Owner::Waiting => {
                    waiting += 1;
                    superfluous.push(owner);
                }
            }
        }
        if solid > 0 {
            if !superfluous.is_empty() {
                let keep = |o: &OwnerRef| !superfluous.iter().any(|s| s.uid == o.uid);
                self.edit_owners(&resource, &object, |owners| owners.retain(|o| keep_value(o, &keep)))
                    .await?;
            }
            return Ok(());
        }
        let dependents = self.dependents(object.uid());
        let propagation = if waiting > 0 && !dependents.is_empty() {
            // Two objects that block each other would wait forever: one lets go.
            if dependents.iter().any(|(_, d)| is_foreground(d)) {
                let unblock = |owners: &mut Vec<Value>| {
                    for owner in owners {
                        owner["blockOwnerDeletion"] = false.into();
                    }
                };
                let object = self.edit_owners(&resource, &object, unblock).await?;
                return self.delete(&resource, &object, Propagation::Foreground).await;
            }
            Propagation::Foreground
        } else if object.has_finalizer(ORPHAN) {
            Propagation::Orphan
        } else if object.has_finalizer(FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        self.delete(&resource, &object, propagation).await
    }

    async fn delete(&self, resource: &Resource, object: &Cached, how: Propagation) -> Result<(), Error> {
        tracing::debug!(kind = %resource.kind, object = %object.key(), ?how, "garbage collected");
        let deletion = Deletion {
            uid: Some(object.uid()),
            resource_version: Some(object.resource_version()),
            propagation: Some(how),
            grace_period_s: None,
        };
        self.context.api.delete(resource, object.key(), deletion).await?;
        Ok(())
    }

    async fn classify(&self, object: &Cached, owner: &OwnerRef) -> Result<Owner, Error> {
        // The cache may be behind with a deletion, but then its event brings the object back here.
        if self.is_alive(object, owner) {
            return Ok(Owner::Solid);
        }
        let kind = (group_of(&owner.api_version).into(), owner.kind.clone());
        let Some(resource) = self.resource(&kind) else {
            return Err(Error::Other(format!(
                "{}: its owner {}/{} {} is of a kind that is not served",
                object.key(),
                owner.api_version,
                owner.kind,
                owner.name
            )));
        };
        if resource.namespaced && object.namespace().is_empty() {
            let message = format!(
                "ownerRef [{}/{}, namespace: , name: {}, uid: {}] does not exist in namespace \"\"",
                owner.api_version, owner.kind, owner.name, owner.uid
            );
            tracing::debug!(object = %object.key(), message, "a cluster-scoped object cannot have a namespaced owner");
            return Ok(Owner::Solid);
        }
        let namespace = if resource.namespaced { object.namespace() } else { "" };
        let key = ObjectKey::new(namespace, &owner.name);
        let name = format!("{} {} {key}", owner.uid, resource.plural);
        if self.absent.lock().contains(&name) {
            return Ok(Owner::Dangling);
        }
        match self.context.api.get(&resource, &key).await? {
            Some(found) if found.uid() == &*owner.uid => Ok(match is_foreground(&found) {
                true => Owner::Waiting,
                false => Owner::Solid,
            }),
            _ => {
                self.remember_absent(name);
                Ok(Owner::Dangling)
            }
        }
    }

    /// The object waits for its dependents: lets it go if none blocks it, or has them deleted.
    async fn finish_foreground(&self, resource: &Resource, object: &Cached) -> Result<(), Error> {
        let mut blocked = false;
        for (kind, dependent) in self.dependents(object.uid()) {
            if dependent.owners().iter().any(|o| &*o.uid == object.uid() && o.block_owner_deletion) {
                blocked = true;
                if !is_foreground(&dependent) {
                    self.add(&kind, &dependent);
                }
            }
        }
        if blocked { Ok(()) } else { self.remove_finalizer(resource, object, FOREGROUND).await }
    }

    async fn orphan(&self, item: &Item) -> Result<(), Error> {
        let Some((resource, object)) = self.latest(item).await? else { return Ok(()) };
        if object.deletion_timestamp().is_none() || !object.has_finalizer(ORPHAN) {
            return Ok(());
        }
        for (kind, dependent) in self.dependents(object.uid()) {
            let Some(resource) = self.resource(&kind) else { continue };
            // From the server, so that the write does not fail for being late.
            let Some(dependent) = self.context.api.get(&resource, dependent.key()).await? else { continue };
            let keep = |o: &OwnerRef| &*o.uid != object.uid();
            match self
                .edit_owners(&resource, &dependent, |owners| owners.retain(|o| keep_value(o, &keep)))
                .await
            {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.remove_finalizer(&resource, &object, ORPHAN).await
    }

    async fn remove_finalizer(&self, resource: &Resource, object: &Cached, name: &str) -> Result<(), Error> {
        let finalizers: Vec<&str> = object.finalizers().iter().map(|f| &**f).filter(|f| *f != name).collect();
        let patch = json!({"metadata": {
            "resourceVersion": object.resource_version().to_string(),
            "uid": object.uid(),
            "finalizers": finalizers,
        }});
        match self.context.api.patch(resource, object.key(), "", Patch::Merge, &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn edit_owners(
        &self,
        resource: &Resource,
        object: &Cached,
        edit: impl FnOnce(&mut Vec<Value>),
    ) -> Result<Cached, ApiError> {
        #[derive(serde::Deserialize)]
        struct View {
            metadata: ViewMeta,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ViewMeta {
            #[serde(default)]
            owner_references: Vec<Value>,
        }
        let what = || format!("owners of {} {}", resource.kind, object.key());
        let view: View = serde_json::from_slice(object.bytes())
            .map_err(|source| ApiError::Json { what: what(), source })?;
        let mut owners = view.metadata.owner_references;
        edit(&mut owners);
        let patch = json!({"metadata": {
            "resourceVersion": object.resource_version().to_string(),
            "uid": object.uid(),
            "ownerReferences": owners,
        }});
        self.context.api.patch(resource, object.key(), "", Patch::Merge, &patch).await
    }
}

/// Whether an owner reference, as JSON, is to be kept.
fn keep_value(owner: &Value, keep: &impl Fn(&OwnerRef) -> bool) -> bool {
    let uid = owner.get("uid").and_then(Value::as_str).unwrap_or_default();
    keep(&OwnerRef { uid: uid.into(), ..OwnerRef::default() })
}

/// Whether it is being deleted and waits for its dependents.
fn is_foreground(object: &Cached) -> bool {
    object.deletion_timestamp().is_some() && object.has_finalizer(FOREGROUND)
}
