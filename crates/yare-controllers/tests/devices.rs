//! Claims for devices: made from templates, taken back when pods end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Cluster;
use serde_json::{Value, json};
use yare_client::{EVENTS, PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, RESOURCE_SLICES};
use yare_controllers::{Config, api::Propagation};

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

async fn start() -> Cluster {
    Cluster::secure(Config { root_ca: "CERTIFICATE".into(), ..Config::default() }, |_| {}).await
}

fn asked() -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}})
}

async fn template(cluster: &Cluster) {
    let body = json!({"metadata": {"name": "t"}, "spec": {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}, "spec": asked()}});
    cluster.create(&RESOURCE_CLAIM_TEMPLATES, "default", body).await;
}

async fn pod(cluster: &Cluster, name: &str, fate: &str, claim: Value) -> String {
    let body = json!({"metadata": {"name": name, "labels": {"fate": fate}}, "spec": {
        "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "g"}]}}],
        "resourceClaims": [claim]}});
    cluster.create(&PODS, "default", body).await.uid().to_owned()
}

fn from_template() -> Value {
    json!({"name": "g", "resourceClaimTemplateName": "t"})
}

/// The claim that the pod's status names.
async fn made(cluster: &Cluster, pod: &str) -> Value {
    cluster
        .until("the pod's claim", || async {
            let pod = cluster.find(&PODS, "default", pod).await?;
            let name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str()?;
            cluster.find(&RESOURCE_CLAIMS, "default", name).await
        })
        .await
}

