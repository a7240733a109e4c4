//! What happens to volumes of a driver while time passes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use common::Cluster;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use yare_testkit::{CsiDriver, CsiFault, csi::Code};

const DRIVER: &str = "csi.yare.example";
const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/c";

#[tokio::test(flavor = "multi_thread")]
async fn volumes_in_use_are_published_again_and_grow() {
    let clock = Arc::new(AtomicI64::new(0));
    let mut cluster = Cluster::without_node().await;
    let ahead = clock.clone();
    cluster
        .start_node(move |config| {
            config.seams.now =
                Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)));
            config.seams.random = Arc::new(|| 0.0);
        })
        .await;
    let driver = CsiDriver::started(DRIVER, &cluster.data()).unwrap();
    let spec = json!({"attachRequired": false, "requiresRepublish": true, "podInfoOnMount": true});
    let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": spec});
    cluster.post("/apis/storage.k8s.io/v1/csidrivers", &object).await;
    let handle = driver.create("c", 1 << 20, false).unwrap();
    let sizes = json!({"storage": "1Mi"});
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "volumeName": "pv", "storageClassName": "",
        "resources": {"requests": sizes},
    }});
    let claim = cluster.post("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    let volume = json!({"metadata": {"name": "pv"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": sizes,
        "csi": {"driver": DRIVER, "volumeHandle": handle},
        "claimRef": {"namespace": "default", "name": "c", "uid": claim["metadata"]["uid"]},
    }});
    cluster.post("/api/v1/persistentvolumes", &volume).await;
    let bound = json!({"status": {"phase": "Bound", "capacity": sizes, "accessModes": ["ReadWriteOnce"]}});
    cluster.patch(&format!("{CLAIM}/status"), &bound).await;
    let pod = json!({
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
    });
    cluster.pod("p", pod).await;
    cluster.wait_ready("p").await;
    assert_eq!(driver.calls_of("NodePublishVolume").len(), 1);
    assert_eq!(driver.calls_of("NodeExpandVolume").len(), 0);

    // The volume is larger by now, and the controller leaves the rest to the node.
    let larger = json!({"storage": "2Mi"});
    cluster.patch("/api/v1/persistentvolumes/pv", &json!({"spec": {"capacity": larger}})).await;
    let pending = json!({"status": {
        "allocatedResources": larger, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
    }});
    cluster.patch(&format!("{CLAIM}/status"), &pending).await;
    driver.fault("NodeExpandVolume", Some(CsiFault::Fails(Code::Internal, "too tight".into())));
    let look = async |at: i64| {
        clock.store(at, Ordering::Relaxed);
        let note = json!({"metadata": {"annotations": {"look": at.to_string()}}});
        cluster.patch("/api/v1/namespaces/default/pods/p", &note).await;
    };
    look(61).await;
    let failed = cluster
        .wait(CLAIM, "a failed expansion", |c| {
            let all = c["status"]["conditions"].as_array();
            all.is_some_and(|all| all.iter().any(|c| c["type"] == "NodeResizeError"))
        })
        .await;
    assert_eq!(failed["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInProgress");
    assert_eq!(driver.calls_of("NodePublishVolume").len(), 2, "{:?}", driver.calls());

    driver.fault("NodeExpandVolume", None);
    look(75).await;
    let done = cluster.wait(CLAIM, "an expansion", |c| c["status"]["capacity"] == larger).await;
    assert_eq!(done["status"]["allocatedResourceStatuses"], json!(null), "{done}");
    let left = done["status"]["conditions"].as_array().map_or(0, Vec::len);
    assert_eq!(left, 0, "{done}");
    let expansions = driver.calls_of("NodeExpandVolume");
    assert!(expansions.iter().all(|c| c.fields["bytes"] == 2 << 20), "{expansions:?}");
    assert!(expansions[0].fields["path"].as_str().unwrap().ends_with("/kubernetes.io~csi/pv/mount"));

    // Once is enough.
    let before = driver.calls_of("NodeExpandVolume").len();
    look(200).await;
    for _ in 0..500 {
        if driver.calls_of("NodePublishVolume").len() > 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(driver.calls_of("NodePublishVolume").len() > 3);
    assert_eq!(driver.calls_of("NodeExpandVolume").len(), before);

    cluster.delete_pod("p", 0).await;
    cluster.wait_gone("p").await;
    for _ in 0..500 {
        if driver.calls_of("NodeUnstageVolume").len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(driver.mounted().is_empty());
    assert_eq!(driver.calls_of("NodeUnstageVolume").len(), 1);
}
