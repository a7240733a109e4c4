//! Wall-clock time as an argument, and its written forms.
//!
//! Waiting always uses tokio's clock; what is compared with or written into API objects uses this one.
//! A test that pauses tokio's clock hands in a wall clock that moves with it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

/// The seams through which time and chance reach a node.
#[derive(Clone)]
pub struct Seams {
    /// The wall clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// A number in `0.0..1.0`, for jitter.
    pub random: Arc<dyn Fn() -> f64 + Send + Sync>,
}

impl Default for Seams {
    fn default() -> Self {
        Seams {
            now: Arc::new(Timestamp::now),
            random: Arc::new(|| {
                // Jitter needs spread, not secrecy: the low bits of a nanosecond clock are plenty.
                f64::from(Timestamp::now().subsec_nanosecond() % 1_000_003) / 1_000_003.0
            }),
        }
    }
}

impl Seams {
    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Now, as API objects write it.
    pub(crate) fn now_text(&self) -> String {
        rfc3339(self.now())
    }

    /// How long until `at`; zero when it is past.
    pub(crate) fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or_default()
    }
}

/// `metav1.Time`: whole seconds, UTC.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// `metav1.MicroTime`.
pub(crate) fn rfc3339_micro(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// A runtime's nanoseconds as `metav1.Time`; `None` for "not yet" (0).
pub(crate) fn from_ns(ns: i64) -> Option<Timestamp> {
    if ns <= 0 { None } else { Timestamp::from_nanosecond(i128::from(ns)).ok() }
}

/// A point `later` after `at`.
pub(crate) fn after(at: Timestamp, later: Duration) -> Timestamp {
    at.checked_add(later).unwrap_or(Timestamp::MAX)
}

/// A duration as Go prints it (`1m40s`, `1.5s`, `250ms`), for messages people compare with upstream's.
pub(crate) fn go_duration(d: Duration) -> String {
    let total_ms = d.as_millis();
    if total_ms < 1000 {
        return if total_ms == 0 { "0s".to_owned() } else { format!("{total_ms}ms") };
    }
    let (minutes, ms) = (total_ms / 60_000, total_ms % 60_000);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let mut seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
    while seconds.ends_with('0') {
        seconds.pop();
    }
    let seconds = seconds.trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_go() {
        for (ms, want) in [
            (0, "0s"),
            (250, "250ms"),
            (1500, "1.5s"),
            (10_000, "10s"),
            (100_000, "1m40s"),
            (300_000, "5m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), want);
        }
    }

    #[test]
    fn times_read_like_metav1() {
        let at = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339_micro(at), "2023-11-14T22:13:20.123456Z");
    }
}
