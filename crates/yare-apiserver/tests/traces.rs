//! Traces of requests, sent to a real collector.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/outside.rs"]
mod outside;
#[path = "common/secure.rs"]
mod secure;

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use http_body_util::BodyExt as _;
use outside::{NONE, Outside, outside};
use secure::{Cluster, cluster_with, issue};
use serde_json::{Value, json};
use yare_apiserver::{SystemClock, SystemRandom, trace};
use yare_auth::{config::tracing::TracingConfiguration, pki::Usage};
use yare_testkit::{SentSpan, TraceCollector};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A cluster that sends `rate` of a million traces.
async fn cluster(endpoint: &str, rate: u32) -> Cluster {
    let file = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: '{endpoint}'\nsamplingRatePerMillion: {rate}"
    );
    let configuration = TracingConfiguration::parse(file.as_bytes()).unwrap();
    cluster_with(|config, _| {
        let soon = Some(Duration::from_millis(20));
        let (clock, random) = (Arc::new(SystemClock), Arc::new(SystemRandom));
        config.tracer = Some(trace::start(&configuration, "apiserver-test", None, clock, random, soon));
    })
    .await
}

fn collector(dir: &Path) -> TraceCollector {
    TraceCollector::started(&dir.join("collector.sock")).unwrap()
}

