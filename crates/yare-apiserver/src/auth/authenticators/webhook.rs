//! A webhook that knows tokens: it is asked with TokenReviews, and its answers are kept for a while.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use yare_auth::{
    User,
    cache::{self, Cache, Usage},
    user::AUTHENTICATED,
};
use yare_kinds::view::View;

use super::{Bearer, Identified, Verdict};
use crate::{
    auth::Auth,
    core::Core,
    outbound::{Backoff, Client, kubeconfig},
};

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers that are kept.
const REMEMBERED: usize = 32 * 1024;

/// The webhook.
pub struct TokenWebhook {
    client: Client,
    /// `v1` or `v1beta1`
    version: String,
    ttl_ms: i64,
    known: Cache<Answer>,
}

/// What it said: whose the token is and for which audiences, or why it is nobody's.
#[derive(Clone)]
struct Answer {
    user: Option<Arc<User>>,
    audiences: Vec<String>,
    error: String,
}

impl TokenWebhook {
    /// The webhook of a kubeconfig file. Answers are kept for `ttl`.
    pub fn open(kubeconfig: &Path, version: &str, ttl: Duration) -> Result<Self, String> {
        if !["v1", "v1beta1"].contains(&version) {
            return Err(format!(
                "unsupported authentication webhook version {version:?}, supported versions are \"v1\", \"v1beta1\""
            ));
        }
        Ok(Self {
            client: kubeconfig::client(kubeconfig)?,
            version: version.to_owned(),
            ttl_ms: i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
            known: Cache::new(REMEMBERED),
        })
    }

    /// How its answers were used.
    pub fn usage(&self) -> Usage {
        self.known.usage()
    }

    async fn ask(&self, core: &Core, token: &str, wanted: &[String]) -> Result<Answer, String> {
        let mut spec = json!({ "token": token });
        if !wanted.is_empty() {
            spec["audiences"] = wanted.into();
        }
        let review = json!({
            "kind": "TokenReview", "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": {}, "spec": spec,
        });
        let document = Bytes::from(review.to_string());
        let mut backoff = Backoff::WEBHOOK;
        let answer = loop {
            match self.client.ask(Some(core), "timeout=30s", document.clone(), TIMEOUT).await {
                Ok(answer) => break answer,
                Err(failure) => {
                    if !failure.is_transient() || !backoff.wait(&*core.config.random).await {
                        return Err(failure.message);
                    }
                }
            }
        };
        let status = answer.at("status");
        if !status.bool_at("authenticated") {
            let error = status.str_at("error").to_owned();
            return Ok(Answer { user: None, audiences: Vec::new(), error });
        }
        // A webhook that says nothing of audiences means the API server.
        let said = status.strings("audiences");
        let good_for = |audience: &String| {
            if said.is_empty() {
                core.config.auth.audiences().contains(audience)
            } else {
                said.contains(&audience.as_str())
            }
        };
        let audiences: Vec<String> = wanted.iter().filter(|a| good_for(a)).cloned().collect();
        if audiences.is_empty() && !wanted.is_empty() {
            return Ok(Answer { user: None, audiences, error: String::new() });
        }
        Ok(Answer { user: Some(Arc::new(read_user(status.at("user")))), audiences, error: String::new() })
    }
}

fn read_user(user: &Value) -> User {
    let mut groups: Vec<String> = user.strings("groups").iter().map(|g| (*g).to_owned()).collect();
    if !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.into());
    }
    let extra: BTreeMap<String, Vec<String>> = user
        .entries("extra")
        .map(|(k, v)| (k.to_owned(), v.strings("").iter().map(|s| (*s).to_owned()).collect()))
        .collect();
    User { name: user.str_at("username").to_owned(), uid: user.str_at("uid").to_owned(), groups, extra }
}

pub(super) fn is_on(auth: &Auth) -> bool {
    auth.token_webhook.is_some()
}

pub(super) fn authenticate<'a>(core: &'a Arc<Core>, bearer: Bearer<'a>) -> BoxFuture<'a, Verdict> {
    Box::pin(async move {
        let Some(webhook) = &core.config.auth.token_webhook else { return Verdict::Unknown };
        let wanted = bearer.audiences.unwrap_or_else(|| core.config.auth.audiences());
        let mut parts = vec![bearer.token.as_bytes()];
        parts.extend(wanted.iter().map(String::as_bytes));
        let key = cache::key(&parts);
        let now_ms = core.now().as_millisecond();
        let answer = match webhook.known.get(&key, now_ms) {
            Some(known) => known,
            None => match webhook.ask(core, bearer.token, wanted).await {
                Ok(answer) => {
                    webhook.known.put(key, answer.clone(), now_ms.saturating_add(webhook.ttl_ms));
                    answer
                }
                Err(why) => {
                    tracing::warn!(why, "the token webhook failed");
                    return Verdict::Wrong(why);
                }
            },
        };
        match answer.user {
            Some(user) => {
                Verdict::Known(Identified { audiences: answer.audiences, ..Identified::from(user) })
            }
            None if answer.error.is_empty() => Verdict::Unknown,
            None => Verdict::Wrong(answer.error),
        }
    })
}
