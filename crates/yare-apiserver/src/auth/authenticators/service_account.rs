//! Service-account tokens: good while what they are bound to exists.

use std::sync::{Arc, atomic::Ordering};

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use yare_auth::token::{
    Claims, LEEWAY_S, Reference, Signer, TokenError, Verified,
    legacy::{self, INVALID_SINCE_LABEL, LAST_USED_LABEL},
    secrets_equal,
};
use yare_kinds::view::View;

use super::{Bearer, Identified, Verdict};
use crate::{
    auth::Auth,
    bootstrap,
    core::{Call, Core},
    verbs::{patch, write},
};

pub(super) fn authenticate(core: &Arc<Core>, bearer: &Bearer<'_>) -> Verdict {
    let auth = &core.config.auth;
    let Some(signer) = &auth.signer else { return Verdict::Unknown };
    match signer.verify(bearer.token, bearer.wanted(), core.now().as_second()) {
        // Whoever signs elsewhere may know the key: the next row asks.
        Err(TokenError::UnknownKey) if auth.external.is_some() => Verdict::Unknown,
        verified => judge(core, signer, bearer, verified),
    }
}

/// Whether keys can be asked for that are not known.
pub(super) fn is_external(auth: &Auth) -> bool {
    auth.external.is_some()
}

/// A token whose key was not known, with the keys as they are now.
pub(super) fn authenticate_afresh<'a>(core: &'a Arc<Core>, bearer: Bearer<'a>) -> BoxFuture<'a, Verdict> {
    Box::pin(async move {
        let auth = &core.config.auth;
        let (Some(signer), Some(external)) = (&auth.signer, &auth.external) else { return Verdict::Unknown };
        let verify = || signer.verify(bearer.token, bearer.wanted(), core.now().as_second());
        if !matches!(verify(), Err(TokenError::UnknownKey)) {
            return Verdict::Unknown;
        }
        external.refresh().await;
        judge(core, signer, &bearer, verify())
    })
}

fn judge(
    core: &Arc<Core>,
    signer: &Signer,
    bearer: &Bearer<'_>,
    verified: Result<Arc<Verified>, TokenError>,
) -> Verdict {
    let now = core.now();
    let verified = match verified {
        Ok(verified) => verified,
        Err(TokenError::Foreign) => return Verdict::Unknown,
        Err(error) => return Verdict::Wrong(error.to_string()),
    };
    let mut identified = Identified::from(verified.user.clone());
    let checked = match &verified.legacy {
        Some(claims) => check_legacy(core, claims, bearer.token, now, &mut identified),
        None => check_bound(core, &verified, now, &mut identified),
    };
    if let Err(why) = checked {
        return Verdict::Wrong(why);
    }
    if bearer.audiences.is_some() {
        identified.audiences = signer.good_for(&verified, bearer.wanted());
    }
    Verdict::Known(identified)
}

/// What of an object says whether it still is the same.
#[derive(Deserialize)]
struct Object {
    metadata: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<Timestamp>,
}

fn read(core: &Core, kind: &str, key: &str) -> Option<Meta> {
    let object = core.store().get(kind, key)?;
    serde_json::from_slice::<Object>(&object.bytes).ok().map(|o| o.metadata)
}

