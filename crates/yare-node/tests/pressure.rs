//! A node that runs short: conditions, garbage, evictions, limits of local storage, refusals.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{Cluster, NODE, condition};
use parking_lot::Mutex;
use serde_json::{Value, json};
use yare_node::{Layout, NodeConfig, Observation, Observations, Observer, Signal};
use yare_runtime::{ContainerState, ContainerStats};

const NODE_PATH: &str = "/api/v1/nodes/node-1";

/// What is left of something, as long as the rule says so.
type Rule = Box<dyn Fn() -> Option<(Signal, Observation)> + Send>;

/// A machine of which a test says what is left.
#[derive(Default)]
struct Scripted {
    left: Mutex<Observations>,
    rules: Mutex<Vec<Rule>>,
}

impl Scripted {
    fn set(&self, signal: Signal, available: u64, capacity: u64) {
        self.left.lock().insert(signal, Observation { available, capacity });
    }

    /// While `holds`, so little is left.
    fn shortage(&self, signal: Signal, available: u64, holds: impl Fn() -> bool + Send + 'static) {
        let capacity = self.left.lock()[&signal].capacity;
        let left = Observation { available, capacity };
        self.rules.lock().push(Box::new(move || holds().then_some((signal, left))));
    }
}

#[async_trait]
impl Observer for Scripted {
    async fn layout(&self) -> Result<Layout, String> {
        Ok(Layout::Single)
    }

    async fn observe(&self) -> Observations {
        let mut left = self.left.lock().clone();
        left.extend(self.rules.lock().iter().filter_map(|rule| rule()));
        left
    }
}

/// A node that looks all the time, on a machine that has everything.
async fn node(change: impl FnOnce(&mut NodeConfig)) -> (Cluster, Arc<Scripted>) {
    let mut cluster = Cluster::without_node().await;
    let machine = Arc::new(Scripted::default());
    machine.set(Signal::MemoryAvailable, 8 << 30, 16 << 30);
    machine.set(Signal::NodeFsAvailable, 500 << 30, 1000 << 30);
    let observer = machine.clone();
    cluster
        .start_node(|config| {
            config.observer = Some(observer);
            let resources = config.resources.get_or_insert_default();
            let eviction = &mut resources.eviction;
            eviction.monitoring_period = Duration::from_millis(20);
            eviction.pressure_transition_period = Duration::from_secs(1);
            resources.volume_stats_period = Duration::from_millis(20);
            change(config);
        })
        .await;
    cluster.wait(NODE_PATH, "Ready", |n| condition(n, "Ready") == "True").await;
    (cluster, machine)
}

fn spec(request: Option<&str>, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "present:1", "command": ["run"]}]});
    if let Some(memory) = request {
        spec["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

fn is_evicted(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted"
}

/// Under memory pressure the pod that uses more than it asked for goes, and nobody else; the node says so, takes no
/// best-effort pods, and recovers.
#[tokio::test(flavor = "multi_thread")]
async fn memory_pressure_ends_the_pod_that_is_to_blame() {
    let (cluster, machine) = node(|_| {}).await;
    // The names of containers are how the runtime is told what they use.
    let named = |name: &str, request: &str| {
        let mut spec = spec(Some(request), json!({}));
        spec["containers"][0]["name"] = json!(name);
        spec
    };
    cluster.pod("modest", named("modest", "200Mi")).await;
    cluster.pod("greedy", named("greedy", "100Mi")).await;
    let mut critical = named("critical", "1Mi");
    critical["priorityClassName"] = json!("system-node-critical");
    cluster.pod("critical", critical).await;
    let using = |bytes| ContainerStats { memory_working_set_bytes: bytes, ..ContainerStats::default() };
    cluster.runtime.set_use("modest", using(150 << 20));
    cluster.runtime.set_use("greedy", using(300 << 20));
    cluster.runtime.set_use("critical", using(900 << 20));
    for name in ["modest", "greedy", "critical"] {
        cluster.wait_ready(name).await;
    }
    let runtime = cluster.runtime.clone();
    let runs =
        move || runtime.container_named("greedy").is_some_and(|(s, _)| s.state == ContainerState::Running);
    machine.shortage(Signal::MemoryAvailable, 90 << 20, runs);
    let pod = cluster.wait_pod("greedy", "evicted", is_evicted).await;
    let message = pod["status"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. Container greedy was using \
         300Mi, request is 100Mi, has larger consumption of memory. "
    );
    assert_eq!(condition(&pod, "DisruptionTarget"), "True");
    let disrupted = pod["status"]["conditions"].as_array().unwrap();
    let disrupted = disrupted.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disrupted["reason"], "TerminationByKubelet");
    assert_eq!(disrupted["message"], message);
    let event = cluster.wait_event("greedy", "Evicted").await;
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["metadata"]["annotations"]["starved_resource"], "memory");
    assert_eq!(event["metadata"]["annotations"]["offending_containers"], "greedy");
    let event = cluster.wait_event(NODE, "EvictionThresholdMet").await;
    assert_eq!(event["message"], "Attempting to reclaim memory");
    cluster.wait_event(NODE, "NodeHasInsufficientMemory").await;
    for name in ["modest", "critical"] {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        assert_eq!(cluster.get(&path).await["status"]["phase"], "Running");
    }
    let back = |n: &Value| condition(n, "MemoryPressure") == "False";
    cluster.wait(NODE_PATH, "no pressure after a while", back).await;
}

