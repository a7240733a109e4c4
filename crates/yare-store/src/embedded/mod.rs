//! The embedded engine: a segmented, checksummed log with group commit, and checkpoints, in one directory.
//!
//! `lock` keeps a second process out. `log-<revision>` are segments, named after their first revision;
//! `checkpoint-<revision>` is the whole state at a revision. Everything is readable by its owner only.

mod checkpoint;
mod codec;
mod log;
mod parallel;
mod queue;
mod recover;
#[cfg(test)]
mod simulation;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::cache::Cache;
use crate::disk::{Disk, is_full};
use crate::engine::{Engine, Transaction};
use crate::error::{CommitError, OpenError};
use crate::object::Indexer;
use crate::options::Options;

use queue::Queue;
use writer::Writer;

/// A running engine.
pub(crate) struct Embedded {
    queue: Arc<Queue>,
    cache: Arc<Cache>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Takes the directory, reads what is there, and starts the writer.
    pub fn open(options: Options, indexer: &dyn Indexer) -> Result<(Arc<Cache>, Embedded), OpenError> {
        let Options { dir, disk, .. } = &options;
        disk.create_dir(dir).map_err(|source| OpenError::Io { path: dir.clone(), source })?;
        let path = dir.join("lock");
        let lock = disk.lock(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => {
                OpenError::Locked { dir: dir.clone(), holder: source.to_string() }
            }
            _ => OpenError::Io { path, source },
        })?;
        let recovered = recover::recover(&options, indexer)?;
        let cache = recovered.cache.clone();
        let queue = Arc::new(Queue::default());
        let writer = Writer::new(queue.clone(), recovered, disk.clone(), options.checkpoint_bytes);
        let run = move || {
            writer.run();
            drop(lock);
        };
        let thread = std::thread::Builder::new()
            .name("yare-store".into())
            .spawn(run)
            .map_err(|source| OpenError::Io { path: dir.clone(), source })?;
        let disk = disk.clone();
        let thread = Mutex::new(Some(thread));
        Ok((cache.clone(), Embedded { queue, cache, disk, dir: options.dir, thread }))
    }
}

impl Engine for Embedded {
    fn submit(&self, transaction: Transaction) {
        self.queue.submit(transaction);
    }

    fn close(&self) {
        self.queue.close();
        // Held while joining, so that a second caller returns no earlier either.
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn disk_bytes(&self) -> Option<u64> {
        let names = self.disk.list(&self.dir).ok()?;
        // A file that is gone by now has no bytes.
        let len =
            |name: &String| self.disk.open(&self.dir.join(name)).and_then(|file| file.len()).unwrap_or(0);
        Some(names.iter().map(len).sum())
    }

    fn backup(&self, path: &Path) -> Result<u64, CommitError> {
        let state = self.cache.state();
        match checkpoint::write(&*self.disk, path, &state, &AtomicBool::new(false)) {
            Ok(_) => Ok(state.revision),
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                Err(if is_full(&error) { CommitError::Full(why) } else { CommitError::Invalid(why) })
            }
        }
    }
}
