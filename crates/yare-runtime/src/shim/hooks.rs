//! OCI hooks: programs of the node that run at moments of a container's life.
//!
//! ```text
//! fork ─┬─ prestart, createRuntime   in the runtime's namespaces, by a process of their own; the container waits
//!       ├─ createContainer           in the container's mounts, before its root is the root
//!       ├─ startContainer            in the container, before its own program
//! exec ─┼─ poststart                 in the runtime's namespaces
//! end  ─┴─ poststop                  in the runtime's namespaces
//! ```
//!
//! A hook that fails before the container's program runs fails its start; later ones are only noted. A shim never
//! waits for a hook: who runs them is a process of its own.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::proto::{Hook, Spec};
use crate::sys;

/// A hook that says nothing of time may take this long.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is kept of a hook's complaints.
const STDERR_MAX: usize = 4096;

/// The namespaces of the runtime, which a sandbox leaves when it makes its own.
#[derive(Default)]
pub(super) struct RuntimeNamespaces(Vec<OwnedFd>);

impl RuntimeNamespaces {
    /// Those of this process.
    pub(super) fn own() -> Self {
        let open = |name: &str| std::fs::File::open(format!("/proc/self/ns/{name}")).ok().map(OwnedFd::from);
        RuntimeNamespaces(["net", "uts", "ipc"].into_iter().filter_map(open).collect())
    }

    fn join(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|fd| sys::setns(fd.as_fd(), 0))
    }
}

/// What hooks are told of their container, by their standard input.
pub(super) fn state(spec: &Spec, bundle: &Path, status: &str, pid: i32) -> Vec<u8> {
    let mut state = json!({
        "ociVersion": "1.2.0",
        "id": spec.id,
        "status": status,
        "bundle": bundle,
        "annotations": spec.annotations,
    });
    if pid != 0 {
        state["pid"] = json!(pid);
    }
    state.to_string().into_bytes()
}

/// Runs hooks one after another in a process of their own, in the runtime's namespaces. What comes of it goes to
/// `word`: nothing when all is well, or why not.
#[allow(unsafe_code)]
pub(super) fn detach(
    kind: &str,
    hooks: &[&Hook],
    state: &[u8],
    namespaces: &RuntimeNamespaces,
    word: Option<OwnedFd>,
) -> io::Result<()> {
    // SAFETY: a shim has one thread.
    if unsafe { sys::clone3(0, None) }?.is_some() {
        return Ok(());
    }
    super::launch::reset_signals();
    // A container's standard input must not stay open because this process has a copy of it.
    close_others(word.as_ref(), &namespaces.0);
    let outcome = namespaces.join().map_err(|e| format!("join the runtime's namespaces: {e}"));
    let outcome = outcome.and_then(|()| run_all(kind, hooks, state));
    if let (Err(message), Some(word)) = (outcome, word) {
        let _ = std::fs::File::from(word).write_all(message.as_bytes());
    }
    super::launch::exit_now(0)
}

/// Closes every descriptor but standard streams, `word` and the namespaces.
fn close_others(word: Option<&OwnedFd>, namespaces: &[OwnedFd]) {
    let keep: Vec<i32> = namespaces.iter().chain(word).map(AsRawFd::as_raw_fd).collect();
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // SAFETY: this process uses none of the shim's descriptors but those.
        #[allow(unsafe_code)]
        unsafe {
            libc::close(fd);
        }
    }
}

/// Runs hooks one after another, here.
pub(super) fn run_all(kind: &str, hooks: &[&Hook], state: &[u8]) -> Result<(), String> {
    for (i, hook) in hooks.iter().enumerate() {
        run(hook, state).map_err(|e| format!("error running {kind} hook #{i}: {e}"))?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &[u8]) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|e| e.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", hook.path.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A state fits into a pipe; a hook that does not read it is none of our business.
        let _ = stdin.write_all(state);
    }
    let patience = hook.timeout_s.map_or(PATIENCE, Duration::from_secs);
    let (complaint, ended) = listen(child.stderr.take(), Instant::now() + patience);
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("{}: not done after {} s", hook.path.display(), patience.as_secs()));
    }
    let status = wait(&mut child, Instant::now() + patience)
        .ok_or_else(|| format!("{}: not done after {} s", hook.path.display(), patience.as_secs()))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}, stdout: , stderr: {}", complaint.trim_end()))
}

/// Reads what a hook complains of until it closes its standard error, or until the time is over.
fn listen(stderr: Option<std::process::ChildStderr>, deadline: Instant) -> (String, bool) {
    let Some(mut stderr) = stderr else { return (String::new(), true) };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = {
            let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, timeout)
        };
        match ready {
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(0) if left.is_zero() => return (text(&kept), false),
            Ok(0) => continue,
            Err(_) => return (text(&kept), true),
            Ok(_) => {}
        }
        match stderr.read(&mut buffer) {
            Ok(0) | Err(_) => return (text(&kept), true),
            Ok(n) => kept.extend_from_slice(&buffer[..n.min(STDERR_MAX.saturating_sub(kept.len()))]),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for a hook that has closed its standard error: it ends at once, or it does not mean to.
fn wait(child: &mut std::process::Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}
