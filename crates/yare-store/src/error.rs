//! What can go wrong, one enum per operation. Each line names the object or the path and says what to do.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::object::{Kind, Object};

/// Why a store does not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has the directory.
    #[error("{} is in use by {holder}: stop it, or choose another data directory", .dir.display())]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// `"process 1234"` or `"another process"`.
        holder: String,
    },
    /// A file holds something that was not written there. Nothing was changed on disk.
    #[error("{} is corrupt at offset {offset}: {reason}; restore the directory from a snapshot", .file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where the damage starts, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The file was written by a newer version of the program.
    #[error("{} has format version {version}, this program reads up to {newest}: use a newer program", .file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version it declares.
        version: u32,
        /// The newest version that can be read.
        newest: u32,
    },
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Why a transaction did not commit. Nothing of it is visible, now or later, except after [`CommitError::Io`],
/// where a restart may find that it had reached the disk.
#[derive(Clone, Debug, Error)]
pub enum CommitError {
    /// [`crate::Expect::Absent`] did not hold.
    #[error("{kind} {key:?} already exists")]
    Exists {
        /// The kind.
        kind: Kind,
        /// The key.
        key: String,
    },
    /// The object to replace or delete is not there.
    #[error("{kind} {key:?} not found")]
    Missing {
        /// The kind.
        kind: Kind,
        /// The key.
        key: String,
    },
    /// [`crate::Expect::Revision`] did not hold.
    #[error("{kind} {key:?} was changed at revision {}", .current.revision)]
    Conflict {
        /// The kind.
        kind: Kind,
        /// The key.
        key: String,
        /// What is stored instead.
        current: Arc<Object>,
    },
    /// The transaction itself is malformed or over a bound; sending it again cannot help.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// What would lie on disk could not be made of the object ([`crate::Sealer::seal`]).
    #[error("{0}")]
    Sealing(String),
    /// No space for it; the store still reads, and writes again once there is space.
    #[error("the disk is full, free some space on it: {0}")]
    Full(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The disk failed. The store reads, but takes no more writes until it is opened again.
    #[error("the disk failed, no more writes are taken until restart: {0}")]
    Io(String),
}

/// Why a revision cannot be read or watched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// History no longer reaches back to the revision.
    #[error("revision {requested} has been compacted, the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: u64,
        /// The oldest that this kind still has.
        oldest: u64,
    },
    /// The revision has not been written yet.
    #[error("revision {requested} is in the future, the newest is {newest}")]
    Future {
        /// What was asked for.
        requested: u64,
        /// The newest visible revision.
        newest: u64,
    },
}

/// A watcher fell out of history (or the store closed): its client must list again (410 Gone).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the watcher fell behind the history that is kept")]
pub struct Lagged;
