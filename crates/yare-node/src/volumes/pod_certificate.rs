//! Certificates in a pod's name, for `projected` volumes (KEP-4317).
//!
//! The node makes a key and a PodCertificateRequest, and waits until a signer has answered it; before the
//! certificate ends it does so again, with another key.
//!
//! ```text
//! ─► asked ─► issued ─► asked again ─► issued ─► …
//!      └──► denied or failed ◄──┘
//! ```

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use yare_client::{EventKind, ObjectKey, POD_CERTIFICATE_REQUESTS};

use super::trust_bundle::{blocks, pem};
use super::{Failure, VolumeContext, keys};
use crate::clock;
use crate::view::{Metadata, PodCertificateProjection, nullable};

/// A request that is not to be seen for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(10 * 60);
/// Refreshing is overdue so long after it should have begun.
const OVERDUE_AFTER: Duration = Duration::from_secs(10 * 60);
/// Spread of all these, so that pods that came together do not ask together.
const SPREAD_S: f64 = 300.0;
/// How long the list of requests may take to come.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// A pod's certificates by volume and place in it.
#[derive(Default)]
pub(super) struct Certificates(HashMap<(String, usize), State>);

#[derive(Default)]
struct State {
    issued: Option<Issued>,
    asked: Option<Asked>,
    /// Denied or failed, for good.
    over: Option<Over>,
}

