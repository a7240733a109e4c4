//! Numbers as metrics: `/metrics`, `/metrics/resource`, `/metrics/probes`; and `/configz`.

use std::sync::Arc;

use http::{Method, Response, StatusCode};
use serde_json::json;
use yare_metrics::process::Process;
use yare_metrics::slis::Checks;
use yare_metrics::table::Kind::{self, Counter, Gauge};
use yare_metrics::table::{Counts, Family};
use yare_metrics::text::Page;
use yare_runtime::GroupUsage;

use super::{Body, respond};
use crate::kubelet::Kubelet;
use crate::usage::{Depth, NodeUse, collect};

pub(super) async fn metrics(kubelet: &Arc<Kubelet>) -> Response<Body> {
    exposition(crate::metrics::page(kubelet).await.finish())
}

pub(super) fn probes(kubelet: &Kubelet) -> Response<Body> {
    let mut page = Page::new();
    kubelet.metrics.expose_probes(&mut page);
    exposition(page.finish())
}

/// What health checks came to; `DELETE` forgets it.
pub(super) fn slis(kubelet: &Kubelet, method: &Method) -> Response<Body> {
    if *method == Method::DELETE {
        *kubelet.checks.lock() = Checks::default();
        return super::text(StatusCode::OK, "metrics reset\n");
    }
    let mut page = Page::new();
    kubelet.checks.lock().expose(&mut page);
    Process::read().expose_start(&mut page);
    exposition(page.finish())
}

pub(super) fn exposition(text: String) -> Response<Body> {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

pub(super) fn configz(kubelet: &Kubelet) -> Response<Body> {
    super::json(&json!({ "kubeletconfig": kubelet.config.document() }))
}

const CONTAINER: &[&str] = &["container", "namespace", "pod"];
const POD: &[&str] = &["namespace", "pod"];

/// What `/metrics/resource` tells of somebody.
struct Row {
    family: Family,
    value: fn(&GroupUsage) -> Option<f64>,
}

const fn row(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    value: fn(&GroupUsage) -> Option<f64>,
) -> Row {
    Row { family: Family::labelled(name, kind, labels, help), value }
}

fn cpu_s(usage: &GroupUsage) -> Option<f64> {
    Some(usage.cpu.usage_ns as f64 / 1e9)
}

fn working_set(usage: &GroupUsage) -> Option<f64> {
    usage.memory.as_ref().map(|m| m.working_set_bytes as f64)
}

fn swap(usage: &GroupUsage) -> Option<f64> {
    usage.memory.as_ref().map(|m| m.swap_bytes as f64)
}

/// None where there is no limit.
fn swap_limit(usage: &GroupUsage) -> Option<f64> {
    usage.memory.as_ref()?.swap_limit_bytes.map(|limit| limit as f64)
}

#[rustfmt::skip]
static CONTAINERS: [Row; 4] = [
    row("container_cpu_usage_seconds_total", Counter, CONTAINER, "[STABLE] Cumulative cpu time consumed by the container in core-seconds", cpu_s),
    row("container_memory_working_set_bytes", Gauge, CONTAINER, "[STABLE] Current working set of the container in bytes", working_set),
    row("container_swap_limit_bytes", Gauge, CONTAINER, "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems", swap_limit),
    row("container_swap_usage_bytes", Gauge, CONTAINER, "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems", swap),
];
/// The one number that no cgroup has.
static STARTED: Family = Family::labelled(
    "container_start_time_seconds",
    Gauge,
    CONTAINER,
    "[STABLE] Start time of the container since unix epoch in seconds",
);

#[rustfmt::skip]
static NODE: [Row; 3] = [
    row("node_cpu_usage_seconds_total", Counter, &[], "[STABLE] Cumulative cpu time consumed by the node in core-seconds", cpu_s),
    row("node_memory_working_set_bytes", Gauge, &[], "[STABLE] Current working set of the node in bytes", working_set),
    row("node_swap_usage_bytes", Gauge, &[], "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems", swap),
];

#[rustfmt::skip]
static PODS: [Row; 3] = [
    row("pod_cpu_usage_seconds_total", Counter, POD, "[STABLE] Cumulative cpu time consumed by the pod in core-seconds", cpu_s),
    row("pod_memory_working_set_bytes", Gauge, POD, "[STABLE] Current working set of the pod in bytes", working_set),
    row("pod_swap_usage_bytes", Gauge, POD, "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems", swap),
];

static ERROR: Family = Family::plain(
    "resource_scrape_error",
    Gauge,
    "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
);

pub(super) async fn resource_metrics(kubelet: &Arc<Kubelet>) -> Response<Body> {
    let counts = Counts::default();
    match collect(kubelet, Depth::Groups).await {
        Ok(measured) => {
            tell(&measured, &counts);
            counts.set(&ERROR, &[], 0.0);
        }
        Err(error) => {
            tracing::warn!(%error, "what containers use cannot be read");
            counts.set(&ERROR, &[], 1.0);
        }
    }
    let rows = CONTAINERS.iter().chain(&NODE).chain(&PODS).map(|row| &row.family);
    let table: Vec<&'static Family> = rows.chain([&STARTED, &ERROR]).collect();
    let mut page = Page::new();
    counts.expose(&table, &mut page);
    exposition(page.finish())
}

fn tell(measured: &NodeUse, counts: &Counts) {
    let set = |rows: &'static [Row], labels: &[&str], usage: &GroupUsage| {
        for row in rows {
            if let Some(value) = (row.value)(usage) {
                counts.set(&row.family, labels, value);
            }
        }
    };
    set(&NODE, &[], &measured.root);
    for pod in &measured.pods {
        let m = &pod.state.pod.metadata;
        if !pod.containers.is_empty() {
            set(&PODS, &[&m.namespace, &m.name], &pod.usage);
        }
        for container in &pod.containers {
            let labels = [container.status.name.as_str(), &m.namespace, &m.name];
            set(&CONTAINERS, &labels, &container.usage);
            let started_s = container.status.started_at_ns as f64 / 1e9;
            counts.set(&STARTED, &labels, started_s);
        }
    }
}
