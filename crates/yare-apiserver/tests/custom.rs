//! Custom resources from definition to deletion.

mod common;

use std::time::Duration;

use common::Server;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "required": ["size"], "properties": {
                            "size": {"type": "integer", "minimum": 1},
                            "color": {"type": "string", "default": "blue"},
                            "replicas": {"type": "integer"},
                        }},
                        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                    }}},
                },
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            ],
        },
    })
}

async fn established(server: &Server) {
    for _ in 0..200 {
        let crd = server.get(&format!("{CRDS}/widgets.example.com")).await.expect(200);
        let yes = crd["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Established" && c["status"] == "True"));
        if yes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never established");
}

#[tokio::test]
async fn life_of_a_custom_resource() {
    let server = Server::start().await;
    let made = server.post(CRDS, &definition()).await.expect(201);
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["spec"]["names"]["listKind"], "WidgetList");
    established(&server).await;

    // Validated, pruned, defaulted.
    let bad = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 0}});
    let message = server.post(WIDGETS, &bad).await.expect_reason(422, "Invalid");
    assert!(message.contains("spec.size"), "{message}");
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"size": 3, "shape": "round", "replicas": 2}, "status": {"replicas": 9}});
    let answer = server.post(WIDGETS, &widget).await;
    let warning = answer.headers.get("warning").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    assert!(warning.contains("unknown field \\\"spec.shape\\\""), "{warning}");
    let made = answer.expect(201);
    assert_eq!(made["spec"], json!({"size": 3, "color": "blue", "replicas": 2}));
    assert!(made.get("status").is_none());
    assert_eq!(made["metadata"]["generation"], 1);
    server.post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget).await.expect_reason(400, "BadRequest");

    // Subresources.
    let path = format!("{WIDGETS}/w");
    let status = server
        .patch("merge", &format!("{path}/status"), &json!({"status": {"replicas": 1}, "spec": {"size": 8}}))
        .await
        .expect(200);
    assert_eq!((&status["status"]["replicas"], &status["spec"]["size"]), (&json!(1), &json!(3)));
    assert_eq!(status["metadata"]["generation"], 1);
    let scale = server.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(2), &json!(1)));
    server.patch("merge", &format!("{path}/scale"), &json!({"spec": {"replicas": 5}})).await.expect(200);
    let now = server.get(&path).await.expect(200);
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(2)));

    // Other version, selectors, tables, discovery, apply.
    let beta = server.get("/apis/example.com/v1beta1/namespaces/default/widgets/w").await.expect(200);
    assert_eq!((&beta["apiVersion"], &beta["spec"]["size"]), (&json!("example.com/v1beta1"), &json!(3)));
    for (selector, count) in [("spec.color%3Dblue", 1), ("spec.color%3Dred", 0)] {
        let list = server.get(&format!("{WIDGETS}?fieldSelector={selector}")).await.expect(200);
        assert_eq!(list["items"].as_array().map(Vec::len), Some(count), "{selector}");
    }
    let table = server
        .send("GET", WIDGETS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "")
        .await
        .expect(200);
    assert_eq!(table["rows"][0]["cells"], json!(["w", 3]));
    let found = server.get("/apis/example.com/v1").await.expect(200);
    assert_eq!(found["resources"][0]["shortNames"], json!(["wd"]));
    let applied = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 1}});
    server.apply(&format!("{WIDGETS}/a"), "me", &applied).await.expect(201);
    server.patch("strategic", &path, &json!({})).await.expect_reason(415, "UnsupportedMediaType");
    let openapi = server.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    assert!(openapi["components"]["schemas"]["com.example.v1.Widget"].is_object());

    // The definition takes its objects along, those with finalizers last.
    server
        .patch("merge", &path, &json!({"metadata": {"finalizers": ["example.com/hold"]}}))
        .await
        .expect(200);
    server.delete(&format!("{CRDS}/widgets.example.com")).await.expect(200);
    let mut held = Value::Null;
    for _ in 0..200 {
        held = server.get(&path).await.expect(200);
        if held["metadata"]["deletionTimestamp"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    server.get(&format!("{CRDS}/widgets.example.com")).await.expect(200);
    server.post(WIDGETS, &widget).await.expect_reason(405, "MethodNotAllowed");
    server.patch("merge", &path, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    for _ in 0..200 {
        if server.get(&format!("{CRDS}/widgets.example.com")).await.code == 404 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.get(&format!("{CRDS}/widgets.example.com")).await.expect_reason(404, "NotFound");
    for _ in 0..200 {
        if server.get(WIDGETS).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("widgets are still served");
}

#[tokio::test]
async fn definitions_are_checked() {
    let server = Server::start().await;
    for (what, change) in [
        ("name", json!({"metadata": {"name": "other.example.com"}})),
        (
            "two storage versions",
            json!({"spec": {"versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
            {"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        ),
        ("no schema", json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true}]}})),
        (
            "schema not structural",
            json!({"spec": {"versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"properties": {"a": {"type": "string"}}}}}]}}),
        ),
    ] {
        let mut crd = definition();
        for (k, v) in change.as_object().unwrap() {
            for (kk, vv) in v.as_object().unwrap() {
                crd[k][kk] = vv.clone();
            }
        }
        let answer = server.post(CRDS, &crd).await;
        assert_eq!(answer.code, 422, "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn defaults_reach_what_was_stored_before_them() {
    let server = Server::start().await;
    server.post(CRDS, &definition()).await.expect(201);
    established(&server).await;
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}});
    server.post(WIDGETS, &widget).await.expect(201);
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let patch = json!([
        {"op": "add", "path": format!("{path}/added"), "value": {"type": "string", "default": "late"}},
        {"op": "remove", "path": format!("{path}/color")},
        {"op": "remove", "path": "/spec/versions/0/selectableFields"},
    ]);
    server.patch("json", &format!("{CRDS}/widgets.example.com"), &patch).await.expect(200);
    let mut spec = Value::Null;
    for _ in 0..200 {
        spec = server.get(&format!("{WIDGETS}/w")).await.expect(200)["spec"].clone();
        if spec["added"] == "late" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(spec, json!({"size": 3, "added": "late"}));
    let list = server.get(WIDGETS).await.expect(200);
    assert_eq!(list["items"][0]["spec"], spec);

    // Apply reports what the schema does not know, and keys that stand twice.
    let yaml = |body: &str| {
        format!("apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: w\nspec:\n  size: 3\n{body}")
    };
    for (body, part) in [
        ("  nope: 1\n", ".spec.nope: field not declared in schema"),
        ("  size: 4\n", "line 7: key \"size\" already set in map"),
    ] {
        let answer = server
            .send(
                "PATCH",
                &format!("{WIDGETS}/w?fieldManager=m&fieldValidation=Strict&force=true"),
                &[("content-type", "application/apply-patch+yaml")],
                yaml(body),
            )
            .await;
        assert!(answer.text().contains(&part.replace('"', "\\\"")), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_watch_goes_on_across_a_change_of_the_schema() {
    let server = Server::start().await;
    server.post(CRDS, &definition()).await.expect(201);
    established(&server).await;
    let widget = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": 1, "tone": "low"}});
    let mut watches = Vec::new();
    for path in [WIDGETS.to_owned(), WIDGETS.replace("/v1/", "/v1beta1/")] {
        watches.push(server.watch(&format!("{path}?watch=true")).await);
    }
    let made = server.post(WIDGETS, &widget("before")).await.expect(201);
    assert!(made["spec"].get("tone").is_none(), "{made}");
    let tone = json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/tone",
        "value": {"type": "string"}}]);
    server.patch("json", &format!("{CRDS}/widgets.example.com"), &tone).await.expect(200);
    for _ in 0..400 {
        let made = server.post(&format!("{WIDGETS}?dryRun=All"), &widget("after")).await.expect(201);
        if made["spec"]["tone"] == "low" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.post(WIDGETS, &widget("after")).await.expect(201);
    for watch in &mut watches {
        assert_eq!(watch.brief().await, "ADDED before");
        let event = watch.next().await.expect("an event");
        assert_eq!(
            (&event["type"], &event["object"]["metadata"]["name"]),
            (&json!("ADDED"), &json!("after"))
        );
        assert_eq!(event["object"]["spec"]["tone"], "low", "{event}");
    }
}
