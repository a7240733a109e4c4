//! The table of what is told of a group: a row per family, in the order of names.

use yare_metrics::table::Kind::{self, Counter, Gauge};
use yare_metrics::text::Page;
use yare_runtime::{GroupCpu, GroupIo, GroupMemoryUsage, StallTimes};

use super::{Disks, Subject};
use crate::usage::network::Interface;

/// A family: its name, its kind, the labels beyond those of every subject, its help, and its values.
struct Row {
    name: &'static str,
    kind: Kind,
    extra: &'static [&'static str],
    help: &'static str,
    values: fn(&Subject<'_>, &Disks, &mut Samples),
    /// What comes from a configuration has no time of its own.
    is_timed: bool,
}

/// Values of one family for one subject, each with the values of the extra labels.
#[derive(Default)]
struct Samples(Vec<(Vec<String>, f64)>);

impl Samples {
    fn one(&mut self, value: f64) {
        self.0.push((Vec::new(), value));
    }

    fn some(&mut self, value: Option<f64>) {
        self.0.extend(value.map(|v| (Vec::new(), v)));
    }

    fn labelled(&mut self, labels: &[&str], value: f64) {
        self.0.push((labels.iter().map(|l| (*l).to_owned()).collect(), value));
    }
}

const fn row(
    name: &'static str,
    kind: Kind,
    extra: &'static [&'static str],
    help: &'static str,
    values: fn(&Subject<'_>, &Disks, &mut Samples),
) -> Row {
    Row { name, kind, extra, help, values, is_timed: true }
}

const fn spec(name: &'static str, help: &'static str, values: fn(&Subject<'_>, &Disks, &mut Samples)) -> Row {
    Row { name, kind: Gauge, extra: &[], help, values, is_timed: false }
}

fn cpu<'a>(s: &Subject<'a>) -> Option<&'a GroupCpu> {
    s.usage.0.map(|u| &u.cpu)
}

/// Of a group whose processor time is limited.
fn limited<'a>(s: &Subject<'a>) -> Option<&'a GroupCpu> {
    cpu(s).filter(|c| c.quota_us.is_some())
}

fn memory<'a>(s: &Subject<'a>) -> Option<&'a GroupMemoryUsage> {
    s.usage.0.and_then(|u| u.memory.as_ref())
}

