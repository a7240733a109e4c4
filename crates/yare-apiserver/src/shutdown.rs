//! How a server ends: `/readyz` fails, requests are taken a while longer, what runs comes to its end, watches are let
//! go, connections close.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, StatusCode, header};
use tokio::time::Instant;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    body::{self, Reply},
    core::Core,
    path::RequestInfo,
    render,
    status::ApiError,
};

/// What the operator says about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How long requests are still taken after `/readyz` has begun to fail.
    pub delay: Duration,
    /// While what runs comes to its end, the server goes on to listen and tells who comes to try again later.
    /// Otherwise it listens no more.
    pub retry_after: bool,
    /// Over what time watches end; zero: all at once.
    pub watches: Duration,
}

/// Watches end this fast at least, per second.
const LEAST_RATE: f64 = 200.0;
/// What a client hears that comes too late, in seconds.
const LATE_RETRY_S: &str = "5";
/// The same where the server listens no more: another one may answer at once.
const GONE_RETRY_S: &str = "1";

/// Lets watches go one after the other, so that their clients do not all come back in the same moment.
#[derive(Default)]
pub struct Farewell {
    open: TaskTracker,
    pace: OnceLock<Pace>,
    next: AtomicU64,
}

struct Pace {
    began: Instant,
    per_s: f64,
    within: Duration,
}

impl Farewell {
    /// A watch; it is open until the token is dropped.
    pub fn open(&self) -> TaskTrackerToken {
        self.open.token()
    }

    /// Watches are to end `within` that time.
    fn begin(&self, within: Duration) {
        // Far fewer than 2^53.
        let count = self.open.len() as f64;
        let per_s = (count / within.as_secs_f64()).max(LEAST_RATE);
        self.pace.get_or_init(|| Pace { began: Instant::now(), per_s, within });
        self.open.close();
    }

    /// When the watch that asks is to end; none: now.
    pub fn turn(&self) -> Option<Instant> {
        let pace = self.pace.get().filter(|pace| !pace.within.is_zero())?;
        // As above.
        let wait = Duration::from_secs_f64(self.next.fetch_add(1, Ordering::Relaxed) as f64 / pace.per_s);
        Some(pace.began + wait.min(pace.within))
    }
}

/// Stops taking requests and comes back when those that run have ended, within their time. Then nothing listens any
/// more.
pub async fn wind_down(core: &Core) {
    let settings = core.config.shutdown;
    tokio::time::sleep(settings.delay).await;
    core.closed.store(true, Ordering::Release);
    core.farewell.begin(settings.watches);
    core.stop.cancel();
    if !settings.retry_after {
        core.hang_up.cancel();
    }
    core.requests.close();
    let requests = tokio::time::timeout(core.config.flow.request_timeout, core.requests.wait());
    let watches = tokio::time::timeout(settings.watches, core.farewell.open.wait());
    let _ = tokio::join!(requests, watches);
    core.hang_up.cancel();
}

/// What is answered to the very end.
pub fn is_exempt(info: &RequestInfo) -> bool {
    ["/healthz", "/livez", "/readyz", "/metrics"].iter().any(|probe| {
        info.path.strip_prefix(probe).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The answer to a request that comes when the server stops.
pub fn late(core: &Core) -> Reply {
    let retry_after = core.config.shutdown.retry_after;
    let mut reply = if retry_after {
        let text = "The apiserver is shutting down, please try again later.\n";
        body::text_reply(StatusCode::TOO_MANY_REQUESTS, text)
    } else {
        render::error(&ApiError::unavailable("apiserver is shutting down"))
    };
    let seconds = if retry_after { LATE_RETRY_S } else { GONE_RETRY_S };
    let headers = reply.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watches_end_one_after_the_other() {
        let now = Instant::now();
        let turns = |within_ms: u64, count: usize| {
            let farewell = Farewell::default();
            let open: Vec<_> = (0..count).map(|_| farewell.open()).collect();
            farewell.begin(Duration::from_millis(within_ms));
            let turns = open.iter().map(|_| farewell.turn().map(|at| (at - now).as_millis()));
            turns.collect::<Vec<_>>()
        };
        assert_eq!(turns(0, 2), [None, None]);
        assert_eq!(turns(10_000, 3), [Some(0), Some(5), Some(10)], "200 a second are let go at least");
        let many = turns(1000, 1000);
        assert_eq!((many[0], many[500], many[999]), (Some(0), Some(500), Some(999)));
        assert_eq!(turns(3, 3), [Some(0), Some(1), Some(2)]);
    }
}
