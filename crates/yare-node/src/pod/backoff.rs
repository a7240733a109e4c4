//! Exponential back-off between restarts and between image pulls.
//!
//! A restart waits 10 s, 20 s, … up to 5 min (or what `crashLoopBackOff` says) after the last exit; a container that
//! ran for twice the longest wait starts over. State is per pod worker, so it is bounded by the pod's containers.
//!
//! Events come with times by the wall clock. How long ago one was is worked out once, when it is first seen, and
//! counted by a clock that nobody sets from then on: a wall clock that jumps makes no wait longer or shorter.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use yare_schema::features::Gates;

use crate::clock;
use crate::config::Settings;

/// First wait.
const INITIAL: Duration = Duration::from_secs(10);
/// Longest wait.
const MAX: Duration = Duration::from_secs(300);
/// The same with the gate `ReduceDefaultCrashLoopBackOffDecay`.
const REDUCED_INITIAL: Duration = Duration::from_secs(1);
const REDUCED_MAX: Duration = Duration::from_secs(60);

/// How long waits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waits {
    initial: Duration,
    max: Duration,
}

impl Waits {
    /// Between restarts of a container, as a configuration says.
    pub(crate) fn of_restarts(settings: &Settings, gates: &Gates) -> Self {
        let (initial, max) = match gates.is_on("ReduceDefaultCrashLoopBackOffDecay") {
            true => (REDUCED_INITIAL, REDUCED_MAX),
            false => (INITIAL, MAX),
        };
        let given = settings.crash_loop_back_off.max_container_restart_period;
        let max =
            given.filter(|_| gates.is_on("KubeletCrashLoopBackOffMax")).map_or(max, |period| period.get());
        Waits { initial: initial.min(max), max }
    }
}

impl Default for Waits {
    fn default() -> Self {
        Waits { initial: INITIAL, max: MAX }
    }
}

/// A moment by the clock that nobody sets: nanoseconds since the first one here, which may be negative.
type Moment = i128;

#[derive(Debug, Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: Moment,
}

/// Back-off per key (a container, an image).
#[derive(Debug)]
pub(crate) struct Backoffs {
    waits: Waits,
    start: Instant,
    entries: HashMap<String, Entry>,
    /// The last event of each key, and when that was.
    events: HashMap<String, (Timestamp, Moment)>,
}

impl Default for Backoffs {
    fn default() -> Self {
        Self::new(Waits::default())
    }
}

impl Backoffs {
    pub(crate) fn new(waits: Waits) -> Self {
        Backoffs { waits, start: Instant::now(), entries: HashMap::new(), events: HashMap::new() }
    }

    fn moment(&self) -> Moment {
        nanos(self.start.elapsed())
    }

    /// When an event of `key` was, seen at `now` by the wall clock. One that is to come was just now.
    pub(crate) fn saw(&mut self, key: &str, event: Timestamp, now: Timestamp) -> i128 {
        if let Some((known, moment)) = self.events.get(key)
            && *known == event
        {
            return *moment;
        }
        let age = Duration::try_from(now.duration_since(event)).unwrap_or_default();
        let moment = self.moment() - nanos(age);
        self.events.insert(key.to_owned(), (event, moment));
        moment
    }

    /// When `key` may go on, if it is still held back, counting from `since` (its last end).
    pub(crate) fn held_until(
        &mut self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Timestamp, Duration)> {
        let moment = self.saw(key, since, now);
        let entry = self.entries.get(key)?;
        if self.expired(moment, entry.updated) {
            return None;
        }
        let left = self.left(moment, entry.wait)?;
        Some((clock::after(now, left), entry.wait))
    }

    /// Doubles the wait of `key` at `at`, or starts over after a long quiet time.
    pub(crate) fn next(&mut self, key: &str, at: Timestamp) {
        let moment = match self.events.get(key) {
            Some((known, moment)) if *known == at => *moment,
            _ => self.moment(),
        };
        let Waits { initial, max } = self.waits;
        let wait = match self.entries.get(key) {
            Some(entry) if !self.expired(moment, entry.updated) => (entry.wait * 2).min(max),
            _ => initial,
        };
        self.entries.insert(key.to_owned(), Entry { wait, updated: moment });
    }

    /// When `key`, counted from its last failure, may be tried again.
    pub(crate) fn held_since_update(&self, key: &str, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(key)?;
        Some(clock::after(now, self.left(entry.updated, entry.wait)?))
    }

    /// What is left of a wait that began at a moment.
    fn left(&self, since: Moment, wait: Duration) -> Option<Duration> {
        let left = u64::try_from(since + nanos(wait) - self.moment()).ok()?;
        Some(Duration::from_nanos(left)).filter(|left| !left.is_zero())
    }

    /// Nothing is known of `key` any more.
    pub(crate) fn forget(&mut self, key: &str) {
        self.entries.remove(key);
        self.events.remove(key);
    }

    /// Whether `key` ever failed, as far as is remembered.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn expired(&self, event: Moment, updated: Moment) -> bool {
        event > updated + nanos(self.waits.max * 2)
    }
}

