//! Which devices which containers have, and upstream's checkpoint of it, `kubelet_internal_checkpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::api::ContainerAllocateResponse;
use crate::managers::checkpoint::{self, Field, Keys, Shape, Unusable};

/// The NUMA node of devices without one.
pub(crate) const NO_NODE: i64 = -1;

/// Devices of one resource that a container has.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Held {
    /// Ids by NUMA node; one that is near to several is under each.
    pub(crate) by_node: BTreeMap<i64, Vec<String>>,
    /// What the plugin answered.
    pub(crate) answer: ContainerAllocateResponse,
}

impl Held {
    /// The devices.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.by_node.values().flatten().cloned().collect()
    }

    /// The NUMA nodes of a device.
    pub(crate) fn nodes_of(&self, id: &str) -> Vec<i64> {
        self.by_node
            .iter()
            .filter(|(node, ids)| **node != NO_NODE && ids.iter().any(|i| i == id))
            .map(|(node, _)| *node)
            .collect()
    }
}

/// Resource → what is held of it.
pub(crate) type ByResource = BTreeMap<String, Held>;

/// Pod uid → container → resource.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders(BTreeMap<String, BTreeMap<String, ByResource>>);

impl Holders {
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.0.contains_key(uid)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn container(&self, uid: &str, container: &str) -> Option<&ByResource> {
        self.0.get(uid)?.get(container)
    }

    pub(crate) fn get(&self, uid: &str, container: &str, resource: &str) -> Option<&Held> {
        self.container(uid, container)?.get(resource)
    }

    /// All devices of a resource that a pod has.
    pub(crate) fn of_pod(&self, uid: &str, resource: &str) -> BTreeSet<String> {
        let containers = self.0.get(uid).into_iter().flat_map(BTreeMap::values);
        containers.filter_map(|resources| resources.get(resource)).flat_map(Held::ids).collect()
    }

    pub(crate) fn insert(&mut self, uid: &str, container: &str, resource: &str, held: Held) {
        let containers = self.0.entry(uid.to_owned()).or_default();
        containers.entry(container.to_owned()).or_default().insert(resource.to_owned(), held);
    }

    /// Forgets a pod; whether it was there.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        self.0.remove(uid).is_some()
    }

    /// Forgets all pods but some; whether any went.
    pub(crate) fn retain(&mut self, uids: &BTreeSet<String>) -> bool {
        let before = self.0.len();
        self.0.retain(|uid, _| uids.contains(uid));
        self.0.len() != before
    }

    /// All devices that are held, by resource.
    pub(crate) fn devices(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (resource, held) in self.0.values().flat_map(BTreeMap::values).flatten() {
            all.entry(resource.clone()).or_default().extend(held.ids());
        }
        all
    }

    /// The pod that has a device of a resource.
    pub(crate) fn holder(&self, resource: &str, id: &str) -> Option<&str> {
        let has = |containers: &BTreeMap<String, ByResource>| {
            let mut held = containers.values().filter_map(|r| r.get(resource));
            held.any(|h| h.by_node.values().flatten().any(|i| i == id))
        };
        self.0.iter().find(|(_, containers)| has(containers)).map(|(uid, _)| uid.as_str())
    }
}

/// One container's devices of one resource, on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<BTreeMap<i64, Vec<String>>>,
    alloc_resp: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

const IDS: Shape = Shape::List(&Shape::Text);

const ENTRY: Shape = Shape::Struct(&[
    Field { name: "PodUID", json: "PodUID", kind: "string", shape: Shape::Text },
    Field { name: "ContainerName", json: "ContainerName", kind: "string", shape: Shape::Text },
    Field { name: "ResourceName", json: "ResourceName", kind: "string", shape: Shape::Text },
    Field {
        name: "DeviceIDs",
        json: "DeviceIDs",
        kind: "checkpoint.DevicesPerNUMA",
        shape: Shape::Map(Keys::Number, &IDS),
    },
    Field { name: "AllocResp", json: "AllocResp", kind: "[]uint8", shape: Shape::Bytes },
]);

/// `checkpointData`.
const DATA: Shape = Shape::Struct(&[
    Field {
        name: "PodDeviceEntries",
        json: "PodDeviceEntries",
        kind: "[]checkpoint.PodDevicesEntry",
        shape: Shape::List(&ENTRY),
    },
    Field {
        name: "RegisteredDevices",
        json: "RegisteredDevices",
        kind: "map[string][]string",
        shape: Shape::Map(Keys::Text, &IDS),
    },
]);

