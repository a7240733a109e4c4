//! The node's part in volumes of `yare.io/local-path`: their directories.
//!
//! A node watches the volumes that carry its own name. One that is new gets its directory, empty or copied from
//! another volume's, and loses the annotation that asked for it; one that is deleted with its content loses its
//! directory first, then the finalizer that kept it. A pod that comes before the watch has told does the same
//! at once.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde_json::json;
use yare_client::{EventKind, Informer, ObjectKey, ObjectRef, PERSISTENT_VOLUMES, Queue};
use yare_schema::local_path::{DRIVER, FINALIZER, PENDING, PROVISIONED_BY};

use super::copy;
use crate::api::PatchKind;
use crate::kubelet::Kubelet;
use crate::view::PersistentVolume;

/// Volumes that are made or removed at the same time.
const WORKERS: usize = 4;

/// Keeps two from working on one directory.
#[derive(Default)]
pub(crate) struct LocalVolumes {
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl LocalVolumes {
    async fn alone(&self, volume: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock();
            busy.retain(|_, lock| lock.strong_count() > 0);
            busy.get(volume).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::default();
                busy.insert(volume.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

/// Follows the volumes of this node; runs until it is dropped.
pub(crate) async fn run(kubelet: Arc<Kubelet>, volumes: Informer) {
    let queue: Queue<ObjectKey> = Queue::new();
    let follow = async {
        let mut changes = volumes.subscribe();
        while let Some(change) = changes.recv().await {
            if let Some(volume) = change.new {
                queue.add(volume.key().clone());
            }
        }
    };
    let work = || async {
        while let Some(key) = queue.get().await {
            match sync(&kubelet, &volumes, &key).await {
                Ok(()) => queue.forget(&key),
                Err(error) => {
                    tracing::warn!(volume = %key, error, "will retry");
                    queue.add_rate_limited(key.clone());
                }
            }
            queue.done(&key);
        }
    };
    tokio::join!(follow, futures::future::join_all((0..WORKERS).map(|_| work())));
}

async fn sync(kubelet: &Arc<Kubelet>, volumes: &Informer, key: &ObjectKey) -> Result<(), String> {
    let Some(object) = volumes.get(key) else { return Ok(()) };
    let volume: PersistentVolume = object.view().map_err(|e| e.to_string())?;
    let going = object.deletion_timestamp().is_some();
    let outcome = if going { remove(kubelet, &volume).await } else { prepare(kubelet, &volume).await };
    if let Err(error) = &outcome {
        let reason = if going { "VolumeFailedDelete" } else { "ProvisioningFailed" };
        let regarding = ObjectRef::of(&PERSISTENT_VOLUMES, &object);
        kubelet.recorder.event(regarding, EventKind::Warning, reason, error.clone());
    }
    outcome
}

pub(super) fn is_ours(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.get(PROVISIONED_BY).is_some_and(|by| by == DRIVER)
}

/// The directory of a volume. It carries the volume's name, so that no other is ever touched.
fn directory(volume: &PersistentVolume) -> Result<PathBuf, String> {
    let name = &volume.metadata.name;
    let path = volume.spec.local.as_ref().map(|l| l.path.clone()).unwrap_or_default();
    let path = PathBuf::from(path);
    let last = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
    let plain = path.is_absolute() && path.components().all(|c| c != std::path::Component::ParentDir);
    let own = last.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('_'));
    if plain && own && !name.is_empty() {
        return Ok(path);
    }
    Err(format!("{} is not a directory for the volume {name}", path.display()))
}

/// Makes the directory of a volume that waits for it. Of other volumes, nothing.
pub(super) async fn prepare(kubelet: &Arc<Kubelet>, volume: &PersistentVolume) -> Result<(), String> {
    let Some(from) = volume.metadata.annotations.get(PENDING).filter(|_| is_ours(volume)) else {
        return Ok(());
    };
    let directory = directory(volume)?;
    let name = &volume.metadata.name;
    let _alone = kubelet.local_volumes.alone(name).await;
    let from = Some(from).filter(|from| !from.is_empty()).map(PathBuf::from);
    let made = tokio::task::spawn_blocking(move || make(&directory, from.as_deref())).await;
    made.map_err(|e| e.to_string())??;
    let patch = json!({"metadata": {"uid": volume.metadata.uid, "annotations": {PENDING: null}}});
    patch_volume(kubelet, name, &patch).await
}

async fn remove(kubelet: &Arc<Kubelet>, volume: &PersistentVolume) -> Result<(), String> {
    let m = &volume.metadata;
    // Who keeps the content keeps the directory: that is for the provisioner to say.
    let goes = volume.spec.persistent_volume_reclaim_policy == "Delete";
    if !goes || !is_ours(volume) || !m.finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(());
    }
    let directory = directory(volume)?;
    let _alone = kubelet.local_volumes.alone(&m.name).await;
    let removed = tokio::task::spawn_blocking(move || unmake(&directory)).await;
    removed.map_err(|e| e.to_string())??;
    let rest: Vec<&String> = m.finalizers.iter().filter(|f| *f != FINALIZER).collect();
    let patch = json!({"metadata": {
        "uid": m.uid, "resourceVersion": m.resource_version, "finalizers": rest}});
    patch_volume(kubelet, &m.name, &patch).await
}

async fn patch_volume(kubelet: &Kubelet, name: &str, patch: &serde_json::Value) -> Result<(), String> {
    let path = format!("/api/v1/persistentvolumes/{name}");
    match kubelet.api.patch(&path, PatchKind::Merge, patch).await {
        // Gone, or another of that name, or changed meanwhile: of that the watch is about to tell.
        Err(error) if error.is_not_found() || error.status_code() == Some(409) => Ok(()),
        outcome => outcome.map_err(|e| e.to_string()),
    }
}

/// Where a directory grows before it is one.
fn unfinished(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

/// Makes the directory, empty or as a copy, unless it is there. It appears whole or not at all.
fn make(directory: &Path, from: Option<&Path>) -> Result<(), String> {
    if directory.is_dir() {
        return Ok(());
    }
    let fail = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{what} {path}: {error}")
    };
    let parent = directory.parent().ok_or("a volume's directory has a parent")?;
    // Only pods that are given a volume see into it.
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(fail("make", parent))?;
    let growing = unfinished(directory);
    remove_all(&growing).map_err(fail("remove", &growing))?;
    DirBuilder::new().mode(0o700).create(&growing).map_err(fail("make", &growing))?;
    match from {
        Some(from) => copy::tree(from, &growing).map_err(fail("copy", from))?,
        // Whatever user a pod runs as.
        None => super::ownership::set_mode(&growing, 0o777)?,
    }
    std::fs::rename(&growing, directory).map_err(fail("make", directory))?;
    // From now on its absence is a loss, so its presence must be lasting.
    File::open(parent).and_then(|d| d.sync_all()).map_err(fail("sync", parent))
}

fn unmake(directory: &Path) -> Result<(), String> {
    for path in [unfinished(directory), directory.to_owned()] {
        remove_all(&path).map_err(|e| format!("remove {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Removes a tree. Follows no link, and does not mind if it is gone.
fn remove_all(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_the_volumes_own_name_is_touched() {
        for (name, path, good) in [
            ("pvc-1", "/var/lib/yare/storage/pvc-1_default_data", true),
            ("pvc-1", "/var/lib/yare/storage/pvc-12_default_data", false),
            ("pvc-1", "/var/lib/yare/storage/pvc-1", false),
            ("pvc-1", "/etc", false),
            ("pvc-1", "pvc-1_default_data", false),
            ("pvc-1", "/a/../pvc-1_default_data", false),
            ("", "/_x", false),
            ("pvc-1", "", false),
        ] {
            let volume: PersistentVolume = serde_json::from_value(
                json!({"metadata": {"name": name}, "spec": {"local": {"path": path}}}),
            )
            .unwrap();
            assert_eq!(directory(&volume).is_ok(), good, "{name} {path}");
        }
    }

    #[test]
    fn a_directory_is_made_once_and_removed_without_a_trace() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join("storage").join(name);
        make(&at("a"), None).unwrap();
        assert_eq!(at("a").metadata().unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(at("a").join("file"), "content").unwrap();
        make(&at("a"), None).unwrap();
        assert!(at("a").join("file").exists());
        // What was left of an attempt that did not finish.
        std::fs::create_dir(at("b.unfinished")).unwrap();
        std::fs::write(at("b.unfinished").join("half"), "").unwrap();
        make(&at("b"), Some(&at("a"))).unwrap();
        assert_eq!(std::fs::read_to_string(at("b").join("file")).unwrap(), "content");
        assert!(!at("b").join("half").exists() && !at("b.unfinished").exists());
        assert!(make(&at("c"), Some(&at("nowhere"))).unwrap_err().contains("nowhere"));
        assert!(!at("c").exists());
        for name in ["a", "b", "c"] {
            unmake(&at(name)).unwrap();
            unmake(&at(name)).unwrap();
        }
        assert_eq!(std::fs::read_dir(root.path().join("storage")).unwrap().count(), 0);
    }
}
