//! What a group of processes uses, as far as its hierarchies tell: v1, hybrid and v2 read into one shape.
//!
//! In a hybrid setup processor time and stalls come from v2, which counts them exactly and without a controller;
//! the rest is v1's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{CgroupTree, Cgroups, collect_pids, keyed, read_u64};

/// What v1 says for "no limit" is near this or above.
const UNLIMITED: u64 = 1 << 62;
/// v1 counts user and system time in these.
const TICK_NS: u64 = 10_000_000;

/// Use of a group and all groups below it. What no hierarchy counts is absent, or zero where zero says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupUsage {
    /// Processor.
    pub cpu: GroupCpu,
    /// Memory; absent: not counted here.
    pub memory: Option<GroupMemoryUsage>,
    /// Disks.
    pub io: Vec<GroupIo>,
    /// Time in which tasks waited for disks.
    pub io_stall: Option<Stall>,
    /// Threads there are.
    pub threads: u64,
    /// Threads there may be; absent: any number.
    pub threads_max: Option<u64>,
    /// When the group was made, nanoseconds since 1970; 0: not known.
    pub created_at_ns: i64,
}

/// Processor time and its limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupCpu {
    /// Used, nanoseconds.
    pub usage_ns: u64,
    /// Of that, in programs.
    pub user_ns: u64,
    /// Of that, in the kernel.
    pub system_ns: u64,
    /// Periods in which the limit was enforced.
    pub periods: u64,
    /// Periods in which it was met.
    pub throttled_periods: u64,
    /// Time for which tasks were held back, nanoseconds.
    pub throttled_ns: u64,
    /// Periods that went over the limit with time saved before.
    pub burst_periods: u64,
    /// Time over the limit, nanoseconds.
    pub burst_ns: u64,
    /// Shares on v1's scale; absent: no controller.
    pub shares: Option<u64>,
    /// Microseconds per period; absent: no limit.
    pub quota_us: Option<u64>,
    /// The period, microseconds.
    pub period_us: Option<u64>,
    /// Time in which tasks waited for a processor.
    pub stall: Option<Stall>,
}

/// Memory in bytes and its limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupMemoryUsage {
    /// In use, page cache included.
    pub usage_bytes: u64,
    /// The most that ever was.
    pub max_usage_bytes: u64,
    /// In use without inactive page cache.
    pub working_set_bytes: u64,
    /// Page cache.
    pub cache_bytes: u64,
    /// Anonymous.
    pub rss_bytes: u64,
    /// Mapped files.
    pub mapped_file_bytes: u64,
    /// The kernel's own for the group.
    pub kernel_bytes: u64,
    /// In swap.
    pub swap_bytes: u64,
    /// Page cache that is in use.
    pub active_file_bytes: u64,
    /// Page cache that is not.
    pub inactive_file_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed a disk.
    pub major_page_faults: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// How often the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Limit; absent: none.
    pub limit_bytes: Option<u64>,
    /// Limit of swap: v1's is of memory and swap together, v2's of swap alone; absent: none.
    pub swap_limit_bytes: Option<u64>,
    /// What the kernel leaves alone as long as it can.
    pub reservation_bytes: u64,
    /// Time in which tasks waited for memory.
    pub stall: Option<Stall>,
}

/// Bytes and operations on one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupIo {
    /// The disk's numbers.
    pub major: u32,
    /// The disk's numbers.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Pressure stall information: some tasks wait, and all of them do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// At least one waits.
    pub some: StallTimes,
    /// None gets on.
    pub full: StallTimes,
}

/// Shares of time, and time in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StallTimes {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total_us: u64,
}

impl Stall {
    /// Reads a file of pressure; `None`: the kernel does not tell.
    fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut stall = Stall::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let times = match words.next()? {
                "some" => &mut stall.some,
                "full" => &mut stall.full,
                _ => continue,
            };
            for word in words {
                match word.split_once('=')? {
                    ("avg10", v) => times.avg10 = v.parse().ok()?,
                    ("avg60", v) => times.avg60 = v.parse().ok()?,
                    ("avg300", v) => times.avg300 = v.parse().ok()?,
                    ("total", v) => times.total_us = v.parse().ok()?,
                    _ => {}
                }
            }
        }
        Some(stall)
    }
}

