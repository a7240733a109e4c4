//! Tokens of OpenID Connect issuers: whose they are by claims in them, or, for groups, by claims that another
//! server holds.

mod metrics;
mod provider;

use std::{collections::HashMap, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::task::JoinHandle;
use yare_auth::{
    User,
    cache::{self, Cache, Usage},
    config::authentication::{AuthenticationConfiguration, JwtAuthenticator},
    jws::{self, Algorithm},
    oidc::{Claims, Mapping, Source},
    tls::{Speaks, Trust, outside_client},
};

use self::provider::{FETCH_TIMEOUT, Provider, RETRY, Wanted};
use super::{Bearer, Identified, Verdict, agnostic};
use crate::{
    auth::Auth,
    core::Core,
    outbound::egress::{Egress, Route},
};

/// Tokens that are remembered, and for how long.
const REMEMBERED: usize = 32 * 1024;
const REMEMBER_MS: i64 = 10_000;
/// Issuers of distributed claims, for each issuer that refers to them.
const MAX_ELSEWHERE: usize = 16;

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
    provider: Provider,
    audiences: Vec<String>,
    mapping: Mapping,
    tls: Arc<ClientConfig>,
    /// The way to it, and to those that it refers to.
    out: Option<Arc<Route>>,
    /// Issuers of the tokens that hold distributed claims.
    elsewhere: Mutex<HashMap<String, Arc<Provider>>>,
    known: Cache<Arc<User>>,
    latency: metrics::Shared,
}

impl Default for Oidc {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(Issuers::default()) }
    }
}

impl Oidc {
    /// From now on these are the issuers. Must be called within a tokio runtime.
    pub fn replace(&self, issuers: Issuers) {
        metrics::inherit(&issuers.all, &self.current.load().all);
        self.current.store(Arc::new(issuers));
    }

    /// How tokens were found that had been seen before.
    pub fn usage(&self) -> Usage {
        let issuers = self.current.load();
        issuers.all.iter().map(|issuer| issuer.known.usage()).fold(Usage::default(), std::ops::Add::add)
    }
}

impl Issuers {
    /// The issuers of a configuration that was checked. They are looked up in the background: an issuer may
    /// well run inside this cluster. Must be called within a tokio runtime.
    /// `egress`: the ways out, for issuers that name one.
    pub fn start(
        config: &AuthenticationConfiguration,
        algorithms: &[Algorithm],
        egress: Option<&Egress>,
    ) -> Result<Self, String> {
        let mut issuers = Self { all: Vec::new(), algorithms: algorithms.to_vec(), tasks: Vec::new() };
        for config in &config.jwt {
            let issuer = Arc::new(Issuer::new(config, egress)?);
            issuers.all.push(issuer.clone());
            issuers.tasks.push(tokio::spawn(issuer.look_up()));
        }
        Ok(issuers)
    }

    /// Whether all issuers have been reached.
    pub fn are_ready(&self) -> bool {
        self.all.iter().all(|issuer| issuer.provider.is_ready())
    }

    fn find(&self, token: &str) -> Option<&Arc<Issuer>> {
        if self.all.is_empty() {
            return None;
        }
        let claimed = claimed_issuer(token)?;
        self.all.iter().find(|issuer| issuer.provider.issuer == claimed)
    }
}

fn claimed_issuer(token: &str) -> Option<String> {
    let claimed = jws::claimed_issuer(token)?;
    Some(if claimed == "accounts.google.com" { "https://accounts.google.com".into() } else { claimed })
}

impl Issuer {
    fn new(config: &JwtAuthenticator, egress: Option<&Egress>) -> Result<Self, String> {
        let issuer = &config.issuer;
        let trust = match issuer.certificate_authority.as_str() {
            "" => Trust::System,
            authority => Trust::Authority(authority),
        };
        let tls = outside_client(trust, None, Speaks::Http1).map_err(|e| e.to_string())?;
        let out = match (issuer.egress_selector_type.as_str(), egress) {
            ("", _) => None,
            (name, None) => {
                return Err(format!("oidc: egress lookup required with egress selector type {name:?}"));
            }
            (name, Some(egress)) => egress.named(name).map_err(|why| format!("oidc: {why}"))?,
        };
        let discovery_url = issuer.discovery_url.as_deref().filter(|u| !u.is_empty());
        Ok(Self {
            provider: Provider::new(&issuer.url, discovery_url, tls.clone(), out.clone()),
            audiences: issuer.audiences.clone(),
            mapping: Mapping::new(config).map_err(|e| e.to_string())?,
            tls,
            out,
            elsewhere: Mutex::default(),
            known: Cache::new(REMEMBERED),
            latency: metrics::Shared::default(),
        })
    }

