//! Transactions on their way to the writer, and how long it waits for more of them before it goes to the disk.
//!
//! A sync costs the same for one transaction as for a hundred, in the disk's time and in the processor's. Whoever
//! writes alone never waits for others. Where several write at the same time, those of the last batch are about
//! to write again: the writer lets them come, for no longer than the disk would have kept them waiting anyway.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::engine::Transaction;
use crate::error::CommitError;

/// Most transactions of one group commit.
const BATCH_TRANSACTIONS: usize = 1024;
/// A group commit takes no further transaction beyond this many bytes.
const BATCH_BYTES: usize = 8 << 20;

/// With fewer writers at a time nobody is waited for: the sync that is saved would not pay for the wait.
const GATHER_FROM: usize = 4;
/// How many times the time of a sync the writer waits at most.
const GATHER_SYNCS: u32 = 2;
/// However slow the disk, no longer than this.
const GATHER_AT_MOST: Duration = Duration::from_millis(1);

/// Transactions that wait for the writer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    transactions: VecDeque<Transaction>,
    /// The writer is not woken before there are this many.
    gathering: usize,
    closing: bool,
}

impl Queue {
    pub fn submit(&self, transaction: Transaction) {
        let mut waiting = self.waiting.lock();
        if waiting.closing {
            drop(waiting);
            let _ = transaction.reply.send(Err(CommitError::Closed));
            return;
        }
        waiting.transactions.push_back(transaction);
        let enough = waiting.transactions.len() >= waiting.gathering;
        drop(waiting);
        if enough {
            self.wake.notify_one();
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().transactions.len()
    }

    /// No more is taken in.
    pub fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_one();
    }

    /// No more is taken in, and those that wait are refused.
    pub fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closing = true;
        let left = std::mem::take(&mut waiting.transactions);
        drop(waiting);
        for transaction in left {
            let _ = transaction.reply.send(Err(CommitError::Closed));
        }
    }

    /// Waits for the next batch, and as `gather` says for more to come; `None` when the queue was closed and is
    /// empty.
    pub fn take(&self, gather: Gather) -> Option<Vec<Transaction>> {
        let mut waiting = self.waiting.lock();
        while waiting.transactions.is_empty() {
            if waiting.closing {
                return None;
            }
            self.wake.wait(&mut waiting);
        }
        if waiting.transactions.len() < gather.transactions && !gather.patience.is_zero() {
            let until = Instant::now() + gather.patience;
            waiting.gathering = gather.transactions;
            while waiting.transactions.len() < gather.transactions && !waiting.closing {
                if self.wake.wait_until(&mut waiting, until).timed_out() {
                    break;
                }
            }
            waiting.gathering = 0;
        }
        let mut bytes = 0;
        let mut batch = Vec::with_capacity(waiting.transactions.len().min(BATCH_TRANSACTIONS));
        while batch.len() < BATCH_TRANSACTIONS && bytes < BATCH_BYTES {
            let Some(transaction) = waiting.transactions.pop_front() else { break };
            bytes += transaction.bytes;
            batch.push(transaction);
        }
        Some(batch)
    }
}

/// What the writer waits for before it takes a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gather {
    /// This many transactions,
    pub transactions: usize,
    /// but no longer than this.
    pub patience: Duration,
}

/// What the last batches were like.
#[derive(Default)]
pub(crate) struct Pace {
    /// How many wrote at the same time.
    writers: usize,
    /// How long the disk took.
    took: Duration,
}

impl Pace {
    /// A batch of `answered` transactions is written, which took this long, and `waiting` others have come
    /// meanwhile.
    pub fn wrote(&mut self, answered: usize, waiting: usize, took: Duration) {
        // Who went is forgotten over a few batches: a writer that was only late is waited for again.
        self.writers = (answered + waiting).max(self.writers - self.writers.div_ceil(4));
        self.took = if self.took.is_zero() { took } else { (self.took * 7 + took) / 8 };
    }

    /// How the next batch is gathered.
    pub fn gather(&self) -> Gather {
        if self.writers < GATHER_FROM {
            return Gather::default();
        }
        Gather { transactions: self.writers, patience: (self.took * GATHER_SYNCS).min(GATHER_AT_MOST) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(3600);

    fn transaction(places: &Arc<Semaphore>) -> Transaction {
        let place = places.clone().try_acquire_owned().unwrap();
        Transaction { writes: Vec::new(), bytes: 0, reply: oneshot::channel().0, _place: place }
    }

    #[test]
    fn a_lone_writer_never_waits() {
        let mut pace = Pace::default();
        assert_eq!(pace.gather(), Gather::default());
        for _ in 0..100 {
            pace.wrote(1, 0, Duration::from_micros(200));
            assert_eq!(pace.gather(), Gather::default());
        }
    }

    #[test]
    fn many_writers_are_waited_for_and_then_forgotten() {
        let sync = Duration::from_micros(100);
        let mut pace = Pace::default();
        pace.wrote(3, 29, sync);
        assert_eq!(pace.gather(), Gather { transactions: 32, patience: sync * GATHER_SYNCS });
        // They are still there when one batch was small.
        pace.wrote(2, 1, sync);
        assert_eq!(pace.gather().transactions, 24);
        let batches = std::iter::from_fn(|| {
            pace.wrote(1, 0, sync);
            (pace.gather() != Gather::default()).then_some(())
        });
        assert!(batches.count() < 10);
    }

    #[test]
    fn a_slow_disk_is_not_waited_for_again() {
        let mut pace = Pace::default();
        pace.wrote(8, 0, Duration::from_secs(1));
        assert_eq!(pace.gather(), Gather { transactions: 8, patience: GATHER_AT_MOST });
    }

    #[test]
    fn a_batch_is_complete_when_all_are_there() {
        let places = Arc::new(Semaphore::new(10));
        let queue = Arc::new(Queue::default());
        let taken = std::thread::spawn({
            let queue = queue.clone();
            move || queue.take(Gather { transactions: 3, patience: LONG }).map(|batch| batch.len())
        });
        for _ in 0..3 {
            queue.submit(transaction(&places));
        }
        assert_eq!(taken.join().unwrap(), Some(3));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn whoever_does_not_come_is_not_waited_for() {
        let places = Arc::new(Semaphore::new(10));
        let queue = Queue::default();
        queue.submit(transaction(&places));
        let gather = Gather { transactions: 3, patience: Duration::from_millis(1) };
        assert_eq!(queue.take(gather).map(|batch| batch.len()), Some(1));
    }

    #[test]
    fn closing_ends_the_wait() {
        let places = Arc::new(Semaphore::new(10));
        let queue = Arc::new(Queue::default());
        queue.submit(transaction(&places));
        let taken = std::thread::spawn({
            let queue = queue.clone();
            move || {
                let gather = Gather { transactions: 3, patience: LONG };
                let first = queue.take(gather).map(|batch| batch.len());
                (first, queue.take(gather).is_none())
            }
        });
        queue.close();
        assert_eq!(taken.join().unwrap(), (Some(1), true));
    }
}
