//! Admission webhooks against a real TLS server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::Server;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use yare_auth::{
    pki::{Pki, Subject, Usage},
    tls::{self, Speaks},
};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A webhook: denies what has `data.deny`, labels everything else, and never answers `/slow`.
struct Hook {
    port: u16,
    bundle: String,
    seen: Arc<Mutex<Vec<Value>>>,
    _dir: tempfile::TempDir,
}

async fn hook() -> Hook {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let names = ["127.0.0.1".to_owned()];
    let subject = Subject { common_name: "hook", organizations: &[], alternative_names: &names };
    let pair = pki.cluster.issue(Usage::Server, &subject, Duration::from_secs(3600)).unwrap();
    let acceptor =
        tokio_rustls::TlsAcceptor::from(tls::server(&pair, &pki.cluster.certificate, Speaks::Both).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, log) = (acceptor.clone(), log.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let log = log.clone();
                    async move {
                        if request.uri().path() == "/slow" {
                            std::future::pending::<()>().await;
                        }
                        let body = request.into_body().collect().await?.to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        log.lock().push(review["request"].clone());
                        if review["kind"] == "ConversionReview" {
                            return Ok(Response::new(Full::new(Bytes::from(converted(&review).to_string()))));
                        }
                        let mut response =
                            json!({"uid": review["request"]["uid"], "allowed": true, "warnings": ["seen"]});
                        if review["request"]["object"]["data"]["deny"].is_string() {
                            response["allowed"] = false.into();
                            response["status"] = json!({"message": "not this one"});
                        } else if review["request"]["operation"] == "CREATE" {
                            let patch = json!([{"op": "add", "path": "/data", "value": {"mutated": "yes"}}]);
                            response["patchType"] = "JSONPatch".into();
                            response["patch"] = STANDARD.encode(patch.to_string()).into();
                        }
                        let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer.to_string()))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Hook { port, bundle: STANDARD.encode(&pki.cluster.certificate), seen, _dir: dir }
}

/// What a conversion webhook answers that knows two ways to say where a host is.
fn converted(review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let map = object.as_object_mut().unwrap();
            if wanted.ends_with("/v2") {
                let address = map.remove("hostPort").unwrap();
                let (host, port) = address.as_str().unwrap().split_once(':').unwrap();
                map.insert("host".into(), host.into());
                map.insert("port".into(), port.into());
            } else {
                let text = |v: Option<Value>| v.unwrap().as_str().unwrap().to_owned();
                let address = format!("{}:{}", text(map.remove("host")), text(map.remove("port")));
                map.insert("hostPort".into(), address.into());
            }
            map.insert("apiVersion".into(), wanted.into());
            // What is not a webhook's to change stays.
            object["metadata"]["finalizers"] = json!(["mine"]);
            object
        })
        .collect();
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
        "uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

