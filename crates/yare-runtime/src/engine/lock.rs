//! Who may use a run directory: one engine at a time, after the helpers of the one before are done.
//!
//! `engine.lock` is held by the engine's process. `making.lock` is held by its spawner and by every shim that is
//! still making its sandbox: they live on for a moment when an engine is killed, and would make namespaces and
//! mounts behind the back of the next one. Both are `flock`s, so the kernel gives them back whatever happens.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{IoContext, Result, RuntimeError};

/// How long a killed engine may take to end: the kernel gives its memory back first.
const ENGINE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a half-made sandbox may take to be complete. One that hangs for longer keeps nobody from starting.
const MAKING_PATIENCE: Duration = Duration::from_secs(15);

/// The right to use a run directory, for as long as it lives.
pub(super) struct RunLock {
    _engine: File,
    making: File,
}

impl RunLock {
    /// Waits for an earlier engine to end, and for what it began.
    pub(super) async fn take(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("engine.lock");
        let mut engine = open(&path)?;
        if !locked(&engine, &path, ENGINE_PATIENCE).await? {
            let mut holder = String::new();
            let _ = (&engine).take(20).read_to_string(&mut holder);
            return Err(RuntimeError::FailedPrecondition(format!(
                "{} is used by process {}; stop it first",
                run_dir.display(),
                holder.trim()
            )));
        }
        // For the message above only.
        let _ = engine
            .set_len(0)
            .and_then(|()| engine.rewind())
            .and_then(|()| writeln!(engine, "{}", std::process::id()));
        let path = run_dir.join("making.lock");
        let making = open(&path)?;
        if !locked(&making, &path, MAKING_PATIENCE).await? {
            tracing::warn!(
                path = %path.display(),
                "a sandbox that an earlier engine began is still not complete; it may leave something behind"
            );
        }
        Ok(Self { _engine: engine, making })
    }

    /// The part that a spawner holds while it lives, and hands to each shim for the time of its making.
    pub(super) fn for_spawner(&self) -> std::io::Result<OwnedFd> {
        self.making.try_clone().map(OwnedFd::from)
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .ctx(|| format!("open {}", path.display()))
}

/// The kernel tells nobody when a lock is free without blocking a thread for good; this is tried once when nothing
/// is wrong.
async fn locked(file: &File, path: &Path, patience: Duration) -> Result<bool> {
    let end = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(e)) => {
                return Err(RuntimeError::io(format!("lock {}", path.display()), e));
            }
        }
    }
}
