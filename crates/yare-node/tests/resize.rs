//! CPU and memory of pods that run: agreed to or not, brought into force in order, waiting for room, across restarts of
//! the agent.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::Cluster;
use serde_json::{Value, json};
use yare_node::NodeConfig;
use yare_node::managers::ManagerSettings;
use yare_runtime::ContainerStats;

const MIB: u64 = 1 << 20;

/// A container; the name says what it does about memory: `r…` restarts.
fn container(name: &str, resources: Value) -> Value {
    let policy = if name.starts_with('r') { "RestartContainer" } else { "NotRequired" };
    json!({"name": name, "image": "present:1", "command": ["run"], "resources": resources,
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}]})
}

/// Requests are limits, as for a Guaranteed pod.
fn exact(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn requests(cpu: &str) -> Value {
    json!({"requests": {"cpu": cpu}})
}

fn spec(containers: &[Value]) -> Value {
    json!({"containers": containers, "terminationGracePeriodSeconds": 1})
}

/// A machine of two processors.
fn two_processors(config: &mut NodeConfig) {
    let mut capacity = yare_node::Capacity::detect(&config.data_dir, 110);
    (capacity.cpu_milli, capacity.memory_bytes) = (2000, 4 << 30);
    config.capacity = Some(capacity);
}

async fn cluster() -> Cluster {
    let mut cluster = Cluster::without_node().await;
    cluster.start_node(two_processors).await;
    cluster
}

async fn resize(cluster: &Cluster, pod: &str, change: Value) -> Value {
    let path = format!("/api/v1/namespaces/default/pods/{pod}/resize");
    let body = json!({"spec": change});
    let (code, answer) = cluster.call("PATCH", &path, "application/strategic-merge-patch+json", &body).await;
    assert_eq!(code, 200, "{answer}");
    answer
}

async fn resize_one(cluster: &Cluster, pod: &str, name: &str, resources: Value) {
    resize(cluster, pod, json!({"containers": [{"name": name, "resources": resources}]})).await;
}

fn resize_condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Whether nothing is to be done, and the first container has this much CPU in force.
fn has(pod: &Value, cpu: &str) -> bool {
    let status = &pod["status"]["containerStatuses"][0];
    let done = ["PodResizePending", "PodResizeInProgress"].iter().all(|k| resize_condition(pod, k).is_none());
    done && status["resources"]["requests"]["cpu"] == cpu && status["allocatedResources"]["cpu"] == cpu
}

fn updates(cluster: &Cluster) -> Vec<String> {
    cluster.runtime.calls().into_iter().filter(|c| c.starts_with("update ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_always_holds_what_its_containers_may_use() {
    let cluster = cluster().await;
    cluster
        .pod("web", spec(&[container("a", exact("500m", "64Mi")), container("b", exact("500m", "64Mi"))]))
        .await;
    cluster.wait_ready("web").await;
    let both = |a: Value, b: Value| json!({"containers": [{"name": "a", "resources": a}, {"name": "b", "resources": b}]});

    resize(&cluster, "web", both(exact("600m", "96Mi"), exact("400m", "64Mi"))).await;
    let pod = cluster.wait_pod("web", "resize", |p| has(p, "600m")).await;
    let bytes = |n: u64| n * MIB;
    // The pod's CPU stays as it is: nothing to raise, and the smaller container goes first.
    let want = [
        format!("update pod web memory={}", bytes(160)),
        format!("update a memory={}", bytes(96)),
        format!("update pod web memory={}", bytes(160)),
        "update b shares=409 quota=40000".to_owned(),
        "update a shares=614 quota=60000".to_owned(),
        "update pod web shares=1024 quota=100000".to_owned(),
    ];
    assert_eq!(updates(&cluster), want);
    assert_eq!(pod["status"]["containerStatuses"][0]["resources"], exact("600m", "96Mi"));
    assert_eq!(pod["status"]["resources"], exact("1", "160Mi"));
    assert_eq!(pod["status"]["allocatedResources"], json!({"cpu": "1", "memory": "160Mi"}));
    assert_eq!(pod["status"]["observedGeneration"], pod["metadata"]["generation"]);
    let started = cluster.wait_event("web", "ResizeStarted").await;
    let text = started["message"].as_str().unwrap();
    assert!(
        text.starts_with("Pod resize started: {\"containers\":[{\"name\":\"a\",")
            && text.ends_with("\"generation\":2}")
    );
    let completed = cluster.wait_event("web", "ResizeCompleted").await;
    assert!(completed["message"].as_str().unwrap().starts_with("Pod resize completed: {"));

    resize(&cluster, "web", both(exact("300m", "64Mi"), exact("400m", "64Mi"))).await;
    cluster.wait_pod("web", "resize", |p| has(p, "300m")).await;
    // Down, the containers come before the pod.
    let want = [
        format!("update a memory={}", bytes(64)),
        format!("update pod web memory={}", bytes(128)),
        "update a shares=307 quota=30000".to_owned(),
        "update pod web shares=716 quota=70000".to_owned(),
    ];
    assert_eq!(updates(&cluster)[6..], want);
    assert!(!cluster.runtime.calls().iter().any(|c| c.starts_with("stop ")), "nothing was restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_room_gets_it_in_order() {
    let cluster = cluster().await;
    let with = |priority: i32, cpu: &str| {
        let mut spec = spec(&[container("a", requests(cpu))]);
        spec["priority"] = json!(priority);
        spec
    };
    let mut first = with(0, "500m");
    first.as_object_mut().unwrap().remove("priority");
    cluster
        .post(
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            &json!({"metadata": {"name": "high"}, "value": 1000}),
        )
        .await;
    let mut high = with(1000, "100m");
    high["priorityClassName"] = json!("high");
    for (name, spec) in [("big", with(0, "1")), ("low", first), ("high", high)] {
        cluster.pod(name, spec).await;
        cluster.wait_ready(name).await;
    }
    // 400m are free.
    resize_one(&cluster, "low", "a", requests("1")).await;
    let deferred =
        |p: &Value| resize_condition(p, "PodResizePending").is_some_and(|c| c["reason"] == "Deferred");
    let pod = cluster.wait_pod("low", "Deferred", deferred).await;
    let condition = resize_condition(&pod, "PodResizePending").unwrap();
    assert_eq!(
        condition["message"],
        "Node didn't have enough resource: cpu, requested: 1000, used: 1100, capacity: 2000"
    );
    assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("True"), &json!(2)));
    assert_eq!(pod["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "500m");
    let event = cluster.wait_event("low", "ResizeDeferred").await;
    assert!(
        event["message"].as_str().unwrap().contains("\"generation\":2,\"error\":\"Node didn't have"),
        "{event}"
    );
    resize_one(&cluster, "high", "a", requests("900m")).await;
    cluster.wait_pod("high", "Deferred", deferred).await;
    // A wish that fits is granted at once, whoever waits.
    resize_one(&cluster, "big", "a", requests("1100m")).await;
    cluster.wait_pod("big", "resize", |p| has(p, "1100m")).await;
    // What is given back goes to the more important one: 1300m are free beside it.
    resize_one(&cluster, "big", "a", requests("600m")).await;
    cluster.wait_pod("big", "resize", |p| has(p, "600m")).await;
    cluster.wait_pod("high", "resize", |p| has(p, "900m")).await;
    let pod = cluster.get("/api/v1/namespaces/default/pods/low").await;
    assert!(deferred(&pod), "{pod}");
    // A wish taken back is forgotten.
    resize_one(&cluster, "low", "a", requests("500m")).await;
    cluster.wait_pod("low", "no wish", |p| has(p, "500m")).await;
    resize_one(&cluster, "low", "a", requests("1")).await;
    cluster.wait_pod("low", "Deferred", deferred).await;
    cluster.delete_pod("big", 0).await;
    cluster.wait_pod("low", "resize", |p| has(p, "1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_below_what_is_in_use_waits() {
    let cluster = cluster().await;
    let uses = |bytes: u64| ContainerStats { memory_usage_bytes: bytes, ..ContainerStats::default() };
    cluster.runtime.set_use("a", uses(100 * MIB));
    cluster.pod("web", spec(&[container("a", exact("100m", "128Mi"))])).await;
    cluster.wait_ready("web").await;
    resize_one(&cluster, "web", "a", exact("100m", "64Mi")).await;
    let failed =
        |p: &Value| resize_condition(p, "PodResizeInProgress").is_some_and(|c| c["reason"] == "Error");
    let pod = cluster.wait_pod("web", "error", failed).await;
    let text = resize_condition(&pod, "PodResizeInProgress").unwrap()["message"].as_str().unwrap();
    assert_eq!(
        text,
        "cannot decrease memory limits: [attempting to set pod memory limit (67108864) below current usage \
         (104857600), attempting to set container \"a\" memory limit (67108864) below current usage (104857600)]"
    );
    cluster.wait_event("web", "ResizeError").await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["allocatedResources"]["memory"], "64Mi");
    assert_eq!(status["resources"]["limits"]["memory"], "128Mi");
    assert_eq!(updates(&cluster), Vec::<String>::new());
    // It is tried again; here something else wakes the pod before that.
    cluster.runtime.set_use("a", uses(50 * MIB));
    let label = json!({"metadata": {"labels": {"look": "again"}}});
    cluster.patch("/api/v1/namespaces/default/pods/web", &label).await;
    let pod = cluster.wait_pod("web", "resize", |p| has(p, "100m")).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"], "64Mi");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_restarts_where_its_policy_says_so() {
    let cluster = cluster().await;
    let mut web = spec(&[container("r", exact("100m", "64Mi")), container("b", exact("100m", "64Mi"))]);
    // Its end would be success: it starts again all the same.
    web["restartPolicy"] = json!("OnFailure");
    cluster.pod("web", web).await;
    cluster.wait_ready("web").await;
    for (cpu, memory, restarts) in [("200m", "64Mi", 0), ("200m", "128Mi", 1), ("100m", "64Mi", 2)] {
        resize_one(&cluster, "web", "r", exact(cpu, memory)).await;
        let pod = cluster
            .wait_pod("web", "resize", |p| {
                has(p, cpu)
                    && p["status"]["containerStatuses"][0]["restartCount"] == restarts
                    && p["status"]["containerStatuses"][0]["state"]["running"].is_object()
            })
            .await;
        assert_eq!(pod["status"]["containerStatuses"][0]["resources"], exact(cpu, memory));
    }
    let event = cluster.wait_event("web", "Killing").await;
    assert_eq!(event["message"], "Container r resize requires restart");
    let (_, config) = cluster.runtime.container_named("r").unwrap();
    assert_eq!(config.resources.memory_limit_bytes, Some(64 << 20));
    assert_eq!(cluster.runtime.calls().iter().filter(|c| *c == "stop r").count(), 2);
    assert!(!cluster.runtime.calls().contains(&"stop b".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_agreed_upon_outlives_the_agent() {
    let mut cluster = cluster().await;
    for (name, cpu) in [("web", "500m"), ("more", "500m"), ("other", "900m")] {
        cluster.pod(name, spec(&[container("a", requests(cpu))])).await;
        cluster.wait_ready(name).await;
    }
    cluster.stop_node().await;
    // One wish that fits and one that does not.
    resize_one(&cluster, "web", "a", requests("600m")).await;
    resize_one(&cluster, "more", "a", requests("1")).await;
    cluster.start_node(two_processors).await;
    cluster.wait_pod("web", "resize", |p| has(p, "600m")).await;
    let pending = |p: &Value| resize_condition(p, "PodResizePending").is_some();
    let pod = cluster.wait_pod("more", "Deferred", pending).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "500m");
    assert!(!cluster.runtime.calls().iter().any(|c| c.starts_with("stop ")));
    // Without its files a node goes by what it told before.
    cluster.stop_node().await;
    for file in ["allocated_pods_state", "actuated_pods_state"] {
        let _ = std::fs::remove_file(cluster.data().join(file));
    }
    cluster.delete_pod("other", 0).await;
    cluster.start_node(two_processors).await;
    cluster.wait_pod("more", "resize", |p| has(p, "1")).await;
    assert_eq!(updates(&cluster).iter().filter(|c| c.starts_with("update a")).count(), 2);
    // A file that was damaged stops the node before it does harm.
    cluster.stop_node().await;
    let file = cluster.data().join("allocated_pods_state");
    std::fs::write(&file, "{\"data\":\"{}\",\"checksum\":1}").unwrap();
    let config = NodeConfig::new(
        cluster.client(),
        cluster.runtime.clone(),
        "node-1",
        "127.0.0.1".parse().unwrap(),
        cluster.data(),
    );
    let error = yare_node::Node::start(config).await.err().unwrap().to_string();
    assert!(error.contains("please drain this node and delete"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_a_size_of_its_own() {
    let cluster = cluster().await;
    let declared = |n: &Value| {
        let features = n["status"]["declaredFeatures"].as_array();
        let wanted = ["InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"];
        features.is_some_and(|f| wanted.iter().all(|name| f.contains(&json!(name))))
    };
    cluster.wait("/api/v1/nodes/node-1", "declared features", declared).await;
    let mut web = spec(&[container("a", requests("100m"))]);
    web["resources"] = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "256Mi"}});
    web["initContainers"] = json!([{"name": "side", "image": "present:1", "command": ["run"], "restartPolicy": "Always",
        "resources": requests("50m")}]);
    cluster.pod("web", web).await;
    cluster.wait_ready("web").await;
    resize(
        &cluster,
        "web",
        json!({
            "resources": {"requests": {"cpu": "600m"}, "limits": {"cpu": "1500m", "memory": "512Mi"}},
            "initContainers": [{"name": "side", "resources": requests("200m")}],
        }),
    )
    .await;
    let pod = cluster
        .wait_pod("web", "resize", |p| {
            p["status"]["resources"]["limits"]["memory"] == "512Mi" && has(p, "100m")
        })
        .await;
    let whole = json!({"requests": {"cpu": "600m", "memory": "256Mi"}, "limits": {"cpu": "1500m", "memory": "512Mi"}});
    assert_eq!(pod["status"]["resources"]["limits"], whole["limits"], "{}", pod["status"]["resources"]);
    assert_eq!(pod["status"]["resources"]["requests"]["cpu"], "600m");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["resources"]["requests"]["cpu"], "200m");
    let (status, _) = cluster.runtime.container_named("a").unwrap();
    // Without limits of its own it has the pod's.
    assert_eq!(
        (status.resources.cpu_quota_us, status.resources.memory_limit_bytes),
        (Some(150_000), Some(512 << 20))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_of_ones_own_are_not_resized() {
    let mut cluster = Cluster::without_node().await;
    cluster
        .start_node(|config| {
            two_processors(config);
            config.resources = Some(yare_node::ResourceSettings {
                system_reserved: [("cpu".to_owned(), "500m".to_owned())].into(),
                ..yare_node::ResourceSettings::default()
            });
            config.managers =
                Some(ManagerSettings { cpu_policy: "static".into(), ..ManagerSettings::default() });
        })
        .await;
    cluster.pod("web", spec(&[container("a", exact("500m", "64Mi"))])).await;
    cluster.wait_ready("web").await;
    resize_one(&cluster, "web", "a", exact("600m", "64Mi")).await;
    let pending = |p: &Value| resize_condition(p, "PodResizePending").is_some();
    let pod = cluster.wait_pod("web", "Infeasible", pending).await;
    let condition = resize_condition(&pod, "PodResizePending").unwrap();
    assert_eq!(condition["reason"], "Infeasible");
    assert_eq!(
        condition["message"],
        "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\""
    );
    cluster.wait_event("web", "ResizeInfeasible").await;
    // Memory alone is another thing.
    resize_one(&cluster, "web", "a", exact("500m", "128Mi")).await;
    cluster.wait_pod("web", "resize", |p| has(p, "500m")).await;
    tokio::time::timeout(Duration::from_secs(15), async {
        while !updates(&cluster).iter().any(|c| c == &format!("update a memory={}", 128 * MIB)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}
