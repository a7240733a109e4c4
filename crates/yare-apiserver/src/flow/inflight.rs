//! Requests that read and requests that write, waiting and being executed: for metrics.

use parking_lot::Mutex;

use super::{
    queueset::Nanos,
    stats::{Histogram, READ_WRITE_BOUNDS},
};

const SECOND_NS: Nanos = 1_000_000_000;

/// Whether a request changes something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `get`, `list`, `watch`
    ReadOnly,
    /// Everything else.
    Mutating,
}

impl Kind {
    /// Both, in the order of [`InFlight`].
    pub const ALL: [Self; 2] = [Self::ReadOnly, Self::Mutating];

    /// Of a verb.
    pub fn of(verb: &str) -> Self {
        if matches!(verb, "get" | "list" | "watch") { Self::ReadOnly } else { Self::Mutating }
    }

    /// The value of the metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ReadOnly => "readOnly",
            Self::Mutating => "mutating",
        }
    }
}

/// Where a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// In a queue.
    Waiting,
    /// Being executed.
    Executing,
}

impl Phase {
    /// Both, in the order of [`InFlight`].
    pub const ALL: [Self; 2] = [Self::Waiting, Self::Executing];

    /// The value of the metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Executing => "executing",
        }
    }
}

/// A count with its peak over the last second.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    count: u32,
    second: u64,
    peak: u32,
    before: u32,
    last: Nanos,
    /// Shares of the time at which it was how large a part of what is allowed.
    pub usage: Histogram<15>,
}

impl Gauge {
    fn turn(&mut self, now: Nanos, whole: u32) {
        let ratio = f64::from(self.count) / f64::from(whole.max(1));
        self.usage.observe_many(&READ_WRITE_BOUNDS, ratio, now.saturating_sub(self.last));
        self.last = self.last.max(now);
        let second = now / SECOND_NS;
        if second != self.second {
            self.before = if second == self.second + 1 { self.peak } else { self.count };
            (self.second, self.peak) = (second, self.count);
        }
    }

    /// The most there were within the last second.
    pub fn peak(&self) -> u32 {
        self.peak.max(self.before)
    }
}

/// Counts of all requests.
#[derive(Default)]
pub struct InFlight(Mutex<[[Gauge; 2]; 2]>);

impl InFlight {
    /// One more, or one less. `whole`: as many as may be.
    pub fn change(&self, kind: Kind, phase: Phase, more: bool, now: Nanos, whole: u32) {
        let gauge = &mut self.0.lock()[kind as usize][phase as usize];
        gauge.turn(now, whole);
        gauge.count = if more { gauge.count + 1 } else { gauge.count.saturating_sub(1) };
        gauge.peak = gauge.peak.max(gauge.count);
    }

    /// All counts, by kind and phase.
    pub fn read(&self, now: Nanos, wholes: [u32; 2]) -> [[Gauge; 2]; 2] {
        let mut gauges = self.0.lock();
        for kind in gauges.iter_mut() {
            for (gauge, whole) in kind.iter_mut().zip(wholes) {
                gauge.turn(now, whole);
            }
        }
        gauges.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_last_a_second() {
        let counts = InFlight::default();
        let peak = |now: Nanos| counts.read(now, [10, 10])[1][1].peak();
        for _ in 0..3 {
            counts.change(Kind::Mutating, Phase::Executing, true, 5 * SECOND_NS, 10);
        }
        for _ in 0..2 {
            counts.change(Kind::Mutating, Phase::Executing, false, 5 * SECOND_NS + 1, 10);
        }
        assert_eq!(peak(5 * SECOND_NS + 10), 3);
        assert_eq!(peak(6 * SECOND_NS), 3);
        assert_eq!(peak(7 * SECOND_NS), 1);
        let usage = counts.read(7 * SECOND_NS, [10, 10])[1][1].usage.clone();
        assert_eq!(usage.count, 7 * SECOND_NS);
    }
}
