//! Admission policies in CEL, validating and mutating, against a whole server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Answer, Server};
use serde_json::{Value, json};
use yare_apiserver::{
    SystemClock, SystemRandom,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target},
};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn rules(group: &str, resource: &str) -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]}]})
}

/// Makes (or replaces) the validating policy `p` and its binding `b`.
async fn validating(server: &Server, spec: &Value, binding: &Value) {
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

async fn mutating(server: &Server, name: &str, spec: &Value, binding: &Value) {
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

async fn forget(server: &Server, name: &str) {
    for kind in ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"] {
        server.delete(&format!("{GROUP}/{kind}/{name}")).await.expect(200);
    }
}

async fn bind(server: &Server, singular: &str, plural: &str, spec: &Value, bound: &Value) {
    for (path, name, spec) in [(plural.to_owned(), "p", spec), (format!("{singular}bindings"), "b", bound)] {
        let at = format!("{GROUP}/{path}/{name}");
        if server.get(&at).await.code == 200 {
            server.delete(&at).await.expect(200);
        }
        let object = json!({"metadata": {"name": name}, "spec": spec});
        server.post(&format!("{GROUP}/{path}"), &object).await.expect(201);
    }
}

fn check(answer: Answer, code: u16, part: &str, what: &dyn std::fmt::Debug) {
    let text = answer.text();
    assert_eq!(answer.code, code, "{what:?}: {text}");
    assert!(text.contains(part), "{what:?}: {text}");
}

#[tokio::test]
async fn what_validations_say() {
    let server = Server::start().await;
    let object = json!({"metadata": {"generateName": "c", "labels": {"a": "b"}}, "data": {"k": "v"}});
    let one = |validation: Value| json!({"validations": [validation]});
    let denied = |why: &str| format!("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {why}");
    for (spec, code, part) in [
        (one(json!({"expression": "object.data.k == 'v'"})), 201, String::new()),
        (
            one(json!({"expression": "object.data.k == 'w'"})),
            422,
            denied("failed expression: object.data.k == 'w'"),
        ),
        (
            one(json!({"expression": "false", "message": "no such thing", "reason": "Forbidden"})),
            403,
            denied("no such thing"),
        ),
        (one(json!({"expression": "false", "reason": "Unauthorized"})), 422, String::new()),
        (
            one(
                json!({"expression": "false", "message": "m", "messageExpression": "'has ' + object.data.k", "reason": "RequestEntityTooLarge"}),
            ),
            413,
            denied("has v"),
        ),
        (
            one(json!({"expression": "false", "message": "m", "messageExpression": "object.nothing"})),
            422,
            String::new(),
        ),
        (
            one(json!({"expression": "false", "message": "m", "messageExpression": "'a\\nb'"})),
            422,
            denied("m"),
        ),
        (
            one(json!({"expression": "object.nothing == 1"})),
            422,
            denied("expression 'object.nothing == 1' resulted in error: no such key: nothing"),
        ),
        (
            json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.nothing == 1"}]}),
            201,
            String::new(),
        ),
        // Each condition must hold; one that does not keeps the policy away, whatever else fails.
        (
            json!({"matchConditions": [{"name": "a", "expression": "object.nothing == 1"}, {"name": "b", "expression": "false"}],
                "validations": [{"expression": "false"}]}),
            201,
            String::new(),
        ),
        (
            json!({"matchConditions": [{"name": "a", "expression": "namespaceObject == null"}], "validations": [{"expression": "false"}]}),
            422,
            denied("failed expression: false"),
        ),
        // Variables are evaluated when they are read.
        (
            json!({"variables": [{"name": "k", "expression": "object.data.k"}, {"name": "bad", "expression": "object.nothing"},
                {"name": "twice", "expression": "variables.k + variables.k"}], "validations": [{"expression": "variables.twice == 'vv'"}]}),
            201,
            String::new(),
        ),
        (
            json!({"variables": [{"name": "bad", "expression": "object.nothing"}], "validations": [{"expression": "variables.bad == 1"}]}),
            422,
            denied(
                "expression 'variables.bad == 1' resulted in error: composited variable \\\"bad\\\" fails to evaluate: no such key: nothing",
            ),
        ),
        (
            one(
                json!({"expression": "request.operation == 'CREATE' && request.resource.resource == 'configmaps' && request.kind.kind == 'ConfigMap' && request.userInfo.username == 'system:admin' && !request.dryRun && oldObject == null && request.options.kind == 'CreateOptions'"}),
            ),
            201,
            String::new(),
        ),
        (
            one(
                json!({"expression": "namespaceObject.metadata.name == 'default' && namespaceObject.status.phase == 'Active'"}),
            ),
            201,
            String::new(),
        ),
        (
            one(
                json!({"expression": "authorizer.group('').resource('pods').namespace('default').check('get').allowed()"}),
            ),
            201,
            String::new(),
        ),
        (
            one(json!({"expression": "authorizer.requestResource.check('create').allowed()"})),
            201,
            String::new(),
        ),
        (
            one(
                json!({"expression": "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a + b + c + d + e + f != 0))))))"}),
            ),
            422,
            "operation cancelled: actual cost limit exceeded".to_owned(),
        ),
    ] {
        // Reasons that the API does not know are refused when the policy is written.
        if spec["validations"][0]["reason"] == "Unauthorized" {
            let object = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": rules("", "configmaps"), "validations": spec["validations"]}});
            let answer = server.post(&format!("{GROUP}/validatingadmissionpolicies"), &object).await;
            check(answer, 422, "spec.validations[0].reason", &spec);
            continue;
        }
        if spec["validations"][0]["messageExpression"] == "object.nothing" {
            let object = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": rules("", "configmaps"), "validations": spec["validations"]}});
            let answer = server.post(&format!("{GROUP}/validatingadmissionpolicies"), &object).await;
            check(answer, 422, "must evaluate to string but got dyn", &spec);
            continue;
        }
        validating(&server, &spec, &json!({})).await;
        check(server.post(CONFIG_MAPS, &object).await, code, &part, &spec);
    }
    let status = server.post(CONFIG_MAPS, &object).await.expect(422);
    assert_eq!(status["reason"], "Invalid", "{status}");
    let cause = status["details"]["causes"][0]["message"].as_str().unwrap();
    assert!(cause.starts_with("ValidatingAdmissionPolicy 'p' with binding 'b' denied"), "{status}");
    assert_eq!(status["details"]["kind"], "configmaps");
    let metrics = server.get("/metrics").await.text();
    for part in [
        "apiserver_validating_admission_policy_check_total{policy=\"p\",policy_binding=\"b\",error_type=\"invalid_error\",enforcement_action=\"deny\"}",
        "apiserver_validating_admission_policy_check_total{policy=\"p\",policy_binding=\"b\",error_type=\"invalid_error\",enforcement_action=\"allow\"} 1",
        "apiserver_validating_admission_policy_check_duration_seconds_count{policy=\"p\"",
    ] {
        assert!(metrics.contains(part), "{part}");
    }
}

#[tokio::test]
async fn which_requests_policies_see() {
    let server = Server::start().await;
    let never = json!([{"expression": "false"}]);
    let rule = |operations: &[&str], group: &str, versions: &str, resource: &str| json!([{"operations": operations, "apiGroups": [group], "apiVersions": [versions], "resources": [resource]}]);
    let post = |path: &'static str, name: &'static str, labels: Value| {
        (path, json!({"metadata": {"name": name, "labels": labels}}))
    };
    let plain = || post(CONFIG_MAPS, "a", json!({}));
    for (constraints, resources, (path, object), seen) in [
        (json!({"resourceRules": rule(&["CREATE"], "", "v1", "configmaps")}), Value::Null, plain(), true),
        (json!({"resourceRules": rule(&["*"], "*", "*", "*")}), Value::Null, plain(), true),
        (json!({"resourceRules": rule(&["UPDATE"], "", "v1", "configmaps")}), Value::Null, plain(), false),
        (json!({"resourceRules": rule(&["CREATE"], "", "v1", "secrets")}), Value::Null, plain(), false),
        (
            json!({"resourceRules": rule(&["CREATE"], "apps", "v1", "configmaps")}),
            Value::Null,
            plain(),
            false,
        ),
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*"), "excludeResourceRules": rule(&["CREATE"], "", "v1", "configmaps")}),
            Value::Null,
            plain(),
            false,
        ),
        (
            json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "resourceNames": ["b"]}]}),
            Value::Null,
            plain(),
            false,
        ),
        (
            json!({"resourceRules": rule(&["CREATE"], "", "v1", "configmaps"), "objectSelector": {"matchLabels": {"x": "y"}}}),
            Value::Null,
            plain(),
            false,
        ),
        (
            json!({"resourceRules": rule(&["CREATE"], "", "v1", "configmaps"), "objectSelector": {"matchLabels": {"x": "y"}}}),
            Value::Null,
            post(CONFIG_MAPS, "a", json!({"x": "y"})),
            true,
        ),
        (
            json!({"resourceRules": rule(&["CREATE"], "", "v1", "configmaps"), "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}),
            Value::Null,
            plain(),
            false,
        ),
        // Other versions of the same objects, unless the match is to be exact.
        (
            json!({"resourceRules": rule(&["CREATE"], "autoscaling", "v1", "horizontalpodautoscalers")}),
            Value::Null,
            (
                "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
                json!({"metadata": {"name": "a"},
                "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}}),
            ),
            true,
        ),
        (
            json!({"resourceRules": rule(&["CREATE"], "autoscaling", "v1", "horizontalpodautoscalers"), "matchPolicy": "Exact"}),
            Value::Null,
            (
                "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
                json!({"metadata": {"name": "a"},
                "spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}}),
            ),
            false,
        ),
        // The binding narrows it.
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*")}),
            json!({"resourceRules": rule(&["CREATE"], "", "v1", "secrets")}),
            plain(),
            false,
        ),
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*")}),
            json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}),
            plain(),
            true,
        ),
        // Nobody locks himself out: policies are not subject to policies. Webhooks are.
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*")}),
            Value::Null,
            (
                "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
                json!({"metadata": {"name": "a"}, "spec": {"policyName": "x", "validationActions": ["Warn"]}}),
            ),
            false,
        ),
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*")}),
            Value::Null,
            (
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
                json!({"metadata": {"name": "a"}}),
            ),
            true,
        ),
        (
            json!({"resourceRules": rule(&["*"], "*", "*", "*")}),
            Value::Null,
            (
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}),
            ),
            false,
        ),
    ] {
        let binding = if resources.is_null() { json!({}) } else { json!({"matchResources": resources}) };
        validating(&server, &json!({"matchConstraints": constraints, "validations": never}), &binding).await;
        let answer = server.post(path, &object).await;
        assert_eq!(answer.code, if seen { 422 } else { 201 }, "{constraints} {binding}: {}", answer.text());
        for kind in ["validatingadmissionpolicies/p", "validatingadmissionpolicybindings/b"] {
            server.delete(&format!("{GROUP}/{kind}")).await.expect(200);
        }
        if !seen && object["metadata"]["name"] == "a" {
            server.delete(&format!("{path}/a")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn updates_deletions_and_subresources() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.expect(201);
    let all = json!({"resourceRules": [{"operations": ["*"], "apiGroups": ["", "apps"], "apiVersions": ["*"], "resources": ["configmaps", "deployments/scale", "deployments"]}]});
    let spec = json!({"matchConstraints": all, "validations": [
        {"expression": "request.operation != 'UPDATE' || request.resource.resource != 'configmaps' || object.data.k == oldObject.data.k", "message": "immutable"},
        {"expression": "request.operation != 'DELETE' || (object == null && oldObject.data.k != 'v')", "message": "kept"},
        {"expression": "!has(request.subResource) || request.subResource != 'scale' || object.kind == 'Scale' && object.spec.replicas < 3", "message": "too many"},
    ]});
    validating(&server, &spec, &json!({})).await;
    let path = format!("{CONFIG_MAPS}/a");
    check(server.patch("merge", &path, &json!({"data": {"k": "w"}})).await, 422, "immutable", &"update");
    check(server.patch("merge", &path, &json!({"data": {"l": "w"}})).await, 200, "", &"update");
    check(server.delete(&path).await, 422, "kept", &"delete");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    server.post(DEPLOYMENTS, &deployment).await.expect(201);
    let scale = format!("{DEPLOYMENTS}/d/scale");
    check(server.patch("merge", &scale, &json!({"spec": {"replicas": 3}})).await, 422, "too many", &"scale");
    check(server.patch("merge", &scale, &json!({"spec": {"replicas": 2}})).await, 200, "", &"scale");
    // What Go writes of fields that nobody set is there.
    let spec = json!({"matchConstraints": rules("apps", "deployments"),
        "validations": [{"expression": "object.spec.template.spec.containers.all(c, !has(c.resources.limits)) && has(object.status) && has(object.spec.strategy)"}]});
    validating(&server, &spec, &json!({})).await;
    server.patch("merge", &format!("{DEPLOYMENTS}/d"), &json!({"spec": {"paused": true}})).await.expect(200);
}

#[tokio::test]
async fn warnings_and_several_policies() {
    let server = Server::start().await;
    let spec = json!({"validations": [{"expression": "false", "message": "w"}, {"expression": "true"}]});
    validating(&server, &spec, &json!({"validationActions": ["Warn", "Audit"]})).await;
    let answer = server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}})).await;
    let warning = answer.headers["warning"].to_str().unwrap().to_owned();
    assert_eq!(warning, "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': w\"");
    answer.expect(201);
    // The first in order of names is told; a policy without a binding does nothing.
    for (name, bound) in [("c", true), ("a", false), ("b", true)] {
        let policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": rules("", "configmaps"), "validations": [{"expression": "false"}]}});
        server.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
        let binding = json!({"metadata": {"name": format!("of-{name}")}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
        if bound {
            server.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);
        }
    }
    let object = json!({"metadata": {"generateName": "x"}});
    check(
        server.post(CONFIG_MAPS, &object).await,
        422,
        "ValidatingAdmissionPolicy 'b' with binding 'of-b'",
        &"b",
    );
    server.delete(&format!("{GROUP}/validatingadmissionpolicybindings/of-b")).await.expect(200);
    check(
        server.post(CONFIG_MAPS, &object).await,
        422,
        "ValidatingAdmissionPolicy 'c' with binding 'of-c'",
        &"c",
    );
    server.delete(&format!("{GROUP}/validatingadmissionpolicies/c")).await.expect(200);
    check(server.post(CONFIG_MAPS, &object).await, 201, "", &"none");
}