/// A threshold with a grace is reported at once and acted upon later; the pod has the time that both allow.
#[tokio::test(flavor = "multi_thread")]
async fn soft_thresholds_wait() {
    let (cluster, machine) = node(|config| {
        let eviction = &mut config.resources.get_or_insert_default().eviction;
        eviction.soft = [("memory.available".into(), "1Gi".into())].into();
        eviction.soft_grace_period = [("memory.available".into(), "600ms".into())].into();
        eviction.max_pod_grace_period_s = 600;
    })
    .await;
    cluster.pod("soft", spec(None, json!({"terminationGracePeriodSeconds": 5}))).await;
    cluster.wait_ready("soft").await;
    let began = tokio::time::Instant::now();
    machine.set(Signal::MemoryAvailable, 512 << 20, 16 << 30);
    cluster.wait(NODE_PATH, "pressure", |n| condition(n, "MemoryPressure") == "True").await;
    let path = "/api/v1/namespaces/default/pods/soft";
    if began.elapsed() < Duration::from_millis(500) {
        assert_eq!(cluster.get(path).await["status"]["phase"], "Running");
    }
    let pod = cluster.wait_pod("soft", "evicted", is_evicted).await;
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(
        pod["status"]["message"].as_str().unwrap().contains("Threshold quantity: 1Gi, available: 512Mi.")
    );
    // Best-effort pods are refused meanwhile; those that asked for something are not.
    let mut refused = spec(None, json!({}));
    refused["nodeName"] = json!(NODE);
    refused["automountServiceAccountToken"] = json!(false);
    let refused = json!({"metadata": {"name": "refused"}, "spec": refused});
    cluster.post("/api/v1/namespaces/default/pods", &refused).await;
    let pod = cluster.wait_pod("refused", "refused", is_evicted).await;
    assert_eq!(pod["status"]["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
}

/// Garbage first: where removing it is enough, no pod goes.
#[tokio::test(flavor = "multi_thread")]
async fn disk_pressure_is_met_with_garbage_first() {
    let (cluster, machine) =
        node(|config| config.resources.get_or_insert_default().image_gc.minimum_age = Duration::ZERO).await;
    cluster.runtime.set_images(&[("old", 100), ("older", 50)], 1000, 500);
    let mut done = spec(None, json!({"restartPolicy": "Never"}));
    done["containers"][0]["command"] = json!(["exit", "0"]);
    cluster.pod("done", done).await;
    cluster.pod("web", spec(None, json!({}))).await;
    cluster.wait_ready("web").await;
    cluster.wait_phase("done", "Succeeded").await;
    assert_eq!(cluster.runtime.counts().1, 2);
    // What is removed shows in what is left.
    let runtime = cluster.runtime.clone();
    machine.shortage(Signal::NodeFsAvailable, 1 << 30, move || !runtime.image_names().is_empty());
    let event = cluster.wait_event(NODE, "EvictionThresholdMet").await;
    assert_eq!(event["message"], "Attempting to reclaim ephemeral-storage");
    for _ in 0..500 {
        if cluster.runtime.counts().1 == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The container of the finished pod went; its status stays.
    assert_eq!(cluster.runtime.counts().1, 1);
    let pod = cluster.wait_phase("done", "Succeeded").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    // Disk pressure turns everybody away.
    cluster.wait(NODE_PATH, "pressure", |n| condition(n, "DiskPressure") == "True").await;
    cluster.wait(NODE_PATH, "no pressure", |n| condition(n, "DiskPressure") == "False").await;
    assert_eq!(cluster.get("/api/v1/namespaces/default/pods/web").await["status"]["phase"], "Running");
}

/// Volumes and logs are held to their limits by walking.
#[tokio::test(flavor = "multi_thread")]
async fn local_storage_is_limited() {
    let (cluster, _machine) = node(|_| {}).await;
    let volume = json!({"volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}]});
    let mut volume = spec(None, volume);
    // A volume that no container mounts is not made.
    volume["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let uid = cluster.pod("volume", volume).await;
    let mut limited = spec(None, json!({}));
    limited["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let logs_uid = cluster.pod("logs", limited.clone()).await;
    limited["containers"][0]["name"] = json!("layer");
    limited["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
    cluster.pod("layer", limited).await;
    cluster.pod("free", spec(None, json!({"volumes": [{"name": "data", "emptyDir": {}}]}))).await;
    for name in ["volume", "logs", "layer", "free"] {
        cluster.wait_ready(name).await;
    }
    let data = cluster.data().join("pods").join(&uid).join("volumes/kubernetes.io~empty-dir/data");
    std::fs::write(data.join("file"), vec![7; 2 << 20]).unwrap();
    let pod = cluster.wait_pod("volume", "evicted", is_evicted).await;
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ");
    // It did something wrong: nobody disrupted it.
    assert_eq!(condition(&pod, "DisruptionTarget"), "");
    let logs = cluster.dir.path().join("log/pods").join(format!("default_logs_{logs_uid}/c/0.log"));
    std::fs::write(logs, vec![b'x'; 2 << 20]).unwrap();
    let pod = cluster.wait_pod("logs", "evicted", is_evicted).await;
    assert_eq!(
        pod["status"]["message"],
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
    );
    let written = ContainerStats { writable_layer_bytes: 3 << 20, ..ContainerStats::default() };
    cluster.runtime.set_use("layer", written);
    cluster.wait_pod("layer", "evicted", is_evicted).await;
    assert_eq!(cluster.get("/api/v1/namespaces/default/pods/free").await["status"]["phase"], "Running");
}

/// Images go when the disk is fuller than the high mark, as many as it takes, the unused ones only.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_collected() {
    let (cluster, _machine) = node(|config| {
        config.resources.get_or_insert_default().image_gc.minimum_age = Duration::ZERO;
        config.resources.get_or_insert_default().image_gc.period = Duration::from_millis(50);
    })
    .await;
    cluster.runtime.set_images(&[("a", 30), ("b", 30), ("c", 30)], 1000, 160);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.runtime.image_names().len(), 3, "below the high mark nothing goes");
    cluster.runtime.set_images(&[("a", 30), ("b", 30), ("c", 30)], 1000, 150);
    for _ in 0..500 {
        if cluster.runtime.image_names().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // 50 bytes were wanted: two images. The next round finds the disk as full as before and takes the third,
    // which is not enough.
    let event = cluster.wait_event(NODE, "FreeDiskSpaceFailed").await;
    let message = event["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("Insufficient free disk space on the node's image filesystem (85% of 1000 B used)."),
        "{message}"
    );
    cluster.wait_event(NODE, "ImageGCFailed").await;
    assert!(
        !cluster.runtime.calls().contains(&"remove image sha256:1".to_owned())
            || cluster.runtime.image_names().is_empty()
    );
}

/// What a node cannot give it does not promise; what makes no sense it refuses to start with.
#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_taken_off() {
    let (cluster, _machine) = node(|config| {
        let capacity = yare_node::Capacity {
            cpu_milli: 4000,
            memory_bytes: 8 << 30,
            ephemeral_storage_bytes: 100 << 30,
            hugepages: [].into(),
            pods: 110,
            pids: 32768,
            swap_bytes: 0,
        };
        config.capacity = Some(capacity);
        config.resources.get_or_insert_default().system_reserved = [("cpu".into(), "500m".into())].into();
        config.resources.get_or_insert_default().kube_reserved = [("memory".into(), "1Gi".into())].into();
    })
    .await;
    let status = cluster.get(NODE_PATH).await["status"].clone();
    assert_eq!(status["capacity"]["cpu"], "4");
    assert_eq!(status["allocatable"]["cpu"], "3500m");
    assert_eq!(status["allocatable"]["memory"], "7068Mi");
    let mut config = NodeConfig::new(
        cluster.client(),
        cluster.runtime.clone(),
        "other",
        "127.0.0.1".parse().unwrap(),
        cluster.data(),
    );
    config.resources.get_or_insert_default().kube_reserved = [("cpu".into(), "100k".into())].into();
    let error = yare_node::Node::start(config).await.err().unwrap().to_string();
    assert!(
        error.starts_with(
            "invalid Node Allocatable configuration. Resource \"cpu\" has a reservation of 100k but"
        ),
        "{error}"
    );
}
