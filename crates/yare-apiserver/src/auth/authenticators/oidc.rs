//! Tokens of OpenID Connect issuers. Documents and keys are fetched once and kept; keys again when a token
//! comes that none of them made.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::{sync::Mutex, task::JoinHandle};
use yare_auth::{
    User,
    cache::{self, Cache},
    config::authentication::{AuthenticationConfiguration, JwtAuthenticator},
    jws::{self, Algorithm},
    oidc::{self, Discovery, KeySet, Mapping, OidcError},
    tls,
};

use super::{Bearer, Identified, Verdict, agnostic};
use crate::{
    auth::{Auth, https::Endpoint},
    core::Core,
};

/// How long one document may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long until an issuer that cannot be reached is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often keys are fetched at most, however many tokens ask for it.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// Tokens that are remembered, and for how long.
const REMEMBERED: usize = 32 * 1024;
const REMEMBER_MS: i64 = 10_000;

/// All issuers.
pub struct Oidc {
    current: ArcSwap<Issuers>,
}

/// The issuers of one configuration.
#[derive(Default)]
pub struct Issuers {
    all: Vec<Arc<Issuer>>,
    algorithms: Vec<Algorithm>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Issuers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Issuer {
    config: JwtAuthenticator,
    mapping: Mapping,
    tls: Arc<ClientConfig>,
    /// Where its keys are, once that is known.
    keys_at: ArcSwapOption<Endpoint>,
    keys: ArcSwapOption<KeySet>,
    /// When they were fetched last. Held while they are.
    fetched: Mutex<Option<Instant>>,
    known: Cache<Arc<User>>,
}

impl Default for Oidc {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(Issuers::default()) }
    }
}

impl Oidc {
    /// From now on these are the issuers. Must be called within a tokio runtime.
    pub fn replace(&self, issuers: Issuers) {
        self.current.store(Arc::new(issuers));
    }
}

impl Issuers {
    /// The issuers of a configuration that was checked. They are looked up in the background: an issuer may
    /// well run inside this cluster. Must be called within a tokio runtime.
    pub fn start(config: &AuthenticationConfiguration, algorithms: &[Algorithm]) -> Result<Self, String> {
        let mut issuers = Self { all: Vec::new(), algorithms: algorithms.to_vec(), tasks: Vec::new() };
        for config in &config.jwt {
            let authority = Some(config.issuer.certificate_authority.as_str()).filter(|a| !a.is_empty());
            let tls = tls::outside_client(authority, None).map_err(|e| e.to_string())?;
            let issuer = Arc::new(Issuer {
                config: config.clone(),
                mapping: Mapping::new(config).map_err(|e| e.to_string())?,
                tls,
                keys_at: ArcSwapOption::empty(),
                keys: ArcSwapOption::empty(),
                fetched: Mutex::default(),
                known: Cache::new(REMEMBERED),
            });
            issuers.all.push(issuer.clone());
            issuers.tasks.push(tokio::spawn(issuer.discover()));
        }
        Ok(issuers)
    }

    /// Whether all issuers have been reached.
    pub fn are_ready(&self) -> bool {
        self.all.iter().all(|issuer| issuer.keys_at.load().is_some())
    }

    fn find(&self, token: &str) -> Option<&Arc<Issuer>> {
        if self.all.is_empty() {
            return None;
        }
        let mut claimed = jws::claimed_issuer(token)?;
        if claimed == "accounts.google.com" {
            claimed = "https://accounts.google.com".into();
        }
        self.all.iter().find(|issuer| issuer.config.issuer.url == claimed)
    }
}

impl Issuer {
    /// Finds out where the keys are, until that works.
    async fn discover(self: Arc<Self>) {
        let issuer = &self.config.issuer;
        let url = issuer
            .discovery_url
            .clone()
            .filter(|u| !u.is_empty())
            .unwrap_or_else(|| Discovery::url(&issuer.url));
        loop {
            let found = self.fetch(&url).await.and_then(|text| Discovery::parse(&text, &issuer.url));
            match found.and_then(|found| Endpoint::new(&found.jwks_uri, None, self.tls.clone())) {
                Ok(endpoint) => {
                    self.keys_at.store(Some(Arc::new(endpoint)));
                    return;
                }
                Err(why) => {
                    tracing::warn!(issuer = issuer.url, why, "cannot look the issuer of tokens up");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, String> {
        let endpoint = Endpoint::new(url, None, self.tls.clone())?;
        endpoint.get(FETCH_TIMEOUT).await.map_err(|failure| failure.message)
    }

    /// Fetches the keys, unless somebody else did since `seen` were current.
    async fn refresh(&self, seen: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, String> {
        let mut fetched = self.fetched.lock().await;
        let current = self.keys.load_full();
        if let Some(current) = current {
            let is_new = seen.is_none_or(|seen| !Arc::ptr_eq(seen, &current));
            if is_new || fetched.is_some_and(|at| at.elapsed() < MIN_REFRESH) {
                return Ok(current);
            }
        }
        let at = self.keys_at.load_full().ok_or("oidc: authenticator not initialized")?;
        let text = at.get(FETCH_TIMEOUT).await.map_err(|failure| failure.message)?;
        let keys = Arc::new(KeySet::parse(&text)?);
        *fetched = Some(Instant::now());
        self.keys.store(Some(keys.clone()));
        Ok(keys)
    }

    async fn check(&self, token: &str, algorithms: &[Algorithm], now_s: i64) -> Result<oidc::Claims, String> {
        let issuer = &self.config.issuer;
        let verify =
            |keys: &KeySet| oidc::verify(token, &issuer.url, &issuer.audiences, algorithms, keys, now_s);
        let keys = match self.keys.load_full() {
            Some(keys) => keys,
            None => self.refresh(None).await?,
        };
        match verify(&keys) {
            // The issuer may have new keys.
            Err(OidcError::Signature) => {
                let newer = self.refresh(Some(&keys)).await?;
                verify(&newer).map_err(|e| e.to_string())
            }
            other => other.map_err(|e| e.to_string()),
        }
    }
}

pub(super) fn is_on(auth: &Auth) -> bool {
    !auth.oidc.current.load().all.is_empty()
}

pub(super) fn authenticate<'a>(core: &'a Arc<Core>, bearer: Bearer<'a>) -> BoxFuture<'a, Verdict> {
    Box::pin(async move {
        let issuers = core.config.auth.oidc.current.load_full();
        let Some(issuer) = issuers.find(bearer.token) else { return Verdict::Unknown };
        let now = core.now();
        let key = cache::key(&[bearer.token.as_bytes()]);
        let user = match issuer.known.get(&key, now.as_millisecond()) {
            Some(known) => known,
            None => {
                let claims = match issuer.check(bearer.token, &issuers.algorithms, now.as_second()).await {
                    Ok(claims) => claims,
                    Err(why) => return Verdict::Wrong(why),
                };
                let user = match issuer.mapping.user(&claims) {
                    Ok(user) => Arc::new(user),
                    Err(error) => return Verdict::Wrong(error.to_string()),
                };
                issuer.known.put(key, user.clone(), now.as_millisecond() + REMEMBER_MS);
                user
            }
        };
        match agnostic(core, &bearer) {
            Some(audiences) => Verdict::Known(Identified { audiences, ..Identified::from(user) }),
            None => Verdict::Unknown,
        }
    })
}
