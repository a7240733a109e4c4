//! What `/metrics` says of what was done.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::collections::HashSet;

use bytes::Bytes;
use common::Server;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use secure::{cluster, issue};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use yare_apiserver::User;
use yare_auth::pki::Usage;

/// How often it was found out who a caller is.
fn attempts(page: &str) -> u64 {
    let counts =
        page.lines().filter_map(|line| line.strip_prefix("authentication_attempts{")?.split(' ').nth(1));
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

fn assert_lines(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|l| l == *line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn lists_watches_and_versions_on_their_way_out() {
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b", "c"] {
        let labels = json!({"only": name});
        server.post(maps, &json!({"metadata": {"name": name, "labels": labels}})).await.expect(201);
    }
    server.get(maps).await.expect(200);
    server.get(&format!("{maps}?labelSelector=only%3Da")).await.expect(200);
    server.get("/api/v1/namespaces/default/endpoints").await.expect(200);
    server.get(&format!("{maps}/a?resourceVersion=1")).await.expect(200);
    let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = server.watch(&format!("{maps}?watch=1&{list}")).await;
    for expected in ["ADDED a", "ADDED b", "ADDED c", "BOOKMARK "] {
        assert_eq!(events.brief().await, expected);
    }
    let page = server.get("/metrics").await.text();
    assert_lines(
        &page,
        &[
            r#"apiserver_resource_objects{group="",resource="configmaps"} 3"#,
            r#"apiserver_storage_objects{resource="configmaps"} 3"#,
            r#"apiserver_storage_events_received_total{group="",resource="configmaps"} 3"#,
            r#"apiserver_cache_list_total{group="",index="",resource="configmaps"} 2"#,
            r#"apiserver_cache_list_fetched_objects_total{group="",index="",resource="configmaps"} 6"#,
            r#"apiserver_cache_list_returned_objects_total{group="",resource="configmaps"} 4"#,
            r#"apiserver_storage_list_total{group="",resource="configmaps"} 2"#,
            r#"apiserver_storage_list_fetched_objects_total{group="",resource="configmaps"} 6"#,
            r#"apiserver_storage_list_evaluated_objects_total{group="",resource="configmaps"} 6"#,
            r#"apiserver_storage_list_returned_objects_total{group="",resource="configmaps"} 4"#,
            r#"apiserver_watch_cache_consistent_read_total{fallback="false",group="",resource="configmaps",success="true"} 2"#,
            r#"apiserver_watch_cache_events_dispatched_total{group="",resource="configmaps"} 3"#,
            r#"apiserver_watch_cache_initializations_total{group="",resource="configmaps"} 1"#,
            r#"apiserver_watch_cache_read_wait_seconds_count{group="",resource="configmaps"} 1"#,
            r#"apiserver_init_events_total{group="",resource="configmaps"} 3"#,
            r#"apiserver_watch_list_duration_seconds_count{group="",resource="configmaps",scope="namespace",version="v1"} 1"#,
            r#"apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1"#,
        ],
    );
    let bytes = page
        .lines()
        .find_map(|l| l.strip_prefix("apiserver_storage_size_bytes{storage_cluster_id=\"embedded\"} "));
    assert!(bytes.unwrap().parse::<u64>().unwrap() > 0);
    assert!(page.contains("kubernetes_build_info{build_date="));
    assert_lines(
        &page,
        &[
            r#"version_info{binary="1.36",component="kube",emulation="1.36",min_compat="1.35"} 1"#,
            "apiserver_validation_declarative_validation_mismatch_total 0",
            r#"registered_metrics_total{deprecated_version="1.34.0",stability_level="STABLE"} 1"#,
        ],
    );
    assert!(!page.contains("] \n"), "a family has no help");
    // Each family is there once, and has all its samples.
    let mut seen = HashSet::new();
    let mut current = "";
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            current = family.split(' ').next().unwrap();
            assert!(seen.insert(current), "{current} stands there twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(current), "{line} stands below {current}");
        }
    }
}

