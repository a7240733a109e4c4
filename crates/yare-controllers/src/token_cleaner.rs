//! Removes bootstrap tokens (Secrets in `kube-system`) whose time is over.

use std::sync::Arc;

use async_trait::async_trait;
use yare_auth::bootstrap_token::{self, BootstrapToken};
use yare_client::{Change, Informer, ObjectKey, SECRETS};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::since,
};

struct TokenCleaner {
    context: Context,
    secrets: Informer,
}

/// The controller; keys are Secrets.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(TokenCleaner { secrets: context.informer(SECRETS), context: context.clone() })
}

/// A token that came or changed.
pub fn changed(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(secret) = &change.new
        && secret.namespace() == bootstrap_token::NAMESPACE
        && BootstrapToken::from_secret(secret.bytes()).is_some()
    {
        add(secret.key().clone());
    }
}

#[async_trait]
impl Reconcile for TokenCleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(secret) = self.secrets.get(key) else { return Ok(Next::Done) };
        let Some(token) = BootstrapToken::from_secret(secret.bytes()) else { return Ok(Next::Done) };
        let now = self.context.now();
        match token.expiration() {
            Ok(None) => Ok(Next::Done),
            Ok(Some(end)) if end > now => Ok(Next::After(since(end, now))),
            // Over, or nobody can say when it is: such a token lets nobody in.
            Ok(Some(_)) | Err(_) => {
                self.context.api.delete(&SECRETS, key, Deletion::of(&secret)).await?;
                Ok(Next::Done)
            }
        }
    }
}
