//! The writes and one-off reads of a node, as plain requests.
//!
//! In: paths and JSON. Out: JSON views. Typed `Api<Pod>` calls would decode whole pods to throw them away;
//! a node only ever needs small views or nothing at all of an answer.

use http::{Method, Request};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// How a patch is merged.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PatchKind {
    Strategic,
    Merge,
}

/// Requests to the API server in the node's name.
#[derive(Clone)]
pub(crate) struct Api {
    kube: kube::Client,
}

impl Api {
    pub(crate) fn new(kube: kube::Client) -> Self {
        Api { kube }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let context = || format!("{method} {path}");
        let mut request =
            Request::builder().method(method.clone()).uri(path).header("accept", "application/json");
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request.body(body).map_err(|e| Error::Request(format!("{}: {e}", context())))?;
        self.kube
            .request::<T>(request)
            .await
            .map_err(|e| Error::Api { context: context(), source: Box::new(e) })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, "", Vec::new()).await
    }

    pub(crate) async fn create<T: DeserializeOwned>(&self, path: &str, object: &Value) -> Result<T> {
        self.send(Method::POST, path, "application/json", object.to_string().into_bytes()).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: PatchKind, patch: &Value) -> Result<()> {
        self.patch_for::<IgnoredAny>(path, kind, patch).await.map(drop)
    }

    pub(crate) async fn patch_for<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<T> {
        let content_type = match kind {
            PatchKind::Strategic => "application/strategic-merge-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
        };
        self.send(Method::PATCH, path, content_type, patch.to_string().into_bytes()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.send::<IgnoredAny>(Method::DELETE, path, "", Vec::new()).await.map(drop)
    }

    /// The last word on a pod: gone at once, if it is still the one we mean.
    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str, uid: &str) -> Result<()> {
        let options = json!({
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": 0,
            "preconditions": { "uid": uid },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.send::<IgnoredAny>(Method::DELETE, &path, "application/json", options.to_string().into_bytes())
            .await
            .map(drop)
    }
}
