//! Which paths there are, which methods they have, and what is said of all others: as upstream's routers do for
//! built-in resources, and its handler for custom ones.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/policies.rs"]
mod policies;

use common::{Answer, Server};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

async fn ask(server: &Server, method: &str, path: &str) -> Answer {
    server.send(method, path, &[], "").await
}

fn widget(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}})
}

/// Nobody empties all namespaces with one request.
#[tokio::test]
async fn collections_of_all_namespaces_are_only_read() {
    let server = Server::start().await;
    policies::define(&server, "widgets", "Widget", "Namespaced").await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await.expect(201);
    server.post(WIDGETS, &widget("a")).await.expect(201);
    for method in ["DELETE", "POST", "PUT", "PATCH"] {
        let answer = ask(&server, method, "/api/v1/configmaps").await;
        assert_eq!(
            answer.expect_reason(405, "MethodNotAllowed"),
            "the server does not allow this method on the requested resource"
        );
        ask(&server, method, "/apis/example.com/v1/widgets").await.expect_reason(404, "NotFound");
    }
    server.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    server.get(&format!("{WIDGETS}/a")).await.expect(200);
}

#[tokio::test]
async fn what_has_no_such_method() {
    let server = Server::start().await;
    policies::define(&server, "widgets", "Widget", "Namespaced").await;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (method, path) in [
        ("HEAD", CONFIG_MAPS),
        ("OPTIONS", CONFIG_MAPS),
        ("PUT", CONFIG_MAPS),
        ("POST", "/api/v1/namespaces/default/configmaps/a"),
        ("GET", reviews),
        ("DELETE", reviews),
        ("PUT", "/api/v1/namespaces/default/pods/a/log"),
        ("GET", "/api/v1/namespaces/default/serviceaccounts/default/token"),
        ("POST", "/version"),
        ("HEAD", "/api"),
        ("HEAD", "/apis/apps/v1"),
        ("HEAD", "/openid/v1/jwks"),
        // The old paths of watches.
        ("DELETE", "/api/v1/watch/namespaces/default/configmaps"),
        ("POST", "/api/v1/watch/configmaps"),
    ] {
        let answer = ask(&server, method, path).await;
        assert_eq!(answer.code, 405, "{method} {path}");
        if method == "HEAD" {
            continue;
        }
        let status = answer.json();
        assert_eq!(
            (&status["message"], &status["details"]),
            (&json!("the server does not allow this method on the requested resource"), &json!({})),
            "{method} {path}"
        );
    }
    for path in ["/api/v1/bindings", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x"] {
        ask(&server, "GET", path).await.expect_reason(404, "NotFound");
    }
    // Where no resource is served, there is no Status either.
    for path in ["/nothing", "/apis/nothing", "/apis/nothing/v1/things", "/healthz/nothing"] {
        ask(&server, "GET", path).await.expect_no_such_path();
    }
    // Custom resources have a handler that knows verbs.
    server.post(WIDGETS, &widget("a")).await.expect(201);
    assert_eq!(ask(&server, "HEAD", &format!("{WIDGETS}/a")).await.code, 200);
    // Upstream has no verb for this method, and says so with an empty one.
    let message = ask(&server, "OPTIONS", WIDGETS).await.expect_reason(405, "MethodNotAllowed");
    assert_eq!(message, " is not supported on resources of kind \"widgets.example.com\"");
    let message = server.put(WIDGETS, &widget("a")).await.expect_reason(400, "BadRequest");
    assert_eq!(message, "name must be provided");
    let message = server.get(&format!("{WIDGETS}/a/scale")).await.expect_reason(404, "NotFound");
    assert_eq!(message, "widgets.example.com \"a\" not found");
}

/// Whoever asks with `HEAD` gets no body, which HTTP/2 would not leave out by itself.
#[tokio::test]
async fn a_head_has_no_body() {
    let server = Server::start().await;
    policies::define(&server, "widgets", "Widget", "Namespaced").await;
    server.post(WIDGETS, &widget("a")).await.expect(201);
    for path in ["/healthz", "/healthz/nothing", "/openapi/v2", "/apis", "/apis/apps", WIDGETS, CONFIG_MAPS] {
        let (get, head) = (ask(&server, "GET", path).await, ask(&server, "HEAD", path).await);
        assert!(head.bytes.is_empty(), "{path}");
        if let Some(size) = head.headers.get("content-length").filter(|_| head.code == get.code) {
            assert_eq!(size, &get.bytes.len().to_string(), "{path}");
        }
    }
    assert_eq!(ask(&server, "HEAD", "/healthz").await.headers["content-length"], "2");
}

