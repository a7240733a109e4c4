//! Device plugins: registration, allocation, health, restarts of either side, the pod resources API.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{Cluster, NODE};
use serde_json::{Value, json};
use yare_grpc::{Client, Code};
use yare_node::managers::pod_resources::api::{self, *};
use yare_testkit::{DeviceAnswer, DeviceBehaviour, DevicePlugin, PluginDevice};

const GPU: &str = "vendor.com/gpu";

fn dir(cluster: &Cluster) -> PathBuf {
    cluster.data().join("device-plugins")
}

fn gpus(count: u32) -> Value {
    json!({
        "containers": [{"name": "main", "image": "present:1", "command": ["run"],
                        "env": [{"name": "OURS", "value": "container"}],
                        "resources": {"limits": {GPU: count.to_string()}}}],
        "terminationGracePeriodSeconds": 0,
    })
}

fn named(ids: &[&str]) -> Vec<PluginDevice> {
    ids.iter().map(|id| PluginDevice::new(id)).collect()
}

async fn wait_capacity(cluster: &Cluster, all: &str, healthy: &str) {
    let path = format!("/api/v1/nodes/{NODE}");
    cluster
        .wait(&path, "capacity", |n| {
            n["status"]["capacity"][GPU] == all && n["status"]["allocatable"][GPU] == healthy
        })
        .await;
}

