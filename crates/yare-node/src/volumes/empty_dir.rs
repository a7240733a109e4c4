//! `emptyDir`: scratch space on the node's disk, in memory, or in huge pages.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use nix::mount::MsFlags;

use super::stats::{Measured, VolumeStats, tree};
use super::{
    Failure, Mounted, Source, VolumeContext, VolumeKind, Work, mount_tmpfs, mounts_below, ownership,
};
use crate::kubelet::Kubelet;
use crate::quantity;
use crate::view::Pod;

pub(super) struct EmptyDirVolume;

#[async_trait]
impl VolumeKind for EmptyDirVolume {
    fn plugin(&self) -> &'static str {
        "kubernetes.io/empty-dir"
    }

    fn supports(&self, source: &Source<'_>) -> bool {
        source.bound.is_none() && source.volume.empty_dir.is_some()
    }

    async fn set_up(&self, work: &mut Work<'_>) -> Result<Mounted, Failure> {
        let (context, volume) = (work.context, work.source.volume);
        let source = volume.empty_dir.as_ref().ok_or("no emptyDir source")?;
        let dir = context.dirs.volume(self.plugin(), &volume.name);
        let fresh = !dir.exists();
        ownership::make_directory(&dir, 0o755)?;
        match source.medium.as_str() {
            "" => {}
            "Memory" => {
                let node = context.kubelet.offer.lock().allocatable.get("memory").map(|t| quantity::value(t));
                let wanted = source.size_limit.as_deref().map(quantity::value);
                // The smallest of what the node has for all, the pod may use and the volume may hold.
                let bytes =
                    [node, memory_limit(context), wanted].into_iter().flatten().filter(|b| *b > 0).min();
                let mode = "mode=1777".to_owned();
                mount_tmpfs(&dir, &bytes.map_or(mode.clone(), |bytes| format!("{mode},size={bytes}")))?;
            }
            medium => mount_huge_pages(&dir, medium, context.pod)?,
        }
        if fresh {
            // In memory as on every tmpfs: files are removed by who owns them alone.
            let sticky = if source.medium == "Memory" { 0o1000 } else { 0 };
            ownership::set_mode(&dir, 0o777 | sticky)?;
            ownership::apply(&dir, ownership::fs_group(context.pod), false)?;
        }
        Ok(Mounted { path: dir, ..Mounted::default() })
    }

    async fn stats(&self, _: &Arc<Kubelet>, measured: &Measured) -> Option<VolumeStats> {
        tree(&measured.path).await
    }
}

/// What the pod's containers may use of memory in all: tmpfs pages count against it.
fn memory_limit(context: &VolumeContext<'_>) -> Option<i64> {
    context
        .pod
        .spec
        .containers
        .iter()
        .map(|c| c.resources.limits.get("memory").map(|t| quantity::value(t)))
        .sum::<Option<i64>>()
        .filter(|bytes| *bytes > 0)
}

fn mount_huge_pages(dir: &Path, medium: &str, pod: &Pod) -> Result<(), String> {
    let bytes = page_size(medium, pod)?;
    if mounts_below(dir).is_ok_and(|m| m.iter().any(|p| p == dir)) {
        return Ok(());
    }
    let options = format!("pagesize={bytes}");
    nix::mount::mount(Some("nodev"), dir, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|e| format!("mount hugetlbfs at {}: {e}", dir.display()))
}

/// Bytes of a page of `HugePages` or `HugePages-2Mi`. The pod must ask for pages of that size; without one in the
/// medium, for pages of one size only.
fn page_size(medium: &str, pod: &Pod) -> Result<i64, String> {
    let wanted = match medium.strip_prefix("HugePages") {
        Some("") => None,
        Some(rest) => Some(
            rest.strip_prefix('-')
                .map(quantity::value)
                .filter(|b| *b > 0)
                .ok_or_else(|| format!("medium: {medium} is not a huge page medium"))?,
        ),
        None => return Err(format!("unknown storage medium {medium:?}")),
    };
    let of_containers = pod.spec.containers.iter().chain(&pod.spec.init_containers).map(|c| &c.resources);
    let requests = pod.spec.resources.iter().chain(of_containers).flat_map(|r| r.requests.keys());
    let mut sizes: Vec<i64> =
        requests.filter_map(|name| name.strip_prefix("hugepages-")).map(quantity::value).collect();
    sizes.sort_unstable();
    sizes.dedup();
    match (wanted, sizes.as_slice()) {
        (None, [size]) => Ok(*size),
        (None, [_, _, ..]) => {
            Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"))
        }
        (Some(size), sizes) if sizes.contains(&size) => Ok(size),
        _ => Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes() {
        let pod = |requests: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"spec": {"containers": [
                {"name": "a", "resources": {"requests": requests}}, {"name": "b"},
            ]}}))
            .unwrap()
        };
        let small = pod(serde_json::json!({"hugepages-2Mi": "4Mi", "cpu": "1"}));
        let both = pod(serde_json::json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}));
        let none = pod(serde_json::json!({"cpu": "1"}));
        for (medium, pod, want) in [
            ("HugePages", &small, Some(2 << 20)),
            ("HugePages-2Mi", &small, Some(2 << 20)),
            ("HugePages-1Gi", &small, None),
            ("HugePages", &both, None),
            ("HugePages-1Gi", &both, Some(1 << 30)),
            ("HugePages", &none, None),
            ("HugePages-", &small, None),
            ("Floppy", &small, None),
        ] {
            assert_eq!(page_size(medium, pod).ok(), want, "{medium}");
        }
    }
}
