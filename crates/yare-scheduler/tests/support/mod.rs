//! Pods and nodes as JSON, and clusters of them.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, missing_docs)]

use bytes::Bytes;
use serde_json::{Value, json};
use yare_client::Cached;
use yare_scheduler::{cluster::Cluster, pod::PodInfo};

pub fn cached(value: &Value) -> Cached {
    Cached::new(Bytes::from(value.to_string())).unwrap()
}

pub fn node(name: &str, extra: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    merge(&mut node, &extra);
    node
}

pub fn pod(name: &str, extra: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "i"}]},
    });
    merge(&mut pod, &extra);
    pod
}

pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

pub fn cluster(nodes: &[Value], pods: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(cached(node)).unwrap();
    }
    for pod in pods {
        cluster.set_pod(PodInfo::new(cached(pod)).unwrap());
    }
    cluster
}
