//! Which node a pod gets, or which reasons it is told, as data.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{cached, cluster, node, pod};
use yare_scheduler::{cluster::Cluster, cycle, plugins::Events, pod::PodInfo};

/// The node, or the message.
fn place(cluster: &Cluster, pod: Value) -> String {
    let pod = PodInfo::new(cached(&pod)).unwrap();
    cycle::schedule(&pod, cluster, &mut 0, 7).unwrap_or_else(|why| why.message())
}

fn request(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

/// What it shows, nodes, pods, the new pod, where it goes.
type Case = (&'static str, Vec<Value>, Vec<Value>, Value, &'static str);

#[test]
fn filters() {
    let zone = |z: &str| json!({"metadata": {"labels": {"zone": z}}});
    let required = |operator: &str, values: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "zone", "operator": operator, "values": values}]}]}}}}})
    };
    let anti = json!({"spec": {"affinity": {"podAntiAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    let near = json!({"spec": {"affinity": {"podAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "b"}}, "topologyKey": "zone"}]}}}});
    let spread = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let on = |name: &str, node: &str, extra: Value| {
        let mut out = pod(name, extra);
        out["spec"]["nodeName"] = node.into();
        out
    };
    let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}});
    // Wants, allocated, in force, why it waits.
    let resized = |wants: &str, allocated: &str, in_force: &str, reason: Value| {
        json!({
            "metadata": {"generation": 2},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": wants}}}]},
            "status": {
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason.as_str().unwrap_or_default()}],
                "containerStatuses": [{"name": "c", "allocatedResources": {"cpu": allocated},
                    "resources": {"requests": {"cpu": in_force}}}]}})
    };
    let tolerant = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    let cases: Vec<Case> = vec![
        ("no nodes", vec![], vec![], json!({}), "no nodes available to schedule pods"),
        ("any node", vec![node("n", json!({}))], vec![], json!({}), "n"),
        (
            "cpu",
            vec![node("n", json!({}))],
            vec![on("p", "n", request("3"))],
            request("2"),
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            "what a pod that shrinks has not given back is not free",
            vec![node("n", json!({}))],
            vec![on("p", "n", resized("1", "1", "3", Value::Null))],
            request("2"),
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            "what a pod waits for is not free",
            vec![node("n", json!({}))],
            vec![on("p", "n", resized("3", "1", "1", json!("Deferred")))],
            request("2"),
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            "what a pod cannot get is",
            vec![node("n", json!({}))],
            vec![on("p", "n", resized("9", "1", "1", json!("Infeasible")))],
            request("3"),
            "n",
        ),
        ("exactly full", vec![node("n", json!({}))], vec![on("p", "n", request("3"))], request("1"), "n"),
        (
            "two reasons",
            vec![
                node("a", json!({"spec": {"unschedulable": true}})),
                node("b", taint("NoSchedule")),
                node("c", taint("NoExecute")),
            ],
            vec![],
            json!({}),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s).",
        ),
        ("tolerated", vec![node("n", taint("NoSchedule"))], vec![], tolerant, "n"),
        (
            "preferred taint",
            vec![node("a", taint("PreferNoSchedule")), node("b", json!({}))],
            vec![],
            json!({}),
            "b",
        ),
        (
            "too many pods",
            vec![node("n", json!({"status": {"allocatable": {"pods": "1"}}}))],
            vec![on("p", "n", json!({}))],
            json!({}),
            "0/1 nodes are available: 1 Too many pods.",
        ),
        (
            "a thousand pods, as quantities write it",
            vec![node("n", json!({"status": {"allocatable": {"pods": "1k"}}}))],
            vec![on("p", "n", json!({}))],
            json!({}),
            "n",
        ),
        (
            "extended resource",
            vec![node("n", json!({}))],
            vec![],
            json!({"spec": {"containers": [{"resources": {"requests": {"example.com/gpu": "1"}}}]}}),
            "0/1 nodes are available: 1 Insufficient example.com/gpu.",
        ),
        (
            "selector",
            vec![node("a", zone("1")), node("b", zone("2"))],
            vec![],
            json!({"spec": {"nodeSelector": {"zone": "2"}}}),
            "b",
        ),
        (
            "affinity",
            vec![node("a", zone("1")), node("b", zone("2"))],
            vec![],
            required("NotIn", json!(["1"])),
            "b",
        ),
        (
            "no such zone",
            vec![node("a", zone("1"))],
            vec![],
            required("In", json!(["3"])),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            "host port",
            vec![node("n", json!({}))],
            vec![on("p", "n", port.clone())],
            port,
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
        ),
        (
            "anti-affinity",
            vec![node("n", json!({}))],
            vec![on("p", "n", json!({}))],
            anti.clone(),
            "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.",
        ),
        (
            "anti-affinity of those there",
            vec![node("n", json!({}))],
            vec![on("p", "n", anti)],
            json!({}),
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.",
        ),
        (
            "affinity to pods",
            vec![node("a", zone("1")), node("b", zone("2"))],
            vec![on("p", "b", json!({"metadata": {"labels": {"app": "b"}}}))],
            near,
            "b",
        ),
        (
            "spread",
            vec![node("a", zone("1")), node("b", zone("2"))],
            vec![on("p", "a", json!({}))],
            spread.clone(),
            "b",
        ),
        (
            "spread without label",
            vec![node("a", json!({}))],
            vec![],
            spread,
            "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label).",
        ),
        (
            "least allocated",
            vec![node("a", json!({})), node("b", json!({}))],
            vec![on("p", "a", request("2"))],
            request("1"),
            "b",
        ),
    ];
    for (what, nodes, pods, extra, expected) in cases {
        assert_eq!(place(&cluster(&nodes, &pods), pod("new", extra)), expected, "{what}");
    }
}

