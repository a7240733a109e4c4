//! `/metrics/cadvisor`: what every container, pod and group of pods uses, and what the machine has, under the names
//! that cAdvisor gave them and that dashboards and rules ask for.
//!
//! In: a [`NodeUse`](crate::usage::NodeUse). Out: one page. [`containers`] is the table of what is told of a
//! group, [`machine`] that of the machine. Numbers that cAdvisor's build in a kubelet only ever reports as zero
//! (load averages, states of tasks, persistent memory) are left out.

mod containers;
mod filesystems;
mod machine;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Response;
use yare_metrics::text::Page;
use yare_runtime::GroupUsage;

use super::Body;
use crate::kubelet::Kubelet;
use crate::node::capacity::{boot_id, node_info};
use crate::usage::network::Interface;
use crate::usage::processes::Processes;
use crate::usage::{Depth, NodeUse, PodUse, collect};
use filesystems::FileSystem;

/// What a row of the table is about: the machine, a group, a pod or a container.
#[derive(Default)]
struct Subject<'a> {
    /// Path of its cgroup.
    id: String,
    /// Its name at the runtime: of a container its id.
    name: &'a str,
    image: String,
    container: &'a str,
    pod: &'a str,
    namespace: &'a str,
    usage: Usage<'a>,
    network: &'a [Interface],
    filesystems: Vec<FileSystem>,
    processes: Option<&'a Processes>,
    /// Seconds since 1970.
    started_s: f64,
    at_ms: i64,
}

/// A group's numbers. The machine itself and groups of pods have none of a container's.
#[derive(Clone, Copy, Default)]
struct Usage<'a>(Option<&'a GroupUsage>);

/// Names of disks by their numbers.
type Disks = BTreeMap<(u32, u32), String>;

pub(super) async fn serve(kubelet: &Arc<Kubelet>) -> Response<Body> {
    let (measured, failed) = match collect(kubelet, Depth::Processes).await {
        Ok(measured) => (Some(measured), 0),
        Err(error) => {
            tracing::warn!(%error, "what containers use cannot be read");
            (None, 1)
        }
    };
    let capacity = kubelet.capacity.clone();
    let data_dir = kubelet.data_dir.clone();
    // Reads of /sys and /proc, and statfs, which may wait for a disk.
    let page = tokio::task::spawn_blocking(move || {
        let mut page = Page::new();
        version(&mut page);
        if let Some(measured) = &measured {
            let disks = filesystems::disks();
            containers::expose(&subjects(measured, &data_dir), &disks, &mut page);
        }
        page.single(
            "container_scrape_error",
            "gauge",
            "1 if there was an error while getting container metrics, 0 otherwise",
            failed,
        );
        machine::expose(&capacity, &mut page);
        page.finish()
    });
    super::stats::exposition(page.await.unwrap_or_default())
}

fn version(page: &mut Page) {
    let info = node_info("", &boot_id());
    let text = |field: &str| info[field].as_str().unwrap_or_default().to_owned();
    let (kernel, system) = (text("kernelVersion"), text("osImage"));
    let name = "cadvisor_version_info";
    page.family(name, "gauge", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.");
    let labels = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", kernel.as_str()),
        ("osVersion", system.as_str()),
    ];
    page.sample(name, &labels, 1);
}

fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}

/// A container's image by its full name. What the runtime was told is the image's id.
fn image(pod: &PodUse, container: &str) -> String {
    let asked = pod.state.pod.container(container).map(|c| c.image.as_str()).unwrap_or_default();
    yare_runtime::Reference::parse(asked).map_or_else(|_| asked.to_owned(), |reference| reference.to_string())
}

/// All that there is to tell of: the machine, the groups above pods, pods, containers.
fn subjects<'a>(measured: &'a NodeUse, data_dir: &std::path::Path) -> Vec<Subject<'a>> {
    let at_ms = measured.at_ns / 1_000_000;
    let group = |id: String, usage: &'a GroupUsage| Subject {
        id,
        usage: Usage(Some(usage)),
        started_s: seconds(usage.created_at_ns).trunc(),
        at_ms,
        ..Subject::default()
    };
    let mut all = vec![Subject {
        network: &measured.network,
        filesystems: filesystems::of_machine(),
        ..group("/".to_owned(), &measured.root)
    }];
    all.extend(measured.groups.iter().map(|(path, usage)| group(format!("/{path}"), usage)));
    // All containers' layers are there.
    let layers = filesystems::holding(data_dir);
    for pod in &measured.pods {
        let m = &pod.state.pod.metadata;
        let of_pod = || Subject { pod: &m.name, namespace: &m.namespace, ..Subject::default() };
        let whole = group(format!("/{}", pod.group), &pod.usage);
        all.push(Subject {
            pod: &m.name,
            namespace: &m.namespace,
            // Upstream tells of a pod's network under the name of its sandbox.
            name: pod.state.sandbox.as_deref().unwrap_or_default(),
            network: &pod.network,
            ..whole
        });
        for container in &pod.containers {
            let filesystems = layers
                .iter()
                .cloned()
                .map(|layers| FileSystem { used_bytes: container.stats.writable_layer_bytes, ..layers });
            let path = container.stats.cgroup.to_string_lossy();
            all.push(Subject {
                id: if path.is_empty() { String::new() } else { format!("/{path}") },
                name: &container.status.id,
                image: image(pod, &container.status.name),
                container: &container.status.name,
                usage: Usage(Some(&container.usage)),
                filesystems: filesystems.collect(),
                processes: container.processes.as_ref(),
                started_s: seconds(container.status.started_at_ns).trunc(),
                at_ms,
                ..of_pod()
            });
        }
    }
    all
}
