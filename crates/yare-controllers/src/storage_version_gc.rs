//! Takes what API servers that are gone said of their storage versions out of StorageVersions; one of which nobody
//! says anything goes. A server is there as long as its Lease is.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use yare_client::{Cached, Change, Informer, LEASES, ObjectKey, STORAGE_VERSIONS};
use yare_kinds::{
    storage_versions::set_common,
    view::{View, ViewMut},
};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
};

const NAMESPACE: &str = "kube-system";
/// The label of Leases that stand for API servers, and what it says of this kind of server.
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");

struct Collector {
    context: Context,
    versions: Informer,
}

/// The controller; keys are StorageVersions.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Collector { versions: context.informer(STORAGE_VERSIONS), context: context.clone() })
}

/// A StorageVersion that names a server without a Lease.
pub fn changed_version(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(version) = &change.new else { return };
    let leases = context.informer(LEASES);
    let is_there =
        |id: &String| leases.get(&ObjectKey::new(NAMESPACE, id)).is_some_and(|lease| is_identity(&lease));
    if !servers(version).iter().all(is_there) {
        add(version.key().clone());
    }
}

/// The Lease of a server went: all that it said of versions is of no use.
pub fn changed_lease(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if change.new.is_some() {
        return;
    }
    let Some(lease) = change.old.as_ref().filter(|l| l.namespace() == NAMESPACE && is_identity(l)) else {
        return;
    };
    for version in context.informer(STORAGE_VERSIONS).list() {
        if servers(&version).iter().any(|id| id == lease.name()) {
            add(version.key().clone());
        }
    }
}

fn is_identity(lease: &Cached) -> bool {
    lease.labels().iter().any(|(key, value)| (&**key, &**value) == LABEL)
}

/// The servers that have said something.
fn servers(version: &Cached) -> Vec<String> {
    let value: Value = serde_json::from_slice(version.bytes()).unwrap_or_default();
    value.items("status.storageVersions").iter().map(|s| s.str_at("apiServerID").to_owned()).collect()
}

#[async_trait]
impl Reconcile for Collector {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if self.versions.get(key).is_none() {
            return Ok(Next::Done);
        }
        let api = &self.context.api;
        // Neither is judged by what a cache says: a server that has just come up is in both a little later.
        let Some(object) = api.get(&STORAGE_VERSIONS, key).await? else { return Ok(Next::Done) };
        let mut version: Value = serde_json::from_slice(object.bytes())
            .map_err(|e| Error::Other(format!("StorageVersion {}: {e}", key.name)))?;
        let all = version.items("status.storageVersions").to_vec();
        let mut there = Vec::new();
        for server in &all {
            let lease = api.get(&LEASES, &ObjectKey::new(NAMESPACE, server.str_at("apiServerID"))).await?;
            if lease.is_some_and(|lease| is_identity(&lease)) {
                there.push(server.clone());
            }
        }
        if there.len() == all.len() {
            return Ok(Next::Done);
        }
        if there.is_empty() {
            api.delete(&STORAGE_VERSIONS, key, Deletion::of(&object)).await?;
            return Ok(Next::Done);
        }
        version.set("status.storageVersions", there);
        let now = self.context.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        set_common(&mut version, &now);
        api.update_status(&STORAGE_VERSIONS, &object, version.at("status")).await?;
        Ok(Next::Done)
    }
}
