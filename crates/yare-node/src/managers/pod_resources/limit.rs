//! A bucket of tokens: so many calls a second, some more at once.

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::clock::Seams;

/// See the module.
pub(super) struct Limiter {
    per_second: f64,
    burst: f64,
    seams: Seams,
    /// Tokens that were there, and when.
    level: Mutex<(f64, Timestamp)>,
}

impl Limiter {
    pub(super) fn new(per_second: f64, burst: f64, seams: Seams) -> Self {
        let now = seams.now();
        Limiter { per_second, burst, seams, level: Mutex::new((burst, now)) }
    }

    /// Takes a token; whether there was one.
    pub(super) fn allow(&self) -> bool {
        let now = self.seams.now();
        let mut level = self.level.lock();
        let (tokens, at) = *level;
        // A clock that was set back adds nothing.
        let passed = now.duration_since(at).as_secs_f64().max(0.0);
        let tokens = (tokens + passed * self.per_second).min(self.burst);
        let allowed = tokens >= 1.0;
        *level = (if allowed { tokens - 1.0 } else { tokens }, now);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn tokens_come_back_with_time() {
        let ms = Arc::new(AtomicI64::new(0));
        let clock = ms.clone();
        let seams = Seams {
            now: Arc::new(move || Timestamp::from_millisecond(clock.load(Ordering::SeqCst)).unwrap()),
            ..Seams::default()
        };
        let limiter = Limiter::new(100.0, 10.0, seams);
        let taken = |n: usize| (0..n).filter(|_| limiter.allow()).count();
        assert_eq!(taken(20), 10);
        ms.store(50, Ordering::SeqCst);
        assert_eq!(taken(20), 5);
        ms.store(10_000, Ordering::SeqCst);
        assert_eq!(taken(20), 10);
        ms.store(0, Ordering::SeqCst);
        assert_eq!(taken(20), 0);
    }
}
