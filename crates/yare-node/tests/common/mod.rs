//! A node over a scripted runtime and a real API server in this process.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its part")]

pub mod logind;
pub mod runtime;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use yare_apiserver::{ApiServer, Config, User};
use yare_client::{Client, in_process};
use yare_node::config::{Configuration, Sources};
use yare_node::{KubeletServer, Node, NodeConfig, NodeHandle};
use yare_store::{Options, Store};

pub use runtime::FakeRuntime;

/// An API server, a runtime, and a node between them.
pub struct Cluster {
    pub api: ApiServer,
    pub runtime: Arc<FakeRuntime>,
    pub node: Option<NodeHandle>,
    pub dir: TempDir,
}

/// Volumes of pods that a test left running, or that it failed with, are mounted below the cluster's directory.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.node = None;
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
        for mount in mounts.filter(|mount| std::path::Path::new(mount).starts_with(self.dir.path())) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// What this machine has left is nothing that a test should depend on.
struct Plenty;

#[async_trait::async_trait]
impl yare_node::Observer for Plenty {
    async fn layout(&self) -> Result<yare_node::Layout, String> {
        Ok(yare_node::Layout::Single)
    }

    async fn observe(&self) -> yare_node::Observations {
        yare_node::Observations::new()
    }
}

pub const NODE: &str = "node-1";

impl Cluster {
    pub async fn start() -> Self {
        let mut cluster = Self::without_node().await;
        cluster.start_node(|_| {}).await;
        cluster
    }

    pub async fn without_node() -> Self {
        Self::with_api(|_| {}).await
    }

    /// Without a node, and with another configuration of the API server.
    pub async fn with_api(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(Options::new(dir.path().join("store")), yare_apiserver::indexer()).await.unwrap();
        let mut config = Config::new(store);
        config.advertise = Some(("127.0.0.1".parse().unwrap(), 6443));
        change(&mut config);
        let api = Box::pin(ApiServer::start(config)).await.unwrap();
        let runtime = FakeRuntime::new(dir.path().join("runtime"));
        let cluster = Cluster { api, runtime, node: None, dir };
        let account = json!({"metadata": {"name": "default"}});
        cluster.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        cluster
    }

    pub fn client(&self) -> Client {
        Client::new(in_process(self.api.service(User::admin())))
    }

    pub async fn start_node(&mut self, change: impl FnOnce(&mut NodeConfig)) {
        let data = self.dir.path().join("data");
        let mut config =
            NodeConfig::new(self.client(), self.runtime.clone(), NODE, "127.0.0.1".parse().unwrap(), &data);
        config.log_dir = self.dir.path().join("log");
        config.configuration = configuration("");
        config.observer = Some(Arc::new(Plenty));
        change(&mut config);
        self.node = Some(Node::start(config).await.unwrap());
    }

    pub async fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.shutdown().await;
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub async fn call(&self, method: &str, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(Full::new(bytes))
            .unwrap();
        let response = self.api.service(User::admin()).oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> Value {
        self.call("GET", path, "application/json", &Value::Null).await.1
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let (code, answer) = self.call("POST", path, "application/json", body).await;
        assert!(code < 300, "{path}: {answer}");
        answer
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Value {
        let (code, answer) = self.call("PATCH", path, "application/merge-patch+json", body).await;
        assert!(code < 300, "{path}: {answer}");
        answer
    }

    /// A pod bound to the node; `spec` needs `containers` only.
    pub async fn pod(&self, name: &str, mut spec: Value) -> String {
        spec["nodeName"] = json!(NODE);
        spec["automountServiceAccountToken"] = json!(false);
        spec["tolerations"] = json!([{"operator": "Exists"}]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let made = self.post("/api/v1/namespaces/default/pods", &pod).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    pub async fn delete_pod(&self, name: &str, grace: u32) {
        let path = format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds={grace}");
        let (code, answer) = self.call("DELETE", &path, "application/json", &Value::Null).await;
        assert!(code < 300, "{answer}");
    }

    /// Waits until the object at `path` satisfies `good`.
    pub async fn wait(&self, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1500 {
            last = self.get(path).await;
            if good(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waiting for {what}: {last:#}\nruntime: {:#?}", self.runtime.calls());
    }

    pub async fn wait_pod(&self, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("/api/v1/namespaces/default/pods/{name}"), what, good).await
    }

    pub async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_pod(name, phase, |p| p["status"]["phase"] == phase).await
    }

    pub async fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, "Ready", |p| condition(p, "Ready") == "True").await
    }

    /// Waits until the page `/metrics` of a node that was made [`open`] has this line.
    pub async fn wait_metric(&self, line: &str) {
        let address = self.node.as_ref().unwrap().address().unwrap();
        let mut last = String::new();
        for _ in 0..1000 {
            last = http_get(address, "/metrics").await.1;
            if last.contains(&format!("\n{line}\n")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let name = line.split(['{', ' ']).next().unwrap();
        let near: Vec<_> = last.lines().filter(|l| l.starts_with(name)).collect();
        panic!("no {line} in {near:#?}");
    }

    pub async fn wait_gone(&self, name: &str) {
        self.wait_pod(name, "gone", |p| p["code"] == 404).await;
    }

    /// Waits for an event of this reason about an object.
    pub async fn wait_event(&self, name: &str, reason: &str) -> Value {
        let path = "/api/v1/namespaces/default/events";
        let hit = |e: &&Value| e["involvedObject"]["name"] == name && e["reason"] == reason;
        let all = self
            .wait(path, reason, |l| l["items"].as_array().is_some_and(|i| i.iter().any(|e| hit(&e))))
            .await;
        all["items"].as_array().unwrap().iter().find(hit).unwrap().clone()
    }
}

/// `GET` over plain HTTP: the status and the body.
pub async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    (code, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The node's API is served over plain HTTP, and everybody is allowed.
pub fn open(config: &mut NodeConfig) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    config.server = Some(KubeletServer { listener, serving: None });
    let open = "authentication: {anonymous: {enabled: true}}\nauthorization: {mode: AlwaysAllow}";
    config.configuration = configuration(open);
}

/// The configuration of a node under test, with more fields as YAML.
pub fn configuration(yaml: &str) -> Configuration {
    let inline = format!("clusterDNS: [10.43.0.10]\nclusterDomain: cluster.local\nhealthzPort: 0\n{yaml}");
    Sources { inline: vec![inline], ..Sources::default() }.load().unwrap()
}

/// The status of a pod's or node's condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    object["status"]["conditions"]
        .as_array()
        .and_then(|list| list.iter().find(|c| c["type"] == kind))
        .and_then(|c| c["status"].as_str())
        .unwrap_or_default()
}
