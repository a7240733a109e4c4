//! Capabilities: names, bits, the default set, and what a container's request makes of it.

/// Names by bit, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless it asks for something else.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All of them.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability, with or without `CAP_`, in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|i| 1 << i)
}

/// The set a container gets. `Err` names a capability that does not exist.
pub(crate) fn resolve(privileged: bool, add: &[String], drop: &[String]) -> Result<u64, String> {
    if privileged {
        return Ok(ALL);
    }
    let all = |list: &[String]| list.iter().any(|c| c.eq_ignore_ascii_case("all"));
    let bits = |list: &[String]| -> Result<u64, String> {
        let mut set = 0;
        for name in list.iter().filter(|c| !c.eq_ignore_ascii_case("all")) {
            set |= bit(name).ok_or_else(|| format!("unknown capability {name:?}"))?;
        }
        Ok(set)
    };
    // ALL first, then the single ones: `add: [ALL], drop: [X]` and the other way round both mean what they say.
    let mut set = DEFAULT.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b);
    if all(add) {
        set = ALL;
    }
    if all(drop) {
        set = 0;
    }
    Ok((set | bits(add)?) & !(bits(drop)? & !(if all(drop) { bits(add)? } else { 0 })))
}

/// The capabilities this process could pass on.
pub(crate) fn available() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let find = |key: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(key))
            .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
            .unwrap_or(0)
    };
    find("CapBnd:") & find("CapPrm:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(set: u64) -> Vec<&'static str> {
        NAMES.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, n)| *n).collect()
    }

    #[test]
    fn requests_become_sets() {
        let v = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(resolve(false, &[], &[]).unwrap()).len(), 14);
        assert_eq!(
            names(resolve(false, &v(&["NET_BIND_SERVICE"]), &v(&["ALL"])).unwrap()),
            ["NET_BIND_SERVICE"]
        );
        assert_eq!(resolve(false, &v(&["all"]), &v(&["cap_sys_admin"])).unwrap(), ALL & !(1 << 21));
        assert_eq!(resolve(true, &[], &v(&["ALL"])).unwrap(), ALL);
        assert_eq!(resolve(false, &v(&["NOPE"]), &[]).unwrap_err(), "unknown capability \"NOPE\"");
    }
}
