//! System calls that no crate wraps the way we need them: the mount API on file descriptors, `clone3`,
//! `openat2`, capabilities, and messages with file descriptors over sequenced-packet sockets.
//!
//! Everything answers `io::Result`; no policy lives here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path as the kernel wants it.
pub(crate) fn cpath(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Clones the mount at `path` into a detached mount; `recursive` with everything below.
pub(crate) fn open_tree_clone(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = cpath(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: the path is a valid C string for the duration of the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a detached mount at `target`.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const F_EMPTY_PATH: libc::c_uint = 0x4;
    const T_EMPTY_PATH: libc::c_uint = 0x40;
    let empty = c"";
    // SAFETY: both descriptors are open and both paths are empty C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty.as_ptr(),
            target.as_raw_fd(),
            empty.as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Mount attributes, as `mount_setattr(2)` takes them.
#[derive(Default, Clone, Copy)]
#[repr(C)]
pub(crate) struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// `MOUNT_ATTR_RDONLY`.
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR_IDMAP`.
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Changes a mount's attributes.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` has the kernel's layout and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            mem::size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// A filesystem to be configured; `ENODEV` where the kernel has none of this type.
pub(crate) fn open_filesystem(fstype: &CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    // SAFETY: a valid C string, which the kernel copies.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
}

/// A new filesystem as a detached mount: `fsopen`, `fsconfig`, `fsmount`.
pub(crate) fn new_filesystem(fstype: &CStr, options: &[(&CStr, &CStr)], attr: u64) -> io::Result<OwnedFd> {
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const CLOEXEC: libc::c_uint = 1;
    let none: *const libc::c_char = std::ptr::null();
    let fs = open_filesystem(fstype)?;
    for (key, value) in options {
        // SAFETY: C strings and descriptors are valid for the calls; the kernel copies what it needs.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                fs.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: as above.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), CLOEXEC, attr as libc::c_uint) })
}

/// Sets or clears `favordynmods` on a mounted cgroup2 hierarchy: moving a process then costs 0.1 ms instead of
/// an RCU grace period (6-18 ms).
pub(crate) fn cgroup2_favor_dynmods(mountpoint: &Path) -> io::Result<()> {
    const FSPICK_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_SET_FLAG: libc::c_uint = 0;
    const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;
    let path = cpath(mountpoint)?;
    let none: *const libc::c_char = std::ptr::null();
    // SAFETY: valid C strings and descriptors.
    let fs =
        owned(unsafe { libc::syscall(libc::SYS_fspick, libc::AT_FDCWD, path.as_ptr(), FSPICK_CLOEXEC) })?;
    for flag in [
        c"nsdelegate",
        c"memory_localevents",
        c"memory_recursiveprot",
        c"memory_hugetlb_accounting",
        c"pids_localevents",
        c"favordynmods",
    ] {
        // What is on already must be said again, or reconfiguring takes it away.
        if flag != c"favordynmods" && !mount_has_option(mountpoint, flag.to_str().unwrap_or_default()) {
            continue;
        }
        // SAFETY: as above.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_SET_FLAG, flag.as_ptr(), none, 0)
        })?;
    }
    // SAFETY: as above.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_CMD_RECONFIGURE, none, none, 0)
    })?;
    Ok(())
}

fn mount_has_option(mountpoint: &Path, option: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.nth(1).is_some_and(|m| Path::new(m) == mountpoint)
            && fields.nth(1).is_some_and(|o| o.split(',').any(|o| o == option))
    })
}

/// What `clone3` made, seen from the parent.
pub(crate) struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with namespace flags, optionally straight into a cgroup of the v2 hierarchy. `None` in the child.
///
/// # Safety
/// The process must have one thread only: the child goes on with a copy of everything, locks included.
pub(crate) unsafe fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let parent = flags & libc::CLONE_PARENT != 0;
    let mut args = CloneArgs {
        flags: flags as u32 as u64 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: if parent { 0 } else { libc::SIGCHLD as u64 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments have the kernel's layout; without CLONE_VM the child gets a copy of our memory, and
    // the caller promises that there is no other thread.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, mem::size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel put a new descriptor there.
    Ok(Some(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }))
}

/// Joins namespaces of the process behind a pidfd, or of a namespace descriptor.
pub(crate) fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::c_long::from(libc::setns(fd.as_raw_fd(), flags)) })?;
    Ok(())
}

/// Opens a path that must stay below `root`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const RESOLVE_IN_ROOT: u64 = 0x10;
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    let path = cpath(path)?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    // SAFETY: valid C string, `how` has the kernel's layout and its size is passed.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            mem::size_of::<OpenHow>(),
        )
    })
}

