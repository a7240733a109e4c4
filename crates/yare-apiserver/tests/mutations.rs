//! Mutating admission policies in CEL against a whole server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/policies.rs"]
mod helpers;

use common::Server;
use helpers::{
    CONFIG_MAPS, DEPLOYMENTS, GROUP, apply, check, define, forget, mutating, patch, rules, validating,
};
use serde_json::{Value, json};

#[tokio::test]
async fn what_mutations_do() {
    let server = Server::start().await;
    let object = json!({"metadata": {"generateName": "c", "labels": {"a": "b"}}, "data": {"k": "v"}});
    for (mutations, code, expect) in [
        (
            vec![apply("Object{metadata: Object.metadata{labels: {'x': object.data.k}}}")],
            201,
            json!({"labels": {"a": "b", "x": "v"}}),
        ),
        (
            vec![patch(
                "[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('l'), value: object.data.k + '!'}, JSONPatch{op: 'remove', path: '/metadata/labels'}]",
            )],
            201,
            json!({"data": {"k": "v", "l": "v!"}}),
        ),
        // One after the other.
        (
            vec![apply("Object{data: {'l': '1'}}"), apply("Object{data: {'m': object.data.l + '2'}}")],
            201,
            json!({"labels": {"a": "b"}, "data": {"k": "v", "l": "1", "m": "12"}}),
        ),
        // A test that does not hold leaves the object alone.
        (
            vec![patch(
                "[JSONPatch{op: 'test', path: '/data/k', value: 'w'}, JSONPatch{op: 'remove', path: '/data/k'}]",
            )],
            201,
            json!({"labels": {"a": "b"}, "data": {"k": "v"}}),
        ),
        // Which object it is, is not the policy's to say.
        (
            vec![apply(
                "Object{kind: 'Secret', apiVersion: 'v2', metadata: Object.metadata{uid: 'x'}, data: {'l': '1'}}",
            )],
            201,
            json!({"labels": {"a": "b"}, "data": {"k": "v", "l": "1"}}),
        ),
        // Nor what its type has.
        (
            vec![patch("[JSONPatch{op: 'add', path: '/nothing', value: 1}]")],
            500,
            json!("Internal error occurred: strict decoding error: unknown field \"nothing\""),
        ),
        (
            vec![patch("[JSONPatch{op: 'replace', path: '/kind', value: 'Secret'}]")],
            500,
            json!("Internal error occurred: what was v1, Kind=ConfigMap may not become v1, Kind=Secret"),
        ),
        (
            vec![patch("[JSONPatch{op: 'remove', path: '/data/missing'}]")],
            403,
            json!("policy 'm' with binding 'm' denied request: JSON Patch: "),
        ),
        (
            vec![apply("Object{data: {'l': object.nothing}}")],
            403,
            json!(
                "policy 'm' with binding 'm' denied request: expression 'Object{data: {'l': object.nothing}}' resulted in error: no such key: nothing"
            ),
        ),
        (
            vec![apply("Object{nothing: 1}")],
            403,
            json!(
                "policy 'm' with binding 'm' denied request: error applying patch: failed to convert patch object to typed object: .nothing: field not declared in schema"
            ),
        ),
        (
            vec![apply("Object{metadata: Object.spec{labels: {'x': 'y'}}}")],
            403,
            json!(
                "policy 'm' with binding 'm' denied request: type mismatch: unexpected type name \"Object.spec\", expected \"Object.metadata\", which matches field name path from root Object type"
            ),
        ),
    ] {
        mutating(&server, "m", &json!({"mutations": mutations}), &json!({})).await;
        let answer = server.post(CONFIG_MAPS, &object).await;
        assert_eq!(answer.code, code, "{mutations:?}: {}", answer.text());
        let found = answer.json();
        if let Some(message) = expect.as_str() {
            assert!(found["message"].as_str().unwrap().starts_with(message), "{mutations:?}: {found}");
            assert_eq!(found["reason"], if code == 403 { "Invalid" } else { "InternalError" }, "{found}");
        } else {
            let data = if expect["data"].is_null() { json!({"k": "v"}) } else { expect["data"].clone() };
            assert_eq!(
                (&found["metadata"]["labels"], &found["data"]),
                (&expect["labels"], &data),
                "{mutations:?}"
            );
            assert_eq!(
                (&found["kind"], &found["metadata"]["namespace"]),
                (&json!("ConfigMap"), &json!("default"))
            );
            // Nobody owns what a policy set.
            let fields = found["metadata"]["managedFields"].to_string();
            assert!(!fields.contains("\"f:x\"") && !fields.contains("\"f:l\""), "{fields}");
        }
        forget(&server, "m").await;
    }
    let metrics = server.get("/metrics").await.text();
    let part = "apiserver_mutating_admission_policy_check_total{policy=\"m\",policy_binding=\"m\",error_type=\"no_error\"}";
    assert!(metrics.contains(part));
}

