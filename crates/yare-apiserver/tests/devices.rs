//! Claims of devices: who may have administrative access, who may write which part of a status.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Server;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use yare_apiserver::{Auth, User};

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const LABEL: &str = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";

async fn patch(server: &Server, user: &User, path: &str, body: &Value) -> (u16, Value) {
    let mut request = Request::builder()
        .method("PATCH")
        .uri(path)
        .header("content-type", "application/merge-patch+json")
        .body(Full::<bytes::Bytes>::from(body.to_string()))
        .unwrap();
    request.extensions_mut().insert(user.clone());
    let response = server.api.service(User::admin()).oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap())
}

fn claim(name: &str, admin: bool) -> Value {
    let mut request = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
    if admin {
        request["exactly"]["adminAccess"] = true.into();
    }
    json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}})
}

#[tokio::test]
async fn admin_access_takes_a_label() {
    let server = Server::start().await;
    let message = server.post(CLAIMS, &claim("a", true)).await.expect_reason(422, "Invalid");
    assert!(
        message.contains(&format!("spec.devices.requests[0].adminAccess: Forbidden: {LABEL}")),
        "{message}"
    );
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": claim("", true)["spec"]}});
    let templates = CLAIMS.replace("resourceclaims", "resourceclaimtemplates");
    let message = server.post(&templates, &template).await.expect_reason(422, "Invalid");
    assert!(message.contains("spec.devices.requests[0].adminAccess: Forbidden"), "{message}");
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    server.patch("merge", "/api/v1/namespaces/default", &label).await.expect(200);
    server.post(CLAIMS, &claim("a", true)).await.expect(201);
    server.post(&templates, &template).await.expect(201);
}

#[tokio::test]
async fn parts_of_a_status_have_their_writers() {
    let server = Server::with(|config| config.auth = Auth::new(None)).await;
    let rule = |resources: &[&str], verbs: &[&str], names: &[&str]| json!({"apiGroups": ["resource.k8s.io"], "resources": resources, "verbs": verbs, "resourceNames": names});
    let status = rule(&["resourceclaims/status"], &["*"], &[]);
    let roles = [
        ("none", json!([status])),
        ("binder", json!([status, rule(&["resourceclaims/binding"], &["patch"], &[])])),
        (
            "anywhere",
            json!([
                status,
                rule(&["resourceclaims/driver"], &["arbitrary-node:patch"], &["gpu.example.com"])
            ]),
        ),
        (
            "near",
            json!([
                status,
                rule(&["resourceclaims/driver"], &["associated-node:patch"], &["gpu.example.com"])
            ]),
        ),
    ];
    for (name, rules) in roles {
        let role = json!({"metadata": {"name": name}, "rules": rules});
        server.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
        let subject = if name == "near" {
            json!({"kind": "ServiceAccount", "namespace": "ns", "name": name})
        } else {
            json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name})
        };
        let binding = json!({"metadata": {"name": name}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}});
        server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    }
    server.post(CLAIMS, &claim("a", false)).await.expect(201);
    let path = format!("{CLAIMS}/a/status");
    let [none, binder, anywhere] = ["none", "binder", "anywhere"].map(|name| User::new(name, &[]));
    let mut near = User::service_account("ns", "near", "u");

    let allocation = json!({"status": {"allocation": {
        "devices": {"results": [{"request": "r", "driver": "gpu.example.com", "pool": "p", "device": "d"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]},
    }}});
    // Rules reach the authorizers after the writes that made them.
    let mut answer = (0, Value::Null);
    for _ in 0..200 {
        answer = patch(&server, &none, &path, &allocation).await;
        if answer.0 == 422 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let refusal = "status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"patch\" permission: resourceclaims.resource.k8s.io is forbidden: User \"none\" cannot patch resource \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope";
    assert_eq!(answer.0, 422, "{}", answer.1);
    assert!(answer.1["message"].as_str().unwrap().contains(refusal), "{}", answer.1);
    let mut allowed = patch(&server, &binder, &path, &allocation).await;
    for _ in 0..200 {
        if allowed.0 == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        allowed = patch(&server, &binder, &path, &allocation).await;
    }
    assert_eq!(allowed.0, 200, "{}", allowed.1);

    let device = |networks: &str| {
        json!({"status": {"devices": [{"driver": "gpu.example.com", "pool": "p", "device": "d",
            "networkData": {"interfaceName": networks}}]}})
    };
    let refused = |user: &str, verbs: &str, verb: &str| {
        format!(
            "status.devices: Forbidden: changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{verbs}]\" permission: resourceclaims.resource.k8s.io \"gpu.example.com\" is forbidden: User \"{user}\" cannot {verb} resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the namespace \"default\""
        )
    };
    let arbitrary = "arbitrary-node:patch";
    let answer = patch(&server, &binder, &path, &device("a")).await;
    assert_eq!(answer.0, 422, "{}", answer.1);
    let wanted = refused("binder", arbitrary, arbitrary);
    assert!(answer.1["message"].as_str().unwrap().contains(&wanted), "{}", answer.1);
    let answer = patch(&server, &anywhere, &path, &device("a")).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    // Whose token does not name the node is anywhere.
    let answer = patch(&server, &near, &path, &device("b")).await;
    let wanted = refused("system:serviceaccount:ns:near", arbitrary, arbitrary);
    assert!(answer.1["message"].as_str().unwrap().contains(&wanted), "{}", answer.1);
    near.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
    let answer = patch(&server, &near, &path, &device("b")).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
}
