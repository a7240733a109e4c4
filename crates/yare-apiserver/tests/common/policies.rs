//! Policies and bindings, made by the API, and what tests of them ask.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Answer, Server};

pub const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub fn rules(group: &str, resource: &str) -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}]})
}

/// Makes (or replaces) the validating policy `p` and its binding `b`.
pub async fn validating(server: &Server, spec: &Value, binding: &Value) {
    let mut spec = spec.clone();
    if spec.get("matchConstraints").is_none() {
        spec["matchConstraints"] = rules("", "configmaps");
    }
    let mut bound = json!({"policyName": "p", "validationActions": ["Deny"]});
    for (k, v) in binding.as_object().unwrap() {
        bound[k] = v.clone();
    }
    bind(server, "validatingadmissionpolicy", "validatingadmissionpolicies", &spec, &bound).await;
}

pub async fn mutating(server: &Server, name: &str, spec: &Value, binding: &Value) {
    let mut spec = spec.clone();
    for (field, value) in
        [("matchConstraints", rules("", "configmaps")), ("reinvocationPolicy", json!("Never"))]
    {
        if spec.get(field).is_none() {
            spec[field] = value;
        }
    }
    let mut bound = json!({"policyName": name});
    for (k, v) in binding.as_object().unwrap() {
        bound[k] = v.clone();
    }
    let object = |spec: &Value| json!({"metadata": {"name": name}, "spec": spec});
    server.post(&format!("{GROUP}/mutatingadmissionpolicies"), &object(&spec)).await.expect(201);
    server.post(&format!("{GROUP}/mutatingadmissionpolicybindings"), &object(&bound)).await.expect(201);
}

pub async fn forget(server: &Server, name: &str) {
    for kind in ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"] {
        server.delete(&format!("{GROUP}/{kind}/{name}")).await.expect(200);
    }
}

pub async fn bind(server: &Server, singular: &str, plural: &str, spec: &Value, bound: &Value) {
    for (path, name, spec) in [(plural.to_owned(), "p", spec), (format!("{singular}bindings"), "b", bound)] {
        let at = format!("{GROUP}/{path}/{name}");
        if server.get(&at).await.code == 200 {
            server.delete(&at).await.expect(200);
        }
        let object = json!({"metadata": {"name": name}, "spec": spec});
        server.post(&format!("{GROUP}/{path}"), &object).await.expect(201);
    }
}

pub fn check(answer: Answer, code: u16, part: &str, what: &dyn std::fmt::Debug) {
    let text = answer.text();
    assert_eq!(answer.code, code, "{what:?}: {text}");
    assert!(text.contains(part), "{what:?}: {text}");
}

/// A definition `limits.example.com` (or in the cluster: `rules.example.com`), and its objects.
pub async fn define(server: &Server, plural: &str, kind: &str, scope: &str) {
    let definition = json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {
        "group": "example.com", "scope": scope, "names": {"plural": plural, "kind": kind},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"max": {"type": "integer"}}}}}]}});
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    while server.get(&format!("/apis/example.com/v1/{plural}")).await.code != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

pub fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}
