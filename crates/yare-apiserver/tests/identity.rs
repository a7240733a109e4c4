//! An API server's Lease, and what it says of the versions in which it stores objects.

mod common;

use std::time::Duration;

use common::{Server, open};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use yare_apiserver::{
    ApiServer, Config, User,
    identity::{Timing, id},
    runtime_config::RuntimeConfig,
};
use yare_schema::features::Gates;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const VERSIONS: &str = "/apis/internal.apiserver.k8s.io/v1alpha1/storageversions";

fn quick() -> Timing {
    Timing { renew: Duration::from_millis(50), duration_s: 3600, gc: Duration::from_millis(100) }
}

#[tokio::test]
async fn a_server_holds_a_lease_while_it_is_up() {
    let server = Server::with(|config| config.identity = Some(quick())).await;
    let path = format!("{LEASES}/{}", id());
    assert!(id().starts_with("apiserver-") && id().len() == 36, "{}", id());
    let lease = server.get(&path).await.expect(200);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let labels =
        json!({"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": host.trim()});
    assert_eq!(lease["metadata"]["labels"], labels);
    let peer = json!({"kubernetes.io/peer-advertise-address": "127.0.0.1:6443"});
    assert_eq!(lease["metadata"]["annotations"], peer);
    assert_eq!(lease["metadata"]["managedFields"][0]["manager"], "kube-apiserver");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap();
    assert!(holder.starts_with(&format!("{}_", id())) && holder.len() == 36 + 1 + 36, "{holder}");

    // It is renewed, and made anew where somebody takes it away.
    let renewed = &lease["spec"]["renewTime"];
    server.until_is(&path, "renewed", |_, now| now["spec"]["renewTime"] != *renewed).await;
    server.delete(&path).await.expect(200);
    let anew = server.until_is(&path, "made anew", |code, _| code == 200).await;
    assert_ne!(anew["metadata"]["uid"], lease["metadata"]["uid"]);
    assert_eq!(anew["spec"]["holderIdentity"], lease["spec"]["holderIdentity"]);

    // It goes with the server.
    let store = server.api.core().store().clone();
    server.api.shutdown().await;
    assert!(store.get("coordination.k8s.io/leases", &format!("kube-system/{}", id())).is_none());
}

#[tokio::test]
async fn leases_of_silent_servers_go() {
    let server = Server::with(|config| config.identity = Some(quick())).await;
    let lease = |name: &str, identity: bool, spec: Value| {
        let labels =
            if identity { json!({"apiserver.kubernetes.io/identity": "kube-apiserver"}) } else { json!({}) };
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "labels": labels}, "spec": spec})
    };
    let long_ago =
        json!({"holderIdentity": "x", "leaseDurationSeconds": 1, "renewTime": "2020-01-01T00:00:00.000000Z"});
    let fresh = json!({"holderIdentity": "x", "leaseDurationSeconds": 3600, "renewTime": "2099-01-01T00:00:00.000000Z"});
    for (name, identity, spec) in [
        ("other", false, long_ago.clone()),
        ("fresh", true, fresh),
        ("empty", true, json!({})),
        ("silent", true, long_ago),
    ] {
        server.post(LEASES, &lease(name, identity, spec)).await.expect(201);
    }
    for gone in ["silent", "empty"] {
        server.until_is(&format!("{LEASES}/{gone}"), gone, |code, _| code == 404).await;
    }
    for stays in ["other", "fresh", id()] {
        server.get(&format!("{LEASES}/{stays}")).await.expect(200);
    }
}

#[tokio::test]
async fn without_the_feature_there_is_no_lease() {
    let server = Server::with(|config| {
        config.identity = Some(quick());
        config.gates =
            Gates::parse("APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false").unwrap();
    })
    .await;
    assert_eq!(server.get(&format!("{LEASES}/{}", id())).await.code, 404);
    assert!(!server.get("/readyz?verbose").await.text().contains("identity-lease"));
    assert_eq!(server.get(VERSIONS).await.code, 404);
}

fn on(config: &mut Config) {
    config.identity = Some(Timing::default());
    config.gates = Gates::parse("StorageVersionAPI=true").expect("a gate that there is");
}

