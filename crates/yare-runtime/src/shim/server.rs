//! A shim's event loop: requests from the engine, children that end, streams that have something.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::container::{Container, Phase, Waiter, failed_exit};
use super::exec::Exec;
use super::launch::{Failure, Stdio};
use super::log::Stream;
use super::sandbox::Held;
use super::stream::{Output, Progress, Tap};
use crate::cgroup::Cgroups;
use crate::proto::{Answer, Ask, Message, Request, SandboxSpec};
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
    /// Everything is to be killed, and the shim ends; answers these when done.
    ending: Option<(Option<Waiter>, Instant)>,
    buffer: Vec<u8>,
}

/// How long killed containers may take until the shim ends without them.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Longer graces are cut to this.
const MAX_GRACE: Duration = Duration::from_secs(10 * 365 * 86_400);

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

    fn send(&mut self, connection: u64, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) {
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
                if let Some(waiter) = waiter {
                    self.reply(waiter, Answer::Done);
                }
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
                if let Ok(raw) =
                    socket::accept4(std::os::fd::AsRawFd::as_raw_fd(&self.listener), SockFlag::SOCK_CLOEXEC)
                {
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

    // ---- requests

    fn receive(&mut self, connection: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(sys::MAX_PACKET, 0);
        let received = match self.connections.get(&connection) {
            Some(socket) => sys::recv_packet(socket.as_fd(), &mut buffer),
            None => return,
        };
        match received {
            Ok((0, _)) => self.disconnect(connection),
            Ok((n, fds)) => match serde_json::from_slice::<Request>(&buffer[..n]) {
                Ok(request) => {
                    // Free again while the request is served: it is large, and rarely needed.
                    drop(buffer);
                    self.serve(Waiter { connection, seq: request.seq }, request.body, fds);
                }
                // A newer or older engine that says something unknown gets no answer it could misread.
                Err(_) => self.disconnect(connection),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.disconnect(connection),
        }
    }

    fn serve(&mut self, waiter: Waiter, ask: Ask, mut fds: Vec<OwnedFd>) {
        match ask {
            Ask::Start { id } => self.start(&id, waiter),
            Ask::Stop { id, grace_ms } => {
                let answer = match self.containers.get_mut(&id).filter(|c| c.alive()) {
                    Some(c) => {
                        c.stop(Duration::from_millis(grace_ms).min(MAX_GRACE), &self.cgroups);
                        Answer::Done
                    }
                    None => Answer::NotRunning(id),
                };
                self.reply(waiter, answer);
            }
            Ask::Exec { exec, id, argv, tty, stdin } => self.exec(exec, &id, &argv, tty, stdin, fds, waiter),
            Ask::KillExec { exec } => {
                if let Some(exec) = self.execs.get(&exec) {
                    exec.kill();
                }
                self.reply(waiter, Answer::Done);
            }
            Ask::Attach { id, stdin } => self.attach(&id, stdin, &mut fds, waiter),
            Ask::ReopenLog { id } => {
                let answer = match self.containers.get_mut(&id).filter(|c| c.alive()) {
                    Some(c) => c
                        .log
                        .reopen()
                        .map_or_else(|e| Answer::Failed(format!("reopen log: {e}")), |()| Answer::Done),
                    None => Answer::NotRunning(id),
                };
                self.reply(waiter, answer);
            }
            Ask::Dial { port, v6 } => match dial(port, v6) {
                Ok(socket) => self.reply_fd(waiter, Answer::Done, Some(&socket)),
                Err(e) => self.reply(waiter, Answer::Failed(format!("connect to localhost:{port}: {e}"))),
            },
            Ask::List => {
                let running = self.containers.values().filter(|c| c.alive()).map(|c| c.id.clone()).collect();
                self.reply(waiter, Answer::Running(running));
            }
            Ask::Shutdown => {
                for c in self
                    .containers
                    .values_mut()
                    .filter(|c| matches!(c.phase, Phase::Starting { .. } | Phase::Running))
                {
                    c.kill(&self.cgroups);
                }
                self.ending = Some((Some(waiter), Instant::now() + KILL_PATIENCE));
            }
        }
    }

    fn start(&mut self, id: &str, waiter: Waiter) {
        if self.containers.get(id).is_some_and(Container::alive) {
            return self.reply(waiter, Answer::Failed(format!("container {id} is already running")));
        }
        let others = &self.containers;
        let first = |id: &str| others.get(id).filter(|c| c.alive()).map(|c| c.pidfd.as_fd());
        match Container::start(id, &self.spec.containers_dir, &self.cgroups, &self.held, &first, waiter) {
            Ok(mut c) => {
                if let Some(report) = &c.report {
                    let _ = sys::set_nonblocking(report.as_fd(), true);
                    c.report_token = {
                        let token = self.next_token;
                        self.next_token += 1;
                        self.sources.insert(token, Source::Report(id.to_owned()));
                        let _ = self.epoll.add(report, EpollEvent::new(EpollFlags::EPOLLIN, token));
                        token
                    };
                }
                for output in &mut c.outputs {
                    self.register(id, output);
                }
                self.containers.insert(id.to_owned(), c);
            }
            Err(message) => {
                let failure = Failure { message: start_words(&message), code: 128 };
                failed_exit(&self.spec.containers_dir.join(id), &failure);
                self.reply(waiter, Answer::Failed(failure.message));
            }
        }
    }

    fn register(&mut self, id: &str, output: &mut Output) {
        output.token =
            self.watch(&output.fd, EpollFlags::EPOLLIN, Source::Output(id.to_owned(), output.stream));
    }

    /// A container's report socket closed: it runs, or it failed.
    fn settle(&mut self, id: &str) {
        let Some(mut c) = self.containers.remove(id) else { return };
        if let Some(report) = c.report.take() {
            let _ = self.epoll.delete(&report);
            self.sources.remove(&c.report_token);
        }
        if let Phase::Starting { waiter, ready, failed } = std::mem::replace(&mut c.phase, Phase::Running) {
            match (failed, ready) {
                (None, Some((user, home))) => {
                    if let Some(terminal) = c.terminal.take() {
                        self.use_terminal(&mut c, terminal);
                    }
                    let record = c.started(user, home);
                    c.run_hooks("poststart", &self.held);
                    self.reply(waiter, Answer::Started(record));
                }
                (failed, _) => {
                    let mut failure = failed.unwrap_or_else(|| Failure {
                        message: "the container's process was killed before it could start".into(),
                        code: 128,
                    });
                    failure.message = start_words(&failure.message);
                    self.close_outputs(&mut c);
                    c.failed(&failure, &self.cgroups);
                    // The process itself is a zombie by now, or soon.
                    let _ = waitpid(nix::unistd::Pid::from_raw(c.pid), None);
                    let _ = self.cgroups.remove(&c.cgroup);
                    c.run_hooks("poststop", &self.held);
                    self.reply(waiter, Answer::Failed(failure.message));
                    return;
                }
            }
        }
        self.containers.insert(id.to_owned(), c);
    }

    fn use_terminal(&mut self, c: &mut Container, terminal: OwnedFd) {
        let _ = sys::set_nonblocking(terminal.as_fd(), true);
        if let Ok(fd) = terminal.try_clone() {
            let mut output = Output { stream: Stream::Stdout, fd, token: 0, taps: Vec::new(), paused: false };
            self.register(&c.id, &mut output);
            c.outputs.push(output);
        }
        c.terminal = Some(terminal);
    }

    fn attach(&mut self, id: &str, stdin: bool, fds: &mut Vec<OwnedFd>, waiter: Waiter) {
        let Some(mut c) = self.containers.remove(id).filter(Container::alive) else {
            return self.reply(waiter, Answer::NotRunning(id.to_owned()));
        };
        let mut fds = fds.drain(..);
        for output in &mut c.outputs {
            let Some(fd) = fds.next() else { break };
            let _ = sys::set_nonblocking(fd.as_fd(), true);
            // No events asked for: an error (the reader is gone) is always reported.
            let token = self.watch(&fd, EpollFlags::empty(), Source::Tap(id.to_owned(), output.stream));
            output.taps.push(Tap { fd, pending: Vec::new(), token });
        }
        let input = match (&c.terminal, stdin) {
            (Some(terminal), _) => terminal.try_clone().ok(),
            (None, false) => None,
            // The only write end goes along, so that its closing is the end of file.
            (None, true) if c.stdin_once => c.stdin.take(),
            (None, true) => c.stdin.as_ref().and_then(|fd| fd.try_clone().ok()),
        };
        self.containers.insert(id.to_owned(), c);
        self.reply_fd(waiter, Answer::Done, input.as_ref());
    }

    #[allow(clippy::too_many_arguments)]
    fn exec(
        &mut self,
        exec: u64,
        id: &str,
        argv: &[String],
        tty: bool,
        stdin: bool,
        fds: Vec<OwnedFd>,
        waiter: Waiter,
    ) {
        let Some(c) = self.containers.get(id).filter(|c| matches!(c.phase, Phase::Running)) else {
            return self.reply(waiter, Answer::NotRunning(id.to_owned()));
        };
        let result = exec_stdio(tty, stdin, fds).and_then(|stdio| {
            Exec::start(exec, c, argv, stdio, &self.cgroups, self.held.userns.is_some(), waiter)
        });
        match result {
            Ok(mut e) => {
                if let Some(report) = &e.report {
                    let _ = sys::set_nonblocking(report.as_fd(), true);
                    let token = self.next_token;
                    self.next_token += 1;
                    self.sources.insert(token, Source::ExecReport(exec));
                    let _ = self.epoll.add(report, EpollEvent::new(EpollFlags::EPOLLIN, token));
                    e.report_token = token;
                }
                self.execs.insert(exec, e);
            }
            Err(message) => self.reply(waiter, Answer::Failed(exec_words(&message))),
        }
    }

    fn settle_exec(&mut self, id: u64) {
        let Some(mut e) = self.execs.remove(&id) else { return };
        if let Some(report) = e.report.take() {
            let _ = self.epoll.delete(&report);
            self.sources.remove(&e.report_token);
        }
        let waiter = e.waiter;
        match (e.failed.take(), e.ready.take()) {
            (None, Some(record)) => {
                let terminal = e.terminal.take();
                self.execs.insert(id, e);
                self.reply_fd(waiter, Answer::Started(record), terminal.as_ref());
            }
            (failed, _) => {
                let message = failed
                    .map_or_else(|| "the process was killed before it could start".into(), |f| f.message);
                self.reply(waiter, Answer::Failed(exec_words(&message)));
            }
        }
    }

    // ---- children

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

    // ---- streams

    /// Reads a stream; `drain`: everything that is there, the process having ended.
    fn pump(&mut self, id: &str, stream: Stream, drain: bool) {
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

    fn flush_taps(&mut self, id: &str, stream: Stream, woken: u64) {
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

    fn close_outputs(&mut self, c: &mut Container) {
        for output in std::mem::take(&mut c.outputs) {
            let _ = self.epoll.delete(&output.fd);
            self.sources.remove(&output.token);
            for tap in output.taps {
                self.sources.remove(&tap.token);
            }
        }
    }
}

fn start_words(message: &str) -> String {
    format!("failed to create container: unable to start container process: {message}")
}

fn exec_words(message: &str) -> String {
    format!("exec failed: unable to start container process: {message}")
}

#[allow(unsafe_code)]
fn own(raw: i32) -> OwnedFd {
    // SAFETY: `accept4` just made it, and nobody else has it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) }
}

fn exec_stdio(tty: bool, stdin: bool, fds: Vec<OwnedFd>) -> Result<Option<Stdio>, String> {
    if tty {
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| "a stream is missing".to_owned());
    let stdin = match stdin {
        true => next()?,
        false => std::fs::File::open("/dev/null").map_err(|e| e.to_string())?.into(),
    };
    Ok(Some(Stdio { stdin, stdout: next()?, stderr: next()? }))
}

fn listen(spec: &SandboxSpec) -> io::Result<OwnedFd> {
    let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let _ = std::fs::remove_file(&spec.socket);
    if let Some(parent) = spec.socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let bound = socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(&spec.socket)?);
    nix::sys::stat::umask(before);
    bound?;
    socket::listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

/// Starts connecting to a port on this network namespace's loopback; the engine waits for it.
fn dial(port: u16, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let result = if v6 {
        let to = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, port, 0, 0);
        socket::connect(raw, &socket::SockaddrIn6::from(to))
    } else {
        let to = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
        socket::connect(raw, &socket::SockaddrIn::from(to))
    };
    match result {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}
