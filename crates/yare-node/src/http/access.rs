//! Who asks, and may they: client certificates, bearer tokens and permissions, both by asking the API server.
//!
//! In: a request and the certificates its connection showed. Out: the user, or 401, 403 or 500 as upstream's
//! kubelet answers. What the API server said is kept for the times of the configuration, in bounded caches.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method, Response, StatusCode, header};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_auth::User;
use yare_auth::cache::{Cache, key};
use yare_auth::tls::ClientAuthority;
use yare_auth::user::AUTHENTICATED;

use super::{Body, text};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::kubelet::Kubelet;

/// Answers of each kind that are kept.
const CACHED_MAX: usize = 8192;
/// An access review whose question is longer is not kept.
const QUESTION_BYTES_MAX: usize = 10_000;
/// Attempts at a review, and the wait after the first, which grows by half.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The sub-protocol in which browsers hide a token.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Decides on requests.
pub(crate) struct Access {
    node_name: String,
    authority: Option<AuthorityFile>,
    tokens: Option<Tokens>,
    anonymous: bool,
    /// None: everybody who is known may do everything.
    reviews: Option<Reviews>,
    /// What answers that are kept count from: a wall clock that is set back would keep them for too long.
    start: tokio::time::Instant,
}

struct Tokens {
    ttl: Duration,
    answers: Cache<Option<Arc<User>>>,
}

struct Reviews {
    allowed_ttl: Duration,
    denied_ttl: Duration,
    answers: Cache<bool>,
}

/// The authorities in a file, read again when the file changes.
struct AuthorityFile {
    path: std::path::PathBuf,
    read: Mutex<Option<(SystemTime, u64, ClientAuthority)>>,
}

