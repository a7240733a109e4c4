//! The store as its users see it: a cache that answers reads and watches, over an engine that makes
//! transactions durable. In: transactions. Out: objects, snapshots, watchers.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::cache::Cache;
use crate::embedded::Embedded;
use crate::engine::{Engine, Prepared, PreparedOp, Transaction};
use crate::error::{CommitError, OpenError, SnapshotError};
use crate::object::{Expect, Indexer, Kind, Object, Op, Write};
use crate::options::Options;
use crate::sealer::{Restorer, Sealer, Value, open};
use crate::snapshot::Snapshot;
use crate::watch::Watcher;

/// Most writes of one transaction.
pub const MAX_WRITES: usize = 4096;
/// Longest kind, in bytes.
pub const MAX_KIND_BYTES: usize = 512;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Largest object, in bytes. The API takes requests up to 3 MiB; managed fields and defaults add to that.
pub const MAX_OBJECT_BYTES: usize = 8 << 20;
/// Largest transaction, in bytes.
pub const MAX_TRANSACTION_BYTES: usize = 32 << 20;

/// The revisioned store. Cloning it is cheap; all clones are the same store. When the last clone is dropped
/// the store is closed (which waits for the write in progress).
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Arc<Cache>,
    engine: Box<dyn Engine>,
    indexer: Arc<dyn Indexer>,
    sealer: Arc<dyn Sealer>,
    places: Arc<Semaphore>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.engine.close();
    }
}

