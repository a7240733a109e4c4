//! A histogram of times that threads share without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::text::{Labels, Page};

/// Times, by upper bounds in seconds that whoever owns it knows.
#[derive(Debug)]
pub struct Timing<const N: usize> {
    buckets: [AtomicU64; N],
    count: AtomicU64,
    sum_ns: AtomicU64,
}

impl<const N: usize> Default for Timing<N> {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; N],
            count: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl<const N: usize> Timing<N> {
    /// Counts one.
    pub fn observe(&self, bounds_s: &[f64; N], took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = bounds_s.iter().position(|bound| seconds <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Their sum, in seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Adds it to a family, unless there were none.
    pub fn expose(&self, page: &mut Page, name: &str, labels: Labels<'_>, bounds_s: &[f64; N]) {
        let count = self.count();
        if count == 0 {
            return;
        }
        let buckets: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        page.histogram(name, labels, bounds_s, &buckets, count, self.sum_s());
    }
}

/// Upstream's usual bounds: 15 of them, from a millisecond on, each twice the one before.
pub const DOUBLING_S: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];
/// Prometheus' usual bounds.
pub const USUAL_S: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_buckets() {
        let timing = Timing::default();
        for ms in [5, 20, 20, 60_000] {
            timing.observe(&USUAL_S, Duration::from_millis(ms));
        }
        let mut page = Page::new();
        timing.expose(&mut page, "t", &[("a", "b")], &USUAL_S);
        Timing::default().expose(&mut page, "none", &[], &USUAL_S);
        let text = page.finish();
        for line in [
            "t_bucket{a=\"b\",le=\"0.005\"} 1",
            "t_bucket{a=\"b\",le=\"0.025\"} 3",
            "t_count{a=\"b\"} 4",
            "t_sum{a=\"b\"} 60.045",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("none"));
    }
}