fn checksum(data: &serde_json::Value) -> u64 {
    checkpoint::checksum("checkpoint.checkpointData", &DATA, data)
}

/// Writes a checkpoint: who holds what, and the healthy devices by resource.
pub(crate) fn save(
    path: &Path,
    holders: &Holders,
    healthy: &BTreeMap<String, BTreeSet<String>>,
) -> std::io::Result<()> {
    let mut entries = Vec::new();
    for (uid, containers) in &holders.0 {
        for (container, resources) in containers {
            for (resource, held) in resources {
                entries.push(Entry {
                    pod_uid: uid.clone(),
                    container_name: container.clone(),
                    resource_name: resource.clone(),
                    device_ids: Some(held.by_node.clone()),
                    alloc_resp: Some(STANDARD.encode(held.answer.encode_to_vec())),
                });
            }
        }
    }
    let registered = healthy.iter().map(|(r, ids)| (r.clone(), Some(ids.iter().cloned().collect())));
    let data = Data {
        pod_device_entries: Some(entries).filter(|e| !e.is_empty()),
        registered_devices: Some(registered.collect()),
    };
    let value = serde_json::to_value(&data)?;
    let file = File { checksum: checksum(&value), data };
    checkpoint::write(path, &serde_json::to_vec(&file)?)
}

/// Reads a checkpoint: who holds what, and the resources that were registered.
pub(crate) fn load(path: &Path) -> Result<(Holders, Vec<String>), Unusable> {
    let value = checkpoint::read(path)?;
    let sum = checksum(&value["Data"]);
    let file: File = serde_json::from_value(value).map_err(|e| Unusable::Broken(e.to_string()))?;
    if file.checksum != sum {
        return Err(Unusable::Corrupt);
    }
    let mut holders = Holders::default();
    for entry in file.data.pod_device_entries.unwrap_or_default() {
        let bytes = STANDARD.decode(entry.alloc_resp.unwrap_or_default()).unwrap_or_default();
        let Ok(answer) = ContainerAllocateResponse::decode(bytes.as_slice()) else {
            tracing::warn!(
                pod = entry.pod_uid,
                resource = entry.resource_name,
                "an answer that cannot be read"
            );
            continue;
        };
        let held = Held { by_node: entry.device_ids.unwrap_or_default(), answer };
        holders.insert(&entry.pod_uid, &entry.container_name, &entry.resource_name, held);
    }
    let registered = file.data.registered_devices.unwrap_or_default();
    Ok((holders, registered.into_keys().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn checkpoints_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet_internal_checkpoint");
        assert!(matches!(load(&path), Err(Unusable::NotFound)));
        let mut holders = Holders::default();
        let answer = ContainerAllocateResponse {
            envs: [("A".to_owned(), "1".to_owned())].into(),
            ..ContainerAllocateResponse::default()
        };
        let by_node = BTreeMap::from([(NO_NODE, vec!["d1".to_owned()]), (1, vec!["d2".to_owned()])]);
        holders.insert("u", "c", "a.b/gpu", Held { by_node, answer: answer.clone() });
        let healthy = BTreeMap::from([
            ("a.b/gpu".to_owned(), BTreeSet::from(["d1".to_owned(), "d2".to_owned()])),
            ("a.b/nic".to_owned(), BTreeSet::new()),
        ]);
        save(&path, &holders, &healthy).unwrap();
        let (got, registered) = load(&path).unwrap();
        assert_eq!(registered, ["a.b/gpu", "a.b/nic"]);
        assert_eq!(got.get("u", "c", "a.b/gpu").unwrap().answer, answer);
        assert_eq!(got.holder("a.b/gpu", "d2"), Some("u"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"a.b/gpu","DeviceIDs":{"-1":["d1"],"1":["d2"]},"AllocResp":"#), "{text}");
        std::fs::write(&path, text.replace("d2", "d3")).unwrap();
        assert!(matches!(load(&path), Err(Unusable::Corrupt)));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(load(&path), Err(Unusable::Broken(_))));
    }

    /// What `spew` prints is what is hashed; the text follows from its rules for `%#v`.
    #[test]
    fn the_hash_is_of_the_printed_value() {
        let data = json!({"PodDeviceEntries": null, "RegisteredDevices": {"a/b": ["x", "y"]}});
        let text = "(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)<nil> \
                    RegisteredDevices:(map[string][]string)map[a/b:[x y]]}";
        let fnv = text.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        assert_eq!(checksum(&data), u64::from(fnv));
    }
}
