//! Numbers: `/stats/summary`, `/metrics`, `/metrics/resource`, `/configz`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use yare_runtime::{ContainerState, ContainerStats};

use super::{Body, respond, text};
use crate::clock;
use crate::kubelet::{Kubelet, PodState};
use crate::node::capacity::{disk, meminfo_bytes};

fn states(kubelet: &Kubelet) -> Vec<PodState> {
    let published: Vec<_> = kubelet.published.lock().values().cloned().collect();
    published.iter().map(|p| p.0.lock().clone()).collect()
}

pub(super) fn metrics(kubelet: &Kubelet) -> Response<Body> {
    let states = states(kubelet);
    let pods = states.iter().filter(|s| s.sandbox.is_some()).count();
    let containers =
        states.iter().flat_map(|s| &s.containers).filter(|c| c.state == ContainerState::Running).count();
    exposition(kubelet.metrics.render(&kubelet.node_name, pods, containers))
}

fn exposition(text: String) -> Response<Body> {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

/// Processor and memory use of the machine.
struct Machine {
    cpu_ns: u64,
    memory_used: u64,
    memory_available: u64,
}

fn machine() -> Machine {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    // user nice system, then idle and iowait, then irq softirq steal; a tick is 10 ms.
    let busy: u64 =
        ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4 | 8 | 9)).map(|(_, t)| t).sum();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0);
    let available = meminfo_bytes(&meminfo, "MemAvailable").unwrap_or(0);
    Machine {
        cpu_ns: busy.saturating_mul(10_000_000),
        memory_used: total.saturating_sub(available),
        memory_available: available,
    }
}

async fn usage(kubelet: &Kubelet) -> Result<HashMap<String, ContainerStats>, Response<Body>> {
    match kubelet.runtime.stats().await {
        Ok(list) => Ok(list.into_iter().map(|s| (s.id.clone(), s)).collect()),
        Err(error) => Err(text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))),
    }
}

pub(super) async fn summary(kubelet: &Arc<Kubelet>) -> Response<Body> {
    let usage = match usage(kubelet).await {
        Ok(usage) => usage,
        Err(response) => return response,
    };
    let now = kubelet.seams.now_text();
    let cpu = |ns: u64| json!({ "time": now, "usageCoreNanoSeconds": ns });
    let file_system = |path: &std::path::Path| -> Value {
        let d = disk(path).unwrap_or_default();
        json!({
            "time": now,
            "capacityBytes": d.total_bytes,
            "availableBytes": d.available_bytes,
            "usedBytes": d.total_bytes.saturating_sub(d.available_bytes),
            "inodes": d.inodes,
            "inodesFree": d.inodes_free,
            "inodesUsed": d.inodes.saturating_sub(d.inodes_free),
        })
    };
    let mut pods = Vec::new();
    for state in states(kubelet) {
        let running: Vec<(&yare_runtime::ContainerStatus, &ContainerStats)> =
            state.containers.iter().filter_map(|c| Some((c, usage.get(&c.id)?))).collect();
        let total = |of: fn(&ContainerStats) -> u64| running.iter().map(|(_, s)| of(s)).sum::<u64>();
        let containers: Vec<Value> = running
            .iter()
            .map(|(status, s)| {
                json!({
                    "name": status.name,
                    "startTime": clock::from_ns(status.started_at_ns).map(clock::rfc3339),
                    "cpu": cpu(s.cpu_usage_ns),
                    "memory": {
                        "time": now,
                        "usageBytes": s.memory_usage_bytes,
                        "workingSetBytes": s.memory_working_set_bytes,
                        "rssBytes": s.memory_rss_bytes,
                        "pageFaults": s.page_faults,
                        "majorPageFaults": s.major_page_faults,
                    },
                    "rootfs": { "time": now, "usedBytes": s.writable_layer_bytes, "inodesUsed": s.writable_layer_inodes },
                    "logs": { "time": now, "usedBytes": std::fs::metadata(&status.log_path).map_or(0, |m| m.len()) },
                })
            })
            .collect();
        let m = &state.pod.metadata;
        let volumes = crate::volumes::stats_of_pod(kubelet, &m.uid).await;
        pods.push(json!({
            "podRef": { "name": m.name, "namespace": m.namespace, "uid": m.uid },
            "startTime": state.status.start_time,
            "containers": containers,
            "cpu": cpu(total(|s| s.cpu_usage_ns)),
            "memory": {
                "time": now,
                "usageBytes": total(|s| s.memory_usage_bytes),
                "workingSetBytes": total(|s| s.memory_working_set_bytes),
                "rssBytes": total(|s| s.memory_rss_bytes),
            },
            "process_stats": { "process_count": total(|s| s.pids) },
            "volume": volumes,
        }));
    }
    let machine = machine();
    super::json(&json!({
        "node": {
            "nodeName": kubelet.node_name,
            "cpu": cpu(machine.cpu_ns),
            "memory": {
                "time": now,
                "availableBytes": machine.memory_available,
                "usageBytes": machine.memory_used,
                "workingSetBytes": machine.memory_used,
            },
            "fs": file_system(&kubelet.data_dir),
            "runtime": { "imageFs": file_system(&kubelet.data_dir) },
        },
        "pods": pods,
    }))
}