fn nanos(duration: Duration) -> Moment {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    async fn pass(seconds: i64) {
        tokio::time::advance(Duration::from_secs(u64::try_from(seconds).unwrap())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn doubles_to_five_minutes_and_starts_over() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.held_until("c", at(0), at(0)), None);
        let mut now = 0;
        for want in [10, 20, 40, 80, 160, 300, 300] {
            backoffs.next("c", at(now));
            assert_eq!(
                backoffs.held_until("c", at(now), at(now)),
                Some((at(now + want), Duration::from_secs(want as u64)))
            );
            pass(want).await;
            assert_eq!(backoffs.held_until("c", at(now), at(now + want)), None);
            now += want;
        }
        pass(601).await;
        now += 601;
        assert_eq!(backoffs.held_until("c", at(now), at(now)), None);
        backoffs.next("c", at(now));
        assert_eq!(backoffs.held_since_update("c", at(now)), Some(at(now + 10)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_changes_no_wait() {
        for jump in [-86_400, 86_400] {
            let mut backoffs = Backoffs::default();
            backoffs.saw("c", at(100_000), at(100_000));
            backoffs.next("c", at(100_000));
            pass(4).await;
            let now = 100_004 + jump;
            let left = Some((at(now + 6), Duration::from_secs(10)));
            assert_eq!(backoffs.held_until("c", at(100_000), at(now)), left, "{jump}");
            assert_eq!(backoffs.held_since_update("c", at(now)), Some(at(now + 6)), "{jump}");
            pass(6).await;
            assert_eq!(backoffs.held_until("c", at(100_000), at(now + 6)), None, "{jump}");
            backoffs.next("c", at(100_000));
            // The next end is before the last one, or long after it, and still ten seconds later.
            let wait = backoffs.held_until("c", at(now + 16), at(now + 16)).unwrap();
            assert_eq!(wait.1, Duration::from_secs(20), "{jump}");
        }
    }

    /// SplitMix64: what one seed leads to is always the same.
    fn random(seed: &mut u64, below: u64) -> i64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        i64::try_from((z ^ (z >> 31)) % below).unwrap()
    }

    /// A container that ends again and again while somebody sets the clock: it starts when its wait is over, to the
    /// second, and its waits grow as if nobody had.
    #[tokio::test(start_paused = true)]
    async fn whatever_happens_to_the_clock() {
        for seed in 0..200 {
            let (mut state, mut wall) = (seed, 1_000_000_000);
            let mut backoffs = Backoffs::default();
            for want in [0, 10, 20, 40, 80, 160, 300, 300] {
                let ended = at(wall);
                let mut waited = 0;
                while let Some((until, _)) = backoffs.held_until("c", ended, at(wall)) {
                    let left = until.as_second() - wall;
                    let step = 1 + random(&mut state, 60).min(left - 1);
                    pass(step).await;
                    waited += step;
                    wall += step;
                    if random(&mut state, 3) == 0 {
                        wall += random(&mut state, 200_000) - 100_000;
                    }
                }
                assert_eq!(waited, want, "seed {seed}");
                backoffs.next("c", ended);
                // It runs for a while, and the clock may be set meanwhile.
                let ran = random(&mut state, 30);
                pass(ran).await;
                wall += ran + random(&mut state, 2) * (random(&mut state, 200_000) - 100_000);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_was_long_ago_waits_no_more() {
        let mut backoffs = Backoffs::default();
        backoffs.saw("c", at(0), at(15));
        backoffs.next("c", at(0));
        assert_eq!(backoffs.held_until("c", at(0), at(15)), None);
        backoffs.next("c", at(0));
        assert_eq!(backoffs.held_until("c", at(0), at(15)), Some((at(20), Duration::from_secs(20))));
    }

    #[test]
    fn waits_of_a_configuration() {
        let gates = "featureGates: {ReduceDefaultCrashLoopBackOffDecay: true}";
        let off = "featureGates: {KubeletCrashLoopBackOffMax: false";
        for (yaml, initial_s, max_s) in [
            ("{}".to_owned(), 10, 300),
            ("crashLoopBackOff: {maxContainerRestartPeriod: 60s}".into(), 10, 60),
            ("crashLoopBackOff: {maxContainerRestartPeriod: 2s}".into(), 2, 2),
            (format!("{gates}\ncrashLoopBackOff: {{maxContainerRestartPeriod: 90s}}"), 1, 90),
            (format!("{off}, ReduceDefaultCrashLoopBackOffDecay: true}}"), 1, 60),
            (format!("{off}}}"), 10, 300),
        ] {
            let configuration = Sources { inline: vec![yaml.clone()], ..Sources::default() }.load().unwrap();
            let waits = Waits::of_restarts(configuration.settings(), configuration.gates());
            let expect = Waits { initial: Duration::from_secs(initial_s), max: Duration::from_secs(max_s) };
            assert_eq!(waits, expect, "{yaml}");
        }
    }
}