impl Store {
    /// Opens the store in `options.dir`, creating it when it is not there. Everything that was ever
    /// acknowledged is visible afterwards, and the history since the last checkpoint can be watched from.
    pub async fn open(options: Options, indexer: Arc<dyn Indexer>) -> Result<Store, OpenError> {
        let dir = options.dir.clone();
        let open = move || Self::open_blocking(options, indexer);
        match tokio::task::spawn_blocking(open).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(OpenError::Io { path: dir, source: std::io::Error::other(error) }),
        }
    }

    /// [`Store::open`] for callers without an async runtime.
    pub fn open_blocking(options: Options, indexer: Arc<dyn Indexer>) -> Result<Store, OpenError> {
        let places = Arc::new(Semaphore::new(options.queue.clamp(1, Semaphore::MAX_PERMITS)));
        let sealer = options.sealer.clone();
        let (cache, engine) = Embedded::open(options, &*indexer)?;
        Ok(Store { shared: Arc::new(Shared { cache, engine: Box::new(engine), indexer, sealer, places }) })
    }

    /// Commits all writes at one new revision, or none. Returns when they are on disk and visible: the new
    /// objects in the order of the writes (for [`Op::Delete`] the object with the deletion's revision, as the
    /// watch event shows it; nothing for [`Op::Check`]). A transaction of checks only takes no revision.
    /// When the returned future is dropped early, the transaction may still commit.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Arc<Object>>, CommitError> {
        let (writes, bytes) = self.prepare(writes)?;
        self.submit(writes, bytes).await
    }

    async fn submit(&self, writes: Vec<Prepared>, bytes: usize) -> Result<Vec<Arc<Object>>, CommitError> {
        let place = self.shared.places.clone().acquire_owned().await.map_err(|_| CommitError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.shared.engine.submit(Transaction { writes, bytes, reply, _place: place });
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Checks the form of a transaction and reads its attributes, in the caller's time rather than the
    /// writer's.
    fn prepare(&self, writes: Vec<Write>) -> Result<(Vec<Prepared>, usize), CommitError> {
        let invalid = |why: String| Err(CommitError::Invalid(why));
        if writes.len() > MAX_WRITES {
            return invalid(format!("{} writes, at most {MAX_WRITES} fit one transaction", writes.len()));
        }
        let mut changed = HashSet::new();
        let alone = writes.len() == 1;
        for Write { kind, key, expect, op } in &writes {
            if kind.is_empty() || kind.len() > MAX_KIND_BYTES || key.is_empty() || key.len() > MAX_KEY_BYTES {
                return invalid(format!("kind {kind:.40?} or key {key:.80?} is empty or too long"));
            }
            if let Op::Put(draft) = op {
                if !draft.is_well_formed() {
                    return invalid(format!("{kind} {key:?}: rv_at is not at an empty resourceVersion"));
                }
                if draft.json.len() > MAX_OBJECT_BYTES {
                    let len = draft.json.len();
                    return invalid(format!(
                        "{kind} {key:?} has {len} bytes, at most {MAX_OBJECT_BYTES} fit"
                    ));
                }
            }
            if matches!((op, expect), (Op::Delete, Expect::Absent)) {
                return invalid(format!("{kind} {key:?} is deleted and expected to be absent"));
            }
            if !alone && !matches!(op, Op::Check) && !changed.insert((kind.clone(), key.clone())) {
                return invalid(format!("{kind} {key:?} is written twice"));
            }
        }
        let mut bytes = 0;
        let Shared { indexer, sealer, .. } = &*self.shared;
        let seal =
            |kind: &str, key: &str, json: &[u8]| sealer.seal(kind, key, json).map_err(CommitError::Sealing);
        let writes: Result<Vec<Prepared>, CommitError> = writes
            .into_iter()
            .map(|Write { kind, key, expect, op }| {
                bytes += 64 + kind.len() + key.len();
                let op = match op {
                    Op::Put(mut draft) => {
                        let sealed = seal(&kind, &key, &draft.json)?;
                        bytes += sealed.as_ref().map_or(draft.json.len(), |s| s.len());
                        let attrs = match draft.attrs.take() {
                            Some(attrs) => {
                                debug_assert_eq!(attrs, indexer.attrs(&kind, &draft.json), "{kind} {key:?}");
                                attrs
                            }
                            None => indexer.attrs(&kind, &draft.json),
                        };
                        PreparedOp::Put(draft, attrs, sealed)
                    }
                    Op::Delete => PreparedOp::Delete,
                    Op::Check => PreparedOp::Check,
                };
                Ok(Prepared { kind, key, expect, op })
            })
            .collect();
        let writes = writes?;
        if bytes > MAX_TRANSACTION_BYTES {
            return invalid(format!("{bytes} bytes, at most {MAX_TRANSACTION_BYTES} fit one transaction"));
        }
        Ok((writes, bytes))
    }

    /// Whether objects may be locked, now or at a revision of the past: what lay on disk of them could not be
    /// opened. Costs a load.
    pub fn is_locked(&self) -> bool {
        self.shared.cache.is_locked()
    }

    /// Why an object is locked; nothing where it could be opened now. May block.
    pub fn why_locked(&self, object: &Object) -> Option<String> {
        let sealed = object.sealed().filter(|_| object.is_locked())?;
        let Object { kind, key, rv_at, revision, .. } = object;
        open(&*self.shared.sealer, kind, key, sealed, *rv_at, *revision).err()
    }

    /// Tries to open what is locked, and returns how many objects still are. What opens is visible at the
    /// revision that it has; there is no event for it, but whoever watches its kind is told to start over.
    pub async fn unlock(&self) -> Result<usize, CommitError> {
        let seen = self.shared.cache.all(Object::is_locked);
        let total = seen.len();
        let left = total - self.reread(seen).await?;
        if left == 0 {
            self.shared.cache.set_unlocked();
        }
        Ok(left)
    }

    /// Locks what cannot be opened any more, as it would be after a restart, and returns how many objects that
    /// are. For when the sealer has changed.
    pub async fn lock_unreadable(&self) -> Result<usize, CommitError> {
        let sealer = &self.shared.sealer;
        let cache = &self.shared.cache;
        let in_doubt = cache.all(|object| {
            !object.is_locked() && (object.sealed().is_some() || !sealer.reads_plain(&object.kind))
        });
        if in_doubt.is_empty() {
            return Ok(0);
        }
        // Before: whoever reads one of them looks whether it is locked only where some may be.
        let before = cache.is_locked();
        cache.set_locked();
        let locked = self.reread(in_doubt).await?;
        if locked == 0 && !before {
            cache.set_unlocked();
        }
        Ok(locked)
    }

    /// Reads objects anew as they lie on disk, and returns how many are locked now and were not, or the other way
    /// round.
    async fn reread(&self, objects: Vec<Arc<Object>>) -> Result<usize, CommitError> {
        let store = self.clone();
        let changed = tokio::task::spawn_blocking(move || store.changed(&objects));
        let changed = changed.await.map_err(|e| CommitError::Io(e.to_string()))?;
        let total = changed.len();
        let mut changed = changed.into_iter();
        loop {
            let writes: Vec<Prepared> = changed.by_ref().take(MAX_WRITES).collect();
            if writes.is_empty() {
                return Ok(total);
            }
            self.submit(writes, 0).await?;
        }
    }

    /// Those of the objects that are locked and open now, or the other way round, as writes.
    fn changed(&self, objects: &[Arc<Object>]) -> Vec<Prepared> {
        let Shared { indexer, sealer, .. } = &*self.shared;
        let restorer = Restorer { indexer: &**indexer, sealer: &**sealer };
        let values = objects.iter().map(|object| {
            (object, restorer.restore(&object.kind, &object.key, object.revision, object.stored()))
        });
        values
            .filter(|(object, value): &(_, Value)| value.bytes.is_empty() != object.is_locked())
            .map(|(object, value)| Prepared {
                kind: object.kind.clone(),
                key: object.key.to_string(),
                expect: Expect::Anything,
                op: PreparedOp::Reread { revision: object.revision, value },
            })
            .collect()
    }

    /// The newest durable and visible revision. An empty store is at 1.
    pub fn revision(&self) -> u64 {
        self.shared.cache.revision()
    }

    /// The newest state of one object.
    pub fn get(&self, kind: &str, key: &str) -> Option<Arc<Object>> {
        self.shared.cache.get(kind, key)
    }

    /// A kind as it is now.
    pub fn snapshot(&self, kind: &str) -> Snapshot {
        self.shared.cache.snapshot(kind)
    }

    /// A kind as it was at `revision`, as far as history reaches.
    pub fn snapshot_at(&self, kind: &str, revision: u64) -> Result<Snapshot, SnapshotError> {
        self.shared.cache.snapshot_at(kind, revision)
    }

    /// Whether this store was closed, by this clone or another.
    pub fn is_closed(&self) -> bool {
        self.shared.cache.is_closed()
    }

    /// Waits until `revision` is visible; false when that took longer than `timeout` or the store was closed.
    pub async fn wait_for(&self, revision: u64, timeout: Duration) -> bool {
        self.shared.cache.wait_for(revision, timeout).await
    }

    /// A watcher of the kind's events after revision `from`. A kind that nobody has written yet can be
    /// watched.
    pub fn watch(&self, kind: &str, from: u64) -> Result<Watcher, SnapshotError> {
        self.shared.cache.watch(kind, from)
    }

    /// The kinds that have objects, and how many.
    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        self.shared.cache.kinds()
    }

    /// What the JSON of the objects of each kind comes to, in bytes.
    pub fn sizes(&self) -> Vec<(Kind, u64)> {
        self.shared.cache.sizes()
    }

    /// How many events each kind had since the store was opened, those that were read from the log included.
    pub fn events(&self) -> Vec<(Kind, u64)> {
        self.shared.cache.events()
    }

    /// Bytes on disk; nothing where the store has no disk of its own, or it cannot be read.
    pub fn disk_bytes(&self) -> Option<u64> {
        self.shared.engine.disk_bytes()
    }

    /// Forgets history before `revision`: it remains readable and can be watched from, what came before
    /// cannot.
    pub async fn compact(&self, revision: u64) {
        self.shared.cache.compact(revision);
    }

    /// The oldest revision that every kind can still be read at and watched from. A kind that is written
    /// less than others may reach further back.
    pub fn oldest(&self) -> u64 {
        self.shared.cache.oldest()
    }

    /// Writes everything that is visible now to a new file at `path` (mode 0600), from which a store starts
    /// when it is the only file in an empty directory, under its own name `checkpoint-<revision>`. Returns
    /// the revision. Writers and readers go on meanwhile.
    pub async fn backup(&self, path: &Path) -> Result<u64, CommitError> {
        let (store, path) = (self.clone(), PathBuf::from(path));
        let backup = move || store.shared.engine.backup(&path);
        tokio::task::spawn_blocking(backup).await.map_err(|e| CommitError::Io(e.to_string()))?
    }

    /// Finishes the transactions that were handed in, ends every watcher and releases the directory. Other
    /// clones can still read.
    pub async fn close(self) {
        self.shared.places.close();
        let _ = tokio::task::spawn_blocking(move || self.shared.engine.close()).await;
    }
}
