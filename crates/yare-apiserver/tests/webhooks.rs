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

/// A webhook: denies what has `data.deny`, and changes what is created. Its path says in what way it is odd
/// ([`odd`]); it never answers `/slow`.
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
                        let path = request.uri().path().to_owned();
                        if path == "/slow" {
                            std::future::pending::<()>().await;
                        }
                        let body = request.into_body().collect().await?.to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        log.lock().push(review["request"].clone());
                        if review["kind"] == "ConversionReview" {
                            return Ok(Response::new(Full::new(Bytes::from(converted(&review).to_string()))));
                        }
                        if let Some(answer) = odd(&path, &review) {
                            return Ok(answer);
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

/// The answer of a webhook with a fault, or with something of its own to do.
fn odd(path: &str, review: &Value) -> Option<Response<Full<Bytes>>> {
    let body = |bytes: Vec<u8>| Response::new(Full::new(Bytes::from(bytes)));
    let answer = |version: &str, response: Value| {
        let mut response = response;
        response["uid"] = review["request"]["uid"].clone();
        let review = json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview", "response": response});
        body(review.to_string().into_bytes())
    };
    let patched = |version: &str, patch: Value| {
        answer(
            version,
            json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())}),
        )
    };
    let object = &review["request"]["object"];
    let step = path.trim_start_matches("/step-");
    Some(match path {
        "/garbage" => body(b"<html>".to_vec()),
        "/big" => body(vec![b' '; 10 << 20]),
        "/error" => {
            let mut response = body(b"out of order".to_vec());
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        "/absent" => {
            body(b"{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": \"AdmissionReview\"}".to_vec())
        }
        "/no-bool" => answer("v1", json!({"allowed": "true"})),
        "/empty" => body(Vec::new()),
        "/rename" => patched("v1", json!([{"op": "replace", "path": "/metadata/name", "value": "other"}])),
        "/move" => {
            patched("v1", json!([{"op": "replace", "path": "/metadata/namespace", "value": "elsewhere"}]))
        }
        "/old" => {
            patched("v1beta1", json!([{"op": "add", "path": "/data", "value": {"by": review["apiVersion"]}}]))
        }
        "/bad-patch" => patched("v1", json!([{"op": "remove", "path": "/nothing/here"}])),
        "/system-fields" => patched(
            "v1",
            json!([
                {"op": "add", "path": "/metadata/uid", "value": "mine"},
                {"op": "add", "path": "/metadata/unknown", "value": "field"},
            ]),
        ),
        "/template" => patched(
            "v1",
            json!([{"op": "add", "path": "/spec/template/metadata/annotations", "value": {"by": "hook"}}]),
        ),
        "/replicas" => patched("v1", json!([{"op": "replace", "path": "/spec/replicas", "value": 7}])),
        "/denied" => answer(
            "v1",
            json!({"allowed": false, "status": {"code": 409, "reason": "Conflict", "message": "taken",
            "details": {"kind": "thing", "causes": [{"reason": "r", "message": "m", "field": "f"}]}}}),
        ),
        "/allowed" => answer("v1", json!({"allowed": true, "auditAnnotations": {"k": "v"}})),
        // Appends to a list of who has seen the object.
        _ if path.starts_with("/step-") => {
            let seen = object["metadata"]["annotations"]["seen"].as_str().unwrap_or_default();
            let value = json!({"seen": format!("{seen}{step}")});
            patched("v1", json!([{"op": "add", "path": "/metadata/annotations", "value": value}]))
        }
        _ => return None,
    })
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
    let status = server
        .post(CONFIG_MAPS, &json!({"metadata": {"name": "b"}, "data": {"deny": "x"}}))
        .await
        .expect(400);
    assert_eq!(status["message"], "admission webhook \"hook.example.com\" denied the request: not this one");
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
    server.post(CONFIG_MAPS, &labelled).await.expect(400);
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
    // Nobody is there any more.
    let nobody =
        json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": "https://127.0.0.1:1/"}}}}});
    let path = format!("{DEFINITIONS}/places.example.com");
    server.patch("merge", &path, &nobody).await.expect(200);
    let gone = |code: u16, _: &Value| code == 500;
    server.until_is(&format!("{}/a", at("v1")), "a failing conversion", gone).await;
    let metrics = server.get("/metrics").await.text();
    let failed = r#"failure_type="conversion_webhook_call_failure",result="failure""#;
    for part in [
        r#"apiserver_conversion_webhook_request_total{failure_type="",result="success"} "#,
        r#"apiserver_conversion_webhook_duration_seconds_bucket{failure_type="",result="success",le="60"} "#,
        &format!("apiserver_conversion_webhook_request_total{{{failed}}} 1"),
        r#"apiserver_crd_conversion_webhook_duration_seconds_count{crd_name="places.example.com",from_version="v1",succeeded="true",to_version="v2"} "#,
        r#"apiserver_crd_conversion_webhook_duration_seconds_count{crd_name="places.example.com",from_version="v2",succeeded="false",to_version="v1"} 1"#,
    ] {
        assert!(metrics.contains(part), "{part}\n{metrics}");
    }
}

