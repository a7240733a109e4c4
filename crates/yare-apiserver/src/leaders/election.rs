//! What an election needs next: pure, from a Lease and its candidates.
//!
//! `k8s.io/kubernetes/pkg/controlplane/controller/leaderelection`.

use std::{cmp::Ordering, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use yare_kinds::{
    strategy::coordination::{OLDEST, parse_version},
    view::View as _,
};

use crate::lease::{is_expired, micro_time};

/// A Lease is looked at again after this, also when nothing is told of it: it may expire.
const AGAIN: Duration = Duration::from_secs(5);
/// How long candidates have to answer.
const ELECTION: SignedDuration = SignedDuration::from_secs(5);
/// How long a candidate counts that is not heard of.
const VALID: SignedDuration = SignedDuration::from_mins(30);
/// What a Lease says of how long it holds, until its holder says it.
const LEASE_DURATION_S: i64 = 5;

/// One step of an election.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Candidates that are to be asked whether they are there.
    pub ask: Vec<String>,
    /// What the Lease says from now on.
    pub spec: Option<Value>,
    /// When to look again.
    pub again: Option<Duration>,
    /// Why it does not go on.
    pub error: Option<String>,
}

fn time(object: &Value, path: &str) -> Option<Timestamp> {
    object.str_at(path).parse().ok()
}

/// Whether it was later than `span` ago.
fn within(at: Option<Timestamp>, span: SignedDuration, now: Timestamp) -> bool {
    at.is_some_and(|at| at.checked_add(span).unwrap_or(Timestamp::MAX) > now)
}

/// A candidate that was asked and has not answered.
pub fn is_pending(candidate: &Value) -> bool {
    let (asked, renewed) = (time(candidate, "spec.pingTime"), time(candidate, "spec.renewTime"));
    asked.is_some_and(|asked| renewed.is_none_or(|renewed| renewed < asked))
}

/// A candidate that is not heard of any more.
pub fn is_stale(candidate: &Value, now: Timestamp) -> bool {
    let renewed = time(candidate, "spec.renewTime");
    renewed.is_none_or(|at| at.checked_add(VALID).unwrap_or(Timestamp::MAX) < now)
}

type Version = (u64, u64, u64);

fn version(candidate: &Value, field: &str) -> Option<Version> {
    parse_version(candidate.at("spec").str_at(field))
}

fn binary(candidate: &Value) -> Version {
    version(candidate, "binaryVersion").unwrap_or_default()
}

/// What those of the newest program want; they must want the same.
fn strategy<'a>(candidates: &[&'a Value]) -> Result<&'a str, String> {
    let of = |candidate: &'a Value| candidate.str_at("spec.strategy");
    let name = |candidate: &'a Value| candidate.str_at("metadata.name");
    let (first, others) = candidates.split_first().ok_or("no candidates")?;
    let mut best = *first;
    for candidate in others {
        match binary(candidate).cmp(&binary(best)) {
            Ordering::Greater => best = candidate,
            Ordering::Equal if of(candidate) != of(best) => {
                return Err(format!(
                    "candidates {:?}, {:?} at same binary version but received differing strategies {}, {}",
                    name(best),
                    name(candidate),
                    of(best),
                    of(candidate)
                ));
            }
            _ => {}
        }
    }
    Ok(of(best))
}

/// The one with the oldest emulation version, then the oldest program, then the oldest object.
fn oldest<'a>(candidates: &[&'a Value]) -> Option<&'a Value> {
    let rank = |candidate: &Value| {
        let emulation = version(candidate, "emulationVersion")?;
        let binary = version(candidate, "binaryVersion")?;
        Some((emulation, binary, time(candidate, "metadata.creationTimestamp")))
    };
    let valid = candidates.iter().filter_map(|candidate| Some((rank(candidate)?, *candidate)));
    // Of equal ones the first.
    valid.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, candidate)| candidate)
}

/// Whether somebody has to be elected at all.
fn is_needed(lease: Option<&Value>, candidates: &[&Value], now: Timestamp) -> Result<bool, String> {
    let Some(lease) = lease else { return Ok(true) };
    let holder = lease.str_at("spec.holderIdentity");
    if is_expired(lease, now) || holder.is_empty() {
        return Ok(true);
    }
    // Long before candidates are forgotten they are asked to say that they are there.
    let half = VALID / 2;
    if candidates.iter().any(|c| !within(time(c, "spec.renewTime"), half, now)) {
        return Ok(true);
    }
    if strategy(candidates)? != OLDEST {
        return Ok(false);
    }
    Ok(oldest(candidates).is_some_and(|best| best.str_at("metadata.name") != holder))
}

