//! Who calls and what they may do, as the server sees it. The mechanisms (certificates, tokens, RBAC, Node
//! authorizer) live in `yare-auth`; here are the narrow traits the pipeline asks, and the identity that travels
//! with a request.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderMap;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::{path::RequestInfo, status::{ApiError, GroupResource, quote}};

/// An authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `system:node:a`, `jane`
    pub name: String,
    /// Unique over time, may be empty.
    pub uid: String,
    /// `system:masters`, `system:authenticated`
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// An identity with a name and groups; `system:authenticated` is added.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The identity of a caller without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// The all-powerful administrator (`system:masters`).
    pub fn admin() -> Self {
        Self::new("system:admin", &["system:masters"])
    }

    /// Whether the identity is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, where this is a kubelet.
    pub fn node(&self) -> Option<&str> {
        self.in_group("system:nodes").then(|| self.name.strip_prefix("system:node:")).flatten()
    }

    /// As `UserInfo` in reviews.
    pub fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        if !self.name.is_empty() {
            out.insert("username".into(), self.name.clone().into());
        }
        if !self.uid.is_empty() {
            out.insert("uid".into(), self.uid.clone().into());
        }
        if !self.groups.is_empty() {
            out.insert("groups".into(), self.groups.clone().into());
        }
        if !self.extra.is_empty() {
            let extra: serde_json::Map<String, Value> =
                self.extra.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            out.insert("extra".into(), Value::Object(extra));
        }
        Value::Object(out)
    }
}

/// What a request shows of its sender.
pub struct Credentials<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The client's certificate chain, leaf first; verified against the client CA by the TLS layer.
    pub certificates: &'a [CertificateDer<'static>],
}

/// A bearer token that was accepted.
#[derive(Clone, Debug)]
pub struct TokenIdentity {
    /// Whose it is.
    pub user: User,
    /// Audiences the token is good for, among those asked for.
    pub audiences: Vec<String>,
}

/// A service-account token to be issued.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// Its UID.
    pub uid: String,
    /// Audiences, empty for the server's own.
    pub audiences: Vec<String>,
    /// Validity.
    pub expiration_s: i64,
    /// What the token dies with: kind, name, uid.
    pub bound: Option<(String, String, String)>,
    /// Node of the pod it is bound to: name, uid.
    pub node: Option<(String, String)>,
}

/// Turns credentials into identities.
pub trait Authenticator: Send + Sync {
    /// `Ok(None)`: nothing this authenticator understands was shown (the caller is anonymous).
    /// `Err`: what was shown is wrong (401).
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, String>;

    /// Checks one bearer token (TokenReview).
    fn token(&self, token: &str, audiences: &[String]) -> Result<TokenIdentity, String>;

    /// Issues a service-account token: the token and when it expires (Unix seconds).
    fn issue(&self, spec: &TokenSpec) -> Result<(String, i64), String>;
}

/// What is to be authorized.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a User,
    /// Does what.
    pub verb: &'a str,
    /// To a resource (or else to `path`).
    pub is_resource: bool,
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Object name.
    pub name: &'a str,
    /// Path of what is not a resource.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// The attributes of a request.
    pub fn of(user: &'a User, info: &'a RequestInfo) -> Self {
        Self {
            user,
            verb: info.verb,
            is_resource: info.is_resource,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
        }
    }

    /// The 403 of upstream, with the authorizer's reason.
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let mut message = if self.is_resource {
            let mut resource = self.resource.to_owned();
            if !self.subresource.is_empty() {
                resource = format!("{resource}/{}", self.subresource);
            }
            let place = if self.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {}", quote(self.namespace))
            };
            format!(
                "User {} cannot {} resource {} in API group {} {place}",
                quote(&self.user.name),
                self.verb,
                quote(&resource),
                quote(self.group),
            )
        } else {
            format!("User {} cannot {} path {}", quote(&self.user.name), self.verb, quote(self.path))
        };
        message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        if !reason.is_empty() {
            message = format!("{message}: {reason}");
        }
        let what = GroupResource { group: self.group, resource: self.resource };
        ApiError::forbidden(what, self.name, message)
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and why.
    Allow(String),
    /// No, whatever others say.
    Deny(String),
    /// Not mine to say: no, if nobody says yes.
    NoOpinion(String),
}

/// Decides what identities may do.
pub trait Authorizer: Send + Sync {
    /// May it be done?
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// `status` of a `SelfSubjectRulesReview`.
    fn rules(&self, user: &User, namespace: &str) -> Value;
}

/// Lets everybody do everything, with any credentials: for tests and for in-process use only.
pub struct Permissive;

impl Authenticator for Permissive {
    fn authenticate(&self, _credentials: &Credentials<'_>) -> Result<Option<User>, String> {
        Ok(Some(User::admin()))
    }

    fn token(&self, _token: &str, _audiences: &[String]) -> Result<TokenIdentity, String> {
        Err("no token authenticator is configured".into())
    }

    fn issue(&self, _spec: &TokenSpec) -> Result<(String, i64), String> {
        Err("no token issuer is configured".into())
    }
}

impl Authorizer for Permissive {
    fn authorize(&self, _attributes: &Attributes<'_>) -> Decision {
        Decision::Allow(String::new())
    }

    fn rules(&self, _user: &User, _namespace: &str) -> Value {
        serde_json::json!({
            "incomplete": false,
            "nonResourceRules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}],
            "resourceRules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
        })
    }
}

/// Authenticator and authorizer of a server.
#[derive(Clone)]
pub struct Auth {
    /// Who is it?
    pub authenticator: Arc<dyn Authenticator>,
    /// May it?
    pub authorizer: Arc<dyn Authorizer>,
    /// Whether callers without credentials come in as `system:anonymous` (else 401).
    pub anonymous: bool,
}

impl Auth {
    /// [`Permissive`] in both places.
    pub fn permissive() -> Self {
        Self { authenticator: Arc::new(Permissive), authorizer: Arc::new(Permissive), anonymous: true }
    }
}
