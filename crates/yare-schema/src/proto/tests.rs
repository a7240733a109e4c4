//! Tests of the protobuf codec: what the golden fixtures of `cargo xtask schema-check` do not cover.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::builtin::builtin;

#[test]
fn a_pod_goes_back_and_forth() {
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "labels": {"b": "c", "a": ""}, "creationTimestamp": "2020-01-01T00:00:00Z",
            "managedFields": [{"fieldsV1": {"f:spec": {}}, "manager": "m"}]},
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m"}},
                "livenessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 3},
                "ports": [{"containerPort": -1}]}],
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
        "status": {},
    });
    let pod = builtin().lookup("", "v1", "Pod").unwrap();
    let bytes = to_wire(pod, &value);
    let back = from_wire(builtin(), &bytes).unwrap();
    assert_eq!(crate::encode::json(pod, &back), crate::encode::json(pod, &value));
    assert_eq!(back["spec"]["terminationGracePeriodSeconds"], 0);
    assert_eq!(to_wire(pod, &back), bytes);
}

#[test]
fn what_is_no_protobuf_fails() {
    assert_eq!(from_wire(builtin(), b"{}").unwrap_err(), ProtoError::Magic);
    let unknown = from_wire(builtin(), &wrap("v9", "Pod", b"")).unwrap_err();
    assert!(matches!(unknown, ProtoError::UnknownKind { .. }));
    let pod = builtin().lookup("", "v1", "Pod").unwrap();
    assert_eq!(decode(pod, &[0x0a, 0x05]).unwrap_err(), ProtoError::Truncated);
    assert_eq!(decode(pod, &[0x80; 20]).unwrap_err(), ProtoError::Overflow);
    assert!(matches!(decode(pod, &[0x0b]).unwrap_err(), ProtoError::IllegalTag { .. }));
    assert!(matches!(decode(pod, &[0x08, 0x01]).unwrap_err(), ProtoError::WireType { .. }));
}

#[test]
fn bytes_that_are_not_there_are_empty_and_null_is_not_written() {
    let secret = builtin().lookup("", "v1", "Secret").unwrap();
    // Field 2, `data`, with a key and no value.
    let value = decode(secret, &[0x12, 3, 0x0a, 1, b'a']).unwrap();
    assert_eq!(value, serde_json::json!({"data": {"a": ""}}));
    assert!(encode(secret, &value).windows(7).any(|w| w == [0x12, 5, 0x0a, 1, b'a', 0x12, 0]));
    let null = serde_json::json!({"data": {"a": null}});
    assert!(encode(secret, &null).windows(5).any(|w| w == [0x12, 3, 0x0a, 1, b'a']));
}

#[test]
fn nesting_is_bounded() {
    let schema =
        builtin().definition("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        // Field 28, `not`.
        let mut outer = vec![0xe2, 0x01];
        let mut length = bytes.len();
        while length > 0x7f {
            outer.push(length as u8 & 0x7f | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert_eq!(decode(schema.unwrap(), &bytes).unwrap_err(), ProtoError::Depth);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in ["Pod", "Event", "Service", "DeleteOptions", "List"] {
            let ty = builtin().lookup("", "v1", kind).unwrap();
            let _ = decode(ty, &bytes);
        }
        let _ = from_wire(builtin(), &[&MAGIC[..], &bytes].concat());
    }
}
