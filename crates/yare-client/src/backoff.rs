//! Exponential back-off with jitter, for reconnects and retries.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Delays that double from a minimum to a maximum, each scaled by a random factor in `[0.5, 1.0)` so
/// that many clients of one server do not return in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
    seed: u64,
}

impl Backoff {
    /// Starts at `min`; never exceeds `max`. The seed of the jitter comes from the process.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self::seeded(min, max, RandomState::new().hash_one(0u8))
    }

    /// Like [`Backoff::new`] with a given seed, so that a simulation replays.
    pub fn seeded(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, current: min, seed }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let base = self.current;
        self.current = (self.current * 2).min(self.max);
        base.mul_f64(0.5 + self.random() / 2.0)
    }

    /// Back to the minimum, after a success.
    pub fn reset(&mut self) {
        self.current = self.min;
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn random(&mut self) -> f64 {
        // SplitMix64: short, and good enough to spread delays.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_resets() {
        let mut b = Backoff::seeded(Duration::from_millis(100), Duration::from_millis(400), 7);
        for base in [100, 200, 400, 400] {
            let d = b.next_delay();
            let base = Duration::from_millis(base);
            assert!(d >= base / 2 && d < base, "{d:?} is outside of the jitter of {base:?}");
        }
        b.reset();
        assert!(b.next_delay() < Duration::from_millis(100));
    }
}
