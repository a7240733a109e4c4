//! Priority and fairness, timeouts and the end of a server, on a real one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::Server;
use futures::{StreamExt as _, stream};
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use yare_apiserver::{ApiServer, User};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const FLOW_UID: &str = "x-kubernetes-pf-flowschema-uid";
const LEVEL_UID: &str = "x-kubernetes-pf-prioritylevel-uid";

/// What a user sees of a request: status, headers, text.
async fn send(
    api: &ApiServer,
    user: &str,
    groups: &[&str],
    method: &str,
    path: &str,
) -> http::Response<Bytes> {
    let request = Request::builder().method(method).uri(path).body(Full::<Bytes>::default()).unwrap();
    let response = api.service(User::new(user, groups)).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    http::Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

/// Begins a create whose body does not come until the sender is dropped: it holds its seat meanwhile.
fn hold(api: &ApiServer, user: &str) -> (tokio::task::JoinHandle<u16>, tokio::sync::mpsc::Sender<()>) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<()>(1);
    let body = stream::once(async move {
        let mut receiver = receiver;
        let _ = receiver.recv().await;
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(b"{}")))
    });
    let request = Request::builder()
        .method("POST")
        .uri("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(StreamBody::new(body))
        .unwrap();
    let service = api.service(User::new(user, &[]));
    let task = tokio::spawn(async move { service.oneshot(request).await.unwrap().status().as_u16() });
    (task, sender)
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} never came");
}

async fn metric(server: &Server, line: &str) -> Option<f64> {
    let text = server.get("/metrics").await.text();
    text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
}