impl CgroupTree {
    /// What a group uses; the root's name is empty, and is the machine. `None`: there is no such group.
    pub fn usage(&self, group: &str) -> Option<GroupUsage> {
        let group = Path::new(group.trim_start_matches('/'));
        self.cgroups.exists(group).then(|| self.cgroups.usage(group))
    }

    /// Processes of a group and of those below it.
    pub fn processes(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        if let Some(dir) = self.cgroups.dir_of_processes(Path::new(group.trim_start_matches('/'))) {
            collect_pids(&dir, &mut pids, 0);
        }
        pids
    }

    /// Processes of a group itself.
    pub fn own_processes(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        if let Some(dir) = self.cgroups.dir_of_processes(Path::new(group.trim_start_matches('/'))) {
            // Deep enough that nothing below is read.
            collect_pids(&dir, &mut pids, u32::MAX);
        }
        pids
    }
}

impl Cgroups {
    /// Where a group's processes are listed. Other runtimes leave v2 alone in a hybrid setup.
    fn dir_of_processes(&self, group: &Path) -> Option<PathBuf> {
        let v1 = ["pids", "memory", "cpu"].into_iter().filter_map(|c| self.v1_dir(c, group));
        self.v2_dir(group).into_iter().chain(v1).find(|dir| dir.is_dir())
    }

    fn usage(&self, group: &Path) -> GroupUsage {
        let is_root = group.as_os_str().is_empty();
        let stall = |file: &str, machine: &str| match is_root {
            true => Stall::read(Path::new(machine)),
            false => Stall::read(&self.v2_dir(group)?.join(file)),
        };
        let pids = self.v1_dir("pids", group).or_else(|| self.v2_dir(group)).unwrap_or_default();
        let limit = fs::read_to_string(pids.join("pids.max")).unwrap_or_default();
        let mut cpu = self.cpu_usage(group);
        cpu.stall = stall("cpu.pressure", "/proc/pressure/cpu");
        let mut memory =
            if is_root { machine_memory(self.oom_kills(group)) } else { self.memory_usage(group) };
        if let Some(memory) = &mut memory {
            memory.stall = stall("memory.pressure", "/proc/pressure/memory");
        }
        GroupUsage {
            cpu,
            memory,
            io: self.io_usage(group),
            io_stall: stall("io.pressure", "/proc/pressure/io"),
            threads: read_u64(&pids.join("pids.current")).unwrap_or(0),
            threads_max: limit.trim().parse().ok(),
            created_at_ns: self.created(group),
        }
    }

    fn cpu_usage(&self, group: &Path) -> GroupCpu {
        let text = |dir: Option<PathBuf>, file: &str| {
            dir.and_then(|d| fs::read_to_string(d.join(file)).ok()).unwrap_or_default()
        };
        let mut cpu = GroupCpu::default();
        let unified = text(self.v2_dir(group), "cpu.stat");
        let field = |name: &str| keyed(&unified, name).unwrap_or(0);
        // Other runtimes leave v2 alone in a hybrid setup.
        if !unified.is_empty() {
            cpu.usage_ns = field("usage_usec") * 1000;
            cpu.user_ns = field("user_usec") * 1000;
            cpu.system_ns = field("system_usec") * 1000;
        } else if let Some(dir) = self.v1_dir("cpuacct", group) {
            let stat = text(Some(dir.clone()), "cpuacct.stat");
            cpu.usage_ns = read_u64(&dir.join("cpuacct.usage")).unwrap_or(0);
            cpu.user_ns = keyed(&stat, "user").unwrap_or(0) * TICK_NS;
            cpu.system_ns = keyed(&stat, "system").unwrap_or(0) * TICK_NS;
        }
        if let Some(dir) = self.v1_dir("cpu", group) {
            let stat = text(Some(dir.clone()), "cpu.stat");
            let field = |name: &str| keyed(&stat, name).unwrap_or(0);
            cpu.periods = field("nr_periods");
            cpu.throttled_periods = field("nr_throttled");
            cpu.throttled_ns = field("throttled_time");
            cpu.burst_periods = field("nr_bursts");
            cpu.burst_ns = field("burst_time");
            cpu.shares = read_u64(&dir.join("cpu.shares"));
            // `-1` is no limit, and no number either.
            cpu.quota_us = read_u64(&dir.join("cpu.cfs_quota_us"));
            cpu.period_us = read_u64(&dir.join("cpu.cfs_period_us"));
        } else if self.has_v2("cpu") {
            cpu.periods = field("nr_periods");
            cpu.throttled_periods = field("nr_throttled");
            cpu.throttled_ns = field("throttled_usec") * 1000;
            cpu.burst_periods = field("nr_bursts");
            cpu.burst_ns = field("burst_usec") * 1000;
            let dir = self.v2_dir(group).unwrap_or_default();
            cpu.shares = read_u64(&dir.join("cpu.weight")).map(weight_to_shares);
            let max = text(Some(dir), "cpu.max");
            let mut words = max.split_whitespace().map(|w| w.parse().ok());
            cpu.quota_us = words.next().flatten();
            cpu.period_us = words.next().flatten();
        }
        cpu
    }