#[test]
fn init_containers_and_sidecars_count_as_they_run() {
    let sidecar = |cpu: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    let plain = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
    let cases = [
        (json!({"containers": [plain("1"), plain("500m")]}), 1500),
        (json!({"initContainers": [plain("2")], "containers": [plain("1")]}), 2000),
        (json!({"initContainers": [sidecar("1"), plain("2")], "containers": [plain("1")]}), 3000),
        (json!({"initContainers": [plain("2"), sidecar("1")], "containers": [plain("1")]}), 2000),
        (json!({"containers": [plain("1")], "overhead": {"cpu": "250m"}}), 1250),
        (json!({"containers": [plain("1")], "resources": {"requests": {"cpu": "3"}}}), 3000),
    ];
    for (spec, expected) in cases {
        let info = PodInfo::new(cached(&pod("p", json!({"spec": spec})))).unwrap();
        assert_eq!(info.requests.cpu_milli, expected, "{spec}");
    }
}

#[test]
fn pods_of_a_node_that_comes_later_are_counted() {
    let mut placed = pod("p", request("4"));
    placed["spec"]["nodeName"] = "late".into();
    let mut cluster = cluster(&[], &[placed]);
    cluster.set_node(cached(&node("late", json!({})))).unwrap();
    assert_eq!(place(&cluster, pod("new", request("1"))), "0/1 nodes are available: 1 Insufficient cpu.");
    cluster.remove_pod(&yare_client::ObjectKey::new("default", "p"));
    assert_eq!(place(&cluster, pod("new", request("1"))), "late");
}

#[test]
fn a_pod_that_gives_back_is_news() {
    let held = |cpu: &str| {
        let mut pod = pod("p", request(cpu));
        pod["spec"]["nodeName"] = "n".into();
        PodInfo::new(cached(&pod)).unwrap()
    };
    let mut cluster = cluster(&[node("n", json!({}))], &[]);
    for (cpu, news) in [("2", false), ("2", false), ("3", false), ("1", true)] {
        assert_eq!(cluster.set_pod(held(cpu)), news, "{cpu}");
    }
}

#[test]
fn nodes_declare_what_pods_need() {
    let able = json!({"status": {"declaredFeatures": ["A", "RestartAllContainersOnContainerExits"]}});
    let needy = || {
        json!({"spec": {"containers": [{"name": "c", "image": "i", "restartPolicyRules": [
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]}]}})
    };
    let read = |extra: Value| PodInfo::new(cached(&pod("new", extra))).unwrap();
    let place = |nodes: &[Value], asks: bool, extra: Value| {
        let cluster = cluster(nodes, &[]).asking_for_features(asks);
        cycle::schedule(&read(extra), &cluster, &mut 0, 7).map_err(|why| why.message())
    };
    let nodes = [node("a", json!({})), node("b", able)];
    assert_eq!(place(&nodes, true, needy()).unwrap(), "b");
    let none = "0/1 nodes are available: 1 node(s) didn't match Pod's required features.";
    assert_eq!(place(&nodes[..1], true, needy()).unwrap_err(), none);
    assert_eq!(place(&nodes[..1], false, needy()).unwrap(), "a");
    assert_eq!(place(&nodes[..1], true, json!({})).unwrap(), "a");
    let apart = json!({"spec": {"hostNetwork": true, "hostUsers": false}});
    assert_eq!(place(&nodes[..1], true, apart).unwrap_err(), none);
    // Nobody's end would help; a node that declares it would.
    let cluster = cluster(&nodes[..1], &[]).asking_for_features(true);
    let why = cycle::schedule(&read(needy()), &cluster, &mut 0, 7).unwrap_err();
    assert!(why.helpable.is_empty() && why.events.any_of(Events::NODE_FEATURES));
}