#[tokio::test]
async fn requests_their_bodies_and_their_steps() {
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let map =
        |name: &str, bytes: usize| json!({"metadata": {"name": name}, "data": {"a": "x".repeat(bytes)}});
    server.post(maps, &map("a", 10)).await.expect(201);
    server.post(maps, &map("b", 60_000)).await.expect(201);
    server.patch("merge", &format!("{maps}/a"), &json!({"data": {"b": "c"}})).await.expect(200);
    server.delete(&format!("{maps}/a")).await.expect(200);
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    server.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await.expect(201);
    let own = server.api.service(User::new("system:apiserver", &["system:masters"]));
    for path in [maps, "/api/v1/configmaps"] {
        let request = Request::builder().uri(path).body(Full::<Bytes>::default()).unwrap();
        let response = own.clone().oneshot(request).await.unwrap();
        // It ends with its answer.
        response.into_body().collect().await.unwrap();
    }
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for _ in 0..2 {
        assert_eq!(server.send("GET", "/apis", &[("accept", aggregated)], "").await.code, 200);
    }
    let page = server.get("/metrics").await.text();
    assert_lines(
        &page,
        &[
            r#"apiserver_request_body_size_bytes_bucket{group="",resource="configmaps",verb="create",le="50000"} 1"#,
            r#"apiserver_request_body_size_bytes_bucket{group="",resource="configmaps",verb="create",le="150000"} 2"#,
            r#"apiserver_request_body_size_bytes_bucket{group="",resource="configmaps",verb="create",le="3.05e+06"} 2"#,
            r#"apiserver_request_body_size_bytes_sum{group="",resource="configmaps",verb="patch"} 18"#,
            r#"apiserver_request_body_size_bytes_count{group="",resource="configmaps",verb="delete"} 1"#,
            r#"apiserver_request_body_size_bytes_count{group="authorization.k8s.io",resource="selfsubjectaccessreviews",verb="create"} 1"#,
            r#"apiserver_selfrequest_total{group="",resource="configmaps",subresource="",verb="LIST"} 2"#,
            "aggregator_discovery_aggregation_count_total 1",
        ],
    );
    let steps = |page: &str, filter: &str| {
        let name = format!("apiserver_request_filter_duration_seconds_count{{filter=\"{filter}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let next = server.get("/metrics").await.text();
    for filter in ["priorityandfairness", "authorization"] {
        assert_eq!(steps(&next, filter), steps(&page, filter) + 1, "{filter}");
    }
}

#[tokio::test]
async fn what_pods_ask_for() {
    let server = Server::start().await;
    let empty = server.get("/metrics/resources").await;
    assert_eq!(empty.text(), "");
    let resources = json!({"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}});
    let pod = |name: &str, node: &str| {
        let containers = json!([{"name": "a", "image": "b", "resources": resources}]);
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": containers}})
    };
    let pods = "/api/v1/namespaces/default/pods";
    server.post(pods, &pod("runs", "n")).await.expect(201);
    server.post(pods, &pod("ended", "n")).await.expect(201);
    let ended = json!({"status": {"phase": "Succeeded"}});
    server.patch("merge", &format!("{pods}/ended/status"), &ended).await.expect(200);
    let page = server.get("/metrics/resources").await.text();
    let labels = |resource: &str, unit: &str| {
        format!(
            r#"{{namespace="default",node="n",pod="runs",priority="0",resource="{resource}",scheduler="default-scheduler",unit="{unit}"}}"#
        )
    };
    let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        samples,
        [
            format!("kube_pod_resource_limit{} 33554432", labels("memory", "bytes")),
            format!("kube_pod_resource_request{} 0.25", labels("cpu", "cores")),
            format!("kube_pod_resource_request{} 16777216", labels("memory", "bytes")),
        ]
    );
}

#[tokio::test]
async fn certificates_tokens_and_the_graph_of_nodes() {
    let cluster = cluster().await;
    let admin = issue(&cluster.pki.cluster, Usage::Client, "admin", &["system:masters"]);
    let ask = async |method: Method, path: &str, body: Value| {
        let (code, answer) = cluster.json(Some(&admin), method, path, &[], &body).await;
        assert!(code < 300, "{path}: {answer}");
        answer
    };
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    ask(Method::POST, accounts, json!({"metadata": {"name": "default"}})).await;
    let token = ask(Method::POST, &format!("{accounts}/default/token"), json!({"spec": {}})).await;
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    for _ in 0..3 {
        let headers = [("authorization", bearer.as_str())];
        cluster.json(None, Method::GET, "/version", &headers, &Value::Null).await;
    }
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
    });
    let pods = "/api/v1/namespaces/default/pods";
    ask(Method::POST, pods, pod).await;
    ask(Method::DELETE, &format!("{pods}/p?gracePeriodSeconds=0"), Value::Null).await;
    let mut page = String::new();
    // The graph follows the store.
    for _ in 0..200 {
        let answer = cluster.request(Some(&admin), Method::GET, "/metrics", &[], &Value::Null).await;
        page = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        if page.contains("operation=\"DeletePod\"") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_lines(
        &page,
        &[
            r#"authentication_token_cache_request_total{status="hit"} 2"#,
            r#"authentication_token_cache_request_total{status="miss"} 1"#,
            r#"authentication_token_cache_fetch_total{status="ok"} 1"#,
            &format!(
                r#"apiserver_request_filter_duration_seconds_count{{filter="authentication"}} {}"#,
                attempts(&page)
            ),
            r#"node_authorizer_graph_actions_duration_seconds_count{operation="DeletePod"} 1"#,
            r#"apiserver_client_certificate_expiration_seconds_bucket{le="43200"} 0"#,
        ],
    );
    let shown = page.lines().find_map(|l| {
        l.strip_prefix("apiserver_client_certificate_expiration_seconds_bucket{le=\"86400\"} ")
    });
    assert!(shown.unwrap().parse::<u64>().unwrap() > 4, "{page}");
    cluster.api.shutdown().await;
}
