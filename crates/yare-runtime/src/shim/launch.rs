//! From a forked child to the container's first process, or to an exec's: everything between `clone` and `execve`.
//!
//! The child tells the shim how it goes through a packet socket that `execve` closes ([`Report`]): an error text,
//! the terminal, the resolved user, and a last word before the exec, so that a closed socket without it means that
//! the child died.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::hooks;
use super::rootfs::sources::Sources;
use super::rootfs::{self, Root, overlay};
use super::sandbox::{UserNs, become_root};
use super::seccomp::Profile;
use super::{caps, user};
use crate::api::{ContainerUser, NamespaceMode, SeccompProfile};
use crate::cgroup::Cgroups;
use crate::proto::{Hook, RunRecord, Spec};
use crate::sys;

type Result<T> = std::result::Result<T, String>;

/// What a child tells the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// It failed; `code` is what the exit code should be.
    Failed { message: String, code: i32 },
    /// The container's process is another one (its pidfd is attached): this one only prepared it.
    Forked,
    /// The terminal's other side is attached.
    Terminal,
    /// The user it runs as. The next thing is the exec.
    Ready { user: ContainerUser, home: String },
}

/// Standard streams of the new process; none with a terminal.
pub(super) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A new process's connections: its streams, and the socket to report on.
pub(super) struct Wires<'a> {
    /// None: a terminal.
    pub stdio: Option<Stdio>,
    pub report: BorrowedFd<'a>,
}

/// How the new process comes into its cgroups.
pub(super) struct Group<'a> {
    pub cgroups: &'a Cgroups,
    /// It was forked into the one of version 2.
    pub in_v2: bool,
}

impl Group<'_> {
    fn enter(&self, spec: &Spec) -> Result<()> {
        self.cgroups.enter(&spec.cgroup, !self.in_v2).map_err(|e| format!("join cgroup: {e}"))
    }
}

/// What has to be read while the host's files can still be seen.
struct Before {
    filter: Option<Vec<libc::sock_filter>>,
    /// Those asked for that we have: without all of root's power, a privileged container gets less, too.
    capabilities: u64,
}

impl Before {
    fn read(spec: &Spec, userns: bool) -> Result<Self> {
        // In a user namespace of its own even an unprivileged process has them all.
        let available = if userns { caps::ALL } else { caps::available() };
        Ok(Self { filter: load_filter(spec)?, capabilities: spec.capabilities & available })
    }
}

/// A failure and the exit code it stands for.
pub(super) struct Failure {
    pub message: String,
    pub code: i32,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { message, code: 128 }
    }
}

fn report(socket: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) {
    if let Ok(bytes) = serde_json::to_vec(report) {
        let _ = sys::send_packet(socket, &bytes, fds);
    }
}

/// Tells the shim and ends this child.
pub(super) fn fail(socket: BorrowedFd<'_>, failure: Failure) -> ! {
    report(socket, &Report::Failed { message: failure.message, code: failure.code }, &[]);
    exit_now(1)
}

/// Ends the process without running anything of the parent's.
#[allow(unsafe_code)]
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(code) }
}

/// Undoes what the shim and Rust's runtime set up for themselves: signal mask and dispositions.
#[allow(unsafe_code)]
pub(super) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets the default disposition; the kernel refuses for signals that cannot be changed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let empty = nix::sys::signal::SigSet::empty();
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&empty), None);
}

