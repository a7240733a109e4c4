//! A container's output streams: from its pipe or terminal to the log and to whoever is attached.
//!
//! Nothing is lost and nothing grows: while one of those attached cannot take more, the stream is not read, and
//! the container waits, as with a slow terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::log::{Log, Stream};
use crate::sys;

/// One attached reader of one stream.
pub(super) struct Tap {
    pub fd: OwnedFd,
    /// What it has not taken yet.
    pub pending: Vec<u8>,
    /// Its token in the event loop.
    pub token: u64,
}

/// One output stream.
pub(super) struct Output {
    pub stream: Stream,
    pub fd: OwnedFd,
    pub token: u64,
    pub taps: Vec<Tap>,
    /// Not read for now, because a tap is behind.
    pub paused: bool,
}

/// How reading went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing more for now.
    Empty,
    /// There may be more.
    More,
    /// The stream has ended.
    End,
    /// A tap has to catch up first.
    Blocked,
}

impl Output {
    /// Reads once and hands on.
    pub(super) fn pump(&mut self, buffer: &mut [u8], log: &mut Log) -> Progress {
        match nix::unistd::read(&self.fd, buffer) {
            Ok(0) => Progress::End,
            Ok(n) => {
                log.write(self.stream, &buffer[..n], sys::now_ns());
                let mut blocked = false;
                self.taps.retain_mut(|tap| {
                    tap.pending.extend_from_slice(&buffer[..n]);
                    let alive = tap.flush().is_ok();
                    blocked |= alive && !tap.pending.is_empty();
                    alive
                });
                if blocked { Progress::Blocked } else { Progress::More }
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Progress::Empty,
            // A terminal whose other side is closed says EIO.
            Err(_) => Progress::End,
        }
    }
}

impl Tap {
    /// Writes what it can. An error means that the reader is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match nix::unistd::write(self.fd.as_fd(), &self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
