//! One volume: its phase, and whether it is still its claim's.

use serde_json::{Value, json};
use yare_client::{Cached, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};
use yare_schema::local_path::PROVISIONED_BY;

use super::{Binder, migration};
use crate::{
    context::Error,
    harness::Next,
    volume_views::{BOUND_BY_CONTROLLER, Claim, ClaimRef, Volume},
};

impl Binder {
    pub(super) async fn sync_volume(&self, volume: &Cached) -> Result<Next, Error> {
        let state: Volume = volume.view()?;
        let (driver, finalizers) = (migration::of_volume(&state), migration::finalizers(&state));
        if driver.is_some() || finalizers.is_some() {
            let write = |body: &mut Value| {
                if let Some(driver) = driver {
                    migration::write(body, driver);
                }
                if let Some(finalizers) = finalizers {
                    body["metadata"]["finalizers"] = json!(finalizers);
                }
            };
            self.context.api.update(&PERSISTENT_VOLUMES, volume, write).await?;
            return Ok(Next::Done);
        }
        // One that names a claim which has not come yet is free as well: no other will get it.
        let Some(reference) = state.spec.claim_ref.as_ref().filter(|r| !r.uid.is_empty()) else {
            self.set_phase(volume, &state, "Available").await?;
            return Ok(Next::Done);
        };
        let Some(claim) = self.claim_of(reference).await? else {
            return self.release(volume, &state).await;
        };
        let view: Claim = claim.view()?;
        if view.spec.volume_name.is_empty() {
            if state.mode_differs(&view) {
                let (own, other) = (volume.name(), claim.name());
                let message = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{other}\" due to incompatible volumeMode."
                );
                self.context.warning(&PERSISTENT_VOLUMES, volume, "VolumeMismatch", message);
                let message = format!(
                    "Cannot bind PersistentVolume \"{own}\" to requested PersistentVolumeClaim due to incompatible volumeMode."
                );
                self.context.warning(&PERSISTENT_VOLUME_CLAIMS, &claim, "VolumeMismatch", message);
            }
            // The claim's own turn completes the binding.
        } else if view.spec.volume_name == volume.name() {
            self.set_phase(volume, &state, "Bound").await?;
        } else if state.has(PROVISIONED_BY) && state.spec.persistent_volume_reclaim_policy == "Delete" {
            // It was made for a claim that got another meanwhile.
            return self.release(volume, &state).await;
        } else {
            self.unbind(volume, &state).await?;
        }
        Ok(Next::Done)
    }

    /// The very claim that a volume is bound to. Data depends on its being gone, and the cache may be behind.
    async fn claim_of(&self, reference: &ClaimRef) -> Result<Option<Cached>, Error> {
        let key = reference.key();
        if let Some(found) = self.claims.get(&key).filter(|c| c.uid() == reference.uid) {
            return Ok(Some(found));
        }
        let found = self.context.api.get(&PERSISTENT_VOLUME_CLAIMS, &key).await?;
        Ok(found.filter(|c| c.uid() == reference.uid))
    }

    /// Its claim is gone.
    async fn release(&self, volume: &Cached, state: &Volume) -> Result<Next, Error> {
        // That something went wrong stays to be seen.
        if matches!(&*state.status.phase, "Released" | "Failed") {
            return self.reclaim(volume, state).await;
        }
        let released = self.set_phase(volume, state, "Released").await?;
        let state: Volume = released.view()?;
        self.reclaim(&released, &state).await
    }

    /// Takes a binding back. A volume that a user meant for a claim stays meant for it.
    pub(super) async fn unbind(&self, volume: &Cached, state: &Volume) -> Result<(), Error> {
        let ours = state.has(BOUND_BY_CONTROLLER);
        let write = |body: &mut Value| {
            if !ours {
                if let Some(reference) = body["spec"]["claimRef"].as_object_mut() {
                    reference.remove("uid");
                }
                return;
            }
            if let Some(spec) = body["spec"].as_object_mut() {
                spec.remove("claimRef");
            }
            if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
                annotations.remove(BOUND_BY_CONTROLLER);
            }
        };
        let free = self.context.api.update(&PERSISTENT_VOLUMES, volume, write).await?;
        self.set_phase(&free, state, "Available").await?;
        Ok(())
    }

    /// `state` is what its phase was.
    pub(super) async fn set_phase(
        &self,
        volume: &Cached,
        state: &Volume,
        phase: &str,
    ) -> Result<Cached, Error> {
        if state.status.phase == phase {
            return Ok(volume.clone());
        }
        let write = |body: &mut Value| {
            body["status"]["phase"] = phase.into();
            if let Some(status) = body["status"].as_object_mut() {
                status.remove("message");
            }
        };
        Ok(self.context.api.put(&PERSISTENT_VOLUMES, volume, "/status", write).await?)
    }

    /// Says once, in its phase and in an event, that something went wrong.
    pub(super) async fn fail(
        &self,
        volume: &Cached,
        state: &Volume,
        reason: &str,
        message: &str,
    ) -> Result<(), Error> {
        if state.status.phase != "Failed" {
            self.set_phase(volume, state, "Failed").await?;
            self.context.warning(&PERSISTENT_VOLUMES, volume, reason, message);
        }
        Ok(())
    }
}