/// A definition `limits.example.com` (or in the cluster: `rules.example.com`), and its objects.
async fn define(server: &Server, plural: &str, kind: &str, scope: &str) {
    let definition = json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {
        "group": "example.com", "scope": scope, "names": {"plural": plural, "kind": kind},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"max": {"type": "integer"}}}}}]}});
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    while server.get(&format!("/apis/example.com/v1/{plural}")).await.code != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters() {
    let server = Server::start().await;
    define(&server, "limits", "Limit", "Namespaced").await;
    define(&server, "bounds", "Bound", "Cluster").await;
    for (path, name, labels, max) in [
        ("namespaces/default/limits", "one", json!({"a": "b"}), 1),
        ("namespaces/default/limits", "two", json!({"a": "b"}), 2),
        ("namespaces/kube-system/limits", "five", json!({}), 5),
        ("bounds", "three", json!({}), 3),
    ] {
        let object = json!({"apiVersion": "example.com/v1", "kind": if path == "bounds" { "Bound" } else { "Limit" },
            "metadata": {"name": name, "labels": labels}, "max": max});
        server.post(&format!("/apis/example.com/v1/{path}"), &object).await.expect(201);
    }
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "max"}, "data": {"max": "4"}})).await.expect(201);
    let limit = json!({"apiVersion": "example.com/v1", "kind": "Limit"});
    let bound = json!({"apiVersion": "example.com/v1", "kind": "Bound"});
    let validation = json!([{"expression": "params == null || size(object.data) <= params.max", "messageExpression": "'at most ' + string(params.max)"}]);
    let object = json!({"metadata": {"generateName": "x"}, "data": {"a": "", "b": "", "c": ""}});
    let path = "/api/v1/namespaces/default/secrets";
    for (kind, reference, code, part) in [
        (&limit, json!({"name": "one", "parameterNotFoundAction": "Deny"}), 422, "denied request: at most 1"),
        (
            &limit,
            json!({"name": "five", "namespace": "kube-system", "parameterNotFoundAction": "Deny"}),
            201,
            "",
        ),
        (
            &limit,
            json!({"selector": {"matchLabels": {"a": "b"}}, "parameterNotFoundAction": "Deny"}),
            422,
            "at most 1",
        ),
        (
            &limit,
            json!({"selector": {"matchLabels": {"a": "c"}}, "parameterNotFoundAction": "Allow"}),
            201,
            "",
        ),
        (
            &limit,
            json!({"name": "none", "parameterNotFoundAction": "Deny"}),
            422,
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction",
        ),
        (&limit, json!({"name": "none", "parameterNotFoundAction": "Allow"}), 201, ""),
        (&bound, json!({"name": "three", "parameterNotFoundAction": "Deny"}), 201, ""),
        (
            &bound,
            json!({"name": "three", "namespace": "default", "parameterNotFoundAction": "Deny"}),
            422,
            "paramRef.namespace must not be provided for a cluster-scoped `paramKind`",
        ),
        (
            &json!({"apiVersion": "example.com/v2", "kind": "Limit"}),
            json!({"name": "one", "parameterNotFoundAction": "Deny"}),
            422,
            "ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v2, Kind=Limit'",
        ),
    ] {
        let spec =
            json!({"paramKind": kind, "validations": validation, "matchConstraints": rules("", "secrets")});
        validating(&server, &spec, &json!({"paramRef": reference})).await;
        check(server.post(path, &object).await, code, part, &reference);
    }
    // A binding without a reference: the parameter is null.
    let spec =
        json!({"paramKind": limit, "validations": validation, "matchConstraints": rules("", "secrets")});
    validating(&server, &spec, &json!({})).await;
    check(server.post(path, &object).await, 201, "", &"null");
    // Built-in kinds serve too, and a change of the parameter counts at once.
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "matchConstraints": rules("", "secrets"),
        "validations": [{"expression": "size(object.data) <= int(params.data.max) && params.kind == 'ConfigMap'"}]});
    validating(&server, &spec, &json!({"paramRef": {"name": "max", "parameterNotFoundAction": "Deny"}}))
        .await;
    check(server.post(path, &object).await, 201, "", &"4");
    server.patch("merge", &format!("{CONFIG_MAPS}/max"), &json!({"data": {"max": "2"}})).await.expect(200);
    check(server.post(path, &object).await, 422, "failed expression", &"2");
    // Parameters in namespaces for what is in none.
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "matchConstraints": rules("", "nodes"), "validations": [{"expression": "true"}]});
    validating(&server, &spec, &json!({"paramRef": {"name": "max", "parameterNotFoundAction": "Deny"}}))
        .await;
    let part = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
    check(server.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await, 422, part, &"nodes");
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

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
                "Object{kind: 'Secret', apiVersion: 'v2', metadata: Object.metadata{uid: 'x', namespace: 'y'}, data: {'l': '1'}}",
            )],
            201,
            json!({"labels": {"a": "b"}, "data": {"k": "v", "l": "1"}}),
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