    fn memory_usage(&self, group: &Path) -> Option<GroupMemoryUsage> {
        let v1 = self.v1_dir("memory", group);
        let dir = match &v1 {
            Some(dir) => dir.clone(),
            None if self.has_v2("memory") => self.v2_dir(group)?,
            None => return None,
        };
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| keyed(&stat, name).unwrap_or(0);
        let number = |file: &str| read_u64(&dir.join(file));
        let limit = |file: &str| number(file).filter(|l| *l < UNLIMITED);
        let mut memory = match v1 {
            Some(_) => GroupMemoryUsage {
                usage_bytes: number("memory.usage_in_bytes")?,
                max_usage_bytes: number("memory.max_usage_in_bytes").unwrap_or(0),
                cache_bytes: field("total_cache"),
                rss_bytes: field("total_rss"),
                mapped_file_bytes: field("total_mapped_file"),
                kernel_bytes: number("memory.kmem.usage_in_bytes").unwrap_or(0),
                swap_bytes: field("total_swap"),
                active_file_bytes: field("total_active_file"),
                inactive_file_bytes: field("total_inactive_file"),
                page_faults: field("total_pgfault"),
                major_page_faults: field("total_pgmajfault"),
                limit_hits: number("memory.failcnt").unwrap_or(0),
                limit_bytes: limit("memory.limit_in_bytes"),
                swap_limit_bytes: limit("memory.memsw.limit_in_bytes"),
                reservation_bytes: limit("memory.soft_limit_in_bytes").unwrap_or(0),
                ..GroupMemoryUsage::default()
            },
            None => {
                let events = fs::read_to_string(dir.join("memory.events")).unwrap_or_default();
                GroupMemoryUsage {
                    usage_bytes: number("memory.current")?,
                    max_usage_bytes: number("memory.peak").unwrap_or(0),
                    cache_bytes: field("file"),
                    rss_bytes: field("anon"),
                    mapped_file_bytes: field("file_mapped"),
                    kernel_bytes: field("kernel"),
                    swap_bytes: number("memory.swap.current").unwrap_or(0),
                    active_file_bytes: field("active_file"),
                    inactive_file_bytes: field("inactive_file"),
                    page_faults: field("pgfault"),
                    major_page_faults: field("pgmajfault"),
                    limit_hits: keyed(&events, "max").unwrap_or(0),
                    limit_bytes: limit("memory.max"),
                    swap_limit_bytes: limit("memory.swap.max"),
                    reservation_bytes: number("memory.min").unwrap_or(0),
                    ..GroupMemoryUsage::default()
                }
            }
        };
        memory.oom_kills = self.oom_kills(group);
        memory.working_set_bytes = memory.usage_bytes.saturating_sub(memory.inactive_file_bytes);
        Some(memory)
    }

    fn io_usage(&self, group: &Path) -> Vec<GroupIo> {
        let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        if let Some(dir) = self.v1_dir("blkio", group) {
            let bytes = read(&dir, "blkio.throttle.io_service_bytes_recursive");
            return v1_io(&bytes, &read(&dir, "blkio.throttle.io_serviced_recursive"));
        }
        // Of the root there is a file too, whether or not the controller is handed down.
        self.v2_dir(group).map(|dir| v2_io(&read(&dir, "io.stat"))).unwrap_or_default()
    }

