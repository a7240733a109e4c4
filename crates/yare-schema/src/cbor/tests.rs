//! Writing, reading and refusing CBOR, case by case.

use serde_json::{Value, json};

use super::*;
use crate::{
    builtin::builtin,
    decode::{self, Mode, Syntax},
};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn written(json: &str) -> String {
    let mut out = Vec::new();
    write(None, json.as_bytes(), &mut out).unwrap();
    out.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn free_json_is_written_short() {
    for (json, want) in [
        ("null", "f6"),
        ("[true,false]", "82f5f4"),
        ("0", "00"),
        ("-1", "20"),
        ("24", "1818"),
        ("-257", "390100"),
        ("65536", "1a00010000"),
        ("9223372036854775807", "1b7fffffffffffffff"),
        ("-9223372036854775808", "3b7fffffffffffffff"),
        ("0.5", "f93800"),
        ("5.960464477539063e-8", "f90001"),
        ("65504.0", "f97bff"),
        ("65505.0", "fa477fe100"),
        ("100000.5", "fa47c35040"),
        ("0.1", "fb3fb999999999999a"),
        ("1e300", "fb7e37e43c8800759c"),
        ("-0.0", "f98000"),
        ("-0", "f98000"),
        (r#""a\n""#, "42610a"),
        (r#"{"a":{},"b":[]}"#, "a24161a0416280"),
    ] {
        assert_eq!(written(json), want, "{json}");
    }
    let many: Vec<u32> = (0..300).collect();
    assert!(written(&serde_json::to_string(&many).unwrap()).starts_with("99012c0001"));
}

#[test]
fn types_say_what_is_bytes_and_what_is_a_float() {
    let secret = builtin().lookup("", "v1", "Secret").unwrap();
    let mut out = Vec::new();
    write(Some(secret), br#"{"data":{"a":"AAH/"},"stringData":{"a":"AAH/"}}"#, &mut out).unwrap();
    assert_eq!(out, hex("a2 4464617461 a1 4161 d6 430001ff 4a737472696e6744617461 a1 4161 444141482f"));
    let definition = builtin().lookup("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    let text = br#"{"spec":{"versions":[{"schema":{"openAPIV3Schema":{"properties":{"a":{"items":{"maximum":1}}}}}}]}}"#;
    let mut out = Vec::new();
    write(Some(definition), text, &mut out).unwrap();
    assert!(out.ends_with(&hex("476d6178696d756d f93c00")), "{out:02x?}");
}

#[test]
fn any_cbor_is_read_as_json() {
    for (bytes, want) in [
        ("d9d9f7 a1 6161 01", json!({"a": 1})),
        ("a1 4161 20", json!({"a": -1})),
        ("bf 6161 9f 01 02 ff ff", json!({"a": [1, 2]})),
        ("5f 4161 4162 ff", json!("ab")),
        ("7f 6161 6162 ff", json!("ab")),
        ("d6 43 0001ff", json!("AAH/")),
        ("d5 43 fbefff", json!("--__")),
        ("d7 42 abcd", json!("abcd")),
        ("d6 82 43 0001ff d7 41ff", json!(["AAH/", "ff"])),
        ("82 d6 43 0001ff 4161", json!(["AAH/", "a"])),
        ("42 ff61", json!("\u{fffd}a")),
        ("f93c00", json!(1)),
        ("f93800", json!(0.5)),
        ("fb7e37e43c8800759c", json!(1e300)),
        ("c1 1a 5b2a9a00", json!("2018-06-20T18:16:32Z")),
        ("c0 74 323032362d30312d30315430303a30303a30305a", json!("2026-01-01T00:00:00Z")),
        ("d9 0100 01", json!(1)),
    ] {
        let decoded = decode::decode_untyped_as(&hex(bytes), Syntax::Cbor, Mode::Strict);
        let decoded = decoded.unwrap_or_else(|e| panic!("{bytes}: {e}"));
        assert_eq!(decoded.value, want, "{bytes}");
    }
}

#[test]
fn what_is_refused() {
    for (bytes, want) in [
        ("", "EOF"),
        ("a1", "unexpected EOF"),
        ("a1 6161", "unexpected EOF"),
        ("1b 00", "unexpected EOF"),
        ("5b ffffffffffffffff 00", "unexpected EOF"),
        ("f6 f6", "cbor: 1 bytes of extraneous data starting at index 1"),
        ("f97e00", "cbor: data item of cbor type primitives is not accepted by protocol: floating-point NaN"),
        (
            "fa7f800000",
            "cbor: data item of cbor type primitives is not accepted by protocol: floating-point infinity",
        ),
        (
            "f7",
            "cbor: data item of cbor type primitives is not accepted by protocol: simple value 23 is not recognized",
        ),
        (
            "f8ff",
            "cbor: data item of cbor type primitives is not accepted by protocol: simple value 255 is not recognized",
        ),
        ("f810", "cbor: invalid simple value 16 for type primitives"),
        ("c2 41ff", "cbor: data item of cbor type tag is not accepted by protocol: bignum"),
        (
            "c1 6161",
            "cbor: tag number 1 must be followed by integer or floating-point number, got UTF-8 text string",
        ),
        ("ff", "cbor: unexpected \"break\" code"),
        ("bf 6161 ff", "cbor: unexpected \"break\" code"),
        ("1c", "cbor: invalid additional information 28 for type positive integer"),
        ("5f 6161 ff", "cbor: wrong element type UTF-8 text string for indefinite-length byte string"),
        ("61ff", "cbor: invalid UTF-8 string"),
        ("a2 6161 01 4161 02", "cbor: found duplicate map key \"a\" at map element index 1"),
        ("a1 01 02", "cbor: cannot unmarshal positive integer into Go value of type string"),
        (
            "1bffffffffffffffff",
            "cbor: cannot unmarshal positive integer into Go value of type int64 (18446744073709551615 overflows Go's int64)",
        ),
    ] {
        let error = decode::decode_untyped_as(&hex(bytes), Syntax::Cbor, Mode::Strict).unwrap_err();
        assert_eq!(error.to_string(), want, "{bytes}");
    }
    let deep = [vec![0x81; 300], vec![0x00]].concat();
    let error = decode::decode_untyped_as(&deep, Syntax::Cbor, Mode::Strict).unwrap_err();
    assert_eq!(error.to_string(), "cbor: exceeded max nested level 200");
}

#[test]
fn types_are_held_to() {
    let pod = builtin().lookup("", "v1", "Pod").unwrap();
    let secret = builtin().lookup("", "v1", "Secret").unwrap();
    let cbor = |value: Value| {
        let mut out = SELF_DESCRIBED.to_vec();
        write(None, value.to_string().as_bytes(), &mut out).unwrap();
        out
    };
    for (ty, bytes, want) in [
        (
            pod,
            cbor(json!({"metadata": {"name": 7}})),
            "cbor: cannot unmarshal positive integer into Go struct field v1.Pod.metadata of type string",
        ),
        (
            pod,
            cbor(json!({"spec": {"containers": {}}})),
            "cbor: cannot unmarshal map into Go struct field v1.Pod.spec of type []v1.Container",
        ),
        (
            pod,
            cbor(json!({"spec": {"priority": 5_000_000_000_i64}})),
            "cbor: cannot unmarshal positive integer into Go struct field v1.Pod.spec of type int32 (5000000000 overflows int32)",
        ),
        (
            pod,
            cbor(json!({"spec": {"priority": 1.5}})),
            "cbor: cannot unmarshal primitives into Go struct field v1.Pod.spec of type int32",
        ),
        (pod, cbor(json!([])), "cbor: cannot unmarshal array into Go value of type v1.Pod"),
        (
            secret,
            cbor(json!({"data": {"a": "?"}})),
            "cbor: failed to decode base64 from byte string: illegal base64 data at input byte 0",
        ),
        (
            secret,
            hex("a1 6464617461 a1 6161 6161"),
            "cbor: cannot unmarshal UTF-8 text string into Go struct field v1.Secret.data of type []uint8",
        ),
        (pod, hex("a2 6161 01 4161 02"), "cbor: found duplicate map key \"a\" at map element index 1"),
        (
            pod,
            hex("a2 646b696e64 6161 446b696e64 6161"),
            "cbor: found duplicate map key \"kind\" at map element index 1",
        ),
        (
            pod,
            cbor(json!({"kind": "Pod", "spec": {"x": 1}, "y": 2, "z": 3})),
            "strict decoding error: cbor: found unknown field at map element index 2",
        ),
        (
            pod,
            cbor(json!({"kind": "Pod", "spec": {"hostname": "h", "x": 1}})),
            "strict decoding error: cbor: found unknown field at map element index 1",
        ),
    ] {
        let error = decode::decode_as(ty, &bytes, Syntax::Cbor, Mode::Strict).unwrap_err();
        assert_eq!(error.to_string(), want, "{bytes:02x?}");
    }
    // Bytes come as base64 or, tagged, as they are.
    for bytes in [
        "a1 6464617461 a1 6161 44 4141482f",
        "a1 6464617461 a1 6161 d6 43 0001ff",
        "a1 6464617461 a1 6161 d7 43 0001ff",
    ] {
        let decoded = decode::decode_as(secret, &hex(bytes), Syntax::Cbor, Mode::Strict).unwrap();
        assert_eq!(decoded.value, json!({"data": {"a": "AAH/"}}), "{bytes}");
    }
    assert_eq!(
        type_meta(&cbor(json!({"a": {"kind": 1}, "kind": "A", "apiVersion": "b"}))).unwrap(),
        ("b".into(), "A".into())
    );
    assert_eq!(
        type_meta(&cbor(json!({"kind": 1}))).unwrap_err().to_string(),
        "unable to determine group/version/kind: cbor: cannot unmarshal positive integer into Go struct field v1.TypeMeta.kind of type string"
    );
}
