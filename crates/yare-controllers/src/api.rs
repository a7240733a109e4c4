//! Writes of controllers: requests through the kube client whose answers stay bytes.
//!
//! Bodies are JSON values that controllers build or edit; answers come back as [`Cached`] objects, so that
//! nothing is decoded that nobody reads.

use std::fmt;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, Resource};

/// The most one answer may take (a list page of large objects).
const ANSWER_MAX_BYTES: usize = 256 << 20;
/// Who owns the fields that controllers write.
const FIELD_MANAGER: &str = "kube-controller-manager";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server's answer.
    #[error("{0}")]
    Status(Box<Status>),
    /// No answer.
    #[error("{what}: {source}")]
    Transport {
        /// Method and path.
        what: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer, or a cached object to be edited, that is not what it should be.
    #[error("{what}: {source}")]
    Json {
        /// Method and path, or the object.
        what: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// The error body of the API.
#[derive(Debug, Deserialize, Default, Clone)]
#[serde(default)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict`, …
    pub reason: String,
    /// For people.
    pub message: String,
    /// Causes, among others.
    pub details: StatusDetails,
}

/// `details` of a [`Status`].
#[derive(Debug, Deserialize, Default, Clone)]
#[serde(default)]
pub struct StatusDetails {
    /// What exactly was wrong.
    pub causes: Vec<StatusCause>,
}

/// One cause.
#[derive(Debug, Deserialize, Default, Clone)]
#[serde(default)]
pub struct StatusCause {
    /// `NamespaceTerminating`, `FieldValueInvalid`, …
    pub reason: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.is_empty() {
            true => write!(f, "status {} {}", self.code, self.reason),
            false => f.write_str(&self.message),
        }
    }
}

impl ApiError {
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Status(status) => Some(status),
            _ => None,
        }
    }

    /// HTTP status of the answer; 0 if there was none.
    pub fn code(&self) -> u16 {
        self.status().map_or(0, |s| s.code)
    }

    /// 404
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 409 because of another write in between.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409 && s.reason != "AlreadyExists")
    }

    /// 409 because the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "AlreadyExists")
    }

    /// 422
    pub fn is_invalid(&self) -> bool {
        self.code() == 422
    }

    /// 403 because the namespace is being deleted: nothing more can be created there.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|s| s.details.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    }
}

/// `propagationPolicy` of a deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Propagation {
    /// Dependents are deleted after the object.
    Background,
    /// The object stays until its blocking dependents are gone.
    Foreground,
    /// Dependents stay.
    Orphan,
}

/// How to delete.
#[derive(Clone, Default, Debug)]
pub struct Deletion<'a> {
    /// Only the object with this uid.
    pub uid: Option<&'a str>,
    /// Only this version of it.
    pub resource_version: Option<u64>,
    /// What becomes of dependents.
    pub propagation: Option<Propagation>,
    /// Seconds for graceful termination.
    pub grace_period_s: Option<u32>,
}

impl<'a> Deletion<'a> {
    /// Of exactly this object.
    pub fn of(object: &'a Cached) -> Self {
        Self { uid: Some(object.uid()), ..Self::default() }
    }

    fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(uid) = self.uid {
            body["preconditions"]["uid"] = uid.into();
        }
        if let Some(version) = self.resource_version {
            body["preconditions"]["resourceVersion"] = version.to_string().into();
        }
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = format!("{propagation:?}").into();
        }
        if let Some(seconds) = self.grace_period_s {
            body["gracePeriodSeconds"] = seconds.into();
        }
        body
    }
}

/// Kinds of patches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patch {
    /// RFC 7386.
    Merge,
    /// Lists merge by key.
    Strategic,
}

/// Writes as one controller.
#[derive(Clone)]
pub struct Api {
    kube: kube::Client,
}

impl Api {
    /// Writes with the identity of `kube`.
    pub fn new(kube: kube::Client) -> Self {
        Self { kube }
    }

