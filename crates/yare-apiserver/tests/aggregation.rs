//! The aggregation layer in front of a real API server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::Server;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt;
use yare_apiserver::{
    Config, SystemClock, SystemRandom, User,
    aggregation::FrontProxy,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target},
    serving::{Pair, Source},
    shown::ClientPair,
};
use yare_auth::pki::{Authority, KeyPairPem, Pki, Subject, Usage};
use yare_testkit::{Extension, Extra};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn front_proxy(directory: &std::path::Path) -> FrontProxy {
    let pki = Pki::open(directory).unwrap();
    let subject = Subject { common_name: "front-proxy-client", ..Subject::default() };
    FrontProxy {
        pair: Arc::new(ClientPair::own(pki.keep_front_proxy("front-proxy-client", &subject).unwrap())),
        authority: pki.front_proxy.certificate.clone(),
        client_authority: pki.cluster.certificate.clone(),
        allowed_names: vec!["front-proxy-client".into()],
    }
}

/// Audit of the other server's objects, into `audit.log` in the directory.
fn audit(dir: &std::path::Path) -> Option<Arc<Audit>> {
    let policy = dir.join("policy.yaml");
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse, resources: [{group: wardle.example.com}]}]}";
    std::fs::write(&policy, text).unwrap();
    let path = dir.join("audit.log");
    let target = Target { path, max_age_days: 0, max_backups: 0, max_size_bytes: 0, compress: false };
    let batching = Batching { buffer: 1, max_size: 1, max_wait: Duration::ZERO, throttle: None };
    let log = LogSettings { target, text: false, mode: Mode::Blocking, batching, truncate: None };
    let settings = Settings { policy: Some(policy), log: Some(log), ..Settings::default() };
    Audit::open(&settings, Arc::new(SystemClock), Arc::new(SystemRandom)).unwrap()
}

struct Setup {
    server: Server,
    extension: Extension,
    keys: tempfile::TempDir,
}

/// A server, another one, and a service by whose name the first finds the second.
async fn setup(extra: Extra) -> Setup {
    setup_with(extra, |_, _| {}).await
}

/// The same; `change`: what the first shows, and a directory of its own.
async fn setup_with(extra: Extra, change: impl FnOnce(&mut FrontProxy, &std::path::Path)) -> Setup {
    let keys = tempfile::tempdir().unwrap();
    let mut proxy = front_proxy(keys.path());
    change(&mut proxy, keys.path());
    let authority = proxy.authority.clone();
    let extension = Extension::start("api.default.svc", extra, Some(&authority)).await.unwrap();
    let audit = audit(keys.path());
    let server = Server::with(move |config: &mut Config| {
        config.front_proxy = Some(proxy);
        config.audit = audit;
    })
    .await;
    let service = json!({"metadata": {"name": "api"},
                         "spec": {"type": "ExternalName", "externalName": "localhost"}});
    server.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    Setup { server, extension, keys }
}

impl Setup {
    fn api_service(&self) -> Value {
        json!({
            "metadata": {"name": NAME},
            "spec": {
                "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000,
                "versionPriority": 15, "caBundle": STANDARD.encode(&self.extension.authority),
                "service": {"namespace": "default", "name": "api", "port": self.extension.port},
            },
        })
    }

    async fn register(&self) {
        self.server.post(API_SERVICES, &self.api_service()).await.expect(201);
        self.wait_for("Passed").await;
    }

    /// Waits until the condition has this reason; gives its status and message.
    async fn wait_for(&self, reason: &str) -> (String, String) {
        let path = format!("{API_SERVICES}?watch=1&fieldSelector=metadata.name={NAME}");
        let mut events = self.server.watch(&path).await;
        loop {
            let event = events.next().await.expect("an event");
            let condition = &event["object"]["status"]["conditions"][0];
            if condition["reason"] == reason {
                let text = |v: &Value| v.as_str().unwrap().to_owned();
                return (text(&condition["status"]), text(&condition["message"]));
            }
        }
    }

