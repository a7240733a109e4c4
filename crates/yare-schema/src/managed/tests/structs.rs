//! Tests of what Go writes of structs although nobody set it.

use super::*;

/// Fields that Go writes although nobody set them come with the struct they are in, and never by themselves.
#[test]
fn structs_have_the_fields_that_nobody_set() {
    let ty = crate::builtin::builtin().lookup("apps", "v1", "Deployment").unwrap();
    let kind = OneType { ty, api_versions: &["apps/v1"], evolves: false };
    let info = |manager| ManagerInfo { manager, api_version: "apps/v1", subresource: "", time: T1 };
    let object = |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "uid": "u"}, "spec": spec});
    let template = |containers: Value| json!({"spec": {"containers": containers}});
    let mut made = object(
        json!({"selector": {"matchLabels": {"a": "b"}}, "template": template(json!([{"name": "c"}]))}),
    );
    update(&kind, None, &mut made, &info("creator"), None);
    let container = json!({"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:resources": {}}});
    assert_eq!(
        owners(&made)["creator Update"]["f:spec"],
        json!({"f:selector": {}, "f:template": {"f:spec": {"f:containers": container}}})
    );
    // Where Go writes null, that is a value too, and somebody's.
    let mut cleared = object(json!({"template": template(json!([{"name": "c"}]))}));
    update(&kind, Some(&made), &mut cleared, &info("editor"), None);
    assert_eq!(owners(&cleared)["editor Update"], json!({"f:spec": {"f:selector": {}}}));
}

/// A reference that leaves out what Go writes is another one than that in the store, whoever applies it.
#[test]
fn atomic_values_without_what_go_writes_are_changes() {
    let ty = crate::builtin::builtin().lookup("networking.k8s.io", "v1", "Ingress").unwrap();
    let kind = OneType { ty, api_versions: &["networking.k8s.io/v1"], evolves: false };
    let info =
        |manager| ManagerInfo { manager, api_version: "networking.k8s.io/v1", subresource: "", time: T1 };
    let of = |resource: &Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "x"},
        "spec": {"defaultBackend": {"resource": resource}}})
    };
    let short = json!({"kind": "Bucket", "name": "b"});
    let mut live = apply(&kind, None, &of(&short), &info("a"), false, None).unwrap().object;
    live["metadata"]["uid"] = json!("u");
    let error = apply(&kind, Some(&live), &of(&short), &info("b"), false, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "a": .spec.defaultBackend.resource"#
    );
    let forced = apply(&kind, Some(&live), &of(&short), &info("b"), true, None).unwrap();
    assert_eq!(owners(&forced.object).as_object().map(Map::len), Some(1));
    // With all that Go writes it is the same.
    let same = of(&json!({"apiGroup": "g", "kind": "B", "name": "b"}));
    let mut live = apply(&kind, None, &same, &info("a"), false, None).unwrap().object;
    live["metadata"]["uid"] = json!("u");
    assert!(!apply(&kind, Some(&live), &same, &info("b"), false, None).unwrap().changed);
}
