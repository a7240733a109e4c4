//! Cases for `admissionregistration.k8s.io`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{check_create, check_update, defaulted, patched},
    view::View,
};

const GROUP: &str = "admissionregistration.k8s.io";

fn rule() -> Value {
    json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]})
}

#[test]
fn webhooks() {
    let hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "rules": [rule()],
        "clientConfig": {"service": {"name": "s", "namespace": "n"}}});
    let with = |patch: Value| json!({"webhooks": [patched(&hook, patch)]});
    let base = json!({"metadata": {"name": "w"}, "webhooks": [hook]});
    let w = defaulted(GROUP, "MutatingWebhookConfiguration", base.clone());
    let first = &w.items("webhooks")[0];
    assert_eq!((first.str_at("failurePolicy"), first.str_at("matchPolicy")), ("Fail", "Equivalent"));
    assert_eq!((first.int_at("timeoutSeconds"), first.str_at("reinvocationPolicy")), (10, "Never"));
    assert_eq!(
        (first.items("rules")[0].str_at("scope"), first.int_at("clientConfig.service.port")),
        ("*", 443)
    );
    assert_eq!(first.at("namespaceSelector"), &json!({}));
    check_create(
        GROUP,
        "ValidatingWebhookConfiguration",
        &base,
        &[
            (json!({}), &[]),
            (
                with(json!({"name": "a.b"})),
                &[
                    "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
                ],
            ),
            (
                with(json!({"sideEffects": "Some", "timeoutSeconds": 31})),
                &[
                    "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                    "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
                ],
            ),
            (
                with(json!({"admissionReviewVersions": ["v0"]})),
                &[
                    "webhooks[0].admissionReviewVersions: Invalid value: [\"v0\"]: must include at least one of v1, v1beta1",
                ],
            ),
            (
                with(
                    json!({"rules": [{"operations": ["*", "CREATE"], "apiGroups": ["*"], "apiVersions": [], "resources": ["pods/*", "pods/status"]}]}),
                ),
                &[
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                    "webhooks[0].rules[0].apiVersions: Required value",
                    "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status",
                ],
            ),
            (
                with(json!({"matchConditions": [{"name": "", "expression": " "}]})),
                &[
                    "webhooks[0].matchConditions[0].expression: Required value",
                    "webhooks[0].matchConditions[0].name: Required value",
                ],
            ),
        ],
    );
}

#[test]
fn policies() {
    let base = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule()]},
        "validations": [{"expression": "true"}]}});
    check_create(
        GROUP,
        "ValidatingAdmissionPolicy",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"validations": []}}),
                &[
                    "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                    "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
                ],
            ),
            (
                json!({"spec": {"variables": [{"name": "in", "expression": "1"}], "paramKind": {"apiVersion": "v1", "kind": ""}}}),
                &[
                    "spec.paramKind.kind: Required value",
                    "spec.variables[0].name: Invalid value: \"in\": must be a valid CEL identifier",
                ],
            ),
            (json!({"spec": {"matchConstraints": null}}), &["spec.matchConstraints: Required value"]),
        ],
    );
    let base = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule()]},
        "reinvocationPolicy": "Never", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/spec/x'}]"}}]}});
    check_create(
        GROUP,
        "MutatingAdmissionPolicy",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"mutations": [{"patchType": "ApplyConfiguration", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/spec/x'}]"}}]}}),
                &[
                    "spec.mutations[0].applyConfiguration: Required value: must be specified when patchType is ApplyConfiguration",
                    "spec.mutations[0].jsonPatch: Invalid value: \"{jsonPatch}\": must not be specified when patchType is ApplyConfiguration",
                ],
            ),
        ],
    );
}

#[test]
fn bindings() {
    let base = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    check_create(
        GROUP,
        "ValidatingAdmissionPolicyBinding",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"policyName": "", "validationActions": []}}),
                &[
                    "spec.policyName: Required value",
                    "spec.validationActions: Required value: at least one validation action is required",
                ],
            ),
            (
                json!({"spec": {"paramRef": {"parameterNotFoundAction": "X"}}}),
                &[
                    "spec.paramRef: Required value: one of name or selector must be specified",
                    "spec.paramRef.parameterNotFoundAction: Unsupported value: \"X\": supported values: \"Deny\", \"Allow\"",
                ],
            ),
        ],
    );
}

