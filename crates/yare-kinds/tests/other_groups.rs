//! What is wrong with objects of the smaller groups, after defaults, in upstream's words.

use serde_json::{Value, json};
use yare_kinds::{strategy::Context, table::find_kind};
use yare_schema::features;

const CTX: Context<'_> =
    Context { now: "2026-01-01T00:00:00Z", namespace: "ns", user: "u", gates: &features::DEFAULT };

#[track_caller]
fn create(group: &str, kind: &str, object: Value, expected: &[&str]) {
    let resource = find_kind(group, kind).unwrap_or_else(|| panic!("no kind {kind}"));
    let mut object = object;
    resource.strategy.default(&mut object);
    let errs: Vec<String> = resource.validate_create(&object, &CTX).iter().map(ToString::to_string).collect();
    assert_eq!(errs, expected, "{kind} {object:#}");
}

#[test]
fn access() {
    create(
        "authorization.k8s.io",
        "SubjectAccessReview",
        json!({"spec": {"user": "u", "resourceAttributes": {"verb": "get"}}}),
        &[],
    );
    create(
        "authorization.k8s.io",
        "SubjectAccessReview",
        json!({"metadata": {"name": "x"}, "spec": {}}),
        &[
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            "metadata: Invalid value: {\"name\":\"x\"}: must be empty",
        ],
    );
    create(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        json!({"spec": {"nonResourceAttributes": {"path": "/"}}}),
        &[],
    );
    create(
        "authorization.k8s.io",
        "LocalSubjectAccessReview",
        json!({"metadata": {"namespace": "a"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}}),
        &["spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace"],
    );
    create(
        "authentication.k8s.io",
        "TokenReview",
        json!({"spec": {}}),
        &["spec.token: Required value: token is required for TokenReview in authentication"],
    );
}

#[test]
fn extension() {
    create(
        "apiregistration.k8s.io",
        "APIService",
        json!({"metadata": {"name": "v1.x.io"}, "spec": {"group": "x.io", "version": "v1",
        "groupPriorityMinimum": 100, "versionPriority": 0, "service": {"name": "s", "namespace": ""}}}),
        &[
            "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            "spec.service.namespace: Required value",
        ],
    );
    create(
        "node.k8s.io",
        "RuntimeClass",
        json!({"metadata": {"name": "a"}, "handler": "A_b"}),
        &[
            "handler: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    create(
        "flowcontrol.apiserver.k8s.io",
        "FlowSchema",
        json!({"metadata": {"name": "a"}, "spec": {"matchingPrecedence": 1, "rules": [
        {"subjects": [{"kind": "User", "group": {"name": "g"}}], "nonResourceRules": [{"verbs": ["*", "get"], "nonResourceURLs": ["x"]}]}]}}),
        &[
            "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
            "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
            "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
            "spec.rules[0].nonResourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs",
            "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"x\": must start with slash",
        ],
    );
    create(
        "flowcontrol.apiserver.k8s.io",
        "PriorityLevelConfiguration",
        json!({"metadata": {"name": "a"}, "spec": {"type": "Limited",
        "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 4}}}}}),
        &[
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: should not be greater than queues (4)",
        ],
    );
}

#[test]
fn devices() {
    create(
        "resource.k8s.io",
        "ResourceClaim",
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "c"}}], "constraints": [{"requests": ["r", "q"], "matchAttribute": "x.io/a"}]}}}),
        &[
            "spec.devices.constraints[0].requests[1]: Invalid value: \"q\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
        ],
    );
    create(
        "resource.k8s.io",
        "ResourceSlice",
        json!({"metadata": {"name": "a"}, "spec": {"driver": "d.io", "pool": {"name": "p", "resourceSliceCount": 1},
        "nodeName": "n", "allNodes": true}}),
        &[
            "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
        ],
    );
}

/// Names that the rest of the object decides; what a name is to begin with follows the same rule.
#[test]
fn names_that_objects_decide() {
    for (name, generate_name, errors) in [
        ("v1.x.io", "", &[][..]),
        (
            "v1.y.io",
            "",
            &[r#"metadata.name: Invalid value: "v1.y.io": must be `spec.version+"."+spec.group`: "v1.x.io""#],
        ),
        (
            "a/b",
            "v1-",
            &[
                r#"metadata.generateName: Invalid value: "v1-": must be `spec.version+"."+spec.group`: "v1.x.io""#,
                r#"metadata.name: Invalid value: "a/b": may not contain '/'"#,
            ],
        ),
    ] {
        create(
            "apiregistration.k8s.io",
            "APIService",
            json!({"metadata": {"name": name, "generateName": generate_name},
                "spec": {"group": "x.io", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 1}}),
            errors,
        );
    }
    let anchors = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
    for (name, signer, error) in [
        ("x.io:s:a", "", Some(r#"ClusterTrustBundle without signer name must not have ":" in its name"#)),
        ("a", "x.io/s", Some("ClusterTrustBundle for signerName x.io/s must be named with prefix x.io:s:")),
        ("x.io:s:a", "x.io/s", None),
        ("a", "", None),
    ] {
        let bundle =
            json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": anchors}});
        let resource = find_kind("certificates.k8s.io", "ClusterTrustBundle").unwrap();
        let errors: Vec<String> =
            resource.validate_create(&bundle, &CTX).iter().map(ToString::to_string).collect();
        let of_name = errors.iter().find(|e| e.starts_with("metadata.name"));
        let wanted = error.map(|why| format!("metadata.name: Invalid value: {name:?}: {why}"));
        assert_eq!(of_name, wanted.as_ref(), "{errors:?}");
    }
}