/// What is to be done about a Lease with these candidates.
pub fn step(lease: Option<&Value>, candidates: &[Value], now: Timestamp) -> Step {
    let later = Step { again: Some(AGAIN), ..Step::default() };
    let candidates: Vec<&Value> = candidates.iter().filter(|candidate| !is_stale(candidate, now)).collect();
    if candidates.is_empty() {
        return Step::default();
    }
    match is_needed(lease, &candidates, now) {
        Ok(true) => {}
        Ok(false) => return later,
        Err(error) => return Step { error: Some(error), ..later },
    }
    let answered = |candidate: &&Value| within(time(candidate, "spec.renewTime"), ELECTION, now);
    let (mut ask, mut waits) = (Vec::new(), false);
    for candidate in candidates.iter().filter(|candidate| !answered(candidate)) {
        let asked = time(candidate, "spec.pingTime");
        if within(asked, ELECTION, now) && is_pending(candidate) {
            waits = true;
        } else if asked.is_none() || (!within(asked, ELECTION, now) && !is_pending(candidate)) {
            ask.push(candidate.str_at("metadata.name").to_owned());
        }
    }
    if waits || !ask.is_empty() {
        return Step { ask, ..later };
    }
    let there: Vec<&Value> = candidates.into_iter().filter(answered).collect();
    if there.is_empty() {
        return Step { error: Some("no available candidates".into()), ..Step::default() };
    }
    let strategy = match strategy(&there) {
        Ok(strategy) => strategy,
        Err(error) => return Step { error: Some(error), ..Step::default() },
    };
    // Another strategy is somebody else's: the Lease is there for who knows it.
    let elected =
        if strategy == OLDEST { oldest(&there).map(|best| best.str_at("metadata.name")) } else { None };
    if strategy == OLDEST && elected.is_none() {
        let error = "should not happen, could not find suitable electee";
        return Step { error: Some(error.into()), ..Step::default() };
    }
    Step { spec: spec(lease, strategy, elected, now), ..later }
}

