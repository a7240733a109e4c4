//! What is counted of callers and decisions, under upstream's names.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use yare_auth::cache::Usage;

use super::{Auth, Outcome};
use crate::{
    identity,
    metrics::{
        text::Page,
        timing::{DOUBLING_S, Timing},
    },
};

/// How it went to find out who a caller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// It is known.
    Success,
    /// It showed nothing that anybody knows.
    Failure,
    /// It showed something that is wrong.
    Error,
}

const ATTEMPTS: [&str; 3] = ["success", "failure", "error"];
const RESULTS: [&str; 4] = ["allowed", "denied", "no-opinion", "error"];
/// Names that stand for themselves; all others are told apart no further than this.
const USERS: [&str; 7] = [
    "admin",
    "client",
    "kube_proxy",
    "kubelet",
    "system:serviceaccount:kube-system:default",
    "email_id",
    "other",
];

/// Upper bounds of `apiserver_client_certificate_expiration_seconds`: from none to a year.
const LIFETIME_S: [f64; 14] = [
    0.0,
    1_800.0,
    3_600.0,
    7_200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];
/// Upper bounds of `node_authorizer_graph_actions_duration_seconds`.
const GRAPH_S: [f64; 12] =
    [0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048];
/// Kinds by which is decided what node agents may do, and what upstream calls them.
const NODE_GRAPH: [(&str, &str); 5] = [
    ("pods", "Pod"),
    ("persistentvolumes", "PV"),
    ("volumeattachments", "VolumeAttachment"),
    ("resourceslices", "ResourceSlice"),
    ("podcertificaterequests", "PodCertificateRequest"),
];

/// All of it.
#[derive(Default)]
pub struct AuthMetrics {
    users: [AtomicU64; USERS.len()],
    attempts: [Timing<15>; ATTEMPTS.len()],
    results: [Timing<15>; RESULTS.len()],
    /// For how long the certificates are good that clients showed.
    certificates: Timing<14>,
    /// By kind and by whether an object came or went.
    node_graph: [[Timing<12>; 2]; NODE_GRAPH.len()],
    /// Of `--authentication-config`.
    pub authentication_file: Reloads,
    /// Of `--authorization-config`.
    pub authorization_file: Reloads,
    /// Service-account tokens that were good, and those whose time to be replaced is over.
    pub tokens: Tokens,
}

/// What service-account tokens were seen.
#[derive(Default)]
pub struct Tokens {
    /// Bound ones.
    pub valid: AtomicU64,
    /// Of those, the ones that should have been replaced.
    pub stale: AtomicU64,
    /// Of the old kind.
    pub legacy: AtomicU64,
    /// Of those, the ones in Secrets that the server made by itself.
    pub automatic: AtomicU64,
    /// And in Secrets that somebody made.
    pub manual: AtomicU64,
    /// Of the automatic ones, those that are marked invalid.
    pub invalid: AtomicU64,
}

impl AuthMetrics {
    /// Counts an attempt to find out who a caller is. `user`: its name, if that was found.
    pub(super) fn attempted(&self, attempt: Attempt, user: Option<&str>, took: Duration) {
        if let Some(user) = user {
            let known = USERS[..5].iter().position(|known| *known == user);
            let other = if user.contains('@') { 5 } else { 6 };
            self.users[known.unwrap_or(other)].fetch_add(1, Ordering::Relaxed);
        }
        self.attempts[attempt as usize].observe(&DOUBLING_S, took);
    }

    /// Counts a certificate that a client showed with a request.
    pub(super) fn shown_certificate(&self, left_s: i64) {
        let left = Duration::from_secs(u64::try_from(left_s).unwrap_or(0));
        self.certificates.observe(&LIFETIME_S, left);
    }

    /// Counts a change of what node agents may do, by an object of the kind that came or went.
    pub(super) fn node_graph(&self, plural: &str, came: bool, took: Duration) {
        if let Some(at) = NODE_GRAPH.iter().position(|(known, _)| *known == plural) {
            self.node_graph[at][usize::from(!came)].observe(&GRAPH_S, took);
        }
    }

    /// Counts a decision about a request.
    pub fn decided(&self, outcome: &Outcome, took: Duration) {
        let at = match &outcome.decision {
            yare_auth::Decision::Allow(_) => 0,
            _ if !outcome.error.is_empty() => 3,
            yare_auth::Decision::Deny(_) => 1,
            yare_auth::Decision::NoOpinion(_) => 2,
        };
        self.results[at].observe(&DOUBLING_S, took);
    }
}

