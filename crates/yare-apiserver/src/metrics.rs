//! Counters and histograms under upstream's names, written by hand: a handful of atomics and one map.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{core::Core, path::RequestInfo, registry::Served};

/// Upper bounds of upstream's `apiserver_request_duration_seconds` buckets, in seconds.
const BUCKETS: [f64; 14] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 5.0, 60.0];

/// Labels of a request.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Default)]
struct Series {
    count: u64,
    sum_s: f64,
    buckets: [u64; BUCKETS.len()],
}

/// All metrics of a server.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Key, Series>>,
    /// Requests being answered: reading.
    pub in_flight_readonly: AtomicI64,
    /// Requests being answered: writing.
    pub in_flight_mutating: AtomicI64,
    /// Watches and other long-running requests.
    pub long_running: AtomicI64,
    /// Requests refused because too many were in flight.
    pub dropped: AtomicU64,
    writes: AtomicU64,
}

/// Distinct label sets that are kept; what comes beyond them is counted as one.
const MAX_SERIES: usize = 4096;

impl Metrics {
    /// Counts a finished request.
    pub fn request(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        // Only what is served becomes a label: paths that callers make up must not fill the memory.
        let text = |s: &str| if known { s.to_owned() } else { String::new() };
        let mut key = Key {
            verb: if info.is_resource { verb_label(info.verb) } else { "GET" },
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: text(&info.subresource),
            code,
        };
        let mut requests = self.requests.lock();
        if requests.len() >= MAX_SERIES && !requests.contains_key(&key) {
            key = Key {
                group: String::new(),
                version: String::new(),
                resource: String::new(),
                subresource: String::new(),
                ..key
            };
        }
        let series = requests.entry(key).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.sum_s += seconds;
        for (i, bound) in BUCKETS.iter().enumerate() {
            if seconds <= *bound {
                series.buckets[i] += 1;
            }
        }
    }

    /// Counts a committed write.
    pub fn written(&self, _served: &Served, _verb: &'static str) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self, core: &Core) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let head = |name: &str, kind: &str, help: &str, out: &mut String| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let requests = self.requests.lock();
        head(
            "apiserver_request_total",
            "counter",
            "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
            &mut out,
        );
        for (key, series) in requests.iter() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",{}}} {}",
                key.code,
                key.labels(),
                series.count
            );
        }
        head(
            "apiserver_request_duration_seconds",
            "histogram",
            "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
            &mut out,
        );
        let name = "apiserver_request_duration_seconds";
        let mut merged: BTreeMap<String, Series> = BTreeMap::new();
        for (key, series) in requests.iter() {
            let all = merged.entry(key.labels()).or_default();
            all.count += series.count;
            all.sum_s += series.sum_s;
            for (to, from) in all.buckets.iter_mut().zip(series.buckets) {
                *to += from;
            }
        }
        for (labels, series) in &merged {
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(
                out,
                "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}",
                series.sum_s, series.count
            );
        }
        drop(requests);
        head(
            "apiserver_current_inflight_requests",
            "gauge",
            "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
            &mut out,
        );
        for (kind, value) in [("readOnly", &self.in_flight_readonly), ("mutating", &self.in_flight_mutating)]
        {
            let _ = writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}",
                value.load(Ordering::Relaxed)
            );
        }
        head(
            "apiserver_longrunning_requests",
            "gauge",
            "[STABLE] Gauge of all active long-running apiserver requests.",
            &mut out,
        );
        let _ = writeln!(out, "apiserver_longrunning_requests {}", self.long_running.load(Ordering::Relaxed));
        head(
            "apiserver_dropped_requests_total",
            "counter",
            "Number of requests refused because too many were in flight.",
            &mut out,
        );
        let _ = writeln!(out, "apiserver_dropped_requests_total {}", self.dropped.load(Ordering::Relaxed));
        head(
            "apiserver_storage_objects",
            "gauge",
            "[STABLE] Number of stored objects at the time of last check split by kind.",
            &mut out,
        );
        for (kind, count) in core.store().kinds() {
            let (group, plural) = kind.split_once('/').unwrap_or(("", &kind));
            let dot = if group.is_empty() { "" } else { "." };
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{plural}{dot}{group}\"}} {count}");
        }
        head(
            "kubernetes_feature_enabled",
            "gauge",
            "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
            &mut out,
        );
        for (gate, on) in core.config.gates.iter() {
            let (name, stage) = (gate.name, gate.now().stage.label());
            let _ = writeln!(
                out,
                "kubernetes_feature_enabled{{name=\"{name}\",stage=\"{stage}\"}} {}",
                u8::from(on)
            );
        }
        head("yare_store_writes_total", "counter", "Committed writes of objects.", &mut out);
        let _ = writeln!(out, "yare_store_writes_total {}", self.writes.load(Ordering::Relaxed));
        core.admission.metrics.render(&mut out);
        crate::aggregation::metrics::render(core, &mut out);
        process(&mut out);
        out
    }
}

impl Key {
    fn labels(&self) -> String {
        format!(
            "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\",component=\"apiserver\"",
            self.verb, self.group, self.version, self.resource, self.subresource
        )
    }
}

fn verb_label(verb: &str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "OTHER",
    }
}

/// Resident memory and processor time of this process, from `/proc`.
fn process(out: &mut String) {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = text.split_whitespace().nth(1).and_then(|p| p.parse::<u64>().ok()) {
        let _ = writeln!(
            out,
            "# HELP process_resident_memory_bytes Resident memory size in bytes.\n# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}",
            pages * 4096
        );
    }
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    let _ = writeln!(
        out,
        "# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {}",
        ticks as f64 / 100.0
    );
}
