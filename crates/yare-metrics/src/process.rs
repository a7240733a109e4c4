//! `process_*`: what the kernel says of this process, from `/proc`.

use crate::text::Page;

/// Ticks of `/proc/self/stat` in a second: `USER_HZ`, which Linux fixes for programs.
const TICKS: f64 = 100.0;
const PAGE_BYTES: u64 = 4096;

/// Figures of this process.
#[derive(Default, Debug)]
pub struct Process {
    cpu_s: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    virtual_max_bytes: u64,
    received_bytes: u64,
    sent_bytes: u64,
    start_s: f64,
    open_files: u64,
    max_files: u64,
    threads: u64,
}

impl Process {
    /// Reads them; what cannot be read is zero.
    pub fn read() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64);
        let [stat, system, limits, network] =
            ["/proc/self/stat", "/proc/stat", "/proc/self/limits", "/proc/self/net/netstat"].map(file);
        Self::parse(&stat, &system, &limits, &network, open_files)
    }

    fn parse(stat: &str, system: &str, limits: &str, network: &str, open_files: u64) -> Self {
        // The name in parentheses may hold anything; fields count from behind it, the third being the first.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let boot_s = system
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok())
            .unwrap_or(0.0);
        let limit = |name: &str| {
            let soft = limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
            // `unlimited` is no number.
            soft.map_or(0, |soft| soft.parse().unwrap_or(u64::MAX))
        };
        // Names on one line, numbers on the next.
        let mut ip = network.lines().filter_map(|line| line.strip_prefix("IpExt:"));
        let (names, numbers) = (ip.next().unwrap_or_default(), ip.next().unwrap_or_default());
        let octets = |name: &str| {
            let mut all = names.split_whitespace().zip(numbers.split_whitespace());
            all.find(|(known, _)| *known == name).and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
        };
        Self {
            cpu_s: (field(14) + field(15)) as f64 / TICKS,
            resident_bytes: field(24) * PAGE_BYTES,
            virtual_bytes: field(23),
            start_s: boot_s + field(22) as f64 / TICKS,
            threads: field(20),
            open_files,
            max_files: limit("Max open files"),
            virtual_max_bytes: limit("Max address space"),
            received_bytes: octets("InOctets"),
            sent_bytes: octets("OutOctets"),
        }
    }

    /// When the process began, seconds since 1970.
    pub fn start_s(&self) -> f64 {
        self.start_s
    }

    /// Adds when the process began alone.
    pub fn expose_start(&self, page: &mut Page) {
        let help = "Start time of the process since unix epoch in seconds.";
        page.single("process_start_time_seconds", "gauge", help, self.start_s);
    }

    /// Adds them.
    pub fn expose(&self, page: &mut Page) {
        for (name, kind, help, value) in [
            (
                "process_cpu_seconds_total",
                "counter",
                "Total user and system CPU time spent in seconds.",
                self.cpu_s,
            ),
            ("process_max_fds", "gauge", "Maximum number of open file descriptors.", self.max_files as f64),
            (
                "process_network_receive_bytes_total",
                "counter",
                "Number of bytes received by the process over the network.",
                self.received_bytes as f64,
            ),
            (
                "process_network_transmit_bytes_total",
                "counter",
                "Number of bytes sent by the process over the network.",
                self.sent_bytes as f64,
            ),
            ("process_open_fds", "gauge", "Number of open file descriptors.", self.open_files as f64),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory size in bytes.",
                self.resident_bytes as f64,
            ),
            (
                "process_start_time_seconds",
                "gauge",
                "Start time of the process since unix epoch in seconds.",
                self.start_s,
            ),
            ("process_threads", "gauge", "Number of threads of the process.", self.threads as f64),
            (
                "process_virtual_memory_bytes",
                "gauge",
                "Virtual memory size in bytes.",
                self.virtual_bytes as f64,
            ),
            (
                "process_virtual_memory_max_bytes",
                "gauge",
                "Maximum amount of virtual memory available in bytes.",
                self.virtual_max_bytes as f64,
            ),
        ] {
            page.single(name, kind, help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 10 0 0 0 150 50 0 0 20 0 9 0 1200 8192000 25 184467";
        let limits = "Limit  Soft Hard Units\nMax open files            1024                 4096                 files\nMax address space         unlimited            unlimited            bytes\n";
        let network =
            "TcpExt: A InOctets\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 5 70 80\n";
        let process = Process::parse(stat, "cpu 1\nbtime 1000\n", limits, network, 12);
        assert_eq!((process.cpu_s, process.start_s, process.threads), (2.0, 1012.0, 9));
        assert_eq!((process.resident_bytes, process.virtual_bytes), (25 * 4096, 8_192_000));
        assert_eq!((process.max_files, process.open_files, process.virtual_max_bytes), (1024, 12, u64::MAX));
        assert_eq!((process.received_bytes, process.sent_bytes), (70, 80));
        let now = Process::read();
        assert!(now.resident_bytes > 0 && now.start_s > 1e9 && now.open_files > 2, "{now:?}");
    }
}
