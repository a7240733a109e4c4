//! One container as its shim sees it: starting, running, stopping, ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::hooks;
use super::launch::{self, Failure, Group, Report, Stdio, Wires};
use super::log::{Log, Stream};
use super::rootfs::devices;
use super::sandbox::{self, Held};
use super::stream::Output;
use crate::api::{ContainerUser, NamespaceMode};
use crate::cgroup::Cgroups;
use crate::proto::{ExitRecord, Hook, RunRecord, Spec, read_json, write_json};
use crate::sys;

/// Who waits for an answer: connection and sequence number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub connection: u64,
    pub seq: u64,
}

/// Where it is in its life.
pub(super) enum Phase {
    /// Forked; the report socket is open.
    Starting {
        waiter: Waiter,
        ready: Option<(ContainerUser, String)>,
        failed: Option<Failure>,
    },
    Running,
    /// Ended; streams may still drain.
    Ended,
}

/// A container.
pub(super) struct Container {
    pub id: String,
    pub dir: PathBuf,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub phase: Phase,
    pub report: Option<OwnedFd>,
    pub report_token: u64,
    pub cgroup: PathBuf,
    pub log: Log,
    pub outputs: Vec<Output>,
    /// Write end of its standard input.
    pub stdin: Option<OwnedFd>,
    pub stdin_once: bool,
    pub terminal: Option<OwnedFd>,
    pub stop_signal: i32,
    /// When to kill it.
    pub kill_at: Option<Instant>,
    pub started_at_ns: i64,
    pub pid_mode: NamespaceMode,
    /// Whether hooks wait for its start or its end.
    hooked: bool,
}

/// A container's exit file, also for one that could not start.
pub(super) fn write_exit(dir: &Path, record: &ExitRecord) {
    let _ = write_json(&dir.join("exit.json"), record);
}

