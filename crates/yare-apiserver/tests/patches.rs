//! Patches over the API: what they make of objects, and how those that do not apply are refused.

mod common;

use common::Server;
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"l": "x"}}, "data": data})
}

#[tokio::test]
async fn patches_that_do_not_apply() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map(json!({"x": "1"}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let many = Value::from(vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001]);
    let rejected = "the server rejected our request due to an error in our request";
    let renamed = "the name of the object (b) does not match the name on the URL (a)";
    let elsewhere = "the namespace of the provided object does not match the namespace sent on the request";
    let stale = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again";
    #[rustfmt::skip]
    let cases: &[(&str, &str, Value, u16, &str, &str)] = &[
        ("json", "", json!([{"op": "test", "path": "/data/x", "value": "2"}]), 422, "Invalid", rejected),
        ("json", "", json!([{"op": "remove", "path": "/nothing"}]), 422, "Invalid", rejected),
        ("json", "", json!([{"op": "jump", "path": "/data"}]), 422, "Invalid", rejected),
        ("json", "", json!({"op": "remove"}), 400, "BadRequest", "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
        ("json", "?fieldValidation=Ignore", json!({"op": "remove"}), 400, "BadRequest", "json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
        ("json", "", json!([5]), 400, "BadRequest", "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp"),
        ("json", "", json!([{"op": 5, "path": "/data"}]), 400, "BadRequest", "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"),
        ("json", "?fieldValidation=Ignore", json!([{"op": 5, "path": "/data"}]), 422, "Invalid", rejected),
        ("json", "", many, 413, "RequestEntityTooLarge", "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"),
        ("json", "?fieldValidation=Strict", json!([{"op": "replace", "path": "/data/x", "value": "2", "much": 1}]), 422, "Invalid", "strict decoding error: json patch unknown field \"[0].much\""),
        ("merge", "", json!([1]), 400, "BadRequest", "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        ("merge", "", json!({"data": {"x": 5}}), 422, "Invalid", "patch: Invalid value"),
        ("merge", "", json!({"metadata": {"name": "b"}}), 400, "BadRequest", renamed),
        ("merge", "", json!({"metadata": {"namespace": "kube-system"}}), 400, "BadRequest", elsewhere),
        ("merge", "", json!({"metadata": {"uid": "other"}}), 422, "Invalid", "metadata.uid: Invalid value: \"other\": field is immutable"),
        ("merge", "", json!({"metadata": {"resourceVersion": "1"}}), 409, "Conflict", stale),
        ("merge", "?fieldValidation=Strict", json!({"nothing": 1}), 422, "Invalid", "strict decoding error: unknown field \"nothing\""),
        ("merge", "?force=true", json!({}), 422, "Invalid", "force: Forbidden: may not be specified for non-apply patch"),
        ("strategic", "", json!("x"), 400, "BadRequest", "json: cannot unmarshal string into Go value of type map[string]interface {}"),
        ("strategic", "", json!({"metadata": {"$patch": "bogus"}}), 500, "", "unknown patch type: bogus in map: map[$patch:bogus]"),
        ("strategic", "", json!({"data": {"$retainKeys": "x"}}), 400, "BadRequest", "invalid patch format of retainKeys"),
        ("strategic", "", json!({"metadata": {"$deleteFromPrimitiveListfinalizers": ["x"]}}), 400, "BadRequest", "invalid patch format of primitive list"),
        ("strategic", "", json!({"metadata": {"$setElementOrderfinalizers": ["x"]}}), 400, "BadRequest", "invalid patch format of setElementOrder list"),
        ("strategic", "", json!({"metadata": {"name": "b"}}), 400, "BadRequest", renamed),
        ("text/plain", "", json!({}), 415, "UnsupportedMediaType", "415: Unsupported Media Type"),
    ];
    for (kind, query, patch, code, reason, message) in cases {
        let status = server.patch(kind, &format!("{path}{query}"), patch).await.expect(*code);
        assert_eq!(status["reason"].as_str().unwrap_or_default(), *reason, "{kind} {status}");
        assert!(status["message"].as_str().unwrap().contains(message), "{kind}: {status}");
    }
    // What is not JSON at all.
    for (media, start) in [
        ("application/json-patch+json", "error decoding patch: "),
        ("application/strategic-merge-patch+json", ""),
    ] {
        let answer = server.send("PATCH", &path, &[("content-type", media)], "{").await;
        let message = answer.expect_reason(400, "BadRequest");
        assert_eq!(message, format!("{start}unexpected end of JSON input"));
    }
    // Nothing of all that did anything; an object that is not there cannot be patched.
    assert_eq!(server.get(&path).await.expect(200)["data"], json!({"x": "1"}));
    for kind in ["json", "merge", "strategic"] {
        let nothing = if kind == "json" { json!([]) } else { json!({}) };
        let message =
            server.patch(kind, &format!("{CONFIG_MAPS}/b"), &nothing).await.expect_reason(404, "NotFound");
        assert_eq!(message, "configmaps \"b\" not found");
    }
    // Duplicates are told, and refused where asked to.
    let twice = r#"{"metadata": {"labels": {"l": "y", "l": "z"}}}"#;
    for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        let answer = server.send("PATCH", &path, &[("content-type", media)], twice).await;
        let warning = answer.headers["warning"].to_str().unwrap().to_owned();
        assert_eq!(
            (answer.code, warning.as_str()),
            (200, r#"299 - "duplicate field \"metadata.labels.l\"""#)
        );
        let strict = server
            .send("PATCH", &format!("{path}?fieldValidation=Strict"), &[("content-type", media)], twice)
            .await;
        let message = strict.expect_reason(422, "Invalid");
        assert!(
            message.contains("strict decoding error: duplicate field \"metadata.labels.l\""),
            "{message}"
        );
    }
}

#[tokio::test]
async fn directives_of_strategic_patches() {
    let server = Server::start().await;
    let container = |name: &str| json!({"name": name, "image": name, "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "finalizers": ["x.io/a", "x.io/b"]},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container("one"), container("two")],
                "tolerations": [{"key": "t", "operator": "Exists"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let pod = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    #[rustfmt::skip]
    let cases = [
        // A list with a merge key merges by it, one without is replaced.
        (pod(json!({"containers": [{"name": "two", "image": "new"}]})), "/spec/template/spec/containers/1/image", json!("new")),
        (pod(json!({"tolerations": [{"key": "u", "operator": "Exists"}]})), "/spec/template/spec/tolerations", json!([{"key": "u", "operator": "Exists"}])),
        (pod(json!({"containers": [{"name": "one", "$patch": "delete"}]})), "/spec/template/spec/containers/0/name", json!("two")),
        (pod(json!({"$setElementOrder/containers": [{"name": "two"}, {"name": "one"}]})), "/spec/template/spec/containers/0/name", json!("two")),
        (pod(json!({"containers": [{"$patch": "replace"}, {"name": "three", "image": "three"}]})), "/spec/template/spec/containers/0/name", json!("three")),
        (pod(json!({"containers": [{"name": "one", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}]}]})), "/spec/template/spec/containers/0/ports/0/name", json!("web")),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.io/a"]}}), "/metadata/finalizers", json!(["x.io/b"])),
        (json!({"metadata": {"finalizers": ["x.io/c"]}}), "/metadata/finalizers", json!(["x.io/c", "x.io/a", "x.io/b"])),
        (json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}), "/spec/strategy", json!({"type": "Recreate"})),
        (json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}}), "/spec/strategy", json!({"type": "Recreate"})),
        (json!({"metadata": {"finalizers": null}}), "/metadata/finalizers", Value::Null),
    ];
    for (patch, pointer, expect) in cases {
        server.delete(path).await;
        server.patch("merge", path, &json!({"metadata": {"finalizers": null}})).await;
        server.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await.expect(201);
        let patched = server.patch("strategic", path, &patch).await.expect(200);
        assert_eq!(patched.pointer(pointer).cloned().unwrap_or_default(), expect, "{patch}");
    }
}

#[tokio::test]
async fn patches_without_a_revision_are_tried_again() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map(json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let one = async |i: usize| {
        let name = format!("k{i}");
        server.patch("merge", &path, &json!({"data": {name: "1"}})).await.expect(200);
    };
    futures::future::join_all((0..24).map(one)).await;
    let data = server.get(&path).await.expect(200)["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 24);
    // With one, a patch is for that state of the object only.
    let version = server.get(&path).await.expect(200)["metadata"]["resourceVersion"].clone();
    let patch = json!({"metadata": {"resourceVersion": version}, "data": {"z": "1"}});
    server.patch("merge", &path, &patch).await.expect(200);
    server
        .patch("merge", &path, &json!({"metadata": {"resourceVersion": version}, "data": {"y": "1"}}))
        .await
        .expect_reason(409, "Conflict");
}
