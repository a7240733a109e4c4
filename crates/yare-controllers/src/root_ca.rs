//! Publishes the API server's certificate authority in every namespace as the ConfigMap
//! `kube-root-ca.crt`, which pods need to trust the API server.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{CONFIG_MAPS, Cached, Change, Informer, NAMESPACES, ObjectKey};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    namespace::is_active,
    views::Meta,
};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION_ANNOTATION: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

struct RootCa {
    context: Context,
    namespaces: Informer,
    maps: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    data: Value,
}

/// The controller; keys are namespaces.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(RootCa {
        namespaces: context.informer(NAMESPACES),
        maps: context.informer(CONFIG_MAPS),
        context: context.clone(),
    })
}

/// Any change of a published map has to be undone.
pub fn changed_map(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(map) = change.object()
        && map.name() == NAME
    {
        add(ObjectKey::cluster(map.namespace()));
    }
}

impl RootCa {
    fn is_right(&self, map: &Cached) -> Result<bool, Error> {
        let view: View = map.view()?;
        let described = view.metadata.annotations.get(DESCRIPTION_ANNOTATION).is_some_and(|d| !d.is_empty());
        Ok(described && view.data == self.data())
    }

    fn data(&self) -> Value {
        json!({"ca.crt": self.context.config.root_ca})
    }
}

#[async_trait]
impl Reconcile for RootCa {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        if self.context.config.root_ca.is_empty() || !is_active(&namespace) {
            return Ok(Next::Done);
        }
        let api = &self.context.api;
        let result = match self.maps.get(&ObjectKey::new(&key.name, NAME)) {
            Some(map) if self.is_right(&map)? => return Ok(Next::Done),
            Some(map) => {
                let update = |body: &mut Value| {
                    body["data"] = self.data();
                    body["metadata"]["annotations"][DESCRIPTION_ANNOTATION] = DESCRIPTION.into();
                };
                api.update(&CONFIG_MAPS, &map, update).await
            }
            None => {
                let map = json!({
                    "kind": "ConfigMap",
                    "apiVersion": "v1",
                    "metadata": {
                        "name": NAME,
                        "namespace": key.name,
                        "annotations": {DESCRIPTION_ANNOTATION: DESCRIPTION},
                    },
                    "data": self.data(),
                });
                api.create(&CONFIG_MAPS, &key.name, &map).await
            }
        };
        match result {
            Ok(_) => Ok(Next::Done),
            Err(error) if error.is_already_exists() || error.is_not_found() => Ok(Next::Done),
            Err(error) => Err(error.into()),
        }
    }
}
