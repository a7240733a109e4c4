//! Claims that pods of this node use, and upstream's checkpoint of them, `dra_manager_state`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::managers::checkpoint::{self, Unusable};

/// A device of a claim, as its driver described it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Device {
    pub(crate) pool_name: String,
    pub(crate) device_name: String,
    #[serde(rename = "ShareID", default)]
    pub(crate) share_id: Option<String>,
    #[serde(default)]
    pub(crate) request_names: Option<Vec<String>>,
    #[serde(rename = "CDIDeviceIDs", default)]
    pub(crate) cdi_device_ids: Option<Vec<String>>,
}

impl Device {
    /// Whether it serves a request of the claim; empty: any.
    pub(crate) fn serves(&self, request: &str) -> bool {
        let names = self.request_names.as_deref().unwrap_or_default();
        request.is_empty() || names.is_empty() || names.iter().any(|n| n == request)
    }

    /// Its CDI names.
    pub(crate) fn cdi(&self) -> &[String] {
        self.cdi_device_ids.as_deref().unwrap_or_default()
    }
}

/// What a driver made ready for a claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DriverState {
    pub(crate) devices: Option<Vec<Device>>,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ClaimInfo {
    #[serde(rename = "ClaimUID")]
    pub(crate) claim_uid: String,
    pub(crate) claim_name: String,
    pub(crate) namespace: String,
    #[serde(rename = "PodUIDs")]
    pub(crate) pod_uids: BTreeMap<String, Empty>,
    /// By driver; also of those that gave no devices.
    pub(crate) driver_state: BTreeMap<String, DriverState>,
    /// Whether its drivers made it ready in this life of the agent.
    #[serde(skip)]
    pub(crate) prepared: bool,
}

/// `{}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Empty {}

impl ClaimInfo {
    /// All its devices, with their drivers.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&String, &Device)> {
        self.driver_state
            .iter()
            .flat_map(|(driver, state)| state.devices.iter().flatten().map(move |d| (driver, d)))
    }
}

/// Claims by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Claims(pub(crate) BTreeMap<(String, String), ClaimInfo>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    /// JSON in a string, so that the checksum is of these very bytes.
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    #[serde(rename = "ClaimInfoStateList")]
    claims: Option<Vec<ClaimInfo>>,
}

const KIND: &str = "DRACheckpoint";
const API_VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

impl Claims {
    /// Reads a checkpoint; where there is none, there are no claims.
    pub(crate) fn load(path: &Path) -> Result<Self, Unusable> {
        let value = match checkpoint::read(path) {
            Err(Unusable::NotFound) => return Ok(Claims::default()),
            other => other?,
        };
        let broken = |e: serde_json::Error| Unusable::Broken(e.to_string());
        let file: File = serde_json::from_value(value).map_err(broken)?;
        if crc32fast::hash(file.data.as_bytes()) != file.checksum {
            return Err(Unusable::Corrupt);
        }
        let data: Data = serde_json::from_str(&file.data).map_err(broken)?;
        let claims = data.claims.unwrap_or_default().into_iter();
        Ok(Claims(claims.map(|c| ((c.namespace.clone(), c.claim_name.clone()), c)).collect()))
    }

    /// Writes a checkpoint.
    pub(crate) fn save(&self, path: &Path) -> std::io::Result<()> {
        let data = Data {
            kind: KIND.to_owned(),
            api_version: API_VERSION.to_owned(),
            claims: Some(self.0.values().cloned().collect()).filter(|c: &Vec<ClaimInfo>| !c.is_empty()),
        };
        let data = serde_json::to_string(&data)?;
        let file = File { checksum: crc32fast::hash(data.as_bytes()), data };
        checkpoint::write(path, &serde_json::to_vec(&file)?)
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&ClaimInfo> {
        self.0.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Claims that a pod uses, by namespace and name.
    pub(crate) fn of_pod(&self, uid: &str) -> Vec<(String, String)> {
        self.0.iter().filter(|(_, c)| c.pod_uids.contains_key(uid)).map(|(key, _)| key.clone()).collect()
    }

    /// Pods that use claims.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.0.values().flat_map(|c| c.pod_uids.keys().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by upstream's kubelet.
    const TEXT: &str = r#"{"Data":"{\"kind\":\"DRACheckpoint\",\"apiVersion\":\"checkpoint.dra.kubelet.k8s.io/v1\",\"ClaimInfoStateList\":[{\"ClaimUID\":\"067798be-454e-4be4-9047-1aa06aea63f7\",\"ClaimName\":\"example\",\"Namespace\":\"default\",\"PodUIDs\":{\"139cdb46-f989-4f17-9561-ca10cfb509a6\":{}},\"DriverState\":{\"test-driver.cdi.k8s.io\":{\"Devices\":[{\"PoolName\":\"worker-1\",\"DeviceName\":\"dev-1\",\"ShareID\":null,\"RequestNames\":[\"test request\"],\"CDIDeviceIDs\":[\"example.com/example=cdi-example\"]}]}}}]}","Checksum":2570581864}"#;

    #[test]
    fn checkpoints_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dra_manager_state");
        assert!(Claims::load(&path).unwrap().0.is_empty());
        std::fs::write(&path, TEXT).unwrap();
        let claims = Claims::load(&path).unwrap();
        let claim = claims.get("default", "example").unwrap();
        let (driver, device) = claim.devices().next().unwrap();
        assert_eq!((driver.as_str(), device.device_name.as_str()), ("test-driver.cdi.k8s.io", "dev-1"));
        assert!(device.serves("test request") && device.serves("") && !device.serves("other"));
        assert_eq!(claims.pods().len(), 1);
        claims.save(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);
        std::fs::write(&path, TEXT.replace("dev-1", "dev-2")).unwrap();
        assert!(matches!(Claims::load(&path), Err(Unusable::Corrupt)));
    }
}
