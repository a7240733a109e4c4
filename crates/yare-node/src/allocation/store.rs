//! Sizes of all pods of a node, on disk in upstream's form: a kubelet of either kind goes on from the other's file.
//!
//! What is known of a pod for the first time is written within a moment and together with others; what changes is
//! written before anybody acts upon it. A crash in between costs nothing: a pod's status tells its sizes too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sizes::Sizes;
use crate::error::{Error, Result};
use crate::managers::checkpoint::{self, Shape, Unusable};

/// One file with sizes by pod uid.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    pods: BTreeMap<String, Sizes>,
    /// Something is not on disk yet.
    dirty: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    /// JSON in a string, so that the checksum is of these very bytes.
    data: String,
    checksum: u64,
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: &'a BTreeMap<String, Sizes>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Read {
    entries: BTreeMap<String, Sizes>,
}

/// Writes what was taken.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    checkpoint::write(path, bytes)
}

fn checksum(data: &str) -> u64 {
    checkpoint::checksum("string", &Shape::Text, &serde_json::Value::String(data.to_owned()))
}

impl Store {
    /// Reads the file; where there is none, nothing is known.
    pub(crate) fn load(path: PathBuf) -> Result<Self> {
        let pods = Self::read(&path).map_err(|error| {
            Error::Config(format!(
                "could not restore state from checkpoint: {error}, please drain this node and delete pod resource \
                 information checkpoint file {:?} before restarting Kubelet",
                path.display()
            ))
        })?;
        Ok(Store { path, pods, dirty: false })
    }

    fn read(path: &Path) -> std::result::Result<BTreeMap<String, Sizes>, Unusable> {
        let value = match checkpoint::read(path) {
            Err(Unusable::NotFound) => return Ok(BTreeMap::new()),
            other => other?,
        };
        let broken = |e: serde_json::Error| Unusable::Broken(e.to_string());
        let file: File = serde_json::from_value(value).map_err(broken)?;
        if checksum(&file.data) != file.checksum {
            return Err(Unusable::Corrupt);
        }
        serde_json::from_str::<Read>(&file.data).map(|read| read.entries).map_err(broken)
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Sizes> {
        self.pods.get(uid)
    }

    /// Notes sizes, for the next [`Store::take`]. Answers what was known before.
    pub(crate) fn set(&mut self, uid: &str, sizes: Sizes) -> Option<Sizes> {
        if self.pods.get(uid) == Some(&sizes) {
            return Some(sizes);
        }
        self.dirty = true;
        self.pods.insert(uid.to_owned(), sizes)
    }

    /// A pod's sizes to change in place.
    pub(crate) fn entry(&mut self, uid: &str) -> &mut Sizes {
        self.dirty = true;
        self.pods.entry(uid.to_owned()).or_default()
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.dirty |= self.pods.remove(uid).is_some();
    }

    /// Forgets all but these pods.
    pub(crate) fn retain(&mut self, uids: &BTreeSet<String>) {
        let before = self.pods.len();
        self.pods.retain(|uid, _| uids.contains(uid));
        self.dirty |= self.pods.len() != before;
    }

    /// Whether something is not on disk.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The file as it should be, and where; `None` where it is that already.
    pub(crate) fn take(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        // Maps of strings: this always has a form in JSON.
        let data = serde_json::to_string(&Data { entries: &self.pods }).unwrap_or_default();
        let file = File { checksum: checksum(&data), data };
        Some((self.path.clone(), serde_json::to_vec(&file).unwrap_or_default()))
    }

    /// What was taken did not reach the disk.
    pub(crate) fn failed(&mut self) {
        self.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(store: &mut Store) -> std::io::Result<()> {
        let Some((path, bytes)) = store.take() else { return Ok(()) };
        write(&path, &bytes).inspect_err(|_| store.failed())
    }

    /// As upstream's kubelet wrote it before pods had sizes of their own.
    const TEXT: &str = r#"{"data":"{\"entries\":{\"pod1\":{\"ContainerResources\":{\"container1\":{\"requests\":{\"cpu\":\"1Ki\",\"memory\":\"1Ki\"}}}}}}","checksum":1178570812}"#;

    #[test]
    fn checkpoints_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allocated_pods_state");
        assert!(Store::load(path.clone()).unwrap().pods.is_empty());
        std::fs::write(&path, TEXT).unwrap();
        let mut store = Store::load(path.clone()).unwrap();
        let known = store.get("pod1").unwrap().clone();
        assert_eq!(known.containers["container1"].requests["memory"], "1Ki");
        assert!(!store.is_dirty());
        store.set("pod1", known);
        assert!(!store.is_dirty(), "the same is no news");
        store.entry("pod1");
        save(&mut store).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#"}},\"PodLevelResources\":null}}}","checksum":"#), "{text}");
        store.remove("pod1");
        save(&mut store).unwrap();
        assert!(Store::load(path.clone()).unwrap().pods.is_empty());
        std::fs::write(&path, TEXT.replace("memory", "cpus")).unwrap();
        let error = Store::load(path).unwrap_err().to_string();
        assert!(error.contains("checkpoint is corrupted, please drain this node"), "{error}");
    }

    #[test]
    fn what_does_not_reach_the_disk_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allocated_pods_state");
        let mut store = Store::load(path.clone()).unwrap();
        store.set("u", Sizes::default());
        std::fs::create_dir(dir.path().join(".allocated_pods_state.tmp")).unwrap();
        assert!(save(&mut store).is_err() && store.is_dirty());
        std::fs::remove_dir(dir.path().join(".allocated_pods_state.tmp")).unwrap();
        save(&mut store).unwrap();
        assert!(Store::load(path).unwrap().get("u").is_some());
    }
}
