//! Identities, and how a client certificate names one.

use std::collections::BTreeMap;

use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of node agents.
pub const NODES: &str = "system:nodes";
/// Prefix of a node agent's user name.
pub const NODE_PREFIX: &str = "system:node:";
/// `extra` key that identifies the credential used.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Attribute of a certificate's subject that holds the user's UID (`k8s.io/kubernetes/pkg/apis/…/asn1`).
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// A caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `alice`, `system:node:n1`, `system:serviceaccount:default:default`
    pub name: String,
    /// Stable identifier, empty where there is none.
    pub uid: String,
    /// Groups, including `system:authenticated` or `system:unauthenticated`.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// An authenticated user in `groups` (and in `system:authenticated`).
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The all-powerful administrator.
    pub fn admin() -> Self {
        Self::new("system:admin", &[MASTERS])
    }

    /// As `UserInfo` stands in review objects; empty members are left out.
    pub fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (key, value) in [("username", &self.name), ("uid", &self.uid)] {
            if !value.is_empty() {
                out.insert(key.into(), value.clone().into());
            }
        }
        if !self.groups.is_empty() {
            out.insert("groups".into(), self.groups.clone().into());
        }
        if !self.extra.is_empty() {
            let extra: serde_json::Map<String, Value> =
                self.extra.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            out.insert("extra".into(), extra.into());
        }
        Value::Object(out)
    }

    /// A caller without credentials.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// The service account `namespace/name`.
    pub fn service_account(namespace: &str, name: &str, uid: impl Into<String>) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.into(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.into(),
            ],
            extra: BTreeMap::new(),
        }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node whose agent this is.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty() && self.in_group(NODES))
    }

    /// The identity in a verified client certificate (DER): common name is the user, organizations are the
    /// groups, and there may be one UID. `Ok(None)` where it has no common name.
    pub fn from_certificate(der: &[u8]) -> Result<Option<Self>, String> {
        let (_, cert) =
            X509Certificate::from_der(der).map_err(|e| format!("x509: malformed certificate: {e}"))?;
        let subject = cert.subject();
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
        // As Go reads a subject: the last common name counts.
        let name = subject.iter_common_name().last().and_then(text).unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let mut groups: Vec<String> = subject.iter_organization().filter_map(text).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        let uids: Vec<Option<String>> =
            subject.iter_attributes().filter(|a| a.attr_type().to_id_string() == UID_OID).map(text).collect();
        let uid = match uids.as_slice() {
            [] => String::new(),
            [Some(uid)] if uid.is_empty() => return Err("UID cannot be an empty string".into()),
            [Some(uid)] => uid.clone(),
            [None] => return Err("unable to parse UID into a string".into()),
            _ => return Err("expected 1 UID, but found multiple".into()),
        };
        let fingerprint = ring::digest::digest(&ring::digest::SHA256, der);
        let hex: String = fingerprint.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")])]);
        Ok(Some(Self { name, uid, groups, extra }))
    }
}
