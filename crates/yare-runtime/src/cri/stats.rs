//! Usage of containers: what the runtime tells, and what the kernel tells of their cgroups.

use std::path::PathBuf;

use super::{CgroupDriver, Inner, NOTHING, cri, map, method};
use crate::api::*;
use crate::error::Result;

impl Inner {
    pub(super) async fn stats(&self) -> Result<Vec<ContainerStats>> {
        let answer: cri::ListStatsResponse =
            self.ask(method!(runtime "ListContainerStats"), cri::ListStatsRequest {}, NOTHING).await?;
        let mut list = Vec::with_capacity(answer.stats.len());
        for stats in answer.stats {
            let Some(attributes) = stats.attributes.clone() else { continue };
            let Ok(sandbox) = self.sandbox_of(&attributes.id).await else { continue };
            let mut one = measured(stats);
            one.sandbox_id = sandbox;
            // The runtime tells little of memory, and nothing of processes: the kernel does.
            if let Some(group) = self.container_cgroup(&one).await {
                self.cgroups.stats(&group, &mut one);
                one.cgroup = group;
            }
            list.push(one);
        }
        Ok(list)
    }

    /// Where a runtime puts a container's cgroup below its pod's, by that runtime's habit.
    async fn container_cgroup(&self, stats: &ContainerStats) -> Option<PathBuf> {
        let known = self.group_of.lock().get(&stats.sandbox_id).cloned();
        let pod = match known {
            Some(pod) => pod,
            None => {
                let status = self.raw_sandbox(&stats.sandbox_id).await.ok()?;
                let pod = map::sandbox::again(&status).and_then(|c| self.cgroup(&c.cgroup_parent))?;
                self.group_of.lock().insert(stats.sandbox_id.clone(), pod.clone());
                pod
            }
        };
        let id = &stats.id;
        let names = match self.driver {
            CgroupDriver::Cgroupfs => [id.clone(), format!("crio-{id}")],
            CgroupDriver::Systemd => [format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")],
        };
        names.into_iter().map(|name| pod.join(name)).find(|group| self.cgroups.exists(group))
    }
}

fn measured(stats: cri::ContainerStats) -> ContainerStats {
    let value = |v: &Option<cri::UInt64Value>| v.as_ref().map_or(0, |v| v.value);
    let attributes = stats.attributes.unwrap_or_default();
    let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
    let layer = stats.writable_layer.unwrap_or_default();
    ContainerStats {
        id: attributes.id,
        name: attributes.metadata.map(|m| m.name).unwrap_or_default(),
        timestamp_ns: cpu.timestamp,
        cpu_usage_ns: value(&cpu.usage_core_nano_seconds),
        memory_usage_bytes: value(&memory.usage_bytes),
        memory_working_set_bytes: value(&memory.working_set_bytes),
        memory_rss_bytes: value(&memory.rss_bytes),
        page_faults: value(&memory.page_faults),
        major_page_faults: value(&memory.major_page_faults),
        writable_layer_bytes: value(&layer.used_bytes),
        writable_layer_inodes: value(&layer.inodes_used),
        ..ContainerStats::default()
    }
}
