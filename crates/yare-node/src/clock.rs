//! Wall-clock time as an argument, and its written forms.
//!
//! Waiting always uses tokio's clock; what is compared with or written into API objects uses this one.
//! A test that pauses tokio's clock hands in a wall clock that moves with it. Who waits for a moment by the wall
//! (a certificate's end) waits with [`Seams::sleep_until`], which learns of a clock that was set.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// The seams through which time and chance reach a node.
#[derive(Clone)]
pub struct Seams {
    /// The wall clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// A number in `0.0..1.0`, for jitter.
    pub random: Arc<dyn Fn() -> f64 + Send + Sync>,
    /// Counts how often somebody set the wall clock, forward or back.
    pub stepped: watch::Receiver<u64>,
}

impl Default for Seams {
    fn default() -> Self {
        Seams {
            now: Arc::new(Timestamp::now),
            random: Arc::new(|| {
                // Jitter needs spread, not secrecy: the low bits of a nanosecond clock are plenty.
                f64::from(Timestamp::now().subsec_nanosecond() % 1_000_003) / 1_000_003.0
            }),
            stepped: watch::channel(0).1,
        }
    }
}

/// The machine's clock, and word of when it is set. Must be called within a tokio runtime, whose end is the end of it.
pub fn machine_seams() -> Seams {
    let (steps, stepped) = watch::channel(0);
    tokio::spawn(async move {
        if let Err(error) = follow_steps(&steps).await {
            // Then waits end when they would have without the change.
            tracing::warn!(%error, "changes of the clock are not seen");
        }
    });
    Seams { stepped, ..Seams::default() }
}

/// A timer that ends early whenever the wall clock is set: the kernel tells, nobody compares.
struct Alarm(TimerFd);

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

async fn follow_steps(steps: &watch::Sender<u64>) -> std::io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    // In another century: it is not there to ring.
    let never = Expiration::OneShot(TimeSpec::new(i64::from(u32::MAX) * 2, 0));
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(never, flags)?;
    #[expect(
        deprecated,
        reason = "its successor is an unsafe function; Alarm keeps its descriptor open as it asks"
    )]
    let alarm = AsyncFd::new(Alarm(timer))?;
    loop {
        let mut ready = alarm.readable().await?;
        match nix::unistd::read(alarm.get_ref().0.as_fd(), &mut [0; 8]) {
            Err(Errno::ECANCELED) => steps.send_modify(|times| *times += 1),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            // It rang after all: armed again for the same moment, it would ring on.
            Ok(_) => return Ok(()),
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

    /// Waits until the wall clock shows `at`, also where the clock is set meanwhile.
    pub(crate) async fn sleep_until(&self, at: Timestamp) {
        let mut stepped = self.stepped.clone();
        loop {
            stepped.mark_unchanged();
            let left = self.until(at);
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                // Without anybody who tells, the wait is the wait.
                Ok(()) = stepped.changed() => {}
            }
        }
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
