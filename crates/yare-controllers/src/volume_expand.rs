//! Says of claims that ask for more room that somebody outside has to give it: there is no volume here that
//! grows without a driver's resizer (or the provisioner of `yare.io/local-path`).

use std::sync::Arc;

use async_trait::async_trait;
use yare_client::{Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    volume_views::{Claim, Volume, storage},
};

struct Expander {
    context: Context,
    claims: Informer,
    volumes: Informer,
}

/// The controller; keys are claims.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Expander {
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        context: context.clone(),
    })
}

/// Bound claims that ask for more than before.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(new) = &change.new else { return };
    let Ok(claim) = new.view::<Claim>() else { return };
    let before = change.old.as_ref().and_then(|o| o.view::<Claim>().ok()).and_then(|c| c.request());
    if claim.status.phase == "Bound" && before.is_none_or(|b| claim.request().is_some_and(|now| now > b)) {
        add(new.key().clone());
    }
}

#[async_trait]
impl Reconcile for Expander {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Next::Done) };
        let view: Claim = claim.view()?;
        let grows =
            view.request().zip(storage(&view.status.capacity)).is_some_and(|(want, have)| want > have);
        if !grows || view.status.phase != "Bound" {
            return Ok(Next::Done);
        }
        let Some(volume) = self.volumes.get(&ObjectKey::cluster(&view.spec.volume_name)) else {
            return Err(Error::NotYet(format!("failed to get PV \"{}\"", view.spec.volume_name)));
        };
        if !volume.view::<Volume>()?.belongs_to(&claim) {
            return Err(Error::NotYet(format!(
                "persistent Volume is not bound to PVC being updated : {key}"
            )));
        }
        let message = "waiting for an external controller to expand this PVC";
        self.context.normal(&PERSISTENT_VOLUME_CLAIMS, &claim, "ExternalExpanding", message);
        Ok(Next::Done)
    }
}
