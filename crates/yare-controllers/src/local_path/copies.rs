//! Volumes that are copies: what is kept for them, and until when.
//!
//! A claim that another one is to be a copy of is held by a finalizer, from before the other's volume is made until
//! its files are there and nobody waits for a copy any more.

use serde_json::{Value, json};
use yare_client::{Cached, Change, ObjectKey, PERSISTENT_VOLUME_CLAIMS};
use yare_schema::{
    local_path::{DRIVER, PENDING},
    quantity::Quantity,
};

use super::{Provisioner, Refusal, is_asked_of_us, is_ours};
use crate::{
    context::Error,
    volume_views::{Claim, Source, Volume, storage},
};

/// Finalizer of a claim that is being copied.
pub(super) const CLONING: &str = "provisioner.storage.kubernetes.io/cloning-protection";

/// The directory that is still being copied into it.
pub(super) fn copied_from(volume: &Volume) -> Option<&str> {
    volume.metadata.annotations.get(PENDING).map(String::as_str).filter(|path| !path.is_empty())
}

/// The claim that this one is to be a copy of.
pub(super) fn copy_of(claim: &Cached) -> Option<ObjectKey> {
    let view: Claim = claim.view().ok()?;
    view.source().map(|source| ObjectKey::new(claim.namespace(), &source.name))
}

/// Whether a claim has no volume yet. A bound claim's volume says itself that it is still being filled; the
/// binder, which wrote the phase, saw that volume in the cache that is read here.
fn waits(claim: &Cached) -> bool {
    let view: Claim = claim.view().unwrap_or_default();
    is_asked_of_us(&view)
        && matches!(view.status.phase.as_str(), "" | "Pending")
        && claim.deletion_timestamp().is_none()
}

/// The claim that need not be kept any more for one that was to be a copy of it.
pub(super) fn let_go(change: &Change) -> Option<ObjectKey> {
    let before = change.old.as_ref()?;
    let over = match &change.new {
        Some(now) => waits(before) && !waits(now),
        // What was told of it before its last state may have waited.
        None => true,
    };
    over.then(|| copy_of(before)).flatten()
}

impl Provisioner {
    /// The volume whose files are to be copied, and where they are. Its claim is kept until they are.
    pub(super) async fn source(
        &self,
        claim: &Cached,
        source: &Source,
        size: Quantity,
    ) -> Result<(Cached, String), Refusal> {
        let key = ObjectKey::new(claim.namespace(), &source.name);
        let Some(from) = self.claims.get(&key) else {
            return Err(Refusal::Later(format!(
                "error getting PVC {} from api server: persistentvolumeclaim \"{}\" not found",
                key.name, key.name
            )));
        };
        let view: Claim = from.view()?;
        if from.deletion_timestamp().is_some() {
            return Err(Refusal::Final(format!("the source PVC {} is being deleted", key.name)));
        }
        if view.status.phase != "Bound" {
            return Err(Refusal::Later(format!(
                "the source PVC {} is {}, it must be Bound to be copied",
                key.name, view.status.phase
            )));
        }
        let volume = self.volumes.get(&ObjectKey::cluster(&view.spec.volume_name)).ok_or_else(|| {
            Refusal::Later(format!("error getting PV {} from api server: not found", view.spec.volume_name))
        })?;
        let state: Volume = volume.view()?;
        let Some(local) = state.spec.local.as_ref().filter(|_| is_ours(&state)) else {
            return Err(Refusal::Final(format!(
                "the source PVC {} is bound to a volume that {DRIVER} did not make",
                key.name
            )));
        };
        if copied_from(&state).is_some() {
            return Err(Refusal::Later(format!("the source PVC {} is itself still being copied", key.name)));
        }
        if storage(&state.spec.capacity).is_some_and(|have| have > size) {
            return Err(Refusal::Final(format!(
                "the new volume must not be smaller than the source PVC {}",
                key.name
            )));
        }
        let path = local.path.clone();
        if !view.held_by(CLONING) {
            let write = |body: &mut Value| {
                let mut finalizers = view.metadata.finalizers.clone();
                finalizers.push(CLONING.to_owned());
                body["metadata"]["finalizers"] = json!(finalizers);
            };
            self.context.api.update(&PERSISTENT_VOLUME_CLAIMS, &from, write).await?;
        }
        Ok((volume, path))
    }

    /// Whether a copy of the claim's volume is being made, or about to be.
    pub(super) fn is_copied(&self, claim: &Cached, view: &Claim) -> Result<bool, Error> {
        let own = self.volumes.get(&ObjectKey::cluster(&view.spec.volume_name));
        let own = own.map(|v| v.view::<Volume>()).transpose()?.and_then(|v| v.spec.local);
        for volume in self.volumes.list() {
            let volume: Volume = volume.view()?;
            if copied_from(&volume).is_some_and(|path| own.as_ref().is_some_and(|own| own.path == path)) {
                return Ok(true);
            }
        }
        let others = self.claims.in_namespace(claim.namespace());
        Ok(others.iter().any(|other| copy_of(other).as_ref() == Some(claim.key()) && waits(other)))
    }
}

#[cfg(test)]
mod tests {
    use yare_client::ChangeKind;

    use super::*;
    use crate::volume_views::PROVISIONER;

    /// Seen once under load: the copy was complete before the claim was bound to it, and its source was held
    /// for good.
    #[test]
    fn a_source_is_let_go_when_nobody_waits_for_its_copy() {
        let copy = |metadata: Value, status: Value| {
            let mut claim = json!({
                "metadata": {"name": "copy", "namespace": "a", "annotations": {PROVISIONER: DRIVER}},
                "spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}},
                "status": status,
            });
            for (key, value) in metadata.as_object().unwrap() {
                claim["metadata"][key] = value.clone();
            }
            Cached::new(serde_json::to_vec(&claim).unwrap().into()).unwrap()
        };
        let waiting = || copy(json!({}), json!({"phase": "Pending"}));
        let bound = copy(json!({}), json!({"phase": "Bound"}));
        let ends = copy(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({"phase": "Pending"}));
        let lost = copy(json!({}), json!({"phase": "Lost"}));
        let elsewhere = copy(json!({"annotations": {}}), json!({"phase": "Pending"}));
        let data = Some(ObjectKey::new("a", "data"));
        for (old, new, expected) in [
            (Some(waiting()), Some(bound.clone()), &data),
            (Some(waiting()), Some(ends.clone()), &data),
            (Some(waiting()), Some(lost), &data),
            (Some(waiting()), Some(elsewhere), &data),
            (Some(waiting()), None, &data),
            (None, Some(waiting()), &None),
            (Some(waiting()), Some(waiting()), &None),
            (Some(bound.clone()), Some(ends.clone()), &None),
            (Some(ends), None, &data),
            (None, None, &None),
        ] {
            assert_eq!(&let_go(&Change { kind: ChangeKind::Modified, old, new }), expected);
        }
    }
}