    /// Asks until the answer is as wanted: what is read from another server comes a moment after its condition.
    async fn until(&self, path: &str, accept: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..400 {
            let answer = self.server.send("GET", path, &[("accept", accept)], "").await;
            if answer.code == 200 {
                last = answer.json();
                if good(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{path}: {last}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_pass_under_the_callers_name() {
    let setup = setup(Extra::Modern).await;
    setup.server.get(FLUNDERS).await.expect_no_such_path();
    setup.register().await;
    let mut events = setup.server.watch(&format!("{FLUNDERS}?watch=1")).await;
    let made = setup.server.post(FLUNDERS, &json!({"metadata": {"name": "a"}})).await.expect(201);
    assert_eq!(made["kind"], "Flunder");
    assert_eq!(events.brief().await, "ADDED a");
    let list = setup.server.get(&format!("{FLUNDERS}?limit=5")).await.expect(200);
    assert_eq!(list["items"][0]["metadata"]["name"], "a");

    // A body that is larger than one this server would take, and who sent it.
    let mut user = User::new("jane", &["dev"]);
    user.uid = "u1".into();
    user.extra.insert("scopes".into(), vec!["x".into(), "y".into()]);
    let large = json!({"metadata": {"name": "b"}, "spec": "x".repeat(4 << 20)}).to_string();
    let request = Request::post(FLUNDERS)
        .header("authorization", "Bearer secret")
        .header("x-remote-user", "root")
        .header("x-remote-group", "system:masters")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(large)))
        .unwrap();
    let reply = setup.server.api.service(user).oneshot(request).await.unwrap();
    assert_eq!(reply.status(), 201);
    let seen = setup.extension.seen(FLUNDERS).pop().unwrap();
    let header = |name: &str| seen.headers.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(header("x-remote-user"), "jane");
    assert_eq!(header("x-remote-uid"), "u1");
    assert_eq!(header("x-remote-group"), "dev,system:authenticated");
    assert_eq!(header("x-remote-extra-scopes"), "x,y");
    assert_eq!(header("authorization"), "");
    assert_eq!(seen.certificate.as_deref(), Some("front-proxy-client"));
    assert!(seen.http2);

    // Audit tells who asked for what and how it ended; objects are the other server's to write down. The request
    // ends when its answer has been read.
    drop(reply);
    let mut last = Value::Null;
    for _ in 0..1000 {
        let text = std::fs::read_to_string(setup.keys.path().join("audit.log")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut of_jane = events.filter(|e| e["requestURI"] == FLUNDERS && e["user"]["username"] == "jane");
        last = of_jane.next_back().unwrap();
        if last["stage"] == "ResponseComplete" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(last["stage"], "ResponseComplete");
    assert_eq!((&last["responseStatus"]["code"], &last["level"]), (&json!(201), &json!("RequestResponse")));
    assert_eq!(last["objectRef"]["apiGroup"], "wardle.example.com");
    assert!(last.get("responseObject").is_none() && last.get("requestObject").is_none(), "{last}");

    setup.server.delete(&format!("{FLUNDERS}/a")).await.expect(200);
    assert_eq!(events.brief().await, "ADDED b");
    assert_eq!(events.brief().await, "DELETED a");
    // The other server's own errors come through as they are.
    assert_eq!(
        setup.server.get(&format!("{FLUNDERS}/none")).await.expect(404)["message"],
        "this is not here"
    );
    let redirect = setup.server.get(&format!("{ROOT}/redirect")).await;
    assert_eq!(redirect.code, 502);
    assert!(redirect.text().contains("which is not permitted"), "{}", redirect.text());
    assert!(!redirect.headers.contains_key("location"));

    setup.server.delete(&format!("{API_SERVICES}/{NAME}")).await.expect(200);
    setup.until("/apis", "application/json", |v| !v.to_string().contains("wardle")).await;
    setup.server.get(FLUNDERS).await.expect_no_such_path();
}

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connections_pass() {
    let setup = setup(Extra::Modern).await;
    setup.register().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let api = setup.server.api.clone();
    tokio::spawn(async move { api.serve(listener).await });
    for protocol in ["websocket", "SPDY/3.1"] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET {FLUNDERS}/a/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains(&format!("upgrade: {}", protocol.to_ascii_lowercase())), "{head}");
        for text in ["hello", "again"] {
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut back = vec![0; text.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, text.as_bytes());
        }
    }
    let seen = setup.extension.seen(&format!("{FLUNDERS}/a/echo"));
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].headers["x-remote-user"], "system:admin");
    assert_eq!(seen[0].certificate.as_deref(), Some("front-proxy-client"));
}

#[tokio::test(flavor = "multi_thread")]
async fn availability() {
    let setup = setup(Extra::Modern).await;
    let mut broken = setup.api_service();
    broken["spec"]["service"]["name"] = "nobody".into();
    let made = setup.server.post(API_SERVICES, &broken).await.expect(201);
    assert_eq!(made["status"], json!({}));
    let (status, message) = setup.wait_for("ServiceNotFound").await;
    assert_eq!(
        (status.as_str(), message.as_str()),
        ("False", "service/nobody in \"default\" is not present")
    );
    let answer = setup.server.get(FLUNDERS).await;
    assert_eq!((answer.code, answer.text().as_str()), (503, "service unavailable\n"));

    // The service comes, without endpoints; then it is another port.
    let service = json!({"metadata": {"name": "nobody"}, "spec": {"ports": [
        {"name": "https", "port": setup.extension.port}]}});
    setup.server.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let (_, message) = setup.wait_for("EndpointsNotFound").await;
    assert_eq!(message, "cannot find endpointslices for service/nobody in \"default\"");
    let slice = json!({"addressType": "IPv4", "endpoints": [], "ports": [{"name": "https", "port": 1}],
        "metadata": {"name": "nobody-1", "labels": {"kubernetes.io/service-name": "nobody"}}});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    setup.server.post(slices, &slice).await.expect(201);
    let (_, message) = setup.wait_for("MissingEndpoints").await;
    assert_eq!(
        message,
        "endpointslices for service/nobody in \"default\" have no addresses with port name \"https\""
    );

    // To the right one, which fails at first.
    setup.extension.set_healthy(false);
    let path = format!("{API_SERVICES}/{NAME}");
    let right = json!({"spec": {"service": {"name": "api"}}});
    setup.server.patch("merge", &path, &right).await.expect(200);
    let (_, message) = setup.wait_for("FailedDiscoveryCheck").await;
    let url = format!("https://localhost:{}{ROOT}", setup.extension.port);
    assert_eq!(message, format!("failing or missing response from {url}: bad status from {url}: 500"));
    setup.extension.set_healthy(true);
    let (status, message) = setup.wait_for("Passed").await;
    assert_eq!((status.as_str(), message.as_str()), ("True", "all checks passed"));
    setup.server.get(FLUNDERS).await.expect(200);

    // A certificate of somebody else is refused, unless none is asked for.
    let other = Extension::start("x.default.svc", Extra::Legacy, None).await.unwrap();
    let spec = json!({"spec": {"caBundle": STANDARD.encode(&other.authority)}});
    setup.server.patch("merge", &path, &spec).await.expect(200);
    let (_, message) = setup.wait_for("FailedDiscoveryCheck").await;
    assert!(message.contains("x509: certificate signed by unknown authority"), "{message}");
    let spec = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    setup.server.patch("merge", &path, &spec).await.expect(200);
    setup.wait_for("Passed").await;
    setup.server.get(FLUNDERS).await.expect(200);

    // It goes away between two checks.
    setup.extension.stop();
    let answer = setup.until_code(FLUNDERS, 503).await;
    assert!(answer.starts_with("error trying to reach service: "), "{answer}");
    let metrics = setup.server.get("/metrics").await.text();
    assert!(
        metrics.contains(&format!(
            "aggregator_unavailable_apiservice_total{{name=\"{NAME}\",reason=\"FailedDiscoveryCheck\"}}"
        )),
        "{metrics}"
    );
    assert!(metrics.contains("aggregator_unavailable_apiservice{name=\"v1.apps\"} 0"), "{metrics}");
}

impl Setup {
    async fn until_code(&self, path: &str, code: u16) -> String {
        for _ in 0..400 {
            let answer = self.server.get(path).await;
            if answer.code == code {
                return answer.text();
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{path} never answers {code}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_merged() {
    for extra in [Extra::Modern, Extra::Legacy] {
        let setup = setup(extra).await;
        setup.register().await;
        let find = |v: &Value| {
            v["items"]
                .as_array()
                .unwrap()
                .iter()
                .find(|g| g["metadata"]["name"] == "wardle.example.com")
                .cloned()
        };
        let current = |v: &Value| find(v).is_some_and(|g| g["versions"][0]["freshness"] == "Current");
        let aggregated = setup.until("/apis", AGGREGATED, current).await;
        let names: Vec<&str> = aggregated["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names[0], "apiregistration.k8s.io");
        assert_eq!(*names.last().unwrap(), "wardle.example.com");
        let flunders = &find(&aggregated).unwrap()["versions"][0]["resources"][0];
        assert_eq!(flunders["resource"], "flunders");
        assert_eq!(flunders["responseKind"]["kind"], "Flunder");
        assert_eq!(flunders["shortNames"], json!(["fl"]));

        let group = setup.server.get("/apis/wardle.example.com").await.expect(200);
        assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
        let list = setup.server.get(ROOT).await.expect(200);
        assert_eq!(list["resources"][0]["name"], "flunders");
        let root = setup.server.get("/").await.expect(200);
        assert!(root["paths"].as_array().unwrap().contains(&json!(ROOT)));

        let path = "apis/wardle.example.com/v1alpha1";
        let index = setup.until("/openapi/v3", "application/json", |v| v["paths"][path].is_object()).await;
        let url = index["paths"][path]["serverRelativeURL"].as_str().unwrap();
        let v3 = setup.server.get(url).await.expect(200);
        match extra {
            Extra::Modern => {
                assert_eq!(url, format!("/openapi/v3/{path}?hash=ABC"));
                assert!(v3["components"]["schemas"]["Flunder"].is_object());
            }
            Extra::Legacy => {
                let answer =
                    &v3["paths"][format!("/{path}/namespaces/{{namespace}}/flunders")]["get"]["responses"];
                let schema = &answer["200"]["content"]["application/json"]["schema"];
                assert_eq!(schema["$ref"], "#/components/schemas/com.example.Flunder");
            }
        }
        let v2 = setup.server.get("/openapi/v2").await.expect(200);
        assert!(v2["paths"][format!("/{path}/namespaces/{{namespace}}/flunders")].is_object());
        let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        let flunder = &v2["definitions"]["com.example.Flunder"]["properties"]["metadata"];
        assert_eq!(flunder["$ref"], format!("#/definitions/{meta}_v2"));
        assert!(v2["definitions"][meta]["properties"].is_object());
        assert!(v2["paths"].get("/healthz").is_none());

        // What cannot be asked any more is listed all the same, as old.
        setup.extension.set_healthy(false);
        let broken = json!({"spec": {"service": {"name": "gone"}}});
        setup.server.patch("merge", &format!("{API_SERVICES}/{NAME}"), &broken).await.expect(200);
        setup
            .until("/apis", AGGREGATED, |v| find(v).is_some_and(|g| g["versions"][0]["freshness"] == "Stale"))
            .await;
        setup.server.get("/apis/wardle.example.com").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_served_here_have_api_services() {
    let setup = setup(Extra::Modern).await;
    let server = &setup.server;
    let apps = server.get(&format!("{API_SERVICES}/v1.apps")).await.expect(200);
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
    );
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    let core = server.get(&format!("{API_SERVICES}/v1.")).await.expect(200);
    assert_eq!(core["spec"]["groupPriorityMinimum"], 18000);
    server.get(&format!("{API_SERVICES}/v1.apiregistration.k8s.io")).await.expect(404);

    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                 "versions": [{"name": "v1", "served": true, "storage": true,
                               "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.post(definitions, &definition).await.expect(201);
    let path = format!("{API_SERVICES}/v1.example.com");
    let has = |reason: &'static str| move |v: &Value| v["status"]["conditions"][0]["reason"] == reason;
    let made = setup.until(&path, "application/json", has("Local")).await;
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(made["spec"]["groupPriorityMinimum"], 1000);
    assert_eq!(made["spec"]["versionPriority"], 100);
    // Somebody else's idea of it does not last, nor its absence.
    server.patch("merge", &path, &json!({"spec": {"groupPriorityMinimum": 7}})).await.expect(200);
    setup.until(&path, "application/json", |v| v["spec"]["groupPriorityMinimum"] == 1000).await;
    server.delete(&path).await.expect(200);
    setup.until(&path, "application/json", |v| v["metadata"]["uid"] != made["metadata"]["uid"]).await;
    server.delete(&format!("{definitions}/things.example.com")).await;
    setup.until_code(&path, 404).await;

    let groups = server.get("/apis").await.expect(200);
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names[..4], ["apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io"]);
    let autoscaling =
        groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "autoscaling").unwrap();
    assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_to_recognize_this_server_is_published() {
    let setup = setup(Extra::Modern).await;
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let whole =
        |v: &Value| v["data"]["requestheader-client-ca-file"].as_str().is_some_and(|s| s.contains("BEGIN"));
    let made = setup.until(path, "application/json", whole).await;
    assert_eq!(made["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    assert_eq!(made["data"]["requestheader-username-headers"], "[\"X-Remote-User\"]");
    assert_ne!(made["data"]["client-ca-file"], made["data"]["requestheader-client-ca-file"]);
    setup.server.delete(path).await.expect(200);
    let again = setup.until(path, "application/json", whole).await;
    assert_ne!(made["metadata"]["uid"], again["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_is_shown_is_read_again() {
    let write = |dir: &std::path::Path, pair: &KeyPairPem| {
        std::fs::write(dir.join("shown.crt"), &pair.certificate).unwrap();
        std::fs::write(dir.join("shown.key"), &pair.key).unwrap();
    };
    let issue = |authority: &Authority| {
        let subject = Subject { common_name: "front-proxy-client", ..Subject::default() };
        authority.issue(Usage::Client, &subject, Duration::from_secs(3600)).unwrap()
    };
    // One that the other server does not believe.
    let setup = setup_with(Extra::Modern, |proxy, dir| {
        write(dir, &issue(&Pki::open(dir).unwrap().cluster));
        let files = Pair { certificate: dir.join("shown.crt"), key: dir.join("shown.key") };
        proxy.pair = Arc::new(ClientPair::open(Source::Files(files)).unwrap());
    })
    .await;
    setup.server.post(API_SERVICES, &setup.api_service()).await.expect(201);
    setup.wait_for("FailedDiscoveryCheck").await;
    write(setup.keys.path(), &issue(&Pki::open(setup.keys.path()).unwrap().front_proxy));
    setup.wait_for("Passed").await;
    setup.server.get(FLUNDERS).await.expect(200);
}