impl Container {
    /// Forks the container's first process; `first` answers other containers'. The outcome comes through the report socket.
    pub(super) fn start<'a>(
        id: &str,
        containers_dir: &Path,
        cgroups: &Cgroups,
        held: &Held,
        first: &dyn Fn(&str) -> Option<BorrowedFd<'a>>,
        waiter: Waiter,
    ) -> Result<Self, String> {
        let dir = containers_dir.join(id);
        let spec: Spec = read_json(&dir.join("spec.json")).map_err(|e| format!("{}: {e}", dir.display()))?;
        let rules = devices::rules(&spec)?;
        let joined = match spec.pid_target.as_str() {
            "" => held.pause.as_ref().filter(|_| spec.pid == NamespaceMode::Pod).map(|p| p.pidfd.as_fd()),
            target => Some(first(target).ok_or_else(|| format!("target container {target} does not run"))?),
        };
        cgroups.create(&spec.cgroup, &spec.resources).map_err(|e| format!("create cgroup: {e}"))?;
        let result = Self::fork(&spec, &dir, &rules, cgroups, held, joined, waiter);
        if result.is_err() {
            let _ = cgroups.remove(&spec.cgroup);
        }
        result
    }

    fn fork(
        spec: &Spec,
        dir: &Path,
        rules: &[crate::cgroup::DeviceRule],
        cgroups: &Cgroups,
        held: &Held,
        joined: Option<BorrowedFd<'_>>,
        waiter: Waiter,
    ) -> Result<Self, String> {
        cgroups.allow_devices(&spec.cgroup, rules).map_err(|e| format!("limit devices: {e}"))?;
        let log =
            Log::open(&spec.log_path).map_err(|e| format!("open log {}: {e}", spec.log_path.display()))?;
        let text = |e: io::Error| e.to_string();
        let (report, child_report) = sys::packet_pair().map_err(text)?;
        let mut outputs = Vec::new();
        let mut stdin = None;
        let mut stdio = None;
        if !spec.tty {
            let (out_r, out_w) = pipe()?;
            let (err_r, err_w) = pipe()?;
            for (stream, fd) in [(Stream::Stdout, out_r), (Stream::Stderr, err_r)] {
                sys::set_nonblocking(fd.as_fd(), true).map_err(text)?;
                outputs.push(Output { stream, fd, token: 0, taps: Vec::new(), paused: false });
            }
            let input = if spec.stdin {
                let (r, w) = pipe()?;
                stdin = Some(w);
                r
            } else {
                fs::File::open("/dev/null").map_err(text)?.into()
            };
            stdio = Some(Stdio { stdin: input, stdout: out_w, stderr: err_w });
        }
        let outside: Vec<&Hook> = spec.hooks.prestart.iter().chain(&spec.hooks.create_runtime).collect();
        let gate = if outside.is_empty() { None } else { Some(pipe()?) };
        let group = cgroups.open_v2(&spec.cgroup);
        let flags = launch::namespace_flags(spec, held.userns.is_some());
        let fork = || spawn(flags, group.as_ref());
        let forked = match joined {
            Some(joined) => sandbox::in_pid_namespace(joined, fork),
            None => fork(),
        };
        let (child, in_v2) = forked.map_err(|e| format!("fork: {e}"))?;
        let Some(child) = child else {
            launch::reset_signals();
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
            drop(report);
            let userns = held.userns.as_ref();
            let wires = Wires { stdio, report: child_report.as_fd() };
            let gate = gate.map(|(read, write)| {
                drop(write);
                read
            });
            let Err(e) = launch::container(spec, dir, &Group { cgroups, in_v2 }, userns, wires, gate);
            launch::fail(child_report.as_fd(), e)
        };
        if let Some((_, write)) = gate {
            let state = hooks::state(spec, dir, "creating", child.pid);
            hooks::detach("createRuntime", &outside, &state, &held.runtime, Some(write))
                .map_err(|e| format!("run hooks: {e}"))?;
        }
        Ok(Self {
            id: spec.id.clone(),
            dir: dir.to_path_buf(),
            pid: child.pid,
            pidfd: child.pidfd,
            phase: Phase::Starting { waiter, ready: None, failed: None },
            report: Some(report),
            report_token: 0,
            cgroup: spec.cgroup.clone(),
            log,
            outputs,
            stdin,
            stdin_once: spec.stdin_once,
            terminal: None,
            stop_signal: spec.stop_signal,
            kill_at: None,
            started_at_ns: 0,
            pid_mode: spec.pid,
            hooked: !spec.hooks.poststart.is_empty() || !spec.hooks.poststop.is_empty(),
        })
    }

    /// Whether its first process is there.
    pub(super) fn alive(&self) -> bool {
        !matches!(self.phase, Phase::Ended)
    }

    /// Reads the report socket until it would block. `true`: it is closed.
    pub(super) fn read_report(&mut self) -> bool {
        let Some(socket) = &self.report else { return true };
        loop {
            match receive_report(socket) {
                Ok(Some((report, fds))) => {
                    let Phase::Starting { ready, failed, .. } = &mut self.phase else { continue };
                    match report {
                        Report::Failed { message, code } => *failed = Some(Failure { message, code }),
                        Report::Ready { user, home } => *ready = Some((user, home)),
                        Report::Forked => {
                            if let Some(pidfd) = fds.into_iter().next()
                                && let Ok(pid) = sys::pid_of(pidfd.as_fd())
                            {
                                (self.pid, self.pidfd) = (pid, pidfd);
                            }
                        }
                        Report::Terminal => self.terminal = fds.into_iter().next(),
                    }
                }
                Ok(None) => return true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    /// It runs: writes `run.json`.
    pub(super) fn started(&mut self, user: ContainerUser, home: String) -> RunRecord {
        self.phase = Phase::Running;
        self.started_at_ns = sys::now_ns();
        let record = RunRecord { pid: self.pid, started_at_ns: self.started_at_ns, user, home };
        let _ = write_json(&self.dir.join("run.json"), &record);
        record
    }

    /// Runs the hooks of its start or its end. Nobody waits for them.
    pub(super) fn run_hooks(&self, kind: &str, held: &Held) {
        if !self.hooked {
            return;
        }
        let Ok(spec) = read_json::<Spec>(&self.dir.join("spec.json")) else { return };
        let (hooks, status, pid) = match kind {
            "poststart" => (&spec.hooks.poststart, "running", self.pid),
            _ => (&spec.hooks.poststop, "stopped", 0),
        };
        if hooks.is_empty() {
            return;
        }
        let hooks: Vec<&Hook> = hooks.iter().collect();
        let _ =
            hooks::detach(kind, &hooks, &hooks::state(&spec, &self.dir, status, pid), &held.runtime, None);
    }

    /// Asks it to stop.
    pub(super) fn stop(&mut self, grace: Duration, cgroups: &Cgroups) {
        let deadline = Instant::now() + grace;
        if grace.is_zero() {
            return self.kill(cgroups);
        }
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), self.stop_signal);
        self.kill_at = Some(self.kill_at.map_or(deadline, |at| at.min(deadline)));
    }

    /// Kills all of it.
    pub(super) fn kill(&mut self, cgroups: &Cgroups) {
        self.kill_at = None;
        cgroups.kill(&self.cgroup);
        // A child that has not joined its cgroup yet.
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Its first process ended: writes `exit.json` and removes the cgroup. Answers the exit code.
    pub(super) fn ended(&mut self, code: i32, cgroups: &Cgroups) -> i32 {
        self.phase = Phase::Ended;
        self.kill_at = None;
        if self.pid_mode != NamespaceMode::Container {
            // No PID namespace of its own took the rest along.
            cgroups.kill(&self.cgroup);
        }
        let oom = cgroups.oom_kills(&self.cgroup) > 0;
        let reason = match (oom, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            _ => "Error",
        };
        let record = ExitRecord {
            exit_code: code,
            started_at_ns: self.started_at_ns,
            finished_at_ns: sys::now_ns(),
            reason: reason.into(),
            message: String::new(),
        };
        write_exit(&self.dir, &record);
        let _ = cgroups.remove(&self.cgroup);
        code
    }

    /// It could not start.
    pub(super) fn failed(&mut self, failure: &Failure, cgroups: &Cgroups) {
        self.phase = Phase::Ended;
        failed_exit(&self.dir, failure);
        let _ = cgroups.remove(&self.cgroup);
    }
}

/// The exit file of a container that could not start.
pub(super) fn failed_exit(dir: &Path, failure: &Failure) {
    let record = ExitRecord {
        exit_code: failure.code,
        started_at_ns: 0,
        finished_at_ns: sys::now_ns(),
        reason: "ContainerCannotRun".into(),
        message: failure.message.clone(),
    };
    write_exit(dir, &record);
}

/// One report; `None` when the socket is closed.
pub(super) fn receive_report(socket: &OwnedFd) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
    let mut buffer = [0; 8192];
    let (n, fds) = sys::recv_packet(socket.as_fd(), &mut buffer)?;
    if n == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..n])?, fds)))
}

/// Forks, into a cgroup of version 2 if there is one. Whether the child is in it: a group that cannot be forked into
/// (old kernel) is entered by the child.
#[allow(unsafe_code)]
pub(super) fn spawn(flags: i32, group: Option<&OwnedFd>) -> io::Result<(Option<sys::Child>, bool)> {
    // SAFETY: a shim has one thread.
    let fork = |group: Option<&OwnedFd>| unsafe { sys::clone3(flags, group.map(AsFd::as_fd)) };
    match fork(group) {
        Err(_) if group.is_some() => fork(None).map(|child| (child, false)),
        forked => forked.map(|child| (child, group.is_some())),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))
}
