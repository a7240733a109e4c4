//! The one thread that writes. It takes all transactions that are waiting, checks their preconditions in
//! order, gives out revisions, appends them as one frame with one sync, publishes them, answers, and wakes the
//! watchers. While it waits for the disk the next batch gathers: that is the group commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tracing::{error, info, warn};

use super::checkpoint;
use super::codec::FrameWriter;
use super::log::{AppendError, Log, checkpoint_name, revision_in};
use super::queue::{Pace, Queue};
use super::recover::{DELETE, PUT, Recovered};
use crate::cache::{Batch, Cache};
use crate::disk::Disk;
use crate::engine::{Prepared, PreparedOp, Transaction};
use crate::error::CommitError;
use crate::object::{Expect, Object};
use crate::sealer::{Stored, Value};

/// The answer to a transaction.
pub(crate) type Outcome = Result<Vec<Arc<Object>>, CommitError>;

/// What the checkpoint thread and the writer tell each other.
#[derive(Default)]
struct CheckpointStatus {
    abort: AtomicBool,
    /// Length of the newest checkpoint.
    bytes: AtomicU64,
}

pub(crate) struct Writer {
    queue: Arc<Queue>,
    cache: Arc<Cache>,
    disk: Arc<dyn Disk>,
    log: Log,
    frame: FrameWriter,
    /// Log written since the last checkpoint was started.
    log_bytes: u64,
    min_checkpoint_bytes: u64,
    checkpoint: Arc<CheckpointStatus>,
    checkpointer: Option<JoinHandle<()>>,
    /// Bytes of the frame for which there was no space. It is said once, not for every write.
    refused: Option<usize>,
}

/// Whatever ends the writer (also a panic), nobody waits for it forever.
struct Farewell(Arc<Queue>, Arc<Cache>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.abandon();
        self.1.close();
    }
}

impl Writer {
    pub fn new(
        queue: Arc<Queue>,
        recovered: Recovered,
        disk: Arc<dyn Disk>,
        min_checkpoint_bytes: u64,
    ) -> Self {
        let Recovered { cache, log, log_bytes, checkpoint_bytes } = recovered;
        let checkpoint = CheckpointStatus { bytes: checkpoint_bytes.into(), ..CheckpointStatus::default() };
        Writer {
            queue,
            cache,
            disk,
            log,
            frame: FrameWriter::new(),
            log_bytes,
            min_checkpoint_bytes,
            checkpoint: Arc::new(checkpoint),
            checkpointer: None,
            refused: None,
        }
    }

    /// Runs until the queue is closed.
    pub fn run(mut self) {
        let _farewell = Farewell(self.queue.clone(), self.cache.clone());
        let mut pace = Pace::default();
        while let Some(batch) = self.queue.take(pace.gather()) {
            let (answered, began) = (batch.len(), Instant::now());
            self.commit(batch);
            pace.wrote(answered, self.queue.len(), began.elapsed());
            self.checkpoint_if_due();
        }
        // An empty frame: proof for the next start that the frame before it was complete.
        self.frame.reset(self.cache.revision() + 1);
        if !self.log.is_fresh() {
            let _ = self.log.append(self.frame.finish(), self.cache.revision() + 1);
        }
        self.checkpoint.abort.store(true, Ordering::Relaxed);
        if let Some(thread) = self.checkpointer.take() {
            let _ = thread.join();
        }
    }

    /// One group commit.
    pub fn commit(&mut self, transactions: Vec<Transaction>) {
        let mut batch = self.cache.begin();
        let first = batch.revision + 1;
        self.frame.reset(first);
        let mut outcomes = Vec::with_capacity(transactions.len());
        for Transaction { writes, reply, _place, .. } in transactions {
            let tentative = self.frame.count() > 0;
            let outcome = apply(&mut batch, &mut self.frame, writes);
            // The place in the queue is kept until the answer is given.
            outcomes.push((reply, _place, tentative || outcome.is_ok(), outcome));
        }
        let appended = match self.frame.count() {
            0 => Ok(()),
            _ => self.log.append(self.frame.finish(), first),
        };
        let mut published = None;
        let failure = match appended {
            Ok(()) => {
                if self.frame.count() > 0 {
                    let bytes = self.frame.payload_len();
                    // Something small may still find room where the disk is full for all else.
                    if self.refused.take_if(|refused| bytes >= *refused / 2).is_some() {
                        warn!("{}: there is space again, writes go on", self.log.dir().display());
                    }
                    self.log_bytes += bytes as u64;
                }
                if !batch.is_empty() {
                    published = Some(self.cache.publish(batch));
                }
                None
            }
            Err(AppendError::Full(why)) => {
                if self.refused.replace(self.frame.payload_len()).is_none() {
                    error!("the disk is full, writes are refused until space is freed on it: {why}");
                }
                Some(CommitError::Full(why))
            }
            Err(AppendError::Broken(why)) => {
                error!("the store takes no more writes: {why}");
                Some(CommitError::Io(why))
            }
        };
        for (reply, _place, tentative, outcome) in outcomes {
            // A refusal that rests on a write of this very batch falls with it.
            let _ = reply.send(match &failure {
                Some(failure) if tentative => Err(failure.clone()),
                _ => outcome,
            });
        }
        // After the answers: there may be thousands of watchers, and who writes one after the other waits.
        if let Some(published) = published {
            self.cache.tell(published);
        }
    }