struct Over {
    how: &'static str,
    message: String,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Standing {
    Asked,
    Issued { refresh_at: Timestamp, not_after: Timestamp },
    Over(&'static str),
}

impl Standing {
    /// Upstream's word for it.
    pub(super) fn word(self, now: Timestamp) -> &'static str {
        match self {
            Standing::Asked => "not_yet_issued",
            Standing::Over(how) => how,
            Standing::Issued { not_after, .. } if now > not_after => "expired",
            Standing::Issued { refresh_at, .. } if now > clock::after(refresh_at, OVERDUE_AFTER) => {
                "overdue_for_refresh"
            }
            Standing::Issued { .. } => "fresh",
        }
    }
}

#[derive(Clone)]
struct Issued {
    key: String,
    chain: String,
    refresh_at: Timestamp,
    not_after: Timestamp,
    overdue_told: bool,
    expiry_told: bool,
}

struct Asked {
    key: String,
    /// The request's name.
    name: String,
    gone_at: Timestamp,
}

/// A key with its certificates, in PEM, and when to look again.
pub(super) struct Bundle {
    pub(super) key: String,
    pub(super) chain: String,
    pub(super) refresh_at: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Request {
    metadata: Metadata,
    status: RequestStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RequestStatus {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    certificate_chain: String,
    begin_refresh_at: Option<Timestamp>,
    not_after: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

/// The bundle of a projection: the one that is there, a request for a first one or for the next.
pub(super) async fn get(
    context: &VolumeContext<'_>,
    volume: &str,
    index: usize,
    source: &PodCertificateProjection,
    certificates: &mut Certificates,
) -> Result<Bundle, Failure> {
    let place = (volume.to_owned(), index);
    let state = certificates.0.entry(place.clone()).or_default();
    let outcome = renew(context, source, state).await;
    let uid = &context.pod.metadata.uid;
    context.kubelet.volumes.tell_certificate(uid, place, &source.signer_name, state.standing());
    outcome
}

async fn renew(
    context: &VolumeContext<'_>,
    source: &PodCertificateProjection,
    state: &mut State,
) -> Result<Bundle, Failure> {
    let kubelet = context.kubelet;
    let now = kubelet.seams.now();
    if let Some(asked) = &state.asked {
        let fields = format!("spec.nodeName={}", kubelet.node_name);
        let uid = &context.pod.metadata.uid;
        let requests = kubelet.objects.follow(POD_CERTIFICATE_REQUESTS, Some(fields), uid, context.mailbox);
        if tokio::time::timeout(SYNC_TIMEOUT, requests.synced()).await.is_err() {
            return Err(Failure::from("timed out waiting for PodCertificateRequest cache"));
        }
        let found = requests.get(&ObjectKey::new(&context.pod.metadata.namespace, &asked.name));
        match found.map(|cached| cached.view::<Request>()) {
            Some(Ok(request)) => state.take(context, request, now),
            Some(Err(error)) => return Err(Failure::from(error.to_string())),
            None if now >= asked.gone_at => state.asked = None,
            None => {}
        }
    }
    if let Some(over) = &state.over {
        return Err(Failure::from(over.message.as_str()));
    }
    if let Some(issued) = &mut state.issued {
        issued.complain(context, now);
    }
    let due = state.issued.as_ref().is_none_or(|i| now >= i.refresh_at);
    if due && state.asked.is_none() {
        let asked = ask(context, source, now).await;
        match asked {
            Ok(asked) => state.asked = Some(asked),
            Err(error) if state.issued.is_some() => {
                tracing::warn!(error, pod = %context.pod.full_name(), "renewing a pod's certificate");
            }
            Err(error) => return Err(Failure::from(error)),
        }
    }
    match &state.issued {
        Some(issued) => {
            // While the next one is on its way the watch tells; so only now and then in case it got lost.
            let soon = clock::after(now, OVERDUE_AFTER);
            let refresh_at = if now >= issued.refresh_at { soon } else { issued.refresh_at };
            Ok(Bundle { key: issued.key.clone(), chain: issued.chain.clone(), refresh_at: Some(refresh_at) })
        }
        None => Err(Failure::pending("credential bundle is not issued yet")),
    }
}

impl State {
    /// Takes a request's answer in, if there is one.
    fn take(&mut self, context: &VolumeContext<'_>, request: Request, now: Timestamp) {
        let ends = |c: &&Condition| matches!(c.kind.as_str(), "Denied" | "Failed" | "Issued");
        let Some(end) = request.status.conditions.iter().find(ends) else { return };
        let Some(asked) = self.asked.take() else { return };
        if end.kind == "Issued" {
            let spread = Duration::from_secs_f64((context.kubelet.seams.random)() * SPREAD_S);
            let status = request.status;
            self.issued = Some(Issued {
                key: asked.key,
                chain: blocks(&status.certificate_chain).iter().map(|der| pem("CERTIFICATE", der)).collect(),
                refresh_at: clock::after(status.begin_refresh_at.unwrap_or(now), spread),
                not_after: status.not_after.unwrap_or(Timestamp::MAX),
                overdue_told: false,
                expiry_told: false,
            });
            return;
        }
        let Condition { kind, reason, message } = end;
        let m = &request.metadata;
        let (was, how) = if kind == "Denied" { ("was denied", "denied") } else { ("failed", "failed") };
        let text = format!(
            "PodCertificateRequest {}/{} {was}, reason={reason:?}, message={message:?}",
            m.namespace, m.name
        );
        context.kubelet.pod_event(context.pod, None, EventKind::Warning, kind, text);
        self.issued = None;
        let message =
            format!("PodCertificateRequest was permanently {how}: reason={reason:?} message={message:?}");
        self.over = Some(Over { how, message });
    }

    fn standing(&self) -> Standing {
        match (&self.over, &self.issued) {
            (Some(over), _) => Standing::Over(over.how),
            (None, Some(i)) => Standing::Issued { refresh_at: i.refresh_at, not_after: i.not_after },
            (None, None) => Standing::Asked,
        }
    }
}

impl Issued {
    fn complain(&mut self, context: &VolumeContext<'_>, now: Timestamp) {
        let tell = |reason: &str, text: &str| {
            context.kubelet.pod_event(context.pod, None, EventKind::Warning, reason, text.to_owned());
        };
        if !self.overdue_told && now > clock::after(self.refresh_at, OVERDUE_AFTER) {
            tell("CertificateOverdueForRefresh", "PodCertificate refresh overdue");
            self.overdue_told = true;
        }
        if !self.expiry_told && now > self.not_after {
            tell("CertificateExpired", "PodCertificate expired");
            self.expiry_told = true;
        }
    }
}

/// Makes a key and a request for a certificate.
async fn ask(
    context: &VolumeContext<'_>,
    source: &PodCertificateProjection,
    now: Timestamp,
) -> Result<Asked, String> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Account {
        metadata: Metadata,
    }
    let (kubelet, pod) = (context.kubelet, context.pod);
    let m = &pod.metadata;
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}", m.namespace);
    let found: Account =
        kubelet.api.get(&path).await.map_err(|e| format!("while fetching service account: {e}"))?;
    let kind = source.key_type.clone();
    let proof = tokio::task::spawn_blocking(move || keys::generate(&kind))
        .await
        .unwrap_or_else(|e| Err(e.to_string()))
        .map_err(|e| format!("while generating keypair: {e}"))?;
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1beta1",
        "kind": "PodCertificateRequest",
        "metadata": {
            "namespace": m.namespace,
            "generateName": "req-",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": m.name, "uid": m.uid }],
        },
        "spec": {
            "signerName": source.signer_name,
            "podName": m.name,
            "podUID": m.uid,
            "serviceAccountName": account,
            "serviceAccountUID": found.metadata.uid,
            "nodeName": kubelet.node_name,
            "nodeUID": kubelet.csi.node.uid().await,
            "maxExpirationSeconds": source.max_expiration_seconds,
            "stubPKCS10Request": STANDARD.encode(&proof.request),
            "unverifiedUserAnnotations": source.user_annotations,
        },
    });
    let path = format!("/apis/certificates.k8s.io/v1beta1/namespaces/{}/podcertificaterequests", m.namespace);
    let made: Request = kubelet
        .api
        .create(&path, &request)
        .await
        .map_err(|e| format!("while creating PodCertificateRequest: {e}"))?;
    let spread = Duration::from_secs_f64((kubelet.seams.random)() * SPREAD_S);
    // From now on its answer wakes the pod.
    let fields = format!("spec.nodeName={}", kubelet.node_name);
    kubelet.objects.follow(POD_CERTIFICATE_REQUESTS, Some(fields), &m.uid, context.mailbox);
    Ok(Asked { key: proof.key, name: made.metadata.name, gone_at: clock::after(now, GONE_AFTER + spread) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_how_certificates_stand() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let issued = Standing::Issued { refresh_at: at(1000), not_after: at(3000) };
        for (standing, now, want) in [
            (Standing::Asked, 0, "not_yet_issued"),
            (Standing::Over("denied"), 0, "denied"),
            (issued, 999, "fresh"),
            (issued, 1600, "fresh"),
            (issued, 1601, "overdue_for_refresh"),
            (issued, 3000, "overdue_for_refresh"),
            (issued, 3001, "expired"),
        ] {
            assert_eq!(standing.word(at(now)), want, "{standing:?} at {now}");
        }
    }
}
