//! Namespaces, garbage collection, endpoints and nodes against the real API server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Cluster, condition, names, template};
use serde_json::{Value, json};
use yare_client::{
    CONFIG_MAPS, Change, ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, NODES, ObjectKey, PODS, REPLICA_SETS,
    SECRETS, SERVICE_ACCOUNTS, SERVICES,
};
use yare_controllers::{
    Config, Context, Controllers, Error, Keys, Next, Reconcile, Watch, api::Propagation, table::Row,
};

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_furnished_and_emptied() {
    let cluster = Cluster::start().await;
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "team"}})).await;
    cluster.get(&SERVICE_ACCOUNTS, "team", "default").await;
    let ca = cluster.get(&CONFIG_MAPS, "team", "kube-root-ca.crt").await;
    assert_eq!(ca["data"]["ca.crt"], "CERTIFICATE");
    // What is published comes back, right.
    cluster.merge(&CONFIG_MAPS, "team", "kube-root-ca.crt", json!({"data": {"ca.crt": "x"}})).await;
    cluster
        .until_is(&CONFIG_MAPS, "team", "kube-root-ca.crt", |m| m["data"]["ca.crt"] == "CERTIFICATE")
        .await;
    cluster.delete(&SERVICE_ACCOUNTS, "team", "default", Propagation::Background).await;
    cluster.get(&SERVICE_ACCOUNTS, "team", "default").await;

    let set = json!({"metadata": {"name": "rs"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "rs"}}, "template": template("rs", "one", "runs")}});
    cluster.create(&REPLICA_SETS, "team", set).await;
    cluster.until_is(&REPLICA_SETS, "team", "rs", |s| s["status"]["readyReplicas"] == 2).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    cluster.create(&CONFIG_MAPS, "team", held).await;
    cluster.delete(&NAMESPACES, "", "team", Propagation::Background).await;
    let waiting = cluster
        .until_is(&NAMESPACES, "", "team", |n| {
            condition(n, "NamespaceFinalizersRemaining").is_some_and(|c| c["status"] == "True")
        })
        .await;
    let message = condition(&waiting, "NamespaceContentRemaining").unwrap()["message"].clone();
    assert_eq!(message, "Some resources are remaining: configmaps. has 1 resource instances");
    cluster.merge(&CONFIG_MAPS, "team", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster
        .until("namespace to go", || async {
            cluster.find(&NAMESPACES, "", "team").await.is_none().then_some(())
        })
        .await;
    cluster.stop().await;
}

