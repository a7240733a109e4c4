//! What is counted of one authorizer in the chain, under upstream's names.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use yare_auth::Decision;

use super::{Chain, WEBHOOK};
use crate::{
    metrics::{
        text::Page,
        timing::{Timing, USUAL_S},
    },
    outbound::Failure,
};

const CONDITION_BOUNDS_S: [f64; 7] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];

/// What came of asking a webhook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Result {
    Success,
    Timeout,
    Error,
}

const RESULTS: [&str; 3] = ["success", "timeout", "error"];

impl Result {
    fn of(failure: Option<&Failure>) -> Self {
        match failure {
            None => Self::Success,
            Some(failure) if failure.timed_out || failure.code == Some(504) => Self::Timeout,
            Some(_) => Self::Error,
        }
    }
}

/// Of one authorizer.
#[derive(Default)]
pub struct LinkMetrics {
    allowed: AtomicU64,
    denied: AtomicU64,
    calls: [Timing<11>; RESULTS.len()],
    fail_open: [AtomicU64; RESULTS.len()],
    conditions: Timing<7>,
    condition_errors: AtomicU64,
    exclusions: AtomicU64,
}

impl LinkMetrics {
    pub(super) fn decided(&self, decision: &Decision) {
        match decision {
            Decision::Allow(_) => &self.allowed,
            Decision::Deny(_) => &self.denied,
            Decision::NoOpinion(_) => return,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    /// A webhook was asked.
    pub(super) fn called(&self, failure: Option<&Failure>, took: Duration) {
        self.calls[Result::of(failure) as usize].observe(&USUAL_S, took);
    }

    /// A webhook that could not be asked is passed over.
    pub(super) fn failed_open(&self, failure: &Failure) {
        self.fail_open[Result::of(Some(failure)) as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Conditions were looked at.
    pub(super) fn conditions(&self, hold: &std::result::Result<bool, String>, took: Duration) {
        self.conditions.observe(&CONDITION_BOUNDS_S, took);
        match hold {
            Ok(true) => {}
            Ok(false) => {
                self.exclusions.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.condition_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Chain {
    pub(in crate::auth) fn expose(&self, page: &mut Page) {
        let rows = || self.0.iter().map(|link| (link.row.mode, link.name.as_str(), &*link.metrics));
        let webhooks = || rows().filter(|(mode, ..)| *mode == WEBHOOK);
        let some = |count: &AtomicU64| Some(count.load(Ordering::Relaxed)).filter(|n| *n > 0);
        let name = "apiserver_authorization_decisions_total";
        page.family(name, "counter", "[ALPHA] Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision.");
        for (mode, link, metrics) in rows() {
            for (decision, count) in [("allowed", &metrics.allowed), ("denied", &metrics.denied)] {
                if let Some(count) = some(count) {
                    page.sample(name, &[("type", mode), ("name", link), ("decision", decision)], count);
                }
            }
        }
        let name = "apiserver_authorization_webhook_evaluations_total";
        page.family(name, "counter", "[ALPHA] Round-trips to authorization webhooks.");
        for (_, link, metrics) in webhooks() {
            for (result, calls) in RESULTS.iter().zip(&metrics.calls).filter(|(_, calls)| calls.count() > 0) {
                page.sample(name, &[("name", link), ("result", result)], calls.count());
            }
        }
        let name = "apiserver_authorization_webhook_duration_seconds";
        page.family(name, "histogram", "[ALPHA] Request latency in seconds.");
        for (_, link, metrics) in webhooks() {
            for (result, calls) in RESULTS.iter().zip(&metrics.calls) {
                calls.expose(page, name, &[("name", link), ("result", result)], &USUAL_S);
            }
        }
        let name = "apiserver_authorization_webhook_evaluations_fail_open_total";
        page.family(name, "counter", "[ALPHA] NoOpinion results due to webhook timeout or error.");
        for (_, link, metrics) in webhooks() {
            for (result, count) in RESULTS.iter().zip(&metrics.fail_open) {
                if let Some(count) = some(count) {
                    page.sample(name, &[("name", link), ("result", result)], count);
                }
            }
        }
        let name = "apiserver_authorization_match_condition_evaluation_seconds";
        page.family(name, "histogram", "[ALPHA] Authorization match condition evaluation time in seconds, split by authorizer type and name.");
        for (mode, link, metrics) in webhooks() {
            metrics.conditions.expose(page, name, &[("type", mode), ("name", link)], &CONDITION_BOUNDS_S);
        }
        type Count = fn(&LinkMetrics) -> &AtomicU64;
        let counters: [(&str, &str, Count); 2] = [
            (
                "apiserver_authorization_match_condition_evaluation_errors_total",
                "[ALPHA] Total number of errors when an authorization webhook encounters a match condition error split by authorizer type and name.",
                |metrics| &metrics.condition_errors,
            ),
            (
                "apiserver_authorization_match_condition_exclusions_total",
                "[ALPHA] Total number of exclusions when an authorization webhook is skipped because match conditions exclude it.",
                |metrics| &metrics.exclusions,
            ),
        ];
        for (name, help, count) in counters {
            page.family(name, "counter", help);
            for (mode, link, metrics) in webhooks() {
                if let Some(count) = some(count(metrics)) {
                    page.sample(name, &[("type", mode), ("name", link)], count);
                }
            }
        }
    }
}
