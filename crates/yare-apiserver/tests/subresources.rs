//! Subresources and reviews over the in-process service.

mod common;

use common::Server;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn binding() {
    let server = Server::start().await;
    server.post(PODS, &pod("p", json!({}))).await.expect(201);
    let bind = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    // Upstream makes no status of these errors.
    let refused = server.post(&format!("{PODS}/p/binding"), &bind("")).await.expect(500);
    assert_eq!(refused["message"], "target.name: Required value");
    assert_eq!(server.post(&format!("{PODS}/p/binding"), &bind("n1")).await.expect(201)["status"], "Success");
    let bound = server.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let scheduled = bound["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["status"] == "True");
    assert!(scheduled, "{bound}");
    let message = server.post(&format!("{PODS}/p/binding"), &bind("n2")).await.expect_reason(409, "Conflict");
    assert!(message.contains("pod p is already assigned to node \"n1\""), "{message}");
    let list = server.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1")).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    server.post(PODS, &pod("q", json!({}))).await.expect(201);
    let mut other = bind("n1");
    other["metadata"]["name"] = "q".into();
    let bindings = "/api/v1/namespaces/default/bindings";
    server.post(bindings, &other).await.expect(201);
    // Without a name, neither way knows the pod.
    for (path, message) in [
        (format!("{PODS}/q/binding"), "name in URL does not match name in Binding object"),
        (bindings.to_owned(), "Name parameter required."),
    ] {
        let nameless =
            json!({"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "n1"}});
        assert_eq!(server.post(&path, &nameless).await.expect_reason(400, "BadRequest"), message);
    }
}

/// Nothing is tried out by connecting; logs are read and not connected to.
#[tokio::test]
async fn connections_are_no_dry_runs() {
    let server = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    for path in [
        format!("{PODS}/p/exec?command=ls&dryRun=All"),
        format!("{PODS}/p/attach?dryRun=All"),
        format!("{PODS}/p/portforward?dryRun="),
        format!("{PODS}/p/proxy/a?dryRun=All"),
        format!("{services}/s/proxy/?dryRun=All"),
        "/api/v1/nodes/n/proxy/?dryRun=All".to_owned(),
    ] {
        let message = server.get(&path).await.expect_reason(400, "BadRequest");
        assert_eq!(message, "dryRun is not supported", "{path}");
    }
    server.get(&format!("{PODS}/p/log?dryRun=All")).await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn eviction() {
    let server = Server::start().await;
    let evict =
        |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    for name in ["a", "b"] {
        server.post(PODS, &pod(name, json!({"app": "x"}))).await.expect(201);
        let running =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        server.patch("merge", &format!("{PODS}/{name}/status"), &running).await.expect(200);
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    server.post(budgets, &json!({"metadata": {"name": "x"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}})).await.expect(201);
    let status = |allowed: i64| json!({"status": {"disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2, "observedGeneration": 1}});
    server.patch("merge", &format!("{budgets}/x/status"), &status(0)).await.expect(200);
    let message =
        server.post(&format!("{PODS}/a/eviction"), &evict("a")).await.expect_reason(429, "TooManyRequests");
    assert_eq!(message, "Cannot evict pod as it would violate the pod's disruption budget.");
    server.patch("merge", &format!("{budgets}/x/status"), &status(1)).await.expect(200);
    server.post(&format!("{PODS}/a/eviction"), &evict("a")).await.expect(201);
    server.get(&format!("{PODS}/a")).await.expect_reason(404, "NotFound");
    let budget = server.get(&format!("{budgets}/x")).await.expect(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["a"].is_string());
    server.post(&format!("{PODS}/b/eviction"), &evict("b")).await.expect_reason(429, "TooManyRequests");
    // As those who drain nodes for long send it.
    let old = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "b"}});
    server.post(&format!("{PODS}/b/eviction"), &old).await.expect_reason(429, "TooManyRequests");
    let other = json!({"apiVersion": "policy/v2", "kind": "Eviction", "metadata": {"name": "b"}});
    server.post(&format!("{PODS}/b/eviction"), &other).await.expect_reason(400, "BadRequest");
    server.post(&format!("{PODS}/none/eviction"), &evict("none")).await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn an_evicted_pod_says_so() {
    let server = Server::start().await;
    let evict = |options: Value| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}, "deleteOptions": options});
    let condition = |pod: &Value| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "DisruptionTarget")
    };
    let mut held = pod("a", json!({"app": "x"}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    server.post(PODS, &held).await.expect(201);
    let path = format!("{PODS}/a/eviction");
    // Neither a rehearsal nor a refused eviction leaves a trace.
    server.post(&path, &evict(json!({"dryRun": ["All"]}))).await.expect(201);
    server
        .post(&path, &evict(json!({"preconditions": {"resourceVersion": "1"}})))
        .await
        .expect_reason(409, "Conflict");
    let before = server.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(condition(&before), None);
    let options = json!({"preconditions": {"resourceVersion": before["metadata"]["resourceVersion"]}});
    server.post(&path, &evict(options)).await.expect(201);
    let after = server.get(&format!("{PODS}/a")).await.expect(200);
    assert!(after["metadata"]["deletionTimestamp"].is_string());
    let first = condition(&after).expect("the condition");
    assert_eq!(first["status"], "True");
    assert_eq!(first["reason"], "EvictionByEvictionAPI");
    assert_eq!(first["message"], "Eviction API: evicting");
    // Once more changes nothing.
    server.post(&path, &evict(json!({}))).await.expect(201);
    let again = server.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(condition(&again), Some(first));
}

#[tokio::test]
async fn namespaces_finalize() {
    let server = Server::start().await;
    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(201);
    server.delete("/api/v1/namespaces/x").await.expect(200);
    let mut namespace = server.get("/api/v1/namespaces/x").await.expect(200);
    namespace["spec"]["finalizers"] = json!([]);
    server.put("/api/v1/namespaces/x/finalize", &namespace).await.expect(200);
    server.get("/api/v1/namespaces/x").await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn reviews() {
    let server = Server::start().await;
    let me = server.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "system:admin");
    let may = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        )
        .await
        .expect(201);
    assert_eq!(may["status"]["allowed"], true);
    server
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &json!({"spec": {}}))
        .await
        .expect_reason(422, "Invalid");
    let rules = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &json!({"spec": {"namespace": "default"}}),
        )
        .await
        .expect(201);
    assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    server
        .get("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .await
        .expect_reason(405, "MethodNotAllowed");
}

#[tokio::test]
async fn two_faces_of_one_object() {
    let server = Server::start().await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/c", "reportingInstance": "i", "action": "Do", "reason": "R", "type": "Normal", "note": "n",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
    });
    server.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await.expect(201);
    let core = server.get("/api/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!(
        (&core["apiVersion"], &core["message"], &core["involvedObject"]["name"]),
        (&json!("v1"), &json!("n"), &json!("p"))
    );
    let list = server.get("/apis/events.k8s.io/v1/namespaces/default/events").await.expect(200);
    assert_eq!(list["items"][0]["note"], "n");

    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    server.post(v1, &hpa).await.expect(201);
    let v2 =
        server.get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h").await.expect(200);
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    let mut watch = server.watch(&format!("{v1}?watch=1")).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["object"]["apiVersion"], &event["object"]["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(50))
    );
    let patched =
        server.patch("merge", &format!("{v1}/h"), &json!({"spec": {"maxReplicas": 5}})).await.expect(200);
    assert_eq!(
        (&patched["spec"]["maxReplicas"], &patched["spec"]["targetCPUUtilizationPercentage"]),
        (&json!(5), &json!(50))
    );
}

#[tokio::test]
async fn parts_of_pods() {
    let server = Server::start().await;
    server.post(PODS, &pod("p", json!({}))).await.expect(201);
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}], "containers": [{"name": "c", "image": "other"}]}});
    let with = server.patch("strategic", &format!("{PODS}/p/ephemeralcontainers"), &debug).await.expect(200);
    assert_eq!(
        (&with["spec"]["ephemeralContainers"][0]["name"], &with["spec"]["containers"][0]["image"]),
        (&json!("d"), &json!("i"))
    );
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let csr = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s", "usages": ["client auth"],
        "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIUE1IY0NBUUF3RlRFVE1CRUdBMVVFQXd3S2VXRnlaUzEwWlhOME1Ga3dFd1lIS29aSXpqMENBUVlJS29aSQp6ajBEQVFjRFFnQUU="}});
    // Whether the request parses is the strategy's question; here only the approval's path is.
    if server.post(csrs, &csr).await.code == 201 {
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}, "spec": {"signerName": "x/y"}});
        let done = server.patch("merge", &format!("{csrs}/r/approval"), &approved).await.expect(200);
        assert_eq!(done["status"]["conditions"][0]["type"], "Approved");
        assert_eq!(done["spec"]["signerName"], "example.com/s");
    }
}
