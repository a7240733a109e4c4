//! Files that are read again when they change. The kernel tells of changes; what is wrong with a new text is
//! logged, and what was in force stays.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::core::Core;

/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(50);

/// Puts a new text in force, or says why not.
pub type Apply = for<'a> fn(&'a Arc<Core>, Vec<u8>) -> BoxFuture<'a, Result<(), String>>;

/// Calls `apply` with each new text of the file, until the server stops. What is in the file now is in force already;
/// it is given back.
pub fn follow(core: &Arc<Core>, path: &Path, apply: Apply) -> Vec<u8> {
    let (core, path) = (core.clone(), path.to_owned());
    let now = std::fs::read(&path).unwrap_or_default();
    let mut last = now.clone();
    tokio::spawn(async move {
        let changes = match Changes::of(&path) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "changes of this file will not be seen");
                return;
            }
        };
        loop {
            tokio::select! {
                seen = changes.next() => if seen.is_err() { return },
                () = core.stop.cancelled() => return,
            }
            tokio::time::sleep(SETTLE).await;
            let Ok(text) = std::fs::read(&path) else { continue };
            if last == text {
                continue;
            }
            last.clone_from(&text);
            match apply(&core, text).await {
                Ok(()) => tracing::info!(file = %path.display(), "reloaded"),
                Err(why) => tracing::error!(file = %path.display(), why, "not reloaded"),
            }
        }
    });
    now
}

/// Changes in a file's directory: files are mostly replaced, and not written.
pub struct Changes(AsyncFd<Instance>);

/// What the reactor needs of an inotify instance: its descriptor.
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Instance {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file in a directory came or changed.
const CAME: AddWatchFlags =
    AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_MOVED_TO).union(AddWatchFlags::IN_CREATE);

impl Changes {
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::seen(directory, CAME)
    }

    /// Of everything in a directory, what goes as well.
    pub fn within(directory: &Path) -> std::io::Result<Self> {
        Self::seen(directory, CAME | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM)
    }

    fn seen(directory: &Path, flags: AddWatchFlags) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(directory, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is an unsafe function; Instance keeps its descriptor open as it asks"
        )]
        let fd = AsyncFd::new(Instance(inotify))?;
        Ok(Self(fd))
    }

    pub async fn next(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.read_events() {
                Ok(events) if !events.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
