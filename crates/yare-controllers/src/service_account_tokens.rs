//! Fills Secrets of type `kubernetes.io/service-account-token` with a token of their account, the cluster's
//! certificate authority and their namespace, and removes them with their account.
//!
//! A key is a Secret, `NAME`, or one that is gone, `NAME/ACCOUNT/UID`: the references of its account (`UID` is
//! the account's) go too.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use yare_auth::token::{Signer, legacy::Claims};
use yare_client::{Cached, Change, Informer, ObjectKey, SECRETS, SERVICE_ACCOUNTS};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Meta, nullable},
};

/// Type of such Secrets.
pub const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";

/// What is read of a Secret.
#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    r#type: String,
    /// In base64.
    #[serde(deserialize_with = "nullable")]
    data: BTreeMap<String, String>,
}

impl View {
    /// Of a Secret that holds a token, or is to hold one.
    fn of(secret: &Cached) -> Option<Self> {
        secret.view::<Self>().ok().filter(|v| v.r#type == SECRET_TYPE && !v.account().is_empty())
    }

    fn annotation(&self, name: &str) -> &str {
        self.metadata.annotations.get(name).map_or("", String::as_str)
    }

    /// The account's name.
    fn account(&self) -> &str {
        self.annotation(NAME_ANNOTATION)
    }

    /// The account's UID; empty where the Secret does not know it yet.
    fn uid(&self) -> &str {
        self.annotation(UID_ANNOTATION)
    }

    fn has(&self, key: &str) -> bool {
        self.data.get(key).is_some_and(|v| !v.is_empty())
    }

    /// What is missing of the data: `ca.crt`, `namespace` and `token`, as they should be.
    fn missing(
        &self,
        authority: &str,
        namespace: &str,
        token: impl FnOnce() -> Result<String, Error>,
    ) -> Result<Vec<(&'static str, String)>, Error> {
        let mut out = Vec::new();
        let authority_64 = STANDARD.encode(authority);
        if !authority.is_empty() && self.data.get("ca.crt") != Some(&authority_64) {
            out.push(("ca.crt", authority_64));
        }
        if !self.has("namespace") {
            out.push(("namespace", STANDARD.encode(namespace)));
        }
        if !self.has("token") {
            out.push(("token", STANDARD.encode(token()?)));
        }
        Ok(out)
    }
}

/// The account's name and UID of a Secret that holds a token, or is to hold one.
pub fn account_of(secret: &Cached) -> Option<(String, String)> {
    View::of(secret).map(|view| (view.account().to_owned(), view.uid().to_owned()))
}

struct Tokens {
    context: Context,
    signer: Option<Arc<Signer>>,
    secrets: Informer,
    accounts: Informer,
}

/// The controller; keys are as the module says.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Tokens {
        signer: context.config.token_signer.clone(),
        secrets: context.informer(SECRETS),
        accounts: context.informer(SERVICE_ACCOUNTS),
        context: context.clone(),
    })
}

/// A Secret, and what a deleted one leaves behind.
pub fn changed_secret(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(secret) = change.object() else { return };
    let Some(view) = View::of(secret) else { return };
    match change.new {
        Some(_) => add(secret.key().clone()),
        None => {
            let key = format!("{}/{}/{}", secret.name(), view.account(), view.uid());
            add(ObjectKey::new(secret.namespace(), &key));
        }
    }
}

/// The Secrets of an account that is gone.
pub fn deleted_account(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let (None, Some(old)) = (&change.new, &change.old) else { return };
    for secret in context.informer(SECRETS).in_namespace(old.namespace()) {
        if View::of(&secret).is_some_and(|view| view.account() == old.name()) {
            add(secret.key().clone());
        }
    }
}

impl Tokens {
    /// The account of that name and, unless it is empty, that UID: what the cache has not may still be there.
    async fn account(&self, key: &ObjectKey, uid: &str) -> Result<Option<Cached>, Error> {
        let right = |account: &Cached| uid.is_empty() || account.uid() == uid;
        if let Some(account) = self.accounts.get(key).filter(right) {
            return Ok(Some(account));
        }
        Ok(self.context.api.get(&SERVICE_ACCOUNTS, key).await?.filter(right))
    }

