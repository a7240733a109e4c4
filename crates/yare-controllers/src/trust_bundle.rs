//! Publishes the API server's certificate authority as a ClusterTrustBundle of the signer
//! `kubernetes.io/kube-apiserver-serving`, and keeps that signer from having any other (KEP-3257).

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use yare_client::{Informer, ObjectKey, Queue, Resource, Selection};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// The newest first.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// How much of a bundle's digest stands in its name.
const DIGEST_BYTES: usize = 12;

struct Publisher {
    context: Context,
    /// The signer's bundles, in the newest version that is served.
    bundles: OnceLock<Informer>,
}

/// The controller; it has one key.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Publisher { context: context.clone(), bundles: OnceLock::new() })
}

const fn bundles(version: &'static str) -> Resource {
    Resource::fixed("certificates.k8s.io", version, "clustertrustbundles", "ClusterTrustBundle", false)
}

/// `kubernetes.io:kube-apiserver-serving:` and the beginning of the bundle's digest.
fn name(signer: &str, bundle: &str) -> String {
    let digest = digest(&SHA256, bundle.as_bytes());
    let hex: String = digest.as_ref()[..DIGEST_BYTES].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}:{hex}", signer.replace('/', ":"))
}

impl Publisher {
    /// The newest version that the API server serves.
    async fn served(&self) -> Result<Option<Resource>, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct List {
            resources: Vec<Entry>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Entry {
            name: String,
        }
        for version in VERSIONS {
            let resource = bundles(version);
            let path = format!("/apis/{}", resource.api_version());
            let list: List = match self.context.api.read(&path, "application/json").await {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            if list.resources.iter().any(|r| r.name == resource.plural) {
                return Ok(Some(resource));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Reconcile for Publisher {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(bundles) = self.bundles.get() else { return Ok(Next::Done) };
        let (api, resource) = (&self.context.api, bundles.resource());
        let authority = &self.context.config.root_ca;
        match bundles.get(key) {
            None => {
                let bundle = json!({
                    "kind": resource.kind,
                    "apiVersion": resource.api_version(),
                    "metadata": {"name": key.name},
                    "spec": {"signerName": SIGNER, "trustBundle": authority},
                });
                match api.create(resource, "", &bundle).await {
                    Err(error) if !error.is_already_exists() => return Err(error.into()),
                    _ => {}
                }
            }
            Some(bundle) => {
                #[derive(Deserialize, Default)]
                #[serde(default)]
                struct View {
                    spec: Spec,
                }
                #[derive(Deserialize, Default)]
                #[serde(rename_all = "camelCase", default)]
                struct Spec {
                    trust_bundle: String,
                }
                if bundle.view::<View>()?.spec.trust_bundle != *authority {
                    let right = |body: &mut serde_json::Value| {
                        body["spec"]["trustBundle"] = authority.as_str().into();
                    };
                    api.update(resource, &bundle, right).await?;
                }
            }
        }
        for other in bundles.list() {
            if other.name() != &*key.name {
                api.delete(resource, other.key(), Deletion::of(&other)).await?;
            }
        }
        Ok(Next::Done)
    }

    async fn background(&self, queue: Queue<ObjectKey>, _: CancellationToken) {
        if self.context.config.root_ca.is_empty() {
            return;
        }
        let resource = loop {
            match self.served().await {
                Ok(Some(resource)) => break resource,
                Ok(None) => {
                    tracing::info!("no version of ClusterTrustBundle is served: none is published");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot tell whether ClusterTrustBundles are served, will retry");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        };
        let selection =
            Selection { fields: Some(format!("spec.signerName={SIGNER}")), ..Selection::default() };
        let informer = self.context.client.informers().select(resource, selection);
        let mut changes = informer.subscribe();
        informer.synced().await;
        let informer = self.bundles.get_or_init(|| informer);
        tracing::debug!(resource = %informer.resource().api_version(), "publishing");
        let key = ObjectKey::cluster(&name(SIGNER, &self.context.config.root_ca));
        queue.add(key.clone());
        while changes.recv().await.is_some() {
            queue.add(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name("example.com/a", "abc"), "example.com:a:ba7816bf8f01cfea414140de");
    }
}