/// A span with that name, of that trace where it is one.
fn named(name: &'static str, trace: &'static str) -> impl Fn(&SentSpan) -> bool {
    move |span| span.name == name && (trace.is_empty() || span.trace == trace)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_with_traces_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let collector = collector(dir.path());
    let cluster = cluster(&collector.endpoint(), 0).await;
    let admin = cluster.admin();
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [
        ("traceparent", parent.as_str()),
        ("audit-id", "of-this-one"),
        ("user-agent", "test/1"),
        ("accept", "application/json"),
    ];
    let hook = outside(|_, review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    })
    .await;
    install(&cluster, &hook).await;
    let map = json!({"metadata": {"name": "a"}});
    // Until admission has heard of the webhook: a moment.
    let mut asked = 0;
    for n in 0..500 {
        let map = json!({"metadata": {"name": format!("first-{n}")}});
        cluster.create(CONFIG_MAPS, &map).await;
        asked = hook.asked.lock().len();
        if asked > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked > 0);
    let (code, made) = cluster.json(Some(&admin), Method::POST, CONFIG_MAPS, &headers, &map).await;
    assert_eq!(code, 201, "{made}");
    let request = collector.until(named("POST /api/v1/namespaces/{:namespace}/configmaps", TRACE)).unwrap();
    assert_eq!((request.kind, request.parent.as_str(), request.failed), (2, SPAN, false));
    assert_eq!(request.resource["service.name"], "apiserver");
    assert_eq!(request.resource["service.instance.id"], "apiserver-test");
    assert!(request.took_ns > 0);
    let size: usize = request.attributes["http.response.body.size"].parse().unwrap();
    assert!(size > 100, "{size}");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "201"),
        ("http.target", CONFIG_MAPS),
        ("url.path", CONFIG_MAPS),
        ("url.scheme", "https"),
        ("server.address", "x"),
        ("client.address", "127.0.0.1"),
        ("network.peer.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "test/1"),
        ("audit-id", "of-this-one"),
    ] {
        assert_eq!(request.attributes[key], value, "{key}");
    }
    let verb = collector.until(named("Create", TRACE)).unwrap();
    assert_eq!(verb.kind, 1);
    // As upstream's handlers lie in each other.
    let layers = ["audit", "constrainedimpersonation", "priorityandfairness", "authorization", "Create"];
    let inside = |outer: &str| [&[outer], &layers[..]].concat().join(" > ");
    let spans = collector.spans();
    assert_eq!(way(&spans, &verb), inside("POST /api/v1/namespaces/{:namespace}/configmaps"));
    assert_eq!(
        verb.events,
        [
            "limitedReadBody succeeded",
            "About to store object in database",
            "Write to database call succeeded",
            "About to write a response",
            "Writing http response done",
        ]
    );
    let stored = collector.until(named("Create etcd3", TRACE)).unwrap();
    assert_eq!(stored.parent, verb.id);
    assert_eq!(stored.events, ["About to Encode", "Encode succeeded", "Txn call succeeded"]);
    for (key, value) in [
        ("audit-id", "of-this-one"),
        ("key", "/configmaps/default/a"),
        ("type", "*core.ConfigMap"),
        ("group", ""),
        ("resource", "configmaps"),
    ] {
        assert_eq!(stored.attributes[key], value, "{key}");
    }
    let answered = collector.until(named("SerializeObject", TRACE)).unwrap();
    assert_eq!(answered.parent, verb.id);
    assert_eq!(answered.attributes["mediaType"], "application/json");
    assert_eq!(answered.events, ["About to start writing response", "Write call succeeded"]);
    for (key, value) in [
        ("accept", "application/json"),
        ("api-group", ""),
        ("api-version", "v1"),
        ("audit-id", "of-this-one"),
        ("client", "127.0.0.1"),
        ("name", ""),
        ("namespace", "default"),
        ("protocol", "HTTP/1.1"),
        ("resource", "configmaps"),
        ("scope", "resource"),
        ("subresource", ""),
        ("url", CONFIG_MAPS),
        ("user-agent", "test/1"),
        ("verb", "POST"),
    ] {
        assert_eq!(verb.attributes[key], value, "{key}");
    }
    let called = collector.until(named("Call validating webhook", TRACE)).unwrap();
    assert_eq!(called.parent, verb.id);
    for (key, value) in [
        ("configuration", "hooks"),
        ("webhook", "hook.example.com"),
        ("resource", "/v1, Resource=configmaps"),
        ("operation", "CREATE"),
    ] {
        assert_eq!(called.attributes[key], value, "{key}");
    }
    // What is asked on the request's behalf belongs to it.
    let asked = hook.asked.lock().last().cloned().unwrap();
    let sent = collector.until(named("HTTP POST", TRACE)).unwrap();
    assert_eq!((sent.kind, &sent.parent), (3, &called.id));
    assert_eq!(sent.attributes["url.full"], format!("https://127.0.0.1:{}/hook?timeout=10s", hook.port));
    assert_eq!(sent.attributes["http.response.status_code"], "200");
    assert_eq!(asked["traceparent"], format!("00-{TRACE}-{}-01", sent.id));
    assert_eq!(called.events, ["Request completed"]);
    assert_eq!(called.attributes["UID"], asked["body"]["request"]["uid"].as_str().unwrap());

    // Others cannot have their requests recorded, and nobody's are by chance; a sampled list and what fails come later.
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    cluster.json(Some(&jane), Method::GET, "/version", &headers, &NONE).await;
    cluster.json(Some(&admin), Method::GET, "/api/v1/nodes", &[], &NONE).await;
    let unsampled = format!("00-{TRACE}-{SPAN}-00");
    cluster.json(Some(&admin), Method::GET, "/api/v1/pods", &[("traceparent", &unsampled)], &NONE).await;
    let list = cluster.json(Some(&admin), Method::GET, CONFIG_MAPS, &headers, &NONE).await;
    assert_eq!(list.0, 200);
    let list = collector.until(named("GET /api/v1/namespaces/{:namespace}/configmaps", "")).unwrap();
    let verb = collector.until(named("List", TRACE)).unwrap();
    assert_eq!(verb.attributes["verb"], "LIST");
    let cached = collector.until(named("cacher.GetList", TRACE)).unwrap();
    assert_eq!((&cached.parent, cached.attributes["type"].as_str()), (&verb.id, "configmaps"));
    assert_eq!(cached.events, ["Ready", "Listed items from cache", "Filtered items"]);
    let spans = collector.spans();
    assert!(way(&spans, &verb).starts_with("GET /api/v1/namespaces/{:namespace}/configmaps > audit > "));
    assert_eq!(verb.trace, list.trace);
    cluster.api.shutdown().await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    for name in ["GET", "GET /api/v1/nodes", "GET /api/v1/pods"] {
        assert!(!spans.iter().any(|span| span.name == name), "{name}");
    }
}

