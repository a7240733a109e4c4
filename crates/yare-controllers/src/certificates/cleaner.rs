//! Removes requests that nobody needs any more: an hour after they were signed, denied or failed, a day after
//! they came or were approved without more happening, and with the end of their certificate.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use yare_client::{CERTIFICATE_SIGNING_REQUESTS, Informer, ObjectKey};

use super::{HOUR, View};
use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{after, since},
};

const DAY: Duration = Duration::from_secs(24 * HOUR.as_secs());

struct Cleaner {
    context: Context,
    requests: Informer,
}

/// The controller; keys are CertificateSigningRequests.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Cleaner { requests: context.informer(CERTIFICATE_SIGNING_REQUESTS), context: context.clone() })
}

/// When a request is to go; `None` where nothing says when it came to be as it is.
fn due(view: &View) -> Option<Timestamp> {
    let status = &view.status;
    if status.conditions.is_empty() {
        return view.metadata.creation_timestamp.map(|at| after(at, DAY));
    }
    let mut ends: Vec<Timestamp> = Vec::new();
    for condition in &status.conditions {
        let life = match (&*condition.kind, status.is_issued()) {
            ("Denied" | "Failed", _) | ("Approved", true) => HOUR,
            ("Approved", false) => DAY,
            _ => continue,
        };
        ends.extend(condition.last_update_time.map(|at| after(at, life)));
        if condition.kind == "Approved" && status.is_issued() {
            ends.extend(status.not_after_s().and_then(|end| Timestamp::from_second(end).ok()));
        }
    }
    ends.into_iter().min()
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.requests.get(key) else { return Ok(Next::Done) };
        let Some(due) = due(&object.view()?) else { return Ok(Next::Done) };
        let left = since(due, self.context.now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        // It may have changed meanwhile: only what was looked at.
        let how = Deletion { resource_version: Some(object.resource_version()), ..Deletion::of(&object) };
        self.context.api.delete(&CERTIFICATE_SIGNING_REQUESTS, key, how).await?;
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::{Value, json};
    use yare_auth::pki::{Pki, Subject, Usage};

    use super::*;

    #[test]
    fn when_requests_go() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let subject = Subject { common_name: "x", ..Subject::default() };
        let pair = pki.cluster.issue(Usage::Client, &subject, HOUR).unwrap();
        let certificate = STANDARD.encode(&pair.certificate);
        let ends = yare_auth::pki::not_after_s(&yare_auth::pki::der(&pair.certificate).unwrap()).unwrap();
        let ends = Timestamp::from_second(ends).unwrap();
        let at = |time: &str| json!(time);
        let condition =
            |kind: &str, time: Value| json!({"type": kind, "status": "True", "lastUpdateTime": time});
        let check = |conditions: Value, certificate: &str, want: Option<&str>| {
            let view: View = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "status": {"conditions": conditions, "certificate": certificate},
            }))
            .unwrap();
            assert_eq!(due(&view).map(|t| t.to_string()).as_deref(), want, "{conditions}");
        };
        check(json!([]), "", Some("2026-01-02T00:00:00Z"));
        check(json!(null), "", Some("2026-01-02T00:00:00Z"));
        let noon = "2026-01-01T12:00:00Z";
        check(json!([condition("Denied", at(noon))]), "", Some("2026-01-01T13:00:00Z"));
        check(json!([condition("Failed", at(noon))]), "", Some("2026-01-01T13:00:00Z"));
        check(json!([condition("Approved", at(noon))]), "", Some("2026-01-02T12:00:00Z"));
        check(json!([condition("Approved", at(noon))]), &certificate, Some("2026-01-01T13:00:00Z"));
        // Approved long before it failed: the earlier end counts.
        let both = json!([condition("Approved", at("2025-12-31T12:00:00Z")), condition("Failed", at(noon))]);
        check(both, "", Some("2026-01-01T12:00:00Z"));
        // A certificate that ends before its request's hour is over.
        let late = condition("Approved", at("2100-01-01T00:00:00Z"));
        check(json!([late]), &certificate, Some(&ends.to_string()));
        // Somebody's own condition, or no time.
        check(json!([condition("Seen", at(noon))]), "", None);
        check(json!([condition("Denied", json!(null))]), "", None);
    }
}
