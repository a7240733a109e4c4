//! File changes, told by the kernel: a small asynchronous inotify.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// An inotify instance on tokio's reactor.
pub(crate) struct Watch {
    fd: AsyncFd<Instance>,
}

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

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is an unsafe function; Instance keeps its descriptor open as it asks"
        )]
        let fd = AsyncFd::new(Instance(inotify))?;
        Ok(Watch { fd })
    }

    pub(crate) fn add(&self, path: &Path, flags: AddWatchFlags) -> io::Result<WatchDescriptor> {
        Ok(self.fd.get_ref().0.add_watch(path, flags)?)
    }

    pub(crate) fn remove(&self, descriptor: WatchDescriptor) {
        // Fails only for a watch that ended by itself.
        let _ = self.fd.get_ref().0.rm_watch(descriptor);
    }

    /// The next events, at least one.
    pub(crate) async fn next(&self) -> io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.fd.readable().await?;
            match self.fd.get_ref().0.read_events() {
                Ok(events) if !events.is_empty() => return Ok(events),
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
