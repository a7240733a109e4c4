//! Errors as clients see them: `metav1.Status` with upstream's reasons, codes and messages
//! (`k8s.io/apimachinery/pkg/api/errors`). Everything that fails in a request becomes an [`ApiError`] here
//! and a `Status` document on its way out.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use yare_schema::field::FieldError;
use yare_store::CommitError;

/// Result of anything that runs for a request.
pub type ApiResult<T> = Result<T, ApiError>;

/// A failure that the client is told of.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// `StatusReason`, empty for unknown. Who refuses for this server may have one of their own.
    pub reason: Cow<'static, str>,
    /// What is wrong, in one line.
    pub message: String,
    /// The rest of `details`.
    pub details: Box<Details>,
    /// `metadata.continue`: where an expired list can be continued, inconsistently.
    pub continue_token: Option<String>,
}

/// `StatusDetails`.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Whether `details` is written at all.
    pub present: bool,
    /// Resource name, or kind for `Invalid`.
    pub kind: String,
    /// API group.
    pub group: String,
    /// Object name.
    pub name: String,
    /// Object UID.
    pub uid: String,
    /// One per wrong field.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_s: i32,
}

/// `StatusCause`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, …
    pub reason: String,
    /// What is wrong with the field.
    pub message: String,
    /// Which field.
    pub field: String,
}

/// What an error is about: a resource of a group, and how both are written in messages.
#[derive(Clone, Copy, Debug)]
pub struct GroupResource<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural name; where upstream names the kind, the kind.
    pub resource: &'a str,
}

impl std::fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

