//! Images of containers and of volumes: pulled, or waited for with the reason why.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, condition};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_or_waited_for() {
    let cluster = Cluster::start().await;
    let spec = |image: &str, policy: &str| json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]});
    let reason = |p: &Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    cluster.pod("remote", spec("remote:1", "IfNotPresent")).await;
    cluster.pod("missing", spec("missing:1", "IfNotPresent")).await;
    cluster.pod("never", spec("nowhere:1", "Never")).await;
    cluster.wait_ready("remote").await;
    assert!(cluster.runtime.calls().contains(&"pull remote:1".to_owned()));
    let pod = cluster
        .wait_pod("missing", "ErrImagePull", |p| {
            ["ErrImagePull", "ImagePullBackOff"].contains(&reason(p).as_str())
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(condition(&pod, "PodReadyToStartContainers"), "True");
    cluster.wait_pod("never", "ErrImageNeverPull", |p| reason(p) == "ErrImageNeverPull").await;
    cluster.wait_event("missing", "Failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_volumes_are_pulled_as_those_of_containers() {
    let cluster = Cluster::start().await;
    let spec = |volume: &str, policy: &str| {
        json!({
            "containers": [
                {"name": "plain", "image": "present:1", "command": ["run"]},
                {"name": "mounts", "image": "present:1", "command": ["run"],
                 "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "sub"}]},
            ],
            "volumes": [{"name": "v", "image": {"reference": volume, "pullPolicy": policy}}],
            "terminationGracePeriodSeconds": 1,
        })
    };
    cluster.pod("fine", spec("remote:1", "IfNotPresent")).await;
    cluster.wait_ready("fine").await;
    let (_, config) = cluster.runtime.container_named("mounts").unwrap();
    let mount = config.mounts.iter().find(|m| m.image.is_some()).unwrap();
    assert_eq!(mount.image.as_deref(), Some("sha256:remote:1"), "what was pulled, whatever the tag becomes");
    assert_eq!(mount.user_specified_image, "remote:1");
    assert_eq!(mount.image_sub_path.as_deref(), Some(std::path::Path::new("sub")));
    assert!(mount.readonly);
    let event = cluster.wait_event("fine", "Pulling").await;
    assert_eq!(event["message"], "Pulling image \"remote:1\"");
    assert_eq!(event["involvedObject"].get("fieldPath"), None, "it is the pod's");

    let state = |pod: &Value, name: &str| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.into_iter().find(|s| s["name"] == name).unwrap_or_default()["state"].clone()
    };
    for (name, volume, policy, reasons) in [
        ("missing", "missing:1", "IfNotPresent", &["ErrImagePull", "ImagePullBackOff"][..]),
        ("never", "nowhere:1", "Never", &["ErrImageNeverPull"]),
    ] {
        cluster.pod(name, spec(volume, policy)).await;
        let pod = cluster
            .wait_pod(name, reasons[0], |pod| {
                reasons.contains(&state(pod, "mounts")["waiting"]["reason"].as_str().unwrap_or_default())
                    && state(pod, "plain").get("running").is_some()
            })
            .await;
        // Who does not mount it runs.
        assert_eq!(condition(&pod, "PodReadyToStartContainers"), "True");
        let event = cluster.wait_event(name, "Failed").await;
        let text = event["message"].as_str().unwrap();
        let own = ["Error: ErrImagePull", "Error: ErrImageNeverPull"].contains(&text);
        assert!(own || text.starts_with("Failed to pull image \"missing:1\": "), "{text}");
    }
    cluster.wait_event("missing", "BackOff").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_gives_up_its_place_among_the_pulls() {
    let cluster = Cluster::start().await;
    let pod = async |name: &str, image: &str| {
        cluster.pod(name, json!({"containers": [{"name": name, "image": image, "command": ["run"]}]})).await;
        cluster.wait_event(name, "Pulling").await;
    };
    let held = cluster.runtime.pulls.write().await;
    pod("first", "slow:1").await;
    cluster.wait_pod("first", "being pulled", |_| cluster.runtime.times("pull slow:1") == 1).await;
    pod("second", "unwanted:1").await;
    pod("third", "wanted:1").await;
    cluster.delete_pod("second", 1).await;
    cluster.wait_gone("second").await;
    drop(held);
    cluster.wait_ready("third").await;
    let calls = cluster.runtime.calls();
    let pulls: Vec<&str> = calls.iter().filter_map(|call| call.strip_prefix("pull ")).collect();
    assert_eq!(pulls, ["slow:1", "wanted:1"]);
}
