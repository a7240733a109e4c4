//! The engine's side of the shim spawner: starts it when needed, and has it fork a shim.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use tokio::sync::{Mutex, oneshot};

use super::lock::RunLock;
use crate::error::{IoContext, Result};
use crate::proto::SandboxSpec;
use crate::sys;

/// Forks shims.
pub(super) struct Spawner {
    command: Vec<OsString>,
    cgroup: String,
    process: Mutex<Option<Process>>,
}

/// A spawner that runs.
struct Process {
    /// It ends when this is closed.
    socket: OwnedFd,
    /// Told, by dropping the other end, when it has.
    ended: oneshot::Receiver<()>,
}

impl Spawner {
    pub(super) fn new(command: Vec<OsString>, cgroup: String) -> Self {
        Self { command, cgroup, process: Mutex::default() }
    }

    /// Starts the spawner process; errors show when a shim is asked for.
    pub(super) async fn warm_up(&self, lock: &RunLock) {
        let mut process = self.process.lock().await;
        if process.is_none() {
            *process = self.start(lock).ok();
        }
    }

    /// Ends the spawner process, and waits until it is gone. Shims go on.
    pub(super) async fn end(&self) {
        if let Some(Process { socket, ended }) = self.process.lock().await.take() {
            drop(socket);
            let _ = ended.await;
        }
    }

    /// Forks a shim. Answers our end of its connection; its first packet says how it went.
    pub(super) async fn spawn(&self, spec: &SandboxSpec, lock: &RunLock) -> Result<OwnedFd> {
        let (ours, theirs) = sys::packet_pair().ctx(|| "make a socket pair".into())?;
        let bytes =
            serde_json::to_vec(spec).map_err(std::io::Error::from).ctx(|| "encode a sandbox".into())?;
        let mut process = self.process.lock().await;
        if let Some(running) = process.as_ref()
            && sys::send_packet(running.socket.as_fd(), &bytes, &[theirs.as_fd()]).is_ok()
        {
            return Ok(ours);
        }
        // The first time, or somebody killed it.
        let new = self.start(lock)?;
        sys::send_packet(new.socket.as_fd(), &bytes, &[theirs.as_fd()])
            .ctx(|| "talk to the shim spawner".into())?;
        *process = Some(new);
        Ok(ours)
    }

    fn start(&self, lock: &RunLock) -> Result<Process> {
        let (ours, theirs) = sys::packet_pair().ctx(|| "make a socket pair".into())?;
        sys::size_buffers(ours.as_fd());
        let program = self.command.first().cloned().unwrap_or_else(|| "/proc/self/exe".into());
        let lock = lock.for_spawner().ctx(|| "hand on the lock".into())?;
        let mut command = std::process::Command::new(&program);
        command
            .args(self.command.iter().skip(1))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::null());
        // Nothing of the engine's environment belongs into a process that outlives it.
        command.env_clear();
        if !self.cgroup.is_empty() {
            command.arg("--cgroup").arg(&self.cgroup);
        }
        let mut child = command.spawn().ctx(|| format!("start {}", program.display()))?;
        let (tell, ended) = oneshot::channel();
        // It ends when this process does; whoever ends it earlier must not leave a zombie.
        std::thread::Builder::new()
            .name("shim-spawner".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                let _ = child.wait();
                drop(tell);
            })
            .ctx(|| "watch the shim spawner".into())?;
        Ok(Process { socket: ours, ended })
    }
}
