//! A further process in a running container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::container::{Container, Waiter, receive_report, spawn};
use super::launch::{self, Failure, Group, Report, Stdio, Wires};
use super::sandbox;
use crate::cgroup::Cgroups;
use crate::proto::{RunRecord, Spec, read_json};
use crate::sys;

/// An exec.
pub(super) struct Exec {
    pub id: u64,
    pub pid: i32,
    pub waiter: Waiter,
    pub report: Option<OwnedFd>,
    pub report_token: u64,
    pub terminal: Option<OwnedFd>,
    pub ready: Option<RunRecord>,
    pub failed: Option<Failure>,
}

impl Exec {
    /// Forks the process. Its streams are the engine's own descriptors.
    pub(super) fn start(
        id: u64,
        container: &Container,
        argv: &[String],
        stdio: Option<Stdio>,
        cgroups: &Cgroups,
        userns: bool,
        waiter: Waiter,
    ) -> Result<Self, String> {
        let text = |e: io::Error| e.to_string();
        let spec: Spec = read_json(&container.dir.join("spec.json")).map_err(text)?;
        let run: RunRecord = read_json(&container.dir.join("run.json")).map_err(text)?;
        let (report, child_report) = sys::packet_pair().map_err(text)?;
        let group = cgroups.open_v2(&container.cgroup);
        // It must be a child of the shim, and a member of the container's PID namespace.
        let forked = sandbox::in_pid_namespace(container.pidfd.as_fd(), || spawn(0, group.as_ref()));
        let (child, in_v2) = forked.map_err(|e| format!("fork: {e}"))?;
        let Some(child) = child else {
            launch::reset_signals();
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
            drop(report);
            let pidfd = container.pidfd.as_fd();
            let wires = Wires { stdio, report: child_report.as_fd() };
            let Err(e) = launch::exec(&spec, &run, argv, &Group { cgroups, in_v2 }, pidfd, userns, wires);
            launch::fail(child_report.as_fd(), e)
        };
        Ok(Self {
            id,
            pid: child.pid,
            waiter,
            report: Some(report),
            report_token: 0,
            terminal: None,
            ready: None,
            failed: None,
        })
    }

    /// Reads the report socket until it would block. `true`: it is closed.
    pub(super) fn read_report(&mut self) -> bool {
        let Some(socket) = &self.report else { return true };
        loop {
            match receive_report(socket) {
                Ok(Some((Report::Failed { message, code }, _))) => {
                    self.failed = Some(Failure { message, code })
                }
                Ok(Some((Report::Terminal, fds))) => self.terminal = fds.into_iter().next(),
                Ok(Some((Report::Ready { user, home }, _))) => {
                    self.ready = Some(RunRecord { pid: self.pid, started_at_ns: sys::now_ns(), user, home });
                }
                Ok(Some((Report::Forked, _))) => {}
                Ok(None) => return true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    /// Kills its process group: an exec is the leader of a session of its own.
    pub(super) fn kill(&self) {
        let group = nix::unistd::Pid::from_raw(-self.pid);
        let signal = nix::sys::signal::Signal::SIGKILL;
        if nix::sys::signal::kill(group, signal).is_err() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
        }
    }
}
