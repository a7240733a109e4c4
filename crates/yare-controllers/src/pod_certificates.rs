//! Removes PodCertificateRequests a quarter of an hour after they came: whatever becomes of one has become of
//! it by then (KEP-4317).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use yare_client::{Informer, ObjectKey, POD_CERTIFICATE_REQUESTS};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Meta, after, since},
};

const LIFE: Duration = Duration::from_secs(15 * 60);

struct Cleaner {
    context: Context,
    requests: Informer,
}

/// The controller; keys are PodCertificateRequests.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Cleaner { requests: context.informer(POD_CERTIFICATE_REQUESTS), context: context.clone() })
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct View {
            metadata: Meta,
        }
        let Some(request) = self.requests.get(key) else { return Ok(Next::Done) };
        let view: View = request.view()?;
        let Some(created) = view.metadata.creation_timestamp else { return Ok(Next::Done) };
        let left = since(after(created, LIFE), self.context.now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        self.context.api.delete(&POD_CERTIFICATE_REQUESTS, key, Deletion::of(&request)).await?;
        Ok(Next::Done)
    }
}
