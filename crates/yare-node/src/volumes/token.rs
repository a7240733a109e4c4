//! Service account tokens bound to a pod, asked for with `TokenRequest` and renewed before they end.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::VolumeContext;
use crate::clock;
use crate::view::TokenProjection;

/// A token older than this is renewed, however long it is valid.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Lifetime asked for when the volume names none.
const DEFAULT_SECONDS: i64 = 3600;

/// A token and when to ask for the next one.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) refresh_at: Timestamp,
    /// When it ends, as the API server wrote it.
    pub(super) expires: String,
    expires_at: Timestamp,
}

/// A token that is wanted.
pub(super) struct Wish<'a> {
    /// The volume, and the place in it: one token each.
    pub(super) volume: &'a str,
    pub(super) place: &'a str,
    /// Empty: the API server's own.
    pub(super) audience: &'a str,
    pub(super) seconds: Option<i64>,
}

impl<'a> Wish<'a> {
    /// A token of a projected volume.
    pub(super) fn projected(volume: &'a str, source: &'a TokenProjection) -> Self {
        Wish { volume, place: &source.path, audience: &source.audience, seconds: source.expiration_seconds }
    }
}

/// Tokens of one pod by volume and path.
#[derive(Default)]
pub(crate) struct Tokens(HashMap<(String, String), Token>);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AnswerStatus {
    token: String,
    expiration_timestamp: Option<String>,
}

/// The token of a projection, a new one if it is time. A token that cannot be renewed serves to its end.
pub(super) async fn get(
    context: &VolumeContext<'_>,
    wish: &Wish<'_>,
    tokens: &mut Tokens,
) -> Result<Token, String> {
    let key = (wish.volume.to_owned(), wish.place.to_owned());
    let now = context.kubelet.seams.now();
    if let Some(token) = tokens.0.get(&key).filter(|t| now < t.refresh_at) {
        return Ok(token.clone());
    }
    match request(context, wish, now).await {
        Ok(token) => {
            tokens.0.insert(key, token.clone());
            Ok(token)
        }
        Err(error) => match tokens.0.get(&key).filter(|t| now < t.expires_at) {
            Some(old) => {
                tracing::warn!(error, pod = %context.pod.full_name(), "renewing a service account token");
                Ok(Token { refresh_at: clock::after(now, Duration::from_secs(30)), ..old.clone() })
            }
            None => Err(error),
        },
    }
}

async fn request(context: &VolumeContext<'_>, wish: &Wish<'_>, now: Timestamp) -> Result<Token, String> {
    let m = &context.pod.metadata;
    let account = match context.pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let seconds = wish.seconds.unwrap_or(DEFAULT_SECONDS);
    let audiences: Value = if wish.audience.is_empty() { json!([]) } else { json!([wish.audience]) };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": { "name": account, "namespace": m.namespace },
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": m.name, "uid": m.uid },
        },
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", m.namespace);
    let answer: Answer =
        context.kubelet.api.create(&path, &body).await.map_err(|e| format!("failed to fetch token: {e}"))?;
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let expires_at = answer
        .status
        .expiration_timestamp
        .as_ref()
        .and_then(|t| t.parse::<Timestamp>().ok())
        .unwrap_or_else(|| clock::after(now, seconds));
    let lifetime = Duration::try_from(expires_at.duration_since(now)).unwrap_or_default();
    // At 80 % of its life, a little spread so that a node's pods do not ask all at once.
    let spread = Duration::from_secs_f64((context.kubelet.seams.random)() * 10.0);
    let refresh_at = clock::after(now, (lifetime * 4 / 5).min(MAX_AGE).saturating_sub(spread));
    let expires = answer.status.expiration_timestamp.unwrap_or_default();
    Ok(Token { text: answer.status.token, refresh_at, expires, expires_at })
}
