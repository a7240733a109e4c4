//! Cases for `apps`.

use serde_json::{Value, json};

use crate::{
    strategy::testing::{
        CONTEXT, check_create, check_update, create_errors, defaulted, named, patched, status_errors,
        strategy, template,
    },
    view::{View, ViewMut},
};

fn workload() -> Value {
    named(json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template()}}))
}

#[test]
fn defaults() {
    let d = defaulted("apps", "Deployment", workload());
    assert_eq!(
        d.at("spec.strategy"),
        &json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!((d.int_at("spec.replicas"), d.int_at("spec.revisionHistoryLimit")), (1, 10));
    assert_eq!(d.int_at("spec.progressDeadlineSeconds"), 600);
    assert_eq!(d.str_at("spec.template.spec.restartPolicy"), "Always");
    let recreate = patched(&workload(), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    assert_eq!(defaulted("apps", "Deployment", recreate).at("spec.strategy"), &json!({"type": "Recreate"}));

    let d = defaulted("apps", "DaemonSet", workload());
    assert_eq!(
        d.at("spec.updateStrategy"),
        &json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    );

    let claims = json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "v"}}]}});
    let s = defaulted("apps", "StatefulSet", patched(&workload(), claims));
    assert_eq!(s.str_at("spec.podManagementPolicy"), "OrderedReady");
    assert_eq!(
        s.at("spec.updateStrategy"),
        &json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
    );
    assert_eq!(
        s.at("spec.persistentVolumeClaimRetentionPolicy"),
        &json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
    );
    assert_eq!(
        s.at("spec.volumeClaimTemplates"),
        &json!([{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v"},
            "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}])
    );
    let twice = |kind: &str| {
        let once = defaulted("apps", kind, workload());
        assert_eq!(defaulted("apps", kind, once.clone()), once, "{kind}");
    };
    for kind in ["Deployment", "DaemonSet", "StatefulSet", "ReplicaSet"] {
        twice(kind);
    }
}

const MISMATCH: &str = "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`";
const NOT_ALWAYS: &str =
    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"";

#[test]
fn validation() {
    let other: (Value, &[&str]) =
        (json!({"spec": {"template": {"metadata": {"labels": {"app": "b"}}}}}), &[MISMATCH]);
    let never: (Value, &[&str]) =
        (json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}}), &[NOT_ALWAYS]);
    for kind in ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"] {
        check_create("apps", kind, &workload(), &[(json!({}), &[]), other.clone(), never.clone()]);
    }
    check_create(
        "apps",
        "Deployment",
        &workload(),
        &[
            (
                json!({"spec": {"replicas": -1}}),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"spec": {"selector": null}}),
                &[
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                json!({"spec": {"selector": {"matchLabels": null}}}),
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
                ],
            ),
            (
                json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": {}}}}),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                json!({"spec": {"progressDeadlineSeconds": 5, "minReadySeconds": 5}}),
                &["spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"],
            ),
        ],
    );
    check_create(
        "apps",
        "DaemonSet",
        &workload(),
        &[
            (
                json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}}),
                &[
                    "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
                ],
            ),
            (
                json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}}),
                &[
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
                ],
            ),
        ],
    );
    check_create(
        "apps",
        "StatefulSet",
        &workload(),
        &[
            (
                json!({"spec": {"podManagementPolicy": "X"}}),
                &["spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'"],
            ),
            (
                json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": -1}}}}),
                &[
                    "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                json!({"spec": {"ordinals": {"start": -1}}}),
                &["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"spec": {
                "template": {"spec": {"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}),
                &[],
            ),
        ],
    );
    assert_eq!(
        create_errors("apps", "ControllerRevision", json!({"revision": -1, "data": null})),
        [
            "revision: Invalid value: -1: must be greater than or equal to 0",
            "data: Required value: data is mandatory",
        ]
    );
}

#[test]
fn updates() {
    check_update(
        "apps",
        "Deployment",
        &workload(),
        &[
            (json!({"spec": {"replicas": 3}}), &[]),
            (
                json!({"spec": {
                "selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}}}),
                &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"],
            ),
        ],
    );
    check_update(
        "apps",
        "StatefulSet",
        &workload(),
        &[
            (json!({"spec": {"replicas": 3, "template": {"spec": {"hostNetwork": true}}}}), &[]),
            (
                json!({"spec": {"serviceName": "s"}}),
                &[
                    "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ],
            ),
        ],
    );
    check_update(
        "apps",
        "ControllerRevision",
        &named(json!({"revision": 1, "data": {"a": 1}})),
        &[
            (json!({"revision": 2}), &[]),
            (json!({"data": {"a": 2}}), &["data: Invalid value: {\"a\":2}: field is immutable"]),
        ],
    );
}

#[test]
fn generations() {
    let old = patched(&defaulted("apps", "Deployment", workload()), json!({"metadata": {"generation": 4}}));
    for (patch, generation) in [
        (json!({}), 4),
        (json!({"metadata": {"labels": {"x": "y"}}}), 4),
        (json!({"metadata": {"annotations": {"x": "y"}}}), 5),
        (json!({"spec": {"replicas": 2}}), 5),
        (json!({"status": {"replicas": 2}}), 4),
    ] {
        let mut new = patched(&old, patch.clone());
        strategy("apps", "Deployment").prepare_for_update(&mut new, &old, &CONTEXT);
        assert_eq!(new.int_at("metadata.generation"), generation, "{patch}");
        assert!(!new.has("status"));
    }
    let mut old = defaulted("apps", "DaemonSet", workload());
    strategy("apps", "DaemonSet").prepare_for_create(&mut old, &CONTEXT);
    for (field, counted) in [("spec.minReadySeconds", "1"), ("spec.template.spec.priority", "2")] {
        let mut new = old.clone();
        new.set(field, 3);
        strategy("apps", "DaemonSet").prepare_for_update(&mut new, &old, &CONTEXT);
        assert_eq!(new.int_at("metadata.generation"), 2);
        let annotation = &new.at("metadata.annotations")["deprecated.daemonset.template.generation"];
        assert_eq!(annotation, counted, "{field}");
    }
    let mut new = patched(&old, json!({"metadata": {"annotations": null}}));
    strategy("apps", "DaemonSet").prepare_for_status_update(&mut new, &old, &CONTEXT);
    assert_eq!(new.at("metadata.annotations"), old.at("metadata.annotations"));
}

#[test]
fn status() {
    let counts = |status: Value| named(json!({"status": status}));
    assert_eq!(
        status_errors(
            "apps",
            "Deployment",
            counts(json!({"collisionCount": 2})),
            counts(json!({"replicas": 1, "readyReplicas": 2, "collisionCount": 1}))
        ),
        [
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            "status.collisionCount: Invalid value: 1: cannot be decremented",
        ]
    );
    let mut new = named(
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 9}, "status": {"replicas": 1}}),
    );
    let old = named(json!({"spec": {"replicas": 2}}));
    strategy("apps", "Deployment").prepare_for_status_update(&mut new, &old, &CONTEXT);
    assert_eq!((new.int_at("spec.replicas"), new.int_at("status.replicas")), (2, 1));
    assert!(!new.has("metadata.labels"));
}