pub(super) async fn resource_metrics(kubelet: &Kubelet) -> Response<Body> {
    let usage = match usage(kubelet).await {
        Ok(usage) => usage,
        Err(response) => return response,
    };
    #[allow(
        clippy::cast_precision_loss,
        reason = "seconds with microsecond precision fit a double for centuries"
    )]
    let seconds = |ns: u64| ns as f64 / 1e9;
    let machine = machine();
    let mut cpu = String::new();
    let mut memory = String::new();
    let mut pod_cpu = String::new();
    let mut pod_memory = String::new();
    for state in states(kubelet) {
        let m = &state.pod.metadata;
        let mut totals = (0, 0, false);
        for container in &state.containers {
            let Some(s) = usage.get(&container.id) else { continue };
            let labels =
                format!("{{container={:?},namespace={:?},pod={:?}}}", container.name, m.namespace, m.name);
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{labels} {}", seconds(s.cpu_usage_ns));
            let _ =
                writeln!(memory, "container_memory_working_set_bytes{labels} {}", s.memory_working_set_bytes);
            totals = (totals.0 + s.cpu_usage_ns, totals.1 + s.memory_working_set_bytes, true);
        }
        if totals.2 {
            let labels = format!("{{namespace={:?},pod={:?}}}", m.namespace, m.name);
            let _ = writeln!(pod_cpu, "pod_cpu_usage_seconds_total{labels} {}", seconds(totals.0));
            let _ = writeln!(pod_memory, "pod_memory_working_set_bytes{labels} {}", totals.1);
        }
    }
    let mut out = String::new();
    for (name, kind, help, body) in [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
            cpu,
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set of the container in bytes",
            memory,
        ),
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            format!("node_cpu_usage_seconds_total {}\n", seconds(machine.cpu_ns)),
        ),
        (
            "node_memory_working_set_bytes",
            "gauge",
            "Current working set of the node in bytes",
            format!("node_memory_working_set_bytes {}\n", machine.memory_used),
        ),
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the pod in core-seconds",
            pod_cpu,
        ),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", pod_memory),
        (
            "resource_scrape_error",
            "gauge",
            "1 if there was an error while getting container metrics, 0 otherwise",
            "resource_scrape_error 0\n".to_owned(),
        ),
    ] {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{body}");
    }
    exposition(out)
}

pub(super) fn configz(kubelet: &Kubelet) -> Response<Body> {
    super::json(&json!({ "kubeletconfig": kubelet.config.document() }))
}
