//! Static pods and their mirrors, with a real API server and a scripted runtime.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;

use common::{Cluster, NODE};
use serde_json::{Value, json};

fn manifest(image: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {
            "containers": [{"name": "web", "image": image, "command": ["run"]}],
            "terminationGracePeriodSeconds": 1,
        },
    })
    .to_string()
}

const NAME: &str = "web-node-1";

async fn start() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::without_node().await;
    let manifests = cluster.dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let yaml = format!("staticPodPath: {}", manifests.display());
    cluster.start_node(|config| config.configuration = common::configuration(&yaml)).await;
    (cluster, manifests)
}

fn annotation<'a>(pod: &'a Value, name: &str) -> &'a str {
    pod["metadata"]["annotations"][name].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_runs_and_is_mirrored_changed_and_taken_away() {
    let (cluster, manifests) = start().await;
    let file = manifests.join("web.json");
    std::fs::write(&file, manifest("present:1")).unwrap();
    let first = cluster.wait_ready(NAME).await;
    assert_eq!(annotation(&first, "kubernetes.io/config.source"), "file");
    let digest = annotation(&first, "kubernetes.io/config.hash").to_owned();
    assert_eq!(annotation(&first, "kubernetes.io/config.mirror"), digest);
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(first["spec"]["nodeName"], NODE);

    // Who deletes the mirror deletes nothing that runs: it comes back with the same container.
    let container = first["status"]["containerStatuses"][0]["containerID"].clone();
    let uid = first["metadata"]["uid"].clone();
    cluster.delete_pod(NAME, 30).await;
    let again = cluster
        .wait_pod(NAME, "a new mirror", |p| {
            p["metadata"]["uid"].is_string()
                && p["metadata"]["uid"] != uid
                && common::condition(p, "Ready") == "True"
        })
        .await;
    assert_eq!(again["status"]["containerStatuses"][0]["containerID"], container);

    // Another manifest is another pod under the same name.
    std::fs::write(&file, manifest("present:2")).unwrap();
    let changed = cluster
        .wait_pod(NAME, "the new manifest", |p| {
            annotation(p, "kubernetes.io/config.hash") != digest && common::condition(p, "Ready") == "True"
        })
        .await;
    assert_eq!(changed["spec"]["containers"][0]["image"], "present:2");
    assert_ne!(changed["status"]["containerStatuses"][0]["containerID"], container);

    // One that cannot be run takes nothing else along, and hidden files are no manifests.
    std::fs::write(manifests.join("bad.json"), "{").unwrap();
    std::fs::write(manifests.join(".hidden.json"), manifest("present:3")).unwrap();
    std::fs::remove_file(&file).unwrap();
    cluster.wait_gone(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_agent_leaves_static_pods_alone() {
    let (mut cluster, manifests) = start().await;
    std::fs::write(manifests.join("web.json"), manifest("present:1")).unwrap();
    let before = cluster.wait_ready(NAME).await;
    cluster.stop_node().await;
    let yaml = format!("staticPodPath: {}", manifests.join("web.json").display());
    cluster.start_node(|config| config.configuration = common::configuration(&yaml)).await;
    // The file itself is named now, its place is the same.
    let path = format!("/api/v1/nodes/{NODE}");
    cluster.wait(&path, "Ready", |n| common::condition(n, "Ready") == "True").await;
    let after = cluster.wait_ready(NAME).await;
    for field in ["/metadata/uid", "/status/containerStatuses/0/containerID"] {
        assert_eq!(before.pointer(field), after.pointer(field), "{field}");
    }
    // What was taken away meanwhile ends, and so does its mirror.
    cluster.stop_node().await;
    cluster.start_node(|_| {}).await;
    cluster.wait_gone(NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_comes_back_too_early_begins_anew() {
    let mut cluster = Cluster::without_node().await;
    let manifests = cluster.dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    cluster
        .start_node(|config| {
            common::open(config);
            let yaml = format!(
                "staticPodPath: {}\nauthentication: {{anonymous: {{enabled: true}}}}\nauthorization: {{mode: AlwaysAllow}}",
                manifests.display()
            );
            config.configuration = common::configuration(&yaml);
        })
        .await;
    let file = manifests.join("web.json");
    let slow =
        manifest("present:1").replace("run", "ignore").replace("PeriodSeconds\":1", "PeriodSeconds\":5");
    std::fs::write(&file, slow).unwrap();
    let before = cluster.wait_ready(NAME).await;
    cluster.wait_metric("kubelet_restarted_pods_total{static=\"true\"} 0").await;
    let hidden = manifests.join(".web.json");
    std::fs::rename(&file, &hidden).unwrap();
    for _ in 0..1000 {
        if cluster.runtime.times("stop web") > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    std::fs::rename(&hidden, &file).unwrap();
    cluster.wait_metric("kubelet_restarted_pods_total{static=\"true\"} 1").await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    cluster.wait_pod(NAME, "another container", |p| id(p).is_string() && id(p) != id(&before)).await;
}