/// How often a file was read again, and what came of it.
#[derive(Default)]
pub struct Reloads {
    /// Reads that were taken, and those that were not: how many, and when the last one was (Unix milliseconds).
    outcomes: [(AtomicU64, AtomicI64); 2],
    hash: Mutex<String>,
}

impl Reloads {
    /// What is in force from the beginning.
    pub fn loaded(&self, text: &[u8]) {
        *self.hash.lock() = hash(text);
    }

    /// A changed file was read at `now`: `text`, if it is in force now.
    pub(super) fn reloaded(&self, text: Option<&[u8]>, now: Timestamp) {
        let (count, last_ms) = &self.outcomes[usize::from(text.is_none())];
        count.fetch_add(1, Ordering::Relaxed);
        last_ms.store(now.as_millisecond(), Ordering::Relaxed);
        if let Some(text) = text {
            self.loaded(text);
        }
    }

    fn expose(&self, page: &mut Page, what: &str) {
        let id = server_hash();
        let rows = || ["success", "failure"].into_iter().zip(&self.outcomes);
        let seen = |count: &AtomicU64| count.load(Ordering::Relaxed) > 0;
        let name = format!("apiserver_{what}_config_controller_automatic_reloads_total");
        page.family(&name, "counter", &format!("[BETA] Total number of automatic reloads of {what} configuration split by status and apiserver identity."));
        for (status, (count, _)) in rows().filter(|(_, (count, _))| seen(count)) {
            page.sample(
                &name,
                &[("status", status), ("apiserver_id_hash", id)],
                count.load(Ordering::Relaxed),
            );
        }
        let name = format!("apiserver_{what}_config_controller_automatic_reload_last_timestamp_seconds");
        page.family(&name, "gauge", &format!("[BETA] Timestamp of the last automatic reload of {what} configuration split by status and apiserver identity."));
        for (status, (_, last_ms)) in rows().filter(|(_, (count, _))| seen(count)) {
            let seconds = last_ms.load(Ordering::Relaxed) as f64 / 1e3;
            page.sample(&name, &[("status", status), ("apiserver_id_hash", id)], seconds);
        }
        let name = format!("apiserver_{what}_config_controller_last_config_info");
        page.family(&name, "gauge", &format!("[ALPHA] Information about the last applied {what} configuration with hash as label, split by apiserver identity."));
        let hash = self.hash.lock();
        if !hash.is_empty() {
            page.sample(&name, &[("apiserver_id_hash", id), ("hash", &hash)], 1);
        }
    }
}

/// What stands for a text in labels.
pub(super) fn hash(text: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// What stands for this server in labels.
pub(crate) fn server_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash(identity::id().as_bytes()))
}

impl Auth {
    /// How tokens were found that had been seen before.
    fn token_usage(&self) -> Usage {
        let signer = self.signer.as_ref().map(|signer| signer.usage());
        let webhook = self.token_webhook.as_ref().map(|webhook| webhook.usage());
        signer.unwrap_or_default() + webhook.unwrap_or_default() + self.oidc.usage()
    }

