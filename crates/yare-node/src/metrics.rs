//! Counters of the node agent, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) started_containers: AtomicU64,
    pub(crate) http_requests: AtomicU64,
    /// By signal.
    evictions: Mutex<BTreeMap<String, u64>>,
    /// By reason: `space`, `age`.
    images_collected: Mutex<BTreeMap<&'static str, u64>>,
}

impl Metrics {
    /// A pod was told to go because of a signal.
    pub(crate) fn evicted(&self, signal: &str) {
        *self.evictions.lock().entry(signal.to_owned()).or_default() += 1;
    }

    /// An image was removed.
    pub(crate) fn image_collected(&self, reason: &'static str) {
        *self.images_collected.lock().entry(reason).or_default() += 1;
    }

    /// The text exposition of the counters, with the current numbers of pods and containers.
    pub(crate) fn render(&self, node: &str, pods: usize, containers: usize) -> String {
        let mut out = String::new();
        for (name, kind, help, labels, value) in [
            (
                "kubelet_node_name",
                "gauge",
                "The node's name. The count is always 1.",
                format!("{{node=\"{node}\"}}"),
                1,
            ),
            (
                "kubelet_running_pods",
                "gauge",
                "Number of pods that have a running pod sandbox",
                String::new(),
                u64::try_from(pods).unwrap_or(0),
            ),
            (
                "kubelet_running_containers",
                "gauge",
                "Number of containers currently running",
                "{container_state=\"running\"}".to_owned(),
                u64::try_from(containers).unwrap_or(0),
            ),
            (
                "kubelet_started_containers_total",
                "counter",
                "Cumulative number of containers started",
                "{container_type=\"container\"}".to_owned(),
                self.started_containers.load(Ordering::Relaxed),
            ),
            (
                "kubelet_http_requests_total",
                "counter",
                "Number of the http requests received since the server started",
                String::new(),
                self.http_requests.load(Ordering::Relaxed),
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}");
        }
        let evictions: Vec<(String, u64)> =
            self.evictions.lock().iter().map(|(signal, n)| (signal.clone(), *n)).collect();
        let images: Vec<(String, u64)> =
            self.images_collected.lock().iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        for (name, help, label, counts) in [
            (
                "kubelet_evictions",
                "Cumulative number of pod evictions by eviction signal",
                "eviction_signal",
                evictions,
            ),
            (
                "kubelet_image_garbage_collected_total",
                "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
                "reason",
                images,
            ),
        ] {
            if counts.is_empty() {
                continue;
            }
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (value, count) in counts {
                let _ = writeln!(out, "{name}{{{label}={value:?}}} {count}");
            }
        }
        out
    }
}