/// A configuration with several webhooks: name, path, and what else each says.
fn configuration(hook: &Hook, kind: &str, webhooks: &[(&str, &str, Value)]) -> Value {
    let list: Vec<Value> = webhooks
        .iter()
        .map(|(name, path, more)| {
            let mut webhook = hook.configuration(kind, path, more)["webhooks"][0].clone();
            webhook["name"] = (*name).into();
            webhook
        })
        .collect();
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hooks"}, "webhooks": list})
}

async fn configure(server: &Server, hook: &Hook, mutating: bool, webhooks: &[(&str, &str, Value)]) {
    let (path, kind) = if mutating {
        (MUTATING, "MutatingWebhookConfiguration")
    } else {
        (VALIDATING, "ValidatingWebhookConfiguration")
    };
    let name = format!("{path}/hooks");
    if server.get(&name).await.code == 200 {
        server.delete(&name).await.expect(200);
    }
    server.post(path, &configuration(hook, kind, webhooks)).await.expect(201);
}

#[tokio::test]
async fn faults_are_named() {
    let (server, hook) = (Server::start().await, hook().await);
    let url = format!("https://127.0.0.1:{}", hook.port);
    let prefix = "Internal error occurred: failed calling webhook \"a.example.com\": ";
    for (path, mutating, more, expect) in [
        ("/garbage", false, json!({}), "failed to call webhook: couldn't get version/kind; json parse error: ".to_owned()),
        ("/big", false, json!({}), format!("failed to call webhook: Post \"{url}/big?timeout=10s\": the answer is larger than 8388608 bytes")),
        ("/error", false, json!({}), "failed to call webhook: an error on the server (\"out of order\") has prevented the request from succeeding".into()),
        ("/absent", false, json!({}), "received invalid webhook response: webhook response was absent".into()),
        ("/old", false, json!({}), "failed to call webhook: converting (v1beta1.AdmissionReview) to (v1.AdmissionReview): unknown conversion".into()),
        ("/no-bool", false, json!({}), "failed to call webhook: json: cannot unmarshal string into Go struct field AdmissionResponse.response.allowed of type bool".into()),
        ("/empty", false, json!({}), "failed to call webhook: 0-length response with status code: 200 and content type: ".into()),
        ("/step-x", false, json!({}), "received invalid webhook response: validating webhook may not return response.patch".into()),
        (
            "/allowed",
            false,
            json!({"clientConfig": {"service": {"namespace": "default", "name": "nobody", "path": "/p", "port": 8443}, "caBundle": hook.bundle}}),
            "failed to call webhook: Post \"https://nobody.default.svc:8443/p?timeout=10s\": service \"nobody\" not found".into(),
        ),
        (
            "/allowed",
            false,
            json!({"clientConfig": {"url": "https://127.0.0.1:1/x", "caBundle": hook.bundle}}),
            "failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=10s\": dial tcp 127.0.0.1:1: connect: connection refused".into(),
        ),
    ] {
        configure(&server, &hook, mutating, &[("a.example.com", path, more.clone())]).await;
        let body = json!({"metadata": {"generateName": "c"}});
        let message = server.post(CONFIG_MAPS, &body).await.expect_reason(500, "InternalError");
        assert!(message.starts_with(&format!("{prefix}{expect}")), "{message}");
        // The same, ignored.
        let mut more = more;
        more["failurePolicy"] = "Ignore".into();
        configure(&server, &hook, mutating, &[("a.example.com", path, more)]).await;
        server.post(CONFIG_MAPS, &body).await.expect(201);
    }
    let metrics = server.get("/metrics").await.text();
    let here = format!("host=\"127.0.0.1:{}\"", hook.port);
    for part in [
        // Each is called twice.
        &format!("rest_client_requests_total{{code=\"500\",{here},method=\"POST\"}} 2"),
        "rest_client_requests_total{code=\"<error>\",host=\"127.0.0.1:1\",method=\"POST\"} 2",
        "rest_client_requests_total{code=\"<error>\",host=\"nobody.default.svc:8443\",method=\"POST\"} 2",
        "rest_client_request_duration_seconds_count{host=\"127.0.0.1:1\",verb=\"POST\"} 2",
        "rest_client_request_size_bytes_bucket{host=\"127.0.0.1:1\",verb=\"POST\",le=\"64\"} 0",
        "rest_client_request_size_bytes_count{host=\"127.0.0.1:1\",verb=\"POST\"} 2",
        &format!("rest_client_response_size_bytes_bucket{{{here},verb=\"POST\",le=\"64\"}}"),
        "apiserver_admission_webhook_fail_open_count{name=\"a.example.com\",type=\"validating\"} 10",
        "apiserver_admission_webhook_rejection_count{name=\"a.example.com\",type=\"validating\",operation=\"CREATE\",error_type=\"calling_webhook_error\",rejection_code=\"500\"} 1",
        "apiserver_admission_webhook_request_total{name=\"a.example.com\",type=\"validating\",operation=\"CREATE\",code=\"503\",rejected=\"true\"} 9",
    ] {
        assert!(metrics.contains(part), "{part}");
    }
    // What is wrong with a patch is the server's to say.
    server.delete(&format!("{VALIDATING}/hooks")).await.expect(200);
    configure(&server, &hook, true, &[("a.example.com", "/bad-patch", json!({}))]).await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "p"}})).await.expect_reason(500, "InternalError");
}