    /// The oldest sign of a group: its directories change when others are made in them, some of its files never.
    fn created(&self, group: &Path) -> i64 {
        let times = self.v2.iter().chain(self.v1.values()).flat_map(|mountpoint| {
            let dir = mountpoint.join(group);
            ["", "cgroup.events", "cgroup.clone_children"].map(|file| dir.join(file))
        });
        let time = |path: PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some(found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()))
        };
        times.filter_map(time).min().unwrap_or(0)
    }
}

/// Memory of the whole machine: v2's root has no numbers of its own, v1's leaves out what nobody is charged for.
fn machine_memory(oom_kills: u64) -> Option<GroupMemoryUsage> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let oom_kills = keyed(&vmstat, "oom_kill").unwrap_or(oom_kills);
    Some(GroupMemoryUsage {
        page_faults: keyed(&vmstat, "pgfault").unwrap_or(0),
        major_page_faults: keyed(&vmstat, "pgmajfault").unwrap_or(0),
        oom_kills,
        ..parse_meminfo(&meminfo)
    })
}

fn parse_meminfo(text: &str) -> GroupMemoryUsage {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let usage_bytes = bytes("MemTotal").saturating_sub(bytes("MemFree"));
    let inactive_file_bytes = bytes("Inactive(file)");
    GroupMemoryUsage {
        usage_bytes,
        working_set_bytes: usage_bytes.saturating_sub(inactive_file_bytes),
        cache_bytes: bytes("Cached"),
        rss_bytes: bytes("AnonPages"),
        mapped_file_bytes: bytes("Mapped"),
        kernel_bytes: bytes("Slab") + bytes("KernelStack") + bytes("PageTables"),
        swap_bytes: bytes("SwapTotal").saturating_sub(bytes("SwapFree")),
        active_file_bytes: bytes("Active(file)"),
        inactive_file_bytes,
        limit_bytes: Some(bytes("MemTotal")),
        ..GroupMemoryUsage::default()
    }
}

/// Weight of v2 on v1's scale, by the line that upstream reads it back with.
fn weight_to_shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999
}

fn disk<'a>(list: &'a mut Vec<GroupIo>, name: &str) -> Option<&'a mut GroupIo> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = match list.iter().position(|d| (d.major, d.minor) == (major, minor)) {
        Some(at) => at,
        None => {
            list.push(GroupIo { major, minor, ..GroupIo::default() });
            list.len() - 1
        }
    };
    list.get_mut(at)
}

/// `253:0 Read 4096`, a line per disk and kind; sums have no disk.
fn v1_io(bytes: &str, operations: &str) -> Vec<GroupIo> {
    let mut list = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, kind, value] = words[..] else { continue };
            let (Ok(value), Some(disk)) = (value.parse(), disk(&mut list, name)) else { continue };
            match (kind, is_bytes) {
                ("Read", true) => disk.read_bytes = value,
                ("Write", true) => disk.write_bytes = value,
                ("Read", false) => disk.reads = value,
                ("Write", false) => disk.writes = value,
                _ => {}
            }
        }
    }
    list
}