#[tokio::test]
async fn mutations_meet_defaults_and_lists() {
    let server = Server::start().await;
    let deployment = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let spec = json!({"matchConstraints": rules("apps", "deployments"), "mutations": [
        apply("Object{spec: Object.spec{replicas: 3, template: Object.spec.template{spec: Object.spec.template.spec{
            containers: object.spec.template.spec.containers.map(c, Object.spec.template.spec.containers{name: c.name, imagePullPolicy: 'Always'}),
            initContainers: [Object.spec.template.spec.initContainers{name: 'first', image: 'j'}]}}}}"),
        patch("[JSONPatch{op: 'add', path: '/spec/template/spec/containers/0/resources/limits', value: {'cpu': '1'}}]"),
    ]});
    mutating(&server, "m", &spec, &json!({})).await;
    let found = server.post(DEPLOYMENTS, &deployment("a")).await.expect(201);
    let pod = &found["spec"]["template"]["spec"];
    assert_eq!(found["spec"]["replicas"], 3);
    let container = &pod["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"], &container["resources"]["limits"]["cpu"]),
        (&json!("i"), &json!("Always"), &json!("1"))
    );
    // What was put in has its defaults.
    assert_eq!(pod["initContainers"][0]["terminationMessagePolicy"], "File", "{pod}");
    forget(&server, "m").await;
    let spec = json!({"matchConstraints": rules("apps", "deployments"), "mutations": [apply(
        "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', args: ['x']}]}}}}",
    )]});
    mutating(&server, "m", &spec, &json!({})).await;
    let part = "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args";
    check(server.post(DEPLOYMENTS, &deployment("b")).await, 403, part, &"atomic");
}

#[tokio::test]
async fn mutating_policies_see_each_other() {
    let server = Server::start().await;
    let append = |to: &str, what: &str| {
        apply(&format!(
            "Object{{data: {{'{to}': (has(object.data.{to}) ? object.data.{to} : '') + '{what}'}}}}"
        ))
    };
    // In order of names; one that asks for it is called again when something changed after it.
    for (name, policy) in [("b", "Never"), ("a", "IfNeeded"), ("c", "Never")] {
        let spec = json!({"reinvocationPolicy": policy, "mutations": [append("seen", name)]});
        mutating(&server, name, &spec, &json!({})).await;
    }
    let found =
        server.post(CONFIG_MAPS, &json!({"metadata": {"name": "x"}, "data": {"k": "v"}})).await.expect(201);
    assert_eq!(found["data"]["seen"], "abca");
    // Validating policies see what came of it.
    let spec = json!({"validations": [{"expression": "object.data.seen != 'abca'"}]});
    validating(&server, &spec, &json!({})).await;
    check(
        server.post(CONFIG_MAPS, &json!({"metadata": {"name": "y"}, "data": {"k": "v"}})).await,
        422,
        "failed expression",
        &"seen",
    );
    // Conditions and parameters are the same as for validating policies.
    for name in ["a", "b", "c"] {
        forget(&server, name).await;
    }
    server.delete(&format!("{GROUP}/validatingadmissionpolicies/p")).await.expect(200);
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "variables": [{"name": "v", "expression": "params.data.k"}],
        "matchConditions": [{"name": "c", "expression": "object.data.k == 'go'"}], "mutations": [apply("Object{data: {'l': variables.v}}")]});
    let binding = json!({"paramRef": {"name": "x", "parameterNotFoundAction": "Deny"}});
    mutating(&server, "m", &spec, &binding).await;
    for (name, data, expect) in [("p", "go", json!("v")), ("q", "stay", Value::Null)] {
        let found = server
            .post(CONFIG_MAPS, &json!({"metadata": {"name": name}, "data": {"k": data}}))
            .await
            .expect(201);
        assert_eq!(found["data"]["l"], expect);
    }
    // An update too, whose subject stays what it is.
    let found =
        server.patch("merge", &format!("{CONFIG_MAPS}/q"), &json!({"data": {"k": "go"}})).await.expect(200);
    assert_eq!(found["data"]["l"], "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources() {
    let server = Server::start().await;
    define(&server, "limits", "Limit", "Namespaced").await;
    let path = "/apis/example.com/v1/namespaces/default/limits";
    let limit = |name: &str, max: i64| json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": name}, "max": max});
    let spec = json!({"matchConstraints": rules("example.com", "limits"), "mutations": [apply("Object{max: object.max + 1}")]});
    mutating(&server, "m", &spec, &json!({})).await;
    assert_eq!(server.post(path, &limit("a", 1)).await.expect(201)["max"], 2);
    let spec = json!({"matchConstraints": rules("example.com", "limits"), "validations": [{"expression": "object.max < 5"}]});
    validating(&server, &spec, &json!({})).await;
    check(
        server.post(path, &limit("b", 4)).await,
        422,
        "limits.example.com \\\"b\\\" is forbidden: ValidatingAdmissionPolicy 'p'",
        &"b",
    );
}
