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
use outside::{NONE, outside};
use secure::{Cluster, cluster_with, issue};
use serde_json::json;
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
    assert_eq!((verb.kind, &verb.parent), (1, &request.id));
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
    assert_eq!(asked["traceparent"], format!("00-{TRACE}-{}-01", called.id));
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
    assert_eq!((&verb.parent, verb.attributes["verb"].as_str()), (&list.id, "LIST"));
    cluster.api.shutdown().await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    for name in ["GET", "GET /api/v1/nodes", "GET /api/v1/pods"] {
        assert!(!spans.iter().any(|span| span.name == name), "{name}");
    }
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
    let janes = |span: &SentSpan| span.attributes.get("audit-id").is_some_and(|id| id == "janes");
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
    let of =
        |id: &'static str| move |span: &SentSpan| span.attributes.get("audit-id").is_some_and(|i| i == id);
    let proxied = collector.until(of("broken")).unwrap();
    assert_eq!(proxied.attributes["http.response.status_code"], code.to_string());
    assert_eq!(proxied.failed, code >= 500);
    cluster.api.shutdown().await;
    assert!(!collector.spans().iter().any(of("nobodys")));
    bridge.abort();
}
