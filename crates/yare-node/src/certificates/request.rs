//! Asking for a certificate: a CertificateSigningRequest, and the wait until somebody has approved and signed it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use yare_auth::pki::{KeyPairPem, Subject, ask};
use yare_client::{CERTIFICATE_SIGNING_REQUESTS, Client, ObjectKey, Selection};

use super::rotate::Template;
use super::{Held, Kind, NODES, Store};
use crate::api::Api;
use crate::error::Error;

/// How long a machine that joins waits for its first certificate before it asks again.
const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(3600);
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The API server refused the request, or could not be reached.
    #[error("cannot create certificate signing request: {0}")]
    Create(Error),
    /// Somebody said no.
    #[error("certificate signing request is denied, reason: {reason}, message: {message}")]
    Denied {
        /// In a word.
        reason: String,
        /// In a sentence.
        message: String,
    },
    /// The signer would not sign.
    #[error("certificate signing request failed, reason: {reason}, message: {message}")]
    Failed {
        /// In a word.
        reason: String,
        /// In a sentence.
        message: String,
    },
    /// The request went away.
    #[error("csr {0:?} was deleted")]
    Deleted(String),
    /// Nobody has decided yet.
    #[error("csr {0:?} was not approved and signed in time")]
    Late(String),
    /// The key, the request or the certificate cannot be used, or not be kept.
    #[error("{0}")]
    Local(Error),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: crate::view::Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    request: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Condition>>,
    certificate: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

impl Status {
    /// The certificate in PEM once there is one, or why there will be none.
    fn outcome(self) -> Result<Option<String>, CertificateError> {
        let conditions = self.conditions.unwrap_or_default();
        let mut approved = false;
        for Condition { kind, reason, message } in conditions {
            match kind.as_str() {
                "Denied" => return Err(CertificateError::Denied { reason, message }),
                "Failed" => return Err(CertificateError::Failed { reason, message }),
                "Approved" => approved = true,
                _ => {}
            }
        }
        let Some(issued) = self.certificate.filter(|text| approved && !text.is_empty()) else {
            return Ok(None);
        };
        let pem = STANDARD.decode(issued).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let bad = || CertificateError::Local(Error::Request("the issued certificate is no PEM".to_owned()));
        pem.map(Some).ok_or_else(bad)
    }
}

/// The first certificate of a machine that joins: asked for with the credentials of `client`, which are nobody's
/// in particular, and kept in `store`.
pub async fn bootstrap(
    client: &Client,
    store: &Store,
    node_name: &str,
    now: impl Fn() -> Timestamp,
) -> Result<Held, CertificateError> {
    let template = super::template(node_name, &[], &[]);
    let key = store.pending_key().map_err(CertificateError::Local)?;
    let name = digested_name(&key, store.kind(), &template)?;
    let asked = asked(client, store.kind(), &template, &key, Some(&name), BOOTSTRAP_PATIENCE).await;
    let certificate = match asked {
        Ok(certificate) => certificate,
        Err(error) => {
            // The same key makes the same request, and so the same answer.
            if matches!(error, CertificateError::Denied { .. } | CertificateError::Failed { .. }) {
                store.forget_pending_key();
            }
            return Err(error);
        }
    };
    let held = Held::new(KeyPairPem { certificate, key }).map_err(CertificateError::Local)?;
    store.keep(&held, now()).map_err(CertificateError::Local)?;
    store.forget_pending_key();
    Ok(held)
}

/// The next certificate, with a new key; not kept yet.
pub(super) async fn next(
    client: &Client,
    kind: Kind,
    template: &Template,
    patience: Duration,
) -> Result<Held, CertificateError> {
    let local = |e: yare_auth::pki::PkiError| CertificateError::Local(Error::Request(e.to_string()));
    let key = ask::private_key().map_err(local)?;
    let certificate = asked(client, kind, template, &key, None, patience).await?;
    Held::new(KeyPairPem { certificate, key }).map_err(CertificateError::Local)
}

/// Asks, under a name of its own or one that the server makes, and waits for the certificate (PEM).
async fn asked(
    client: &Client,
    kind: Kind,
    template: &Template,
    key: &str,
    name: Option<&str>,
    patience: Duration,
) -> Result<String, CertificateError> {
    let local = |e: String| CertificateError::Local(Error::Request(e));
    let names = template.alternative_names();
    let subject =
        Subject { common_name: &template.common_name, organizations: &[NODES], alternative_names: &names };
    let request = ask::request(key, &subject).map_err(|e| local(e.to_string()))?;
    let metadata = match name {
        Some(name) => json!({ "name": name }),
        None => json!({ "generateName": "csr-" }),
    };
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": metadata,
        "spec": {
            "request": STANDARD.encode(&request),
            "signerName": kind.signer(),
            "usages": kind.usages(),
        },
    });
    let api = Api::new(client.kube());
    let made = match (api.create::<View>(PATH, &object).await, name) {
        (Err(error), Some(name)) if error.status_code() == Some(409) => {
            let found: View = api.get(&format!("{PATH}/{name}")).await.map_err(CertificateError::Create)?;
            if !is_for(&found, key) {
                return Err(local(format!("csr {name:?} is there already and is of another key")));
            }
            found
        }
        (made, _) => made.map_err(CertificateError::Create)?,
    };
    tracing::info!(name = made.metadata.name, signer = kind.signer(), "a certificate was asked for");
    signed(client, &made, patience).await
}