async fn family(cluster: &Cluster, name: &str, blocking: bool) {
    let owner = cluster.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": name}})).await;
    let child = json!({"metadata": {"name": format!("{name}-child"), "ownerReferences": [{
        "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner.uid(), "blockOwnerDeletion": blocking}]}});
    let child = cluster.create(&CONFIG_MAPS, "default", child).await;
    let grandchild = json!({"metadata": {"name": format!("{name}-grandchild"), "ownerReferences": [{
        "apiVersion": "v1", "kind": "ConfigMap", "name": child.name(), "uid": child.uid(), "blockOwnerDeletion": blocking}]}});
    cluster.create(&CONFIG_MAPS, "default", grandchild).await;
}

fn has(maps: &[Value], name: &str) -> bool {
    names(maps).contains(&name)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_collected_in_every_way() {
    let cluster = Cluster::start().await;
    for name in ["background", "foreground", "orphan"] {
        family(&cluster, name, true).await;
    }
    // Owned by something that never existed.
    let lost = json!({"metadata": {"name": "lost", "ownerReferences": [{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "0"}]}});
    cluster.create(&CONFIG_MAPS, "default", lost).await;
    cluster.until_list(&CONFIG_MAPS, "default", |m| !has(m, "lost")).await;

    cluster.delete(&CONFIG_MAPS, "default", "background", Propagation::Background).await;
    cluster
        .until_list(&CONFIG_MAPS, "default", |m| {
            !has(m, "background-child") && !has(m, "background-grandchild")
        })
        .await;

    cluster.delete(&CONFIG_MAPS, "default", "foreground", Propagation::Foreground).await;
    cluster
        .until_list(&CONFIG_MAPS, "default", |m| {
            let (owner, child) = (has(m, "foreground"), has(m, "foreground-child"));
            assert!(owner || !child, "the owner must go last");
            !owner && !child && !has(m, "foreground-grandchild")
        })
        .await;

    cluster.delete(&CONFIG_MAPS, "default", "orphan", Propagation::Orphan).await;
    cluster.until_list(&CONFIG_MAPS, "default", |m| !has(m, "orphan")).await;
    let child = cluster.get(&CONFIG_MAPS, "default", "orphan-child").await;
    assert!(child["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{child:#}");
    assert!(cluster.find(&CONFIG_MAPS, "default", "orphan-grandchild").await.is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_pods() {
    let cluster = Cluster::start().await;
    let service = json!({"metadata": {"name": "web", "labels": {"team": "x"}}, "spec": {
        "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    cluster.create(&SERVICES, "default", service).await;
    let of_web = |s: &[Value]| {
        s.iter()
            .filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
            .cloned()
            .collect::<Vec<_>>()
    };
    let empty = cluster.until_list(&ENDPOINT_SLICES, "default", |s| of_web(s).len() == 1).await;
    assert_eq!(of_web(&empty)[0]["metadata"]["labels"]["team"], "x");
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one", "runs")}});
    cluster.create(&REPLICA_SETS, "default", set).await;
    let ready = |s: &[Value], n: usize| {
        let web = of_web(s);
        let endpoints: Vec<Value> =
            web.iter().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default()).collect();
        endpoints.len() == n && endpoints.iter().all(|e| e["conditions"]["ready"] == true)
    };
    let slices = cluster.until_list(&ENDPOINT_SLICES, "default", |s| ready(s, 2)).await;
    let slices = of_web(&slices);
    assert_eq!(slices.len(), 1, "the empty slice was filled, not replaced");
    assert_eq!(slices[0]["ports"][0], json!({"name": "http", "port": 8080, "protocol": "TCP"}));
    assert_eq!(slices[0]["endpoints"][0]["nodeName"], "n1");
    assert_eq!(slices[0]["endpoints"][0]["targetRef"]["kind"], "Pod");
    cluster
        .until_is(&ENDPOINTS, "default", "web", |e| {
            e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 2)
        })
        .await;
    cluster.merge(&REPLICA_SETS, "default", "web", json!({"spec": {"replicas": 0}})).await;
    cluster.until_list(&ENDPOINT_SLICES, "default", |s| ready(s, 0)).await;
    cluster
        .until_is(&ENDPOINTS, "default", "web", |e| e["subsets"].as_array().is_none_or(Vec::is_empty))
        .await;
    cluster.delete(&SERVICES, "default", "web", Propagation::Background).await;
    cluster.until_list(&ENDPOINT_SLICES, "default", |s| of_web(s).is_empty()).await;
    cluster
        .until("Endpoints to go", || async {
            cluster.find(&ENDPOINTS, "default", "web").await.is_none().then_some(())
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_nodes_are_noticed_and_their_pods_go() {
    let config = Config {
        cluster_cidrs: vec!["10.42.0.0/16".into()],
        node_monitor_grace_period: Duration::from_millis(500),
        node_eviction_rate: 100.0,
        ..Config::default()
    };
    let cluster = Cluster::with(config).await;
    let node = cluster.until_is(&NODES, "", "n1", |n| n["spec"]["podCIDR"].is_string()).await;
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.42.0.0/24"]));
    let unknown = cluster
        .until_is(&NODES, "", "n1", |n| {
            condition(n, "Ready").is_some_and(|c| c["reason"] == "NodeStatusUnknown")
        })
        .await;
    assert_eq!(condition(&unknown, "Ready").unwrap()["message"], "Kubelet stopped posting node status.");
    let tainted = cluster.until_is(&NODES, "", "n1", |n| n["spec"]["taints"].is_array()).await;
    assert_eq!(tainted["spec"]["taints"][0]["key"], "node.kubernetes.io/unreachable");
    assert_eq!(tainted["spec"]["taints"][0]["effect"], "NoSchedule");
    assert!(
        !tainted["spec"]["taints"].as_array().unwrap().iter().any(|t| t["effect"] == "NoExecute"),
        "with every node silent nobody is evicted"
    );
    // Somebody taints it by hand: pods that do not tolerate that go.
    let pod = json!({"metadata": {"name": "p", "labels": {"fate": "runs"}}, "spec": {
        "containers": [{"name": "c", "image": "i"}]}});
    cluster.create(&PODS, "default", pod).await;
    cluster.until_is(&PODS, "default", "p", |p| p["spec"]["nodeName"] == "n1").await;
    let taints = json!({"spec": {"taints": [{"key": "fire", "effect": "NoExecute"}]}});
    cluster.merge(&NODES, "", "n1", taints).await;
    cluster
        .until("pod to go", || async { cluster.find(&PODS, "default", "p").await.is_none().then_some(()) })
        .await;
    cluster.stop().await;
}

/// Makes an object for every ConfigMap, and counts how often it tries.
struct Copies(Context);

static TRIES: AtomicUsize = AtomicUsize::new(0);

#[async_trait::async_trait]
impl Reconcile for Copies {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        TRIES.fetch_add(1, Ordering::SeqCst);
        let copy = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"generateName": "copy-"}});
        self.0.api.create(&SECRETS, &key.namespace, &copy).await?;
        Ok(Next::Done)
    }
}

fn marked(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(map) = change.new.as_ref().filter(|map| map.label("copy").is_some()) {
        add(map.key().clone());
    }
}

static COPIES: &[Row] = &[Row {
    name: "copies",
    account: "",
    description: "For a test.",
    watches: &[Watch { resource: CONFIG_MAPS, keys: Keys::With(marked), gate: None }],
    make: |context| Arc::new(Copies(context.clone())),
    workers: 1,
}];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_tried_again_where_a_namespace_goes() {
    let cluster = Cluster::start().await;
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "going"}})).await;
    let map = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    cluster.create(&CONFIG_MAPS, "going", map).await;
    cluster.delete(&NAMESPACES, "", "going", Propagation::Background).await;
    cluster
        .until_is(&CONFIG_MAPS, "going", "held", |map| !map["metadata"]["deletionTimestamp"].is_null())
        .await;
    let copies = Controllers::start_rows(&cluster.client, Config::default(), COPIES);
    cluster.merge(&CONFIG_MAPS, "going", "held", json!({"metadata": {"labels": {"copy": "1"}}})).await;
    cluster.until("the first try", || async { (TRIES.load(Ordering::SeqCst) > 0).then_some(()) }).await;
    // In this time a key that is tried again comes back six times.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(TRIES.load(Ordering::SeqCst), 1);
    // It is tried again when there is news.
    cluster.merge(&CONFIG_MAPS, "going", "held", json!({"metadata": {"labels": {"copy": "2"}}})).await;
    cluster.until("the second try", || async { (TRIES.load(Ordering::SeqCst) == 2).then_some(()) }).await;
    copies.shutdown().await;
    cluster.merge(&CONFIG_MAPS, "going", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.until_gone(&NAMESPACES, "", "going").await;
    cluster.stop().await;
}