fn ns(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn bytes(s: &Subject<'_>, of: fn(&GroupMemoryUsage) -> u64) -> Option<f64> {
    memory(s).map(|m| of(m) as f64)
}

/// A limit; none is told as zero.
fn limit(limit: Option<u64>) -> f64 {
    limit.unwrap_or(0) as f64
}

fn disks(s: &Subject<'_>, names: &Disks, out: &mut Samples, of: fn(&GroupIo) -> u64) {
    for disk in s.usage.0.map(|u| u.io.as_slice()).unwrap_or_default() {
        let name = names.get(&(disk.major, disk.minor)).map_or("", String::as_str);
        out.labelled(&[name], of(disk) as f64);
    }
}

fn files(s: &Subject<'_>, out: &mut Samples, of: fn(&super::FileSystem) -> u64) {
    for system in &s.filesystems {
        out.labelled(&[&system.device], of(system) as f64);
    }
}

fn interfaces(s: &Subject<'_>, out: &mut Samples, of: fn(&Interface) -> u64) {
    for interface in s.network {
        out.labelled(&[&interface.name], of(interface) as f64);
    }
}

fn stalled(times: Option<StallTimes>) -> Option<f64> {
    times.map(|t| t.total_us as f64 / 1e6)
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("container_blkio_device_usage_total", Counter, &["device", "major", "minor", "operation"], "Blkio Device bytes usage", |s, names, out| {
        for disk in s.usage.0.map(|u| u.io.as_slice()).unwrap_or_default() {
            let name = names.get(&(disk.major, disk.minor)).map_or("", String::as_str);
            for (operation, value) in [("Read", disk.read_bytes), ("Write", disk.write_bytes)] {
                out.labelled(&[name, &disk.major.to_string(), &disk.minor.to_string(), operation], value as f64);
            }
        }
    }),
    row("container_cpu_cfs_burst_periods_total", Counter, &[], "Number of periods when burst occurs.", |s, _, out| out.some(limited(s).map(|c| c.burst_periods as f64))),
    row("container_cpu_cfs_burst_seconds_total", Counter, &[], "Total time duration the container has been bursted.", |s, _, out| out.some(limited(s).map(|c| ns(c.burst_ns)))),
    row("container_cpu_cfs_periods_total", Counter, &[], "Number of elapsed enforcement period intervals.", |s, _, out| out.some(limited(s).map(|c| c.periods as f64))),
    row("container_cpu_cfs_throttled_periods_total", Counter, &[], "Number of throttled period intervals.", |s, _, out| out.some(limited(s).map(|c| c.throttled_periods as f64))),
    row("container_cpu_cfs_throttled_seconds_total", Counter, &[], "Total time duration the container has been throttled.", |s, _, out| out.some(limited(s).map(|c| ns(c.throttled_ns)))),
    row("container_cpu_system_seconds_total", Counter, &[], "Cumulative system cpu time consumed in seconds.", |s, _, out| out.some(cpu(s).map(|c| ns(c.system_ns)))),
    row("container_cpu_usage_seconds_total", Counter, &["cpu"], "Cumulative cpu time consumed in seconds.", |s, _, out| {
        if let Some(used) = cpu(s).filter(|c| c.usage_ns > 0) {
            out.labelled(&["total"], ns(used.usage_ns));
        }
    }),
    row("container_cpu_user_seconds_total", Counter, &[], "Cumulative user cpu time consumed in seconds.", |s, _, out| out.some(cpu(s).map(|c| ns(c.user_ns)))),
    row("container_file_descriptors", Gauge, &[], "Number of open file descriptors for the container.", |s, _, out| out.some(s.processes.map(|p| p.files as f64))),
    row("container_fs_inodes_free", Gauge, DEVICE, "Number of available Inodes", |s, _, out| files(s, out, |f| f.inodes_free)),
    row("container_fs_inodes_total", Gauge, DEVICE, "Number of Inodes", |s, _, out| files(s, out, |f| f.inodes)),
    row("container_fs_limit_bytes", Gauge, DEVICE, "Number of bytes that can be consumed by the container on this filesystem.", |s, _, out| files(s, out, |f| f.total_bytes)),
    row("container_fs_reads_bytes_total", Counter, DEVICE, "Cumulative count of bytes read", |s, names, out| disks(s, names, out, |d| d.read_bytes)),
    row("container_fs_reads_total", Counter, DEVICE, "Cumulative count of reads completed", |s, names, out| disks(s, names, out, |d| d.reads)),
    row("container_fs_usage_bytes", Gauge, DEVICE, "Number of bytes that are consumed by the container on this filesystem.", |s, _, out| files(s, out, |f| f.used_bytes)),
    row("container_fs_writes_bytes_total", Counter, DEVICE, "Cumulative count of bytes written", |s, names, out| disks(s, names, out, |d| d.write_bytes)),
    row("container_fs_writes_total", Counter, DEVICE, "Cumulative count of writes completed", |s, names, out| disks(s, names, out, |d| d.writes)),
    row("container_last_seen", Gauge, &[], "Last time a container was seen by the exporter", |s, _, out| out.one((s.at_ms / 1000) as f64)),
    row("container_memory_cache", Gauge, &[], "Number of bytes of page cache memory.", |s, _, out| out.some(bytes(s, |m| m.cache_bytes))),
    row("container_memory_failcnt", Counter, &[], "Number of memory usage hits limits", |s, _, out| out.some(bytes(s, |m| m.limit_hits))),
    // A cgroup counts faults with all below it, so the scopes do not differ.
    row("container_memory_failures_total", Counter, &["failure_type", "scope"], "Cumulative count of memory allocation failures.", |s, _, out| {
        let Some(m) = memory(s) else { return };
        for (kind, count) in [("pgfault", m.page_faults), ("pgmajfault", m.major_page_faults)] {
            for scope in ["container", "hierarchy"] {
                out.labelled(&[kind, scope], count as f64);
            }
        }
    }),
    row("container_memory_kernel_usage", Gauge, &[], "Size of kernel memory allocated in bytes.", |s, _, out| out.some(bytes(s, |m| m.kernel_bytes))),
    row("container_memory_mapped_file", Gauge, &[], "Size of memory mapped files in bytes.", |s, _, out| out.some(bytes(s, |m| m.mapped_file_bytes))),
    row("container_memory_max_usage_bytes", Gauge, &[], "Maximum memory usage recorded in bytes", |s, _, out| out.some(bytes(s, |m| m.max_usage_bytes))),
    row("container_memory_rss", Gauge, &[], "Size of RSS in bytes.", |s, _, out| out.some(bytes(s, |m| m.rss_bytes))),
    row("container_memory_swap", Gauge, &[], "Container swap usage in bytes.", |s, _, out| out.some(bytes(s, |m| m.swap_bytes))),
    row("container_memory_total_active_file_bytes", Gauge, &[], "Current total active file in bytes.", |s, _, out| out.some(bytes(s, |m| m.active_file_bytes))),
    row("container_memory_total_inactive_file_bytes", Gauge, &[], "Current total inactive file in bytes.", |s, _, out| out.some(bytes(s, |m| m.inactive_file_bytes))),
    row("container_memory_usage_bytes", Gauge, &[], "Current memory usage in bytes, including all memory regardless of when it was accessed", |s, _, out| out.some(bytes(s, |m| m.usage_bytes))),
    row("container_memory_working_set_bytes", Gauge, &[], "Current working set in bytes.", |s, _, out| out.some(bytes(s, |m| m.working_set_bytes))),
    row("container_network_receive_bytes_total", Counter, INTERFACE, "Cumulative count of bytes received", |s, _, out| interfaces(s, out, |i| i.received.bytes)),
    row("container_network_receive_errors_total", Counter, INTERFACE, "Cumulative count of errors encountered while receiving", |s, _, out| interfaces(s, out, |i| i.received.errors)),
    row("container_network_receive_packets_dropped_total", Counter, INTERFACE, "Cumulative count of packets dropped while receiving", |s, _, out| interfaces(s, out, |i| i.received.dropped)),
    row("container_network_receive_packets_total", Counter, INTERFACE, "Cumulative count of packets received", |s, _, out| interfaces(s, out, |i| i.received.packets)),
    row("container_network_transmit_bytes_total", Counter, INTERFACE, "Cumulative count of bytes transmitted", |s, _, out| interfaces(s, out, |i| i.sent.bytes)),
    row("container_network_transmit_errors_total", Counter, INTERFACE, "Cumulative count of errors encountered while transmitting", |s, _, out| interfaces(s, out, |i| i.sent.errors)),
    row("container_network_transmit_packets_dropped_total", Counter, INTERFACE, "Cumulative count of packets dropped while transmitting", |s, _, out| interfaces(s, out, |i| i.sent.dropped)),
    row("container_network_transmit_packets_total", Counter, INTERFACE, "Cumulative count of packets transmitted", |s, _, out| interfaces(s, out, |i| i.sent.packets)),
    row("container_oom_events_total", Counter, &[], "Count of out of memory events observed for the container", |s, _, out| out.some(bytes(s, |m| m.oom_kills))),
    row("container_pressure_cpu_stalled_seconds_total", Counter, &[], "Total time duration no tasks in the container could make progress due to CPU congestion.", |s, _, out| out.some(stalled(cpu(s).and_then(|c| c.stall).map(|p| p.full)))),
    row("container_pressure_cpu_waiting_seconds_total", Counter, &[], "Total time duration tasks in the container have waited due to CPU congestion.", |s, _, out| out.some(stalled(cpu(s).and_then(|c| c.stall).map(|p| p.some)))),
    row("container_pressure_io_stalled_seconds_total", Counter, &[], "Total time duration no tasks in the container could make progress due to IO congestion.", |s, _, out| out.some(stalled(s.usage.0.and_then(|u| u.io_stall).map(|p| p.full)))),
    row("container_pressure_io_waiting_seconds_total", Counter, &[], "Total time duration tasks in the container have waited due to IO congestion.", |s, _, out| out.some(stalled(s.usage.0.and_then(|u| u.io_stall).map(|p| p.some)))),
    row("container_pressure_memory_stalled_seconds_total", Counter, &[], "Total time duration no tasks in the container could make progress due to memory congestion.", |s, _, out| out.some(stalled(memory(s).and_then(|m| m.stall).map(|p| p.full)))),
    row("container_pressure_memory_waiting_seconds_total", Counter, &[], "Total time duration tasks in the container have waited due to memory congestion.", |s, _, out| out.some(stalled(memory(s).and_then(|m| m.stall).map(|p| p.some)))),
    row("container_processes", Gauge, &[], "Number of processes running inside the container.", |s, _, out| out.some(s.processes.map(|p| p.count as f64))),
    row("container_sockets", Gauge, &[], "Number of open sockets for the container.", |s, _, out| out.some(s.processes.map(|p| p.sockets as f64))),
    spec("container_spec_cpu_period", "CPU period of the container.", |s, _, out| out.some(cpu(s).and_then(|c| c.period_us).map(|v| v as f64))),
    spec("container_spec_cpu_quota", "CPU quota of the container.", |s, _, out| out.some(cpu(s).and_then(|c| c.quota_us).map(|v| v as f64))),
    spec("container_spec_cpu_shares", "CPU share of the container.", |s, _, out| out.some(cpu(s).and_then(|c| c.shares).map(|v| v as f64))),
    spec("container_spec_memory_limit_bytes", "Memory limit for the container.", |s, _, out| out.some(memory(s).map(|m| limit(m.limit_bytes)))),
    spec("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", |s, _, out| out.some(bytes(s, |m| m.reservation_bytes))),
    spec("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", |s, _, out| out.some(memory(s).map(|m| limit(m.swap_limit_bytes)))),
    spec("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", |s, _, out| out.one(s.started_s)),
    row("container_threads", Gauge, &[], "Number of threads running inside the container", |s, _, out| out.some(s.usage.0.map(|u| u.threads as f64))),
    row("container_threads_max", Gauge, &[], "Maximum number of threads allowed inside the container, infinity if value is zero", |s, _, out| out.some(s.usage.0.map(|u| limit(u.threads_max)))),
    row("container_ulimits_soft", Gauge, &["ulimit"], "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice", |s, _, out| {
        if let Some(files) = s.processes.and_then(|p| p.files_max) {
            out.labelled(&["max_open_files"], files as f64);
        }
    }),
];

/// Writes the table for all subjects.
pub(super) fn expose(subjects: &[Subject<'_>], disks: &Disks, page: &mut Page) {
    for row in ROWS {
        let mut is_begun = false;
        for subject in subjects {
            let mut samples = Samples::default();
            (row.values)(subject, disks, &mut samples);
            for (values, value) in samples.0 {
                if !std::mem::replace(&mut is_begun, true) {
                    let kind = if row.kind == Counter { "counter" } else { "gauge" };
                    page.family(row.name, kind, row.help);
                }
                let mut labels = vec![
                    ("container", subject.container),
                    ("id", &subject.id),
                    ("image", &subject.image),
                    ("name", subject.name),
                    ("namespace", subject.namespace),
                    ("pod", subject.pod),
                ];
                labels.extend(row.extra.iter().copied().zip(values.iter().map(String::as_str)));
                labels.sort_unstable();
                match row.is_timed {
                    true => page.sample_at(row.name, &labels, value, subject.at_ms),
                    false => page.sample(row.name, &labels, value),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use yare_runtime::{GroupUsage, Stall};

    use super::super::Usage;
    use super::*;

    #[test]
    fn rows_are_in_order_and_once() {
        assert!(ROWS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(ROWS.iter().all(|row| row.extra.is_sorted()));
    }

    #[test]
    fn a_container_is_told_of() {
        let usage = GroupUsage {
            cpu: GroupCpu {
                usage_ns: 1_500_000_000,
                quota_us: Some(50_000),
                periods: 3,
                stall: Some(Stall {
                    some: StallTimes { total_us: 250_000, ..StallTimes::default() },
                    ..Stall::default()
                }),
                ..GroupCpu::default()
            },
            memory: Some(GroupMemoryUsage { working_set_bytes: 4096, ..GroupMemoryUsage::default() }),
            io: vec![GroupIo { major: 253, minor: 0, read_bytes: 9, ..GroupIo::default() }],
            ..GroupUsage::default()
        };
        let subject = Subject {
            id: "/kubepods/podx/y".into(),
            name: "y",
            image: "i:1".into(),
            container: "main",
            pod: "p",
            namespace: "n",
            usage: Usage(Some(&usage)),
            at_ms: 1_700_000_000_123,
            ..Subject::default()
        };
        let bare = Subject { id: "/x".into(), ..Subject::default() };
        let mut page = Page::new();
        let disks = Disks::from([((253, 0), "/dev/vda".to_owned())]);
        expose(&[subject, bare], &disks, &mut page);
        let text = page.finish();
        let labels = "id=\"/kubepods/podx/y\",image=\"i:1\",name=\"y\",namespace=\"n\",pod=\"p\"";
        for line in [
            format!(
                "container_cpu_usage_seconds_total{{container=\"main\",cpu=\"total\",{labels}}} 1.5 1700000000123\n"
            ),
            format!("container_cpu_cfs_periods_total{{container=\"main\",{labels}}} 3 1700000000123\n"),
            format!("container_memory_working_set_bytes{{container=\"main\",{labels}}} 4096 1700000000123\n"),
            format!("container_spec_cpu_quota{{container=\"main\",{labels}}} 50000\n"),
            format!("container_spec_memory_limit_bytes{{container=\"main\",{labels}}} 0\n"),
            format!(
                "container_pressure_cpu_waiting_seconds_total{{container=\"main\",{labels}}} 0.25 1700000000123\n"
            ),
            format!(
                "container_fs_reads_bytes_total{{container=\"main\",device=\"/dev/vda\",{labels}}} 9 1700000000123\n"
            ),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains("container_network_receive_bytes_total"), "no samples, no family");
        assert!(text.contains("container_last_seen{container=\"\",id=\"/x\""), "{text}");
    }
}
