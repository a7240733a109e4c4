//! What runs beside a driver's controller service in a real cluster: the programs that attach, provision, delete
//! and expand when objects ask for it. They look at all objects every tenth of a second.

use std::{sync::Arc, sync::atomic::AtomicBool, sync::atomic::Ordering, thread::JoinHandle, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use yare_grpc::Client;

use super::{
    CsiDriver,
    proto::{
        self, AccessMode, AccessModeMessage, AccessType, CapacityRange, ControllerExpand, ControllerExpanded,
        ControllerPublish, ControllerPublished, ControllerUnpublish, CreateVolume, CreatedVolume,
        DeleteVolume, MountVolume, Nothing, VolumeCapability, VolumeContentSource, VolumeSource,
    },
};
use crate::{Cluster, Https};

const PERIOD: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(10);
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Running sidecars; dropping them stops them.
pub struct Sidecars {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Drop for Sidecars {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CsiDriver {
    /// Runs the driver's sidecars on a cluster.
    pub fn sidecars(&self, cluster: &Cluster) -> anyhow::Result<Sidecars> {
        let account = format!("sidecars-{}", self.name());
        cluster.kubectl(&["create", "serviceaccount", &account, "-n", "kube-system"])?;
        let subject = format!("--serviceaccount=kube-system:{account}");
        cluster.kubectl(&[
            "create",
            "clusterrolebinding",
            &account,
            "--clusterrole=cluster-admin",
            &subject,
        ])?;
        let token = cluster.kubectl(&["create", "token", &account, "-n", "kube-system"])?;
        let work = Work {
            name: self.name().to_owned(),
            api: cluster.https(token.trim())?,
            client: Client::unix(self.endpoint()).waiting(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = cluster.namespace().spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = work.look() {
                    // The next look finds what this one left; a test that waits for it says what is missing.
                    let _ = error;
                }
                std::thread::sleep(PERIOD);
            }
        })?;
        Ok(Sidecars { stop, thread: Some(thread) })
    }
}

struct Work {
    name: String,
    api: Https,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Bytes of a quantity in whole units.
fn bytes(quantity: &str) -> i64 {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let found = units
        .iter()
        .find_map(|(unit, shift)| Some(quantity.strip_suffix(unit)?.parse::<i64>().ok()? << shift));
    found.or_else(|| quantity.parse().ok()).unwrap_or(0)
}

fn capability(spec: &Value) -> VolumeCapability {
    let mode = match text(spec, "/accessModes/0") {
        "ReadOnlyMany" => AccessMode::MultiNodeReaderOnly,
        "ReadWriteMany" => AccessMode::MultiNodeMultiWriter,
        "ReadWriteOncePod" => AccessMode::SingleNodeSingleWriter,
        _ => AccessMode::SingleNodeWriter,
    };
    let access_type = match text(spec, "/volumeMode") {
        "Block" => AccessType::Block(Nothing {}),
        _ => AccessType::Mount(MountVolume::default()),
    };
    VolumeCapability {
        access_type: Some(access_type),
        access_mode: Some(AccessModeMessage { mode: mode as i32 }),
    }
}

impl Work {
    fn call<Q, R>(&self, method: &'static str, request: Q) -> Result<R, yare_grpc::Status>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Default + 'static,
    {
        self.runtime.block_on(self.client.call(method, request, TIMEOUT))
    }

    fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.api.get(path)?;
        ensure!(answer.code == 200, "{path}: {}", answer.body);
        let list: Value = serde_json::from_str(&answer.body)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let answer = self.api.send(method, path, kind, body.to_string().as_bytes())?;
        ensure!(answer.code < 300, "{method} {path}: {}", answer.body);
        Ok(())
    }

    fn look(&self) -> anyhow::Result<()> {
        let volumes = self.list("/api/v1/persistentvolumes")?;
        let claims = self.list("/api/v1/persistentvolumeclaims")?;
        for attachment in self.list("/apis/storage.k8s.io/v1/volumeattachments")? {
            if text(&attachment, "/spec/attacher") == self.name {
                self.attach(&attachment, &volumes)?;
            }
        }
        for claim in &claims {
            let provisioner = "/metadata/annotations/volume.kubernetes.io~1storage-provisioner";
            if text(claim, provisioner) == self.name && text(claim, "/spec/volumeName").is_empty() {
                self.provision(claim, &volumes)?;
            }
        }
        for volume in volumes.iter().filter(|v| text(v, "/spec/csi/driver") == self.name) {
            self.delete(volume)?;
            self.expand(volume, &claims)?;
        }
        Ok(())
    }

    fn attach(&self, attachment: &Value, volumes: &[Value]) -> anyhow::Result<()> {
        let path =
            format!("/apis/storage.k8s.io/v1/volumeattachments/{}", text(attachment, "/metadata/name"));
        let finalizer = format!("external-attacher/{}", self.name.replace('.', "-"));
        let name = text(attachment, "/spec/source/persistentVolumeName");
        let volume = volumes.iter().find(|v| text(v, "/metadata/name") == name).context("no such volume")?;
        let volume_id = text(volume, "/spec/csi/volumeHandle").to_owned();
        let node = self.api.get(&format!("/api/v1/nodes/{}", text(attachment, "/spec/nodeName")))?;
        let node: Value = serde_json::from_str(&node.body)?;
        let ids = node["metadata"]["annotations"][NODE_IDS].as_str().unwrap_or("{}");
        let ids: Value = serde_json::from_str(ids)?;
        let node_id = ids[&self.name].as_str().unwrap_or_default().to_owned();
        if attachment["metadata"]["deletionTimestamp"].is_string() {
            let request = ControllerUnpublish { volume_id, node_id, ..ControllerUnpublish::default() };
            return match self.call::<_, Nothing>(proto::CONTROLLER_UNPUBLISH_VOLUME, request) {
                Ok(_) => self.send("PATCH", &path, &json!({"metadata": {"finalizers": null}})),
                Err(status) => {
                    let error = json!({ "message": yare_grpc::describe(&status) });
                    self.send("PATCH", &format!("{path}/status"), &json!({"status": {"detachError": error}}))
                }
            };
        }
        if attachment["status"]["attached"] == true {
            return Ok(());
        }
        self.send("PATCH", &path, &json!({"metadata": {"finalizers": [finalizer]}}))?;
        let request = ControllerPublish {
            volume_id,
            node_id,
            volume_capability: Some(capability(&volume["spec"])),
            ..ControllerPublish::default()
        };
        let status = match self.call::<_, ControllerPublished>(proto::CONTROLLER_PUBLISH_VOLUME, request) {
            Ok(done) => {
                json!({"attached": true, "attachmentMetadata": done.publish_context, "attachError": null})
            }
            Err(status) => json!({
                "attached": false,
                "attachError": { "message": yare_grpc::describe(&status), "errorCode": status.code() as i32 },
            }),
        };
        self.send("PATCH", &format!("{path}/status"), &json!({ "status": status }))
    }

    fn provision(&self, claim: &Value, volumes: &[Value]) -> anyhow::Result<()> {
        let name = format!("pvc-{}", text(claim, "/metadata/uid"));
        if volumes.iter().any(|v| text(v, "/metadata/name") == name) {
            return Ok(());
        }
        let class = text(claim, "/spec/storageClassName");
        let class = self.api.get(&format!("/apis/storage.k8s.io/v1/storageclasses/{class}"))?;
        let class: Value = serde_json::from_str(&class.body)?;
        let size = text(claim, "/spec/resources/requests/storage");
        let source = match text(claim, "/spec/dataSource/kind") {
            "PersistentVolumeClaim" => {
                let from = text(claim, "/spec/dataSource/name");
                let of = |v: &&Value| {
                    text(v, "/spec/claimRef/name") == from
                        && text(v, "/spec/claimRef/namespace") == text(claim, "/metadata/namespace")
                };
                let found = volumes.iter().find(of).context("the source is not bound")?;
                let volume_id = text(found, "/spec/csi/volumeHandle").to_owned();
                Some(VolumeContentSource { volume: Some(VolumeSource { volume_id }) })
            }
            _ => None,
        };
        let request = CreateVolume {
            name: name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes(size), limit_bytes: 0 }),
            volume_capabilities: vec![capability(&claim["spec"])],
            volume_content_source: source,
            ..CreateVolume::default()
        };
        let made: CreatedVolume =
            self.call(proto::CREATE_VOLUME, request).map_err(|s| anyhow::anyhow!(yare_grpc::describe(&s)))?;
        let made = made.volume.context("no volume")?;
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": name,
                "annotations": { "pv.kubernetes.io/provisioned-by": self.name },
            },
            "spec": {
                "accessModes": claim["spec"]["accessModes"],
                "volumeMode": claim["spec"]["volumeMode"],
                "capacity": { "storage": size },
                "storageClassName": claim["spec"]["storageClassName"],
                "persistentVolumeReclaimPolicy": class["reclaimPolicy"],
                "mountOptions": class["mountOptions"],
                "csi": {
                    "driver": self.name, "volumeHandle": made.volume_id,
                    "volumeAttributes": made.volume_context,
                    "fsType": class.pointer("/parameters/csi.storage.k8s.io~1fstype"),
                },
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": claim["metadata"]["namespace"], "name": claim["metadata"]["name"],
                    "uid": claim["metadata"]["uid"],
                },
            },
        });
        self.send("POST", "/api/v1/persistentvolumes", &volume)
    }

    fn delete(&self, volume: &Value) -> anyhow::Result<()> {
        let provisioned = "/metadata/annotations/pv.kubernetes.io~1provisioned-by";
        if text(volume, "/status/phase") != "Released"
            || text(volume, "/spec/persistentVolumeReclaimPolicy") != "Delete"
            || text(volume, provisioned) != self.name
            || volume["metadata"]["deletionTimestamp"].is_string()
        {
            return Ok(());
        }
        let volume_id = text(volume, "/spec/csi/volumeHandle").to_owned();
        let request = DeleteVolume { volume_id, ..DeleteVolume::default() };
        self.call::<_, Nothing>(proto::DELETE_VOLUME, request)
            .map_err(|s| anyhow::anyhow!(yare_grpc::describe(&s)))?;
        let path = format!("/api/v1/persistentvolumes/{}", text(volume, "/metadata/name"));
        self.send("DELETE", &path, &json!({}))
    }

    /// A claim that asks for more than its volume has: the volume first, then what is left to the node.
    fn expand(&self, volume: &Value, claims: &[Value]) -> anyhow::Result<()> {
        let uid = text(volume, "/spec/claimRef/uid");
        let Some(claim) = claims.iter().find(|c| text(c, "/metadata/uid") == uid) else { return Ok(()) };
        let wanted = text(claim, "/spec/resources/requests/storage");
        if bytes(wanted) <= bytes(text(volume, "/spec/capacity/storage"))
            || text(claim, "/status/phase") != "Bound"
        {
            return Ok(());
        }
        let request = ControllerExpand {
            volume_id: text(volume, "/spec/csi/volumeHandle").to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes(wanted), limit_bytes: 0 }),
            volume_capability: Some(capability(&volume["spec"])),
            ..ControllerExpand::default()
        };
        let done: ControllerExpanded = self
            .call(proto::CONTROLLER_EXPAND_VOLUME, request)
            .map_err(|s| anyhow::anyhow!(yare_grpc::describe(&s)))?;
        let path = format!("/api/v1/persistentvolumes/{}", text(volume, "/metadata/name"));
        self.send("PATCH", &path, &json!({"spec": {"capacity": {"storage": wanted}}}))?;
        let status = if done.node_expansion_required {
            json!({
                "allocatedResources": { "storage": wanted },
                "allocatedResourceStatuses": { "storage": "NodeResizePending" },
            })
        } else {
            json!({ "capacity": { "storage": wanted } })
        };
        let path = format!(
            "/api/v1/namespaces/{}/persistentvolumeclaims/{}/status",
            text(claim, "/metadata/namespace"),
            text(claim, "/metadata/name")
        );
        self.send("PATCH", &path, &json!({ "status": status }))
    }
}
