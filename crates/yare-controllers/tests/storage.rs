//! Claims and volumes find each other and part, with the real API server and each controller's own rights.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Cluster;
use serde_json::{Value, json};
use yare_client::{
    CSI_DRIVERS, EVENTS, NODES, ObjectKey, PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES,
    PODS, STORAGE_CLASSES, VOLUME_ATTACHMENTS,
};
use yare_controllers::{
    Config,
    api::{Patch, Propagation},
};

const NS: &str = "default";

async fn cluster() -> Cluster {
    Cluster::secure(Config::default(), |_| {}).await
}

fn volume(name: &str, size: &str, modes: &[&str], spec: Value) -> Value {
    let mut out = json!({"metadata": {"name": name}, "spec": {
        "capacity": {"storage": size}, "accessModes": modes, "hostPath": {"path": "/srv"},
        "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "manual"}});
    merge(&mut out["spec"], &spec);
    out
}

fn claim(name: &str, spec: Value) -> Value {
    let mut out = json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "manual"}});
    merge(&mut out["spec"], &spec);
    out
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().unwrap() {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            into[key] = value.clone();
        }
    }
}

fn user(name: &str, claim: &str, labels: Value, node: &str) -> Value {
    let mut out = json!({"metadata": {"name": name, "labels": labels}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
    if !node.is_empty() {
        out["spec"]["nodeName"] = node.into();
    }
    out
}

/// Waits for an event about an object.
async fn event(cluster: &Cluster, about: &str, reason: &str, text: &str) {
    let what = format!("event {reason} of {about}: {text}");
    cluster
        .until(&what, || async {
            let events = cluster.list(&EVENTS, "").await;
            let fits = |e: &&Value| {
                e["involvedObject"]["name"] == about
                    && e["reason"] == reason
                    && e["message"].as_str().is_some_and(|m| m.contains(text))
            };
            events.iter().find(fits).map(|_| ())
        })
        .await;
}

async fn phase(cluster: &Cluster, resource: &yare_client::Resource, name: &str, phase: &str) {
    let namespace = if resource.namespaced { NS } else { "" };
    cluster
        .until(&format!("{} {name} to be {phase}", resource.kind), || async {
            let found = cluster.find(resource, namespace, name).await?;
            (found["status"]["phase"] == phase).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_get_the_volume_that_fits_best_and_volumes_outlive_them() {
    let cluster = cluster().await;
    let both = ["ReadWriteOnce", "ReadWriteMany"];
    for body in [
        volume("large", "5Gi", &["ReadWriteOnce"], json!({})),
        volume("small", "2Gi", &both, json!({})),
        volume("meant", "9Gi", &both, json!({"claimRef": {"namespace": NS, "name": "meant"}})),
        volume("mine", "1Gi", &["ReadWriteOnce"], json!({"storageClassName": "other"})),
    ] {
        cluster.create(&VOLUMES, "", body).await;
    }
    for name in ["large", "small", "meant", "mine"] {
        phase(&cluster, &VOLUMES, name, "Available").await;
    }
    // Fewer access modes before smaller; one that names the claim before both.
    for (name, spec, expected) in [
        ("any", json!({}), "large"),
        ("meant", json!({}), "meant"),
        ("many", json!({"accessModes": ["ReadWriteMany"]}), "small"),
    ] {
        cluster.create(&CLAIMS, NS, claim(name, spec)).await;
        phase(&cluster, &CLAIMS, name, "Bound").await;
        let bound = cluster.get(&CLAIMS, NS, name).await;
        assert_eq!(bound["spec"]["volumeName"], expected, "{name}");
        let ours = &bound["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"];
        assert_eq!(ours, "yes", "{bound}");
        phase(&cluster, &VOLUMES, expected, "Bound").await;
    }
    let volume_of = cluster.get(&VOLUMES, "", "meant").await;
    assert!(volume_of["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"].is_null());
    // What a claim asks for by name must fit as well.
    cluster.create(&CLAIMS, NS, claim("wrong", json!({"volumeName": "mine"}))).await;
    event(
        &cluster,
        "wrong",
        "VolumeMismatch",
        "Cannot bind to requested volume \"mine\": storageClassName does not match",
    )
    .await;
    cluster.create(&CLAIMS, NS, claim("late", json!({"volumeName": "large"}))).await;
    event(&cluster, "late", "FailedBinding", "volume \"large\" already bound to a different claim.").await;
    cluster.create(&CLAIMS, NS, claim("none", json!({"storageClassName": ""}))).await;
    event(&cluster, "none", "FailedBinding", "no storage class is set").await;
    cluster.create(&CLAIMS, NS, claim("unknown", json!({}))).await;
    event(&cluster, "unknown", "ProvisioningFailed", "storageclass.storage.k8s.io \"manual\" not found")
        .await;

    // Retained; gone for good; lost.
    cluster.delete(&CLAIMS, NS, "any", Propagation::Background).await;
    phase(&cluster, &VOLUMES, "large", "Released").await;
    let policy = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    cluster.merge(&VOLUMES, "", "large", policy).await;
    phase(&cluster, &VOLUMES, "large", "Failed").await;
    event(&cluster, "large", "VolumeFailedDelete", "host_path deleter only supports /tmp/.+").await;
    let free = json!({"metadata": {"finalizers": null}});
    cluster.delete(&VOLUMES, "", "small", Propagation::Background).await;
    cluster.merge(&VOLUMES, "", "small", free).await;
    cluster.until_gone(&VOLUMES, "", "small").await;
    phase(&cluster, &CLAIMS, "many", "Lost").await;
    event(&cluster, "many", "ClaimLost", "Bound claim has lost its PersistentVolume.").await;
    let lost = cluster.get(&CLAIMS, NS, "many").await;
    assert!(lost["status"]["capacity"].is_null() && lost["status"]["accessModes"].is_null(), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_wait_for_pods_and_classes_and_are_protected() {
    let cluster = cluster().await;
    // A claim that said nothing gets the class that is the default later.
    cluster.create(&CLAIMS, NS, claim("plain", json!({"storageClassName": null}))).await;
    event(&cluster, "plain", "FailedBinding", "no storage class is set").await;
    let class = |name: &str, default: bool| {
        json!({"metadata": {"name": name, "annotations": {
            "storageclass.kubernetes.io/is-default-class": default.to_string()}},
            "provisioner": "csi.example.com", "volumeBindingMode": "WaitForFirstConsumer"})
    };
    cluster.create(&STORAGE_CLASSES, "", class("a", false)).await;
    cluster.create(&STORAGE_CLASSES, "", class("b", true)).await;
    event(&cluster, "plain", "WaitForFirstConsumer", "waiting for first consumer to be created").await;
    assert_eq!(cluster.get(&CLAIMS, NS, "plain").await["spec"]["storageClassName"], "b");
    cluster.create(&PODS, NS, user("p", "plain", json!({"fate": "waits"}), "")).await;
    event(&cluster, "plain", "WaitForPodScheduled", "waiting for pod p to be scheduled").await;
    let node = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    cluster.merge(&CLAIMS, NS, "plain", node).await;
    event(&cluster, "plain", "ExternalProvisioning", "external provisioner 'csi.example.com'").await;
    let asked = cluster.get(&CLAIMS, NS, "plain").await;
    let annotations = &asked["metadata"]["annotations"];
    assert_eq!(annotations["volume.kubernetes.io/storage-provisioner"], "csi.example.com");
    // The provisioner does its part; whatever the driver deletes is not ours to fail.
    let uid = asked["metadata"]["uid"].clone();
    let made = json!({
        "claimRef": {"kind": "PersistentVolumeClaim", "namespace": NS, "name": "plain", "uid": uid},
        "storageClassName": "b", "hostPath": null, "persistentVolumeReclaimPolicy": "Delete",
        "csi": {"driver": "csi.example.com", "volumeHandle": "h"}});
    cluster.create(&VOLUMES, "", volume("made", "1Gi", &["ReadWriteOnce"], made)).await;
    phase(&cluster, &CLAIMS, "plain", "Bound").await;
    // It grows by somebody else's hand.
    let allow = json!({"allowVolumeExpansion": true});
    cluster.merge(&STORAGE_CLASSES, "", "b", allow).await;
    cluster
        .merge(&CLAIMS, NS, "plain", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}))
        .await;
    event(&cluster, "plain", "ExternalExpanding", "waiting for an external controller to expand this PVC")
        .await;
    // A pod that has run to its end still keeps its claim; one that is gone does not.
    cluster.create(&PODS, NS, user("done", "plain", json!({"fate": "succeeds"}), "")).await;
    phase(&cluster, &PODS, "done", "Succeeded").await;
    cluster.delete(&PODS, NS, "p", Propagation::Background).await;
    cluster.delete(&CLAIMS, NS, "plain", Propagation::Background).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(cluster.find(&CLAIMS, NS, "plain").await.is_some());
    cluster.delete(&PODS, NS, "done", Propagation::Background).await;
    cluster.until_gone(&CLAIMS, NS, "plain").await;
    phase(&cluster, &VOLUMES, "made", "Released").await;
    // Provisioners outside: another plugin of the tree says who stands in for it.
    let tree = json!({"metadata": {"name": "tree"}, "provisioner": "kubernetes.io/aws-ebs"});
    cluster.create(&STORAGE_CLASSES, "", tree).await;
    cluster.create(&CLAIMS, NS, claim("old", json!({"storageClassName": "tree"}))).await;
    event(&cluster, "old", "ExternalProvisioning", "external provisioner 'ebs.csi.aws.com'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_volume_is_cleaned_and_free_again() {
    let cluster = cluster().await;
    let recycle = json!({"persistentVolumeReclaimPolicy": "Recycle"});
    cluster.create(&VOLUMES, "", volume("again", "1Gi", &["ReadWriteOnce"], recycle)).await;
    cluster.create(&CLAIMS, NS, claim("c", json!({}))).await;
    phase(&cluster, &CLAIMS, "c", "Bound").await;
    cluster.delete(&CLAIMS, NS, "c", Propagation::Background).await;
    let cleaner = cluster.get(&PODS, NS, "recycler-for-again").await;
    assert_eq!(cleaner["spec"]["volumes"][0]["hostPath"]["path"], "/srv", "{cleaner}");
    assert_eq!(cleaner["spec"]["activeDeadlineSeconds"], 60);
    let done = json!({"status": {"phase": "Succeeded"}});
    let key = ObjectKey::new(NS, "recycler-for-again");
    phase(&cluster, &PODS, "recycler-for-again", "Running").await;
    cluster.api.patch(&PODS, &key, "/status", Patch::Merge, &done).await.unwrap();
    event(&cluster, "again", "VolumeRecycled", "Volume recycled").await;
    phase(&cluster, &VOLUMES, "again", "Available").await;
    cluster.until_gone(&PODS, NS, "recycler-for-again").await;
    assert!(cluster.get(&VOLUMES, "", "again").await["spec"]["claimRef"].is_null());
}

/// A volume of a driver, bound to a claim of the same name.
async fn csi(cluster: &Cluster, name: &str, driver: &str, mode: &str) {
    let spec = json!({"hostPath": null, "csi": {"driver": driver, "volumeHandle": format!("handle-{name}")},
        "claimRef": {"namespace": NS, "name": name}});
    cluster.create(&VOLUMES, "", volume(name, "1Gi", &[mode], spec)).await;
    cluster.create(&CLAIMS, NS, claim(name, json!({"accessModes": [mode]}))).await;
    phase(cluster, &CLAIMS, name, "Bound").await;
}

/// The attachments there are: volume and node.
async fn attachments(cluster: &Cluster) -> Vec<String> {
    let all = cluster.list(&VOLUME_ATTACHMENTS, "").await;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut out: Vec<String> = all
        .iter()
        .map(|a| {
            format!("{}@{}", text(&a["spec"]["source"]["persistentVolumeName"]), text(&a["spec"]["nodeName"]))
        })
        .collect();
    out.sort();
    out
}

async fn until_attached(cluster: &Cluster, expected: &[&str]) {
    cluster
        .until(&format!("attachments {expected:?}"), || async {
            (attachments(cluster).await == expected).then_some(())
        })
        .await;
}

/// What the node is told that it has.
async fn until_told(cluster: &Cluster, expected: &[&str]) {
    cluster
        .until(&format!("n1 to be told {expected:?}"), || async {
            let node = cluster.find(&NODES, "", "n1").await?;
            let list = node["status"]["volumesAttached"].as_array().cloned().unwrap_or_default();
            let names: Vec<&str> = list.iter().filter_map(|v| v["name"].as_str()).collect();
            (names == expected).then_some(())
        })
        .await;
}

async fn node_says(cluster: &Cluster, node: &str, status: Value) {
    let key = ObjectKey::cluster(node);
    let patch = json!({"status": status});
    cluster.api.patch(&NODES, &key, "/status", Patch::Merge, &patch).await.unwrap();
}

/// The driver's sidecar has done it.
async fn driver_says(cluster: &Cluster, volume: &str, status: Value) {
    let all = cluster.list(&VOLUME_ATTACHMENTS, "").await;
    let found = all.iter().find(|a| a["spec"]["source"]["persistentVolumeName"] == volume).unwrap();
    let key = ObjectKey::cluster(found["metadata"]["name"].as_str().unwrap());
    let patch = json!({"status": status});
    cluster.api.patch(&VOLUME_ATTACHMENTS, &key, "/status", Patch::Merge, &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_attached_where_pods_want_them_and_leave_when_nodes_let_go() {
    let cluster = cluster().await;
    let managed = json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    cluster.merge(&NODES, "", "n1", managed.clone()).await;
    let mut second = managed;
    second["metadata"]["name"] = "n2".into();
    cluster.create(&NODES, "", second).await;
    let easy = json!({"metadata": {"name": "easy.example.com"}, "spec": {"attachRequired": false}});
    cluster.create(&CSI_DRIVERS, "", easy).await;
    csi(&cluster, "data", "csi.example.com", "ReadWriteOnce").await;
    csi(&cluster, "easy", "easy.example.com", "ReadWriteOnce").await;
    csi(&cluster, "shared", "csi.example.com", "ReadWriteMany").await;
    for (pod, claim, node) in
        [("one", "data", "n1"), ("none", "easy", "n1"), ("all", "shared", "n1"), ("too", "shared", "n2")]
    {
        cluster.create(&PODS, NS, user(pod, claim, json!({}), node)).await;
    }
    until_attached(&cluster, &["data@n1", "shared@n1", "shared@n2"]).await;
    until_told(&cluster, &[]).await;
    driver_says(
        &cluster,
        "data",
        json!({"attached": false, "attachError": {"message": "the disk is broken"}}),
    )
    .await;
    event(
        &cluster,
        "one",
        "FailedAttachVolume",
        "AttachVolume.Attach failed for volume \"data\" : the disk is broken",
    )
    .await;
    driver_says(&cluster, "data", json!({"attached": true, "attachError": null})).await;
    let unique = "kubernetes.io/csi/csi.example.com^handle-data";
    until_told(&cluster, &[unique]).await;
    event(&cluster, "one", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"data\"")
        .await;
    node_says(&cluster, "n1", json!({"volumesInUse": [unique]})).await;
    // Another node cannot have it meanwhile.
    cluster.create(&PODS, NS, user("other", "data", json!({}), "n2")).await;
    event(
        &cluster,
        "other",
        "FailedAttachVolume",
        "Multi-Attach error for volume \"data\" Volume is already used by pod(s) one",
    )
    .await;
    // The pod goes, the node still has it; it lets go, and the other gets it.
    cluster.delete(&PODS, NS, "one", Propagation::Background).await;
    cluster.until_gone(&PODS, NS, "one").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(attachments(&cluster).await, ["data@n1", "shared@n1", "shared@n2"]);
    node_says(&cluster, "n1", json!({"volumesInUse": []})).await;
    until_attached(&cluster, &["data@n2", "shared@n1", "shared@n2"]).await;
    until_told(&cluster, &[]).await;
    // What somebody else asked for, nobody here gives up.
    let foreign = json!({"metadata": {"name": "foreign"}, "spec": {
        "attacher": "a", "nodeName": "n1", "source": {"persistentVolumeName": "nowhere"}}});
    cluster.create(&VOLUME_ATTACHMENTS, "", foreign).await;
    // A node that is said to be off is not asked.
    let in_use = "kubernetes.io/csi/csi.example.com^handle-shared";
    node_says(&cluster, "n1", json!({"volumesInUse": [in_use]})).await;
    cluster.delete(&PODS, NS, "all", Propagation::Background).await;
    cluster.until_gone(&PODS, NS, "all").await;
    let off =
        json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    cluster.merge(&NODES, "", "n1", off).await;
    until_attached(&cluster, &["data@n2", "nowhere@n1", "shared@n2"]).await;
}
