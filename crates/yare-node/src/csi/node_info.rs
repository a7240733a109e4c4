//! What the cluster knows of this node's storage drivers: the CSINode object, and on the Node the drivers' ids
//! for it and the topology they see.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};

use super::proto::NodeInfo;
use crate::api::PatchKind;
use crate::error::Error;
use crate::kubelet::Kubelet;
use crate::view::{Metadata, NodeView, nullable};

/// The drivers' ids for the node, as a JSON object.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Pauses before another attempt at a write that somebody else came before.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(250)];
/// Between attempts to make the CSINode while the API server is away, doubling.
const RETRY_MIN: Duration = Duration::from_millis(30);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// See the module.
pub(crate) struct NodeDrivers {
    uid: watch::Sender<Option<String>>,
    ready: watch::Sender<Result<(), String>>,
    /// Held while the objects are read and written.
    writing: Mutex<()>,
}

impl Default for NodeDrivers {
    fn default() -> Self {
        NodeDrivers {
            uid: watch::Sender::new(None),
            ready: watch::Sender::new(Err("CSINode is not yet initialized".to_owned())),
            writing: Mutex::default(),
        }
    }
}

/// `storage.k8s.io/v1` CSINode.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CsiNode {
    metadata: CsiNodeMetadata,
    spec: CsiNodeSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CsiNodeMetadata {
    resource_version: String,
    #[serde(deserialize_with = "nullable")]
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CsiNodeSpec {
    #[serde(deserialize_with = "nullable")]
    drivers: Vec<CsiNodeDriver>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct CsiNodeDriver {
    name: String,
    #[serde(rename = "nodeID")]
    node_id: String,
    #[serde(rename = "topologyKeys", deserialize_with = "nullable")]
    topology_keys: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocatable: Option<Allocatable>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Allocatable {
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<i32>,
}

impl CsiNodeDriver {
    fn new(name: &str, info: &NodeInfo) -> Self {
        let limit = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
        CsiNodeDriver {
            name: name.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: topology(info).into_keys().collect(),
            allocatable: (limit > 0).then_some(Allocatable { count: Some(limit) }),
        }
    }
}

fn topology(info: &NodeInfo) -> BTreeMap<String, String> {
    let segments = info.accessible_topology.iter().flat_map(|t| &t.segments);
    segments.map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl NodeDrivers {
    /// The Node object exists, with this uid.
    pub(crate) fn registered(&self, uid: &str) {
        self.uid.send_replace(Some(uid.to_owned()));
    }

    /// The Node object's uid, once it exists.
    pub(crate) async fn uid(&self) -> String {
        let mut uid = self.uid.subscribe();
        loop {
            if let Some(uid) = uid.borrow_and_update().clone() {
                return uid;
            }
            if uid.changed().await.is_err() {
                // The sender lives as long as this does.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the CSINode is there; until then the node is not ready.
    pub(crate) fn ready(&self) -> watch::Receiver<Result<(), String>> {
        self.ready.subscribe()
    }

    /// Makes the CSINode once the node is known, however long it takes.
    pub(crate) async fn initialize(&self, kubelet: &Kubelet) {
        self.uid().await;
        let mut wait = RETRY_MIN;
        loop {
            let made = {
                let _writing = self.writing.lock().await;
                self.own(kubelet).await
            };
            match made {
                Ok(_) => {
                    let _ = self.ready.send_replace(Ok(()));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "making the CSINode");
                    let _ = self.ready.send_replace(Err(format!("failed to initialize CSINode: {error}")));
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Writes down what a driver says of the node.
    pub(crate) async fn install(&self, kubelet: &Kubelet, name: &str, info: NodeInfo) -> Result<(), String> {
        if info.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        self.with_retries(|| self.mark_node(kubelet, name, Some(&info)))
            .await
            .map_err(|e| format!("error updating Node object with CSI driver node info: {e}"))?;
        self.update(kubelet, name, &info).await
    }

    /// Writes down what a driver says of the node by now in the CSINode.
    pub(crate) async fn update(&self, kubelet: &Kubelet, name: &str, info: &NodeInfo) -> Result<(), String> {
        let driver = &CsiNodeDriver::new(name, info);
        self.with_retries(|| async move {
            let mut node = self.own(kubelet).await?;
            if node.spec.drivers.contains(driver) {
                return Ok(());
            }
            node.spec.drivers.retain(|d| d.name != driver.name);
            node.spec.drivers.push(driver.clone());
            write(kubelet, &node).await
        })
        .await
        .map_err(|e| format!("error updating CSINode object with CSI driver node info: {e}"))
    }

    /// Takes a driver off both objects.
    pub(crate) async fn uninstall(&self, kubelet: &Kubelet, name: &str) -> Result<(), String> {
        self.with_retries(|| async move {
            let mut node: CsiNode = match kubelet.api.get(&path(kubelet)).await {
                Err(error) if error.is_not_found() => return Ok(()),
                found => found?,
            };
            let before = node.spec.drivers.len();
            node.spec.drivers.retain(|d| d.name != name);
            if node.spec.drivers.len() == before {
                return Ok(());
            }
            write(kubelet, &node).await
        })
        .await
        .map_err(|e| format!("error uninstalling CSI driver from CSINode object {e}"))?;
        self.with_retries(|| self.mark_node(kubelet, name, None))
            .await
            .map_err(|e| format!("error removing CSI driver node info from Node object {e}"))
    }

    async fn with_retries<F, A>(&self, attempt: F) -> Result<(), Error>
    where
        F: Fn() -> A,
        A: Future<Output = Result<(), Error>>,
    {
        let _writing = self.writing.lock().await;
        for pause in RETRIES {
            match attempt().await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(%error, "writing a CSI driver's node information"),
            }
            tokio::time::sleep(pause).await;
        }
        attempt().await
    }

    /// This node's CSINode, which is made if it is not there. One that belongs to an earlier node of this name
    /// is deleted.
    async fn own(&self, kubelet: &Kubelet) -> Result<CsiNode, Error> {
        let uid = self.uid.borrow().clone().unwrap_or_default();
        let name = &kubelet.node_name;
        match kubelet.api.get::<CsiNode>(&path(kubelet)).await {
            Ok(node)
                if node
                    .metadata
                    .owner_references
                    .iter()
                    .any(|o| o.kind == "Node" && o.name == *name && o.uid == uid) =>
            {
                return Ok(node);
            }
            Ok(_) => kubelet.api.delete(&path(kubelet)).await?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let object = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSINode",
            "metadata": {
                "name": name,
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }],
            },
            "spec": { "drivers": [] },
        });
        kubelet.api.create("/apis/storage.k8s.io/v1/csinodes", &object).await
    }

    /// Sets (or, without `info`, removes) a driver's id for the node, and its topology as labels.
    async fn mark_node(&self, kubelet: &Kubelet, name: &str, info: Option<&NodeInfo>) -> Result<(), Error> {
        let path = format!("/api/v1/nodes/{}", kubelet.node_name);
        let node: NodeView = kubelet.api.get(&path).await?;
        match node_patch(&node.metadata, name, info).map_err(Error::Request)? {
            Some(patch) => kubelet.api.patch(&path, PatchKind::Merge, &patch).await,
            None => Ok(()),
        }
    }
}

fn path(kubelet: &Kubelet) -> String {
    format!("/apis/storage.k8s.io/v1/csinodes/{}", kubelet.node_name)
}

async fn write(kubelet: &Kubelet, node: &CsiNode) -> Result<(), Error> {
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "drivers": node.spec.drivers },
    });
    kubelet.api.patch(&path(kubelet), PatchKind::Merge, &patch).await
}

/// What has to change on the Node; nothing: `None`.
fn node_patch(node: &Metadata, name: &str, info: Option<&NodeInfo>) -> Result<Option<Value>, String> {
    let text = node.annotations.get(NODE_IDS).map_or("", String::as_str);
    let mut ids: BTreeMap<String, String> = match text {
        "" => BTreeMap::new(),
        text => serde_json::from_str(text).map_err(|e| {
            format!("failed to parse node's {NODE_IDS:?} annotation value ({text:?}) err={e}")
        })?,
    };
    let before = ids.clone();
    let labels = info.map(topology).unwrap_or_default();
    match info {
        Some(info) => ids.insert(name.to_owned(), info.node_id.clone()),
        None => ids.remove(name),
    };
    for (key, value) in &labels {
        if let Some(old) = node.labels.get(key).filter(|old| *old != value) {
            return Err(format!(
                "detected topology value collision: driver reported \"{key}\":\"{value}\" but existing label is \"{key}\":\"{old}\""
            ));
        }
    }
    if ids == before && labels.keys().all(|key| node.labels.contains_key(key)) {
        return Ok(None);
    }
    let ids = if ids.is_empty() { Value::Null } else { Value::String(json!(ids).to_string()) };
    let mut metadata = json!({ "resourceVersion": node.resource_version, "annotations": { NODE_IDS: ids } });
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    Ok(Some(json!({ "metadata": metadata })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::Topology;

    #[test]
    fn what_a_driver_says_is_written_on_the_node() {
        let info = |id: &str, zone: &str| NodeInfo {
            node_id: id.into(),
            max_volumes_per_node: 7,
            accessible_topology: (!zone.is_empty())
                .then(|| Topology { segments: [("d/zone".to_owned(), zone.to_owned())].into() }),
        };
        let mut node = Metadata { resource_version: "5".into(), ..Metadata::default() };
        let patch = node_patch(&node, "d", Some(&info("n-1", "a"))).unwrap().unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"resourceVersion": "5", "annotations": {NODE_IDS: r#"{"d":"n-1"}"#}, "labels": {"d/zone": "a"}}})
        );
        node.annotations.insert(NODE_IDS.into(), r#"{"d":"n-1","e":"x"}"#.into());
        node.labels.insert("d/zone".into(), "a".into());
        assert_eq!(node_patch(&node, "d", Some(&info("n-1", "a"))).unwrap(), None);
        assert!(node_patch(&node, "d", Some(&info("n-1", "b"))).unwrap_err().contains("collision"));
        let patch = node_patch(&node, "d", None).unwrap().unwrap();
        assert_eq!(patch["metadata"]["annotations"][NODE_IDS], r#"{"e":"x"}"#);
        node.annotations.insert(NODE_IDS.into(), r#"{"d":"n-1"}"#.into());
        assert_eq!(
            node_patch(&node, "d", None).unwrap().unwrap()["metadata"]["annotations"][NODE_IDS],
            Value::Null
        );
        assert_eq!(node_patch(&node, "other", None).unwrap(), None);

        let driver = CsiNodeDriver::new("d", &info("n-1", "a"));
        assert_eq!(
            json!(driver),
            json!({"name": "d", "nodeID": "n-1", "topologyKeys": ["d/zone"], "allocatable": {"count": 7}})
        );
    }
}
