//! The cluster's side of a driver's volumes: room is looked for, volumes are asked for where the pod will run,
//! attached, enlarged, detached and given back; with a real driver and its sidecars.

use std::time::Duration;

use anyhow::ensure;
use yare_testkit::{Cluster, CsiDriver, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const DRIVER: &str = "csi.yare.example";
const IMAGE: &str = "yare.local/busybox:1";

const OBJECTS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: csi.yare.example}
spec: {attachRequired: true, storageCapacity: true}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: far}
provisioner: csi.yare.example
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  storageClassName: far
  accessModes: [ReadWriteOncePod]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v}]
"#;

const ROOM: &str = r#"
apiVersion: storage.k8s.io/v1
kind: CSIStorageCapacity
metadata: {name: room}
storageClassName: far
nodeTopology: {matchLabels: {kubernetes.io/hostname: node-1}}
capacity: 1Gi
"#;

#[test]
fn volumes_of_a_driver_come_with_their_pod_and_go_with_their_claim() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let driver = CsiDriver::started(DRIVER, &cluster.path("data/agent"))?;
        let _sidecars = driver.sidecars(cluster)?;
        cluster.apply(OBJECTS)?;
        cluster.event("data", "WaitForPodScheduled", "waiting for pod one to be scheduled")?;
        // Nowhere is there room, until the driver says so.
        let nowhere = "0/1 nodes are available: 1 node(s) did not have enough free storage.";
        cluster.event("one", "FailedScheduling", nowhere)?;
        ensure!(driver.calls_of("CreateVolume").is_empty());
        cluster.apply(ROOM)?;
        cluster.ready(&["one"])?;
        cluster.shell("one", "echo kept >/v/file")?;
        cluster.event("one", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"pvc-")?;
        ensure!(cluster.field("pvc/data", ".metadata.annotations")?.contains("selected-node"));
        // Only one pod may have it, also while the other is on the same node.
        cluster
            .apply(&OBJECTS[OBJECTS.rfind("apiVersion").unwrap_or(0)..].replace("name: one", "name: two"))?;
        cluster.event(
            "two",
            "FailedScheduling",
            "ReadWriteOncePod access mode already in-use by another pod",
        )?;
        // It grows: by the driver first, on the node with its next pod.
        let grow = r#"{"spec": {"resources": {"requests": {"storage": "2Mi"}}}}"#;
        cluster.kubectl(&["patch", "pvc", "data", "-p", grow])?;
        cluster.event(
            "data",
            "ExternalExpanding",
            "waiting for an external controller to expand this PVC",
        )?;
        let volume = cluster.field("pvc/data", ".spec.volumeName")?;
        cluster.becomes(&format!("pv/{volume}"), ".spec.capacity.storage", "2Mi")?;
        cluster.kubectl(&["delete", "pod", "one"])?;
        cluster.ready(&["two"])?;
        ensure!(cluster.shell("two", "cat /v/file")? == "kept\n");
        cluster.becomes("pvc/data", ".status.capacity.storage", "2Mi")?;
        // All of it goes, in order.
        cluster.kubectl(&["delete", "pod", "two"])?;
        let goes = |kind: &str| {
            cluster.eventually(Duration::from_secs(60), || {
                let left = cluster.kubectl(&["get", kind, "-o", "name"])?;
                ensure!(left.trim().is_empty(), "{left}");
                Ok(())
            })
        };
        goes("volumeattachment")?;
        cluster.kubectl(&["delete", "pvc", "data"])?;
        goes("pv")?;
        let told = cluster.field("node/node-1", ".status.volumesAttached[*].name")?;
        ensure!(told.is_empty(), "{told}");
        let calls: Vec<&str> = driver.calls().iter().map(|c| c.method).collect();
        let end = &calls[calls.len().saturating_sub(4)..];
        ensure!(
            end == ["NodeUnpublishVolume", "NodeUnstageVolume", "ControllerUnpublishVolume", "DeleteVolume"],
            "{calls:?}"
        );
        Ok(())
    });
}
