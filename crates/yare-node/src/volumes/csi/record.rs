//! `vol_data.json`: what has to be known to give a volume back. Names and keys are upstream's, so that either
//! kubelet can take over the other's volumes; `attachable` is ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::csi::hash;

const FILE: &str = "vol_data.json";
/// A record is far smaller.
const RECORD_MAX_BYTES: u64 = 64 << 10;

/// The record of one mount or stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(super) spec_vol_id: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) node_name: String,
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub(super) attachment_id: String,
    /// `Persistent` or `Ephemeral`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) volume_lifecycle_mode: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) attachable: String,
    /// What another kubelet wrote that this one does not act on.
    #[serde(flatten)]
    pub(super) other: BTreeMap<String, String>,
}

impl Record {
    /// The volume's name among those that pods share.
    pub(super) fn shared_name(&self) -> String {
        shared_name(&self.driver_name, &self.volume_handle)
    }

    pub(super) fn is_attachable(&self) -> bool {
        self.attachable == "true"
    }

    /// The record in a directory; none: there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(FILE);
        let fail = |e: &dyn std::fmt::Display| {
            format!("kubernetes.io/csi: failed to open volume data file [{}]: {e}", path.display())
        };
        let found = match std::fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(&error)),
        };
        if found.len() > RECORD_MAX_BYTES {
            return Err(fail(&"it is too large"));
        }
        let bytes = std::fs::read(&path).map_err(|e| fail(&e))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            format!("kubernetes.io/csi: failed to parse volume data file [{}]: {e}", path.display())
        })
    }

    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), String> {
        let path = dir.join(FILE);
        let fail = |e: &dyn std::fmt::Display| {
            format!("kubernetes.io/csi: failed to save volume data file {}: {e}", path.display())
        };
        let mut text = serde_json::to_vec(self).map_err(|e| fail(&e))?;
        text.push(b'\n');
        let temporary = dir.join(".vol_data.json.tmp");
        std::fs::write(&temporary, text).map_err(|e| fail(&e))?;
        std::fs::rename(&temporary, &path).map_err(|e| fail(&e))
    }

    /// Removes the record of a directory.
    pub(super) fn remove(dir: &Path) -> Result<(), String> {
        super::super::mounts::remove_file(&dir.join(".vol_data.json.tmp"))?;
        super::super::mounts::remove_file(&dir.join(FILE))
    }
}

/// The name of a driver's volume among those that pods share.
pub(super) fn shared_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Where things of this plugin are, below the node's directory.
#[derive(Debug, Clone)]
pub(super) struct Places(PathBuf);

impl Places {
    pub(super) fn new(data_dir: &Path) -> Self {
        Places(data_dir.join("plugins/kubernetes.io/csi"))
    }

    /// The directory of a staged file system; it is mounted at `globalmount` below.
    pub(super) fn global(&self, driver: &str, handle: &str) -> PathBuf {
        self.0.join(driver).join(hash(&[handle]))
    }

    /// All directories of staged file systems.
    pub(super) fn all_global(&self) -> Vec<PathBuf> {
        children(&self.0)
            .into_iter()
            .filter(|driver| driver.file_name().is_some_and(|n| n != "volumeDevices"))
            .flat_map(|driver| children(&driver))
            .collect()
    }

    fn devices(&self) -> PathBuf {
        self.0.join("volumeDevices")
    }

    /// The directory of a block volume: `data` has the record, `dev` one file per pod.
    pub(super) fn device(&self, name: &str) -> PathBuf {
        self.devices().join(name)
    }

    /// All directories of block volumes.
    pub(super) fn all_devices(&self) -> Vec<PathBuf> {
        children(&self.devices()).into_iter().filter(|d| d.join("data").is_dir()).collect()
    }

    /// Where a block volume is staged.
    pub(super) fn staging(&self, name: &str) -> PathBuf {
        self.devices().join("staging").join(name)
    }

    /// The directory in which a block volume is published for each pod.
    pub(super) fn publish(&self, name: &str) -> PathBuf {
        self.devices().join("publish").join(name)
    }
}

pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_upstream() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let theirs = r#"{"attachmentID":"csi-1","driverName":"d","nodeName":"n","seLinuxMountContext":"x","specVolID":"pv","volumeHandle":"h","volumeLifecycleMode":"Persistent"}"#;
        std::fs::write(dir.path().join(FILE), theirs).unwrap();
        let record = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!((record.spec_vol_id.as_str(), record.volume_handle.as_str()), ("pv", "h"));
        assert_eq!(record.shared_name(), "kubernetes.io/csi/d^h");
        record.write(dir.path()).unwrap();
        let ours: BTreeMap<String, String> =
            serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(ours, serde_json::from_str::<BTreeMap<String, String>>(theirs).unwrap());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Record::read(dir.path()).unwrap_err().contains("failed to parse"));
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
    }
}