    /// Adds the metrics.
    pub fn expose(&self, page: &mut Page) {
        let metrics = &self.metrics;
        let name = "authenticated_user_requests";
        page.family(name, "counter", "[ALPHA] Counter of authenticated requests broken out by username.");
        for (user, count) in USERS.iter().zip(&metrics.users) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                page.sample(name, &[("username", user)], count);
            }
        }
        for (counter, help, timing, timing_help, rows) in [
            (
                "authentication_attempts",
                "[ALPHA] Counter of authenticated attempts.",
                "authentication_duration_seconds",
                "[ALPHA] Authentication duration in seconds broken out by result.",
                ATTEMPTS.iter().zip(&metrics.attempts).collect::<Vec<_>>(),
            ),
            (
                "authorization_attempts_total",
                "[ALPHA] Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.",
                "authorization_duration_seconds",
                "[ALPHA] Authorization duration in seconds broken out by result.",
                RESULTS.iter().zip(&metrics.results).collect(),
            ),
        ] {
            page.family(counter, "counter", help);
            for (result, timing) in rows.iter().filter(|(_, timing)| timing.count() > 0) {
                page.sample(counter, &[("result", result)], timing.count());
            }
            page.family(timing, "histogram", timing_help);
            for (result, times) in rows {
                times.expose(page, timing, &[("result", result)], &DOUBLING_S);
            }
        }
        let name = "apiserver_client_certificate_expiration_seconds";
        page.family(name, "histogram", "[ALPHA] Distribution of the remaining lifetime on the certificate used to authenticate a request.");
        metrics.certificates.expose(page, name, &[], &LIFETIME_S);
        let name = "node_authorizer_graph_actions_duration_seconds";
        page.family(name, "histogram", "[ALPHA] Histogram of duration of graph actions in node authorizer.");
        for ((_, kind), timings) in NODE_GRAPH.iter().zip(&metrics.node_graph) {
            for (action, timing) in ["Add", "Delete"].iter().zip(timings) {
                timing.expose(page, name, &[("operation", &format!("{action}{kind}"))], &GRAPH_S);
            }
        }
        let usage = self.token_usage();
        for (name, help, samples) in [
            (
                "authentication_token_cache_request_total",
                "[ALPHA] Tokens that were looked for among those that had been seen before.",
                [("hit", usage.hits), ("miss", usage.misses)],
            ),
            (
                "authentication_token_cache_fetch_total",
                "[ALPHA] Tokens that had not been seen before, by whether they were good.",
                [("error", usage.misses.saturating_sub(usage.kept)), ("ok", usage.kept)],
            ),
        ] {
            page.family(name, "counter", help);
            for (status, count) in samples {
                page.sample(name, &[("status", status)], count);
            }
        }
        for (what, reloads) in
            [("authentication", &metrics.authentication_file), ("authorization", &metrics.authorization_file)]
        {
            reloads.expose(page, what);
        }
        let tokens = &metrics.tokens;
        for (name, help, count) in [
            (
                "serviceaccount_valid_tokens_total",
                "[ALPHA] Cumulative valid projected service account tokens used",
                &tokens.valid,
            ),
            (
                "serviceaccount_stale_tokens_total",
                "[ALPHA] Cumulative stale projected service account tokens used",
                &tokens.stale,
            ),
            (
                "serviceaccount_legacy_tokens_total",
                "[ALPHA] Cumulative legacy service account tokens used",
                &tokens.legacy,
            ),
            (
                "serviceaccount_legacy_auto_token_uses_total",
                "[ALPHA] Cumulative auto-generated legacy tokens used",
                &tokens.automatic,
            ),
            (
                "serviceaccount_legacy_manual_token_uses_total",
                "[ALPHA] Cumulative manually created legacy tokens used",
                &tokens.manual,
            ),
            (
                "serviceaccount_invalid_legacy_auto_token_uses_total",
                "[ALPHA] Cumulative invalid auto-generated legacy tokens used",
                &tokens.invalid,
            ),
        ] {
            page.single(name, "counter", help, count.load(Ordering::Relaxed));
        }
        if let Some(external) = &self.external {
            external.expose(page);
        }
        self.oidc.expose(page);
        self.chain.load().expose(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let auth = Auth::new(None);
        for user in ["admin", "j@x", "system:node:n"] {
            auth.metrics.attempted(Attempt::Success, Some(user), Duration::from_millis(3));
        }
        auth.metrics.attempted(Attempt::Error, None, Duration::ZERO);
        let refused =
            Outcome { decision: yare_auth::Decision::NoOpinion(String::new()), error: String::new() };
        auth.metrics.decided(&refused, Duration::ZERO);
        auth.metrics.authorization_file.loaded(b"");
        auth.metrics.authorization_file.reloaded(None, Timestamp::from_second(7).unwrap());
        let mut page = Page::new();
        auth.expose(&mut page);
        let text = page.finish();
        let id = server_hash();
        for line in [
            "authenticated_user_requests{username=\"admin\"} 1".to_owned(),
            "authenticated_user_requests{username=\"email_id\"} 1".into(),
            "authenticated_user_requests{username=\"other\"} 1".into(),
            "authentication_attempts{result=\"success\"} 3".into(),
            "authentication_attempts{result=\"error\"} 1".into(),
            "authentication_duration_seconds_bucket{result=\"success\",le=\"0.004\"} 3".into(),
            "authorization_attempts_total{result=\"no-opinion\"} 1".into(),
            format!(
                "apiserver_authorization_config_controller_automatic_reloads_total{{status=\"failure\",apiserver_id_hash=\"{id}\"}} 1"
            ),
            format!(
                "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds{{status=\"failure\",apiserver_id_hash=\"{id}\"}} 7"
            ),
            format!(
                "apiserver_authorization_config_controller_last_config_info{{apiserver_id_hash=\"{id}\",hash=\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}} 1"
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