#[tokio::test]
async fn refusals_keep_their_status() {
    let (server, hook) = (Server::start().await, hook().await);
    configure(&server, &hook, false, &[("a.example.com", "/denied", json!({}))]).await;
    let status = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await.expect(409);
    assert_eq!(status["reason"], "Conflict");
    assert_eq!(status["message"], "admission webhook \"a.example.com\" denied the request: taken");
    assert_eq!(
        status["details"],
        json!({"kind": "thing", "causes": [{"reason": "r", "message": "m", "field": "f"}]})
    );
}

#[tokio::test]
async fn webhooks_see_each_others_changes() {
    let (server, hook) = (Server::start().await, hook().await);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    for (hooks, expect) in [
        (vec![("a.example.com", "/step-a", json!({})), ("b.example.com", "/step-b", json!({}))], "ab"),
        // The first sees what the second did. Two that answer each other do so once.
        (vec![("a.example.com", "/step-a", again.clone()), ("b.example.com", "/step-b", json!({}))], "aba"),
        (
            vec![("a.example.com", "/step-a", again.clone()), ("b.example.com", "/step-b", again.clone())],
            "abab",
        ),
        (vec![("a.example.com", "/step-a", again.clone())], "a"),
    ] {
        configure(&server, &hook, true, &hooks).await;
        let made = server.post(CONFIG_MAPS, &json!({"metadata": {"generateName": "a"}})).await.expect(201);
        assert_eq!(made["metadata"]["annotations"]["seen"], expect);
    }
}

#[tokio::test]
async fn dry_runs_need_consent() {
    let (server, hook) = (Server::start().await, hook().await);
    let path = format!("{CONFIG_MAPS}?dryRun=All&fieldManager=me");
    let body = json!({"metadata": {"name": "a"}});
    configure(
        &server,
        &hook,
        false,
        &[("a.example.com", "/allowed", json!({"sideEffects": "NoneOnDryRun"}))],
    )
    .await;
    server.post(&path, &body).await.expect(201);
    let request = hook.seen.lock().last().cloned().unwrap();
    assert_eq!(request["dryRun"], true);
    assert_eq!(
        request["options"],
        json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"], "fieldManager": "me"})
    );
}

