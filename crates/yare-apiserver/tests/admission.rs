//! Admission, row by row, over the API.

mod common;

use common::Server;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use yare_apiserver::User;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn limit_ranger() {
    let server = Server::start().await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{
        "type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
        "min": {"cpu": "50m"}, "max": {"cpu": "1"},
    }]}});
    server.post("/api/v1/namespaces/default/limitranges", &range).await.expect(201);
    let made = server.post(PODS, &pod("a", json!({}))).await.expect(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    for (name, resources, part) in [
        (
            "big",
            json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}),
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            "small",
            json!({"limits": {"cpu": "100m"}, "requests": {"cpu": "10m"}}),
            "minimum cpu usage per Container is 50m, but request is 10m",
        ),
    ] {
        let message = server.post(PODS, &pod(name, resources)).await.expect_reason(403, "Forbidden");
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn priorities() {
    let server = Server::start().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    server.post(classes, &json!({"metadata": {"name": "high"}, "value": 1000})).await.expect(201);
    server
        .post(classes, &json!({"metadata": {"name": "usual"}, "value": 10, "globalDefault": true}))
        .await
        .expect(201);
    server
        .post(classes, &json!({"metadata": {"name": "second"}, "value": 11, "globalDefault": true}))
        .await
        .expect_reason(403, "Forbidden");
    let with = |name: &str, class: Value| {
        let mut p = pod(name, json!({}));
        p["spec"]["priorityClassName"] = class;
        p
    };
    for (name, class, priority) in [
        ("a", json!("high"), 1000),
        ("b", Value::Null, 10),
        ("c", json!("system-node-critical"), 2_000_001_000),
    ] {
        let made = server.post(PODS, &with(name, class)).await.expect(201);
        assert_eq!(made["spec"]["priority"], priority, "{name}");
        assert_eq!(made["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    }
    let message = server.post(PODS, &with("d", json!("none"))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("no PriorityClass with name none was found"), "{message}");
}

#[tokio::test]
async fn default_classes() {
    let server = Server::start().await;
    let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/p"});
    server.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, more: Value| {
        let mut c = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        if !more.is_null() {
            c["spec"]["storageClassName"] = more;
        }
        c
    };
    for (name, given, want) in
        [("a", Value::Null, json!("fast")), ("b", json!(""), json!("")), ("c", json!("slow"), json!("slow"))]
    {
        let made = server.post(claims, &claim(name, given)).await.expect(201);
        assert_eq!(made["spec"]["storageClassName"], want, "{name}");
    }
}

#[tokio::test]
async fn service_accounts() {
    let server = Server::start().await;
    let mut p = pod("a", json!({}));
    p["spec"]["serviceAccountName"] = "ghost".into();
    let message = server.post(PODS, &p).await.expect_reason(403, "Forbidden");
    assert!(message.contains("error looking up service account default/ghost"), "{message}");
    let account = json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "s"}]});
    server.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    p["spec"]["serviceAccountName"] = "quiet".into();
    let made = server.post(PODS, &p).await.expect(201);
    assert!(made["spec"].get("volumes").is_none(), "{made}");
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let server = Server::start().await;
    let as_node = async |method: &str, path: &str, body: Value| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(
                "content-type",
                if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
            )
            .body(Full::<bytes::Bytes>::from(body.to_string()))
            .unwrap();
        request.extensions_mut().insert(User::new("system:node:n1", &["system:nodes"]));
        let response = server.api.service(User::admin()).oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let (code, node) = as_node(
        "POST",
        "/api/v1/nodes",
        json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}}),
    )
    .await;
    assert_eq!(code, 201, "{node}");
    assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    for (method, path, body) in [
        ("POST", "/api/v1/nodes", json!({"metadata": {"name": "n2"}})),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}}),
        ),
        ("PATCH", "/api/v1/nodes/n1", json!({"spec": {"taints": null}})),
        ("POST", PODS, pod("a", json!({}))),
        (
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            json!({"metadata": {"name": "n2"}}),
        ),
    ] {
        let (code, answer) = as_node(method, path, body).await;
        assert_eq!(code, 403, "{method} {path}: {answer}");
    }
    let (code, _) = as_node(
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        json!({"metadata": {"name": "n1"}}),
    )
    .await;
    assert_eq!(code, 201);
}

#[tokio::test]
async fn collections_are_deleted() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        server.post(path, &json!({"metadata": {"name": name, "labels": {"l": label}}})).await.expect(201);
    }
    server.delete(&format!("{path}?labelSelector=l%3Dx")).await.expect(200);
    let left = server.get(path).await.expect(200);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
    // Propagation leaves its mark for the garbage collector.
    let marked = server.delete(&format!("{path}/c?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn resource_quota() {
    let server = Server::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "1"});
    server.post(quotas, &json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.expect(201);
    // Until the controller has counted, nobody knows.
    let message =
        server.post(PODS, &pod("a", json!({"requests": {"cpu": "1"}}))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("status unknown for quota: q"), "{message}");
    let status = json!({"status": {"hard": hard, "used": {"pods": "0", "requests.cpu": "0", "count/configmaps": "0"}}});
    server.patch("merge", &format!("{quotas}/q/status"), &status).await.expect(200);
    let message = server.post(PODS, &pod("a", json!({}))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("failed quota: q: must specify requests.cpu for: c"), "{message}");
    server.post(PODS, &pod("a", json!({"requests": {"cpu": "600m"}}))).await.expect(201);
    let message = server
        .post(PODS, &pod("b", json!({"requests": {"cpu": "600m"}})))
        .await
        .expect_reason(403, "Forbidden");
    assert!(message.contains("exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"), "{message}");
    let quota = server.get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(
        quota["status"]["used"],
        json!({"pods": "1", "requests.cpu": "600m", "count/configmaps": "0"})
    );
    // Two at once, room for one.
    let maps = "/api/v1/namespaces/default/configmaps";
    let (a, b) = (json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}}));
    let (x, y) = tokio::join!(server.post(maps, &a), server.post(maps, &b));
    let mut codes = [x.code, y.code];
    codes.sort_unstable();
    assert_eq!(codes, [201, 403]);
}

#[tokio::test]
async fn runtime_classes() {
    let server = Server::start().await;
    let mut p = pod("a", json!({}));
    p["spec"]["runtimeClassName"] = "vm".into();
    let message = server.post(PODS, &p).await.expect_reason(403, "Forbidden");
    assert!(message.contains("pod rejected: RuntimeClass \"vm\" not found"), "{message}");
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    server.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await.expect(201);
    let made = server.post(PODS, &p).await.expect(201);
    assert_eq!(
        (&made["spec"]["overhead"]["memory"], &made["spec"]["nodeSelector"]["vm"]),
        (&json!("64Mi"), &json!("yes"))
    );
}
