//! The revisioned store: transactions, snapshots, watches and a log that survives kill -9.
//!
//! One global revision counts transactions, from 1 (empty). Objects are JSON at rest, filed by kind and key.
//!
//! - [`Store::commit`]: all or nothing, with a precondition per write, acknowledged when it is on disk.
//! - [`Store::get`], [`Store::snapshot`], [`Store::snapshot_at`]: immutable views that never block writers.
//! - [`Store::watch`]: every event of a kind once and in order; a slow watcher is told that it lags.
//!
//! **Invariants.** A reader sees all of a transaction or nothing. What is visible is durable. An event reaches
//! a watcher no earlier than a read would show it. Nothing wakes up while nobody writes. History is bounded;
//! so are transactions, queues and batches.
//!
//! What lies on disk is what a [`Sealer`] makes of an object's JSON: encryption at rest goes there.
//!
//! Inside: the `cache` module is what is visible; an engine behind the `engine` trait makes transactions
//! durable, here the `embedded` log with group commit and checkpoints.

mod cache;
pub mod disk;
mod embedded;
mod engine;
mod error;
mod history;
mod object;
mod options;
mod sealer;
pub mod sim;
mod snapshot;
mod store;
mod tree;
mod watch;

pub use error::{CommitError, Lagged, OpenError, SnapshotError};
pub use object::{Attrs, Draft, Event, EventKind, Expect, Indexer, Kind, Object, Op, Write};
pub use options::{Clock, HistoryBounds, MonotonicClock, Options};
pub use sealer::{Plain, Sealer};
pub use snapshot::{Range, Snapshot};
pub use store::{MAX_KEY_BYTES, MAX_KIND_BYTES, MAX_OBJECT_BYTES, MAX_TRANSACTION_BYTES, MAX_WRITES, Store};
pub use watch::Watcher;
