//! `x-kubernetes-validations`, from definition to the objects held to them.

mod common;

use std::time::Duration;

use common::{Answer, Server};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GATES: &str = "/apis/example.com/v1/namespaces/default/gates";

fn definition(spec: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gates.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "gates", "kind": "Gate"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": spec,
                    "status": {"type": "object", "properties": {"count": {"type": "integer",
                        "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "must not decrease"}]}}},
                }}}}],
        },
    })
}

fn spec(rules: Value) -> Value {
    json!({"type": "object", "required": ["min"], "x-kubernetes-validations": rules,
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "note": {"type": "string"}}})
}

fn gate(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gate", "metadata": {"name": "g"}, "spec": spec})
}

async fn established(server: &Server) {
    for _ in 0..200 {
        if server.get(GATES).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never served");
}

fn causes(answer: Answer) -> Value {
    answer.expect(422)["details"]["causes"].clone()
}

#[tokio::test]
async fn rules_of_a_custom_resource() {
    let server = Server::start().await;
    let wrong = definition(spec(json!([{"rule": "self.min < self.nowhere"}])));
    let refused = causes(server.post(CRDS, &wrong).await);
    let message = refused[0]["message"].as_str().unwrap();
    assert!(
        message.contains("compilation failed: ERROR: <input>:1:16: undefined field 'nowhere'"),
        "{message}"
    );
    assert_eq!(
        refused[0]["field"],
        "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
    );

    let order = json!({"rule": "!has(self.max) || self.min <= self.max", "fieldPath": ".max",
        "reason": "FieldValueForbidden", "messageExpression": "string(self.min)"});
    server.post(CRDS, &definition(spec(json!([order.clone()])))).await.expect(201);
    established(&server).await;

    assert_eq!(
        causes(server.post(GATES, &gate(json!({"min": 3, "max": 1}))).await),
        json!([{"reason": "FieldValueForbidden", "message": "Forbidden: 3", "field": "spec.max"}])
    );
    // What is not even structurally valid is not held to rules.
    let texts = causes(server.post(GATES, &gate(json!({"max": 1}))).await);
    assert_eq!(
        texts[1]["message"],
        "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
    );
    server.post(GATES, &gate(json!({"min": 1, "max": 3}))).await.expect(201);
    let path = format!("{GATES}/g");
    let merge = "application/merge-patch+json";
    server.patch(merge, &path, &json!({"spec": {"max": 0}})).await.expect_reason(422, "Invalid");
    let applied = json!({"apiVersion": "example.com/v1", "kind": "Gate", "metadata": {"name": "g"}, "spec": {"min": 9}});
    server.apply(&format!("{path}?force=true"), "me", &applied).await.expect_reason(422, "Invalid");

    // Transitions, in the status.
    let status = format!("{path}/status");
    server.patch(merge, &status, &json!({"status": {"count": 2}})).await.expect(200);
    assert_eq!(
        causes(server.patch(merge, &status, &json!({"status": {"count": 1}})).await),
        json!([{"reason": "FieldValueInvalid", "message": "Invalid value: 1: must not decrease", "field": "status.count"}])
    );

    // A stricter rule: what breaks it already may stay, with a warning.
    let crd = format!("{CRDS}/gates.example.com");
    let strict = json!({"rule": "self.min > 5", "message": "too small"});
    let version = definition(spec(json!([order, strict])))["spec"]["versions"].clone();
    server.patch(merge, &crd, &json!({"spec": {"versions": version}})).await.expect(200);
    let label = |n: u32| json!({"metadata": {"labels": {"n": n.to_string()}}});
    let mut warned = String::new();
    for n in 0..200 {
        let answer = server.patch(merge, &path, &label(n)).await;
        warned = answer.headers.get("warning").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        answer.expect(200);
        if !warned.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(warned, "299 - \"spec: Invalid value: too small\"");
    server.patch(merge, &path, &json!({"spec": {"note": "x"}})).await.expect_reason(422, "Invalid");

    // Published for whoever asks for version 3.
    let published = server.get("/openapi/v3/apis/example.com/v1").await.expect(200).to_string();
    assert!(published.contains("x-kubernetes-validations"), "{published}");
}