/// The container's first process. Runs in the new namespaces already; returns only by failing.
pub(super) fn container(
    spec: &Spec,
    dir: &Path,
    group: &Group<'_>,
    userns: Option<&UserNs>,
    wires: Wires<'_>,
    gate: Option<OwnedFd>,
) -> std::result::Result<Infallible, Failure> {
    let Wires { stdio, report: socket } = wires;
    let before = Before::read(spec, userns.is_some())?;
    group.enter(spec)?;
    set_oom_score(spec);
    let mut sources = Sources::collect(spec, group.cgroups, userns)?;
    match userns {
        None => {
            // After all cgroups: the namespace's root is the group it is made in.
            if own_cgroup_namespace(spec, group.cgroups) {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
                    .map_err(|e| format!("cgroup namespace: {e}"))?;
            }
            overlay::enter(spec, dir)?;
        }
        Some(userns) => {
            let tree = overlay::mapped(spec, dir, userns)?;
            for fd in stdio.iter().flat_map(|s| [&s.stdin, &s.stdout, &s.stderr]).filter(|fd| is_pipe(fd)) {
                let (uid, gid) = (Uid::from_raw(userns.root_uid), Gid::from_raw(userns.root_gid));
                let _ = nix::unistd::fchown(fd, Some(uid), Some(gid));
            }
            fork_into(spec, group.cgroups, userns, socket)?;
            sources.mount_kernel(spec)?;
            overlay::enter_tree(&tree)?;
        }
    }
    if let Some(gate) = gate {
        pass(gate)?;
    }
    let hooks: Vec<&Hook> = spec.hooks.create_container.iter().collect();
    let root = Root::enter(!hooks.is_empty())?;
    rootfs::populate(spec, group.cgroups, sources, userns.is_some())?;
    root.settle(|| {
        hooks::run_all("createContainer", &hooks, &hooks::state(spec, dir, "creating", host_pid()))
    })?;
    rootfs::lock(spec)?;
    if !spec.hooks.start_container.is_empty() {
        let hooks: Vec<&Hook> = spec.hooks.start_container.iter().collect();
        hooks::run_all("startContainer", &hooks, &hooks::state(spec, dir, "created", 1))?;
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let resolved = user::resolve(&spec.user, &read("/etc/passwd"), &read("/etc/group"))?;
    let _ = nix::unistd::setsid();
    match stdio {
        Some(stdio) => use_stdio(stdio, &resolved.user)?,
        None => terminal(&resolved.user, true, socket)?,
    }
    finish(spec, &spec.argv, &[], &resolved.user, &resolved.home, before, socket)
}

/// Waits for the hooks that run outside. Whoever runs them says nothing when all is well.
fn pass(gate: OwnedFd) -> Result<()> {
    let mut why = String::new();
    io::Read::read_to_string(&mut fs::File::from(gate), &mut why)
        .map_err(|e| format!("wait for hooks: {e}"))?;
    if why.is_empty() { Ok(()) } else { Err(why) }
}

/// This process's id as the host counts, as long as the host's `/proc` is to be seen.
fn host_pid() -> i32 {
    let link = fs::read_link("/proc/self").ok();
    link.and_then(|l| l.to_str()?.parse().ok()).unwrap_or(0)
}

/// Goes on in a new process, a child of the shim, whose namespaces belong to the user namespace.
#[allow(unsafe_code)]
fn fork_into(spec: &Spec, cgroups: &Cgroups, userns: &UserNs, socket: BorrowedFd<'_>) -> Result<()> {
    userns.enter()?;
    let mut flags = libc::CLONE_PARENT | libc::CLONE_NEWNS;
    if spec.pid == NamespaceMode::Container {
        flags |= libc::CLONE_NEWPID;
    }
    if own_cgroup_namespace(spec, cgroups) {
        flags |= libc::CLONE_NEWCGROUP;
    }
    // SAFETY: this forked process has one thread.
    match unsafe { sys::clone3(flags, None) }.map_err(|e| format!("fork into the user namespace: {e}"))? {
        Some(child) => {
            report(socket, &Report::Forked, &[child.pidfd.as_fd()]);
            exit_now(0)
        }
        None => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
            Ok(())
        }
    }
}

fn own_cgroup_namespace(spec: &Spec, cgroups: &Cgroups) -> bool {
    cgroups.unified() && !spec.privileged
}

