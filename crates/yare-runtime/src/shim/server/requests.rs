//! What an engine asks of a shim, from its packet to the answer.
//!
//! To start a container or an exec takes until its first process tells how that went: its report settles it, and then
//! whoever asked is answered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};
use nix::sys::wait::waitpid;

use super::{Server, Source};
use crate::proto::{Answer, Ask, Request};
use crate::shim::container::{Container, Phase, Waiter, failed_exit};
use crate::shim::exec::Exec;
use crate::shim::launch::{Failure, Stdio};
use crate::shim::stream::Tap;
use crate::sys;

/// How long killed containers may take until the shim ends without them.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Longer graces are cut to this.
const MAX_GRACE: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Server {
    /// Takes a request from a connection.
    pub(super) fn receive(&mut self, connection: u64) {
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
                for c in self.containers.values_mut().filter(|c| c.alive()) {
                    c.kill(&self.cgroups);
                }
                self.ending = Some((waiter, Instant::now() + KILL_PATIENCE));
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
                    c.report_token = self.watch(report, EpollFlags::EPOLLIN, Source::Report(id.to_owned()));
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

    /// A container's report socket closed: it runs, or it failed.
    pub(super) fn settle(&mut self, id: &str) {
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

    fn attach(&mut self, id: &str, stdin: bool, fds: &mut Vec<OwnedFd>, waiter: Waiter) {
        // One that has ended stays: what it wrote may still be on its way.
        let alive = self.containers.get(id).is_some_and(Container::alive);
        let Some(mut c) = alive.then(|| self.containers.remove(id)).flatten() else {
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
                    e.report_token = self.watch(report, EpollFlags::EPOLLIN, Source::ExecReport(exec));
                }
                self.execs.insert(exec, e);
            }
            Err(message) => self.reply(waiter, Answer::Failed(exec_words(&message))),
        }
    }

    /// An exec's report socket closed: it runs, or it failed.
    pub(super) fn settle_exec(&mut self, id: u64) {
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
}

fn start_words(message: &str) -> String {
    format!("failed to create container: unable to start container process: {message}")
}

fn exec_words(message: &str) -> String {
    format!("exec failed: unable to start container process: {message}")
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

/// Starts connecting to a port on this network namespace's loopback; the engine waits for it.
fn dial(port: u16, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    let raw = socket.as_raw_fd();
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
