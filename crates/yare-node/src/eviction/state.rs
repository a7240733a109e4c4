//! What a node remembers between two looks: since when thresholds are met, when conditions were last seen.
//!
//! ```text
//! observations ─► met ─► + met before and not yet won back ─► first met at ─► grace over ─► act
//!                   └─► conditions seen now ─► seen within the transition period ─► reported
//! ```
//! Pure: time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::signals::{Observations, Pressure, Starved};
use super::thresholds::{self, Threshold};

/// What lies between two looks.
#[derive(Debug, Default)]
pub(crate) struct State {
    first_met: Vec<(Threshold, Instant)>,
    last_seen: BTreeMap<Pressure, Instant>,
    /// Those that were acted upon and are not resolved.
    open: Vec<Threshold>,
}

/// What a look comes to.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Conditions to report.
    pub(crate) pressures: BTreeSet<Pressure>,
    /// Thresholds to act upon, the most urgent first.
    pub(crate) act: Vec<Threshold>,
}

impl State {
    /// Takes a look in.
    pub(crate) fn look(
        &mut self,
        configured: &[Threshold],
        observations: &Observations,
        transition: Duration,
        now: Instant,
    ) -> Outcome {
        let met = thresholds::merge(
            thresholds::met(configured, observations, false),
            thresholds::met(&self.open, observations, true),
        );
        let first_met = met
            .iter()
            .map(|t| {
                let before = self.first_met.iter().find(|(known, _)| known == t);
                (*t, before.map_or(now, |(_, at)| *at))
            })
            .collect();
        self.first_met = first_met;
        for threshold in &met {
            self.last_seen.insert(threshold.signal.row().pressure, now);
        }
        self.last_seen.retain(|_, at| now.duration_since(*at) < transition);
        // A transition period of nothing would hide what is there now.
        let seen_now = met.iter().map(|t| t.signal.row().pressure).filter(|_| !transition.is_zero());
        let pressures = self.last_seen.keys().copied().chain(seen_now).collect();
        let mut act: Vec<Threshold> = self
            .first_met
            .iter()
            .filter(|(t, since)| now.duration_since(*since) >= t.grace)
            .map(|(t, _)| *t)
            .collect();
        self.open.clone_from(&act);
        // Memory before all else: it is what makes a machine stand still.
        act.sort_by_key(|t| t.signal.row().starved != Starved::Memory);
        Outcome { pressures, act }
    }

    /// When a soft threshold that is met now has been met for long enough.
    pub(crate) fn next_grace(&self, now: Instant) -> Option<Instant> {
        self.first_met.iter().map(|(t, since)| *since + t.grace).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use yare_schema::quantity::Quantity;

    use super::*;
    use crate::eviction::signals::{Observation, Signal};
    use crate::eviction::thresholds::Amount;

    fn threshold(signal: Signal, below: i64, grace_s: u64, reclaim: i64) -> Threshold {
        let amount = |n| Amount::Quantity(Quantity::new(n, signal.format()));
        Threshold {
            signal,
            value: amount(below),
            grace: Duration::from_secs(grace_s),
            minimum_reclaim: (reclaim > 0).then(|| amount(reclaim)),
        }
    }

    /// Seconds since the start, memory and disk left, and what is reported and acted upon.
    type Step = (u64, u64, u64, &'static [Pressure], &'static [Signal]);

    #[tokio::test]
    async fn a_days_work() {
        let configured = [
            threshold(Signal::NodeFsAvailable, 10, 0, 0),
            threshold(Signal::MemoryAvailable, 20, 30, 0),
            threshold(Signal::MemoryAvailable, 10, 0, 5),
        ];
        let start = Instant::now();
        let mut state = State::default();
        use Pressure::{Disk, Memory};
        use Signal::{MemoryAvailable as M, NodeFsAvailable as D};
        let steps: &[Step] = &[
            (0, 50, 50, &[], &[]),
            // Soft threshold: reported at once, acted upon after its grace.
            (10, 15, 50, &[Memory], &[]),
            (39, 15, 50, &[Memory], &[]),
            (40, 15, 50, &[Memory], &[M]),
            // Resolved, but reported until the transition period is over.
            (50, 25, 50, &[Memory], &[]),
            // Both: memory first although the disk's threshold comes first.
            (60, 5, 5, &[Memory, Disk], &[M, D]),
            // Enough for the threshold, not for what has to be won back.
            (70, 12, 50, &[Memory, Disk], &[M]),
            (80, 21, 50, &[Memory, Disk], &[]),
            (159, 50, 50, &[Memory, Disk], &[]),
            (170, 50, 50, &[Memory], &[]),
            (181, 50, 50, &[], &[]),
        ];
        for (at, memory, disk, pressures, act) in steps {
            let observations = Observations::from([
                (M, Observation { available: *memory, capacity: 100 }),
                (D, Observation { available: *disk, capacity: 100 }),
            ]);
            let now = start + Duration::from_secs(*at);
            let got = state.look(&configured, &observations, Duration::from_secs(110), now);
            assert_eq!(got.pressures.iter().copied().collect::<Vec<_>>(), *pressures, "conditions at {at}");
            let mut signals: Vec<Signal> = got.act.iter().map(|t| t.signal).collect();
            signals.dedup();
            assert_eq!(signals, *act, "acted upon at {at}");
        }
        assert_eq!(state.next_grace(start + Duration::from_secs(181)), None);
    }

    #[tokio::test]
    async fn graces_start_anew() {
        let configured = [threshold(Signal::PidAvailable, 10, 30, 0)];
        let start = Instant::now();
        let mut state = State::default();
        let mut look = |at: u64, left: u64| {
            let observations =
                Observations::from([(Signal::PidAvailable, Observation { available: left, capacity: 100 })]);
            let now = start + Duration::from_secs(at);
            let got = state.look(&configured, &observations, Duration::from_secs(1), now);
            (got.act.len(), state.next_grace(now).map(|t| t.duration_since(start).as_secs()))
        };
        assert_eq!(look(0, 5), (0, Some(30)));
        assert_eq!(look(20, 15), (0, None));
        assert_eq!(look(25, 5), (0, Some(55)));
        assert_eq!(look(54, 5), (0, Some(55)));
        assert_eq!(look(55, 5), (1, None));
    }
}
