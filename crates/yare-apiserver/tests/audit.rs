//! Audit on a real server: what is written of which request.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use common::Server;
use serde_json::{Value, json};
use yare_apiserver::{
    SystemClock, SystemRandom,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target, Truncate, WebhookSettings},
};

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: Metadata, resources: [{resources: [secrets]}]}
- {level: RequestResponse, resources: [{resources: [configmaps]}], omitManagedFields: true}
- {level: Metadata, nonResourceURLs: [/version], omitStages: [RequestReceived]}
";

const BATCHING: Batching = Batching {
    buffer: 1000,
    max_size: 100,
    max_wait: Duration::from_millis(20),
    throttle: Some((100.0, 10)),
};

fn log(path: std::path::PathBuf, mode: Mode) -> LogSettings {
    let target = Target { path, max_age_days: 0, max_backups: 0, max_size_bytes: 0, compress: false };
    LogSettings { target, text: false, mode, batching: BATCHING, truncate: None }
}

/// A server with a log beside its objects.
async fn server(dir: &std::path::Path, change: impl FnOnce(&mut Settings)) -> Server {
    let policy = dir.join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let mut settings = Settings { policy: Some(policy), ..Settings::default() };
    settings.log = Some(log(dir.join("audit.log"), Mode::Blocking));
    change(&mut settings);
    let audit = Audit::open(&settings, Arc::new(SystemClock), Arc::new(SystemRandom)).unwrap();
    Server::with(|config| {
        config.audit = audit;
        config.calls = settings.calls;
    })
    .await
}