    /// Looks its documents up, until that works.
    async fn look_up(self: Arc<Self>) {
        while let Err(why) = self.provider.discover().await {
            tracing::warn!(issuer = self.provider.issuer, why, "cannot look the issuer of tokens up");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn identify(
        &self,
        core: &Core,
        token: &str,
        algorithms: &[Algorithm],
    ) -> Result<Arc<User>, String> {
        let (clock, now_s) = (&*core.config.clock, core.now().as_second());
        let wanted = Wanted { audiences: &self.audiences, algorithms, now_s };
        let verified = self.provider.verify(token, wanted, clock).await;
        let mut claims = verified.map_err(|e| match e.as_str() {
            "oidc: authenticator not initialized" => e,
            _ => format!("oidc: verify token: {e}"),
        })?;
        self.expand(core, &mut claims, wanted)
            .await
            .map_err(|e| format!("oidc: could not expand distributed claims: {e}"))?;
        self.mapping.user(&claims).map(Arc::new).map_err(|e| e.to_string())
    }

    /// Fetches the groups, where another server holds them.
    async fn expand(&self, core: &Core, claims: &mut Claims, wanted: Wanted<'_>) -> Result<(), String> {
        let claim = self.mapping.groups_claim();
        if claim.is_empty() {
            return Ok(());
        }
        let Some(source) = Source::of(claims, claim)? else { return Ok(()) };
        let fail = |e: String| format!("while getting distributed claim {claim:?}: {e}");
        let authorization =
            (!source.access_token.is_empty()).then(|| format!("Bearer {}", source.access_token));
        let client = provider::client(&source.endpoint, &self.tls, self.out.as_ref()).map_err(fail)?;
        let answer = client.get(authorization.as_deref(), FETCH_TIMEOUT).await;
        let answer = answer.map_err(|failure| fail(failure.message))?;
        let token = std::str::from_utf8(&answer)
            .map_err(|_| fail("could not decode distributed claim response".into()))?
            .trim();
        let issuer = claimed_issuer(token).ok_or_else(|| {
            format!(
                "getting untrusted issuer from endpoint {} failed for claim {claim:?}: malformed token",
                source.endpoint
            )
        })?;
        let unknown = |e: String| format!("verifying untrusted issuer {issuer} failed: {e}");
        let provider = self.elsewhere(&issuer).map_err(unknown)?;
        provider.discover_now().await.map_err(unknown)?;
        let found = provider.verify(token, wanted, &*core.config.clock).await;
        let found = found.map_err(|e| format!("verify distributed claim token: {e}"))?;
        claims.insert(claim.to_owned(), source.pick(found, claim)?);
        Ok(())
    }

    fn elsewhere(&self, issuer: &str) -> Result<Arc<Provider>, String> {
        let mut all = self.elsewhere.lock();
        if let Some(known) = all.get(issuer) {
            return Ok(known.clone());
        }
        if all.len() >= MAX_ELSEWHERE {
            return Err(format!("more than {MAX_ELSEWHERE} issuers of distributed claims"));
        }
        let provider = Arc::new(Provider::new(issuer, None, self.tls.clone(), self.out.clone()));
        all.insert(issuer.to_owned(), provider.clone());
        Ok(provider)
    }
}

pub(super) fn is_on(auth: &Auth) -> bool {
    !auth.oidc.current.load().all.is_empty()
}

pub(super) fn authenticate<'a>(core: &'a Arc<Core>, bearer: Bearer<'a>) -> BoxFuture<'a, Verdict> {
    Box::pin(async move {
        let issuers = core.config.auth.oidc.current.load_full();
        let Some(issuer) = issuers.find(bearer.token) else { return Verdict::Unknown };
        let now_ms = core.now().as_millisecond();
        let key = cache::key(&[bearer.token.as_bytes()]);
        let user = match issuer.known.get(&key, now_ms) {
            Some(known) => known,
            None => {
                let began = Instant::now();
                let found = issuer.identify(core, bearer.token, &issuers.algorithms).await;
                issuer.latency.load().observe(found.is_ok(), began.elapsed());
                match found {
                    Ok(user) => {
                        issuer.known.put(key, user.clone(), now_ms + REMEMBER_MS);
                        user
                    }
                    Err(why) => return Verdict::Wrong(why),
                }
            }
        };
        match agnostic(core, &bearer) {
            Some(audiences) => Verdict::Known(Identified { audiences, ..Identified::from(user) }),
            None => Verdict::Unknown,
        }
    })
}