async fn resources(cluster: &Cluster, pod: &str) -> Vec<(String, Vec<String>)> {
    let client = Client::unix(cluster.data().join("pod-resources/kubelet.sock"));
    let request = GetPodResourcesRequest { pod_name: pod.to_owned(), pod_namespace: "default".to_owned() };
    let answer: GetPodResourcesResponse =
        client.call(api::GET, request, Duration::from_secs(5)).await.unwrap();
    let mut ids: Vec<_> = Vec::new();
    for container in answer.pod_resources.unwrap().containers {
        ids.extend(container.devices.into_iter().map(|d| (d.resource_name, d.device_ids)));
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_its_devices() {
    let cluster = Cluster::start().await;
    let behaviour = DeviceBehaviour {
        answer: DeviceAnswer {
            env: [("OURS", "plugin"), ("THEIRS", "plugin")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            mounts: vec![("/driver".into(), "/opt/driver".into(), true)],
            devices: vec![("/dev/gpu".into(), "/dev/null".into(), "rw".into())],
            annotations: [("vendor.com/note".to_owned(), "x".to_owned())].into(),
            cdi: vec!["vendor.com/gpu=0".into()],
        },
        prefers: Some(vec!["b".into()]),
        pre_start: true,
        ..DeviceBehaviour::default()
    };
    let plugin =
        DevicePlugin::start_with(&dir(&cluster), GPU, named(&["a", "b", "c"]), behaviour).await.unwrap();
    wait_capacity(&cluster, "3", "3").await;
    cluster.pod("web", gpus(1)).await;
    let pod = cluster.wait_ready("web").await;
    assert_eq!(plugin.calls(), ["prefer 1 of a b c", "allocate b", "start b"]);
    let (_, config) = cluster.runtime.container_named("main").unwrap();
    let env: std::collections::BTreeMap<_, _> = config.env.iter().cloned().collect();
    assert_eq!((env["OURS"].as_str(), env["THEIRS"].as_str()), ("container", "plugin"));
    assert_eq!(env["YARE_TEST_DEVICES"], "b");
    let device = &config.devices[0];
    assert_eq!((device.container_path.to_str(), device.permissions.as_str()), (Some("/dev/gpu"), "rw"));
    let mount = config.mounts.iter().find(|m| m.container_path.ends_with("driver")).unwrap();
    assert!(mount.readonly);
    assert_eq!(mount.host_path, PathBuf::from("/opt/driver"));
    assert_eq!(config.annotations["vendor.com/note"], "x");
    assert_eq!(config.cdi_devices, ["vendor.com/gpu=0"]);
    let health = |pod: &Value| pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"].clone();
    assert_eq!(health(&pod), json!([{"name": GPU, "resources": [{"resourceID": "b", "health": "Healthy"}]}]));
    assert_eq!(resources(&cluster, "web").await, [(GPU.to_owned(), vec!["b".to_owned()])]);

    // It falls ill.
    let mut devices = named(&["a", "b", "c"]);
    devices[1].healthy = false;
    plugin.list(devices);
    wait_capacity(&cluster, "3", "2").await;
    cluster
        .wait_pod("web", "an unhealthy device", |p| health(p)[0]["resources"][0]["health"] == "Unhealthy")
        .await;

    // Two more are free; a third pod is turned away in upstream's words.
    cluster.pod("two", gpus(2)).await;
    cluster.wait_ready("two").await;
    cluster.pod("more", gpus(1)).await;
    let pod = cluster.wait_phase("more", "Failed").await;
    assert_eq!(pod["status"]["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for vendor.com/gpu. \
         Requested: 1, Available: 0, which is unexpected"
    );

    // What a pod had is free when it is gone.
    cluster.delete_pod("two", 1).await;
    cluster.wait_gone("two").await;
    cluster.pod("again", gpus(1)).await;
    cluster.wait_ready("again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_advertise_is_allocatable() {
    const DONGLE: &str = "example.com/dongle";
    let mut cluster = Cluster::start().await;
    let path = format!("/api/v1/nodes/{NODE}");
    let advertise = |amount: Value| json!({"status": {"capacity": {DONGLE: amount}}});
    cluster.wait(&path, "the node", |n| n["status"]["allocatable"]["cpu"].is_string()).await;
    cluster.patch(&format!("{path}/status"), &advertise(json!("2"))).await;
    cluster.wait(&path, "allocatable dongles", |n| n["status"]["allocatable"][DONGLE] == "2").await;

    // Nobody but the node judges pods that come past the scheduler.
    let asks = |count: &str| {
        json!({"containers": [{"name": "c", "image": "present:1",
            "resources": {"limits": {DONGLE: count}}}], "terminationGracePeriodSeconds": 0})
    };
    cluster.pod("fits", asks("2")).await;
    cluster.wait_ready("fits").await;
    cluster.pod("more", asks("1")).await;
    let more = cluster.wait_phase("more", "Failed").await;
    assert_eq!(more["status"]["reason"], format!("OutOf{DONGLE}"), "{more}");

    cluster.patch(&format!("{path}/status"), &advertise(Value::Null)).await;
    cluster.wait(&path, "no dongles", |n| n["status"]["allocatable"].get(DONGLE).is_none()).await;

    // A node that was made anew has what is advertised anew.
    cluster.patch(&format!("{path}/status"), &advertise(json!("2"))).await;
    cluster.wait(&path, "allocatable dongles", |n| n["status"]["allocatable"][DONGLE] == "2").await;
    cluster.stop_node().await;
    cluster.start_node(|_| {}).await;
    let anew = cluster.wait(&path, "no dongles", |n| n["status"]["capacity"][DONGLE] == "0").await;
    assert_eq!(anew["status"]["allocatable"][DONGLE], "0", "{anew}");
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_may_start_anew() {
    let mut cluster = Cluster::start().await;
    let mut plugin = DevicePlugin::start(&dir(&cluster), GPU, named(&["a", "b"])).await.unwrap();
    wait_capacity(&cluster, "2", "2").await;
    cluster.pod("web", gpus(1)).await;
    cluster.wait_ready("web").await;

    // The plugin goes: nothing of it is healthy, and pods run on.
    plugin.stop().await;
    wait_capacity(&cluster, "2", "0").await;
    cluster.pod("late", gpus(1)).await;
    let late = cluster.wait_phase("late", "Failed").await;
    let text = late["status"]["message"].as_str().unwrap();
    assert!(
        text.contains("no healthy devices present; cannot allocate unhealthy devices vendor.com/gpu"),
        "{text}"
    );
    plugin.restart().await.unwrap();
    wait_capacity(&cluster, "2", "2").await;

    // The node agent goes: who holds what comes from its checkpoint, and the resource is there but empty.
    cluster.stop_node().await;
    cluster.start_node(|_| {}).await;
    wait_capacity(&cluster, "0", "0").await;
    assert_eq!(resources(&cluster, "web").await, [(GPU.to_owned(), vec!["a".to_owned()])]);
    plugin.restart().await.unwrap();
    wait_capacity(&cluster, "2", "2").await;
    cluster.pod("next", gpus(1)).await;
    cluster.wait_ready("next").await;
    assert_eq!(resources(&cluster, "next").await, [(GPU.to_owned(), vec!["b".to_owned()])]);

    // A pod that went while the agent was away has left its devices.
    cluster.stop_node().await;
    cluster.delete_pod("next", 0).await;
    cluster.wait_gone("next").await;
    cluster.start_node(|_| {}).await;
    // The node's object still says what the agent of before knew.
    wait_capacity(&cluster, "0", "0").await;
    plugin.restart().await.unwrap();
    wait_capacity(&cluster, "2", "2").await;
    cluster.pod("last", gpus(1)).await;
    cluster.wait_ready("last").await;
    assert_eq!(resources(&cluster, "last").await, [(GPU.to_owned(), vec!["b".to_owned()])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_refuses_is_told() {
    let cluster = Cluster::start().await;
    let behaviour = DeviceBehaviour { refuses: Some("no power".into()), ..DeviceBehaviour::default() };
    let plugin = DevicePlugin::start_with(&dir(&cluster), GPU, named(&["a"]), behaviour).await.unwrap();
    wait_capacity(&cluster, "1", "1").await;
    cluster.pod("web", gpus(1)).await;
    let pod = cluster.wait_phase("web", "Failed").await;
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Allocate failed due to rpc error: code = Unknown desc = no power, which is unexpected"
    );
    // The device is not lost by it.
    plugin.change(|b| b.refuses = None);
    cluster.pod("next", gpus(1)).await;
    cluster.wait_ready("next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_is_tried_again() {
    let cluster = Cluster::start().await;
    let behaviour =
        DeviceBehaviour { pre_start: true, refuses_start: Some("hot".into()), ..DeviceBehaviour::default() };
    let _plugin = DevicePlugin::start_with(&dir(&cluster), GPU, named(&["a"]), behaviour).await.unwrap();
    wait_capacity(&cluster, "1", "1").await;
    cluster.pod("web", gpus(1)).await;
    let waiting = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = cluster
        .wait_pod("web", "a refused start", |p| waiting(p)["reason"] == "CreateContainerConfigError")
        .await;
    assert_eq!(
        waiting(&pod)["message"],
        "device plugin PreStartContainer rpc failed with err: rpc error: code = Unknown desc = hot"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_plugins_are_refused() {
    let cluster = Cluster::start().await;
    let plugin = DevicePlugin::start(&dir(&cluster), GPU, named(&["a"])).await.unwrap();
    for (version, name, want) in [
        (
            "v1",
            GPU,
            "rpc error: code = Unknown desc = requested API version \"v1\" is not supported by kubelet. \
             Supported version is [\"v1beta1\"]",
        ),
        ("v1beta1", "cpu", "rpc error: code = Unknown desc = the ResourceName \"cpu\" is invalid"),
    ] {
        let error = plugin.register_as(version, name).await.unwrap_err();
        assert_eq!(error.to_string(), want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_resources_are_listed() {
    let cluster = Cluster::start().await;
    let socket = cluster.data().join("pod-resources/kubelet.sock");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o750));
    let mut devices = named(&["a", "b"]);
    devices[1].nodes = vec![0, 1];
    let _plugin = DevicePlugin::start(&dir(&cluster), GPU, devices).await.unwrap();
    wait_capacity(&cluster, "2", "2").await;
    cluster.pod("web", gpus(2)).await;
    cluster.wait_ready("web").await;
    cluster
        .pod("plain", json!({"containers": [{"name": "c", "image": "present:1", "command": ["run"]}]}))
        .await;
    cluster.wait_ready("plain").await;
    let client = Client::unix(&socket);
    let wait = Duration::from_secs(5);
    let list: ListPodResourcesResponse =
        client.call(api::LIST, ListPodResourcesRequest {}, wait).await.unwrap();
    let names: Vec<_> = list.pod_resources.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["plain", "web"]);
    let rows = |devices: &[ContainerDevices]| -> Vec<(String, Option<i64>)> {
        devices.iter().map(|d| (d.device_ids.join(","), d.topology.as_ref().map(|t| t.nodes[0].id))).collect()
    };
    let want = vec![("a".to_owned(), None), ("b".to_owned(), Some(0)), ("b".to_owned(), Some(1))];
    assert_eq!(rows(&list.pod_resources[1].containers[0].devices), want);
    assert!(list.pod_resources[0].containers[0].devices.is_empty());
    let all: AllocatableResourcesResponse =
        client.call(api::ALLOCATABLE, AllocatableResourcesRequest {}, wait).await.unwrap();
    assert_eq!(rows(&all.devices), want);
    let request = GetPodResourcesRequest { pod_name: "nobody".into(), pod_namespace: "default".into() };
    let error = client.call::<_, GetPodResourcesResponse>(api::GET, request, wait).await.unwrap_err();
    assert_eq!(error.message(), "pod nobody in namespace default not found");
    let mut refused = 0;
    for _ in 0..200 {
        let answer: Result<ListPodResourcesResponse, _> =
            client.call(api::LIST, ListPodResourcesRequest {}, wait).await;
        if let Err(status) = answer {
            assert_eq!(
                (status.code(), status.message()),
                (Code::ResourceExhausted, "rejected by rate limit")
            );
            refused += 1;
        }
    }
    assert!(refused > 0);
}

/// A machine of two NUMA nodes with four processors each, two threads a core.
fn machine() -> yare_node::managers::Machine {
    use yare_node::managers::machine::{CpuPlace, Machine, NumaNode};
    let place =
        |cpu: u32| CpuPlace { core: cpu % 4, socket: cpu % 4 / 2, node: cpu % 4 / 2, cache: cpu % 4 / 2 };
    let node = |id| NumaNode { id, memory_bytes: 8 << 30, ..NumaNode::default() };
    Machine { cpus: (0..8).map(|c| (c, place(c))).collect(), nodes: vec![node(0), node(1)] }
}

fn managed(config: &mut yare_node::NodeConfig) {
    config.capacity = Some(yare_node::Capacity {
        cpu_milli: 8000,
        memory_bytes: 16 << 30,
        ephemeral_storage_bytes: 1 << 40,
        hugepages: std::collections::BTreeMap::new(),
        pods: 110,
        pids: 32768,
        swap_bytes: 0,
    });
    let amounts = [("cpu", "1"), ("memory", "924Mi")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    // With the eviction threshold of 100 MiB it comes to 1 GiB.
    config.resources.get_or_insert_default().system_reserved = amounts.into();
    let managers = config.managers.get_or_insert_default();
    managers.cpu_policy = "static".into();
    managers.memory_policy = "Static".into();
    managers.topology_policy = "single-numa-node".into();
    managers.reserved_memory = vec![(0, [("memory".to_owned(), "1Gi".to_owned())].into())];
    managers.machine = Some(machine());
}

fn guaranteed(cpu: &str, memory: &str) -> Value {
    let mut spec = gpus(0);
    let amounts = json!({"cpu": cpu, "memory": memory});
    spec["containers"][0]["resources"] = json!({"limits": amounts, "requests": amounts});
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_get_parts_of_the_machine() {
    let mut cluster = Cluster::without_node().await;
    cluster.start_node(managed).await;
    let cpuset = |name: &str| {
        let id = cluster.runtime.container_named(name).map(|(status, _)| status.resources);
        id.map(|r| (r.cpuset_cpus.unwrap_or_default(), r.cpuset_mems.unwrap_or_default()))
    };
    let named = |mut spec: Value, name: &str| {
        spec["containers"][0]["name"] = json!(name);
        spec
    };
    let plain = json!({"containers": [{"name": "plain", "image": "present:1", "command": ["run"]}]});
    cluster.pod("plain", plain).await;
    cluster.wait_ready("plain").await;
    assert_eq!(cpuset("plain"), Some(("0-7".to_owned(), String::new())));

    // Two whole processors: a core of one node, and the memory of that node. Nobody else is on them.
    cluster.pod("a", named(guaranteed("2", "2Gi"), "a")).await;
    cluster.wait_ready("a").await;
    assert_eq!(cpuset("a"), Some(("1,5".to_owned(), "0".to_owned())));
    let config = cluster.runtime.container_named("a").unwrap().1;
    assert_eq!(config.resources.cpu_quota_us, Some(-1));
    for _ in 0..500 {
        if cpuset("plain").is_some_and(|(cpus, _)| cpus == "0,2-4,6-7") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cpuset("plain").unwrap().0, "0,2-4,6-7");
    cluster.pod("b", named(guaranteed("4", "2Gi"), "b")).await;
    cluster.wait_ready("b").await;
    assert_eq!(cpuset("b"), Some(("2-3,6-7".to_owned(), "1".to_owned())));

    // What does not come from one node is turned away.
    cluster.pod("c", named(guaranteed("2", "1Gi"), "c")).await;
    let pod = cluster.wait_phase("c", "Failed").await;
    assert_eq!(pod["status"]["reason"], "TopologyAffinityError");
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Resources cannot be allocated with Topology locality"
    );

    let client = Client::unix(cluster.data().join("pod-resources/kubelet.sock"));
    let request = GetPodResourcesRequest { pod_name: "b".into(), pod_namespace: "default".into() };
    let answer: GetPodResourcesResponse =
        client.call(api::GET, request, Duration::from_secs(5)).await.unwrap();
    let container = &answer.pod_resources.unwrap().containers[0];
    assert_eq!(container.cpu_ids, [2, 3, 6, 7]);
    let memory = &container.memory[0];
    assert_eq!((memory.memory_type.as_str(), memory.size), ("memory", 2 << 30));

    // After a restart all is as it was; what a pod had is shared again when it goes.
    cluster.stop_node().await;
    cluster.start_node(managed).await;
    cluster.delete_pod("b", 1).await;
    cluster.wait_gone("b").await;
    let cpuset = |name: &str| {
        cluster.runtime.container_named(name).and_then(|(status, _)| status.resources.cpuset_cpus)
    };
    for _ in 0..500 {
        if cpuset("plain").as_deref() == Some("0,2-4,6-7") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cpuset("plain").as_deref(), Some("0,2-4,6-7"));
    assert_eq!(cpuset("a").as_deref(), Some("1,5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_stop_the_node() {
    let cluster = Cluster::without_node().await;
    let start = async |change: fn(&mut yare_node::NodeConfig)| {
        let mut config = yare_node::NodeConfig::new(
            cluster.client(),
            cluster.runtime.clone(),
            NODE,
            "127.0.0.1".parse().unwrap(),
            cluster.dir.path().join("other"),
        );
        managed(&mut config);
        change(&mut config);
        yare_node::Node::start(config).await.err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (change, want) in [
        (
            (|c| c.managers.get_or_insert_default().topology_policy = "odd".into())
                as fn(&mut yare_node::NodeConfig),
            "topology manager: unknown policy: \"odd\"",
        ),
        (
            |c| c.managers.get_or_insert_default().cpu_policy = "odd".into(),
            "CPU manager: unknown policy: \"odd\"",
        ),
        (
            |c| c.managers.get_or_insert_default().memory_policy = "odd".into(),
            "memory manager: unknown policy: \"odd\"",
        ),
        (
            |c| c.managers.get_or_insert_default().reserved_cpus = "0-1".into(),
            "CPU manager: [cpumanager] unable to reserve the required amount of CPUs (size of 0-1 did not equal 1)",
        ),
    ] {
        assert_eq!(start(change).await, want);
    }
}
