//! The engine's side of the shim spawner: starts it when needed, and has it fork a shim.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use tokio::sync::Mutex;

use super::lock::RunLock;
use crate::error::{IoContext, Result};
use crate::proto::SandboxSpec;
use crate::sys;

/// Forks shims.
pub(super) struct Spawner {
    command: Vec<OsString>,
    cgroup: String,
    socket: Mutex<Option<OwnedFd>>,
}

impl Spawner {
    pub(super) fn new(command: Vec<OsString>, cgroup: String) -> Self {
        Self { command, cgroup, socket: Mutex::default() }
    }

    /// Starts the spawner process; errors show when a shim is asked for.
    pub(super) async fn warm_up(&self, lock: &RunLock) {
        let mut socket = self.socket.lock().await;
        if socket.is_none() {
            *socket = self.start(lock).ok();
        }
    }

    /// Forks a shim. Answers our end of its connection; its first packet says how it went.
    pub(super) async fn spawn(&self, spec: &SandboxSpec, lock: &RunLock) -> Result<OwnedFd> {
        let (ours, theirs) = sys::packet_pair().ctx(|| "make a socket pair".into())?;
        let bytes =
            serde_json::to_vec(spec).map_err(std::io::Error::from).ctx(|| "encode a sandbox".into())?;
        let mut socket = self.socket.lock().await;
        if let Some(s) = socket.as_ref()
            && sys::send_packet(s.as_fd(), &bytes, &[theirs.as_fd()]).is_ok()
        {
            return Ok(ours);
        }
        // The first time, or somebody killed it.
        let new = self.start(lock)?;
        sys::send_packet(new.as_fd(), &bytes, &[theirs.as_fd()]).ctx(|| "talk to the shim spawner".into())?;
        *socket = Some(new);
        Ok(ours)
    }

    fn start(&self, lock: &RunLock) -> Result<OwnedFd> {
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
        // It ends when this process does; whoever ends it earlier must not leave a zombie.
        std::thread::Builder::new()
            .name("shim-spawner".into())
            .stack_size(64 * 1024)
            .spawn(move || child.wait())
            .ctx(|| "watch the shim spawner".into())?;
        Ok(ours)
    }
}
