//! Tests of what only types of custom resources say.

use super::*;

fn applied(spec: &Value, config: Value) -> Result<Value, String> {
    let compiled = crate::crd::load(&json!({"type": "object", "properties": {"spec": spec}}));
    let kind = OneType { ty: compiled.ty(), api_versions: &["x.io/v1"], evolves: true };
    let info = ManagerInfo { manager: "a", api_version: "x.io/v1", subresource: "", time: T1 };
    let config = json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": config});
    let applied = apply(&kind, None, &config, &info, false, None).map_err(|e| e.to_string())?;
    Ok(owners(&applied.object)["a Apply"]["f:spec"].clone())
}

/// However a number is written, it is the same item.
#[test]
fn whole_numbers_are_one_key() {
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "number"}});
    assert_eq!(applied(&set, json!([2.0, 3, 0.5])), Ok(json!({"v:2": {}, "v:3": {}, "v:0.5": {}})));
    let error = applied(&set, json!([2.0, 2])).unwrap_err();
    assert!(error.ends_with(".spec: duplicate entries for key [=2]"), "{error}");
    let map = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "number"}}}});
    assert_eq!(applied(&map, json!([{"k": 2.0}])), Ok(json!({"k:{\"k\":2}": {".": {}, "f:k": {}}})));
}

#[test]
fn configurations_fit_what_schemas_forbid_and_what_formats_allow() {
    let closed = json!({"type": "object", "additionalProperties": false});
    let error = applied(&closed, json!({"a": 1})).unwrap_err();
    assert!(error.ends_with("Kind=X): .spec.a: field not declared in schema"), "{error}");
    // Whether a text has its format is for validation to say.
    let text = json!({"type": "string", "format": "date"});
    assert!(applied(&text, json!(5)).is_ok());
    let error = applied(&text, json!([])).unwrap_err();
    assert!(error.ends_with("Kind=X): .spec: expected any scalar, got &{[]}"), "{error}");
}
