//! Validating admission policies in CEL, and what all policies have in common, against a whole server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/policies.rs"]
mod helpers;

use std::{sync::Arc, time::Duration};

use common::{Answer, Server};
use helpers::{CONFIG_MAPS, DEPLOYMENTS, GROUP, check, define, rules, validating};
use serde_json::{Value, json};
use yare_apiserver::{
    SystemClock, SystemRandom,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target},
};

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
        // Of the request, conditions, variables and validations read different parts.
        (
            json!({"matchConditions": [{"name": "a", "expression": "request.operation == 'CREATE'"}],
                "variables": [{"name": "who", "expression": "request.userInfo"}],
                "validations": [{"expression": "variables.who.username == 'system:admin' && request.namespace == 'default' && !has(request.subResource)"},
                    {"expression": "request.?kind.kind.orValue('') == 'ConfigMap' && request.resource.version == 'v1'"}]}),
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
                json!({"expression": "request.operation == 'CREATE' && request.namespace == 'default' && request.resource.resource == 'configmaps' && request.kind.kind == 'ConfigMap' && request.userInfo.username == 'system:admin' && !request.dryRun && oldObject == null && request.options.kind == 'CreateOptions'"}),
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
    let part = "spec.paramKind: Forbidden: user \\u0026{jane  [system:authenticated] map[]} must have \\\"get\\\" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)";
    check(refused, 422, part, &"policy");
    server.post(&policies, &policy).await.expect(201);
    let refused = server.send("POST", &bindings, &jane, bound.to_string()).await;
    let part = "spec.paramRef: Forbidden: user \\u0026{jane  [system:authenticated] map[]} does not have \\\"get\\\" permission on the object referenced by paramRef";
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