impl AuthorityFile {
    /// The authority as it is on disk now. A file that became unreadable leaves the last good one in place.
    fn current(&self) -> Option<ClientAuthority> {
        let stamp = std::fs::metadata(&self.path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
        let mut read = self.read.lock();
        if let (Some((at, length, authority)), Some(stamp)) = (&*read, stamp)
            && (*at, *length) == stamp
        {
            return Some(authority.clone());
        }
        let fresh = std::fs::read_to_string(&self.path)
            .map_err(|e| e.to_string())
            .and_then(|pem| ClientAuthority::new(&pem).map_err(|e| e.to_string()));
        match (fresh, stamp) {
            (Ok(authority), Some((at, length))) => *read = Some((at, length, authority)),
            (Err(error), _) => {
                tracing::warn!(path = %self.path.display(), error, "reading authorities of clients");
            }
            (Ok(_), None) => {}
        }
        read.as_ref().map(|(.., authority)| authority.clone())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenReview {
    status: TokenReviewStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenReviewStatus {
    authenticated: bool,
    user: UserInfo,
    error: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct UserInfo {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AccessReview {
    status: AccessReviewStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AccessReviewStatus {
    allowed: bool,
}

impl Access {
    /// As a configuration says. The error names a file that cannot be used.
    pub(super) fn new(node_name: &str, settings: &Settings) -> Result<Self> {
        let authority = match settings.authentication.x509.client_ca_file.as_str() {
            "" => None,
            path => {
                let file = AuthorityFile { path: path.into(), read: Mutex::default() };
                if file.current().is_none() {
                    return Err(Error::Path {
                        path: path.into(),
                        reason: "clientCAFile holds no certificates of authorities".to_owned(),
                    });
                }
                Some(file)
            }
        };
        let webhook = &settings.authentication.webhook;
        let tokens =
            webhook.enabled.then(|| Tokens { ttl: webhook.cache_ttl.get(), answers: Cache::new(CACHED_MAX) });
        let reviews = (settings.authorization.mode != "AlwaysAllow").then(|| Reviews {
            allowed_ttl: settings.authorization.webhook.cache_authorized_ttl.get(),
            denied_ttl: settings.authorization.webhook.cache_unauthorized_ttl.get(),
            answers: Cache::new(CACHED_MAX),
        });
        let anonymous = settings.authentication.anonymous.enabled;
        let (node_name, start) = (node_name.to_owned(), tokio::time::Instant::now());
        Ok(Access { node_name, authority, tokens, anonymous, reviews, start })
    }

    fn now_ms(&self) -> i64 {
        millis(self.start.elapsed())
    }

    /// By whose names clients choose what certificate to show.
    pub(super) fn authority(&self) -> Option<ClientAuthority> {
        self.authority.as_ref().and_then(AuthorityFile::current)
    }

    /// Lets a request pass, or answers it.
    pub(super) async fn check(
        &self,
        kubelet: &Kubelet,
        certificates: &[CertificateDer<'static>],
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Box<Response<Body>>> {
        let Some(user) = self.authenticate(kubelet, certificates, headers).await else {
            return Err(Box::new(text(StatusCode::UNAUTHORIZED, "Unauthorized")));
        };
        let Some(reviews) = &self.reviews else { return Ok(()) };
        let (verb, subresources) = (verb(method), subresources(path));
        for subresource in subresources {
            match self.may(kubelet, reviews, &user, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, user = user.name, verb, subresource, "asking whether a request is allowed");
                    let message = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        user.name
                    );
                    return Err(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, message)));
                }
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        );
        Err(Box::new(text(StatusCode::FORBIDDEN, message)))
    }

    /// The user; none: nobody, or somebody whose credentials are not good.
    async fn authenticate(
        &self,
        kubelet: &Kubelet,
        certificates: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Option<Arc<User>> {
        let mut failed = false;
        if let (Some(leaf), Some(authority)) = (certificates.first(), self.authority()) {
            let vouched = authority.vouches(certificates, kubelet.seams.now().as_second());
            match vouched.and_then(|()| User::from_certificate(leaf)) {
                Ok(Some(user)) => return Some(Arc::new(user)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error, "a client certificate of a request to the kubelet's API");
                    failed = true;
                }
            }
        }
        if let (Some(tokens), Some(token)) = (&self.tokens, token(headers)) {
            match review_token(kubelet, tokens, &token, self.now_ms()).await {
                Ok(Some(user)) => return Some(user),
                // Who shows a token that is not good is not somebody who shows none.
                Ok(None) => failed = true,
                Err(error) => {
                    tracing::warn!(%error, "asking whose token a request to the kubelet's API shows");
                    failed = true;
                }
            }
        }
        (self.anonymous && !failed).then(|| Arc::new(User::anonymous()))
    }

    async fn may(
        &self,
        kubelet: &Kubelet,
        reviews: &Reviews,
        user: &User,
        verb: &str,
        subresource: &str,
    ) -> Result<bool> {
        let spec = json!({
            "user": user.name,
            "groups": user.groups,
            "uid": user.uid,
            "extra": user.extra,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource,
                "name": self.node_name,
            },
        });
        let question = spec.to_string();
        let (id, now_ms) = (key(&[question.as_bytes()]), self.now_ms());
        if let Some(answer) = reviews.answers.get(&id, now_ms) {
            return Ok(answer);
        }
        let review: AccessReview =
            ask(kubelet, "/apis/authorization.k8s.io/v1/subjectaccessreviews", "SubjectAccessReview", &spec)
                .await?;
        let allowed = review.status.allowed;
        let ttl = if allowed { reviews.allowed_ttl } else { reviews.denied_ttl };
        if question.len() <= QUESTION_BYTES_MAX {
            reviews.answers.put(id, allowed, now_ms.saturating_add(millis(ttl)));
        }
        Ok(allowed)
    }
}

async fn review_token(
    kubelet: &Kubelet,
    tokens: &Tokens,
    token: &str,
    now_ms: i64,
) -> Result<Option<Arc<User>>> {
    let id = key(&[token.as_bytes()]);
    if let Some(answer) = tokens.answers.get(&id, now_ms) {
        return Ok(answer);
    }
    let review: TokenReview = ask(
        kubelet,
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "TokenReview",
        &json!({ "token": token }),
    )
    .await?;
    if !review.status.authenticated && !review.status.error.is_empty() {
        tracing::debug!(error = review.status.error, "a bearer token of a request to the kubelet's API");
    }
    let user = review.status.authenticated.then(|| {
        let UserInfo { username: name, uid, mut groups, extra } = review.status.user;
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Arc::new(User { name, uid, groups, extra })
    });
    tokens.answers.put(id, user.clone(), now_ms.saturating_add(millis(tokens.ttl)));
    Ok(user)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Puts a review to the API server; what may pass by itself is tried again.
async fn ask<T: serde::de::DeserializeOwned>(
    kubelet: &Kubelet,
    path: &str,
    kind: &str,
    spec: &Value,
) -> Result<T> {
    let group = path.trim_start_matches("/apis/").rsplit_once('/').map_or(path, |(group, _)| group);
    let review = json!({ "apiVersion": group, "kind": kind, "spec": spec });
    let mut wait = FIRST_WAIT;
    let mut attempt = 1;
    loop {
        match kubelet.api.create::<T>(path, &review).await {
            Ok(answer) => return Ok(answer),
            Err(error) if attempt == ATTEMPTS || !passes(&error) => return Err(error),
            Err(_) => {
                tokio::time::sleep(wait).await;
                wait = wait * 3 / 2;
                attempt += 1;
            }
        }
    }
}

/// Whether an error may be gone a moment later.
fn passes(error: &Error) -> bool {
    match error.status_code() {
        None => matches!(error, Error::Api { .. }),
        Some(code) => matches!(code, 429 | 500 | 502..=504),
    }
}

/// The bearer token of a request.
fn token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let mut words = value.trim().splitn(3, ' ');
        let is_bearer = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        if let Some(token) = words.next().filter(|token| is_bearer && !token.is_empty()) {
            return Some(token.to_owned());
        }
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let hidden = protocols
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix(BEARER_PROTOCOL))?;
    let bytes = URL_SAFE_NO_PAD.decode(hidden.trim_end_matches('=')).ok()?;
    String::from_utf8(bytes).ok().filter(|token| !token.is_empty())
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// As which subresources of the node a path may be allowed (KEP-2862).
pub(super) fn subresources(path: &str) -> &'static [&'static str] {
    const FINE: &[(&str, &[&str])] = &[
        ("/pods", &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/configz", &["configz", "proxy"]),
        ("/stats", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/logs", &["log"]),
        ("/checkpoint", &["checkpoint"]),
        ("/statusz", &["statusz"]),
        ("/flagz", &["configz"]),
    ];
    FINE.iter()
        .find(|(root, _)| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .map_or(&["proxy"], |(_, subresources)| subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources() {
        for (path, want) in [
            ("/pods", &["pods", "proxy"][..]),
            ("/pods/", &["pods", "proxy"]),
            ("/podsx", &["proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz/syncloop", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/flagz", &["configz"]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/logs/pods/x", &["log"]),
            ("/checkpoint/a/b/c", &["checkpoint"]),
            ("/exec/a/b/c", &["proxy"]),
            ("/debug/pprof/", &["proxy"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(subresources(path), want, "{path}");
        }
    }

    #[test]
    fn tokens_stand_in_two_headers() {
        let with = |name: header::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            token(&headers)
        };
        for (value, want) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc", None),
            ("BEARER abc def", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
        ] {
            assert_eq!(with(header::AUTHORIZATION, value).as_deref(), want, "{value}");
        }
        let hidden = format!("v4.channel.k8s.io, {BEARER_PROTOCOL}YWJj");
        assert_eq!(with(header::SEC_WEBSOCKET_PROTOCOL, &hidden).as_deref(), Some("abc"));
        assert_eq!(with(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io"), None);
    }
}
