//! `/stats/summary`: what the node, its pods and their containers use, as JSON.

use std::path::Path;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use yare_runtime::{GroupUsage, Stall, StallTimes};

use super::{Body, query, text};
use crate::clock;
use crate::kubelet::Kubelet;
use crate::node::capacity::disk;
use crate::pod::dirs::PodDirs;
use crate::usage::network::Interface;
use crate::usage::{ContainerUse, Depth, NodeUse, PodUse, collect};
use crate::view::Pod;

/// The interface whose numbers stand for a pod.
const MAIN_INTERFACE: &str = "eth0";

/// Writes one summary: all of it was measured at one time.
struct Writer<'a> {
    kubelet: &'a Arc<Kubelet>,
    measured: &'a NodeUse,
    time: String,
    /// Only processor and memory were asked for.
    is_brief: bool,
}

pub(super) async fn serve(kubelet: &Arc<Kubelet>, raw: &str) -> Response<Body> {
    let measured = match collect(kubelet, Depth::Groups).await {
        Ok(measured) => measured,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    let time = clock::from_ns(measured.at_ns).map(clock::rfc3339).unwrap_or_default();
    let is_brief = query(raw, "only_cpu_and_memory") == ["true"];
    let writer = Writer { kubelet, measured: &measured, time, is_brief };
    let mut pods = Vec::with_capacity(measured.pods.len());
    for pod in &measured.pods {
        pods.push(writer.pod(pod).await);
    }
    let summary = json!({ "node": writer.node().await, "pods": pods });
    kubelet.rates.prune(measured.at_ns);
    super::json(&summary)
}

impl Writer<'_> {
    async fn node(&self) -> Value {
        let kubelet = self.kubelet;
        let mut node = self.group("", &self.measured.root);
        node.insert("nodeName".into(), json!(kubelet.node_name));
        node.insert("startTime".into(), json!(boot_time()));
        let mut system = Vec::new();
        let own = self.measured.own.iter().map(|group| ("kubelet", group));
        for (name, (path, usage)) in own.chain(self.measured.groups.first().map(|group| ("pods", group))) {
            let mut group = self.group(path, usage);
            group.insert("name".into(), json!(name));
            group.insert("startTime".into(), json!(clock::from_ns(usage.created_at_ns).map(clock::rfc3339)));
            system.push(Value::Object(group));
        }
        node.insert("systemContainers".into(), Value::Array(system));
        if !self.is_brief {
            let images = kubelet.runtime.image_fs().await.ok();
            let containers = kubelet.runtime.container_fs().await.ok().flatten();
            let fs = |usage: yare_runtime::FsUsage| {
                json!({
                    "time": self.time,
                    "availableBytes": usage.available_bytes,
                    "capacityBytes": usage.capacity_bytes,
                    "usedBytes": usage.used_bytes,
                    "inodesFree": usage.inodes_free,
                    "inodes": usage.inodes,
                    "inodesUsed": usage.inodes_used,
                })
            };
            let images = images.map(fs);
            // Where writable layers have no file system of their own they are on that of the images.
            let containers = containers.map(fs).or_else(|| images.clone());
            node.insert("network".into(), self.network(&self.measured.network));
            node.insert("fs".into(), Value::Object(self.file_system(&kubelet.data_dir)));
            node.insert("runtime".into(), json!({ "imageFs": images, "containerFs": containers }));
            node.insert(
                "rlimit".into(),
                json!({ "time": self.time, "maxpid": kubelet.capacity.pids, "curproc": running_tasks() }),
            );
        }
        Value::Object(node)
    }

    async fn pod(&self, pod: &PodUse) -> Value {
        let m = &pod.state.pod.metadata;
        let mut value = self.group(&pod.group, &pod.usage);
        value.insert("podRef".into(), json!({ "name": m.name, "namespace": m.namespace, "uid": m.uid }));
        value.insert("startTime".into(), json!(pod.state.status.start_time));
        let containers: Vec<Value> = pod.containers.iter().map(|c| self.container(pod, c)).collect();
        if !self.is_brief {
            if !pod.network.is_empty() {
                value.insert("network".into(), self.network(&pod.network));
            }
            let volumes = crate::volumes::stats_of_pod(self.kubelet, &m.uid).await;
            value.insert("ephemeral-storage".into(), self.ephemeral(pod, &containers, &volumes));
            value.insert("volume".into(), volumes);
            let processes: u64 = pod.containers.iter().map(|c| c.stats.pids).sum();
            value.insert("process_stats".into(), json!({ "process_count": processes }));
        }
        value.insert("containers".into(), Value::Array(containers));
        Value::Object(value)
    }

    fn container(&self, pod: &PodUse, container: &ContainerUse) -> Value {
        let path = match container.stats.cgroup.to_string_lossy() {
            path if path.is_empty() => format!("{}/{}", pod.group, container.status.id),
            path => path.into_owned(),
        };
        let mut value = self.group(&path, &container.usage);
        value.insert("name".into(), json!(container.status.name));
        let started = clock::from_ns(container.status.started_at_ns).map(clock::rfc3339);
        value.insert("startTime".into(), json!(started));
        if !self.is_brief {
            let mut root = self.file_system(&self.kubelet.data_dir);
            root.insert("usedBytes".into(), json!(container.stats.writable_layer_bytes));
            root.insert("inodesUsed".into(), json!(container.stats.writable_layer_inodes));
            value.insert("rootfs".into(), Value::Object(root));
            let dirs = PodDirs::new(&self.kubelet.data_dir, &self.kubelet.log_dir, &pod.state.pod);
            let (bytes, files) = log_use(&dirs.container_logs(&container.status.name));
            let mut logs = self.file_system(&self.kubelet.log_dir);
            logs.insert("usedBytes".into(), json!(bytes));
            logs.insert("inodesUsed".into(), json!(files));
            value.insert("logs".into(), Value::Object(logs));
        }
        Value::Object(value)
    }

    /// Writable layers, logs, and volumes that live and die with the pod on the node's own disk.
    fn ephemeral(&self, pod: &PodUse, containers: &[Value], volumes: &Value) -> Value {
        let number = |value: &Value, part: &str, field: &str| value[part][field].as_u64().unwrap_or(0);
        let (mut bytes, mut inodes) = (0, 0);
        for container in containers {
            bytes += number(container, "rootfs", "usedBytes") + number(container, "logs", "usedBytes");
            inodes += number(container, "rootfs", "inodesUsed") + number(container, "logs", "inodesUsed");
        }
        let of_pod =
            |volume: &&Value| volume["name"].as_str().is_some_and(|name| is_local(&pod.state.pod, name));
        for volume in volumes.as_array().into_iter().flatten().filter(of_pod) {
            bytes += volume["usedBytes"].as_u64().unwrap_or(0);
            inodes += volume["inodesUsed"].as_u64().unwrap_or(0);
        }
        let mut value = self.file_system(&self.kubelet.data_dir);
        value.insert("usedBytes".into(), json!(bytes));
        value.insert("inodesUsed".into(), json!(inodes));
        Value::Object(value)
    }

    /// Processor, memory, swap and waiting of a group.
    fn group(&self, path: &str, usage: &GroupUsage) -> Map<String, Value> {
        let time = &self.time;
        let mut value = Map::new();
        let mut cpu = json!({ "time": time, "usageCoreNanoSeconds": usage.cpu.usage_ns });
        if let Some(rate) = self.kubelet.rates.of(path, self.measured.at_ns, usage.cpu.usage_ns) {
            cpu["usageNanoCores"] = json!(rate);
        }
        add_stall(&mut cpu, usage.cpu.stall);
        value.insert("cpu".into(), cpu);
        if let Some(m) = &usage.memory {
            let mut memory = json!({
                "time": time,
                "usageBytes": m.usage_bytes,
                "workingSetBytes": m.working_set_bytes,
                "rssBytes": m.rss_bytes,
                "pageFaults": m.page_faults,
                "majorPageFaults": m.major_page_faults,
            });
            if let Some(limit) = m.limit_bytes {
                memory["availableBytes"] = json!(limit.saturating_sub(m.working_set_bytes));
            }
            add_stall(&mut memory, m.stall);
            value.insert("memory".into(), memory);
            let mut swap = json!({ "time": time, "swapUsageBytes": m.swap_bytes });
            let limit = match path {
                "" => Some(self.kubelet.capacity.swap_bytes),
                _ => m.swap_limit_bytes,
            };
            if let Some(limit) = limit {
                swap["swapAvailableBytes"] = json!(limit.saturating_sub(m.swap_bytes));
            }
            value.insert("swap".into(), swap);
        }
        if let Some(stall) = usage.io_stall.filter(|_| !self.is_brief) {
            let mut io = json!({ "time": time });
            add_stall(&mut io, Some(stall));
            value.insert("io".into(), io);
        }
        value
    }

    fn network(&self, interfaces: &[Interface]) -> Value {
        let one = |i: &Interface| {
            json!({
                "name": i.name,
                "rxBytes": i.received.bytes,
                "rxErrors": i.received.errors,
                "txBytes": i.sent.bytes,
                "txErrors": i.sent.errors,
            })
        };
        let main = interfaces.iter().find(|i| i.name == MAIN_INTERFACE);
        let mut value = main.map_or_else(|| json!({ "name": "" }), one);
        value["time"] = json!(self.time);
        value["interfaces"] = interfaces.iter().map(one).collect();
        value
    }

    fn file_system(&self, path: &Path) -> Map<String, Value> {
        let d = disk(path).unwrap_or_default();
        let value = json!({
            "time": self.time,
            "capacityBytes": d.total_bytes,
            "availableBytes": d.available_bytes,
            "usedBytes": d.total_bytes.saturating_sub(d.available_bytes),
            "inodes": d.inodes,
            "inodesFree": d.inodes_free,
            "inodesUsed": d.inodes.saturating_sub(d.inodes_free),
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

fn add_stall(value: &mut Value, stall: Option<Stall>) {
    let times = |t: StallTimes| json!({ "total": t.total_us, "avg10": t.avg10, "avg60": t.avg60, "avg300": t.avg300 });
    if let Some(stall) = stall {
        value["psi"] = json!({ "full": times(stall.full), "some": times(stall.some) });
    }
}

/// Whether a volume is on the node's disk and goes with the pod.
fn is_local(pod: &Pod, name: &str) -> bool {
    let volume = pod.spec.volumes.iter().find(|v| v.name == name);
    volume.is_some_and(|v| {
        v.config_map.is_some() || v.empty_dir.as_ref().is_some_and(|dir| dir.medium.is_empty())
    })
}

/// Bytes and files of a container's logs, rotated ones too.
fn log_use(dir: &Path) -> (u64, u64) {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter_map(|entry| entry.metadata().ok())
        .fold((0, 0), |(bytes, files), m| (bytes + m.len(), files + 1))
}

/// When the machine was started.
fn boot_time() -> Option<String> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())?;
    jiff::Timestamp::from_second(seconds).ok().map(clock::rfc3339)
}

/// Tasks of the whole machine.
fn running_tasks() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()
}
