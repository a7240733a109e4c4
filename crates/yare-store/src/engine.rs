//! The seam to what makes writes durable. The store is a cache (what is visible) over an engine (what is
//! durable). In: transactions with their attributes already read. Out: each answered exactly once, after its
//! outcome is durable and visible in the cache.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::CommitError;
use crate::object::{Attrs, Draft, Expect, Kind, Object};
use crate::sealer::Value;

/// Decides the order of transactions, checks their preconditions, makes them durable, gives them revisions,
/// and publishes them to the cache that it was opened with.
pub(crate) trait Engine: Send + Sync {
    /// Takes a transaction in; the answer comes through its `reply`.
    fn submit(&self, transaction: Transaction);
    /// Finishes what was submitted, refuses what comes after, and releases the files. Blocks; may be called
    /// again.
    fn close(&self);
    /// Writes the visible state to a file that an empty directory can be opened from. Blocks.
    fn backup(&self, path: &std::path::Path) -> Result<u64, CommitError>;
    /// Bytes on disk, where they are this engine's to count.
    fn disk_bytes(&self) -> Option<u64>;
}

/// What a `commit` of the store hands to the engine.
pub(crate) struct Transaction {
    pub writes: Vec<Prepared>,
    /// An upper bound of what it adds to the log.
    pub bytes: usize,
    pub reply: oneshot::Sender<Result<Vec<Arc<Object>>, CommitError>>,
    /// Its place in the queue, given back when it is answered.
    pub _place: OwnedSemaphorePermit,
}

/// A checked write.
pub(crate) struct Prepared {
    pub kind: Kind,
    pub key: String,
    pub expect: Expect,
    pub op: PreparedOp,
}

/// A checked operation.
pub(crate) enum PreparedOp {
    /// With what lies on disk in the JSON's place.
    Put(Draft, Attrs, Option<Box<[u8]>>),
    Delete,
    Check,
    /// What was read anew of an object as it lies on disk since `revision`: locked, it is open, or the other way
    /// round. In memory only, at its revision, without an event. Whoever watches the kind is told to start over.
    Reread {
        revision: u64,
        value: Value,
    },
}