fn is_pipe(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

/// A further process in a running container.
pub(super) fn exec(
    spec: &Spec,
    run: &RunRecord,
    argv: &[String],
    group: &Group<'_>,
    pidfd: BorrowedFd<'_>,
    userns: bool,
    wires: Wires<'_>,
) -> std::result::Result<Infallible, Failure> {
    let Wires { stdio, report: socket } = wires;
    let before = Before::read(spec, userns)?;
    group.enter(spec)?;
    set_oom_score(spec);
    let mut flags = libc::CLONE_NEWNS;
    if own_cgroup_namespace(spec, group.cgroups) {
        flags |= libc::CLONE_NEWCGROUP;
    }
    if userns {
        flags |= libc::CLONE_NEWUSER;
    }
    sys::setns(pidfd, flags).map_err(|e| format!("join the container's namespaces: {e}"))?;
    if userns {
        become_root()?;
    }
    let _ = nix::unistd::setsid();
    let extra: &[String] = if stdio.is_none() { &["TERM=xterm".to_owned()] } else { &[] };
    match stdio {
        Some(stdio) => use_stdio(stdio, &run.user)?,
        None => terminal(&run.user, false, socket)?,
    }
    finish(spec, argv, extra, &run.user, &run.home, before, socket)
}

fn set_oom_score(spec: &Spec) {
    let score = spec.resources.oom_score_adj.unwrap_or(0).clamp(-1000, 1000);
    // Lowering it needs CAP_SYS_RESOURCE; without, the container keeps the lowest score it may have.
    let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
}

fn use_stdio(stdio: Stdio, user: &ContainerUser) -> Result<()> {
    for (fd, number) in [(&stdio.stdin, 0), (&stdio.stdout, 1), (&stdio.stderr, 2)] {
        // /dev/stdout is opened anew through /proc, with the permissions of the pipe itself.
        if is_pipe(fd) {
            let _ = nix::unistd::fchown(fd, Some(Uid::from_raw(user.uid)), None);
        }
        sys::dup_to(fd.as_fd(), number).map_err(|e| format!("stdio: {e}"))?;
    }
    // The originals close on exec.
    Ok(())
}

fn terminal(user: &ContainerUser, console: bool, socket: BorrowedFd<'_>) -> Result<()> {
    let open = |path: &str| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path)
            .map_err(|e| format!("open terminal {path}: {e}"))
    };
    let master = open("/dev/pts/ptmx").or_else(|_| open("/dev/ptmx"))?;
    let number = sys::unlock_pty(master.as_fd()).map_err(|e| format!("unlock terminal: {e}"))?;
    let path = format!("/dev/pts/{number}");
    let slave = open(&path)?;
    let _ = nix::unistd::fchown(&slave, Some(Uid::from_raw(user.uid)), None);
    sys::set_controlling_terminal(slave.as_fd()).map_err(|e| format!("controlling terminal: {e}"))?;
    if console && fs::OpenOptions::new().create(true).append(true).open("/dev/console").is_ok() {
        let flags = nix::mount::MsFlags::MS_BIND;
        let _ = nix::mount::mount(Some(path.as_str()), "/dev/console", None::<&str>, flags, None::<&str>);
    }
    report(socket, &Report::Terminal, &[master.as_fd()]);
    for number in 0..3 {
        sys::dup_to(slave.as_fd(), number).map_err(|e| format!("stdio: {e}"))?;
    }
    Ok(())
}

/// Working directory, filter, user, capabilities, and the exec itself.
fn finish(
    spec: &Spec,
    argv: &[String],
    extra_env: &[String],
    user: &ContainerUser,
    home: &str,
    before: Before,
    socket: BorrowedFd<'_>,
) -> std::result::Result<Infallible, Failure> {
    let mut env: Vec<String> = Vec::with_capacity(spec.env.len() + 2);
    env.extend(spec.env.iter().cloned());
    for e in extra_env {
        if !env.iter().any(|have| have.split('=').next() == e.split('=').next()) {
            env.push(e.clone());
        }
    }
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    if !spec.cwd.exists() {
        let _ = fs::create_dir_all(&spec.cwd);
    }
    if spec.apparmor.starts_with("localhost/") && Path::new("/proc/self/attr/apparmor/exec").exists() {
        let profile = spec.apparmor.trim_start_matches("localhost/");
        fs::write("/proc/self/attr/apparmor/exec", format!("exec {profile}"))
            .map_err(|e| format!("apply apparmor profile {profile:?}: {e}"))?;
    }
    for limit in &spec.ulimits {
        limit.apply().map_err(|e| format!("{limit:?}: {e}"))?;
    }
    if spec.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).map_err(|e| format!("no_new_privs: {e}"))?;
    } else if let Some(filter) = &before.filter {
        // Without no_new_privs the filter needs CAP_SYS_ADMIN, which the next steps take away.
        sys::seccomp_filter(filter).map_err(|e| format!("seccomp filter: {e}"))?;
    }
    let capabilities = before.capabilities;
    become_user(capabilities, user)?;
    // Only now, as the user: a directory the user may not enter is an error, as with every runtime.
    if let Err(e) = std::env::set_current_dir(&spec.cwd) {
        return Err(format!(
            "chdir to cwd ({:?}) set in config.json failed: {}",
            spec.cwd.display(),
            words(&e)
        )
        .into());
    }
    // Checked as root: the user alone might not be allowed to look.
    let path = find_executable(argv, &env, user)?;
    sys::capset(capabilities, capabilities, 0).map_err(|e| format!("set capabilities: {e}"))?;
    // Changing the user forgot this.
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let c = |s: &str| CString::new(s).map_err(|_| format!("{s:?} contains a zero byte"));
    let program = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let argv_c = argv.iter().map(|a| c(a)).collect::<Result<Vec<_>>>()?;
    let env_c = env.iter().map(|a| c(a)).collect::<Result<Vec<_>>>()?;
    sys::cloexec_from(3).map_err(|e| format!("close_range: {e}"))?;
    report(socket, &Report::Ready { user: user.clone(), home: home.to_owned() }, &[]);
    if spec.no_new_privs
        && let Some(filter) = &before.filter
    {
        sys::seccomp_filter(filter).map_err(|e| format!("seccomp filter: {e}"))?;
    }
    let Err(errno) = nix::unistd::execve(&program, &argv_c, &env_c);
    Err(Failure {
        message: format!("exec {}: {}", path.display(), words(&errno.into())),
        code: if errno == nix::errno::Errno::ENOENT { 127 } else { 126 },
    })
}

