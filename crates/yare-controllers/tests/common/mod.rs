//! A cluster in this process: the real API server on a store of its own, the real controllers, and a
//! kubelet that only pretends.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{future::Future, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use yare_apiserver::{ApiServer, User};
use yare_client::{Cached, Client, NODES, ObjectKey, PODS, Resource, SERVICE_ACCOUNTS, in_process};
use yare_controllers::{
    Config, Controllers,
    api::{Api, Deletion, Patch, Propagation},
};

pub struct Cluster {
    pub api: Api,
    pub client: Client,
    controllers: Option<Controllers>,
    manager: Client,
    config: Config,
    server: ApiServer,
    _dir: TempDir,
}

/// The fate of a pod in the pretended kubelet, by its label `fate`.
fn status(pod: &Cached, n: usize) -> Value {
    let ended = |code: i32| {
        json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}}}])
    };
    match pod.label("fate") {
        Some("succeeds") => json!({"phase": "Succeeded", "containerStatuses": ended(0)}),
        Some("fails") => json!({"phase": "Failed", "containerStatuses": ended(1)}),
        _ => json!({
            "phase": "Running",
            "podIP": format!("10.42.{}.{}", n / 250, n % 250 + 1),
            "podIPs": [{"ip": format!("10.42.{}.{}", n / 250, n % 250 + 1)}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }),
    }
}