/// Creates an object once the authorizers have heard of the caller's role.
async fn allowed(server: &Server, path: &str, headers: &[(&str, &str)], object: &Value) -> Answer {
    loop {
        let answer = server.send("POST", path, headers, object.to_string()).await;
        if answer.code != 403 {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn parameters_must_be_readable_by_who_refers_to_them() {
    let server = Server::with(|config| config.auth = yare_apiserver::Auth::new(None)).await;
    let role = json!({"metadata": {"name": "policies"}, "rules": [
        {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await.expect(201);
    let binding = json!({"metadata": {"name": "policies"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "policies"}});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.expect(201);
    let policy = json!({"metadata": {"name": "p"}, "spec": {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": rules("", "secrets"), "validations": [{"expression": "true"}]}});
    let bound = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"],
        "paramRef": {"name": "x", "namespace": "default", "parameterNotFoundAction": "Deny"}}});
    let (policies, bindings) = (
        format!("{GROUP}/validatingadmissionpolicies"),
        format!("{GROUP}/validatingadmissionpolicybindings"),
    );
    let jane = [("impersonate-user", "jane"), ("content-type", "application/json")];
    let refused = allowed(&server, &policies, &jane, &policy).await;
    let part = "spec.paramKind: Forbidden: user &{jane  [system:authenticated] map[]} must have \\\"get\\\" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)";
    check(refused, 422, part, &"policy");
    server.post(&policies, &policy).await.expect(201);
    let refused = server.send("POST", &bindings, &jane, bound.to_string()).await;
    let part = "spec.paramRef: Forbidden: user &{jane  [system:authenticated] map[]} does not have \\\"get\\\" permission on the object referenced by paramRef";
    check(refused, 422, part, &"binding");
    let reads = json!({"rules": [{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]});
    server
        .patch("merge", "/apis/rbac.authorization.k8s.io/v1/clusterroles/policies", &reads)
        .await
        .expect(200);
    while server.send("POST", &bindings, &jane, bound.to_string()).await.code != 201 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_audit_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (rules, path) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    let metadata = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, resources: [{resources: [configmaps]}]}]}";
    std::fs::write(&rules, metadata).unwrap();
    let target =
        Target { path: path.clone(), max_age_days: 0, max_backups: 0, max_size_bytes: 0, compress: false };
    let batching =
        Batching { buffer: 100, max_size: 100, max_wait: Duration::from_millis(20), throttle: None };
    let log = LogSettings { target, text: false, mode: Mode::Blocking, batching, truncate: None };
    let settings = Settings { policy: Some(rules), log: Some(log), ..Settings::default() };
    let audit = Audit::open(&settings, Arc::new(SystemClock), Arc::new(SystemRandom)).unwrap();
    let server = Server::with(|config| config.audit = audit).await;
    let spec = json!({"failurePolicy": "Ignore", "validations": [{"expression": "true"}, {"expression": "false", "message": "m"}],
    "auditAnnotations": [
        {"key": "long", "valueExpression": "'x' + object.data.k"},
        {"key": "none", "valueExpression": "null"},
        {"key": "blank", "valueExpression": "' '"},
        {"key": "fails", "valueExpression": "string(object.nothing)"},
    ]});
    validating(&server, &spec, &json!({"validationActions": ["Audit"]})).await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.expect(201);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut events = text.lines().map(|line| line.parse::<Value>().unwrap());
    let event = events.find(|e| e["stage"] == "ResponseComplete").unwrap();
    let annotations = event["annotations"].as_object().unwrap();
    let failure =
        r#"[{"message":"m","policy":"p","binding":"b","expressionIndex":1,"validationActions":["Audit"]}]"#;
    assert_eq!(annotations["p/long"], "xv");
    let found = annotations["validation.policy.admission.k8s.io/validation_failure"].as_str().unwrap();
    assert_eq!(found.parse::<Value>().unwrap(), failure.parse::<Value>().unwrap());
    assert!(!annotations.keys().any(|key| ["p/none", "p/blank", "p/fails"].contains(&key.as_str())));
}
