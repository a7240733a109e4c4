//! What processes hold: open files, sockets, and how many files the first of them may open.

/// Of the processes of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) count: u64,
    pub(crate) files: u64,
    pub(crate) sockets: u64,
    /// -1: any number; absent: not known.
    pub(crate) files_max: Option<i64>,
}

/// Processes that are looked into; what others hold is not counted.
const LOOKED_INTO_MAX: usize = 1024;

impl Processes {
    /// Looks into processes; `first` is a container's first.
    pub(crate) fn read(pids: &[i32], first: i32) -> Self {
        let mut found = Processes { count: pids.len() as u64, ..Processes::default() };
        for pid in pids.iter().take(LOOKED_INTO_MAX) {
            // A process that ended meanwhile holds nothing.
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                found.files += 1;
                let is_socket = std::fs::read_link(entry.path())
                    .is_ok_and(|to| to.to_string_lossy().starts_with("socket"));
                found.sockets += u64::from(is_socket);
            }
        }
        if first > 0 {
            let limits = std::fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default();
            found.files_max = soft_limit(&limits);
        }
        found
    }
}

fn soft_limit(limits: &str) -> Option<i64> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(-1),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_something() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = Processes::read(&[pid], pid);
        assert!(found.files > found.sockets && found.sockets > 0, "{found:?}");
        assert!(found.files_max.is_some());
        assert_eq!(Processes::read(&[-1], 0), Processes { count: 1, ..Processes::default() });
    }

    #[test]
    fn limits_are_read() {
        for (text, limit) in [
            ("Max open files            1024                 4096                 files", Some(1024)),
            ("Max open files            unlimited            unlimited            files", Some(-1)),
            ("Max processes  1 1 processes", None),
        ] {
            assert_eq!(soft_limit(text), limit, "{text}");
        }
    }
}
