//! How full the volumes of pods are, for `/stats/summary`.
//!
//! In: what each pod has mounted, noted when it is made ready. Out: numbers, asked for when somebody wants them
//! and kept for a minute: drivers and large trees are not asked at every look.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use yare_client::EventKind;

use super::{Bound, KINDS, Mounted, Source, VolumeContext};
use crate::kubelet::Kubelet;
use crate::node::capacity::disk;

/// Numbers are this old at most.
const KEPT: Duration = Duration::from_secs(60);
/// A volume that does not say how full it is in this time is left out this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Numbers of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VolumeStats {
    pub(crate) capacity_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
    pub(crate) inodes_used: u64,
    /// What the driver says is wrong with it, empty where nothing is; none: it says nothing of the kind.
    pub(crate) condition: Option<Condition>,
}

/// How a driver finds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) abnormal: bool,
    pub(crate) message: String,
}

/// A mounted volume, as far as its numbers are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// Its name in the pod.
    pub(crate) name: String,
    /// The claim's namespace and name.
    pub(crate) claim: Option<(String, String)>,
    plugin: &'static str,
    /// Where its files are, or its device.
    pub(crate) path: PathBuf,
    /// The driver's name, and the driver's name of the volume.
    pub(crate) csi: Option<(String, String)>,
}

/// One pod's volumes.
#[derive(Debug, Default)]
pub(crate) struct PodVolumes {
    volumes: Arc<Vec<Measured>>,
    last: Arc<Mutex<Option<(Instant, Value)>>>,
}

/// Notes what a pod has mounted.
pub(super) fn note(
    context: &VolumeContext<'_>,
    mounted: &HashMap<String, Mounted>,
    bound: &HashMap<String, Arc<Bound>>,
) {
    let mut all = context.kubelet.volumes.measured.lock();
    let known = all.entry(context.pod.metadata.uid.clone()).or_default();
    if known.volumes.len() == mounted.len() {
        return;
    }
    let volumes = context.pod.spec.volumes.iter().filter_map(|volume| {
        let ready = mounted.get(&volume.name)?;
        let bound = bound.get(&volume.name).cloned();
        let source = Source { volume, bound: bound.clone() };
        let kind = KINDS.iter().find(|k| k.supports(&source))?;
        Some(Measured {
            name: volume.name.clone(),
            claim: bound.map(|b| (b.claim.metadata.namespace.clone(), b.claim.metadata.name.clone())),
            plugin: kind.plugin(),
            path: ready.device.clone().unwrap_or_else(|| ready.path.clone()),
            csi: super::csi::identity(context.pod, &source),
        })
    });
    *known = PodVolumes { volumes: Arc::new(volumes.collect()), last: Arc::default() };
}

/// The `volume` list of a pod in `/stats/summary`.
pub(crate) async fn of_pod(kubelet: &Arc<Kubelet>, uid: &str) -> Value {
    let (volumes, last) = match kubelet.volumes.measured.lock().get(uid) {
        Some(found) => (found.volumes.clone(), found.last.clone()),
        None => return json!([]),
    };
    if let Some((at, value)) = &*last.lock()
        && at.elapsed() < KEPT
    {
        return value.clone();
    }
    let now = kubelet.seams.now_text();
    let asked = volumes.iter().map(|measured| async {
        let kind = KINDS.iter().find(|k| k.plugin() == measured.plugin)?;
        let stats = tokio::time::timeout(TIMEOUT, kind.stats(kubelet, measured)).await.ok()??;
        if let Some(condition) = stats.condition.as_ref().filter(|c| c.abnormal) {
            complain(kubelet, uid, &measured.name, &condition.message);
        }
        Some(written(measured, &stats, &now))
    });
    let found: Vec<Value> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    let value = Value::Array(found);
    *last.lock() = Some((Instant::now(), value.clone()));
    value
}

/// An event about a volume that is not well.
fn complain(kubelet: &Kubelet, uid: &str, volume: &str, message: &str) {
    let published = kubelet.published.lock().get(uid).cloned();
    if let Some(published) = published {
        let pod = published.0.lock().pod.clone();
        let text = format!("Volume {volume}: {message}");
        kubelet.pod_event(&pod, None, EventKind::Warning, "VolumeConditionAbnormal", text);
    }
}

fn written(measured: &Measured, stats: &VolumeStats, now: &str) -> Value {
    let mut value = json!({
        "time": now,
        "capacityBytes": stats.capacity_bytes,
        "availableBytes": stats.available_bytes,
        "usedBytes": stats.used_bytes,
        "inodes": stats.inodes,
        "inodesFree": stats.inodes_free,
        "inodesUsed": stats.inodes_used,
        "name": measured.name,
    });
    if let Some((namespace, name)) = &measured.claim {
        value["pvcRef"] = json!({ "name": name, "namespace": namespace });
    }
    if let Some(condition) = &stats.condition {
        value["volumeHealthStats"] = json!({ "abnormal": condition.abnormal });
    }
    value
}

/// Numbers of the file system that a volume is.
pub(super) async fn file_system(path: &Path) -> Option<VolumeStats> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || disk(&path)).await.ok().flatten().map(|d| VolumeStats {
        capacity_bytes: d.total_bytes,
        available_bytes: d.available_bytes,
        used_bytes: d.total_bytes.saturating_sub(d.available_bytes),
        inodes: d.inodes,
        inodes_free: d.inodes_free,
        inodes_used: d.inodes.saturating_sub(d.inodes_free),
        condition: None,
    })
}

/// Numbers of a tree of files that shares its file system with others.
pub(super) async fn tree(path: &Path) -> Option<VolumeStats> {
    let whole = file_system(path).await?;
    let path = path.to_owned();
    let (used_bytes, inodes_used) = tokio::task::spawn_blocking(move || walk(&path)).await.ok()?;
    Some(VolumeStats { used_bytes, inodes_used, ..whole })
}

/// Bytes on disk and inodes of a tree; a file with several names counts once.
fn walk(root: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let (mut bytes, mut seen) = (0, std::collections::HashSet::new());
    let mut next = vec![root.to_owned()];
    let mut device = None;
    while let Some(path) = next.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if *device.get_or_insert(found.dev()) != found.dev() || !seen.insert(found.ino()) {
            continue;
        }
        bytes += found.blocks() * 512;
        if found.is_dir() {
            next.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    (bytes, seen.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        let (bytes, inodes) = walk(dir.path());
        assert_eq!(inodes, 3);
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }
}
