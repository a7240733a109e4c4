//! What is counted of issuers of tokens, under upstream's names.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{Issuer, Oidc};
use crate::{
    auth::metrics::{hash, server_hash},
    metrics::{text::Page, timing::Timing},
};

const BOUNDS_S: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const RESULTS: [&str; 2] = ["success", "failure"];

/// How long it takes to find out whose a token is that was not seen before.
#[derive(Default)]
pub struct Latency([Timing<12>; 2]);

impl Latency {
    pub(super) fn observe(&self, is_good: bool, took: Duration) {
        self.0[usize::from(!is_good)].observe(&BOUNDS_S, took);
    }
}

/// When keys were fetched, and which.
#[derive(Default)]
pub struct Fetches {
    /// Unix milliseconds of the last success and the last failure; 0: none.
    last_ms: [AtomicI64; 2],
    hash: Mutex<String>,
}

impl Fetches {
    /// `text`: the keys, unless that failed.
    pub(super) fn fetched(&self, text: Option<&[u8]>, now: Timestamp) {
        self.last_ms[usize::from(text.is_none())].store(now.as_millisecond(), Ordering::Relaxed);
        if let Some(text) = text {
            *self.hash.lock() = hash(text);
        }
    }
}

/// Latencies that a new configuration of the same issuer goes on with.
pub(super) type Shared = ArcSwap<Latency>;

/// Takes the latencies over from the issuers before.
pub(super) fn inherit(new: &[Arc<Issuer>], old: &[Arc<Issuer>]) {
    for issuer in new {
        if let Some(before) = old.iter().find(|old| old.provider.issuer == issuer.provider.issuer) {
            issuer.latency.store(before.latency.load_full());
        }
    }
}

impl Oidc {
    pub(in crate::auth) fn expose(&self, page: &mut Page) {
        let current = self.current.load();
        let all: Vec<(String, &Issuer)> =
            current.all.iter().map(|issuer| (hash(issuer.provider.issuer.as_bytes()), &**issuer)).collect();
        let id = server_hash();
        let name = "apiserver_authentication_jwt_authenticator_latency_seconds";
        page.family(name, "histogram", "[ALPHA] Latency of jwt authentication operations in seconds. This is the time spent authenticating a token for cache miss only (i.e. when the token is not found in the cache).");
        for (issuer_hash, issuer) in &all {
            for (result, timing) in RESULTS.iter().zip(&issuer.latency.load().0) {
                let labels = [("result", *result), ("jwt_issuer_hash", issuer_hash.as_str())];
                timing.expose(page, name, &labels, &BOUNDS_S);
            }
        }
        let name = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds";
        page.family(name, "gauge", "[ALPHA] Timestamp of the last successful or failed JWKS fetch split by result, api server identity and jwt issuer for the JWT authenticator.");
        for (issuer_hash, issuer) in &all {
            for (result, last_ms) in RESULTS.iter().zip(&issuer.provider.fetches.last_ms) {
                let last_ms = last_ms.load(Ordering::Relaxed);
                if last_ms > 0 {
                    let labels = [
                        ("result", *result),
                        ("jwt_issuer_hash", issuer_hash.as_str()),
                        ("apiserver_id_hash", id),
                    ];
                    page.sample(name, &labels, last_ms as f64 / 1e3);
                }
            }
        }
        let name = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info";
        page.family(name, "gauge", "[ALPHA] Information about the last JWKS fetched by the JWT authenticator with hash as label, split by api server identity and jwt issuer.");
        for (issuer_hash, issuer) in &all {
            let keys = issuer.provider.fetches.hash.lock();
            if !keys.is_empty() {
                let labels = [
                    ("jwt_issuer_hash", issuer_hash.as_str()),
                    ("apiserver_id_hash", id),
                    ("hash", keys.as_str()),
                ];
                page.sample(name, &labels, 1);
            }
        }
    }
}
