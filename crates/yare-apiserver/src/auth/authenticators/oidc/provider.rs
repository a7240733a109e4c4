//! The documents of one issuer: where its keys are, and the keys. Each is fetched once and kept; keys again when a
//! token comes that none of them made.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::sync::Mutex;
use yare_auth::{
    jws::Algorithm,
    oidc::{self, Claims, Discovery, KeySet, OidcError},
};

use super::metrics::Fetches;
use crate::{
    core::Clock,
    outbound::{Client, egress::Route},
};

/// How long one document may take.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long until an issuer that cannot be reached is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(10);
/// How often keys are fetched at most, however many tokens ask for it.
const MIN_REFRESH: Duration = Duration::from_secs(1);

/// What a token must be beside its issuer's.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub audiences: &'a [String],
    pub algorithms: &'a [Algorithm],
    /// Unix seconds.
    pub now_s: i64,
}

/// One issuer.
pub(super) struct Provider {
    /// As tokens name it.
    pub issuer: String,
    discovery_url: String,
    tls: Arc<ClientConfig>,
    /// The way to it.
    out: Option<Arc<Route>>,
    /// Where its keys are, once that is known.
    keys_at: ArcSwapOption<Client>,
    /// When that was tried last. Held while it is.
    tried: Mutex<Option<Instant>>,
    keys: ArcSwapOption<KeySet>,
    /// When they were fetched last. Held while they are.
    fetched: Mutex<Option<Instant>>,
    pub fetches: Fetches,
}

/// A client of what an issuer names. Keys that came over an open line would prove nothing.
pub(super) fn client(url: &str, tls: &Arc<ClientConfig>, out: Option<&Arc<Route>>) -> Result<Client, String> {
    if !url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
        return Err(format!("url {url:?}: must begin with https://"));
    }
    Ok(Client::of_url(url, tls)?.through(out.cloned()))
}

impl Provider {
    pub fn new(
        issuer: &str,
        discovery_url: Option<&str>,
        tls: Arc<ClientConfig>,
        out: Option<Arc<Route>>,
    ) -> Self {
        Self {
            issuer: issuer.to_owned(),
            discovery_url: discovery_url.map_or_else(|| Discovery::url(issuer), str::to_owned),
            tls,
            out,
            keys_at: ArcSwapOption::empty(),
            tried: Mutex::default(),
            keys: ArcSwapOption::empty(),
            fetched: Mutex::default(),
            fetches: Fetches::default(),
        }
    }

    /// Whether it has been reached.
    pub fn is_ready(&self) -> bool {
        self.keys_at.load().is_some()
    }

    /// Finds out where the keys are.
    pub async fn discover(&self) -> Result<(), String> {
        let text = client(&self.discovery_url, &self.tls, self.out.as_ref())?.get(None, FETCH_TIMEOUT).await;
        let found = Discovery::parse(&text.map_err(|failure| failure.message)?, &self.issuer)?;
        self.keys_at.store(Some(Arc::new(client(&found.jwks_uri, &self.tls, self.out.as_ref())?)));
        Ok(())
    }

    /// The same where nobody has done it in the background: once in a while, however often it is wanted.
    pub async fn discover_now(&self) -> Result<(), String> {
        if self.is_ready() {
            return Ok(());
        }
        let mut tried = self.tried.lock().await;
        if !self.is_ready() && tried.is_none_or(|at| at.elapsed() >= RETRY) {
            let done = self.discover().await;
            *tried = Some(Instant::now());
            done?;
        }
        if self.is_ready() {
            Ok(())
        } else {
            Err(format!("verifier not initialized for issuer: {:?}", self.issuer))
        }
    }

    /// Fetches the keys, unless somebody else did since `seen` were current.
    async fn refresh(&self, seen: Option<&Arc<KeySet>>, clock: &dyn Clock) -> Result<Arc<KeySet>, String> {
        let mut fetched = self.fetched.lock().await;
        if let Some(current) = self.keys.load_full() {
            let is_new = seen.is_none_or(|seen| !Arc::ptr_eq(seen, &current));
            if is_new || fetched.is_some_and(|at| at.elapsed() < MIN_REFRESH) {
                return Ok(current);
            }
        }
        let at = self.keys_at.load_full().ok_or("oidc: authenticator not initialized")?;
        let text = at.get(None, FETCH_TIMEOUT).await.map_err(|failure| failure.message);
        let keys = text.and_then(|text| Ok((KeySet::parse(&text)?, text)));
        let now: Timestamp = clock.now();
        self.fetches.fetched(keys.as_ref().ok().map(|(_, text)| &**text), now);
        let (keys, _) = keys?;
        let keys = Arc::new(keys);
        *fetched = Some(Instant::now());
        self.keys.store(Some(keys.clone()));
        Ok(keys)
    }

    /// The claims of a token of this issuer.
    pub async fn verify(&self, token: &str, wanted: Wanted<'_>, clock: &dyn Clock) -> Result<Claims, String> {
        let verify = |keys: &KeySet| {
            let Wanted { audiences, algorithms, now_s } = wanted;
            oidc::verify(token, &self.issuer, audiences, algorithms, keys, now_s)
        };
        let keys = match self.keys.load_full() {
            Some(keys) => keys,
            None => self.refresh(None, clock).await?,
        };
        match verify(&keys) {
            // The issuer may have new keys.
            Err(OidcError::Signature) => {
                let newer = self.refresh(Some(&keys), clock).await?;
                verify(&newer).map_err(|e| e.to_string())
            }
            other => other.map_err(|e| e.to_string()),
        }
    }
}
