//! Exponential back-off between restarts and between image pulls.
//!
//! A restart waits 10 s, 20 s, … up to 5 min after the last exit; a container that ran for twice the
//! longest wait starts over. State is per pod worker, so it is bounded by the pod's containers.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::clock;

/// First wait.
const INITIAL: Duration = Duration::from_secs(10);
/// Longest wait.
const MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

/// Back-off per key (a container, an image).
#[derive(Debug, Default)]
pub(crate) struct Backoffs {
    entries: HashMap<String, Entry>,
}

impl Backoffs {
    /// When `key` may go on, if it is still held back, counting from `since` (its last end).
    pub(crate) fn held_until(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Timestamp, Duration)> {
        let entry = self.entries.get(key)?;
        if expired(since, entry.updated) {
            return None;
        }
        let until = clock::after(since, entry.wait);
        (now < until).then_some((until, entry.wait))
    }

    /// Doubles the wait of `key` at `at`, or starts over after a long quiet time.
    pub(crate) fn next(&mut self, key: &str, at: Timestamp) {
        let wait = match self.entries.get(key) {
            Some(entry) if !expired(at, entry.updated) => (entry.wait * 2).min(MAX),
            _ => INITIAL,
        };
        self.entries.insert(key.to_owned(), Entry { wait, updated: at });
    }

    /// When `key`, counted from its last failure, may be tried again.
    pub(crate) fn held_since_update(&self, key: &str, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(key)?;
        let until = clock::after(entry.updated, entry.wait);
        (now < until).then_some(until)
    }

    /// Whether `key` ever failed, as far as is remembered.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Forgets `key`.
    pub(crate) fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

fn expired(event: Timestamp, updated: Timestamp) -> bool {
    event > clock::after(updated, MAX * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_starts_over() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.held_until("c", at(0), at(0)), None);
        let mut now = 0;
        for want in [10, 20, 40, 80, 160, 300, 300] {
            backoffs.next("c", at(now));
            assert_eq!(
                backoffs.held_until("c", at(now), at(now)),
                Some((at(now + want), Duration::from_secs(want as u64)))
            );
            assert_eq!(backoffs.held_until("c", at(now), at(now + want)), None);
            now += want;
        }
        now += 601;
        assert_eq!(backoffs.held_until("c", at(now), at(now)), None);
        backoffs.next("c", at(now));
        assert_eq!(backoffs.held_since_update("c", at(now)), Some(at(now + 10)));
    }
}
