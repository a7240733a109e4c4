//! How a store is set up: where it lives, how much history it keeps, and the seams (disk, clock) through
//! which a simulation drives it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::{Disk, RealDisk};
use crate::sealer::{Plain, Sealer};

/// Tells how much time has passed. A seam: simulations bring their own.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        MonotonicClock(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// How much of the past is kept for watches and reads at a revision. Whatever bound is reached first counts.
/// Bounds are applied when something is written: an idle store does not wake up to forget.
#[derive(Clone, Copy, Debug)]
pub struct HistoryBounds {
    /// Most events of one kind, so that a busy kind does not push out the history of the others.
    pub events_per_kind: usize,
    /// Most memory that history alone keeps alive, over all kinds.
    pub bytes: usize,
    /// How long an event is kept, and how old a revision may be that a list is read at. A watch may go on
    /// from an older revision where its kind has not changed since.
    pub age: Duration,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        HistoryBounds { events_per_kind: 65_536, bytes: 24 << 20, age: Duration::from_secs(300) }
    }
}

/// Everything [`crate::Store::open`] needs to know. [`Options::new`] has the defaults.
#[derive(Clone)]
pub struct Options {
    /// The directory; created with mode 0700, and the store's alone.
    pub dir: PathBuf,
    /// How much of the past is kept in memory.
    pub history: HistoryBounds,
    /// A log segment is closed when it would grow beyond this.
    pub segment_bytes: u64,
    /// How far a segment is filled with zeros ahead of what is written. A sync of blocks that were written
    /// before changes no metadata: it costs about a third less CPU and a fraction of the time.
    pub ahead_bytes: usize,
    /// A checkpoint is written when the log since the last one is larger than this and than half of that
    /// checkpoint: it bounds both the restart and how often the state is rewritten.
    pub checkpoint_bytes: u64,
    /// Most transactions that wait for the disk; further callers of `commit` wait for a place.
    pub queue: usize,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What lies on disk in the place of objects' JSON.
    pub sealer: Arc<dyn Sealer>,
}

impl Options {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Options {
            dir: dir.into(),
            history: HistoryBounds::default(),
            segment_bytes: 16 << 20,
            ahead_bytes: 256 << 10,
            checkpoint_bytes: 32 << 20,
            queue: 1024,
            disk: Arc::new(RealDisk),
            clock: Arc::new(MonotonicClock::default()),
            sealer: Arc::new(Plain),
        }
    }
}