/// Has the server ask `hook` about every ConfigMap that is made.
async fn install(cluster: &Cluster, hook: &Outside) {
    let webhooks = json!({
        "metadata": {"name": "hooks"},
        "webhooks": [{
            "name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "url": format!("https://127.0.0.1:{}/hook", hook.port),
                "caBundle": STANDARD.encode(&hook.authority),
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}],
        }],
    });
    let registrations = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    cluster.create(registrations, &webhooks).await;
}

/// The names of the spans that a span lies in, from the outside, and its own.
fn way(spans: &[SentSpan], span: &SentSpan) -> String {
    let mut names = vec![span.name.as_str()];
    let mut at = span;
    while let Some(outer) = spans.iter().find(|other| other.id == at.parent) {
        names.insert(0, &outer.name);
        at = outer;
    }
    names.join(" > ")
}

/// What is asked of a server that records nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_are_handed_on_where_none_are_recorded() {
    let cluster = cluster_with(|_, _| {}).await;
    let admin = cluster.admin();
    let hook = outside(|_, review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    })
    .await;
    install(&cluster, &hook).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [("traceparent", parent.as_str())];
    let mut asked = None;
    for n in 0..500 {
        let map = json!({"metadata": {"name": format!("a-{n}")}});
        cluster.json(Some(&admin), Method::POST, CONFIG_MAPS, &headers, &map).await;
        asked = hook.asked.lock().first().cloned();
        if asked.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked.unwrap()["traceparent"], parent.as_str());
    cluster.api.shutdown().await;
}