/// A token dies with what it is bound to.
fn check_bound(
    core: &Core,
    verified: &Verified,
    now: Timestamp,
    identified: &mut Identified,
) -> Result<(), String> {
    let Claims { bound, sub, .. } = &verified.claims;
    let (ns, account) = (&bound.namespace, &bound.serviceaccount);
    let gone =
        |meta: &Meta| meta.deletion_timestamp.is_some_and(|at| at.as_second() < now.as_second() - LEEWAY_S);
    let Some(found) = read(core, "serviceaccounts", &format!("{ns}/{}", account.name)) else {
        return Err(format!("serviceaccounts {:?} not found", account.name));
    };
    if found.uid != account.uid {
        return Err(format!("service account UID ({}) does not match claim ({})", found.uid, account.uid));
    }
    if gone(&found) {
        return Err(format!("service account {ns}/{} has been deleted", account.name));
    }
    let check = |kind: &str, plural: &str, key: String, reference: &Reference, claim: &str| {
        const INVALIDATED: &str = "service account token has been invalidated";
        let Some(found) = read(core, plural, &key) else { return Err(INVALIDATED.to_owned()) };
        if found.uid != reference.uid {
            return Err(format!(
                "{kind} UID ({}) does not match service account {claim} ref claim ({})",
                found.uid, reference.uid
            ));
        }
        if gone(&found) { Err(INVALIDATED.to_owned()) } else { Ok(()) }
    };
    if let Some(secret) = &bound.secret {
        check("secret", "secrets", format!("{ns}/{}", secret.name), secret, "secret")?;
    }
    if let Some(pod) = &bound.pod {
        check("pod", "pods", format!("{ns}/{}", pod.name), pod, "pod")?;
    }
    // The node of a pod is only information.
    if let Some(node) = bound.node.as_ref().filter(|_| bound.pod.is_none()) {
        check("node", "nodes", node.name.clone(), node, "node")?;
    }
    if let Some(after) = bound.warnafter.filter(|after| *after != 0) {
        let tokens = &core.config.auth.metrics.tokens;
        if now.as_second() > after {
            let seconds = now.as_second() - after;
            let text = format!("subject: {sub}, seconds after warning threshold: {seconds}");
            identified.annotations.push(("authentication.k8s.io/stale-token", text));
            tokens.stale.fetch_add(1, Ordering::Relaxed);
        } else {
            tokens.valid.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A token of the old kind is good while its Secret holds it.
fn check_legacy(
    core: &Arc<Core>,
    claims: &legacy::Claims,
    token: &str,
    now: Timestamp,
    identified: &mut Identified,
) -> Result<(), String> {
    let (ns, account, name) = (&claims.namespace, &claims.account, &claims.secret);
    let tokens = &core.config.auth.metrics.tokens;
    identified.annotations.push(("authentication.k8s.io/legacy-token", claims.sub.clone()));
    tokens.legacy.fetch_add(1, Ordering::Relaxed);
    if !core.config.auth.service_accounts.lookup {
        return Ok(());
    }
    const INVALIDATED: &str = "Token has been invalidated";
    let secret = core.read("secrets", &format!("{ns}/{name}")).ok_or(INVALIDATED)?;
    if secret.has("metadata.deletionTimestamp") {
        return Err(INVALIDATED.into());
    }
    let held = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(secret.str_at("data.token")).unwrap_or_default()
    };
    if !secrets_equal(&held, token.as_bytes()) {
        return Err("Token does not match server's copy".into());
    }
    let Some(found) = core.read("serviceaccounts", &format!("{ns}/{account}")) else {
        return Err(format!("serviceaccounts {account:?} not found"));
    };
    if found.has("metadata.deletionTimestamp") {
        return Err(format!("ServiceAccount {ns}/{account} has been deleted"));
    }
    let uid = found.str_at("metadata.uid");
    if uid != claims.uid {
        return Err(format!("ServiceAccount UID ({uid}) does not match claim ({})", claims.uid));
    }
    let labels = secret.at("metadata.labels");
    let label = |key: &str| labels.get(key).and_then(|v| v.as_str()).unwrap_or_default();
    note_use(core, ns, name, secret.str_at("metadata.uid"), label(LAST_USED_LABEL), now);
    if !label(INVALID_SINCE_LABEL).is_empty() {
        tokens.invalid.fetch_add(1, Ordering::Relaxed);
        return Err(format!(
            "the token in secret {ns}/{name} for service account {ns}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE_LABEL}' label from the secret to temporarily allow use of this token"
        ));
    }
    let made_for_it = found.items("secrets").iter().any(|s| s.str_at("name") == name);
    if made_for_it {
        tokens.automatic.fetch_add(1, Ordering::Relaxed);
        identified.warnings.push("Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated secret-based tokens.".into());
        identified
            .annotations
            .push(("authentication.k8s.io/legacy-token-autogenerated-secret", name.clone()));
    } else {
        tokens.manual.fetch_add(1, Ordering::Relaxed);
        identified.annotations.push(("authentication.k8s.io/legacy-token-manual-secret", name.clone()));
    }
    Ok(())
}

/// Writes the day of a token's last use on its Secret, once a day.
fn note_use(core: &Arc<Core>, namespace: &str, name: &str, uid: &str, last: &str, now: Timestamp) {
    let today = now.strftime("%Y-%m-%d").to_string();
    let tomorrow = (now + jiff::SignedDuration::from_hours(24)).strftime("%Y-%m-%d").to_string();
    if last == today || last == tomorrow {
        return;
    }
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/merge-patch+json"));
    let mut call: Call = bootstrap::internal_call(core, "patch", "secrets", namespace, name);
    call.method = Method::PATCH;
    call.headers = headers;
    let body = json!({"metadata": {"uid": uid, "labels": {LAST_USED_LABEL: today}}}).to_string();
    handle.spawn(async move {
        let registry = call.core.registry.load_full();
        let Some(served) = registry.find("", "v1", "secrets") else { return };
        if let Err(error) = patch::patch(&call, served, &write::MAIN, body.into()).await {
            tracing::warn!(why = error.message, "cannot label a service account token's Secret");
        }
    });
}
