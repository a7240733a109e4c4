//! Counters of network interfaces, as `/proc/<pid>/net/dev` has them.

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Flow,
    pub(crate) sent: Flow,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// Names that begin so are not told: the loopback, and the node's ends of others' networks.
const IGNORED: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];
/// Interfaces that are told.
const INTERFACES_MAX: usize = 256;

/// Interfaces of the network that a process is in; `self` is this one.
pub(crate) fn of_process(pid: &str) -> Vec<Interface> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        if IGNORED.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let flow = |at: usize| {
            Some(Flow {
                bytes: *numbers.get(at)?,
                packets: *numbers.get(at + 1)?,
                errors: *numbers.get(at + 2)?,
                dropped: *numbers.get(at + 3)?,
            })
        };
        Some(Interface { name: name.to_owned(), received: flow(0)?, sent: flow(8)? })
    };
    // Two lines of headings.
    text.lines().skip(2).filter_map(interface).take(INTERFACES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n\
            lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
          eth0:860 34 1 2 0 0 0 0 236 22 3 4 0 0 0 0\n\
         veth7: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n bad: x\n";
        let eth0 = Interface {
            name: "eth0".into(),
            received: Flow { bytes: 860, packets: 34, errors: 1, dropped: 2 },
            sent: Flow { bytes: 236, packets: 22, errors: 3, dropped: 4 },
        };
        assert_eq!(parse(text), [eth0]);
        assert!(parse("").is_empty());
    }
}
