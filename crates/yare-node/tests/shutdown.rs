//! The machine shuts down: pods stop in their order, are told to have been stopped, and the machine waits for it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::logind::FakeLogind;
use common::{Cluster, NODE, condition, configuration};
use serde_json::{Value, json};
use yare_node::Logind;

const PERIODS: &str = "{shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s}";

async fn cluster(yaml: &str) -> (Cluster, FakeLogind) {
    let mut cluster = Cluster::without_node().await;
    let fake = FakeLogind::start(cluster.dir.path());
    let place = Logind { bus: fake.bus(), configuration: fake.configuration() };
    let yaml = yaml.trim_matches(['{', '}']).replace(", ", "\n");
    cluster
        .start_node(|config| {
            config.configuration = configuration(&yaml);
            config.logind = place;
        })
        .await;
    cluster.wait(&format!("/api/v1/nodes/{NODE}"), "Ready", |n| condition(n, "Ready") == "True").await;
    until("a lock", || fake.held() == 1).await;
    (cluster, fake)
}

async fn until(what: &str, mut good: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if good() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waiting for {what}");
}

fn pod(class: &str) -> Value {
    json!({
        "containers": [{"name": "main", "image": "present:1", "command": ["run"]}],
        "terminationGracePeriodSeconds": 1,
        "priorityClassName": class,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stop_by_priority_and_the_machine_waits() {
    let (cluster, fake) = cluster(PERIODS).await;
    // Half a minute is more than logind waits by itself.
    let set = std::fs::read_to_string(fake.configuration().join("99-kubelet.conf")).unwrap();
    assert!(set.contains("InhibitDelayMaxSec=30\n"), "{set}");
    cluster.pod("common", pod("")).await;
    cluster.pod("critical", pod("system-node-critical")).await;
    for name in ["common", "critical"] {
        cluster.wait_ready(name).await;
    }
    fake.prepare(true);
    for name in ["common", "critical"] {
        let pod = cluster.wait_phase(name, "Failed").await;
        assert_eq!(pod["status"]["reason"], "Terminated", "{pod:#}");
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(pod["status"]["message"], message);
        let target = pod["status"]["conditions"].as_array().unwrap();
        let target = target.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
        assert_eq!(
            (target["status"].as_str(), target["reason"].as_str(), target["message"].as_str()),
            (Some("True"), Some("TerminationByKubelet"), Some(message))
        );
    }
    until("the lock to be let go", || fake.held() == 0).await;
    let node = cluster
        .wait(&format!("/api/v1/nodes/{NODE}"), "not ready", |n| condition(n, "Ready") == "False")
        .await;
    let ready = node["status"]["conditions"].as_array().unwrap();
    let ready = ready.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(
        (ready["reason"].as_str(), ready["message"].as_str()),
        (Some("KubeletNotReady"), Some("node is shutting down"))
    );
    cluster.wait_event(NODE, "NodeShutdown").await;
    let times = std::fs::read_to_string(cluster.data().join("graceful_node_shutdown_state")).unwrap();
    let times: Value = serde_json::from_str(&times).unwrap();
    let [start, end] = ["startTime", "endTime"].map(|field| times[field].as_str().unwrap().to_owned());
    assert!(*"2026" <= *start && start <= end, "{times}");

    // Nobody comes any more, until it is called off.
    cluster.pod("late", pod("")).await;
    let late = cluster.wait_phase("late", "Failed").await;
    assert_eq!(late["status"]["reason"], "NodeShutdown", "{late:#}");
    fake.prepare(false);
    until("another lock", || fake.held() == 1).await;
    cluster.wait(&format!("/api/v1/nodes/{NODE}"), "ready again", |n| condition(n, "Ready") == "True").await;
    cluster.pod("later", pod("")).await;
    cluster.wait_ready("later").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn critical_pods_wait_for_the_others() {
    let (cluster, fake) = cluster("{shutdownGracePeriod: 20s, shutdownGracePeriodCriticalPods: 10s}").await;
    let slow = json!({
        "containers": [{"name": "main", "image": "present:1", "command": ["run"], "lifecycle": {
            "preStop": {"sleep": {"seconds": 2}}}}],
        "terminationGracePeriodSeconds": 5,
    });
    cluster.pod("slow", slow).await;
    cluster.pod("critical", pod("system-cluster-critical")).await;
    for name in ["slow", "critical"] {
        cluster.wait_ready(name).await;
    }
    fake.prepare(true);
    let path = "/api/v1/namespaces/default/pods";
    // Whenever the critical one is seen to have stopped, the other is seen so, too.
    cluster
        .wait(path, "both stopped", |list| {
            let failed = |name: &str| {
                let pods = list["items"].as_array().unwrap();
                pods.iter().any(|p| p["metadata"]["name"] == name && p["status"]["phase"] == "Failed")
            };
            assert!(!failed("critical") || failed("slow"), "{list:#}");
            failed("critical")
        })
        .await;
    until("the lock to be let go", || fake.held() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_comes_back_is_asked_again() {
    let (_cluster, fake) = cluster("{shutdownGracePeriod: 2s}").await;
    fake.hang_up();
    until("another lock", || {
        fake.held() == 1 && fake.calls().iter().filter(|c| *c == "Inhibit").count() == 2
    })
    .await;
    // Two seconds are less than logind waits anyway.
    assert!(!fake.configuration().exists());
}