/// Binds every pod to the node `n1`, runs it as its label says, and ends it when asked to.
async fn pretend_kubelet(client: Client, api: Api) {
    let mut changes = client.informers().of(PODS).subscribe();
    let mut n = 0;
    while let Some(change) = changes.recv().await {
        let Some(pod) = change.new else { continue };
        if pod.deletion_timestamp().is_some() {
            let _ = api
                .delete(&PODS, pod.key(), Deletion { grace_period_s: Some(0), ..Deletion::of(&pod) })
                .await;
        } else if pod.node_name().is_none() && pod.label("fate") != Some("waits") {
            let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": pod.name()},
                "target": {"kind": "Node", "name": "n1"}});
            let path = format!("{}/{}/binding", PODS.path(Some(pod.namespace())), pod.name());
            if let Err(error) = api.call(http::Method::POST, &path, "", Some(&binding)).await {
                eprintln!("binding {}: {error}", pod.key());
            }
            n += 1;
            let patch = json!({"status": status(&pod, n)});
            if let Err(error) = api.patch(&PODS, pod.key(), "/status", Patch::Strategic, &patch).await {
                eprintln!("status of {}: {error}", pod.key());
            }
        }
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(Config { root_ca: "CERTIFICATE".into(), ..Config::default() }).await
    }

    pub async fn with(config: Config) -> Self {
        Self::build(config, |_| {}).await
    }

    /// With RBAC: the controllers come in as in a real server and may do what their roles say. `change` sets
    /// the server up further.
    pub async fn secure(config: Config, change: impl FnOnce(&mut yare_apiserver::Config)) -> Self {
        Self::build(config, |server| {
            server.auth = yare_apiserver::Auth::new(None);
            change(server);
            server.objects = yare_auth::bootstrap::objects(&server.gates);
        })
        .await
    }

    async fn build(mut config: Config, change: impl FnOnce(&mut yare_apiserver::Config)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let store = yare_store::Store::open(
            yare_store::Options::new(dir.path().join("store")),
            yare_apiserver::indexer(),
        )
        .await
        .unwrap();
        let mut server = yare_apiserver::Config::new(store);
        server.gates = config.gates.clone();
        if server.gates.is_on("StorageVersionMigrator") {
            let versions = "storagemigration.k8s.io/v1beta1=true";
            server.runtime_config = yare_apiserver::runtime_config::RuntimeConfig::parse(versions).unwrap();
        }
        server.advertise = Some(("127.0.0.1".parse().unwrap(), 6443));
        change(&mut server);
        let secure = !server.auth.permissive;
        let server = Box::pin(ApiServer::start(server)).await.unwrap();
        let client = Client::new(in_process(server.service(User::admin())));
        let api = Api::new(client.kube());
        let mut manager = client.clone();
        if secure {
            let user = User::new("system:kube-controller-manager", &[]);
            manager = Client::new(in_process(server.service(user)));
            let server = server.clone();
            config.writers = Some(std::sync::Arc::new(move |account| {
                in_process(server.service(User::service_account("kube-system", account, "")))
            }));
        }
        let controllers = Some(Controllers::start(&manager, config.clone()));
        let cluster = Self { api, client, controllers, manager, config, server, _dir: dir };
        let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}});
        cluster.create(&NODES, "", node).await;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        cluster
            .api
            .patch(&NODES, &ObjectKey::cluster("n1"), "/status", Patch::Strategic, &ready)
            .await
            .unwrap();
        tokio::spawn(pretend_kubelet(cluster.client.clone(), cluster.api.clone()));
        cluster.get(&SERVICE_ACCOUNTS, "default", "default").await;
        cluster
    }

    /// Writes as somebody else.
    pub fn api_as(&self, user: User) -> Api {
        Api::new(in_process(self.server.service(user)))
    }

    pub async fn create(&self, resource: &Resource, namespace: &str, mut body: Value) -> Cached {
        body["kind"] = resource.kind.as_ref().into();
        body["apiVersion"] = resource.api_version().into();
        self.api.create(resource, namespace, &body).await.unwrap_or_else(|e| panic!("{body}: {e}"))
    }

    pub async fn merge(&self, resource: &Resource, namespace: &str, name: &str, patch: Value) {
        let key = ObjectKey::new(namespace, name);
        self.api.patch(resource, &key, "", Patch::Merge, &patch).await.unwrap();
    }

    pub async fn delete(&self, resource: &Resource, namespace: &str, name: &str, propagation: Propagation) {
        let how = Deletion { propagation: Some(propagation), ..Deletion::default() };
        assert!(self.api.delete(resource, &ObjectKey::new(namespace, name), how).await.unwrap());
    }

    /// Waits until the object exists.
    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Value {
        let what = format!("{} {namespace}/{name}", resource.kind);
        self.until(&what, || self.find(resource, namespace, name)).await
    }

    pub async fn find(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let found = self.api.get(resource, &ObjectKey::new(namespace, name)).await.unwrap();
        found.map(|o| o.view().unwrap())
    }

    pub async fn list(&self, resource: &Resource, namespace: &str) -> Vec<Value> {
        let path = resource.path(Some(namespace).filter(|n| !n.is_empty()));
        let bytes = self.api.read(&path, "application/json").await.unwrap();
        let list: Value = serde_json::from_slice(&bytes).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until `check` has an answer.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, check: impl Fn() -> F) -> T {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = check().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "timed out waiting for: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until an object is gone.
    pub async fn until_gone(&self, resource: &Resource, namespace: &str, name: &str) {
        let what = format!("{} {namespace}/{name} to go", resource.kind);
        self.until(&what, || async { self.find(resource, namespace, name).await.is_none().then_some(()) })
            .await;
    }

    /// Waits until an object looks as it should.
    pub async fn until_is(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Value {
        let what = format!("{} {namespace}/{name} to look as expected", resource.kind);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.find(resource, namespace, name).await;
            if let Some(found) = found.as_ref().filter(|f| is(f)) {
                return found.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "timed out waiting for {what}: {found:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the objects of a namespace look as they should.
    pub async fn until_list(
        &self,
        resource: &Resource,
        namespace: &str,
        is: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.list(resource, namespace).await;
            if is(&found) {
                return found;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "timed out waiting for {}: {found:#?}",
                resource.plural
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop_controllers(&mut self) {
        if let Some(controllers) = self.controllers.take() {
            tokio::time::timeout(Duration::from_secs(10), controllers.shutdown())
                .await
                .expect("controllers stop");
        }
    }

    /// New controllers take over, which know nothing but what the API says.
    pub async fn restart_controllers(&mut self) {
        self.stop_controllers().await;
        self.controllers = Some(Controllers::start(&self.manager, self.config.clone()));
    }

    pub async fn stop(mut self) {
        self.stop_controllers().await;
        self.server.shutdown().await;
    }
}

/// A pod template whose pods behave as `fate` says.
pub fn template(app: &str, image: &str, fate: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app, "fate": fate}},
        "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
    })
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

pub fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect()
}
