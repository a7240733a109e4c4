//! A shim's event loop: connections of engines, children that end, containers to kill in time.
//!
//! What an engine asks for is done in [`requests`], what streams have goes on in [`streams`].

mod requests;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::container::{Container, Waiter};
use super::exec::Exec;
use super::log::Stream;
use super::sandbox::Held;
use crate::cgroup::Cgroups;
use crate::proto::{Answer, Message, SandboxSpec};
use crate::sys;

/// What a token in the event loop stands for.
#[derive(Debug, Clone)]
enum Source {
    Signals,
    Listener,
    Connection,
    /// A container's report socket.
    Report(String),
    ExecReport(u64),
    Output(String, Stream),
    Tap(String, Stream),
}

/// A shim.
pub(super) struct Server {
    spec: SandboxSpec,
    held: Held,
    cgroups: Cgroups,
    epoll: Epoll,
    signals: SignalFd,
    listener: OwnedFd,
    sources: BTreeMap<u64, Source>,
    next_token: u64,
    connections: BTreeMap<u64, OwnedFd>,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<u64, Exec>,
    /// Everything is to be killed, and the shim ends; who is answered when that is done, and at the latest when.
    ending: Option<(Waiter, Instant)>,
    buffer: Vec<u8>,
}

impl Server {
    pub(super) fn new(spec: SandboxSpec, held: Held, cgroups: Cgroups) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let listener = listen(&spec)?;
        let mut server = Self {
            spec,
            held,
            cgroups,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            signals,
            listener,
            sources: BTreeMap::new(),
            next_token: 1,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ending: None,
            buffer: Vec::new(),
        };
        let token = server.token(Source::Signals);
        server.epoll.add(&server.signals, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        let token = server.token(Source::Listener);
        server.epoll.add(&server.listener, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        Ok(server)
    }

    fn token(&mut self, source: Source) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.sources.insert(token, source);
        token
    }

    /// Registers a descriptor; on failure it is simply never heard of, which ends what depends on it.
    fn watch(&mut self, fd: &OwnedFd, flags: EpollFlags, source: Source) -> u64 {
        let token = self.token(source);
        if self.epoll.add(fd, EpollEvent::new(flags, token)).is_err() {
            self.sources.remove(&token);
        }
        token
    }

    /// Serves a connection, and greets it.
    pub(super) fn adopt(&mut self, connection: OwnedFd) {
        sys::size_buffers(connection.as_fd());
        if sys::set_nonblocking(connection.as_fd(), true).is_err() {
            return;
        }
        let token = self.watch(&connection, EpollFlags::EPOLLIN, Source::Connection);
        self.connections.insert(token, connection);
        self.send(token, &Message::Ready { pid: std::process::id() as i32, error: None }, &[]);
    }

    fn send(&mut self, connection: u64, message: &Message, fds: &[BorrowedFd<'_>]) {
        let Some(socket) = self.connections.get(&connection) else { return };
        let Ok(bytes) = serde_json::to_vec(message) else { return };
        if sys::send_packet(socket.as_fd(), &bytes, fds).is_err() {
            // The engine does not read or is gone. It finds the facts on disk when it comes back.
            self.disconnect(connection);
        }
    }

    fn disconnect(&mut self, connection: u64) {
        if let Some(socket) = self.connections.remove(&connection) {
            let _ = self.epoll.delete(&socket);
        }
        self.sources.remove(&connection);
    }

    fn broadcast(&mut self, message: &Message) {
        let all: Vec<u64> = self.connections.keys().copied().collect();
        for connection in all {
            self.send(connection, message, &[]);
        }
    }

    fn reply(&mut self, to: Waiter, answer: Answer) {
        self.send(to.connection, &Message::Reply { seq: to.seq, answer }, &[]);
    }

    fn reply_fd(&mut self, to: Waiter, answer: Answer, fd: Option<&OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(|f| f.as_fd()).collect();
        self.send(to.connection, &Message::Reply { seq: to.seq, answer }, &fds);
    }

    /// Serves until told to end.
    pub(super) fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let n = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(_) => return,
            };
            for event in &events[..n] {
                if let Some(source) = self.sources.get(&event.data()).cloned() {
                    self.handle(event.data(), &source);
                }
            }
            self.kill_overdue();
            self.containers.retain(|_, c| c.alive() || !c.outputs.is_empty());
            if let Some((waiter, deadline)) = self.ending
                && (self.containers.values().all(|c| !c.alive()) || Instant::now() >= deadline)
            {
                self.reply(waiter, Answer::Done);
                let _ = std::fs::remove_file(&self.spec.socket);
                return;
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let kills = self.containers.values().filter_map(|c| c.kill_at);
        let next = kills.chain(self.ending.map(|(_, at)| at)).min();
        match next {
            None => EpollTimeout::NONE,
            Some(at) => {
                // Rounded up, or the loop would spin through the last millisecond.
                let wait = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                EpollTimeout::try_from(wait.min(Duration::from_secs(3600))).unwrap_or(EpollTimeout::ZERO)
            }
        }
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        for c in self.containers.values_mut() {
            if c.kill_at.is_some_and(|at| at <= now) {
                c.kill(&self.cgroups);
            }
        }
    }

