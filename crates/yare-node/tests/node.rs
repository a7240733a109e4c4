//! The node's own object: who makes it, what its configuration changes of it, and a machine that was started anew.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, NODE, condition, configuration};
use serde_json::{Value, json};

const PATH: &str = "/api/v1/nodes/node-1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1";

async fn ready(cluster: &Cluster) -> Value {
    cluster.wait(PATH, "Ready", |n| condition(n, "Ready") == "True").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_somebody_else_registers() {
    let mut cluster = Cluster::without_node().await;
    cluster.runtime.set_images(&[("large", 2000), ("small", 10)], 1 << 40, 1 << 40);
    let yaml = "registerNode: false\nnodeLeaseDurationSeconds: 8\nnodeStatusMaxImages: 1";
    cluster.start_node(|config| config.configuration = configuration(yaml)).await;
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"by": "hand"}}});
    // A node that registers itself would have taken the name.
    let made = cluster.post("/api/v1/nodes", &node).await;
    let node = ready(&cluster).await;
    assert_eq!(node["metadata"]["uid"], made["metadata"]["uid"]);
    let labels = node["metadata"]["labels"].as_object().unwrap();
    assert!(labels.contains_key("by") && !labels.contains_key("kubernetes.io/hostname"), "{labels:?}");
    assert_eq!(node["status"]["images"].as_array().unwrap().len(), 1);
    assert_eq!(node["status"]["images"][0]["names"][0], "large:1");
    let declared = [
        "ExtendWebSocketsToKubelet",
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers",
        "RestartAllContainersOnContainerExits",
    ];
    assert_eq!(node["status"]["declaredFeatures"], json!(declared));
    let lease = cluster.wait(LEASE, "lease", |l| l["spec"]["holderIdentity"] == NODE).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 8);
    let first = lease["spec"]["renewTime"].clone();
    cluster.wait(LEASE, "another renewal", |l| l["spec"]["renewTime"] != first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_started_anew() {
    let mut cluster = Cluster::without_node().await;
    let boot =
        |id: &'static str| move |config: &mut yare_node::NodeConfig| config.boot_id = Some(id.to_owned());
    cluster.start_node(boot("first")).await;
    ready(&cluster).await;
    let spec = json!({"containers": [{"name": "web", "image": "present:1", "command": ["run"]}]});
    cluster.pod("web", spec).await;
    let pod = cluster.wait_ready("web").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.stop_node().await;

    // The same start of the machine: nothing is said.
    cluster.start_node(boot("first")).await;
    cluster.wait_event(NODE, "NodeReady").await;
    let events = cluster.get("/api/v1/namespaces/default/events").await;
    let rebooted = |event: &&Value| event["reason"] == "Rebooted";
    assert!(events["items"].as_array().unwrap().iter().find(rebooted).is_none(), "{events:#}");
    cluster.stop_node().await;

    // Another one: whatever ran has ended, and nobody was there to see it.
    cluster.runtime.kill_sandbox();
    cluster.start_node(boot("second")).await;
    let event = cluster.wait_event(NODE, "Rebooted").await;
    assert_eq!(event["message"], "Node node-1 has been rebooted, boot id: second");
    assert_eq!(event["type"], "Warning");
    cluster.wait(PATH, "the boot id", |n| n["status"]["nodeInfo"]["bootID"] == "second").await;
    let again = cluster
        .wait_pod("web", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    let last = &again["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{again:#}");
    cluster.wait_ready("web").await;
}

/// A controller that heard nothing calls the node unknown, and people remove labels: both are put right at the next
/// look.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_made_of_the_node_is_put_right() {
    let mut cluster = Cluster::without_node().await;
    let yaml = "nodeStatusUpdateFrequency: 200ms\nnodeStatusReportFrequency: 1h";
    cluster.start_node(|config| config.configuration = configuration(yaml)).await;
    let before = ready(&cluster).await;
    let transition = |node: &Value| {
        let mut conditions = node["status"]["conditions"].as_array().unwrap().iter();
        conditions.find(|c| c["type"] == "Ready").unwrap()["lastTransitionTime"].clone()
    };
    let unknown = json!({"type": "Ready", "status": "Unknown", "lastTransitionTime": "2020-01-01T00:00:00Z"});
    let patch = json!({"status": {"conditions": [unknown]}});
    let strategic = "application/strategic-merge-patch+json";
    let (code, node) = cluster.call("PATCH", &format!("{PATH}/status"), strategic, &patch).await;
    assert_eq!((code, condition(&node, "Ready")), (200, "Unknown"));
    let after = ready(&cluster).await;
    let (before, after) = (transition(&before), transition(&after));
    assert!(after.as_str() >= before.as_str() && after != "2020-01-01T00:00:00Z", "{before} {after}");

    cluster
        .patch(
            PATH,
            &json!({"metadata": {"labels": {"kubernetes.io/os": null, "kubernetes.io/arch": "z80"}}}),
        )
        .await;
    cluster
        .wait(PATH, "labels", |n| {
            let labels = &n["metadata"]["labels"];
            labels["kubernetes.io/os"] == "linux" && labels["kubernetes.io/arch"] != "z80"
        })
        .await;
}
