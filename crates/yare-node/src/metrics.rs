//! Counters of the node agent, under upstream's names.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) started_containers: AtomicU64,
    pub(crate) http_requests: AtomicU64,
}

impl Metrics {
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
        out
    }
}