fn events(dir: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn events_are_on_disk_before_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), |_| {}).await;
    let headers = [
        ("content-type", "application/json"),
        ("audit-id", "the-id"),
        ("user-agent", "tester/1"),
        ("x-forwarded-for", "10.1.2.3"),
    ];
    let body = json!({"metadata": {"name": "c"}, "data": {"a": "b"}}).to_string();
    let answer = server.send("POST", MAPS, &headers, body).await;
    assert_eq!((answer.code, &answer.headers["audit-id"]), (201, &"the-id".parse().unwrap()));
    let all = events(dir.path());
    assert_eq!(all.len(), 2);
    let (received, complete) = (&all[0], &all[1]);
    assert_eq!(
        (&received["stage"], &complete["stage"]),
        (&json!("RequestReceived"), &json!("ResponseComplete"))
    );
    assert!(received.get("responseStatus").is_none() && received.get("requestObject").is_none());
    for event in [received, complete] {
        assert_eq!(event["kind"], "Event");
        assert_eq!(event["apiVersion"], "audit.k8s.io/v1");
        assert_eq!(event["auditID"], "the-id");
        assert_eq!(event["level"], "RequestResponse");
        assert_eq!(event["requestURI"], MAPS);
        assert_eq!(event["verb"], "create");
        assert_eq!(event["userAgent"], "tester/1");
        assert_eq!(event["sourceIPs"], json!(["10.1.2.3", "::1"]));
        assert!(event["user"]["groups"].as_array().unwrap().contains(&json!("system:masters")));
    }
    assert_eq!(
        complete["objectRef"],
        json!({
            "resource": "configmaps", "namespace": "default", "name": "c", "apiVersion": "v1",
        })
    );
    assert_eq!(complete["responseStatus"]["code"], 201);
    assert_eq!(complete["requestObject"]["data"]["a"], "b");
    assert_eq!(complete["responseObject"]["kind"], "ConfigMap");
    assert!(complete["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(complete["annotations"]["authorization.k8s.io/decision"], "allow");
    // An answer in protobuf is written down as JSON, a patch as it was sent, an error with its reason.
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    assert_eq!(server.send("GET", &format!("{MAPS}/c"), &protobuf, "").await.code, 200);
    server.patch("merge", &format!("{MAPS}/c"), &json!({"data": {"a": "z"}})).await.expect(200);
    server.get(&format!("{MAPS}/none")).await.expect(404);
    server.get(MAPS).await.expect(200);
    let all: Vec<Value> =
        events(dir.path()).into_iter().filter(|e| e["stage"] == "ResponseComplete").collect();
    assert_eq!(all[1]["responseObject"]["data"]["a"], "b");
    assert_eq!(all[2]["requestObject"], json!({"data": {"a": "z"}}));
    assert_eq!(all[3]["responseStatus"]["reason"], "NotFound");
    assert_eq!(all[4]["responseObject"]["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn compressed_answers_and_slow_requests() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), |_| {}).await;
    for i in 0..3 {
        let body = json!({"metadata": {"name": format!("c{i}")}, "data": {"a": "x".repeat(100_000)}});
        server.post(MAPS, &body).await.expect(201);
    }
    let answer = server.send("GET", MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!((answer.code, &answer.headers["content-encoding"]), (200, &"gzip".parse().unwrap()));
    let last = events(dir.path()).pop().unwrap();
    assert_eq!((&last["verb"], &last["stage"]), (&json!("list"), &json!("ResponseComplete")));
    assert_eq!(last["responseObject"]["items"].as_array().unwrap().len(), 3);
    assert_eq!(last["responseObject"]["items"][0]["data"]["a"], "x".repeat(100_000));
    assert!(last["annotations"].get("apiserver.latency.k8s.io/total").is_none(), "{}", last["annotations"]);
}

/// A clock that is ahead by what it is told.
struct Ahead(Arc<std::sync::atomic::AtomicI64>);

impl yare_apiserver::Clock for Ahead {
    fn now(&self) -> jiff::Timestamp {
        let ahead = self.0.load(std::sync::atomic::Ordering::Relaxed);
        jiff::Timestamp::now() + jiff::SignedDuration::from_millis(ahead)
    }
}

#[tokio::test]
async fn a_policy_that_changes_is_read_again_and_slow_requests_say_where_time_went() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).unwrap();
    let settings = Settings {
        policy: Some(policy.clone()),
        log: Some(log(dir.path().join("audit.log"), Mode::Blocking)),
        ..Settings::default()
    };
    // Audit's clock is ahead of the server's, so that every request looks slow.
    let ahead = Arc::new(std::sync::atomic::AtomicI64::new(800));
    let audit = Audit::open(&settings, Arc::new(Ahead(ahead)), Arc::new(SystemRandom)).unwrap();
    let server = Server::with(|config| config.audit = audit).await;
    server.get("/api/v1/pods").await.expect(200);
    assert_eq!(events(dir.path()).len(), 0);
    // What is wrong changes nothing.
    std::fs::write(&policy, "kind: Nothing").unwrap();
    std::fs::write(policy.with_extension("new"), POLICY.replace("configmaps", "pods")).unwrap();
    std::fs::rename(policy.with_extension("new"), &policy).unwrap();
    for _ in 0..1000 {
        server.get("/api/v1/pods").await.expect(200);
        if !events(dir.path()).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let last = events(dir.path()).pop().unwrap();
    assert_eq!((&last["verb"], &last["stage"]), (&json!("list"), &json!("ResponseComplete")));
    let total = last["annotations"]["apiserver.latency.k8s.io/total"].as_str().unwrap();
    assert!(total.ends_with('s'), "{total}");
    for layer in ["authorization", "serialize-response-object", "transform-response-object"] {
        let name = format!("apiserver.latency.k8s.io/{layer}");
        assert!(last["annotations"][name.as_str()].is_string(), "{layer}: {last}");
    }
    let pods = "/api/v1/namespaces/default/pods";
    server
        .post(
            pods,
            &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        )
        .await
        .expect(201);
    let last = events(dir.path()).pop().unwrap();
    assert!(last["annotations"]["apiserver.latency.k8s.io/etcd"].is_string(), "{last}");
}

#[tokio::test]
async fn secrets_stay_out_and_watches_have_three_events() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), |_| {}).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    server.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201);
    server.get("/api/v1/namespaces/default/secrets/s").await.expect(200);
    server.get("/api/v1/namespaces/default/secrets").await.expect(200);
    server.get("/version").await.expect(200);
    server.get("/livez").await;
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"));
    let all = events(dir.path());
    assert_eq!(all.len(), 7, "{text}");
    assert_eq!((&all[6]["requestURI"], &all[6]["stage"]), (&json!("/version"), &json!("ResponseComplete")));
    assert!(all[6].get("objectRef").is_none());
    let watch = server.watch("/api/v1/namespaces/default/secrets?watch=1").await;
    let stages = || {
        let all = events(dir.path());
        let of_watch = all.iter().filter(|e| e["verb"] == "watch");
        of_watch.map(|e| e["stage"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(stages(), ["RequestReceived", "ResponseStarted"]);
    drop(watch);
    for _ in 0..1000 {
        if stages().len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stages(), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    let metrics = server.get("/metrics").await.text();
    assert!(metrics.contains("apiserver_audit_level_total{level=\"Metadata\"} 5\n"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_event_total 10\n"));
}

#[tokio::test]
async fn a_strict_log_that_fails_refuses_requests() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), |settings| {
        settings.log = Some(log("/dev/full".into(), Mode::BlockingStrict));
    })
    .await;
    let message = server.get(MAPS).await.expect_reason(500, "InternalError");
    assert_eq!(message, "Internal error occurred: failed to store audit event");
    // What the policy leaves out is served all the same.
    server.get("/api/v1/pods").await.expect(200);
    let metrics = server.get("/metrics").await.text();
    assert!(metrics.contains("apiserver_audit_requests_rejected_total 1\n"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"log\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_webhook_gets_events_in_batches_and_again_where_it_fails() {
    use http_body_util::{BodyExt as _, Full};
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut lists) = tokio::sync::mpsc::unbounded_channel::<Value>();
    let failures = Arc::new(std::sync::atomic::AtomicUsize::new(2));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, failures) = (sender.clone(), failures.clone());
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (sender, failures) = (sender.clone(), failures.clone());
                async move {
                    let authorized = request.headers()["authorization"] == "Bearer secret";
                    let path = request.uri().to_string();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let order = std::sync::atomic::Ordering::Relaxed;
                    let fails = failures.fetch_update(order, order, |n| n.checked_sub(1)).is_ok();
                    if !fails && authorized && path == "/in?timeout=30s" {
                        sender.send(serde_json::from_slice(&body).unwrap()).unwrap();
                    }
                    let code = if fails { 503 } else { 200 };
                    let answer = http::Response::builder().status(code).body(Full::<bytes::Bytes>::default());
                    Ok::<_, std::convert::Infallible>(answer.unwrap())
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let config = dir.path().join("kubeconfig");
    let text = format!(
        "{{current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}], clusters: [{{name: k, cluster: {{server: 'http://{address}/in'}}}}], users: [{{name: u, user: {{token: secret}}}}]}}"
    );
    std::fs::write(&config, text).unwrap();
    let server = server(dir.path(), |settings| {
        settings.log = None;
        settings.webhook = Some(WebhookSettings {
            config,
            initial_backoff: Duration::from_millis(1),
            mode: Mode::Batch,
            batching: BATCHING,
            truncate: Some(Truncate { event_bytes: 4000, batch_bytes: 100_000 }),
        });
    })
    .await;
    let big = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(5000)}});
    server.post(MAPS, &big).await.expect(201);
    server.get("/version").await.expect(200);
    let mut events: Vec<Value> = Vec::new();
    while events.len() < 3 {
        let list = tokio::time::timeout(Duration::from_secs(20), lists.recv()).await.unwrap().unwrap();
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
        events.extend(list["items"].as_array().unwrap().iter().cloned());
    }
    let cut = events.iter().find(|e| e["verb"] == "create" && e["stage"] == "ResponseComplete").unwrap();
    assert_eq!(cut["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(cut.get("requestObject").is_none() && cut["responseStatus"]["code"] == 201);
    // An answer is counted once it is read.
    let counted = |page: &str| {
        ["200", "503"].iter().all(|code| {
            page.contains(&format!(
                r#"rest_client_requests_total{{code="{code}",host="{address}",method="POST"}} "#
            ))
        })
    };
    let mut page = String::new();
    for _ in 0..400 {
        page = server.get("/metrics").await.text();
        if counted(&page) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(counted(&page), "{page}");
    // What is in the buffer at the end still goes out.
    server.get("/version").await.expect(200);
    server.api.shutdown().await;
    let last = tokio::time::timeout(Duration::from_secs(20), lists.recv()).await.unwrap().unwrap();
    assert_eq!(last["items"][0]["requestURI"], "/version");
}