/// Whether a request is signed by `key`.
fn is_for(found: &View, key: &str) -> bool {
    let pem = STANDARD.decode(&found.spec.request).unwrap_or_default();
    let request = yare_auth::pki::CertificateRequest::from_pem(&pem);
    matches!((request, ask::public_key(key)), (Ok(request), Ok(own)) if request.key() == own)
}

/// Waits, by a watch on the request alone.
async fn signed(client: &Client, made: &View, patience: Duration) -> Result<String, CertificateError> {
    let name = made.metadata.name.clone();
    let selection = Selection { fields: Some(format!("metadata.name={name}")), ..Selection::default() };
    let informer = client.informers().select(CERTIFICATE_SIGNING_REQUESTS, selection.clone());
    let waiting = async {
        informer.synced().await;
        let mut changes = informer.subscribe();
        let key = ObjectKey::cluster(&name);
        loop {
            let deleted = || Err(CertificateError::Deleted(name.clone()));
            let Some(object) = informer.get(&key) else { return deleted() };
            let view: View =
                object.view().map_err(|e| CertificateError::Local(Error::Request(e.to_string())))?;
            if view.metadata.uid != made.metadata.uid {
                return deleted();
            }
            if let Some(certificate) = view.status.outcome()? {
                return Ok(certificate);
            }
            if changes.recv().await.is_none() {
                return Err(CertificateError::Late(name.clone()));
            }
        }
    };
    let outcome = tokio::time::timeout(patience, waiting).await;
    client.informers().release(&CERTIFICATE_SIGNING_REQUESTS, &selection);
    outcome.unwrap_or_else(|_| Err(CertificateError::Late(made.metadata.name.clone())))
}

/// A name that the same key and wishes always lead to.
fn digested_name(key: &str, kind: Kind, template: &Template) -> Result<String, CertificateError> {
    let public = ask::public_key(key).map_err(|e| CertificateError::Local(Error::Request(e.to_string())))?;
    let mut digest = ring::digest::Context::new(&ring::digest::SHA512_256);
    let words = [template.common_name.as_bytes(), NODES.as_bytes()];
    let usages = kind.usages().map(str::as_bytes);
    for word in [public.as_slice()].into_iter().chain(words).chain(usages) {
        // No word's code has the delimiter in it: two lists never run together.
        digest.update(URL_SAFE_NO_PAD.encode(word).as_bytes());
        digest.update(b"|");
    }
    Ok(format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finish().as_ref())))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_becomes_of_a_request() {
        let outcome = |status: Value| {
            serde_json::from_value::<Status>(status).unwrap().outcome().map_err(|e| e.to_string())
        };
        let pem = STANDARD.encode("pem");
        let approved = json!({"type": "Approved", "reason": "r", "message": "m"});
        assert_eq!(outcome(json!({})), Ok(None));
        assert_eq!(outcome(json!({"certificate": pem})), Ok(None));
        assert_eq!(outcome(json!({"conditions": [approved]})), Ok(None));
        assert_eq!(outcome(json!({"conditions": [approved], "certificate": pem})), Ok(Some("pem".into())));
        let denied = json!({"type": "Denied", "reason": "r", "message": "m"});
        assert_eq!(
            outcome(json!({"conditions": [denied]})).unwrap_err(),
            "certificate signing request is denied, reason: r, message: m"
        );
        let failed = json!({"type": "Failed", "reason": "r", "message": "m"});
        assert_eq!(
            outcome(json!({"conditions": [approved, failed]})).unwrap_err(),
            "certificate signing request failed, reason: r, message: m"
        );
        assert!(outcome(json!({"conditions": [approved], "certificate": "!"})).is_err());
    }

    #[test]
    fn the_same_wishes_have_the_same_name() {
        let (a, b) = (ask::private_key().unwrap(), ask::private_key().unwrap());
        let template = super::super::template("n", &[], &[]);
        let name = |key: &str, template: &Template| digested_name(key, Kind::Client, template).unwrap();
        assert_eq!(name(&a, &template), name(&a, &template));
        assert_ne!(name(&a, &template), name(&b, &template));
        assert_ne!(name(&a, &template), name(&a, &super::super::template("m", &[], &[])));
        let name = name(&a, &template);
        assert!(name.starts_with("node-csr-") && name.len() == 9 + 43, "{name}");
    }
}
