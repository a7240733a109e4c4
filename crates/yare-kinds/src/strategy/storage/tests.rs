//! Cases for `storage.k8s.io`.

use serde_json::json;

use crate::{
    strategy::testing::{check_create, check_update, defaulted, named},
    view::View,
};

const GROUP: &str = "storage.k8s.io";

#[test]
fn classes() {
    let base = json!({"metadata": {"name": "c"}, "provisioner": "a.b/c"});
    let class = defaulted(GROUP, "StorageClass", base.clone());
    assert_eq!((class.str_at("reclaimPolicy"), class.str_at("volumeBindingMode")), ("Delete", "Immediate"));
    check_create(
        GROUP,
        "StorageClass",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"provisioner": "", "reclaimPolicy": "X", "volumeBindingMode": "Y"}),
                &[
                    "provisioner: Required value",
                    "reclaimPolicy: Unsupported value: \"X\": supported values: \"Delete\", \"Retain\"",
                    "volumeBindingMode: Unsupported value: \"Y\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
                ],
            ),
            (
                json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "z", "values": ["a", "a"]}]}, {"matchLabelExpressions": [{"key": "z", "values": ["a"]}]}]}),
                &[
                    "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
                    "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
                ],
            ),
        ],
    );
    check_update(
        GROUP,
        "StorageClass",
        &base,
        &[
            (json!({"allowVolumeExpansion": true}), &[]),
            (
                json!({"parameters": {"a": "b"}, "reclaimPolicy": "Retain"}),
                &[
                    "parameters: Invalid value: {\"a\":\"b\"}: field is immutable",
                    "reclaimPolicy: Invalid value: \"Retain\": field is immutable",
                ],
            ),
        ],
    );
    let base = json!({"metadata": {"name": "c"}, "driverName": "a.b/c", "parameters": {"a": "b"}});
    check_create(
        GROUP,
        "VolumeAttributesClass",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"parameters": null}),
                &["parameters: Required value: must contain at least one key/value pair"],
            ),
        ],
    );
    check_update(
        GROUP,
        "VolumeAttributesClass",
        &base,
        &[(
            json!({"parameters": {"a": "c"}}),
            &["parameters: Forbidden: updates to parameters are forbidden."],
        )],
    );
}

#[test]
fn csi() {
    let base = json!({"metadata": {"name": "d"}, "spec": {}});
    let driver = defaulted(GROUP, "CSIDriver", base.clone());
    assert_eq!(
        driver.at("spec"),
        &json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "requiresRepublish": false,
            "seLinuxMount": false, "fsGroupPolicy": "ReadWriteOnceWithFSType", "volumeLifecycleModes": ["Persistent"]})
    );
    check_create(
        GROUP,
        "CSIDriver",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"volumeLifecycleModes": ["X"], "tokenRequests": [{"audience": "a", "expirationSeconds": 1}]}}),
                &[
                    "spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
                    "spec.volumeLifecycleModes: Unsupported value: \"X\": supported values: \"Persistent\", \"Ephemeral\"",
                ],
            ),
        ],
    );
    check_update(
        GROUP,
        "CSIDriver",
        &base,
        &[(
            json!({"spec": {"attachRequired": false}}),
            &["spec.attachedRequired: Invalid value: false: field is immutable"],
        )],
    );
    let base = json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "i", "topologyKeys": ["a"]}]}});
    check_create(
        GROUP,
        "CSINode",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"drivers": [{"name": "d", "nodeID": "i"}, {"name": "d", "nodeID": ""}]}}),
                &["spec.drivers[1].nodeID: Required value", "spec.drivers[1].name: Duplicate value: \"d\""],
            ),
        ],
    );
    check_update(
        GROUP,
        "CSINode",
        &base,
        &[
            (
                json!({"spec": {"drivers": [{"name": "d", "nodeID": "i", "topologyKeys": ["a"], "allocatable": {"count": 1}}]}}),
                &[],
            ),
            (
                json!({"spec": {"drivers": [{"name": "d", "nodeID": "j"}]}}),
                &[
                    "spec.drivers: Invalid value: {\"Name\":\"d\",\"NodeID\":\"j\",\"TopologyKeys\":null,\"Allocatable\":null}: field is immutable",
                ],
            ),
        ],
    );
    let base = named(json!({"storageClassName": "c", "capacity": "1Gi"}));
    check_create(
        GROUP,
        "CSIStorageCapacity",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"capacity": "-1"}),
                &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
        ],
    );
}

#[test]
fn attachments() {
    let base = json!({"metadata": {"name": "v"}, "spec": {"attacher": "a.b", "nodeName": "n", "source": {"persistentVolumeName": "p"}}});
    check_create(
        GROUP,
        "VolumeAttachment",
        &base,
        &[
            (json!({}), &[]),
            (
                json!({"spec": {"source": null}}),
                &[
                    "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ],
            ),
        ],
    );
    check_update(
        GROUP,
        "VolumeAttachment",
        &base,
        &[(
            json!({"spec": {"nodeName": "m"}}),
            &[
                "spec: Invalid value: {\"Attacher\":\"a.b\",\"Source\":{\"PersistentVolumeName\":\"p\",\"InlineVolumeSpec\":null},\"NodeName\":\"m\"}: field is immutable",
            ],
        )],
    );
}
