//! `yare shim`: one small single-threaded process per pod that outlives the engine.
//!
//! The engine starts one *spawner* (`yare shim --cgroup G`, its standard input a packet socket, its standard output
//! a lock that it holds and that each shim holds until its sandbox is made). For every sandbox
//! the engine sends it a [`SandboxSpec`] with one end of a socket pair; the spawner forks, and the child becomes
//! that sandbox's shim: it makes the sandbox ([`sandbox`]), answers on the socket, and from then on serves
//! requests ([`server`]). Forking instead of starting anew shares all memory pages between shims and costs a
//! fraction of a millisecond. The spawner ends with the engine; shims stay, and a later engine finds them by their
//! listening sockets.
//!
//! No async runtime, no threads: a shim forks containers ([`launch`]), which only a single-threaded process can do
//! safely.

pub(crate) mod caps;
mod container;
mod exec;
mod hooks;
mod launch;
mod log;
mod rootfs;
mod sandbox;
mod seccomp;
mod server;
mod stream;
mod user;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::cgroup::Cgroups;
use crate::proto::{Message, SandboxSpec};
use crate::sys;

pub(crate) use launch::merge_env;

/// Becomes the spawner of shims. Call it first in `main`, before any thread exists.
///
/// `args` are the arguments after `shim`. Never returns.
pub fn main(args: impl Iterator<Item = String>) -> ! {
    let code = match spawner(args) {
        Ok(()) => 0,
        Err(e) => {
            // Nobody listens but a person who typed the command.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("yare shim: {e}\n").as_bytes());
            1
        }
    };
    std::process::exit(code)
}

fn spawner(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let mut cgroup = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--cgroup" => cgroup = args.next(),
            other => return Err(format!("unknown argument {other:?}; this command is for yare's own use")),
        }
    }
    // SAFETY: the program has only just begun, and owns nothing but its standard streams.
    #[allow(unsafe_code)]
    unsafe {
        sys::close_from(3);
    }
    let making: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    let kind = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SockType);
    if kind.is_err() {
        return Err(
            "its standard input must be the engine's socket; this command is for yare's own use".into()
        );
    }
    let null =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|e| e.to_string())?;
    for number in 0..3 {
        sys::dup_to(null.as_fd(), number).map_err(|e| e.to_string())?;
    }
    drop(null);
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    sys::set_process_name(c"yare-spawner");
    let cgroups = Cgroups::detect();
    if let Some(cgroup) = cgroup {
        // Away from the service's cgroup, so that stopping the service does not kill the pods. Best effort: a
        // read-only cgroup tree leaves everything where it is.
        let _ = cgroups.join(Path::new(&cgroup));
    }
    // The shims are the last to go when memory is short. Needs CAP_SYS_RESOURCE.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    for s in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE, Signal::SIGCHLD] {
        ignore(s);
    }
    let mut buffer = vec![0; sys::MAX_PACKET];
    loop {
        let (n, mut fds) = sys::recv_packet(socket.as_fd(), &mut buffer).map_err(|e| e.to_string())?;
        if n == 0 {
            // The engine is gone; the shims live on.
            return Ok(());
        }
        let Some(connection) = fds.pop() else { continue };
        match fork() {
            Ok(Some(())) => drop(connection),
            Ok(None) => {
                drop(socket);
                let spec = serde_json::from_slice::<SandboxSpec>(&buffer[..n]);
                drop(buffer);
                shim(spec.map_err(|e| e.to_string()), connection, making, cgroups);
            }
            Err(e) => refuse(&connection, &format!("fork: {e}")),
        }
    }
}

#[allow(unsafe_code)]
fn ignore(s: Signal) {
    // SAFETY: no handler function is involved.
    let _ = unsafe { signal(s, SigHandler::SigIgn) };
}

#[allow(unsafe_code)]
fn fork() -> std::io::Result<Option<()>> {
    // SAFETY: called by the spawner, which has one thread.
    Ok(unsafe { sys::clone3(0, None) }?.map(drop))
}

fn refuse(connection: &OwnedFd, error: &str) {
    let message = Message::Ready { pid: 0, error: Some(error.to_owned()) };
    if let Ok(bytes) = serde_json::to_vec(&message) {
        let _ = sys::send_packet(connection.as_fd(), &bytes, &[]);
    }
}

/// The forked child: makes the sandbox and serves it. Never returns.
fn shim(spec: Result<SandboxSpec, String>, connection: OwnedFd, making: OwnedFd, cgroups: Cgroups) -> ! {
    let _ = nix::unistd::setsid();
    sys::set_process_name(c"yare-shim");
    // SAFETY: restores the default, so that children can be waited for.
    #[allow(unsafe_code)]
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    let made = spec.and_then(|spec| {
        let _ = sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        let held = sandbox::enter(&spec)?;
        server::Server::new(spec, held, cgroups).map_err(|e| e.to_string())
    });
    // From here on a later engine finds this shim by its socket, or there is nothing to find.
    drop(making);
    match made {
        Ok(mut server) => {
            server.adopt(connection);
            server.run();
            launch::exit_now(0)
        }
        Err(e) => {
            refuse(&connection, &e);
            // Wait until it has been read: a closed socket with unread data loses it.
            let mut rest = [0; 1];
            let _ = std::fs::File::from(connection).read(&mut rest);
            launch::exit_now(1)
        }
    }
}