pub use yare_schema::goprint::quote;

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let (reason, message) = (reason.into(), message.into());
        Self { code, reason, message, details: Box::default(), continue_token: None }
    }

    fn about(mut self, what: GroupResource<'_>, name: &str) -> Self {
        self.details.present = true;
        self.details.group = what.group.to_owned();
        self.details.kind = what.resource.to_owned();
        self.details.name = name.to_owned();
        self
    }

    /// `pods "x" not found`
    pub fn not_found(what: GroupResource<'_>, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{what} {} not found", quote(name))).about(what, name)
    }

    /// No such path or resource.
    pub fn unknown_resource() -> Self {
        let mut e = Self::new(404, "NotFound", "the server could not find the requested resource");
        e.details.present = true;
        e
    }

    /// `pods "x" already exists`
    pub fn already_exists(what: GroupResource<'_>, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{what} {} already exists", quote(name))).about(what, name)
    }

    /// A generated name was taken every time it was tried.
    pub fn generate_name_conflict(what: GroupResource<'_>, name: &str) -> Self {
        let message = format!(
            "{what} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        let mut e = Self::new(409, "AlreadyExists", message).about(what, name);
        e.details.retry_after_s = 1;
        e
    }

    /// `Operation cannot be fulfilled on pods "x": …`
    pub fn conflict(what: GroupResource<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} {}: {why}", quote(name)))
            .about(what, name)
    }

    /// A stale `resourceVersion`.
    pub fn modified(what: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            what,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply met fields that others own.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut e = Self::new(409, "Conflict", message);
        e.details.present = true;
        e.details.causes = causes;
        e
    }

    /// The identity is unknown.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The identity may not do this.
    pub fn forbidden(what: GroupResource<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        let message = if what.resource.is_empty() && what.group.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {} is forbidden: {why}", quote(name))
        };
        Self::new(403, "Forbidden", message).about(what, name)
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// A patch that does not apply. Upstream does not say why.
    pub fn rejected() -> Self {
        let mut e =
            Self::new(422, "Invalid", "the server rejected our request due to an error in our request");
        e.details.present = true;
        e
    }

    /// A body or what it asks for is too large.
    pub fn request_too_large(why: impl std::fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// The server failed.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let mut e = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        e.details.present = true;
        e.details.causes.push(Cause { message: message.to_string(), ..Cause::default() });
        e
    }

    /// The object breaks rules: one cause for each field. `what.resource` is the kind.
    pub fn invalid(what: GroupResource<'_>, name: &str, errors: &[FieldError]) -> Self {
        let mut seen: Vec<String> = Vec::new();
        for e in errors {
            let text = e.to_string();
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        let all = match seen.as_slice() {
            [] => String::new(),
            [one] => format!(": {one}"),
            many => format!(": [{}]", many.join(", ")),
        };
        let mut e =
            Self::new(422, "Invalid", format!("{what} {} is invalid{all}", quote(name))).about(what, name);
        e.details.causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.field.clone() })
            .collect();
        e
    }

    /// The wanted history is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// What upstream says of a resource version that was compacted away.
    pub fn too_old(wanted: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {wanted} ({oldest})"))
    }

    /// The resource version is from the future.
    pub fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let mut e = Self::new(504, "Timeout", message);
        e.details.present = true;
        e.details.retry_after_s = 1;
        e.details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        e
    }

    /// This resource has no such verb.
    pub fn method_not_supported(what: GroupResource<'_>, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&what.to_string()));
        Self::new(405, "MethodNotAllowed", message).about(what, "")
    }

    /// This path has no such method.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut e = Self::new(405, "MethodNotAllowed", message);
        e.details.present = true;
        e
    }

    /// No encoding that the client accepts.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// The same of what upstream's router refuses, before anybody looks at the request.
    pub fn unrouted_accept(available: &[&str]) -> Self {
        let available = available.join(", ");
        let message = format!("406: Not Acceptable\n\nAvailable representations: {available}");
        let mut e = Self::new(406, "NotAcceptable", message);
        e.details.present = true;
        e
    }

    /// The body has an encoding the server cannot read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// The same of what upstream's router refuses, before anybody reads it.
    pub fn unrouted_media_type() -> Self {
        let mut e = Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
        e.details.present = true;
        e
    }

    /// The body is over the limit.
    pub fn too_big(limit_bytes: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// Too much in flight.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: i32) -> Self {
        let mut e = Self::new(429, "TooManyRequests", message);
        e.details.present = true;
        e.details.retry_after_s = retry_after_s;
        e
    }

    /// Something this request needs is not there (a node's kubelet, the store).
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// It took too long.
    pub fn timeout(message: impl std::fmt::Display) -> Self {
        let mut e = Self::new(504, "Timeout", format!("Timeout: {message}"));
        e.details.present = true;
        e
    }

    /// What a failed transaction means for the object `name` of `what`, where it is not retried.
    pub fn from_commit(error: CommitError, what: GroupResource<'_>, name: &str) -> Self {
        match error {
            CommitError::Exists { .. } => Self::already_exists(what, name),
            CommitError::Missing { .. } => Self::not_found(what, name),
            CommitError::Conflict { .. } => Self::modified(what, name),
            CommitError::Sealing(why) => Self::internal(why),
            other => Self::internal(other),
        }
    }

    /// The `Status` document.
    pub fn to_json(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), "Status".into());
        status.insert("apiVersion".into(), "v1".into());
        let metadata = match &self.continue_token {
            Some(token) => json!({ "continue": token }),
            None => json!({}),
        };
        status.insert("metadata".into(), metadata);
        status.insert("status".into(), "Failure".into());
        status.insert("message".into(), self.message.clone().into());
        if !self.reason.is_empty() {
            status.insert("reason".into(), (*self.reason).into());
        }
        if self.details.present {
            status.insert("details".into(), self.details.to_json());
        }
        status.insert("code".into(), self.code.into());
        Value::Object(status)
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, value) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut cause = Map::new();
                for (key, value) in [("reason", &c.reason), ("message", &c.message), ("field", &c.field)] {
                    if !value.is_empty() {
                        cause.insert(key.into(), value.as_str().into());
                    }
                }
                Value::Object(cause)
            });
            out.insert("causes".into(), causes.collect());
        }
        if self.retry_after_s > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_s.into());
        }
        Value::Object(out)
    }
}

/// The `Status` of a deletion that left nothing behind.
pub fn success(what: GroupResource<'_>, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), name.into());
    if !what.group.is_empty() {
        details.insert("group".into(), what.group.into());
    }
    details.insert("kind".into(), what.resource.into());
    if !uid.is_empty() {
        details.insert("uid".into(), uid.into());
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}

#[cfg(test)]
mod tests {
    use yare_schema::field::Path;

    use super::*;

    #[test]
    fn messages() {
        let pods = GroupResource { group: "", resource: "pods" };
        let deployments = GroupResource { group: "apps", resource: "deployments" };
        for (error, code, message) in [
            (ApiError::not_found(pods, "x"), 404, r#"pods "x" not found"#),
            (ApiError::already_exists(deployments, "d"), 409, r#"deployments.apps "d" already exists"#),
            (ApiError::forbidden(pods, "", "no"), 403, "pods is forbidden: no"),
            (
                ApiError::invalid(
                    GroupResource { group: "apps", resource: "Deployment" },
                    "d",
                    &[
                        FieldError::required(&Path::new("spec"), ""),
                        FieldError::forbidden(&Path::new("x"), "y"),
                    ],
                ),
                422,
                r#"Deployment.apps "d" is invalid: [spec: Required value, x: Forbidden: y]"#,
            ),
        ] {
            assert_eq!((error.code, error.message.as_str()), (code, message));
            assert_eq!(error.to_json()["code"], code);
        }
    }
}
