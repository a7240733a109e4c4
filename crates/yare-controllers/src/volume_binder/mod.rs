//! Binds PersistentVolumeClaims to PersistentVolumes, and sees to volumes whose claim is gone.
//!
//! A claim gets the smallest volume that satisfies it, or the one it or the volume names. Binding takes
//! several writes; whatever is missing is written in the next round, and the claim reference on the volume,
//! written first, decides who has it. Claims of a class that waits for its first consumer are left to the
//! scheduler; claims that no volume satisfies are announced to the class's provisioner.
//!
//! [`claim`] drives a claim, [`volume`] a volume, [`reclaim`] one that was released; [`migration`] says on both
//! which CSI driver stands in for a plugin that Kubernetes had in its own tree.

mod claim;
mod migration;
mod reclaim;
mod volume;

use std::sync::Arc;

use async_trait::async_trait;
use yare_client::{
    Cached, Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, STORAGE_CLASSES,
};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    volume_protection::claims_of_pod,
    volume_views::{BIND_COMPLETED, Claim, Volume},
};

struct Binder {
    context: Context,
    claims: Informer,
    volumes: Informer,
    classes: Informer,
    pods: Informer,
}

/// The controller; keys with a namespace are claims, those without are volumes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Binder {
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        classes: context.informer(STORAGE_CLASSES),
        pods: context.informer(PODS),
        context: context.clone(),
    })
}

/// A volume concerns itself and the claim it names; one that became available, every claim that waits.
pub fn changed_volume(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    add(object.key().clone());
    let Ok(volume) = object.view::<Volume>() else { return };
    match volume.spec.claim_ref {
        Some(claim) => add(claim.key()),
        None => waiting_claims(context, add),
    }
}

/// A claim concerns itself and its volume, and the volumes that name it.
pub fn changed_claim(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    add(object.key().clone());
    for claim in [&change.old, &change.new].into_iter().flatten() {
        if let Ok(claim) = claim.view::<Claim>()
            && !claim.spec.volume_name.is_empty()
        {
            add(ObjectKey::cluster(&claim.spec.volume_name));
        }
    }
    // A volume may name a claim that never named it.
    if change.new.is_none() {
        for volume in context.informer(PERSISTENT_VOLUMES).list() {
            if volume.view::<Volume>().is_ok_and(|v| v.belongs_to(object)) {
                add(volume.key().clone());
            }
        }
    }
}

/// A new class may be what claims wait for.
pub fn changed_class(context: &Context, _: &Change, add: &mut dyn FnMut(ObjectKey)) {
    waiting_claims(context, add);
}

/// A pod that came is what claims wait for; one that cleans a volume concerns that volume.
pub fn changed_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object() else { return };
    if let Some(volume) = reclaim::volume_of_recycler(pod) {
        add(ObjectKey::cluster(volume));
    }
    if change.old.is_some() || pod.node_name().is_some() {
        return;
    }
    let claims = context.informer(PERSISTENT_VOLUME_CLAIMS);
    if claims.is_empty() {
        return;
    }
    for name in claims_of_pod(pod) {
        let key = ObjectKey::new(pod.namespace(), &name);
        if claims.get(&key).is_some_and(|c| is_waiting(&c)) {
            add(key);
        }
    }
}

fn is_waiting(claim: &Cached) -> bool {
    claim.view::<Claim>().is_ok_and(|c| !c.has(BIND_COMPLETED))
}

fn waiting_claims(context: &Context, add: &mut dyn FnMut(ObjectKey)) {
    for claim in context.informer(PERSISTENT_VOLUME_CLAIMS).list() {
        if is_waiting(&claim) {
            add(claim.key().clone());
        }
    }
}

#[async_trait]
impl Reconcile for Binder {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if key.namespace.is_empty() {
            match self.volumes.get(key) {
                Some(volume) => self.sync_volume(&volume).await,
                None => Ok(Next::Done),
            }
        } else {
            if let Some(claim) = self.claims.get(key) {
                self.sync_claim(&claim).await?;
            }
            Ok(Next::Done)
        }
    }
}
