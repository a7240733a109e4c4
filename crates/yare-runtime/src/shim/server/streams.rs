//! The event loop's side of output streams: which of them, and which of those attached, it listens to.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Server, Source};
use crate::shim::container::Container;
use crate::shim::log::Stream;
use crate::shim::stream::{Output, Progress, Tap};
use crate::sys;

impl Server {
    /// Begins to read a stream.
    pub(super) fn register(&mut self, id: &str, output: &mut Output) {
        output.token =
            self.watch(&output.fd, EpollFlags::EPOLLIN, Source::Output(id.to_owned(), output.stream));
    }

    /// A terminal is the output of its container, and its input.
    pub(super) fn use_terminal(&mut self, c: &mut Container, terminal: OwnedFd) {
        let _ = sys::set_nonblocking(terminal.as_fd(), true);
        if let Ok(fd) = terminal.try_clone() {
            let mut output = Output { stream: Stream::Stdout, fd, token: 0, taps: Vec::new(), paused: false };
            self.register(&c.id, &mut output);
            c.outputs.push(output);
        }
        c.terminal = Some(terminal);
    }

    /// Reads a stream; `drain`: everything that is there, the process having ended.
    pub(super) fn pump(&mut self, id: &str, stream: Stream, drain: bool) {
        let Some(mut c) = self.containers.remove(id) else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(32 * 1024, 0);
        if let Some(at) = c.outputs.iter().position(|o| o.stream == stream) {
            let before: Vec<u64> = c.outputs[at].taps.iter().map(|t| t.token).collect();
            loop {
                let progress = c.outputs[at].pump(&mut buffer, &mut c.log);
                let output = &mut c.outputs[at];
                match progress {
                    // One read per event keeps the streams fair to each other.
                    Progress::More if drain => {}
                    Progress::More | Progress::Empty => break,
                    Progress::Blocked if drain => {}
                    Progress::Blocked => {
                        output.paused = true;
                        self.set_events(&output.fd, output.token, EpollFlags::empty());
                        break;
                    }
                    Progress::End => {
                        c.log.finish(stream, sys::now_ns());
                        let output = c.outputs.remove(at);
                        self.end_output(&c.id, output, &mut c.outputs);
                        break;
                    }
                }
            }
            if let Some(output) = c.outputs.iter().find(|o| o.stream == stream) {
                self.sync_taps(output, &before);
            }
        }
        self.buffer = buffer;
        self.buffer.truncate(0);
        self.containers.insert(id.to_owned(), c);
    }

    /// Forgets taps that are gone, and asks to hear when those behind can take more.
    fn sync_taps(&mut self, output: &Output, before: &[u64]) {
        for token in before {
            if !output.taps.iter().any(|t| t.token == *token) {
                self.sources.remove(token);
            }
        }
        for tap in &output.taps {
            let flags = if tap.pending.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
            self.set_events(&tap.fd, tap.token, flags);
        }
    }

    fn set_events(&self, fd: &OwnedFd, token: u64, flags: EpollFlags) {
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(flags, token));
    }

    /// A stream ended. Taps that are behind stay until they have everything.
    fn end_output(&mut self, id: &str, mut output: Output, outputs: &mut Vec<Output>) {
        if output.token != 0 {
            let _ = self.epoll.delete(&output.fd);
            self.sources.remove(&output.token);
            output.token = 0;
        }
        let (behind, done): (Vec<Tap>, Vec<Tap>) =
            output.taps.into_iter().partition(|t| !t.pending.is_empty());
        for tap in done {
            let _ = self.epoll.delete(&tap.fd);
            self.sources.remove(&tap.token);
        }
        if !behind.is_empty() {
            for tap in &behind {
                self.sources.insert(tap.token, Source::Tap(id.to_owned(), output.stream));
                self.set_events(&tap.fd, tap.token, EpollFlags::EPOLLOUT);
            }
            output.taps = behind;
            outputs.push(Output { paused: true, ..output });
        }
    }

    /// Somebody attached can take more, or is gone.
    pub(super) fn flush_taps(&mut self, id: &str, stream: Stream, woken: u64) {
        let Some(mut c) = self.containers.remove(id) else { return };
        if let Some(at) = c.outputs.iter().position(|o| o.stream == stream) {
            let output = &mut c.outputs[at];
            let before: Vec<u64> = output.taps.iter().map(|t| t.token).collect();
            // Only an error wakes a tap that waits for nothing.
            output
                .taps
                .retain_mut(|tap| !(tap.token == woken && tap.pending.is_empty()) && tap.flush().is_ok());
            let caught_up = output.taps.iter().all(|t| t.pending.is_empty());
            if output.token == 0 && caught_up {
                c.outputs.remove(at);
            } else if caught_up && output.paused {
                output.paused = false;
                self.set_events(&output.fd, output.token, EpollFlags::EPOLLIN);
            }
            if let Some(output) = c.outputs.iter().find(|o| o.stream == stream) {
                self.sync_taps(output, &before);
            } else {
                for token in before {
                    self.sources.remove(&token);
                }
            }
        }
        self.containers.insert(id.to_owned(), c);
    }

    /// Forgets the streams of a container that never started.
    pub(super) fn close_outputs(&mut self, c: &mut Container) {
        for output in std::mem::take(&mut c.outputs) {
            let _ = self.epoll.delete(&output.fd);
            self.sources.remove(&output.token);
            for tap in output.taps {
                self.sources.remove(&tap.token);
            }
        }
    }
}
