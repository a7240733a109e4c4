//! Tests of compiling schemas of CustomResourceDefinitions, and of what such schemas prune, default and refuse.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    coerce::{self, Misfits},
    defaults,
    patch::merge::tests::any_json,
    prune,
    validate::validate,
};

fn at_root(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

fn compiled(spec: Value) -> Compiled {
    compile(&at_root(spec), &Path::new("schema")).unwrap_or_else(|e| panic!("{}", texts(&e).join("\n")))
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn errors_of(spec: Value, value: Value) -> Vec<String> {
    texts(&validate(compiled(spec).ty(), &json!({"spec": value})))
}

#[test]
fn values_are_validated_in_upstreams_words() {
    let string = json!({"type": "string"});
    #[rustfmt::skip]
    let cases = [
        (json!({"type": "string"}), json!(1), vec![r#"spec: Invalid value: "integer": spec in body must be of type string: "integer""#]),
        (json!({"type": "integer"}), json!("1"), vec![r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#]),
        (json!({"type": "integer"}), json!(1.5), vec![r#"spec: Invalid value: "number": spec in body must be of type integer: "number""#, r#"<nil>: Invalid value: "": Checked value must be of type integer (default format) in spec"#]),
        (json!({"type": "integer"}), json!(1.0), vec![]),
        (json!({"type": "integer"}), json!(9_007_199_254_740_991f64), vec![]),
        (json!({"type": "integer", "format": "int64"}), json!(1e20), vec![r#"spec: Invalid value: "float64": spec in body must be of type int64: "float64""#, r#"<nil>: Invalid value: "": Checked value must be of type integer with format int64 in spec"#]),
        (json!({"type": "integer", "format": "int64"}), json!(u64::MAX), vec![r#"spec: Invalid value: "float64": spec in body must be of type int64: "float64""#, r#"<nil>: Invalid value: "": Checked value must be of type integer with format int64 in spec"#]),
        (json!({"type": "number"}), json!(1), vec![]),
        (json!({"type": "string"}), json!(null), vec![r#"spec: Invalid value: "null": spec in body must be of type string: "null""#]),
        (json!({"type": "string", "nullable": true}), json!(null), vec![]),
        (json!({"type": "array", "items": string}), json!({}), vec![r#"spec: Invalid value: "object": spec in body must be of type array: "object""#]),
        (json!({"type": "array", "items": string}), json!(["a", 1]), vec![r#"spec[1]: Invalid value: "integer": spec[1] in body must be of type string: "integer""#]),
        (json!({"x-kubernetes-int-or-string": true}), json!("5%"), vec![]),
        (json!({"x-kubernetes-int-or-string": true}), json!(true), vec![r#"spec: Invalid value: "boolean": spec in body must be of type integer,string: "boolean""#]),
        (json!({"type": "string", "enum": ["b", "a"]}), json!("c"), vec![r#"spec: Unsupported value: "c": supported values: "b", "a""#]),
        (json!({"type": "integer", "minimum": 1}), json!(0), vec!["spec: Invalid value: 0: spec in body should be greater than or equal to 1"]),
        (json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}), json!(1), vec!["spec: Invalid value: 1: spec in body should be greater than 1"]),
        (json!({"type": "number", "maximum": 1.5}), json!(2.5), vec!["spec: Invalid value: 2.5: spec in body should be less than or equal to 1.5"]),
        // A whole number meets what of a limit is whole; a type for whole ones has no other limits.
        (json!({"type": "number", "minimum": 0.5}), json!(0), vec![]),
        (json!({"type": "number", "minimum": 0.5}), json!(-1), vec!["spec: Invalid value: -1: spec in body should be greater than or equal to 0"]),
        (json!({"type": "integer", "maximum": 1.5}), json!(1), vec![r#"<nil>: Invalid value: "": Maximum boundary value must be of type integer (default format) in spec"#]),
        (json!({"type": "object", "properties": {"a": string}, "required": ["a", "a"]}), json!({}), vec!["spec.a: Required value"]),
        // Of clauses that do not hold, the one that looked at most is told.
        (json!({"type": "object", "properties": {"a": string, "b": string}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {"enum": ["x"]}}}]}), json!({"b": "y"}),
            vec![r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#, r#"spec.b: Unsupported value: "y": supported values: "x""#]),
        (json!({"type": "integer", "multipleOf": 3}), json!(4), vec!["spec: Invalid value: 4: spec in body should be a multiple of 3"]),
        (json!({"type": "number", "multipleOf": 0.1}), json!(0.3), vec![]),
        (json!({"type": "number", "multipleOf": 0.1}), json!(4), vec!["spec: Invalid value: 0: factor MultipleOf declared for spec must be positive: 0"]),
        (json!({"type": "number", "multipleOf": 2.5}), json!(4), vec![]),
        (json!({"type": "integer", "multipleOf": 0.5}), json!(4), vec![r#"<nil>: Invalid value: "": MultipleOf value must be of type integer (default format) in spec"#]),
        (json!({"type": "integer", "format": "int32", "maximum": 3e9}), json!(4), vec![r#"<nil>: Invalid value: "": Maximum boundary value must be of type integer with format int32 in spec"#]),
        // Upstream finds the whole part of a number among whole ones.
        (json!({"type": "number", "enum": [1, 2]}), json!(1.5), vec![]),
        (json!({"type": "number", "maximum": 2_000_000}), json!(3e9), vec!["spec: Invalid value: 3e+09: spec in body should be less than or equal to 2e+06"]),
        (json!({"type": "number", "maximum": 2_000_000}), json!(3_000_000), vec!["spec: Invalid value: 3000000: spec in body should be less than or equal to 2000000"]),
        (json!({"type": "number", "enum": [1, 2]}), json!(3.5), vec![r#"spec: Unsupported value: 3.5: supported values: "1", "2""#]),
        (json!({"type": "integer", "format": "int32"}), json!(3_000_000_000u64), vec![r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec"#]),
        (json!({"type": "string", "minLength": 2}), json!("é"), vec![r#"spec: Invalid value: "é": spec in body should be at least 2 chars long"#]),
        (json!({"type": "string", "maxLength": 2}), json!("éé"), vec![]),
        (json!({"type": "string", "maxLength": 2}), json!("abc"), vec!["spec: Too long: may not be more than 2 bytes"]),
        // Of length and pattern the first that does not hold is told, but the format in any case.
        (json!({"type": "string", "maxLength": 2, "pattern": "^a+$", "format": "ipv4"}), json!("bbb"), vec![
            "spec: Too long: may not be more than 2 bytes", r#"spec: Invalid value: "bbb": spec in body must be of type ipv4: "bbb""#]),
        (json!({"type": "string", "pattern": "^a+$"}), json!("b"), vec![r#"spec: Invalid value: "b": spec in body should match '^a+$'"#]),
        (json!({"type": "string", "format": "ipv4"}), json!("x"), vec![r#"spec: Invalid value: "x": spec in body must be of type ipv4: "x""#]),
        (json!({"type": "string", "format": "my-own"}), json!("x"), vec![]),
        (json!({"type": "array", "items": string, "minItems": 1}), json!([]), vec!["spec: Invalid value: 0: spec in body should have at least 1 items"]),
        (json!({"type": "array", "items": string, "maxItems": 1}), json!(["a", "b"]), vec!["spec: Too many: 2: must have at most 1 item"]),
        (json!({"type": "object", "additionalProperties": string, "maxProperties": 1}), json!({"a": "", "b": ""}), vec!["spec: Too many: 2: must have at most 1 item"]),
        (json!({"type": "object", "additionalProperties": string, "minProperties": 1}), json!({}), vec!["spec: Invalid value: 0: spec in body should have at least 1 properties"]),
        (json!({"type": "object", "additionalProperties": string}), json!({"a": 1}), vec![r#"spec.a: Invalid value: "integer": spec.a in body must be of type string: "integer""#]),
        (json!({"type": "object", "properties": {"a": string}, "required": ["a"]}), json!({}), vec!["spec.a: Required value"]),
        (json!({"type": "object", "properties": {"a": string, "b": string}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({}),
            vec![r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid"#, "spec.a: Required value"]),
        (json!({"type": "object", "properties": {"a": string, "b": string}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"a": "", "b": ""}),
            vec![r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#]),
        (json!({"type": "integer", "anyOf": [{"maximum": 1}, {"minimum": 5}]}), json!(3),
            vec![r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#, "spec: Invalid value: 3: spec in body should be less than or equal to 1"]),
        (json!({"type": "integer", "allOf": [{"maximum": 1}, {"minimum": 0}]}), json!(3),
            vec!["spec: Invalid value: 3: spec in body should be less than or equal to 1", r#"<nil>: Invalid value: "": "spec" must validate all the schemas (allOf)"#]),
        (json!({"type": "integer", "not": {"enum": [3]}}), json!(3), vec![r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#]),
        (json!({"type": "array", "items": string, "x-kubernetes-list-type": "set"}), json!(["a", "b", "a", "a"]), vec![r#"spec[2]: Duplicate value: "a""#]),
        (json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": string, "v": string}}}),
            json!([{"k": "a", "v": "1"}, {"k": "a", "v": "2"}]), vec![r#"spec[1]: Duplicate value: {"k":"a"}"#]),
        (json!({"x-kubernetes-preserve-unknown-fields": true}), json!({"any": [1, null]}), vec![]),
        (json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"apiVersion": "a/b/c", "metadata": {"name": "a/b", "labels": {"a": "b"}}}), vec![
            r#"spec.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
            "spec.kind: Required value",
            r#"spec.metadata.name: Invalid value: "a/b": may not contain '/'"#]),
    ];
    for (schema, value, expect) in cases {
        assert_eq!(errors_of(schema.clone(), value.clone()), expect, "{schema} {value}");
    }
}

#[test]
fn updates_may_keep_what_was_wrong_before() {
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}});
    let compiled = compiled(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string"},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
    }}));
    let old = json!({"spec": {"a": "long", "l": [{"k": "x", "v": "long"}, {"k": "y", "v": "long"}], "s": ["d", "d"]}});
    let mut new = old.clone();
    new["spec"]["b"] = json!("changed");
    new["spec"]["l"] = json!([{"k": "y", "v": "other"}, {"k": "x", "v": "long"}]);
    assert_eq!(
        texts(&crate::validate::validate_update(compiled.ty(), &new, &old)),
        ["spec.l[0].v: Too long: may not be more than 1 byte"]
    );
    assert_eq!(validate(compiled.ty(), &new).len(), 4);
}

/// What no schema declares is tied to nothing that was, and neither is what junctors look at.
#[test]
fn updates_keep_nothing_that_cannot_be_tied_to_what_was() {
    let text = || json!({"type": "string"});
    let pair = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
        "items": {"type": "object", "required": ["a", "b"], "properties": {"a": text(), "b": text()}}});
    #[rustfmt::skip]
    let cases = [
        (json!({"type": "object", "required": ["a"], "properties": {"a": text(), "b": text()}}), json!({"b": "x"}), vec![]),
        (json!({"type": "object", "required": ["a"], "properties": {"a": text()}, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"b": "x"}), vec!["spec.a: Required value"]),
        (json!({"type": "object", "maxProperties": 1, "additionalProperties": text()}), json!({"a": "x", "b": "x"}), vec![]),
        (json!({"type": "object", "maxProperties": 1, "additionalProperties": true}), json!({"a": "x", "b": "x"}),
            vec!["spec: Too many: 2: must have at most 1 item"]),
        (json!({"type": "object", "properties": {"l": pair}}), json!({"l": [{"a": "x"}]}), vec!["spec.l[0].b: Required value"]),
        // The object changed with its free member; the clause looks at the one that did not.
        (json!({"type": "object", "properties": {"a": text()}, "x-kubernetes-preserve-unknown-fields": true, "allOf": [{"properties": {"a": {"maxLength": 1}}}]}),
            json!({"a": "long", "b": 1}), vec!["spec.a: Too long: may not be more than 1 byte",
            r#"<nil>: Invalid value: "": "spec" must validate all the schemas (allOf). None validated"#]),
    ];
    for (schema, spec, expect) in cases {
        let compiled = compiled(schema.clone());
        let object = json!({"spec": spec});
        let errors = crate::validate::validate_update(compiled.ty(), &object, &object);
        assert_eq!(texts(&errors), expect, "{schema} {spec}");
    }
    // The object itself has what no schema declares; its name was what it is.
    let root = crate::crd::load(&json!({"type": "object", "required": ["spec"], "properties": {
        "spec": text(), "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 1}}}}}));
    let object = json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "long"}});
    assert_eq!(
        texts(&crate::validate::validate_update(root.ty(), &object, &object)),
        ["spec: Required value"]
    );
    assert_eq!(validate(root.ty(), &object).len(), 2);
}

#[test]
fn unstructural_schemas_are_refused() {
    #[rustfmt::skip]
    let cases = [
        (json!({}), vec!["schema.type: Required value: must not be empty at the root"]),
        (json!({"type": "string"}), vec![r#"schema.type: Invalid value: "string": must be object at the root"#]),
        (at_root(json!({})), vec!["schema.properties[spec].type: Required value: must not be empty for specified object fields"]),
        (at_root(json!({"type": "array"})), vec!["schema.properties[spec].items: Required value: must be specified"]),
        (at_root(json!({"type": "array", "items": {}})), vec!["schema.properties[spec].items.type: Required value: must not be empty for specified array items"]),
        (json!({"type": "object", "additionalProperties": {"type": "string"}}), vec!["schema.additionalProperties: Forbidden: must not be used at the root"]),
        (json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            vec!["schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"]),
        (at_root(json!({"type": "object", "anyOf": [{"type": "object", "description": "x", "properties": {"a": {"default": 1}}}]})), vec![
            "schema.properties[spec].anyOf[0].description: Forbidden: must be empty to be structural",
            "schema.properties[spec].anyOf[0].properties[a].default: Forbidden: must be undefined to be structural",
            "schema.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ]),
        (json!({"type": "object", "anyOf": [{"properties": {"spec": {"required": ["a"]}}}]}), vec![
            "schema.properties[spec]: Required value: because it is defined in schema.anyOf[0].properties[spec]"]),
        (at_root(json!({"type": "string", "pattern": "("})), vec![
            "schema.properties[spec].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`"]),
        (at_root(json!({"type": "object", "x-kubernetes-embedded-resource": true})), vec![
            "schema.properties[spec].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"]),
        (at_root(json!({"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true})), vec![
            "schema.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true"]),
        (at_root(json!({"type": "strange"})), vec![
            r#"schema.properties[spec].type: Unsupported value: "strange": supported values: "array", "boolean", "integer", "number", "object", "string""#]),
        (at_root(json!({"type": "object", "$ref": "x"})), vec!["schema.properties[spec].$ref: Forbidden: $ref is not supported"]),
        (at_root(json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}})), vec![
            "schema.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"]),
        (at_root(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "map"})), vec![
            "schema.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            r#"schema.properties[spec].items.type: Invalid value: "string": must be object if parent array's x-kubernetes-list-type is map"#]),
        (at_root(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "q"],
                        "items": {"type": "object", "properties": {"k": {"type": "string"}}}})), vec![
            r#"schema.properties[spec].x-kubernetes-list-map-keys: Invalid value: ["k","q"]: entries must all be names of item properties"#,
            "schema.properties[spec].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"]),
        (at_root(json!({"type": "integer", "default": "x"})), vec![
            r#"schema.properties[spec].default: Invalid value: "string":  in body must be of type integer: "string""#]),
        (at_root(json!({"type": "object", "properties": {"a": {"type": "string"}}, "default": {"b": 1}})), vec![
            r#"schema.properties[spec].default: Invalid value: {"b":1}: must not have unknown fields"#]),
        (json!({"type": "object", "properties": {"kind": {"type": "string", "default": "x"}}}), vec![
            "schema.properties[kind].default: Forbidden: must not be set in top-level kind"]),
        (at_root(json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}, {"rule": "a\nb"}]})), vec![
            "schema.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified",
            "schema.properties[spec].x-kubernetes-validations[1].message: Required value: message must be specified if rule contains line breaks"]),
    ];
    for (schema, expect) in cases {
        let errors = compile(&schema, &Path::new("schema")).expect_err("must be refused");
        assert_eq!(texts(&errors), expect, "{schema}");
    }
}

#[test]
fn the_root_says_little_beside_a_status_subresource() {
    let path = Path::new("schema");
    assert!(check_root_with_status(&at_root(json!({"type": "string"})), &path).is_empty());
    let errors = check_root_with_status(&json!({"type": "object", "oneOf": [{"required": ["a"]}]}), &path);
    assert!(texts(&errors)[0].contains("only [Description Type Format Title"), "{errors:?}");
}

#[test]
fn int_or_string_may_be_spelled_out() {
    for spec in [
        json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
        json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"maximum": 5}]}),
    ] {
        assert_eq!(errors_of(spec.clone(), json!("x")), Vec::<String>::new());
        assert_eq!(errors_of(spec, json!(3)), Vec::<String>::new());
    }
}

#[test]
fn of_lists_in_the_place_of_something_else_nothing_is_known() {
    for schema in [
        json!({"type": "object", "properties": {"a": {"type": "string"}}}),
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
        json!({"type": "string"}),
    ] {
        let mut object = json!({"spec": [{"a": "x"}, [{"b": 1}], 2]});
        let unknown = prune::prune(compiled(schema.clone()).ty(), &mut object);
        assert_eq!(object, json!({"spec": [{}, [{}], 2]}), "{schema}");
        assert_eq!(unknown, ["spec[0].a", "spec[1][0].b"], "{schema}");
    }
    let mut object = json!({"spec": [{"a": "x"}]});
    let free = compiled(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    assert!(prune::prune(free.ty(), &mut object).is_empty());
}

#[test]
fn pruning_keeps_what_is_known() {
    let compiled = compiled(json!({"type": "object", "properties": {
        "a": {"type": "string"},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"typed": {"type": "object"}}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object"}},
        "loose": {"type": "object", "additionalProperties": true},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "strict": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }}));
    let meta = json!({"name": "n", "labels": {"a": "b"}});
    let mut object = json!({
        "apiVersion": "g/v1", "kind": "K", "metadata": meta, "extra": 1,
        "spec": {
            "a": "x", "b": 1,
            "free": {"y": {"z": 1}, "typed": {"gone": 1}},
            "any": {"x": [{"y": null}]},
            "list": [{"x": "1", "y": 2}],
            "map": {"k": {"gone": 1}},
            "loose": {"s": "kept", "o": {"gone": 1}, "l": [{"gone": 1}]},
            "embedded": {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"x": 1}},
            "strict": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n", "labels": {"a": "b"}, "odd": 1}, "spec": {"x": 1}, "status": {}},
        },
    });
    let unknown = prune::prune(compiled.ty(), &mut object);
    // Metadata of objects within objects has a type of its own.
    let of_metadata = coerce::coerce(compiled.ty(), &mut object, Misfits::Refuse).unwrap();
    assert_eq!(of_metadata, ["unknown field \"spec.strict.metadata.odd\""]);
    assert_eq!(
        object,
        json!({
            "apiVersion": "g/v1", "kind": "K", "metadata": meta,
            "spec": {
                "a": "x",
                "free": {"y": {"z": 1}, "typed": {}},
                "any": {"x": [{"y": null}]},
                "list": [{"x": "1"}],
                "map": {"k": {}},
                "loose": {"s": "kept", "o": {}, "l": [{}]},
                "embedded": {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"x": 1}},
                "strict": {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}},
            },
        })
    );
    assert_eq!(
        unknown,
        [
            "extra",
            "spec.b",
            "spec.free.typed.gone",
            "spec.list[0].y",
            "spec.loose.l[0].gone",
            "spec.loose.o.gone",
            "spec.map.k.gone",
            "spec.strict.spec.x",
            "spec.strict.status",
        ]
    );
}

fn with_metadata(metadata: Value) -> Value {
    at_root(json!({
        "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"metadata": metadata},
    }))
}

#[test]
fn metadata_of_objects_within_objects_has_defaults() {
    let labels = json!({"type": "object", "additionalProperties": {"type": "string"}, "default": {"a": "b"}});
    let properties = json!({"name": {"type": "string", "default": "n"}, "labels": labels});
    let pod = json!({"apiVersion": "v1", "kind": "Pod"});
    for (default, mut object, metadata) in [
        (Value::Null, pod.clone(), Value::Null),
        (json!({}), pod.clone(), json!({"name": "n", "labels": {"a": "b"}})),
        (json!({"name": "m"}), pod, json!({"name": "m", "labels": {"a": "b"}})),
        (
            Value::Null,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {}}}),
            json!({"name": "n", "labels": {}}),
        ),
    ] {
        let mut schema = json!({"type": "object", "properties": properties});
        if !default.is_null() {
            schema["default"] = default;
        }
        let compiled = compile(&with_metadata(schema), &Path::new("schema")).unwrap();
        object = json!({ "spec": object });
        defaults::apply(compiled.ty(), &mut object);
        assert_eq!(object["spec"]["metadata"], metadata);
        // It is metadata all the same.
        object["spec"]["metadata"]["odd"] = json!(1);
        coerce::coerce(compiled.ty(), &mut object, Misfits::Refuse).unwrap();
        assert!(object["spec"]["metadata"].get("odd").is_none());
    }
    let text = |default: Value| json!({"type": "string", "default": default});
    let at = "schema.properties[spec].properties[metadata]";
    let name = |default: Value| json!({"type": "object", "properties": {"name": text(default)}});
    for (metadata, place, value, why) in [
        (
            name(json!("a/b")),
            ".properties[name]",
            r#""a/b""#,
            r#"must result in valid metadata: metadata.name: Invalid value: "a/b": may not contain '/'"#,
        ),
        (
            name(json!(5)),
            ".properties[name]",
            "5",
            r#"must result in valid metadata: metadata: Invalid value: {"name":5}: json: cannot unmarshal number into Go struct field ObjectMeta.name of type string"#,
        ),
        (json!({"type": "object", "default": {"generateName": ".."}}), "", r#"{"generateName":".."}"#, ""),
        (
            json!({"type": "object", "default": {"labels": {"a": "not this"}}}),
            "",
            r#"{"labels":{"a":"not this"}}"#,
            r#"must result in valid metadata: metadata.labels: Invalid value: "not this": a valid label must be"#,
        ),
        (
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 1, "default": "long"}}}),
            ".properties[name]",
            r#""long""#,
            "",
        ),
    ] {
        let found = compile(&with_metadata(metadata.clone()), &Path::new("schema"));
        if why.is_empty() && place.is_empty() {
            // A prefix may be what no whole name is.
            assert!(found.is_ok(), "{metadata}");
            continue;
        }
        let errors = texts(&found.expect_err("must be refused"));
        let start = if why.is_empty() {
            format!("{at}{place}.default: ")
        } else {
            format!("{at}{place}.default: Invalid value: {value}: {why}")
        };
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?}\n{start}");
    }
    let kind = at_root(json!({
        "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"kind": text(json!("not a kind"))},
    }));
    let errors = texts(&compile(&kind, &Path::new("schema")).expect_err("must be refused"));
    let start = r#"schema.properties[spec].properties[kind].default: Invalid value: "not a kind": must result in valid metadata: kind: Invalid value: "#;
    assert!(errors.len() == 1 && errors[0].starts_with(start), "{errors:?}");
}

#[test]
fn metadata_of_objects_within_objects_has_defaults_at_any_depth() {
    let text = |default: Value| json!({"type": "string", "default": default});
    let owners = |default: Value| {
        json!({"type": "array", "items": {"type": "object", "properties": {
            "controller": {"type": "boolean", "default": default}, "name": {"type": "string"}}}})
    };
    let metadata = |label: Value, controller: Value| {
        json!({"type": "object", "default": {}, "properties": {
            "labels": {"type": "object", "default": {}, "properties": {"app": text(label)}},
            "ownerReferences": owners(controller),
        }})
    };
    // No owner could be without the rest, so that only definitions of the past have such a default.
    let definition = with_metadata(metadata(json!("a"), json!(true)));
    let errors = texts(&compile(&definition, &Path::new("schema")).unwrap_err());
    let at = "schema.properties[spec].properties[metadata].properties[ownerReferences].items.properties[controller].default";
    let start = format!(
        "{at}: Invalid value: true: must result in valid metadata: [metadata.ownerReferences.apiVersion: "
    );
    assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?}");
    let compiled = load(&definition);
    let pod = |metadata: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
    for (given, expected) in [
        (json!({}), json!({"labels": {"app": "a"}})),
        (json!({"labels": {"b": "c"}}), json!({"labels": {"app": "a", "b": "c"}})),
        (json!({"labels": {"app": null}}), json!({"labels": {"app": "a"}})),
        (
            json!({"labels": {"app": "b"}, "ownerReferences": [{"name": "x"}, {"controller": false}]}),
            json!({"labels": {"app": "b"}, "ownerReferences": [
                {"name": "x", "controller": true}, {"controller": false}]}),
        ),
    ] {
        let mut object = json!({ "spec": pod(given.clone()) });
        defaults::apply(compiled.ty(), &mut object);
        assert_eq!(object["spec"]["metadata"], expected, "{given}");
        // What is there stays, also what the schema has no word for.
        prune::prune(compiled.ty(), &mut object);
        assert_eq!(object["spec"]["metadata"], expected, "{given}");
    }
    let errors =
        compile(&with_metadata(metadata(json!("not this"), Value::Null)), &Path::new("schema")).unwrap_err();
    let at = "schema.properties[spec].properties[metadata].properties[labels].properties[app].default";
    let start = format!(
        r#"{at}: Invalid value: "not this": must result in valid metadata: metadata.labels: Invalid value: "not this": "#
    );
    assert!(errors.len() == 1 && texts(&errors)[0].starts_with(&start), "{errors:?}");
}

#[test]
fn null_stays_where_no_schema_forbids_it() {
    let free = json!({"x-kubernetes-preserve-unknown-fields": true});
    let compiled = compiled(json!({"type": "object", "properties": {
        "said": {"type": "object", "additionalProperties": free}, "unsaid": {"type": "object", "additionalProperties": true}}}));
    let mut object = json!({"spec": {"said": {"a": null}, "unsaid": {"a": null}}});
    defaults::apply(compiled.ty(), &mut object);
    assert_eq!(object, json!({"spec": {"said": {}, "unsaid": {"a": null}}}));
}

#[test]
fn defaults_fill_in() {
    let compiled = compiled(json!({
        "type": "object",
        "default": {},
        "properties": {
            "a": {"type": "string", "default": "x"},
            "nested": {"type": "object", "properties": {"b": {"type": "integer", "default": 1}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "boolean", "default": true}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"d": {"type": "integer", "default": 2}}}},
            "nullable": {"type": "string", "nullable": true, "default": "y"},
            "plain": {"type": "string"},
        },
    }));
    for (sent, expect) in [
        (json!({}), json!({"spec": {"a": "x", "nullable": "y"}})),
        (
            json!({"spec": {"a": null, "nullable": null, "plain": null, "nested": {}, "list": [{}, {"c": false}], "map": {"k": {}}}}),
            json!({"spec": {"a": "x", "nullable": null, "nested": {"b": 1}, "list": [{"c": true}, {"c": false}], "map": {"k": {"d": 2}}}}),
        ),
    ] {
        let mut object = sent;
        defaults::apply(compiled.ty(), &mut object);
        assert_eq!(object, expect);
        let before = object.clone();
        defaults::apply(compiled.ty(), &mut object);
        assert_eq!(object, before);
    }
}

#[test]
fn definitions_stay_small() {
    let field =
        json!({"type": "string", "maxLength": 63, "pattern": "^[a-z]+$", "description": "x".repeat(200)});
    let group: serde_json::Map<String, Value> =
        (0..20).map(|i| (format!("field{i}"), field.clone())).collect();
    let groups: serde_json::Map<String, Value> =
        (0..10).map(|i| (format!("group{i}"), json!({"type": "object", "properties": group}))).collect();
    let compiled = compiled(json!({"type": "object", "properties": groups}));
    let types = compiled.schema.types.len() * size_of::<crate::model::Type>();
    let fields: usize = compiled
        .schema
        .types
        .iter()
        .map(|t| match &t.shape {
            crate::model::Shape::Struct(s) => s.fields.len() * size_of::<crate::model::Field>(),
            _ => 0,
        })
        .sum();
    // 211 objects and strings with constraints, and metadata's types.
    assert!(types + fields < 96 * 1024, "{types} + {fields}");
}

proptest! {
    #[test]
    fn hostile_schemas_and_values_do_not_panic(
        schema in any_json(), value in any_json(), keyword in prop::sample::select(vec![
            "type", "properties", "items", "additionalProperties", "allOf", "anyOf", "not", "enum", "default", "required",
            "pattern", "format", "maxLength", "multipleOf", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
            "x-kubernetes-validations", "x-kubernetes-embedded-resource", "nullable"]),
    ) {
        let spec = json!({"type": "object", keyword: schema, "properties": {"a": schema, "b": {"type": "array", keyword: schema}}});
        let _ = compile(&at_root(spec.clone()), &Path::new("schema"));
        let compiled = load(&at_root(spec));
        let mut object = json!({"spec": value});
        let _ = validate(compiled.ty(), &object);
        prune::prune(compiled.ty(), &mut object);
        let pruned = object.clone();
        prop_assert!(prune::prune(compiled.ty(), &mut object).is_empty());
        prop_assert_eq!(&object, &pruned);
        defaults::apply(compiled.ty(), &mut object);
    }
}