impl Hook {
    fn configuration(&self, kind: &str, path: &str, more: &Value) -> Value {
        let mut webhook = json!({
            "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.bundle},
            "rules": [{"operations": ["CREATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        for (k, v) in more.as_object().unwrap() {
            webhook[k] = v.clone();
        }
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hooks"}, "webhooks": [webhook]})
    }
}

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

#[tokio::test]
async fn change_and_refuse() {
    let (server, hook) = (Server::start().await, hook().await);
    server
        .post(MUTATING, &hook.configuration("MutatingWebhookConfiguration", "/", &json!({})))
        .await
        .expect(201);
    let answer = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await;
    assert!(answer.headers["warning"].to_str().unwrap().contains("seen"));
    assert_eq!(answer.expect(201)["data"], json!({"mutated": "yes"}));
    let request = hook.seen.lock()[0].clone();
    assert_eq!(
        (&request["operation"], &request["resource"]["resource"], &request["kind"]["kind"]),
        (&json!("CREATE"), &json!("configmaps"), &json!("ConfigMap"))
    );
    assert_eq!(request["userInfo"]["username"], "system:admin");
    let message = server
        .post(CONFIG_MAPS, &json!({"metadata": {"name": "b"}, "data": {"deny": "x"}}))
        .await
        .expect_reason(403, "Forbidden");
    assert_eq!(message, "admission webhook \"hook.example.com\" denied the request: not this one");
    server.delete(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    let last = hook.seen.lock().last().cloned().unwrap();
    assert_eq!((&last["operation"], &last["oldObject"]["metadata"]["name"]), (&json!("DELETE"), &json!("a")));
    // Other kinds, and the configuration itself, are not its business.
    let before = hook.seen.lock().len();
    server.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await.expect(201);
    server.delete(&format!("{MUTATING}/hooks")).await.expect(200);
    assert_eq!(hook.seen.lock().len(), before);
}

#[tokio::test]
async fn selectors_and_failures() {
    let (server, hook) = (Server::start().await, hook().await);
    let only = json!({"objectSelector": {"matchLabels": {"watch": "me"}}});
    server
        .post(VALIDATING, &hook.configuration("ValidatingWebhookConfiguration", "/", &only))
        .await
        .expect(201);
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"deny": "x"}})).await.expect(201);
    let labelled = json!({"metadata": {"name": "b", "labels": {"watch": "me"}}, "data": {"deny": "x"}});
    server.post(CONFIG_MAPS, &labelled).await.expect_reason(403, "Forbidden");
    for (more, path, code, part) in [
        (json!({"timeoutSeconds": 1}), "/slow", 500, "context deadline exceeded"),
        (json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"}), "/slow", 201, ""),
        (
            json!({"clientConfig": {"url": "https://127.0.0.1:1/", "caBundle": hook.bundle}}),
            "/",
            500,
            "failed calling webhook",
        ),
    ] {
        server.delete(&format!("{VALIDATING}/hooks")).await.expect(200);
        server
            .post(VALIDATING, &hook.configuration("ValidatingWebhookConfiguration", path, &more))
            .await
            .expect(201);
        let answer = server.post(CONFIG_MAPS, &json!({"metadata": {"generateName": "c"}})).await;
        assert_eq!(answer.code, code, "{}", answer.text());
        assert!(answer.text().contains(part), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_converted() {
    let (server, hook) = (Server::start().await, hook().await);
    let version = |name: &str, storage: bool, fields: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            fields.iter().map(|f| ((*f).to_owned(), json!({"type": "string"}))).collect();
        let selectable: Vec<Value> = fields.iter().map(|f| json!({"jsonPath": format!(".{f}")})).collect();
        json!({"name": name, "served": true, "storage": storage, "selectableFields": selectable,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
    };
    let versions =
        |v1: bool| json!([version("v1", v1, &["hostPort"]), version("v2", !v1, &["host", "port"])]);
    let url = format!("https://127.0.0.1:{}/", hook.port);
    let definition = json!({"metadata": {"name": "places.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "places", "kind": "Place"},
        "versions": versions(true),
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": hook.bundle}}}}});
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.post(DEFINITIONS, &definition).await.expect(201);
    let at = |version: &str| format!("/apis/example.com/{version}/namespaces/default/places");
    while server.get(&at("v2")).await.code != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let place = |name: &str, address: &str| json!({"apiVersion": "example.com/v1", "kind": "Place", "metadata": {"name": name}, "hostPort": address});
    server.post(&at("v1"), &place("a", "one:80")).await.expect(201);
    let shown = server.get(&format!("{}/a", at("v2"))).await.expect(200);
    assert_eq!((&shown["host"], &shown["port"]), (&json!("one"), &json!("80")));
    assert_eq!((&shown["apiVersion"], shown.get("hostPort")), (&json!("example.com/v2"), None));
    assert!(shown["metadata"].get("finalizers").is_none(), "{shown}");
    // The same revision is not asked for again.
    let asked = hook.seen.lock().len();
    server.get(&format!("{}/a", at("v2"))).await.expect(200);
    assert_eq!(hook.seen.lock().len(), asked);
    // The storage version changes: what rests in the old one is still shown in both.
    server
        .patch(
            "merge",
            &format!("{DEFINITIONS}/places.example.com"),
            &json!({"spec": {"versions": versions(false)}}),
        )
        .await
        .expect(200);
    server.post(&at("v1"), &place("b", "two:81")).await.expect(201);
    for (version, field, want) in [("v1", "hostPort", ["one:80", "two:81"]), ("v2", "port", ["80", "81"])] {
        let list = server.get(&at(version)).await.expect(200);
        let found: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|i| &i[field]).collect();
        assert_eq!(found, want, "{list}");
    }
    // Selectors see the version that is asked for.
    let chosen = server.get(&format!("{}?fieldSelector=hostPort%3Dtwo:81", at("v1"))).await.expect(200);
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1, "{chosen}");
    // A writer of one version changes what readers of the other see.
    let changed = server.patch("merge", &format!("{}/a", at("v2")), &json!({"port": "82"})).await.expect(200);
    assert_eq!(changed["port"], "82");
    let shown = server.get(&format!("{}/a", at("v1"))).await.expect(200);
    assert_eq!(shown["hostPort"], "one:82");
}
