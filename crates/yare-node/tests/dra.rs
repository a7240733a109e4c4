//! Dynamic resource allocation, the node's side: drivers, claims, health, and what stays when a driver goes.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Cluster, NODE};
use serde_json::{Value, json};
use yare_grpc::Client;
use yare_node::managers::pod_resources::api::{self, *};
use yare_testkit::{ClaimedDevice, DraBehaviour, DraDriver};

const DRIVER: &str = "gpu.example.com";
const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";

fn behaviour() -> DraBehaviour {
    let device = |request: &str, name: &str| ClaimedDevice {
        requests: vec![request.to_owned()],
        pool: "pool".to_owned(),
        name: name.to_owned(),
        cdi: vec![format!("vendor.com/gpu={name}")],
    };
    DraBehaviour {
        devices: [("one".to_owned(), vec![device("a", "x"), device("b", "y")])].into(),
        ..Default::default()
    }
}

async fn claim(cluster: &Cluster) {
    let request = |name: &str| json!({"name": name, "exactly": {"deviceClassName": "gpu"}});
    let claim = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "one"},
        "spec": {"devices": {"requests": [request("a"), request("b")]}},
    });
    cluster.post(CLAIMS, &claim).await;
}

/// Allocates the claim and reserves it for pods, as the scheduler does.
async fn reserve(cluster: &Cluster, pods: &[(&str, &str)]) {
    let result = |request: &str, device: &str| json!({"request": request, "driver": DRIVER, "pool": "pool", "device": device});
    let pods: Vec<Value> =
        pods.iter().map(|(name, uid)| json!({"resource": "pods", "name": name, "uid": uid})).collect();
    let status = json!({"status": {
        "allocation": {"devices": {"results": [result("a", "x"), result("b", "y")]}}, "reservedFor": pods}});
    cluster.patch(&format!("{CLAIMS}/one/status"), &status).await;
}

fn pod(name: &str, claims: Value) -> Value {
    json!({
        "containers": [{"name": name, "image": "present:1", "command": ["run"], "resources": {"claims": claims}}],
        "resourceClaims": [{"name": "g", "resourceClaimName": "one"}],
        "terminationGracePeriodSeconds": 0,
    })
}