/// `253:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
fn v2_io(text: &str) -> Vec<GroupIo> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(disk) = words.next().and_then(|name| disk(&mut list, name)) else { continue };
        for word in words {
            let Some((key, Ok(value))) = word.split_once('=').map(|(k, v)| (k, v.parse())) else { continue };
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.write_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn stalls_are_read() {
        let text = "some avg10=1.50 avg60=0.30 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let stall = Stall::parse(text).unwrap();
        assert_eq!((stall.some.avg10, stall.some.total_us, stall.full.total_us), (1.5, 123, 7));
        assert_eq!(Stall::parse("some avg10=x"), None);
    }

    #[test]
    fn disks_are_read() {
        let one = GroupIo { major: 253, minor: 0, read_bytes: 4096, write_bytes: 8, reads: 1, writes: 2 };
        let bytes = "253:0 Read 4096\n253:0 Write 8\n253:0 Sync 1\n253:0 Total 4104\nTotal 4104\n";
        let operations = "253:0 Read 1\n253:0 Write 2\nTotal 3\n";
        assert_eq!(v1_io(bytes, operations), std::slice::from_ref(&one));
        assert_eq!(v2_io("253:0 rbytes=4096 wbytes=8 rios=1 wios=2 dbytes=0 dios=0\n\nx\n"), [one]);
    }

    #[test]
    fn weights_go_back_to_shares() {
        for (weight, shares) in [(1, 2), (100, 2597), (10_000, 262_144), (0, 2)] {
            assert_eq!(weight_to_shares(weight), shares, "{weight}");
        }
    }

    #[test]
    fn a_machine_is_a_group_too() {
        let memory =
            parse_meminfo("MemTotal: 100 kB\nMemFree: 40 kB\nInactive(file): 10 kB\nCached: 30 kB\n");
        assert_eq!((memory.usage_bytes, memory.working_set_bytes), (60 << 10, 50 << 10));
        assert_eq!(memory.limit_bytes, Some(100 << 10));
    }

    /// A tree of plain files stands in for each kind of hierarchy.
    #[test]
    fn every_hierarchy_is_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "v2/a/cpu.stat",
            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n",
        );
        put("v2/a/cpu.weight", "100");
        put("v2/a/cpu.max", "50000 100000");
        put("v2/a/memory.current", "1000");
        put("v2/a/memory.peak", "2000");
        put("v2/a/memory.max", "max");
        put("v2/a/memory.swap.max", "0");
        put("v2/a/memory.stat", "anon 600\nfile 300\ninactive_file 100\npgfault 7\n");
        put("v2/a/memory.events", "low 0\nmax 3\noom_kill 1\n");
        put("v2/a/pids.current", "5");
        put("v2/a/pids.max", "max");
        put("v2/a/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\n");
        put("v1/cpu/a/cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 9000\n");
        put("v1/cpu/a/cpu.shares", "2597");
        put("v1/cpu/a/cpu.cfs_quota_us", "50000");
        put("v1/cpu/a/cpu.cfs_period_us", "100000");
        put("v1/cpuacct/a/cpuacct.usage", "5000000");
        put("v1/cpuacct/a/cpuacct.stat", "user 0\nsystem 0\n");
        put("v1/memory/a/memory.usage_in_bytes", "1000");
        put("v1/memory/a/memory.max_usage_in_bytes", "2000");
        put("v1/memory/a/memory.limit_in_bytes", "9223372036854771712");
        put(
            "v1/memory/a/memory.stat",
            "total_rss 600\ntotal_cache 300\ntotal_inactive_file 100\ntotal_pgfault 7\n",
        );
        put("v1/memory/a/memory.failcnt", "3");
        put("v1/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        put("v1/pids/a/pids.current", "5");
        put("v1/pids/a/pids.max", "max");
        let v1: BTreeMap<String, PathBuf> = ["cpu", "cpuacct", "memory", "pids"]
            .map(|c| (c.to_owned(), dir.path().join("v1").join(c)))
            .into();
        let v2 = Some(dir.path().join("v2"));
        let all: Vec<String> = ["cpu", "memory", "pids"].map(str::to_owned).into();
        for (kind, cgroups) in [
            ("v2", Cgroups { v2: v2.clone(), v2_controllers: all, v1: BTreeMap::new() }),
            ("hybrid", Cgroups { v2, v2_controllers: Vec::new(), v1: v1.clone() }),
            ("v1", Cgroups { v2: None, v2_controllers: Vec::new(), v1 }),
        ] {
            let usage = CgroupTree { cgroups }.usage("/a").unwrap();
            let memory = usage.memory.clone().unwrap();
            assert_eq!(usage.cpu.usage_ns, 5_000_000, "{kind}");
            assert_eq!(
                (usage.cpu.periods, usage.cpu.throttled_periods, usage.cpu.throttled_ns),
                (4, 2, 9000)
            );
            assert_eq!(
                (usage.cpu.shares, usage.cpu.quota_us, usage.cpu.period_us),
                (Some(2597), Some(50_000), Some(100_000)),
                "{kind}"
            );
            assert_eq!((memory.usage_bytes, memory.working_set_bytes, memory.rss_bytes), (1000, 900, 600));
            assert_eq!(
                (memory.max_usage_bytes, memory.page_faults, memory.limit_hits),
                (2000, 7, 3),
                "{kind}"
            );
            assert_eq!((memory.limit_bytes, memory.oom_kills), (None, 1), "{kind}");
            assert_eq!((usage.threads, usage.threads_max), (5, None), "{kind}");
            assert_eq!(usage.cpu.stall.is_some(), kind != "v1", "{kind}");
            assert!(usage.created_at_ns > 0, "{kind}");
        }
    }
}
