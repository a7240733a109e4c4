//! How fast processor time is used, from what was measured before: the kernel only counts.

use std::collections::HashMap;

use parking_lot::Mutex;

/// A rate is of at least this long a time; who asks more often gets the last one again.
const MIN_NS: i64 = 5_000_000_000;
/// Older measurements say nothing about now.
const MAX_NS: i64 = 600_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ns: i64,
    usage_ns: u64,
    rate: Option<u64>,
}

/// What was last measured, by cgroup.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    last: Mutex<HashMap<String, Sample>>,
}

impl Rates {
    /// Nanoseconds of processor time per second; `None`: this is the first look, or the first for long.
    pub(crate) fn of(&self, group: &str, at_ns: i64, usage_ns: u64) -> Option<u64> {
        let mut all = self.last.lock();
        let fresh = Sample { at_ns, usage_ns, rate: None };
        let Some(last) = all.get_mut(group) else {
            all.insert(group.to_owned(), fresh);
            return None;
        };
        let passed = at_ns - last.at_ns;
        // Counters that fall belong to another group of the same name.
        if !(0..=MAX_NS).contains(&passed) || usage_ns < last.usage_ns {
            *last = fresh;
        } else if passed >= MIN_NS {
            let used = u128::from(usage_ns - last.usage_ns) * 1_000_000_000;
            let rate = u64::try_from(used / u128::from(passed.unsigned_abs())).unwrap_or(u64::MAX);
            *last = Sample { rate: Some(rate), ..fresh };
        }
        last.rate
    }

    /// Forgets groups that were not looked at lately.
    pub(crate) fn prune(&self, now_ns: i64) {
        self.last.lock().retain(|_, sample| now_ns - sample.at_ns <= MAX_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_looks_make_a_rate() {
        let rates = Rates::default();
        let second = 1_000_000_000;
        for (at_s, usage_ns, want) in [
            (100, 1000, None),
            (101, 2000, None),
            (110, 1000 + 5_000_000_000, Some(500_000_000)),
            (112, 1000 + 9_000_000_000, Some(500_000_000)),
            (120, 1000 + 6_000_000_000, Some(100_000_000)),
            (130, 5, None),
            (140, 1005, Some(100)),
            (5000, 2005, None),
        ] {
            assert_eq!(rates.of("a", at_s * second, usage_ns), want, "{at_s}");
        }
        rates.prune(6000 * second);
        assert!(rates.last.lock().is_empty());
    }
}