    fn handle(&mut self, token: u64, source: &Source) {
        match source {
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Listener => {
                if let Ok(raw) = socket::accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    self.adopt(own(raw));
                }
            }
            Source::Connection => self.receive(token),
            Source::Report(id) => {
                if self.containers.get_mut(id).is_some_and(Container::read_report) {
                    self.settle(id);
                }
            }
            Source::ExecReport(exec) => {
                if self.execs.get_mut(exec).is_some_and(Exec::read_report) {
                    self.settle_exec(*exec);
                }
            }
            Source::Output(id, stream) => self.pump(id, *stream, false),
            Source::Tap(id, stream) => self.flush_taps(id, *stream, token),
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            // The process that prepared a container may tell of its successor with its last word.
            if let Some(c) = self.containers.values_mut().find(|c| c.pid == pid && c.report.is_some()) {
                c.read_report();
            }
            if let Some(id) =
                self.containers.values().find(|c| c.pid == pid && c.alive()).map(|c| c.id.clone())
            {
                self.container_ended(&id, code);
            } else if let Some(id) = self.execs.values().find(|e| e.pid == pid).map(|e| e.id) {
                if self.execs.get_mut(&id).is_some_and(|e| e.report.is_some() && e.read_report()) {
                    self.settle_exec(id);
                }
                if self.execs.remove(&id).is_some() {
                    self.broadcast(&Message::ExecExited { exec: id, exit_code: code });
                }
            } else if self.held.pause.as_ref().is_some_and(|p| p.pid == pid) {
                // Its PID namespace took every container along; their ends are reported one by one.
                self.held.pause = None;
            }
        }
    }

    fn container_ended(&mut self, id: &str, code: i32) {
        // It may have run and ended before its report was read.
        if let Some(c) = self.containers.get_mut(id)
            && c.report.is_some()
        {
            c.read_report();
            self.settle(id);
        }
        if !self.containers.contains_key(id) {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.pump(id, stream, true);
        }
        let Some(c) = self.containers.get_mut(id) else { return };
        c.ended(code, &self.cgroups);
        c.run_hooks("poststop", &self.held);
        c.stdin = None;
        c.terminal = None;
        self.broadcast(&Message::Exited { id: id.to_owned(), exit_code: code });
    }
}

#[allow(unsafe_code)]
fn own(raw: i32) -> OwnedFd {
    // SAFETY: `accept4` just made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn listen(spec: &SandboxSpec) -> io::Result<OwnedFd> {
    let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let _ = std::fs::remove_file(&spec.socket);
    if let Some(parent) = spec.socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let bound = socket::bind(listener.as_raw_fd(), &UnixAddr::new(&spec.socket)?);
    nix::sys::stat::umask(before);
    bound?;
    socket::listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}
