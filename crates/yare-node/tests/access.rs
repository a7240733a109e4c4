//! Who may ask what of the kubelet's API, with a real API server to ask.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;

use common::Cluster;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use yare_node::KubeletServer;

async fn serving(yaml: &str) -> (Cluster, SocketAddr) {
    let strict = |config: &mut yare_apiserver::Config| {
        config.auth = yare_apiserver::auth::Auth::new(None);
        config.auth.tokens.add("of-alice", yare_auth::User::new("alice", &["monitors"]));
    };
    let mut cluster = Cluster::with_api(strict).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster
        .start_node(|config| {
            config.server = Some(KubeletServer { listener, serving: None });
            config.configuration = common::configuration(yaml);
        })
        .await;
    let address = cluster.node.as_ref().unwrap().address().unwrap();
    (cluster, address)
}

async fn ask(address: SocketAddr, method: &str, path: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    (code, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_not_served() {
    let (_cluster, address) = serving("").await;
    for (method, path) in [
        ("GET", "/pods"),
        ("GET", "/metrics"),
        ("POST", "/run/default/a/b"),
        ("DELETE", "/exec/default/a/b"),
        ("GET", "/healthz"),
        ("GET", "/no/such/path"),
    ] {
        assert_eq!(ask(address, method, path, "").await, (401, "Unauthorized".to_owned()), "{path}");
    }
    // The API server says whose a token is; this one is nobody's.
    assert_eq!(ask(address, "GET", "/pods", "Authorization: Bearer nobody\r\n").await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_is_the_api_servers_word() {
    let yaml =
        "authentication: {anonymous: {enabled: true}}\nauthorization: {webhook: {cacheUnauthorizedTTL: 1ms}}";
    let (cluster, address) = serving(yaml).await;
    let forbidden = |verb: &str, subresources: &str| {
        let text = format!(
            "Forbidden (user=system:anonymous, verb={verb}, resource=nodes, subresource(s)=[{subresources}])\n"
        );
        (403, text)
    };
    for (method, path, verb, subresources) in [
        ("GET", "/pods", "get", "pods proxy"),
        ("GET", "/metrics/cadvisor", "get", "metrics"),
        ("POST", "/run/default/a/b", "create", "proxy"),
        ("DELETE", "/logs/x", "delete", "log"),
        ("GET", "/no/such/path", "get", "proxy"),
    ] {
        assert_eq!(ask(address, method, path, "").await, forbidden(verb, subresources), "{path}");
    }
    let meta = json!({"name": "reads-pods"});
    let rule = json!({"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    cluster.post(&format!("{rbac}/clusterroles"), &json!({"metadata": meta, "rules": [rule]})).await;
    let binding = json!({
        "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads-pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}],
    });
    cluster.post(&format!("{rbac}/clusterrolebindings"), &binding).await;
    let mut last = (0, String::new());
    for _ in 0..500 {
        last = ask(address, "GET", "/pods", "").await;
        if last.0 == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(serde_json::from_str::<Value>(&last.1).unwrap()["kind"], "PodList");
    // A token that is not good is not the same as none.
    assert_eq!(ask(address, "GET", "/pods", "Authorization: Bearer nobody\r\n").await.0, 401);
    // One that is good counts for whom it is of.
    let (code, text) = ask(address, "GET", "/pods", "Authorization: Bearer of-alice\r\n").await;
    assert_eq!((code, text.starts_with("Forbidden (user=alice, ")), (403, true), "{text}");
    // Read a second time it comes from the cache; other subresources stay closed.
    assert_eq!(ask(address, "GET", "/pods", "").await.0, 200);
    assert_eq!(ask(address, "GET", "/configz", "").await, forbidden("get", "configz proxy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_configuration_as_upstream_shows_them() {
    let open = "authentication: {anonymous: {enabled: true}}\nauthorization: {mode: AlwaysAllow}\nmaxPods: 7";
    let (_cluster, address) = serving(open).await;
    assert_eq!(ask(address, "GET", "/healthz", "").await, (200, "ok".to_owned()));
    assert_eq!(ask(address, "GET", "/healthz/syncloop", "").await, (200, "ok".to_owned()));
    assert_eq!(
        ask(address, "GET", "/healthz?verbose", "").await.1,
        "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"
    );
    let shown = ask(address, "GET", "/configz", "").await.1;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let shown = &shown["kubeletconfig"];
    assert_eq!((&shown["kind"], &shown["maxPods"]), (&json!("KubeletConfiguration"), &json!(7)));
    assert_eq!(shown["authentication"]["webhook"]["cacheTTL"], "2m0s");
}
