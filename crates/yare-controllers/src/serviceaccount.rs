//! Gives every namespace its `default` ServiceAccount.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use yare_client::{Change, Informer, NAMESPACES, ObjectKey, SERVICE_ACCOUNTS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    namespace::is_active,
};

/// The account of pods that name none.
const NAME: &str = "default";

struct DefaultServiceAccount {
    context: Context,
    namespaces: Informer,
    accounts: Informer,
}

/// The controller; keys are namespaces.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(DefaultServiceAccount {
        namespaces: context.informer(NAMESPACES),
        accounts: context.informer(SERVICE_ACCOUNTS),
        context: context.clone(),
    })
}

/// A default account that goes away has to come back.
pub fn deleted_account(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let (None, Some(old)) = (&change.new, &change.old)
        && old.name() == NAME
    {
        add(ObjectKey::cluster(old.namespace()));
    }
}

#[async_trait]
impl Reconcile for DefaultServiceAccount {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        if !is_active(&namespace) || self.accounts.get(&ObjectKey::new(&key.name, NAME)).is_some() {
            return Ok(Next::Done);
        }
        let account = json!({
            "kind": "ServiceAccount",
            "apiVersion": "v1",
            "metadata": {"name": NAME, "namespace": key.name},
        });
        match self.context.api.create(&SERVICE_ACCOUNTS, &key.name, &account).await {
            Ok(_) => Ok(Next::Done),
            // The cache is behind.
            Err(error) if error.is_already_exists() => Ok(Next::Done),
            Err(error) => Err(error.into()),
        }
    }
}
