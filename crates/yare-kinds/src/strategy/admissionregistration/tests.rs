//! Cases for `admissionregistration.k8s.io`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{check_create, defaulted, patched},
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
        "reinvocationPolicy": "Never", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]}});
    check_create(
        GROUP,
        "MutatingAdmissionPolicy",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"mutations": [{"patchType": "ApplyConfiguration", "jsonPatch": {"expression": "[]"}}]}}),
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
                    "spec.paramRef.parameterNotFoundAction: Unsupported value: \"X\": supported values: \"Allow\", \"Deny\"",
                ],
            ),
        ],
    );
}
