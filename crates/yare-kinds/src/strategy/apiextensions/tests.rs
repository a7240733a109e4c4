//! Cases for `apiextensions.k8s.io`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{
        CONTEXT, check_create, check_update, create_errors, defaulted, patched, strategy, update_errors,
    },
    view::{View, ViewMut},
};

const GROUP: &str = "apiextensions.k8s.io";
const KIND: &str = "CustomResourceDefinition";

fn crd() -> Value {
    json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"color": {"type": "string"}}}}}}}]}})
}

/// The one version with other members.
fn version(patch: Value) -> Value {
    json!({"spec": {"versions": [patched(&crd().items("spec.versions")[0], patch)]}})
}

#[test]
fn defaults() {
    let mut crd = defaulted(GROUP, KIND, crd());
    assert_eq!(
        crd.at("spec.names"),
        &json!({"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList"})
    );
    assert_eq!(crd.at("spec.conversion"), &json!({"strategy": "None"}));
    crd.set("status.conditions", json!([]));
    strategy(GROUP, KIND).prepare_for_create(&mut crd, &CONTEXT);
    assert_eq!(crd.at("status"), &json!({"storedVersions": ["v1"]}));
}

#[test]
fn validation() {
    check_create(
        GROUP,
        KIND,
        &crd(),
        &[
            (json!({}), &[]),
            (
                json!({"metadata": {"name": "x"}}),
                &["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"],
            ),
            (
                json!({"metadata": {"name": "things.example"}, "spec": {"group": "example"}}),
                &["spec.group: Invalid value: \"example\": should be a domain with at least one dot"],
            ),
            (
                json!({"spec": {"scope": "X"}}),
                &["spec.scope: Unsupported value: \"X\": supported values: \"Cluster\", \"Namespaced\""],
            ),
            (
                json!({"spec": {"names": {"listKind": "Thing", "shortNames": ["T"]}}}),
                &[
                    "spec.names.shortNames[0]: Invalid value: \"T\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                    "spec.names.listKind: Invalid value: \"Thing\": kind and listKind may not be the same",
                ],
            ),
            (version(json!({"schema": null})), &["spec.versions[0].schema.openAPIV3Schema: Required value"]),
            (
                version(
                    json!({"subresources": {"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": "n"}}}),
                ),
                &[
                    "spec.subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
                    "spec.subresources.scale.statusReplicasPath: Invalid value: \"n\": must be a simple json path starting with .",
                ],
            ),
            (
                version(json!({"additionalPrinterColumns": [{"name": "c", "type": "x", "jsonPath": ".c"}]})),
                &[
                    "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string",
                ],
            ),
            (version(json!({"selectableFields": [{"jsonPath": ".spec.color"}]})), &[]),
            (
                version(json!({"selectableFields": [{"jsonPath": ".spec.size"}, {"jsonPath": ".spec"}]})),
                &[
                    "spec.selectableFields[0].jsonPath: Invalid value: \".spec.size\": is an invalid path: does not refer to a valid field",
                    "spec.selectableFields[1].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                ],
            ),
            (
                json!({"spec": {"conversion": {"strategy": "Webhook"}}}),
                &[
                    "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
                    "spec.conversion.conversionReviewVersions: Required value",
                ],
            ),
            (
                json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n"}}}}}}),
                &[],
            ),
            (
                json!({"spec": {"preserveUnknownFields": true}}),
                &[
                    "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
                ],
            ),
            (
                json!({"metadata": {"name": "things.x.k8s.io"}, "spec": {"group": "x.k8s.io"}}),
                &[
                    "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
                ],
            ),
        ],
    );
}

#[test]
fn updates() {
    let mut old = crd();
    old.set(
        "status",
        json!({"storedVersions": ["v1"], "conditions": [{"type": "Established", "status": "True"}]}),
    );
    check_update(
        GROUP,
        KIND,
        &old,
        &[
            (
                json!({"spec": {"names": {"kind": "Other"}}}),
                &["spec.names.kind: Invalid value: \"Other\": field is immutable"],
            ),
            (
                version(json!({"name": "v2"})),
                &[
                    "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions",
                ],
            ),
        ],
    );
}

#[test]
fn what_was_wrong_before_is_judged_again() {
    let with = |spec: Value| {
        let properties = json!({"schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}});
        let mut crd = patched(&crd(), version(properties));
        crd.set(
            "status",
            json!({"storedVersions": ["v1"], "conditions": [{"type": "Established", "status": "True"}]}),
        );
        crd
    };
    let list = |kind: &str, items: Value| {
        json!({"type": "object", "properties": {"a": {"type": "array", "items": items,
            "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": if kind == "map" { json!(["k"]) } else { json!(null) }}}})
    };
    let item = json!({"type": "object", "properties": {"k": {"type": "string"}}});
    // Rules that upstream came to later do not hold for what did not keep to them; all others do, also where nothing
    // changes.
    for (spec, spared) in [
        (list("set", item.clone()), true),
        (list("map", item), true),
        (json!({"type": "object", "default": {"unknown": 1}}), true),
        (json!({"type": "object", "properties": {"a": {"type": "string", "default": 5}}}), false),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}}}),
            false,
        ),
        (json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.nothing"}]}), false),
    ] {
        let old = with(spec.clone());
        assert!(!create_errors(GROUP, KIND, old.clone()).is_empty(), "{spec}");
        for change in
            [json!({"metadata": {"labels": {"a": "b"}}}), json!({"spec": {"names": {"shortNames": ["t"]}}})]
        {
            let errors = update_errors(GROUP, KIND, old.clone(), patched(&old, change));
            assert_eq!(errors.is_empty(), spared, "{spec}: {errors:?}");
        }
    }
}
