//! What flow control counts: plain numbers that are only touched under the lock of their level.

pub use yare_metrics::Histogram;

/// Bounds of upstream's `request_wait_duration_seconds` and `request_execution_seconds`.
pub const DURATION_BOUNDS_S: [f64; 13] =
    [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Bounds of `request_queue_length_after_enqueue`.
pub const LENGTH_BOUNDS: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
/// Bounds of `work_estimated_seats`.
pub const SEAT_BOUNDS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
/// Bounds of `watch_count_samples`.
pub const WATCH_BOUNDS: [f64; 6] = [0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0];
/// Bounds of `priority_level_seat_utilization`.
pub const SEAT_USE_BOUNDS: [f64; 13] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
/// Bounds of `priority_level_request_utilization`.
pub const REQUEST_USE_BOUNDS: [f64; 10] = [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0];
/// Bounds of `demand_seats`.
pub const DEMAND_BOUNDS: [f64; 12] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.8, 4.0, 6.0];
/// Bounds of `read_vs_write_current_requests`.
pub const READ_WRITE_BOUNDS: [f64; 15] =
    [0.0, 0.001, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Its level has no queues and no seats left.
    ConcurrencyLimit,
    /// Its queue is full.
    QueueFull,
    /// It waited too long, or its client went away.
    TimeOut,
}

impl Refusal {
    /// All of them, in the order of [`FlowStats::rejected`].
    pub const ALL: [Self; 3] = [Self::ConcurrencyLimit, Self::QueueFull, Self::TimeOut];

    /// The value of the metric's label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

/// What is counted for one flow schema within one level.
#[derive(Clone, Debug, Default)]
pub struct FlowStats {
    /// Requests that were executed.
    pub dispatched: u64,
    /// Requests that were refused, by [`Refusal::ALL`].
    pub rejected: [u64; 3],
    /// Requests in queues.
    pub waiting: u32,
    /// Their seats.
    pub waiting_seats: u64,
    /// Requests being executed.
    pub executing: u32,
    /// Seats that are taken.
    pub executing_seats: u64,
    /// Time in queues of requests that were refused at once, and of all others.
    pub wait_s: [Histogram<13>; 2],
    /// Time of execution: of watches (until they are under way), and of all others.
    pub execution_s: [Histogram<13>; 2],
    /// Length of the queue that a request was put into.
    pub queue_length: Histogram<8>,
    /// Seats of requests.
    pub seats: Histogram<8>,
    /// Watchers of what requests write.
    pub watchers: Histogram<6>,
    /// How often a request was at the head and did not fit.
    pub not_accommodated: u64,
}

/// Integrals of a quantity over time, for its mean and deviation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moments {
    seconds: f64,
    first: f64,
    second: f64,
    max: f64,
}

/// What [`Moments`] say of a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Its length.
    pub seconds: f64,
    /// The mean.
    pub average: f64,
    /// The standard deviation.
    pub deviation: f64,
    /// The largest value.
    pub max: f64,
}

impl Moments {
    /// The quantity was `value` for a while.
    pub fn add(&mut self, value: f64, seconds: f64) {
        self.seconds += seconds;
        self.first += value * seconds;
        self.second += value * value * seconds;
    }

    /// The quantity is `value` now.
    pub fn note(&mut self, value: f64) {
        self.max = self.max.max(value);
    }

    /// What there is to say of the time so far; starts a new stretch with `value`.
    pub fn take(&mut self, value: f64) -> Demand {
        let old = std::mem::replace(self, Self { max: value, ..Self::default() });
        if old.seconds <= 0.0 {
            return Demand { max: old.max, ..Demand::default() };
        }
        let average = old.first / old.seconds;
        let variance = (old.second / old.seconds - average * average).max(0.0);
        Demand { seconds: old.seconds, average, deviation: variance.sqrt(), max: old.max }
    }
}

/// Readings of virtual time at the last dispatch, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    /// `R` now.
    pub current: f64,
    /// `R` at the last dispatch.
    pub dispatch: f64,
    /// When the last request was due.
    pub latest: f64,
    /// Earliest and latest reading of the queues.
    pub bounds: [f64; 2],
    /// The same with work in progress taken off.
    pub discounted: [f64; 2],
}

/// Counts of all requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// In queues.
    pub waiting: u32,
    /// Running.
    pub running: u32,
    /// Seats that are taken.
    pub seats: u64,
    /// Seats that are waited for.
    pub waiting_seats: u64,
    /// Ever run.
    pub dispatched: u64,
    /// Ever refused.
    pub rejected: u64,
    /// Ever given up.
    pub cancelled: u64,
}

/// Shares of the time at which something was in use.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Seats over the limit.
    pub seats: Histogram<13>,
    /// Waiting requests over the room in all queues.
    pub waiting: Histogram<10>,
    /// Running requests over the limit.
    pub running: Histogram<10>,
    /// Seats that could be used over the limit.
    pub demand: Histogram<12>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let mut moments = Moments::default();
        moments.note(4.0);
        moments.add(4.0, 1.0);
        moments.add(0.0, 3.0);
        let demand = moments.take(2.0);
        assert_eq!(demand.average, 1.0);
        assert!((demand.deviation - 3f64.sqrt()).abs() < 1e-9);
        assert_eq!((demand.max, demand.seconds), (4.0, 4.0));
        assert_eq!(moments.take(0.0).max, 2.0);
    }
}