#[tokio::test]
async fn versions_are_those_that_webhooks_know() {
    let (server, hook) = (Server::start().await, hook().await);
    let rules = json!([{"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"], "resources": ["horizontalpodautoscalers"]}]);
    let scaler = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}})
    };
    const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    configure(&server, &hook, false, &[("a.example.com", "/allowed", json!({"rules": rules}))]).await;
    server.post(SCALERS, &scaler("a")).await.expect(201);
    let request = hook.seen.lock().last().cloned().unwrap();
    assert_eq!(
        (&request["kind"]["version"], &request["requestKind"]["version"]),
        (&json!("v1"), &json!("v2"))
    );
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(request["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
    let before = hook.seen.lock().len();
    configure(
        &server,
        &hook,
        false,
        &[("a.example.com", "/allowed", json!({"rules": rules, "matchPolicy": "Exact"}))],
    )
    .await;
    server.post(SCALERS, &scaler("b")).await.expect(201);
    assert_eq!(hook.seen.lock().len(), before);
    // A review of the older version may be answered with less.
    configure(
        &server,
        &hook,
        true,
        &[("a.example.com", "/old", json!({"admissionReviewVersions": ["v1beta1", "v1"]}))],
    )
    .await;
    let made = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "old"}})).await.expect(201);
    assert_eq!(made["data"]["by"], "admission.k8s.io/v1beta1");
}

