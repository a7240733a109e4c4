//! What a shim does once, when its sandbox is made: namespaces, shared memory, host name, sysctls, the shared PID
//! namespace's init.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::api::{IdMapping, NamespaceMode};
use crate::proto::SandboxSpec;
use crate::sys;

type Result<T> = std::result::Result<T, String>;

/// What the shim holds for its pod.
pub(super) struct Held {
    /// The init of a shared PID namespace.
    pub pause: Option<sys::Child>,
    /// The pod's user namespace.
    pub userns: Option<OwnedFd>,
}

/// Makes the sandbox around this process.
pub(super) fn enter(spec: &SandboxSpec) -> Result<Held> {
    let mut flags = CloneFlags::empty();
    if spec.namespaces.network == NamespaceMode::Pod {
        // The node's network comes with the node's host name.
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if spec.namespaces.ipc == NamespaceMode::Pod {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    let userns = match &spec.namespaces.user {
        None => {
            unshare(flags).map_err(|e| format!("make namespaces: {e}"))?;
            None
        }
        Some(mapping) => Some(user_namespace(flags, &mapping.uids, &mapping.gids)?),
    };
    if let Some(path) = &spec.netns {
        hold_namespace(path)?;
        loopback_up().map_err(|e| format!("bring up the loopback interface: {e}"))?;
    }
    if let Some(path) = &spec.shm {
        fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut options = "mode=1777,size=65536k".to_owned();
        if let Some(mapping) = &spec.namespaces.user {
            let root = |m: &[IdMapping]| m.iter().find(|m| m.container_id == 0).map_or(0, |m| m.host_id);
            options = format!("{options},uid={},gid={}", root(&mapping.uids), root(&mapping.gids));
        }
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|e| format!("mount {}: {e}", path.display()))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWUTS) && !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname).map_err(|e| format!("set hostname {:?}: {e}", spec.hostname))?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|e| format!("sysctl {name}={value}: {e}"))?;
    }
    let pause = if spec.namespaces.pid == NamespaceMode::Pod { Some(pause(userns.as_ref())?) } else { None };
    Ok(Held { pause, userns })
}

/// Binds this process's network namespace to a path.
fn hold_namespace(path: &Path) -> Result<()> {
    let error = |e: &dyn std::fmt::Display| format!("network namespace {}: {e}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| error(&e))?;
    }
    fs::File::create(path).map_err(|e| error(&e))?;
    mount(Some("/proc/self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| error(&e))
}

fn loopback_up() -> std::io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request names an interface and holds its new flags.
    let r = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS as _, &raw const request)
    };
    if r < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the pod's user namespace with namespaces that belong to it, and joins all but the user namespace.
fn user_namespace(flags: CloneFlags, uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let (ours, theirs) = sys::packet_pair().map_err(|e| e.to_string())?;
    // SAFETY: the shim has one thread.
    let child = unsafe { sys::clone3(0, None) }.map_err(|e| format!("fork: {e}"))?;
    let Some(child) = child else {
        // Makes the namespaces, then lives until its parent has joined them.
        let made = unshare(CloneFlags::CLONE_NEWUSER | flags);
        let _ = sys::send_packet(theirs.as_fd(), if made.is_ok() { b"ok" } else { b"no" }, &[]);
        drop(ours);
        let mut buffer = [0; 8];
        let _ = sys::recv_packet(theirs.as_fd(), &mut buffer);
        super::launch::exit_now(0);
    };
    drop(theirs);
    let mut buffer = [0; 8];
    let (n, _) = sys::recv_packet(ours.as_fd(), &mut buffer).map_err(|e| e.to_string())?;
    let result = (|| {
        if &buffer[..n] != b"ok" {
            return Err("make the user namespace: the system refuses".to_owned());
        }
        let table = |m: &[IdMapping]| {
            m.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.length)).collect::<String>()
        };
        for (file, map) in [("uid_map", uids), ("gid_map", gids)] {
            let path = format!("/proc/{}/{file}", child.pid);
            fs::write(&path, table(map)).map_err(|e| format!("{path}: {e}"))?;
        }
        let path = format!("/proc/{}/ns/user", child.pid);
        let userns = fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        sys::setns(child.pidfd.as_fd(), flags.bits()).map_err(|e| format!("join the pod's namespaces: {e}"))?;
        Ok(OwnedFd::from(userns))
    })();
    drop(ours);
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
    result
}

/// The first process of a shared PID namespace: reaps orphans and waits to be killed.
fn pause(userns: Option<&OwnedFd>) -> Result<sys::Child> {
    if userns.is_some() {
        return Err("a shared PID namespace together with a user namespace is not supported".to_owned());
    }
    // SAFETY: the shim has one thread.
    let child = unsafe { sys::clone3(libc::CLONE_NEWPID, None) }.map_err(|e| format!("PID namespace: {e}"))?;
    let Some(child) = child else { pause_main() };
    Ok(child)
}

fn pause_main() -> ! {
    super::launch::reset_signals();
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
    sys::set_process_name(c"pause");
    // SAFETY: this copy of the shim uses none of its descriptors afterwards.
    unsafe { sys::close_from(0) };
    loop {
        // SAFETY: reaps any child; no memory involved. A blocking wait without children fails at once.
        let r = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        if r < 0 {
            // No child now: orphans arrive without a signal of their own, so look again when one ends.
            let mut set = nix::sys::signal::SigSet::empty();
            set.add(nix::sys::signal::Signal::SIGCHLD);
            let _ = set.thread_block();
            // An orphan that ended between the wait above and the block is found by this one.
            // SAFETY: as above.
            let again = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
            if again <= 0 {
                let _ = set.wait();
            }
        }
    }
}

/// Forks with `fork` into another PID namespace. `None` in the child, which must never come back here.
pub(super) fn in_pid_namespace<T>(
    pidfd: BorrowedFd<'_>,
    fork: impl FnOnce() -> std::io::Result<(Option<sys::Child>, T)>,
) -> std::io::Result<(Option<sys::Child>, T)> {
    let own = fs::File::open("/proc/self/ns/pid")?;
    sys::setns(pidfd, libc::CLONE_NEWPID)?;
    let forked = fork();
    if !matches!(forked, Ok((None, _))) {
        // Only the parent goes back: the child is where it belongs, and could not.
        sys::setns(own.as_fd(), libc::CLONE_NEWPID)?;
    }
    forked
}