    /// Fills the Secret, or removes it.
    async fn settle(&self, secret: &Cached, view: &View) -> Result<(), Error> {
        let (api, namespace) = (&self.context.api, secret.namespace());
        let key = ObjectKey::new(namespace, view.account());
        let Some(account) = self.account(&key, view.uid()).await? else {
            api.delete(&SECRETS, secret.key(), Deletion::of(secret)).await?;
            return Ok(());
        };
        let Some(signer) = &self.signer else { return Ok(()) };
        let token = || {
            let claims = Claims::new(namespace, account.name(), account.uid(), secret.name());
            signer.sign_legacy(&claims).map_err(|e| Error::Other(format!("token of {}: {e}", secret.key())))
        };
        let missing = view.missing(&self.context.config.root_ca, namespace, token)?;
        if missing.is_empty() {
            return Ok(());
        }
        let fill = |body: &mut Value| {
            for (field, value) in missing {
                body["data"][field] = value.into();
            }
            let annotations = &mut body["metadata"]["annotations"];
            annotations[NAME_ANNOTATION] = account.name().into();
            annotations[UID_ANNOTATION] = account.uid().into();
        };
        match api.update(&SECRETS, secret, fill).await {
            // Somebody else was faster: their change comes as an event.
            Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A Secret is gone: its account must not go on referring to it.
    async fn forget(&self, account: &ObjectKey, secret: &str, uid: &str) -> Result<(), Error> {
        let refers = |list: &Value| {
            list.as_array().is_some_and(|list| list.iter().any(|reference| reference["name"] == secret))
        };
        let right = |account: &Cached| uid.is_empty() || account.uid() == uid;
        if self.secrets.get(&ObjectKey::new(&account.namespace, secret)).is_some()
            || self.accounts.get(account).filter(right).is_none()
        {
            return Ok(());
        }
        let Some(object) = self.context.api.get(&SERVICE_ACCOUNTS, account).await?.filter(right) else {
            return Ok(());
        };
        if !refers(&object.view::<Value>()?["secrets"]) {
            return Ok(());
        }
        let drop = |body: &mut Value| {
            if let Some(list) = body["secrets"].as_array_mut() {
                list.retain(|reference| reference["name"] != secret);
            }
        };
        match self.context.api.update(&SERVICE_ACCOUNTS, &object, drop).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconcile for Tokens {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if let [secret, account, uid] = key.name.split('/').collect::<Vec<_>>()[..] {
            self.forget(&ObjectKey::new(&key.namespace, account), secret, uid).await?;
            return Ok(Next::Done);
        }
        let Some(secret) = self.secrets.get(key).filter(|s| s.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        if let Some(view) = View::of(&secret) {
            self.settle(&secret, &view).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing() {
        let check = |data: Value, want: &[(&str, &str)]| {
            let view: View = serde_json::from_value(json!({"type": SECRET_TYPE, "data": data})).unwrap();
            let missing = view.missing("CA", "ns", || Ok("token".into())).unwrap();
            let want: Vec<_> = want.iter().map(|(k, v)| (*k, STANDARD.encode(v))).collect();
            assert_eq!(missing, want, "{data}");
        };
        check(json!(null), &[("ca.crt", "CA"), ("namespace", "ns"), ("token", "token")]);
        check(
            json!({"ca.crt": "b3RoZXI=", "namespace": "bnM=", "token": ""}),
            &[("ca.crt", "CA"), ("token", "token")],
        );
        // A namespace and a token that are there stay, whatever they are.
        check(json!({"ca.crt": "Q0E=", "namespace": "b3RoZXI=", "token": "eA=="}), &[]);
        let view = View::default();
        let without = view.missing("", "ns", || Ok("t".into())).unwrap();
        assert_eq!(without.iter().map(|(k, _)| *k).collect::<Vec<_>>(), ["namespace", "token"]);
    }
}