/// The system call filter, compiled while the host's files can still be read.
fn load_filter(spec: &Spec) -> Result<Option<Vec<libc::sock_filter>>> {
    let profile = match &spec.seccomp {
        _ if spec.privileged => return Ok(None),
        SeccompProfile::Unconfined => return Ok(None),
        SeccompProfile::RuntimeDefault => Profile::runtime_default(spec.capabilities)?,
        SeccompProfile::Localhost(path) => Profile::from_file(path, spec.capabilities)?,
    };
    profile.compile().map(Some)
}

/// Lower-case words for an error, as the C library's message without Rust's decoration.
fn words(e: &io::Error) -> String {
    let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
    errno.desc().to_lowercase()
}

/// Drops the bounding set and changes ids; keeps the permitted capabilities.
fn become_user(kept: u64, user: &ContainerUser) -> Result<()> {
    for bit in 0..64u64 {
        if kept >> bit & 1 == 0 && sys::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0).is_err() {
            // Past the last capability the kernel knows.
            if bit > 40 {
                break;
            }
        }
    }
    let groups: Vec<Gid> = user.supplemental_groups.iter().map(|g| Gid::from_raw(*g)).collect();
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).map_err(|e| format!("keep capabilities: {e}"))?;
    nix::unistd::setgroups(&groups).map_err(|e| format!("setgroups: {e}"))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| format!("setgid {gid}: {e}"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| format!("setuid {uid}: {e}"))?;
    sys::capset(kept, kept, 0).map_err(|e| format!("set capabilities: {e}"))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0).map_err(|e| format!("keep capabilities: {e}"))?;
    Ok(())
}

/// Finds what to run the way a shell would, with the words every runtime uses when it is not there.
fn find_executable(
    argv: &[String],
    env: &[String],
    user: &ContainerUser,
) -> std::result::Result<PathBuf, Failure> {
    let Some(name) = argv.first().filter(|n| !n.is_empty()) else {
        return Err(Failure {
            message: "exec: \"\": executable file not found in $PATH".to_owned(),
            code: 127,
        });
    };
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let lookup = |file: &Path| -> io::Result<()> {
        let meta = fs::metadata(file)?;
        if meta.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if !may_execute(&meta, user) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        Ok(())
    };
    if name.contains('/') {
        return match lookup(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Failure {
                message: format!("exec: {name:?}: stat {name}: no such file or directory"),
                code: 127,
            }),
            Err(e) => Err(Failure { message: format!("exec: {name:?}: {}", words(&e)), code: 126 }),
        };
    }
    let mut denied = false;
    for dir in path.split(':') {
        let file = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match lookup(&file) {
            Ok(()) => return Ok(file),
            Err(e) => denied |= e.raw_os_error() == Some(libc::EACCES) && file.exists(),
        }
    }
    if denied {
        return Err(Failure { message: format!("exec: {name:?}: permission denied"), code: 126 });
    }
    Err(Failure { message: format!("exec: {name:?}: executable file not found in $PATH"), code: 127 })
}

fn may_execute(meta: &fs::Metadata, user: &ContainerUser) -> bool {
    let mode = meta.permissions().mode();
    if user.uid == 0 {
        return mode & 0o111 != 0;
    }
    let bit = if meta.uid() == user.uid {
        0o100
    } else if meta.gid() == user.gid || user.supplemental_groups.contains(&meta.gid()) {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

/// Clone flags for a container's own namespaces. In a user namespace the child forks once more, and makes the
/// rest then.
pub(super) fn namespace_flags(spec: &Spec, userns: bool) -> i32 {
    let mut flags = libc::CLONE_NEWNS;
    if spec.pid == NamespaceMode::Container && !userns {
        flags |= libc::CLONE_NEWPID;
    }
    flags
}

/// Environment as a map, later entries winning.
pub(crate) fn merge_env(base: &[String], over: &[(String, String)]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let pairs = base.iter().filter_map(|e| e.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (key, value) in pairs.chain(over.iter().cloned()) {
        if values.insert(key.clone(), value).is_none() {
            order.push(key);
        }
    }
    order.into_iter().map(|k| format!("{k}={}", values[&k])).collect()
}
