//! Tests of decoding: upstream's words, canonical values, bounds.

use serde_json::json;

use super::*;
use crate::builtin::builtin;

fn ty(group: &str, version: &str, kind: &str) -> TypeRef<'static> {
    builtin().lookup(group, version, kind).unwrap()
}

fn pod(text: &str, mode: Mode) -> Result<Decoded, DecodeError> {
    decode(ty("", "v1", "Pod"), text.as_bytes(), mode)
}

#[test]
fn unknown_and_duplicate_fields_are_named() {
    let text =
        r#"{"spec":{"foo":1,"containers":[{"name":"a","name":"b","x":{}}],"nodeName":"a","nodeName":"b"}}"#;
    assert_eq!(
        pod(text, Mode::Strict).unwrap_err().to_string(),
        r#"strict decoding error: unknown field "spec.foo", duplicate field "spec.containers[0].name", unknown field "spec.containers[0].x", duplicate field "spec.nodeName""#
    );
    let warned = pod(text, Mode::Warn).unwrap();
    assert_eq!(warned.warnings.len(), 4);
    assert_eq!(warned.warnings[0], r#"unknown field "spec.foo""#);
    assert_eq!(warned.value, json!({"spec": {"containers": [{"name": "b"}], "nodeName": "b"}}));
    assert!(pod(text, Mode::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn type_errors_read_as_in_go() {
    for (group, kind, text, message) in [
        (
            "",
            "Pod",
            r#"{"spec":{"nodeName":5}}"#,
            "json: cannot unmarshal number into Go struct field PodSpec.spec.nodeName of type string",
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":"3"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "",
            "Pod",
            r#"{"metadata":{"labels":[]}}"#,
            "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":[{"livenessProbe":{"httpGet":{"path":5}}}]}}"#,
            "json: cannot unmarshal number into Go struct field HTTPGetAction.spec.containers.livenessProbe.ProbeHandler.httpGet.path of type string",
        ),
        ("", "Pod", r#"[]"#, "json: cannot unmarshal array into Go value of type v1.Pod"),
        (
            "",
            "Pod",
            r#"{"metadata":{"creationTimestamp":true}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        let error = decode(ty(group, "v1", kind), text.as_bytes(), Mode::Strict).unwrap_err();
        assert_eq!(error, DecodeError::Type(message.into()));
    }
}

#[test]
fn syntax_errors_read_as_in_go() {
    for (text, message) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        (r#"{"a" 1"#, "invalid character '1' after object key"),
        (r#"{"a":1 2"#, "invalid character '2' after object key:value pair"),
        (r#"{"a":[1 2"#, "invalid character '2' after array element"),
        (r#"{"a":tru}"#, "invalid character '}' in literal true (expecting 'e')"),
        (r#"{"a":"\x"}"#, "invalid character 'x' in string escape code"),
        (r#"{"a":-}"#, "invalid character '}' in numeric literal"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("kind: Pod", "invalid character 'k' looking for beginning of value"),
    ] {
        assert_eq!(pod(text, Mode::Strict).unwrap_err(), DecodeError::Syntax(message.into()), "{text}");
    }
}

#[test]
fn values_become_canonical() {
    let text = r#"{"metadata":{"creationTimestamp":null,"labels":{"a":null},"generation":0},
        "spec":{"nodeName":"","containers":[{"name":"c","resources":{"limits":{"cpu":"1000m","memory":1024}}}],
        "tolerations":[],"priority":0,"hostNetwork":false},"status":{"startTime":"2020-01-01T01:00:00+01:00"}}"#;
    assert_eq!(
        pod(text, Mode::Strict).unwrap().value,
        json!({"metadata": {"labels": {"a": ""}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1024"}}}], "priority": 0},
            "status": {"startTime": "2020-01-01T00:00:00Z"}})
    );
}

#[test]
fn depth_is_bounded() {
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(pod(&deep, Mode::Ignore).unwrap_err(), DecodeError::Depth);
    assert_eq!(decode_untyped(deep.as_bytes(), Mode::Ignore).unwrap_err(), DecodeError::Depth);
    let yaml = format!("x: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(yaml_to_json(yaml.as_bytes()).is_err());
}

#[test]
fn invalid_utf8_is_repaired() {
    let bytes = b"{\"metadata\":{\"name\":\"a\xffb\"}}";
    let value = decode(ty("", "v1", "Pod"), bytes, Mode::Strict).unwrap().value;
    assert_eq!(value["metadata"]["name"], "a\u{fffd}b");
}

#[test]
fn surrogates_are_joined() {
    let value = pod(r#"{"metadata":{"name":"\ud83d\ude00\ud83dx\u00e9"}}"#, Mode::Strict).unwrap().value;
    assert_eq!(value["metadata"]["name"], "\u{1f600}\u{fffd}x\u{e9}");
}

#[test]
fn yaml_is_read_as_upstream_reads_it() {
    let (json, duplicates) = yaml_to_json(
        b"a: yes\nb: 0777\nc: 1.50\nd: ~\ne: '5'\nf: 2020-01-01\ng: &x {h: 1}\ni: *x\nj:\n  <<: *x\n  k: 0x10\n1: |\n  text\na: no\n---\nsecond: 1\n",
    )
    .unwrap();
    let value: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        value,
        json!({"a": false, "b": 511, "c": 1.5, "d": null, "e": "5", "f": "2020-01-01", "g": {"h": 1},
            "i": {"h": 1}, "j": {"h": 1, "k": 16}, "1": "text\n"})
    );
    assert_eq!(duplicates, ["yaml: unmarshal errors:\n  line 14: key \"a\" already set in map"]);
}

#[test]
fn yaml_becomes_json_with_its_keys_in_order() {
    let cases = [
        ("b: 1\na: {d: 1, c: !!binary aGVsbG8=}\n", Ok(r#"{"a":{"c":"hello","d":1},"b":1}"#)),
        ("a: !!binary x\n", Err("yaml: !!binary value contains invalid base64 data")),
        ("a: {? [b] : c}\n", Err("yaml: line 1: invalid map key")),
    ];
    for (text, expected) in cases {
        let found = yaml_to_json(text.as_bytes()).map(|(json, _)| String::from_utf8(json).unwrap());
        assert_eq!(
            found.map_err(|e| e.to_string()),
            expected.map(str::to_owned).map_err(str::to_owned),
            "{text}"
        );
    }
}

#[test]
fn bytes_are_read_as_go_reads_them() {
    let cases = [
        (r#""da==""#, Ok("dQ==")),
        (r#""dab=""#, Ok("daY=")),
        (r#""dQ=""#, Err("illegal base64 data at input byte 3")),
        (r#""dQ===""#, Err("illegal base64 data at input byte 4")),
        (r#""d===""#, Err("illegal base64 data at input byte 1")),
        (r#""YWJjd""#, Err("illegal base64 data at input byte 4")),
        (r#""YWJja-==""#, Err("illegal base64 data at input byte 5")),
        ("[104,105]", Ok("aGk=")),
        ("[]", Ok("")),
        ("[null]", Ok("AA==")),
        ("[256]", Err("json: cannot unmarshal number 256 into Go struct field Secret.data of type uint8")),
        (r#"["x"]"#, Err("json: cannot unmarshal string into Go struct field Secret.data of type uint8")),
    ];
    for (given, expected) in cases {
        let text = format!(r#"{{"data":{{"a":{given}}}}}"#);
        let found = decode(ty("", "v1", "Secret"), text.as_bytes(), Mode::Strict);
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.value["data"]["a"], expected, "{given}"),
            (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected, "{given}"),
            (found, _) => panic!("{given}: {found:?}"),
        }
    }
}

#[test]
fn yaml_aliases_do_not_explode() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let item = format!("*a{},", i - 1);
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", item.repeat(10)));
    }
    // Merges look at what they merge long before anything is written.
    let keys: String = (0..1_000).map(|n| format!("k{n}: {n}, ")).collect();
    let merges = format!("- &a {{{keys}}}\n{}", "- {<<: *a}\n".repeat(1_000));
    for text in [bomb, merges] {
        let error = yaml_to_json(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("excessive aliasing"), "{error}");
    }
}

#[test]
fn nulls_in_lists_and_maps_stay_small() {
    let pods = ty("", "v1", "PodList");
    let value = decode(pods, br#"{"items":[null,{}]}"#, Mode::Strict).unwrap().value;
    assert_eq!(value, json!({"items": [{}, {}]}));
    let text = String::from_utf8(crate::encode::json(pods, &value)).unwrap();
    assert_eq!(
        text.matches(r#"{"metadata":{},"spec":{"containers":null},"status":{}}"#).count(),
        2,
        "{text}"
    );
    let secret =
        decode(ty("", "v1", "Secret"), br#"{"data":{"a":null},"stringData":{"b":null}}"#, Mode::Strict);
    assert_eq!(secret.unwrap().value, json!({"data": {"a": null}, "stringData": {"b": ""}}));
}

#[test]
fn yaml_goes_through_the_schema() {
    let text = b"apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  foo: 1\n  foo: 2\n";
    let error = decode_as(ty("", "v1", "Pod"), text, Syntax::Yaml, Mode::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        "strict decoding error: yaml: unmarshal errors:\n  line 7: key \"foo\" already set in map, unknown field \"spec.foo\""
    );
    let warned = decode_as(ty("", "v1", "Pod"), text, Syntax::Yaml, Mode::Warn).unwrap();
    assert_eq!(warned.warnings, ["line 7: key \"foo\" already set in map", "unknown field \"spec.foo\""]);
}

#[test]
fn type_meta_is_found() {
    assert_eq!(
        type_meta(br#"{"spec":{"kind":"x"},"kind":"Pod","apiVersion":"v1"}"#).unwrap(),
        ("v1".to_owned(), "Pod".to_owned())
    );
    assert!(type_meta(br#"{"kind":5}"#).is_err());
    assert!(type_meta(b"[]").is_err());
}