async fn registered(driver: &DraDriver) -> (bool, String) {
    for _ in 0..1000 {
        if let Some(last) = driver.registered().pop() {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the driver heard nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_made_ready_and_taken_back() {
    let mut cluster = Cluster::start().await;
    let driver = DraDriver::start(&cluster.data(), DRIVER, behaviour()).unwrap();
    assert_eq!(registered(&driver).await, (true, String::new()));
    claim(&cluster).await;
    let web = cluster.pod("web", pod("web", json!([{"name": "g", "request": "b"}]))).await;
    let event = cluster.wait_event("web", "FailedPrepareDynamicResources").await;
    let text = event["message"].as_str().unwrap();
    let want = format!(
        "Failed to prepare dynamic resources: prepare dynamic resources: pod web ({web}) is not allowed to use ResourceClaim one"
    );
    assert!(text.starts_with(&want), "{text}");
    assert!(driver.calls().is_empty());

    // Two pods share the claim; each container gets what it asks of it.
    let two = cluster.pod("two", pod("two", json!([{"name": "g"}]))).await;
    reserve(&cluster, &[("web", &web), ("two", &two)]).await;
    cluster.wait_ready("web").await;
    cluster.wait_ready("two").await;
    assert_eq!(driver.calls(), ["prepare one"]);
    let cdi = |name: &str| cluster.runtime.container_named(name).unwrap().1.cdi_devices;
    assert_eq!(cdi("web"), ["vendor.com/gpu=y"]);
    assert_eq!(cdi("two"), ["vendor.com/gpu=x", "vendor.com/gpu=y"]);
    let client = Client::unix(cluster.data().join("pod-resources/kubelet.sock"));
    let request = GetPodResourcesRequest { pod_name: "web".into(), pod_namespace: "default".into() };
    let answer: GetPodResourcesResponse =
        client.call(api::GET, request, Duration::from_secs(5)).await.unwrap();
    let dynamic = &answer.pod_resources.unwrap().containers[0].dynamic_resources[0];
    assert_eq!((dynamic.claim_name.as_str(), dynamic.claim_namespace.as_str()), ("one", "default"));
    let names: Vec<_> =
        dynamic.claim_resources.iter().map(|r| (r.driver_name.as_str(), r.device_name.as_str())).collect();
    assert_eq!(names, [(DRIVER, "x"), (DRIVER, "y")]);

    // Health, as the driver tells it.
    driver.tell_health(vec![("pool".into(), "y".into(), 2, "hot".into())]);
    let health = |p: &Value| p["status"]["containerStatuses"][0]["allocatedResourcesStatus"].clone();
    let want = json!([{"name": "claim:g/b", "resources": [
        {"resourceID": "vendor.com/gpu=y", "health": "Unhealthy", "message": "hot"}]}]);
    cluster.wait_pod("web", "an unhealthy device", |p| health(p) == want).await;

    // A restart of the agent: what is ready stays so; the last pod takes the claim back.
    cluster.stop_node().await;
    cluster.start_node(|_| {}).await;
    cluster.delete_pod("web", 1).await;
    cluster.wait_gone("web").await;
    assert_eq!(driver.calls(), ["prepare one"]);
    cluster.delete_pod("two", 1).await;
    cluster.wait_gone("two").await;
    assert_eq!(driver.calls(), ["prepare one", "unprepare one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_went_meanwhile_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    let driver = DraDriver::start(&cluster.data(), DRIVER, behaviour()).unwrap();
    registered(&driver).await;
    claim(&cluster).await;
    driver.change(|b| b.refuses = Some("no power".into()));
    let web = cluster.pod("web", pod("web", json!([{"name": "g"}]))).await;
    reserve(&cluster, &[("web", &web)]).await;
    let path = "/api/v1/namespaces/default/events";
    let want = "NodePrepareResources failed for ResourceClaim one: no power";
    cluster
        .wait(path, want, |l| {
            l["items"]
                .as_array()
                .is_some_and(|i| i.iter().any(|e| e["message"].as_str().is_some_and(|m| m.ends_with(want))))
        })
        .await;
    driver.change(|b| b.refuses = None);
    cluster.wait_ready("web").await;
    cluster.stop_node().await;
    cluster.delete_pod("web", 0).await;
    cluster.wait_gone("web").await;
    cluster.start_node(|_| {}).await;
    for _ in 0..1000 {
        if driver.calls().last().is_some_and(|c| c == "unprepare one") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", driver.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_go_with_their_driver() {
    let mut cluster = Cluster::without_node().await;
    cluster
        .start_node(|config| config.managers.get_or_insert_default().dra_wiping_delay = Duration::ZERO)
        .await;
    cluster.wait(&format!("/api/v1/nodes/{NODE}"), "node", |n| n["metadata"]["name"] == NODE).await;
    let driver = DraDriver::start(&cluster.data(), DRIVER, behaviour()).unwrap();
    assert!(registered(&driver).await.0);
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let slice = |name: &str, node: &str| {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name},
            "spec": {"driver": DRIVER, "nodeName": node, "devices": [{"name": "x"}],
                     "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1}},
        })
    };
    cluster.post(slices, &slice("ours", NODE)).await;
    cluster.post(slices, &slice("theirs", "another")).await;
    drop(driver);
    cluster
        .wait(slices, "the slice's end", |l| {
            l["items"].as_array().is_some_and(|i| i.len() == 1 && i[0]["metadata"]["name"] == "theirs")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_of_other_versions_are_told() {
    let cluster = Cluster::start().await;
    let driver = DraDriver::start_with(&cluster.data(), DRIVER, &["v9.DRAPlugin"], behaviour()).unwrap();
    let (taken, error) = registered(&driver).await;
    assert!(!taken && error.contains("none of services supported by the plugin"), "{error}");
    let old = DraDriver::start_with(&cluster.data(), "old.example.com", &["v1beta1.DRAPlugin"], behaviour())
        .unwrap();
    assert_eq!(registered(&old).await, (true, String::new()));
}