/// The name is compared before anybody looks whether the object is there.
#[tokio::test]
async fn a_name_is_that_of_the_path() {
    let server = Server::start().await;
    for (body, why) in [
        (
            json!({"metadata": {"name": "b"}}),
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (json!({}), "the name of the object (a based on URL) was undeterminable: name must be provided"),
    ] {
        let message = server.put(&format!("{CONFIG_MAPS}/a"), &body).await.expect_reason(400, "BadRequest");
        assert_eq!(message, why);
    }
}

/// What an object says of its own type.
#[tokio::test]
async fn a_type_is_that_of_the_path() {
    let server = Server::start().await;
    policies::define(&server, "widgets", "Widget", "Namespaced").await;
    let config_map = |api_version: &str, kind: &str| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
    for (api_version, kind, why) in [
        (
            "v1",
            "Secret",
            "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        (
            "v2",
            "ConfigMap",
            "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
    ] {
        let answer = server.post(CONFIG_MAPS, &config_map(api_version, kind)).await;
        assert_eq!(answer.expect_reason(400, "BadRequest"), why);
    }
    // Three of upstream's servers are one here, each with a scheme of its own.
    for (group, resource, kind, scheme) in [
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            "pkg/apiserver/apiserver.go:55",
        ),
        ("apiregistration.k8s.io", "apiservices", "APIService", "pkg/apiserver/scheme/scheme.go:28"),
    ] {
        let version = format!("{group}/v7");
        let object = config_map(&version, kind);
        let answer = server.post(&format!("/apis/{group}/v1/{resource}"), &object).await;
        let why =
            format!("no kind \"{kind}\" is registered for version \"{version}\" in scheme \"{scheme}\"");
        let message = answer.expect_reason(400, "BadRequest");
        assert!(message.ends_with(&why), "{message}");
    }
    server.post(CONFIG_MAPS, &config_map("v1", "ConfigMap")).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    // A strategic patch goes by the type that it is sent to, the others make an object of another type.
    let other = json!({"kind": "Thing"});
    assert_eq!(server.patch("strategic", &path, &other).await.expect(200)["kind"], "ConfigMap");
    let message = server.patch("merge", &path, &other).await.expect_reason(422, "Invalid");
    assert!(message.contains("no kind \"Thing\" is registered for version \"v1\""), "{message}");

    server.post(WIDGETS, &widget("a")).await.expect(201);
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "b"}});
    let why = |name: &str| {
        format!("Thing.example.com \"{name}\" is invalid: kind: Invalid value: \"Thing\": must be Widget")
    };
    assert_eq!(server.post(WIDGETS, &thing).await.expect_reason(422, "Invalid"), why("b"));
    let patched = server.patch("merge", &format!("{WIDGETS}/a"), &other).await;
    assert_eq!(patched.expect_reason(422, "Invalid"), why("a"));
    let foreign = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}});
    assert_eq!(
        server.post(WIDGETS, &foreign).await.expect_reason(400, "BadRequest"),
        "the API version in the data (v1) does not match the expected API version (example.com/v1)"
    );
}

#[tokio::test]
async fn dry_run_is_all_or_an_error() {
    let server = Server::start().await;
    for query in ["dryRun=", "dryRun=Some"] {
        let answer =
            server.post(&format!("{CONFIG_MAPS}?{query}"), &json!({"metadata": {"name": "a"}})).await;
        let given = query.trim_start_matches("dryRun=");
        assert_eq!(
            answer.expect_reason(422, "Invalid"),
            format!(
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"{given}\"]: supported values: \"All\""
            )
        );
    }
    server.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
}

/// Events of `events.k8s.io` rest as events of the core group, and are judged by their own rules.
#[tokio::test]
async fn events_are_judged_by_the_group_they_come_in() {
    let server = Server::start().await;
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "metadata": {"name": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "action": "a",
        "reason": "r", "reportingController": "example.com/c", "reportingInstance": "i",
        "regarding": {"namespace": "default"},
    });
    let wanting = server.post(new, &json!({"metadata": {"name": "b"}})).await.expect_reason(422, "Invalid");
    assert_eq!(
        wanting,
        "Event \"b\" is invalid: [eventTime: Required value, type: Invalid value: \"\": has invalid value: ]"
    );
    let mut misnamed = event.clone();
    misnamed["metadata"]["name"] = "A_b".into();
    let message = server.post(new, &misnamed).await.expect_reason(422, "Invalid");
    assert!(message.contains("a lowercase RFC 1123 subdomain"), "{message}");
    server.post(new, &event).await.expect(201);
    let mut changed = event.clone();
    changed["note"] = "n".into();
    let message = server.put(&format!("{new}/a"), &changed).await.expect_reason(422, "Invalid");
    assert!(message.contains("field is immutable"), "{message}");
    // By the older face of it everything may change.
    let core = "/api/v1/namespaces/default/events";
    server
        .post(core, &json!({"metadata": {"name": "b"}, "involvedObject": {"namespace": "default"}}))
        .await
        .expect(201);
    server.patch("merge", &format!("{core}/a"), &json!({"message": "n"})).await.expect(200);
}

/// A template without a specification lacks containers, and nothing else.
#[tokio::test]
async fn templates_without_a_specification() {
    let server = Server::start().await;
    let controller = json!({"metadata": {"name": "a"}, "spec": {"selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}}});
    for (plural, kind, field, object) in [
        ("replicationcontrollers", "ReplicationController", "spec.template.spec", controller),
        ("podtemplates", "PodTemplate", "template.spec", json!({"metadata": {"name": "a"}})),
    ] {
        let path = format!("/api/v1/namespaces/default/{plural}");
        assert_eq!(
            server.post(&path, &object).await.expect_reason(422, "Invalid"),
            format!("{kind} \"a\" is invalid: {field}.containers: Required value")
        );
    }
}
