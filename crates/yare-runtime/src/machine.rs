//! What a machine must have for containers to run on it. In: the kernel and this process's privileges. Out:
//! the first thing that is missing and what to do about it, in words for whoever starts the program.

use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;

use crate::cgroup::Cgroups;
use crate::sys;
use crate::ulimit::Ulimit;

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {remedy}")]
pub struct Lack {
    /// What is missing.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What is looked at, in this order.
const CHECKS: &[fn() -> Option<Lack>] = &[root, privileges, namespaces, cgroups, overlay];

/// Capabilities without which no container starts: name, bit, what for.
const CAPABILITIES: &[(&str, u32, &str)] = &[
    ("CAP_SYS_ADMIN", 21, "mounts and namespaces need"),
    ("CAP_NET_ADMIN", 12, "the pod network needs"),
    ("CAP_SYS_CHROOT", 18, "root file systems need"),
    ("CAP_MKNOD", 27, "devices need"),
];

/// The capability without which limits are only lowered, never raised.
const RESOURCE_LIMITS: (&str, u32) = ("CAP_SYS_RESOURCE", 24);

/// Namespaces of a pod, by their files in `/proc/self/ns`, and the kernel's option for each.
const NAMESPACES: &[(&str, &str)] = &[
    ("mnt", "CONFIG_NAMESPACES"),
    ("net", "CONFIG_NET_NS"),
    ("pid", "CONFIG_PID_NS"),
    ("ipc", "CONFIG_IPC_NS"),
    ("uts", "CONFIG_UTS_NS"),
];

/// The first thing that this machine lacks, if it lacks any.
pub fn lack() -> Option<Lack> {
    CHECKS.iter().find_map(|check| check())
}

/// What containers get less of than they are told, for whoever looks at the node; `ulimits`: what they are told of
/// their processes' limits. None of it keeps a pod from starting.
pub fn clamps(ulimits: &[Ulimit]) -> Option<String> {
    clamped(capabilities()?, ulimits.iter().filter_map(Ulimit::clamped))
}

fn clamped(have: u64, limits: impl Iterator<Item = (String, u64, u64)>) -> Option<String> {
    let (name, bit) = RESOURCE_LIMITS;
    if have & (1 << bit) != 0 {
        return None;
    }
    let mut text = format!(
        "{name} is missing here: no container is made less likely to be killed when memory runs out (oom_score_adj)"
    );
    for (limit, wanted, most) in limits {
        text.push_str(&format!(", {limit} is {most} instead of {wanted}"));
    }
    Some(text)
}

fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Option<Lack> {
    Some(Lack { what: what.into(), remedy: remedy.into() })
}

/// A field of `/proc/self/status`.
fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

fn root() -> Option<Lack> {
    let uid = status("Uid")?;
    if uid.split_whitespace().nth(1) == Some("0") {
        return None;
    }
    missing("containers need root", "run as root")
}

/// This process's effective capabilities, a bit for each.
fn capabilities() -> Option<u64> {
    u64::from_str_radix(&status("CapEff")?, 16).ok()
}

fn privileges() -> Option<Lack> {
    let have = capabilities()?;
    let (name, _, user) = CAPABILITIES.iter().find(|(_, bit, _)| have & (1 << bit) == 0)?;
    missing(format!("root lacks {name} here, which {user}"), "in a container, start that one as privileged")
}

fn namespaces() -> Option<Lack> {
    let (name, option) =
        NAMESPACES.iter().find(|(name, _)| !Path::new("/proc/self/ns").join(name).exists())?;
    missing(format!("this kernel has no {name} namespaces"), format!("boot one that was built with {option}"))
}

fn cgroups() -> Option<Lack> {
    let cgroups = Cgroups::detect();
    let lacking = cgroups.lacking();
    match lacking.as_slice() {
        [] => {}
        all if all.len() == Cgroups::NEEDED.len() => {
            return missing("no cgroups are mounted", "mount them (mount -t cgroup2 none /sys/fs/cgroup)");
        }
        ["memory"] => {
            return missing(
                "the kernel's memory cgroup is off",
                "boot with cgroup_enable=memory on the kernel's command line",
            );
        }
        some => {
            return missing(
                format!("the kernel has no cgroup controller {}", some.join(", ")),
                "mount its hierarchy, or boot a kernel that has it",
            );
        }
    }
    let place = cgroups.read_only()?;
    missing(
        format!("cgroups are read-only at {}", place.display()),
        "in a container, start that one as privileged",
    )
}

fn overlay() -> Option<Lack> {
    // Opening it loads the kernel's module where it is one.
    match sys::open_filesystem(c"overlay") {
        Ok(_) => None,
        Err(error) => overlay_lack(&error),
    }
}

fn overlay_lack(error: &io::Error) -> Option<Lack> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => missing(
            "this kernel has no overlay file system",
            "load it (modprobe overlay), or boot one that has it",
        ),
        Some(Errno::ENOSYS) => missing("this kernel is too old for containers", "boot Linux 5.12 or newer"),
        _ => missing(
            format!("the overlay file system cannot be used ({error})"),
            "in a container, start that one as privileged",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_clamped_is_said() {
        let limits = || [("nofile".to_owned(), 1_048_576, 4096)].into_iter();
        assert_eq!(clamped(1 << 24, limits()), None);
        let text = clamped(!(1 << 24), limits()).unwrap();
        assert!(text.starts_with("CAP_SYS_RESOURCE is missing here: "), "{text}");
        assert!(text.ends_with("(oom_score_adj), nofile is 4096 instead of 1048576"), "{text}");
        assert!(clamped(0, std::iter::empty()).unwrap().ends_with("(oom_score_adj)"));
    }

    #[test]
    fn each_failure_has_a_line_of_its_own() {
        for (errno, part) in [
            (Errno::ENODEV, "no overlay file system: load it (modprobe overlay)"),
            (Errno::ENOSYS, "too old for containers: boot Linux 5.12"),
            (Errno::EPERM, "Operation not permitted"),
        ] {
            let lack = overlay_lack(&io::Error::from_raw_os_error(errno as i32)).unwrap();
            assert!(lack.to_string().contains(part), "{lack}");
        }
    }
}