/// A level and the schema of one user that leads to it.
async fn level(server: &Server, user: &str, limited: Value) {
    let spec = json!({"type": "Limited", "limited": limited});
    server.post(LEVELS, &json!({"metadata": {"name": user}, "spec": spec})).await.expect(201);
    let rule = json!({
        "subjects": [{"kind": "User", "user": {"name": user}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}],
    });
    let spec = json!({
        "priorityLevelConfiguration": {"name": user}, "matchingPrecedence": 50,
        "distinguisherMethod": {"type": "ByUser"}, "rules": [rule],
    });
    let schema = server.post(SCHEMAS, &json!({"metadata": {"name": user}, "spec": spec})).await.expect(201);
    let uid = schema["metadata"]["uid"].as_str().unwrap().to_owned();
    eventually("the schema in use", async || {
        let answer = send(&server.api, user, &[], "GET", "/api/v1/namespaces/default").await;
        answer.headers().get(FLOW_UID).is_some_and(|v| *v == *uid).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bootstrap_objects_exist_and_say_that_their_level_does() {
    let server = Server::start().await;
    let schemas = eventually("conditions", async || {
        let list = server.get(SCHEMAS).await.expect(200);
        let items = list["items"].as_array().unwrap().clone();
        let found = |o: &Value| o["status"]["conditions"][0]["reason"] == "Found";
        (items.len() == 11 && items.iter().all(found)).then_some(items)
    })
    .await;
    let exempt = schemas.iter().find(|o| o["metadata"]["name"] == "exempt").unwrap();
    assert_eq!(exempt["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"], "true");
    assert_eq!(exempt["status"]["conditions"][0]["status"], "False");
    let levels = server.get(LEVELS).await.expect(200);
    assert_eq!(levels["items"].as_array().unwrap().len(), 8);
    // Each request says which schema and level it was of.
    let uid = |list: &[Value], name: &str| {
        list.iter().find(|o| o["metadata"]["name"] == name).unwrap()["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for (user, groups, path, schema, level) in [
        ("root", &["system:masters"][..], "/api/v1/pods", "exempt", "exempt"),
        ("alice", &[], "/api/v1/pods", "global-default", "global-default"),
        ("alice", &[], "/livez", "probes", "exempt"),
        ("system:kube-scheduler", &[], "/api/v1/pods", "kube-scheduler", "workload-high"),
        ("system:node:n", &["system:nodes"], "/api/v1/nodes/n", "system-node-high", "node-high"),
        ("system:node:n", &["system:nodes"], "/api/v1/pods", "system-nodes", "system"),
        (
            "nobody",
            &["system:nobody"],
            "/api/v1/pods?watch=1&timeoutSeconds=1",
            "global-default",
            "global-default",
        ),
    ] {
        let answer = send(&server.api, user, groups, "GET", path).await;
        let want = [uid(&schemas, schema), uid(levels["items"].as_array().unwrap(), level)];
        for (header, want) in [FLOW_UID, LEVEL_UID].into_iter().zip(want) {
            assert_eq!(answer.headers()[header], want, "{user} {path} {header}");
        }
    }
    let limit = "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} ";
    assert_eq!(metric(&server, limit).await, Some(245.0));
}

#[tokio::test]
async fn a_level_that_is_gone_leaves_its_schema_dangling() {
    let server = Server::start().await;
    let spec = json!({"priorityLevelConfiguration": {"name": "later"}, "matchingPrecedence": 60, "rules": [{
        "subjects": [{"kind": "User", "user": {"name": "u"}}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    }]});
    server.post(SCHEMAS, &json!({"metadata": {"name": "s"}, "spec": spec})).await.expect(201);
    let condition = async |want: &str| {
        eventually(want, async || {
            let schema = server.get(&format!("{SCHEMAS}/s")).await.expect(200);
            let condition = schema["status"]["conditions"][0].clone();
            (condition["reason"] == want).then_some(condition)
        })
        .await
    };
    let dangling = condition("NotFound").await;
    assert_eq!(
        dangling["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"later\" but there is no such object"
    );
    assert_eq!(dangling["status"], "True");
    let limited = json!({"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}});
    let level = json!({"metadata": {"name": "later"}, "spec": {"type": "Limited", "limited": limited}});
    server.post(LEVELS, &level).await.expect(201);
    assert_eq!(condition("Found").await["status"], "False");
    server.delete(&format!("{LEVELS}/later")).await.expect(200);
    condition("NotFound").await;
}

#[tokio::test]
async fn requests_beyond_the_seats_wait_or_are_refused() {
    let server = Server::with(|config| {
        config.flow.readonly = 4;
        config.flow.mutating = 4;
        config.flow.request_timeout = Duration::from_secs(4);
    })
    .await;
    // A share so small that it is one seat, which cannot borrow.
    let queuing = json!({"queues": 1, "handSize": 1, "queueLengthLimit": 1});
    let limited = json!({
        "nominalConcurrencyShares": 1, "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Queue", "queuing": queuing},
    });
    level(&server, "slow", limited).await;
    let line = "apiserver_flowcontrol_current_limit_seats{priority_level=\"slow\"} ";
    assert_eq!(metric(&server, line).await, Some(1.0));
    let (first, let_first) = hold(&server.api, "slow");
    let running =
        "apiserver_flowcontrol_current_executing_requests{flow_schema=\"slow\",priority_level=\"slow\"} ";
    eventually("the first", async || metric(&server, running).await.filter(|n| *n == 1.0)).await;
    // The second waits in the queue.
    let api = server.api.clone();
    let second = tokio::spawn(async move { send(&api, "slow", &[], "GET", "/api/v1/pods").await.status() });
    let waiting =
        "apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"slow\",priority_level=\"slow\"} ";
    eventually("the second", async || metric(&server, waiting).await.filter(|n| *n == 1.0)).await;
    let dump =
        server.get("/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1").await.text();
    assert!(
        dump.lines().any(|l| l.contains("slow") && l.contains("/api/v1/pods") && l.contains("list")),
        "{dump}"
    );
    let dump = server.get("/debug/api_priority_and_fairness/dump_priority_levels").await.text();
    assert!(dump.starts_with("PriorityLevelName, ActiveQueues, "), "{dump}");
    let dump = server.get("/debug/api_priority_and_fairness/dump_queues").await.text();
    assert!(dump.lines().any(|l| l.starts_with("slow,")), "{dump}");
    // The third finds the queue full.
    let third = send(&server.api, "slow", &[], "GET", "/api/v1/pods").await;
    assert_eq!(third.status(), 429);
    assert_eq!(third.headers()["retry-after"], "1");
    assert_eq!(&third.body()[..], b"Too many requests, please try again later.\n");
    assert!(third.headers().contains_key(FLOW_UID) && third.headers().contains_key("audit-id"));
    // The administrator gets in all the same.
    server.get("/api/v1/pods").await.expect(200);
    // A client that goes away gives its place up.
    second.abort();
    eventually("an empty queue", async || metric(&server, waiting).await.filter(|n| *n == 0.0)).await;
    // The next waits a quarter of the request's time, no longer.
    let began = std::time::Instant::now();
    assert_eq!(send(&server.api, "slow", &[], "GET", "/api/v1/pods").await.status(), 429);
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    // With the seat free again, it runs.
    let api = server.api.clone();
    let fourth = tokio::spawn(async move { send(&api, "slow", &[], "GET", "/api/v1/pods").await.status() });
    eventually("the fourth", async || metric(&server, waiting).await.filter(|n| *n == 1.0)).await;
    drop(let_first);
    assert_eq!(first.await.unwrap(), 422);
    assert_eq!(fourth.await.unwrap(), 200);
    let rejected = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"slow\",priority_level=\"slow\",reason=\"queue-full\"} ";
    assert_eq!(metric(&server, rejected).await, Some(1.0));
    let rejected = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"slow\",priority_level=\"slow\",reason=\"time-out\"} ";
    assert_eq!(metric(&server, rejected).await, Some(2.0));
    assert_eq!(metric(&server, running).await, Some(0.0));
}

#[tokio::test]
async fn watches_hold_seats_only_while_they_begin() {
    let server = Server::with(|config| {
        config.flow.readonly = 4;
        config.flow.mutating = 4;
    })
    .await;
    let limited = json!({
        "nominalConcurrencyShares": 1, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"},
    });
    level(&server, "watcher", limited).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let request =
            Request::builder().uri("/api/v1/configmaps?watch=1").body(Full::<Bytes>::default()).unwrap();
        let response = server.api.service(User::new("watcher", &[])).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        // Polled once, so that the state at the start is out of the way.
        let _ = tokio::time::timeout(Duration::from_millis(1), body.frame()).await;
        open.push(body);
    }
    let line = "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"cluster\",subresource=\"\",verb=\"WATCH\",version=\"v1\"} ";
    assert_eq!(metric(&server, line).await, Some(10.0));
    let created =
        server.post("/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "c"}})).await;
    created.expect(201);
    for body in &mut open {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
        assert!(frame.is_some());
    }
    let count = "apiserver_watch_events_total{group=\"\",resource=\"configmaps\",version=\"v1\"} ";
    assert_eq!(metric(&server, count).await, Some(10.0));
    drop(open);
    assert_eq!(metric(&server, line).await, Some(0.0));
}

#[tokio::test]
async fn plain_limits_without_fairness() {
    let server = Server::with(|config| {
        config.flow.fair = false;
        config.flow.mutating = 1;
    })
    .await;
    let (first, release) = hold(&server.api, "a");
    let path = "/api/v1/namespaces/default/configmaps/x";
    let refused = eventually("a refusal", async || {
        let answer = send(&server.api, "b", &[], "DELETE", path).await;
        (answer.status() == 429).then_some(answer)
    })
    .await;
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(!refused.headers().contains_key(FLOW_UID));
    assert_eq!(send(&server.api, "b", &[], "GET", path).await.status(), 404);
    assert_eq!(send(&server.api, "root", &["system:masters"], "DELETE", path).await.status(), 404);
    drop(release);
    assert_eq!(first.await.unwrap(), 422);
    assert_eq!(server.get("/debug/api_priority_and_fairness/dump_queues").await.code, 404);
}

#[tokio::test]
async fn requests_end_in_time() {
    let server = Server::start().await;
    let answer = server.get("/api/v1/pods?timeout=never").await;
    let message = answer.expect_reason(400, "BadRequest");
    assert_eq!(message, "invalid timeout specified in the request URL - time: invalid duration \"never\"");
    let (sender, receiver) = tokio::sync::mpsc::channel::<()>(1);
    let body = stream::once(async move {
        let mut receiver = receiver;
        let _ = receiver.recv().await;
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(b"{}")))
    });
    let request = Request::builder()
        .method("POST")
        .uri("/api/v1/namespaces/default/configmaps?timeout=50ms")
        .header("content-type", "application/json")
        .body(StreamBody::new(body))
        .unwrap();
    let response = server.api.service(User::admin()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 504);
    let status: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(status["reason"], "Timeout");
    assert_eq!(status["message"], "Timeout: request did not complete within the allotted timeout");
    drop(sender);
    let line = "apiserver_request_terminations_total{code=\"504\",component=\"apiserver\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} ";
    assert_eq!(metric(&server, line).await, Some(1.0));
    // The body has an end now: the write goes on, and has no name to write under.
    let line = r#"apiserver_request_post_timeout_total{source="rest-handler",status="error"} "#;
    let ended = eventually("the end of the write", async || metric(&server, line).await).await;
    assert!((ended - 1.0).abs() < f64::EPSILON, "{ended}");
}

#[tokio::test]
async fn a_server_that_stops_finishes_what_it_began() {
    let server = Server::with(|config| config.shutdown.delay = Duration::from_millis(200)).await;
    let (first, release) = hold(&server.api, "a");
    let mut watch = server.watch("/api/v1/configmaps?watch=1&resourceVersion=1").await;
    let listener = ApiServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.api.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let ready = async |stream: &mut tokio::net::TcpStream, path: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = vec![0; 16 * 1024];
        let read = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    assert!(ready(&mut stream, "/readyz").await.starts_with("HTTP/1.1 200"));
    let stopping = server.api.clone();
    let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = stopped.clone();
    let stop = tokio::spawn(async move {
        stopping.shutdown().await;
        told.store(true, std::sync::atomic::Ordering::Release);
    });
    eventually("readyz fails", async || {
        let answer = server.get("/readyz").await;
        (answer.code == 500 && answer.text().contains("[-]shutdown failed: reason withheld\n")).then_some(())
    })
    .await;
    assert_eq!(server.get("/livez").await.code, 200);
    // Until the delay is over requests are taken.
    assert!(ready(&mut stream, "/version").await.starts_with("HTTP/1.1 200"));
    // Then watches end, and what runs is waited for.
    assert!(watch.next().await.is_none());
    assert!(!stopped.load(std::sync::atomic::Ordering::Acquire));
    drop(release);
    assert_eq!(first.await.unwrap(), 422);
    stop.await.unwrap();
}

#[tokio::test]
async fn probes_can_be_asked_in_detail() {
    let server = Server::start().await;
    let text = server.get("/readyz?verbose&exclude=etcd&exclude=nonsense").await.text();
    for line in [
        "[+]ping ok\n",
        "[+]etcd excluded: ok\n",
        "[+]poststarthook/priority-and-fairness-config-producer ok\n",
        "[+]poststarthook/storage-readiness ok\n",
        "[+]shutdown ok\n",
        "warn: some health checks cannot be excluded: no matches for \"nonsense\"\n",
        "readyz check passed\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    assert!(!server.get("/livez?verbose").await.text().contains("shutdown"));
    assert_eq!(server.get("/livez/ping").await.text(), "ok");
    assert_eq!(server.get("/livez/nonsense").await.code, 404);
    let slis = server.get("/metrics/slis").await.text();
    assert!(slis.contains("kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 1\n"), "{slis}");
    let id = server.send("GET", "/version", &[("audit-id", "mine")], "").await;
    assert_eq!(id.headers["audit-id"], "mine");
    let own = server.get("/version").await;
    assert_eq!(own.headers["audit-id"].len(), 36);
}

#[tokio::test]
async fn many_at_a_time_all_get_an_answer() {
    let server = Server::with(|config| {
        config.flow.readonly = 6;
        config.flow.mutating = 6;
    })
    .await;
    let codes = stream::iter(0..2000)
        .map(|n| {
            let api = server.api.clone();
            async move {
                let user = format!("u{}", n % 17);
                let method = if n % 3 == 0 { "DELETE" } else { "GET" };
                send(&api, &user, &[], method, "/api/v1/namespaces/default/configmaps/x")
                    .await
                    .status()
                    .as_u16()
            }
        })
        .buffer_unordered(500)
        .collect::<Vec<_>>()
        .await;
    assert_eq!(codes.len(), 2000);
    assert!(codes.iter().all(|code| matches!(code, 404 | 429)), "{codes:?}");
    for of in ["current_executing_requests", "current_executing_seats", "current_inqueue_requests"] {
        let line = format!(
            "apiserver_flowcontrol_{of}{{flow_schema=\"global-default\",priority_level=\"global-default\"}} "
        );
        assert_eq!(metric(&server, &line).await, Some(0.0), "{of}");
    }
}