/// Allocates the claim and reserves it, as the scheduler does.
async fn allocate(cluster: &Cluster, claim: &str, pods: &[(&str, &str)]) {
    cluster.merge(&RESOURCE_CLAIMS, "default", claim, json!({"metadata": {"finalizers": [FINALIZER]}})).await;
    let reserved: Vec<Value> =
        pods.iter().map(|(name, uid)| json!({"resource": "pods", "name": name, "uid": uid})).collect();
    let status = json!({"status": {"reservedFor": reserved, "allocation": {"devices": {"results": [
        {"request": "r", "driver": "gpu.example.com", "pool": "p", "device": "d"}]}}}});
    let key = yare_client::ObjectKey::new("default", claim);
    let merge = yare_controllers::api::Patch::Merge;
    cluster.api.patch(&RESOURCE_CLAIMS, &key, "/status", merge, &status).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_come_from_templates_and_go_with_their_pods() {
    let cluster = start().await;
    let uid = pod(&cluster, "web", "waits", from_template()).await;
    // Without its template there is no claim, and the pod is told.
    cluster
        .until("the event", || async {
            let events = cluster.list(&EVENTS, "default").await;
            let wanted = "PodResourceClaim g: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found";
            events.iter().any(|e| e["reason"] == "FailedResourceClaimCreation" && e["message"] == wanted).then_some(())
        })
        .await;
    template(&cluster).await;
    let claim = made(&cluster, "web").await;
    let meta = &claim["metadata"];
    let name = meta["name"].as_str().unwrap();
    assert!(name.starts_with("web-g-") && name.len() == 11, "{name}");
    assert_eq!(meta["labels"], json!({"team": "a"}));
    assert_eq!(meta["annotations"], json!({"note": "b", "resource.kubernetes.io/pod-claim-name": "g"}));
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": true}]);
    assert_eq!(meta["ownerReferences"], owner);
    assert_eq!(claim["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"], "gpu");

    // One that is deleted by accident is made anew.
    cluster.delete(&RESOURCE_CLAIMS, "default", name, Propagation::Background).await;
    let again = cluster
        .until("another claim", || async {
            let claim = made(&cluster, "web").await;
            (claim["metadata"]["uid"] != meta["uid"]).then_some(claim)
        })
        .await;
    // The pod ends before it has a node: the claim goes at once, allocated or not.
    let name = again["metadata"]["name"].as_str().unwrap();
    allocate(&cluster, name, &[("web", &uid)]).await;
    cluster.delete(&PODS, "default", "web", Propagation::Background).await;
    cluster.until_gone(&RESOURCE_CLAIMS, "default", name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_have_ended_give_their_claims_back() {
    let cluster = start().await;
    template(&cluster).await;
    // A claim made for a pod goes when the pod has run to its end, though the pod stays.
    let uid = pod(&cluster, "job", "waits", from_template()).await;
    let claim = made(&cluster, "job").await;
    let name = claim["metadata"]["name"].as_str().unwrap();
    allocate(&cluster, name, &[("job", &uid)]).await;
    cluster.merge(&PODS, "default", "job", json!({"metadata": {"labels": {"fate": "succeeds"}}})).await;
    cluster.until_gone(&RESOURCE_CLAIMS, "default", name).await;
    assert!(cluster.find(&PODS, "default", "job").await.is_some());

    // One that pods share stays, allocated while one of them is there.
    cluster
        .create(&RESOURCE_CLAIMS, "default", json!({"metadata": {"name": "shared"}, "spec": asked()}))
        .await;
    let own = json!({"name": "g", "resourceClaimName": "shared"});
    let one = pod(&cluster, "one", "waits", own.clone()).await;
    let two = pod(&cluster, "two", "waits", own.clone()).await;
    allocate(
        &cluster,
        "shared",
        &[("one", &one), ("two", &two), ("gone", "00000000-0000-4000-8000-000000000000")],
    )
    .await;
    let reserved = |claim: &Value| claim["status"]["reservedFor"].as_array().map_or(0, Vec::len);
    cluster.until_is(&RESOURCE_CLAIMS, "default", "shared", |c| reserved(c) == 2).await;
    cluster.delete(&PODS, "default", "one", Propagation::Background).await;
    cluster
        .until_is(&RESOURCE_CLAIMS, "default", "shared", |c| {
            reserved(c) == 1 && c["status"]["allocation"].is_object()
        })
        .await;
    // A pod that somebody else placed gets its reservation, too.
    let three = pod(&cluster, "three", "runs", own).await;
    cluster
        .until_is(&RESOURCE_CLAIMS, "default", "shared", |c| {
            c["status"]["reservedFor"].as_array().is_some_and(|r| r.iter().any(|r| r["uid"] == *three))
        })
        .await;
    cluster.delete(&PODS, "default", "three", Propagation::Background).await;
    cluster.delete(&PODS, "default", "two", Propagation::Background).await;
    cluster
        .until_is(&RESOURCE_CLAIMS, "default", "shared", |c| {
            reserved(c) == 0 && c["status"]["allocation"].is_null() && c["metadata"]["finalizers"].is_null()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_devices_that_break() {
    let cluster = start().await;
    let slice = json!({"metadata": {"name": "s"}, "spec": {
        "driver": "gpu.example.com", "nodeName": "n1", "devices": [{"name": "d"}],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}});
    cluster.create(&RESOURCE_SLICES, "", slice).await;
    cluster.create(&RESOURCE_CLAIMS, "default", json!({"metadata": {"name": "c"}, "spec": asked()})).await;
    let uid = pod(&cluster, "web", "runs", json!({"name": "g", "resourceClaimName": "c"})).await;
    allocate(&cluster, "c", &[("web", &uid)]).await;
    cluster.until_is(&PODS, "default", "web", |p| p["status"]["phase"] == "Running").await;
    let taint = |effect: &str| json!({"spec": {"devices": [{"name": "d", "taints": [{"key": "broken", "effect": effect}]}]}});
    cluster.merge(&RESOURCE_SLICES, "", "s", taint("NoSchedule")).await;
    cluster.merge(&RESOURCE_SLICES, "", "s", taint("NoExecute")).await;
    cluster.until_gone(&PODS, "default", "web").await;
    cluster
        .until("the event", || async {
            let events = cluster.list(&EVENTS, "default").await;
            events.iter().any(|e| e["reason"] == "DeviceTaintManagerEviction").then_some(())
        })
        .await;
    // Nobody is left to use the claim.
    cluster.until_is(&RESOURCE_CLAIMS, "default", "c", |c| c["status"]["allocation"].is_null()).await;
}
