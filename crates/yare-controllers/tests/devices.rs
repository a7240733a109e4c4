//! Claims for devices: made from templates, taken back when pods end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, condition};
use serde_json::{Value, json};
use yare_apiserver::runtime_config::RuntimeConfig;
use yare_client::{
    DEVICE_TAINT_RULES, EVENTS, PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, RESOURCE_SLICES,
};
use yare_controllers::{Config, api::Propagation};
use yare_schema::features::Gates;

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
    allocate_tolerating(cluster, claim, pods, json!([])).await;
}

async fn allocate_tolerating(cluster: &Cluster, claim: &str, pods: &[(&str, &str)], tolerations: Value) {
    cluster.merge(&RESOURCE_CLAIMS, "default", claim, json!({"metadata": {"finalizers": [FINALIZER]}})).await;
    let reserved: Vec<Value> =
        pods.iter().map(|(name, uid)| json!({"resource": "pods", "name": name, "uid": uid})).collect();
    let status = json!({"status": {"reservedFor": reserved, "allocation": {"devices": {"results": [
        {"request": "r", "driver": "gpu.example.com", "pool": "p", "device": "d", "tolerations": tolerations}]}}}});
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

fn taint_rule(name: &str, selector: Value, effect: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "deviceSelector": selector, "taint": {"key": "broken", "effect": effect}}})
}

/// A pod that runs and has the device, and tolerates taints for a while.
async fn patient_pod(cluster: &Cluster, name: &str, seconds: Value) {
    cluster.create(&RESOURCE_CLAIMS, "default", json!({"metadata": {"name": name}, "spec": asked()})).await;
    let uid = pod(cluster, name, "runs", json!({"name": "g", "resourceClaimName": name})).await;
    let tolerates = json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    allocate_tolerating(cluster, name, &[(name, &uid)], json!([tolerates])).await;
    cluster.until_is(&PODS, "default", name, |p| p["status"]["phase"] == "Running").await;
}

/// Waits until the rule's condition has the status, reason and message.
async fn rule_says(cluster: &Cluster, rule: &str, status: &str, reason: &str, message: &str) {
    cluster
        .until_is(&DEVICE_TAINT_RULES, "", rule, |rule| {
            condition(rule, "EvictionInProgress").is_some_and(|c| {
                c["status"] == status
                    && c["reason"] == reason
                    && c["message"].as_str().unwrap_or_default() == message
                    && c["observedGeneration"] == rule["metadata"]["generation"]
            })
        })
        .await;
}

async fn told_of(cluster: &Cluster, pod: &str, message: &str) {
    cluster
        .until("the event", || async {
            let events = cluster.list(&EVENTS, "default").await;
            let is = |e: &Value| {
                e["reason"] == "DeviceTaintManagerEviction"
                    && e["message"] == message
                    && e["involvedObject"]["name"] == pod
            };
            events.iter().any(is).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_devices_that_rules_taint() {
    let gates = Gates::parse("DRADeviceTaintRules=true").unwrap();
    let config = Config { gates, ..Config::default() };
    let mut cluster = Cluster::secure(config, |server| {
        server.runtime_config = RuntimeConfig::parse("resource.k8s.io/v1beta2=true").unwrap();
    })
    .await;
    let slice = json!({"metadata": {"name": "s"}, "spec": {
        "driver": "gpu.example.com", "nodeName": "n1", "devices": [{"name": "d"}, {"name": "e"}],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}});
    cluster.create(&RESOURCE_SLICES, "", slice).await;
    patient_pod(&cluster, "restless", json!(0)).await;
    patient_pod(&cluster, "quick", json!(1)).await;
    patient_pod(&cluster, "patient", json!(3600)).await;
    patient_pod(&cluster, "stays", Value::Null).await;

    // What would be, were it meant. It is counted once: caches must have it all by then.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let all = json!({"driver": "gpu.example.com"});
    cluster.create(&DEVICE_TAINT_RULES, "", taint_rule("dry", all.clone(), "None")).await;
    let dry = "2 published devices selected. 4 allocated devices selected. 3 pods would be evicted in 1 namespace if \
               the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule \
               to trigger an update.";
    rule_says(&cluster, "dry", "False", "NoEffect", dry).await;
    let other = taint_rule("other", json!({"device": "e"}), "NoExecute");
    cluster.create(&DEVICE_TAINT_RULES, "", other).await;
    rule_says(&cluster, "other", "False", "NotStarted", "").await;
    cluster.create(&DEVICE_TAINT_RULES, "", taint_rule("new", all.clone(), "NoSchedule")).await;
    let only = "Eviction only happens for the NoExecute effect.";
    rule_says(&cluster, "new", "False", "OtherEffect", only).await;

    // The effect is another now: pods go, each at its time.
    cluster.merge(&DEVICE_TAINT_RULES, "", "new", json!({"spec": {"taint": {"effect": "NoExecute"}}})).await;
    let all_go = "3 pods need to be evicted in 1 namespace.";
    rule_says(&cluster, "new", "True", "PodsPendingEviction", all_go).await;
    cluster.until_gone(&PODS, "default", "restless").await;
    told_of(&cluster, "restless", "Marking for deletion").await;
    cluster.until_gone(&PODS, "default", "quick").await;
    let left = "1 pod needs to be evicted in 1 namespace. 2 pods evicted since starting the controller.";
    rule_says(&cluster, "new", "True", "PodsPendingEviction", left).await;

    // Who starts anew has evicted nobody yet, but knows who has to go.
    cluster.restart_controllers().await;
    let left = "1 pod needs to be evicted in 1 namespace.";
    rule_says(&cluster, "new", "True", "PodsPendingEviction", left).await;
    cluster.delete(&DEVICE_TAINT_RULES, "", "new", Propagation::Background).await;
    told_of(&cluster, "patient", "Cancelling deletion").await;
    for name in ["patient", "stays"] {
        let pod = cluster.find(&PODS, "default", name).await.unwrap();
        assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod:#}");
    }
    cluster.stop().await;
}