/// What the Lease says from now on; none: what it says.
fn spec(lease: Option<&Value>, strategy: &str, elected: Option<&str>, now: Timestamp) -> Option<Value> {
    let renewed = micro_time(now);
    let Some(lease) = lease else {
        let mut spec =
            json!({ "strategy": strategy, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": renewed });
        if let Some(elected) = elected {
            spec["holderIdentity"] = elected.into();
        }
        return Some(spec);
    };
    let old = lease.at("spec");
    let mut spec = if old.is_object() { old.clone() } else { json!({}) };
    spec["strategy"] = strategy.into();
    let holder = old.str_at("holderIdentity");
    if let Some(elected) = elected.filter(|elected| *elected != holder) {
        if holder.is_empty() || is_expired(lease, now) {
            spec["holderIdentity"] = elected.into();
            spec["renewTime"] = renewed.into();
            spec["leaseDurationSeconds"] = LEASE_DURATION_S.into();
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("preferredHolder");
                spec.remove("acquireTime");
            }
        } else {
            // The holder sees it, and lets the Lease run out.
            spec["preferredHolder"] = elected.into();
        }
    }
    (spec != *old).then_some(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    /// `seconds` ago.
    fn ago(seconds: i64) -> String {
        micro_time(now() - SignedDuration::from_secs(seconds))
    }

    /// A candidate with these versions that was heard of so many seconds ago.
    fn candidate(name: &str, emulation: &str, binary: &str, heard_s: i64) -> Value {
        json!({
            "metadata": { "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "leaseName": "x", "strategy": OLDEST, "emulationVersion": emulation,
                "binaryVersion": binary, "renewTime": ago(heard_s),
            },
        })
    }

    fn asked(mut candidate: Value, seconds: i64) -> Value {
        candidate["spec"]["pingTime"] = ago(seconds).into();
        candidate
    }

    fn lease(holder: &str, renewed_s: i64) -> Value {
        json!({ "spec": {
            "holderIdentity": holder, "strategy": OLDEST, "leaseDurationSeconds": 5,
            "renewTime": ago(renewed_s), "acquireTime": ago(100), "leaseTransitions": 2,
        } })
    }

    #[test]
    fn the_oldest_leads() {
        let older_object = || {
            let mut candidate = candidate("first", "1.35.0", "1.36.0", 1);
            candidate["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z".into();
            candidate
        };
        for (candidates, elected) in [
            (vec![candidate("a", "1.36.0", "1.36.0", 1), candidate("b", "1.35.0", "1.36.0", 1)], "b"),
            (vec![candidate("a", "1.35.0", "1.36.0", 1), candidate("b", "1.35.0", "1.35.0", 1)], "b"),
            (vec![candidate("a", "1.35.0", "1.36.0", 1), older_object()], "first"),
            (vec![candidate("a", "nonsense", "1.36.0", 1), candidate("b", "1.36.0", "1.36.0", 1)], "b"),
            (vec![candidate("a", "1.9.0", "1.36.0", 1), candidate("b", "1.10.0", "1.36.0", 1)], "a"),
            // Who did not answer is not elected.
            (
                vec![asked(candidate("a", "1.1.0", "1.1.0", 60), 6), candidate("b", "1.36.0", "1.36.0", 1)],
                "b",
            ),
        ] {
            let step = step(None, &candidates, now());
            assert_eq!(step.error, None, "{candidates:?}");
            assert_eq!(step.spec.unwrap()["holderIdentity"], elected, "{candidates:?}");
        }
    }

    #[test]
    fn candidates_are_asked_first() {
        let fresh = candidate("b", "1.36.0", "1.36.0", 1);
        let ask = |candidate: Value| {
            let step = step(None, &[candidate, fresh.clone()], now());
            assert_eq!((step.spec, step.again), (None, Some(AGAIN)));
            step.ask
        };
        assert_eq!(ask(candidate("a", "1.36.0", "1.36.0", 60)), ["a"]);
        // It answered once, long ago.
        assert_eq!(ask(asked(candidate("a", "1.36.0", "1.36.0", 60), 70)), ["a"]);
        // It was just asked.
        assert!(ask(asked(candidate("a", "1.36.0", "1.36.0", 60), 2)).is_empty());
        // Nobody answered.
        let silent = asked(candidate("a", "1.36.0", "1.36.0", 60), 10);
        assert_eq!(step(None, &[silent], now()).error.as_deref(), Some("no available candidates"));
        // Nobody is there.
        assert_eq!(step(None, &[candidate("a", "1.36.0", "1.36.0", 3600)], now()), Step::default());
    }

    #[test]
    fn what_becomes_of_a_lease() {
        let (a, b) = (candidate("a", "1.36.0", "1.36.0", 1), candidate("b", "1.35.0", "1.36.0", 1));
        let of = |lease: &Value, candidates: &[&Value]| {
            let candidates: Vec<Value> = candidates.iter().map(|c| (*c).clone()).collect();
            step(Some(lease), &candidates, now())
        };
        // The best one leads: nothing is to be done.
        assert_eq!(of(&lease("b", 1), &[&a, &b]), Step { again: Some(AGAIN), ..Step::default() });
        // A better one has come.
        let spec = of(&lease("a", 1), &[&a, &b]).spec.unwrap();
        assert_eq!((&spec["preferredHolder"], &spec["holderIdentity"]), (&json!("b"), &json!("a")));
        // The holder has made room, or is gone.
        let mut left = lease("a", 60);
        left["spec"]["preferredHolder"] = "b".into();
        let spec = of(&left, &[&a, &b]).spec.unwrap();
        assert_eq!(
            spec,
            json!({
                "holderIdentity": "b", "strategy": OLDEST, "leaseDurationSeconds": 5,
                "renewTime": micro_time(now()), "leaseTransitions": 2,
            })
        );
        assert_eq!(of(&lease("", 1), &[&a]).spec.unwrap()["holderIdentity"], "a");
        // Who holds the expired Lease may go on.
        assert_eq!(of(&lease("b", 60), &[&a, &b]).spec, None);
        // An election every quarter of an hour, so that candidates are not forgotten.
        let quiet = candidate("b", "1.35.0", "1.36.0", 16 * 60);
        assert_eq!(of(&lease("b", 1), &[&a, &quiet]).ask, ["b"]);
    }

    #[test]
    fn the_newest_program_says_how() {
        let with = |name: &str, binary: &str, strategy: &str| {
            let mut candidate = candidate(name, "1.35.0", binary, 1);
            candidate["spec"]["strategy"] = strategy.into();
            candidate
        };
        let mixed = [with("a", "1.35.0", OLDEST), with("b", "1.36.0", "example.com/own")];
        let spec = step(None, &mixed, now()).spec.unwrap();
        assert_eq!((&spec["strategy"], spec.get("holderIdentity")), (&json!("example.com/own"), None));
        let differ = [with("a", "1.36.0", OLDEST), with("b", "1.36.0", "example.com/own")];
        let error = step(None, &differ, now()).error.unwrap();
        assert_eq!(
            error,
            "candidates \"a\", \"b\" at same binary version but received differing strategies OldestEmulationVersion, example.com/own"
        );
    }
}