#[test]
fn match_conditions_compile() {
    let hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "rules": [rule()],
        "clientConfig": {"service": {"name": "s", "namespace": "n"}}});
    let with =
        |conditions: Value| json!({"webhooks": [patched(&hook, json!({"matchConditions": conditions}))]});
    let condition = |expression: &str| json!({"name": "c", "expression": expression});
    let many: Vec<Value> = (0..65).map(|i| json!({"name": format!("c{i}"), "expression": "true"})).collect();
    let base = json!({"metadata": {"name": "w"}, "webhooks": [hook]});
    check_create(
        GROUP,
        "MutatingWebhookConfiguration",
        &base,
        &[
            (with(json!([condition("request.name == 'x'")])), &[]),
            (
                with(json!([condition("1"), condition("params.x")])),
                &[
                    "webhooks[0].matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
                    "webhooks[0].matchConditions[1].expression: Invalid value: \"params.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^",
                    "webhooks[0].matchConditions[1].name: Duplicate value: \"c\"",
                ],
            ),
            (
                with(json!([{"name": "not a name", "expression": "true"}])),
                &[
                    "webhooks[0].matchConditions[0].name: Invalid value: \"not a name\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
            (with(json!(many)), &["webhooks[0].matchConditions: Too many: 65: must have at most 64 items"]),
        ],
    );
    // What was let in once does not stand in the way of other changes.
    let broken = patched(&base, with(json!([condition("gone()")])));
    let other = patched(&broken, json!({"metadata": {"labels": {"a": "b"}}}));
    check_update(
        GROUP,
        "MutatingWebhookConfiguration",
        &broken,
        &[
            (json!({"metadata": {"labels": {"a": "b"}}}), &[]),
            (
                with(json!([condition("gone() ")])),
                &[
                    "webhooks[0].matchConditions[0].expression: Invalid value: \"gone()\": compilation failed: ERROR: <input>:1:5: undeclared reference to 'gone' (in container '')\n | gone()\n | ....^",
                ],
            ),
        ],
    );
    assert!(other.has("metadata.labels"));
}

#[test]
fn expressions_of_policies_compile() {
    let base = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule()]},
        "validations": [{"expression": "true"}]}});
    let spec = |patch: Value| json!({"spec": patch});
    check_create(
        GROUP,
        "ValidatingAdmissionPolicy",
        &base,
        &[
            (
                spec(json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                    "variables": [{"name": "a", "expression": "params.data.a"}, {"name": "b", "expression": "variables.a + 'x'"}],
                    "matchConditions": [{"name": "c", "expression": "params != null"}],
                    "validations": [{"expression": "variables.b == 'x'", "messageExpression": "'no ' + string(params.data.a)", "reason": "Forbidden"}],
                    "auditAnnotations": [{"key": "k", "valueExpression": "variables.a == 'x' ? 'v' : 'w'"}]})),
                &[],
            ),
            (
                spec(
                    json!({"validations": [{"expression": "'x'", "messageExpression": "authorizer.x"}], "variables": [{"name": "v", "expression": "1 +"}],
                    "auditAnnotations": [{"key": "not a name", "valueExpression": "1"}]}),
                ),
                &[
                    "spec.variables[0].expression: Invalid value: \"1 +\": compilation failed: ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
                    "spec.validations[0].expression: Invalid value: \"'x'\": must evaluate to bool but got string",
                    "spec.validations[0].messageExpression: Invalid value: \"authorizer.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'authorizer' (in container '')\n | authorizer.x\n | ^",
                    "spec.auditAnnotations[0].key: Invalid value: \"p/not a name\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                    "spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int",
                ],
            ),
        ],
    );
    let base = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule()]}, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{x: 1}}"}}]}});
    let mutation = |expression: &str| {
        spec(
            json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]}),
        )
    };
    check_create(
        GROUP,
        "MutatingAdmissionPolicy",
        &base,
        &[
            (json!({}), &[]),
            (
                mutation("{'a': 1}"),
                &[
                    "spec.mutations[0].applyConfiguration.expression: Invalid value: \"{'a': 1}\": must evaluate to Object but got map(string, int)",
                ],
            ),
        ],
    );
}