    #[cfg(test)]
    pub fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }

    #[cfg(test)]
    pub fn join_checkpoint(&mut self) {
        self.checkpointer.take().into_iter().for_each(|thread| thread.join().unwrap());
    }

    /// Starts a checkpoint on a thread of its own, when enough has been logged and none is being written.
    pub fn checkpoint_if_due(&mut self) {
        let due = self.min_checkpoint_bytes.max(self.checkpoint.bytes.load(Ordering::Relaxed) / 2);
        if self.log_bytes < due || self.log.broken().is_some() {
            return;
        }
        if self.checkpointer.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let state = self.cache.state();
        let active = state.revision + 1;
        // From here on everything that the checkpoint does not show is in the new segment.
        if !self.log.is_fresh()
            && let Err(AppendError::Full(why) | AppendError::Broken(why)) = self.log.roll(active)
        {
            warn!("no checkpoint: {why}");
            return;
        }
        self.log_bytes = 0;
        let (disk, dir, status) = (self.disk.clone(), self.log.dir().to_owned(), self.checkpoint.clone());
        let work = move || {
            let path = dir.join(checkpoint_name(state.revision));
            match checkpoint::write(&*disk, &path, &state, &status.abort) {
                Ok(bytes) => {
                    info!(revision = state.revision, bytes, "checkpoint written");
                    status.bytes.store(bytes, Ordering::Relaxed);
                    remove_before(&*disk, &dir, state.revision);
                }
                Err(error) if status.abort.load(Ordering::Relaxed) => {
                    info!("checkpoint given up: {error}");
                }
                // The log holds everything, so nothing is lost; the next one comes after as much log again.
                Err(error) => warn!("{}: no checkpoint: {error}", path.display()),
            }
        };
        match std::thread::Builder::new().name("yare-checkpoint".into()).spawn(work) {
            Ok(thread) => self.checkpointer = Some(thread),
            Err(error) => warn!("no checkpoint: {error}"),
        }
    }
}

/// Removes segments and checkpoints that a checkpoint at `revision` replaces. What cannot be removed now is at
/// the next start.
fn remove_before(disk: &dyn Disk, dir: &std::path::Path, revision: u64) {
    let names = disk.list(dir).unwrap_or_else(|error| {
        warn!("{}: {error}", dir.display());
        Vec::new()
    });
    for name in names {
        let old = revision_in(&name, "log-").is_some_and(|first| first <= revision)
            || revision_in(&name, "checkpoint-").is_some_and(|shown| shown < revision);
        if old && let Err(error) = disk.remove(&dir.join(&name)) {
            warn!("{name}: {error}");
        }
    }
}

/// Checks all preconditions of a transaction, and only then applies and encodes it.
fn apply(batch: &mut Batch, frame: &mut FrameWriter, writes: Vec<Prepared>) -> Outcome {
    for write in &writes {
        check(batch, write)?;
    }
    let changes = writes.iter().filter(|w| matches!(w.op, PreparedOp::Put(..) | PreparedOp::Delete)).count();
    let mut objects = Vec::with_capacity(changes);
    let revision = batch.revision + 1;
    if changes > 0 {
        frame.add();
        frame.u32(changes as u32);
    }
    for Prepared { kind, key, op, .. } in writes {
        match op {
            PreparedOp::Check => {}
            PreparedOp::Reread { revision, value } => batch.reread(&kind, &key, revision, value),
            PreparedOp::Put(draft, attrs, sealed) => {
                let json = draft.at(revision);
                frame.u8(PUT);
                frame.block(kind.as_bytes());
                frame.block(key.as_bytes());
                let rv_at = draft.rv_at as u32;
                frame.stored(Stored::of(rv_at, &json, sealed.as_deref()));
                let value = Value { bytes: json, rv_at, attrs, sealed };
                objects.push(batch.put(revision, &kind, key.into(), value));
            }
            PreparedOp::Delete => {
                frame.u8(DELETE);
                frame.block(kind.as_bytes());
                frame.block(key.as_bytes());
                objects.extend(batch.delete(revision, &kind, &key));
            }
        }
    }
    Ok(objects)
}

fn check(batch: &Batch, write: &Prepared) -> Result<(), CommitError> {
    let current = batch.get(&write.kind, &write.key);
    let (kind, key) = (&write.kind, &write.key);
    match (write.expect, current) {
        (Expect::Absent, Some(_)) => Err(CommitError::Exists { kind: kind.clone(), key: key.clone() }),
        (Expect::Revision(revision), Some(current)) if current.revision != revision => {
            Err(CommitError::Conflict { kind: kind.clone(), key: key.clone(), current: current.clone() })
        }
        (Expect::Revision(_), None) => Err(CommitError::Missing { kind: kind.clone(), key: key.clone() }),
        (Expect::Anything, None) if matches!(write.op, PreparedOp::Delete) => {
            Err(CommitError::Missing { kind: kind.clone(), key: key.clone() })
        }
        _ => Ok(()),
    }
}