    /// Reads one object from the server, past all caches.
    pub async fn get(&self, resource: &Resource, key: &ObjectKey) -> Result<Option<Cached>, ApiError> {
        match self.call(Method::GET, &path(resource, key, ""), "", None::<&()>).await {
            Ok(bytes) => cached(bytes, resource, key).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all objects of a namespace from the server, past all caches.
    pub async fn list(&self, resource: &Resource, namespace: &str) -> Result<Vec<Cached>, ApiError> {
        let bytes = self.call(Method::GET, &resource.path(Some(namespace)), "", None::<&()>).await?;
        let mut list: Value = serde_json::from_slice(&bytes)
            .map_err(|source| ApiError::Json { what: format!("list of {}", resource.plural), source })?;
        let Value::Array(items) = list["items"].take() else { return Ok(Vec::new()) };
        items
            .into_iter()
            .map(|item| cached(item.to_string().into(), resource, &ObjectKey::new(namespace, "")))
            .collect()
    }

    /// Creates an object in `namespace` (empty for cluster-scoped ones).
    pub async fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        body: &impl Serialize,
    ) -> Result<Cached, ApiError> {
        let path = resource.path(Some(namespace).filter(|n| !n.is_empty()));
        let bytes = self.call(Method::POST, &path, "", Some(body)).await?;
        cached(bytes, resource, &ObjectKey::new(namespace, ""))
    }

    /// Edits a cached object and writes it back; fails with a conflict if it has changed meanwhile.
    pub async fn update(
        &self,
        resource: &Resource,
        object: &Cached,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Cached, ApiError> {
        self.put(resource, object, "", edit).await
    }

    /// Replaces the status of a cached object; fails with a conflict if it has changed meanwhile.
    pub async fn update_status(
        &self,
        resource: &Resource,
        object: &Cached,
        status: &impl Serialize,
    ) -> Result<Cached, ApiError> {
        let what = || format!("status of {} {}", resource.kind, object.key());
        let status =
            serde_json::to_value(status).map_err(|source| ApiError::Json { what: what(), source })?;
        self.put(resource, object, "/status", |body| body["status"] = status).await
    }

    /// Edits a cached object and writes it to one of its subresources (`/status`, `/finalize`).
    pub async fn put(
        &self,
        resource: &Resource,
        object: &Cached,
        subresource: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Cached, ApiError> {
        let what = || format!("{} {}", resource.kind, object.key());
        let mut body: Value = serde_json::from_slice(object.bytes())
            .map_err(|source| ApiError::Json { what: what(), source })?;
        edit(&mut body);
        let bytes = self
            .call(Method::PUT, &path(resource, object.key(), subresource), "application/json", Some(&body))
            .await?;
        cached(bytes, resource, object.key())
    }

    /// Patches an object, or one of its subresources (`/status`).
    pub async fn patch(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        subresource: &str,
        kind: Patch,
        body: &impl Serialize,
    ) -> Result<Cached, ApiError> {
        let content_type = match kind {
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
        };
        let bytes =
            self.call(Method::PATCH, &path(resource, key, subresource), content_type, Some(body)).await?;
        cached(bytes, resource, key)
    }

    /// Deletes an object; whether it was there.
    pub async fn delete(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        how: Deletion<'_>,
    ) -> Result<bool, ApiError> {
        match self.call(Method::DELETE, &path(resource, key, ""), "", Some(&how.body())).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads any path in the given media type.
    pub async fn read(&self, path: &str, accept: &str) -> Result<Bytes, ApiError> {
        self.send(Method::GET, path, accept, "application/json", None::<&()>).await
    }

    /// Any other request; the answer's body.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ApiError> {
        let content_type = if content_type.is_empty() { "application/json" } else { content_type };
        self.send(method, path, "application/json", content_type, body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ApiError> {
        let what = || format!("{method} {path}");
        let transport =
            |source: Box<dyn std::error::Error + Send + Sync>| ApiError::Transport { what: what(), source };
        let separator = if path.contains('?') { '&' } else { '?' };
        let uri = match method {
            Method::GET | Method::DELETE => path.to_owned(),
            _ => format!("{path}{separator}fieldManager={FIELD_MANAGER}"),
        };
        let body = match body {
            Some(body) => {
                serde_json::to_vec(body).map_err(|source| ApiError::Json { what: what(), source })?
            }
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(http::header::ACCEPT, accept)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .map_err(|e| transport(e.into()))?;
        let response = self.kube.send(request).await.map_err(|e| transport(e.into()))?;
        let code = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
            .collect()
            .await
            .map_err(transport)?
            .to_bytes();
        if code.is_success() {
            return Ok(bytes);
        }
        let mut status: Status = serde_json::from_slice(&bytes).unwrap_or_default();
        status.code = code.as_u16();
        Err(ApiError::Status(Box::new(status)))
    }
}

fn path(resource: &Resource, key: &ObjectKey, subresource: &str) -> String {
    let namespace = Some(&*key.namespace).filter(|n| !n.is_empty());
    format!("{}/{}{subresource}", resource.path(namespace), key.name)
}

fn cached(bytes: Bytes, resource: &Resource, key: &ObjectKey) -> Result<Cached, ApiError> {
    Cached::new(bytes).map_err(|source| ApiError::Json { what: format!("{} {key}", resource.kind), source })
}
