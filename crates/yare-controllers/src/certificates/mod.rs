//! CertificateSigningRequests: some are approved here, approved ones for Kubernetes' own signers are signed
//! here, and all are removed some time after their end.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use yare_auth::pki::{CertificateRequest, der, not_after_s};

use crate::{
    context::Error,
    views::{Condition, Meta, nullable},
};

pub mod approver;
pub mod cleaner;
pub mod policy;
pub mod signer;

/// What is read of a request.
#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    /// PEM in base64.
    request: String,
    signer_name: String,
    #[serde(deserialize_with = "nullable")]
    usages: Vec<String>,
    expiration_seconds: Option<u64>,
    username: String,
    uid: String,
    #[serde(deserialize_with = "nullable")]
    groups: Vec<String>,
    extra: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    /// PEM in base64.
    certificate: String,
}

impl Spec {
    fn parse(&self) -> Result<CertificateRequest, Error> {
        let pem = STANDARD.decode(&self.request).map_err(|e| Error::Other(e.to_string()))?;
        CertificateRequest::from_pem(&pem).map_err(|e| Error::Other(format!("unable to parse csr: {e}")))
    }
}

impl Status {
    fn has(&self, kind: &str) -> bool {
        self.conditions.iter().any(|c| c.kind == kind)
    }

    /// Such a condition, where none that says nothing or `True` is another word for it.
    fn is(&self, kind: &str) -> bool {
        self.conditions.iter().any(|c| c.kind == kind && (c.status.is_empty() || c.is_true()))
    }

    fn is_issued(&self) -> bool {
        !self.certificate.is_empty()
    }

    /// Until when the certificate is valid, Unix seconds.
    fn not_after_s(&self) -> Option<i64> {
        let pem = String::from_utf8(STANDARD.decode(&self.certificate).ok()?).ok()?;
        not_after_s(&der(&pem)?)
    }
}

fn add_condition(object: &mut Value, condition: Value) {
    match &mut object["status"]["conditions"] {
        Value::Array(conditions) => conditions.push(condition),
        absent => *absent = Value::Array(vec![condition]),
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_says() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "conditions": [{"type": "Failed"}, {"type": "Denied", "status": "False"}],
        }))
        .unwrap();
        assert!(status.is("Failed") && status.has("Denied"));
        assert!(!status.is("Denied") && !status.has("Approved") && !status.is_issued());
        assert_eq!(Status { certificate: "bm9uc2Vuc2U=".into(), ..Status::default() }.not_after_s(), None);
    }
}
