//! What a shim does once, when its sandbox is made: namespaces, shared memory, host name, sysctls, the shared PID
//! namespace's init.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::hooks::RuntimeNamespaces;
use crate::api::{IdMapping, NamespaceMode};
use crate::proto::SandboxSpec;
use crate::sys;

type Result<T> = std::result::Result<T, String>;

/// What the shim holds for its pod.
pub(super) struct Held {
    /// The init of a shared PID namespace.
    pub pause: Option<sys::Child>,
    /// The pod's user namespace.
    pub userns: Option<UserNs>,
    /// Where hooks run.
    pub runtime: RuntimeNamespaces,
}

/// A pod's user namespace, and which ids outside its root is.
pub(super) struct UserNs {
    pub fd: OwnedFd,
    pub root_uid: u32,
    pub root_gid: u32,
}

impl UserNs {
    /// Becomes root of it. Only for a forked child: there is no way back.
    pub(super) fn enter(&self) -> Result<()> {
        sys::setns(self.fd.as_fd(), libc::CLONE_NEWUSER)
            .map_err(|e| format!("join the user namespace: {e}"))?;
        become_root()
    }
}

/// Takes the ids of root inside a user namespace that was just joined.
pub(super) fn become_root() -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setgroups(&[]).map_err(|e| format!("setgroups: {e}"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| format!("setgid: {e}"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| format!("setuid: {e}"))
}

/// Makes the sandbox around this process.
pub(super) fn enter(spec: &SandboxSpec) -> Result<Held> {
    let runtime = RuntimeNamespaces::own();
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
        Some(mapping) => Some(UserNs {
            fd: user_namespace(flags, &mapping.uids, &mapping.gids)?,
            root_uid: root_of(&mapping.uids),
            root_gid: root_of(&mapping.gids),
        }),
    };
    if let Some(path) = &spec.netns {
        hold_namespace(path)?;
        loopback_up().map_err(|e| format!("bring up the loopback interface: {e}"))?;
        open_to_all_users(userns.is_none());
    }
    if let Some(path) = &spec.shm {
        fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut options = "mode=1777,size=65536k".to_owned();
        if let Some(mapping) = &spec.namespaces.user {
            options = format!("{options},uid={},gid={}", root_of(&mapping.uids), root_of(&mapping.gids));
        }
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|e| format!("mount {}: {e}", path.display()))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWUTS) && !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname)
            .map_err(|e| format!("set hostname {:?}: {e}", spec.hostname))?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(sysctl_path(name));
        fs::write(&path, value).map_err(|e| format!("sysctl {name}={value}: {e}"))?;
    }
    let pause = if spec.namespaces.pid == NamespaceMode::Pod { Some(pause(userns.as_ref())?) } else { None };
    Ok(Held { pause, userns, runtime })
}

/// In a network of the pod's own nobody is kept from low ports or from pinging, as Docker, CRI-O and containerd 2 have
/// it: images that drop all capabilities count on it. What the pod says itself is written after this. In a user
/// namespace the range has groups that are nobody's there. Where `/proc/sys` cannot be written, the kernel's defaults
/// stay.
fn open_to_all_users(pings: bool) {
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    if pings {
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }
}

/// `net.core.somaxconn` and `net/core/somaxconn` are the same; with slashes, dots belong to names.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.to_owned(),
        _ => name.replace('.', "/"),
    }
}

fn root_of(mapping: &[IdMapping]) -> u32 {
    mapping.iter().find(|m| m.container_id == 0).map_or(0, |m| m.host_id)
}

/// Binds this process's network namespace to a path.
fn hold_namespace(path: &Path) -> Result<()> {
    let error = |e: &dyn std::fmt::Display| format!("network namespace {}: {e}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| error(&e))?;
    }
    fs::File::create(path).map_err(|e| error(&e))?;
    mount(Some("/proc/self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| error(&e))
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
        sys::setns(child.pidfd.as_fd(), flags.bits())
            .map_err(|e| format!("join the pod's namespaces: {e}"))?;
        Ok(OwnedFd::from(userns))
    })();
    drop(ours);
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
    result
}

/// The first process of a shared PID namespace: reaps orphans and waits to be killed.
fn pause(userns: Option<&UserNs>) -> Result<sys::Child> {
    let error = |e: std::io::Error| format!("PID namespace: {e}");
    let Some(userns) = userns else {
        // SAFETY: the shim has one thread.
        let child = unsafe { sys::clone3(libc::CLONE_NEWPID, None) }.map_err(error)?;
        let Some(child) = child else { pause_main() };
        return Ok(child);
    };
    // The namespace must belong to the user namespace, which the shim itself cannot join: a child does, and forks
    // a sibling of its own.
    let (ours, theirs) = sys::packet_pair().map_err(error)?;
    // SAFETY: the shim has one thread.
    let Some(helper) = unsafe { sys::clone3(0, None) }.map_err(error)? else {
        drop(ours);
        if userns.enter().is_ok() {
            // SAFETY: this child has one thread, too.
            match unsafe { sys::clone3(libc::CLONE_PARENT | libc::CLONE_NEWPID, None) } {
                Ok(None) => pause_main(),
                Ok(Some(child)) => drop(sys::send_packet(theirs.as_fd(), b"ok", &[child.pidfd.as_fd()])),
                Err(_) => {}
            }
        }
        super::launch::exit_now(0)
    };
    drop(theirs);
    let received = sys::recv_packet(ours.as_fd(), &mut [0; 8]);
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(helper.pid), None);
    let pidfd = received.map_err(error)?.1.pop().ok_or("PID namespace: the user namespace refuses")?;
    let pid = sys::pid_of(pidfd.as_fd()).map_err(error)?;
    Ok(sys::Child { pid, pidfd })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_have_two_spellings() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.100/rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
    }
}