#[tokio::test]
async fn versions_are_on_record() {
    let server = Server::with(|config| {
        on(config);
        config.runtime_config = RuntimeConfig::parse("internal.apiserver.k8s.io/v1alpha1=true").unwrap();
    })
    .await;
    let readyz = server.get("/readyz?verbose").await.text();
    assert!(readyz.contains("[+]poststarthook/built-in-resources-storage-version-updater ok"), "{readyz}");
    let one = server.get(&format!("{VERSIONS}/autoscaling.horizontalpodautoscalers")).await.expect(200);
    let entry = json!({"apiServerID": id(), "encodingVersion": "autoscaling/v2",
        "decodableVersions": ["autoscaling/v2", "autoscaling/v1"], "servedVersions": ["autoscaling/v2", "autoscaling/v1"]});
    assert_eq!(one["status"]["storageVersions"], json!([entry]));
    assert_eq!(one["status"]["commonEncodingVersion"], "autoscaling/v2");
    let condition = &one["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"], &condition["message"]),
        (
            &json!("AllEncodingVersionsEqual"),
            &json!("True"),
            &json!("CommonEncodingVersionSet"),
            &json!("Common encoding version set")
        )
    );
    let all = server.get(VERSIONS).await.expect(200);
    let names: Vec<&str> =
        all["items"].as_array().unwrap().iter().map(|v| v["metadata"]["name"].as_str().unwrap()).collect();
    for name in ["core.pods", "core.events", "apps.deployments", "apiregistration.k8s.io.apiservices"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|n| n.ends_with(".bindings") || n.ends_with("reviews")), "{names:?}");
}

/// A second server on the same store joins the record; it agrees on all versions but one.
#[tokio::test]
async fn servers_may_disagree() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(open(&dir.path().join("store")).await);
    on(&mut config);
    config.runtime_config = RuntimeConfig::parse("internal.apiserver.k8s.io/v1alpha1=true").unwrap();
    let server = Server { api: ApiServer::start(config).await.unwrap(), dir };
    let path = format!("{VERSIONS}/apps.deployments");
    let mut version = server.get(&path).await.expect(200);
    let other = json!({"apiServerID": "other", "encodingVersion": "apps/v1beta2",
        "decodableVersions": ["apps/v1beta2"], "servedVersions": []});
    version["status"]["storageVersions"].as_array_mut().unwrap().push(other);
    version["status"].as_object_mut().unwrap().remove("commonEncodingVersion");
    server.put(&format!("{path}/status"), &version).await.expect(200);
    // Its next round says so.
    let store = server.api.core().store().clone();
    server.api.shutdown().await;
    let mut config = Config::new(store);
    on(&mut config);
    config.runtime_config = RuntimeConfig::parse("internal.apiserver.k8s.io/v1alpha1=true").unwrap();
    let server = Server { api: ApiServer::start(config).await.unwrap(), dir: server.dir };
    let version = server.get(&path).await.expect(200);
    assert_eq!(version["status"]["storageVersions"].as_array().unwrap().len(), 2);
    assert!(version["status"].get("commonEncodingVersion").is_none(), "{version}");
    assert_eq!(version["status"]["conditions"][0]["status"], "False");
    assert_eq!(version["status"]["conditions"][0]["reason"], "CommonEncodingVersionUnset");
}

#[tokio::test]
async fn until_versions_are_on_record_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(open(&dir.path().join("store")).await);
    // The API that the record needs is not served.
    on(&mut config);
    let server = Server { api: ApiServer::start(config).await.unwrap(), dir };
    let map = json!({"metadata": {"name": "a"}});
    let message = server
        .post("/api/v1/namespaces/default/configmaps", &map)
        .await
        .expect_reason(503, "ServiceUnavailable");
    assert_eq!(
        message,
        "wait for storage version registration to complete for resource: configmaps, last seen error: the server could not find the requested resource"
    );
    let message = server
        .delete("/apis/apps/v1/namespaces/default/deployments/a")
        .await
        .expect_reason(503, "ServiceUnavailable");
    assert!(message.contains("for resource: deployments.apps, "), "{message}");
    // Whoever reads may, and what nobody stores is no matter.
    server.get("/api/v1/namespaces/default/configmaps").await.expect(200);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"verb": "get", "path": "/"}}});
    server.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await.expect(201);
    let lease = json!({"metadata": {"name": "a"}, "spec": {}});
    server.post(LEASES, &lease).await.expect(201);
    server
        .post("/apis/coordination.k8s.io/v1/namespaces/default/leases", &lease)
        .await
        .expect_reason(503, "ServiceUnavailable");
    // The server itself makes namespaces.
    let namespace = json!({"metadata": {"name": "n"}});
    server.post("/api/v1/namespaces", &namespace).await.expect_reason(503, "ServiceUnavailable");
    let own = server.api.service(User::new("system:apiserver", &["system:masters"]));
    let request = Request::post("/api/v1/namespaces")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(namespace.to_string())))
        .unwrap();
    let answer = own.oneshot(request).await.unwrap();
    let code = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(code, 201, "{}", String::from_utf8_lossy(&body));
    let readyz = server.get("/readyz").await;
    assert_eq!(readyz.code, 500);
    assert!(readyz.text().contains("[-]poststarthook/built-in-resources-storage-version-updater failed"));
}