#[tokio::test]
async fn what_the_server_keeps() {
    let (server, hook) = (Server::start().await, hook().await);
    configure(&server, &hook, true, &[("a.example.com", "/system-fields", json!({"rules": [
        {"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}))]).await;
    let made = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await.expect(201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_ne!(made["metadata"]["uid"], "mine");
    assert!(made["metadata"].get("unknown").is_none(), "{made}");
    // An object that is there has an UID that does not change.
    let message = server
        .put(&format!("{CONFIG_MAPS}/a"), &json!({"metadata": {"name": "a"}}))
        .await
        .expect_reason(422, "Invalid");
    assert!(message.contains("metadata.uid: Invalid value: \"mine\": field is immutable"), "{message}");
    // Where an object is, is not a webhook's to say; what it is called, is, while it is made.
    configure(&server, &hook, true, &[("a.example.com", "/move", json!({}))]).await;
    let message =
        server.post(CONFIG_MAPS, &json!({"metadata": {"name": "b"}})).await.expect_reason(400, "BadRequest");
    assert_eq!(
        message,
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    configure(&server, &hook, true, &[("a.example.com", "/rename", json!({}))]).await;
    let made = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "c"}})).await.expect(201);
    assert_eq!(made["metadata"]["name"], "other");
    server.get(&format!("{CONFIG_MAPS}/c")).await.expect(404);
}

#[tokio::test]
async fn subresources_show_their_own_kind() {
    let (server, hook) = (Server::start().await, hook().await);
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    server.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await.expect(201);
    server
        .post(
            "/api/v1/namespaces/default/pods",
            &json!({"metadata": {"name": "p"}, "spec": template["spec"]}),
        )
        .await
        .expect(201);
    let rule = |group: &str, resource: &str| json!({"operations": ["*"], "apiGroups": [group], "apiVersions": ["*"], "resources": [resource]});
    configure(
        &server,
        &hook,
        true,
        &[("a.example.com", "/replicas", json!({"rules": [rule("apps", "deployments/scale")]}))],
    )
    .await;
    let scale = server
        .patch(
            "merge",
            "/apis/apps/v1/namespaces/default/deployments/d/scale",
            &json!({"spec": {"replicas": 3}}),
        )
        .await
        .expect(200);
    assert_eq!(scale["spec"]["replicas"], 7);
    let request = hook.seen.lock().last().cloned().unwrap();
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["oldObject"]["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(request["options"]["kind"], "UpdateOptions");
    let stored = server.get("/apis/apps/v1/namespaces/default/deployments/d").await.expect(200);
    assert_eq!((&stored["spec"]["replicas"], &stored["metadata"]["generation"]), (&json!(7), &json!(2)));
    server.delete(&format!("{MUTATING}/hooks")).await.expect(200);
    // Bindings, evictions and connections are seen as what they are.
    let all = json!({"rules": [rule("", "pods/binding"), rule("", "pods/eviction"), rule("", "pods/exec"), rule("", "pods")]});
    configure(&server, &hook, false, &[("a.example.com", "/allowed", all)]).await;
    let pods = "/api/v1/namespaces/default/pods/p";
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    server.post(&format!("{pods}/binding"), &binding).await.expect(201);
    let _ = server.post(&format!("{pods}/exec?command=ls&stdin=true&container=c"), &json!({})).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    server.post(&format!("{pods}/eviction"), &eviction).await.expect(201);
    let seen: Vec<(String, String, String)> = hook
        .seen
        .lock()
        .iter()
        .rev()
        .take(3)
        .map(|r| (&r["operation"], &r["subResource"], &r["kind"]["kind"]))
        .map(|(a, b, c)| {
            (a.as_str().unwrap().into(), b.as_str().unwrap_or_default().into(), c.as_str().unwrap().into())
        })
        .collect();
    let of = |operation: &str, sub: &str, kind: &str| (operation.to_owned(), sub.to_owned(), kind.to_owned());
    assert_eq!(
        seen,
        [
            of("CREATE", "eviction", "Eviction"),
            of("CONNECT", "exec", "PodExecOptions"),
            of("CREATE", "binding", "Binding")
        ]
    );
    // A request for a token is seen with all that it left to the server.
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = server.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    configure(
        &server,
        &hook,
        false,
        &[("a.example.com", "/allowed", json!({"rules": [rule("", "serviceaccounts/token")]}))],
    )
    .await;
    let _ =
        server.post(&format!("{accounts}/robot/token"), &json!({"spec": {}, "status": {"token": "x"}})).await;
    let seen = hook.seen.lock().last().cloned().unwrap();
    assert_eq!(seen["object"]["metadata"]["uid"], account["metadata"]["uid"]);
    assert_eq!(
        (
            &seen["object"]["metadata"]["name"],
            &seen["object"]["spec"]["expirationSeconds"],
            &seen["object"]["status"]["token"]
        ),
        (&json!("robot"), &json!(3600), &json!(""))
    );
}

/// What Go always writes is there to be patched; what the server has yet to say of an object is not there yet.
#[tokio::test]
async fn objects_are_shown_as_go_writes_them_and_as_they_were_sent() {
    let (server, hook) = (Server::start().await, hook().await);
    let rules = |group: &str, resource: &str| json!({"rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}]});
    configure(&server, &hook, true, &[("a.example.com", "/template", rules("batch", "jobs"))]).await;
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let made = server.post("/apis/batch/v1/namespaces/default/jobs", &job).await.expect(201);
    assert_eq!(made["spec"]["template"]["metadata"]["annotations"], json!({"by": "hook"}));
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    let seen = hook.seen.lock().last().cloned().unwrap()["object"].clone();
    assert_eq!((&seen["status"], &seen["spec"]["template"]["metadata"]), (&json!({}), &json!({})));
    let metadata = seen["metadata"].as_object().unwrap();
    for field in ["uid", "creationTimestamp", "generation"] {
        assert!(!metadata.contains_key(field), "{field}: {seen}");
    }
    // An update is seen before its generation is counted, by those who may change it.
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template":
        {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    server.post(deployments, &deployment).await.expect(201);
    configure(&server, &hook, true, &[("a.example.com", "/allowed", rules("apps", "deployments"))]).await;
    configure(&server, &hook, false, &[("a.example.com", "/allowed", rules("apps", "deployments"))]).await;
    let patch = json!({"spec": {"replicas": 2}, "status": {"replicas": 9}});
    let changed = server.patch("merge", &format!("{deployments}/d"), &patch).await.expect(200);
    assert_eq!((&changed["metadata"]["generation"], &changed["status"]), (&json!(2), &json!({})));
    let seen: Vec<(Value, Value)> = hook
        .seen
        .lock()
        .iter()
        .rev()
        .take(2)
        .map(|r| (r["object"]["metadata"]["generation"].clone(), r["object"]["status"].clone()))
        .collect();
    assert_eq!(seen, [(json!(2), json!({})), (json!(1), json!({"replicas": 9}))]);
}

#[tokio::test]
async fn all_waits_together_are_bounded() {
    let (server, hook) = (Server::start().await, hook().await);
    let ignored = json!({"failurePolicy": "Ignore", "timeoutSeconds": 30});
    let hooks = [("a.example.com", "/slow", ignored.clone()), ("b.example.com", "/slow", ignored)];
    configure(&server, &hook, true, &hooks).await;
    let path = format!("{CONFIG_MAPS}?timeout=300ms");
    let status = server.post(&path, &json!({"metadata": {"name": "a"}})).await.expect(504);
    // Webhooks and the request have the same end: who comes first tells it, each in its own words.
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("Timeout: request did not complete within "), "{message}");
    assert_eq!(status["reason"], "Timeout");
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn match_conditions() {
    let (server, hook) = (Server::start().await, hook().await);
    let deny = json!({"metadata": {"generateName": "c", "labels": {"a": "b"}}, "data": {"deny": "x"}});
    // The expressions, the failure policy, and what comes of a request that the webhook would deny.
    for (conditions, policy, code, part) in [
        (&["true"][..], "Fail", 400, "denied the request: not this one"),
        (&["object.data.deny != 'x'"], "Fail", 201, ""),
        (
            &["request.userInfo.username == 'system:admin'", "request.operation == 'CREATE'"],
            "Fail",
            400,
            "denied",
        ),
        (&["object.metadata.labels.missing == 'x'", "false"], "Fail", 201, ""),
        (&["object.metadata.labels.missing == 'x'"], "Ignore", 201, ""),
        (
            &["object.metadata.labels.missing == 'x'"],
            "Fail",
            403,
            "is forbidden: expression 'object.metadata.labels.missing == 'x'' resulted in error: no such key: missing",
        ),
        (
            &["object.x == 1", "object.y == 1"],
            "Fail",
            403,
            "[expression 'object.x == 1' resulted in error: no such key: x, expression 'object.y == 1' resulted in error: no such key: y]",
        ),
        (&["oldObject == null && namespaceObject == null"], "Fail", 400, "denied"),
        (&["authorizer.requestResource.check('create').allowed()"], "Fail", 400, "denied"),
        (
            &[
                "authorizer.serviceAccount('default', 'default').group('').resource('pods').check('create').allowed()",
            ],
            "Fail",
            400,
            "denied",
        ),
        (
            &[
                "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a + b + c + d + e + f != 0))))))",
            ],
            "Fail",
            403,
            "operation cancelled: actual cost limit exceeded",
        ),
    ] {
        let list: Vec<Value> = conditions
            .iter()
            .enumerate()
            .map(|(i, c)| json!({"name": format!("c{i}"), "expression": c}))
            .collect();
        let more = json!({"matchConditions": list, "failurePolicy": policy});
        configure(&server, &hook, false, &[("hook.example.com", "/", more)]).await;
        let answer = server.post(CONFIG_MAPS, &deny).await;
        assert_eq!(answer.code, code, "{conditions:?} {}", answer.text());
        assert!(answer.text().contains(part), "{conditions:?} {}", answer.text());
        server.delete(&format!("{VALIDATING}/hooks")).await.expect(200);
    }
    let metrics = server.get("/metrics").await.text();
    for part in [
        "apiserver_admission_match_condition_exclusions_total{name=\"hook.example.com\",kind=\"webhook\",type=\"validate\",operation=\"CREATE\"} 3",
        "apiserver_admission_match_condition_evaluation_errors_total{name=\"hook.example.com\",kind=\"webhook\",type=\"validate\",operation=\"CREATE\"}",
        "apiserver_admission_match_condition_evaluation_seconds_count{name=\"hook.example.com\",kind=\"webhook\",type=\"validate\",operation=\"CREATE\"}",
    ] {
        assert!(metrics.contains(part), "{part}\n{metrics}");
    }
    // Mutating webhooks have them too, over the object as it is by then.
    let more = json!({"matchConditions": [{"name": "c", "expression": "!has(object.data)"}]});
    configure(&server, &hook, true, &[("a.example.com", "/", more.clone()), ("b.example.com", "/", more)])
        .await;
    let before = hook.seen.lock().len();
    server.post(CONFIG_MAPS, &json!({"metadata": {"generateName": "c"}})).await.expect(201);
    assert_eq!(hook.seen.lock().len(), before + 1);
}