/// The process id behind a pidfd, as this process's `/proc` numbers it.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|l| l.strip_prefix("Pid:")).and_then(|v| v.trim().parse().ok());
    pid.filter(|p| *p > 0).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Sends a signal through a pidfd: no process with a reused id can be hit.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Plain `prctl` with integer arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> io::Result<i32> {
    // SAFETY: only used with options whose arguments are integers.
    check(unsafe { libc::c_long::from(libc::prctl(option, a, b, c, d)) }).map(|r| r as i32)
}

/// Names this process, as `ps` shows it.
pub(crate) fn set_process_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Sets the effective, permitted and inheritable capability sets.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the interface reads two data elements.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// Installs a seccomp filter.
pub(crate) fn seccomp_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call; the kernel copies and verifies it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) })?;
    Ok(())
}

/// Marks all descriptors from `first` on to be closed by `execve`.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no memory involved; nothing is closed now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Closes all descriptors from `first` on.
///
/// # Safety
/// Nothing may own them.
pub(crate) unsafe fn close_from(first: u32) {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Makes `fd` the controlling terminal of this session.
pub(crate) fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integer argument.
    check(unsafe { libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY as _, 0)) })?;
    Ok(())
}

/// Unlocks a terminal's other side and answers its number.
pub(crate) fn unlock_pty(master: BorrowedFd<'_>) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    let unlock: libc::c_int = 0;
    // SAFETY: both ioctls read or write one integer.
    unsafe {
        check(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock)))?;
        check(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number)))?;
    }
    Ok(number)
}

/// Sets a terminal's size.
pub(crate) fn set_window_size(tty: BorrowedFd<'_>, cols: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads one winsize.
    check(unsafe {
        libc::c_long::from(libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size))
    })?;
    Ok(())
}

/// Sets `O_NONBLOCK`.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: integer arguments.
    let flags = check(unsafe { libc::c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL)) })? as i32;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: integer arguments.
    check(unsafe { libc::c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags)) })?;
    Ok(())
}

/// Puts `fd` at number `number`, open across `execve`.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: integer arguments; clears close-on-exec.
        check(unsafe { libc::c_long::from(libc::fcntl(number, libc::F_SETFD, 0)) })?;
        return Ok(());
    }
    // SAFETY: replaces descriptor `number`, which the caller gives up.
    check(unsafe { libc::c_long::from(libc::dup2(fd.as_raw_fd(), number)) })?;
    Ok(())
}

/// The largest message over a packet socket.
pub(crate) const MAX_PACKET: usize = 160 * 1024;
/// The most descriptors in one message.
pub(crate) const MAX_FDS: usize = 4;

/// Sends one packet with descriptors.
pub(crate) fn send_packet(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<RawFd> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[io::IoSlice::new(data)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one packet; an empty one is the end.
pub(crate) fn recv_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut iov = [io::IoSliceMut::new(buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut fds = Vec::new();
                for c in message.cmsgs().map_err(io::Error::from)? {
                    if let ControlMessageOwned::ScmRights(raw) = c {
                        // SAFETY: the kernel just installed these descriptors for us.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                if message.flags.contains(MsgFlags::MSG_TRUNC) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
                }
                return Ok((message.bytes, fds));
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A pair of connected packet sockets, closed on exec.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A descriptor that the event loop watches.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always answers the same open descriptor.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// Room in the socket for our largest message.
pub(crate) fn size_buffers(socket: BorrowedFd<'_>) {
    use nix::sys::socket::{setsockopt, sockopt};
    let size = MAX_PACKET * 2;
    if setsockopt(&socket, sockopt::SndBufForce, &size).is_err() {
        // Without CAP_NET_ADMIN the system's maximum has to do.
        let _ = setsockopt(&socket, sockopt::SndBuf, &size);
    }
}

/// Extended attributes of a file that is not followed if it is a link.
pub(crate) fn lsetxattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = cpath(path)?;
    // SAFETY: pointer and length describe `value`.
    check(unsafe {
        libc::c_long::from(libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        ))
    })?;
    Ok(())
}

/// Removes an extended attribute, where there is one.
pub(crate) fn lremovexattr(path: &Path, name: &CStr) -> io::Result<()> {
    let path = cpath(path)?;
    // SAFETY: both are strings that end with NUL.
    let done = check(unsafe { libc::c_long::from(libc::lremovexattr(path.as_ptr(), name.as_ptr())) });
    match done {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Err(e),
        _ => Ok(()),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as i64
}
