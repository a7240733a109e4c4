//! `emptyDir`: scratch space on the node's disk, in memory, or in huge pages.

use std::sync::Arc;

use async_trait::async_trait;
use nix::mount::MsFlags;

use super::stats::{Measured, VolumeStats, tree};
use super::{
    Failure, Mounted, Source, VolumeContext, VolumeKind, Work, mount_tmpfs, mounts_below, ownership,
};
use crate::kubelet::Kubelet;
use crate::quantity;

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
        ownership::make_directory(&dir)?;
        match source.medium.as_str() {
            "" => {}
            "Memory" => {
                let wanted = source.size_limit.as_deref().map(quantity::value).filter(|b| *b > 0);
                let limit = match (wanted, memory_limit(context)) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                mount_tmpfs(
                    &dir,
                    &limit.map_or_else(|| "mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}")),
                )?;
            }
            medium => mount_huge_pages(&dir, medium)?,
        }
        if fresh {
            ownership::set_mode(&dir, 0o777)?;
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

fn mount_huge_pages(dir: &std::path::Path, medium: &str) -> Result<(), String> {
    let size =
        medium.strip_prefix("HugePages").ok_or_else(|| format!("unknown storage medium {medium:?}"))?;
    if mounts_below(dir).is_ok_and(|m| m.iter().any(|p| p == dir)) {
        return Ok(());
    }
    let options = size.strip_prefix('-').map(|s| format!("pagesize={}", quantity::value(s)));
    nix::mount::mount(Some("nodev"), dir, Some("hugetlbfs"), MsFlags::empty(), options.as_deref())
        .map_err(|e| format!("mount hugetlbfs at {}: {e}", dir.display()))
}