/// What reads, changes and removes an object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_have_steps() {
    let dir = tempfile::tempdir().unwrap();
    let collector = collector(dir.path());
    let cluster = cluster(&collector.endpoint(), 1_000_000).await;
    let admin = cluster.admin();
    let object = json!({"metadata": {"name": "a", "finalizers": ["example.com/stays"]}});
    cluster.create(CONFIG_MAPS, &object).await;
    let at = format!("{CONFIG_MAPS}/a");
    let run = async |method: Method, path: &str, id: &str, media: &str, body: &Value| {
        let headers = [("audit-id", id), ("content-type", media)];
        let (code, _) = cluster.json(Some(&admin), method, path, &headers, body).await;
        assert_eq!(code, 200, "{id}");
    };
    let merge = "application/merge-patch+json";
    run(Method::GET, &at, "gets", "", &NONE).await;
    run(Method::GET, &format!("{at}?resourceVersion=0"), "gets-any", "", &NONE).await;
    run(Method::PATCH, &at, "patches", merge, &json!({"data": {"a": "1"}})).await;
    run(Method::PATCH, &format!("{at}?dryRun=All"), "tries", merge, &json!({"data": {"a": "2"}})).await;
    run(
        Method::DELETE,
        &at,
        "marks",
        "application/json",
        &json!({"kind": "DeleteOptions", "apiVersion": "v1"}),
    )
    .await;
    let watch = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    );
    let watched = cluster.request(Some(&admin), Method::GET, &watch, &[("audit-id", "watches")], &NONE).await;
    let watched = watched.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&watched).contains("k8s.io/initial-events-end"), "{watched:?}");
    let long = "x".repeat(100);
    cluster.json(Some(&admin), Method::GET, &at, &[("audit-id", &long)], &NONE).await;
    cluster.api.shutdown().await;
    let spans = collector.spans();
    let find = |id: &str, name: &str| {
        let of =
            |span: &&SentSpan| span.name == name && span.attributes.get("audit-id").is_some_and(|i| i == id);
        spans.iter().find(of)
    };
    let events = |id: &str, name: &str| find(id, name).map(|span| span.events.join(", ")).unwrap_or_default();
    assert_eq!(
        events("gets", "Get"),
        "About to Get from storage, About to write a response, Writing http response done"
    );
    assert_eq!(events("gets", "cacher.Get"), "About to Get from underlying storage");
    assert_eq!(events("gets-any", "cacher.Get"), "About to fetch object from cache");
    assert_eq!(find("gets-any", "cacher.Get").unwrap().attributes["resource-version"], "0");
    assert_eq!(
        events("patches", "Patch"),
        "limitedReadBody succeeded, Recorded the audit event, About to apply patch, \
         About to check admission control, Object stored in database, About to write a response, \
         Writing http response done"
    );
    let update = "initial value restored, About to Encode, Encode succeeded, Transaction prepared, \
                  Txn call completed, Transaction committed";
    assert_eq!(events("patches", "GuaranteedUpdate etcd3"), update);
    assert_eq!(find("tries", "GuaranteedUpdate etcd3"), None);
    assert_eq!(
        events("marks", "Delete"),
        "limitedReadBody succeeded, Decoded delete options, Recorded the audit event, \
         About to delete object from database, Object deleted from database, About to write a response, \
         Writing http response done"
    );
    assert_eq!(events("marks", "GuaranteedUpdate etcd3"), update);
    let list = find("watches", "WatchList").unwrap();
    let server = find("watches", "WatchServer.HandleHTTP").unwrap();
    assert_eq!(server.events, ["About to start writing response", "Writing initial events done"]);
    assert_eq!((&server.parent, &find("watches", "cacher.Watch").unwrap().parent), (&list.id, &list.id));
    // Of an administrator, the request is part of what finds out that it is one.
    let way = way(&spans, find("gets", "Get").unwrap());
    assert!(
        way.starts_with("authentication > GET /api/v1/namespaces/{:namespace}/configmaps/{:name} > audit > "),
        "{way}"
    );
    assert!(find(&long[..64], "Get").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_begin_traces() {
    let dir = tempfile::tempdir().unwrap();
    let collector = collector(dir.path());
    // By a host and a port, as collectors are usually reached.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let socket = dir.path().join("collector.sock");
    let bridge = tokio::spawn(async move {
        while let Ok((mut outer, _)) = listener.accept().await {
            let mut inner = tokio::net::UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut outer, &mut inner).await });
        }
    });
    let cluster = cluster(&address, 1_000_000).await;
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    let parent = format!("00-{TRACE}-{SPAN}-00");
    let headers = [("traceparent", parent.as_str()), ("audit-id", "janes")];
    let refused = cluster.json(Some(&jane), Method::GET, CONFIG_MAPS, &headers, &NONE).await;
    assert_eq!(refused.0, 403);
    let of = |id: &'static str| {
        move |span: &SentSpan| span.kind == 2 && span.attributes.get("audit-id").is_some_and(|i| i == id)
    };
    let janes = of("janes");
    let request = collector.until(janes).unwrap();
    assert_eq!(request.name, "GET /api/v1/namespaces/{:namespace}/configmaps");
    assert_eq!((request.parent.as_str(), request.links), ("", vec![SPAN.to_owned()]));
    assert_ne!(request.trace, TRACE);
    assert_eq!((request.attributes["http.response.status_code"].as_str(), request.failed), ("403", false));
    // Whoever is not known leaves no trace; what the server itself gets wrong says so.
    let nobody = [("authorization", "Bearer nonsense"), ("audit-id", "nobodys")];
    assert_eq!(cluster.json(None, Method::GET, "/version", &nobody, &NONE).await.0, 401);
    let admin = cluster.admin();
    let broken = [("audit-id", "broken")];
    let path = "/api/v1/nodes/none/proxy/";
    let code = cluster.json(Some(&admin), Method::GET, path, &broken, &NONE).await.0;
    let proxied = collector.until(of("broken")).unwrap();
    assert_eq!(proxied.attributes["http.response.status_code"], code.to_string());
    assert_eq!(proxied.failed, code >= 500);
    cluster.api.shutdown().await;
    assert!(!collector.spans().iter().any(of("nobodys")));
    bridge.abort();
}
