//! Every built-in kind through every codec, with objects made from the tables themselves.

use proptest::prelude::*;
use serde_json::Value;
use yare_schema::{
    builtin::{Kind, builtin},
    cbor,
    decode::{self, Mode, Syntax},
    encode, fixtures,
    model::TypeRef,
    proto,
};

fn kinds() -> impl Iterator<Item = (&'static Kind, TypeRef<'static>)> {
    builtin().kinds().iter().map(|k| (k, builtin().at(k.ty)))
}

/// Whether kinds of this type travel as protobuf.
fn has_protobuf(ty: TypeRef<'_>) -> bool {
    ty.as_struct().is_some_and(|s| !s.by_number.is_empty())
}

fn through_json(ty: TypeRef<'_>, value: &Value) -> Vec<u8> {
    let json = encode::json(ty, value);
    let decoded = decode::decode(ty, &json, Mode::Strict).unwrap_or_else(|e| panic!("{}: {e}", ty.ty().name));
    assert!(decoded.warnings.is_empty());
    let again = encode::json(ty, &decoded.value);
    assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&json));
    json
}

fn through_yaml(ty: TypeRef<'_>, json: &[u8]) {
    // JSON is YAML; indented it is even readable.
    let decoded = decode::decode_as(ty, &encode::indent(json), Syntax::Yaml, Mode::Strict)
        .unwrap_or_else(|e| panic!("{}: {e}", ty.ty().name));
    assert_eq!(String::from_utf8_lossy(&encode::json(ty, &decoded.value)), String::from_utf8_lossy(json));
}

fn through_cbor(ty: TypeRef<'_>, json: &[u8]) {
    let mut bytes = cbor::SELF_DESCRIBED.to_vec();
    cbor::write(Some(ty), json, &mut bytes).unwrap_or_else(|e| panic!("{}: {e}", ty.ty().name));
    let decoded = decode::decode_as(ty, &bytes, Syntax::Cbor, Mode::Strict)
        .unwrap_or_else(|e| panic!("{}: {e}", ty.ty().name));
    assert_eq!(String::from_utf8_lossy(&encode::json(ty, &decoded.value)), String::from_utf8_lossy(json));
    // Of no known type it is the same JSON.
    let free = decode::decode_untyped_as(&bytes, Syntax::Cbor, Mode::Strict)
        .expect("what has a type has a form without");
    let want = decode::decode_untyped(json, Mode::Strict).expect("what was written is JSON");
    assert_eq!(free.value, want.value, "{}", ty.ty().name);
}

fn through_protobuf(ty: TypeRef<'_>, value: &Value) {
    let wire = proto::encode(ty, value);
    let back = proto::decode(ty, &wire).unwrap_or_else(|e| panic!("{}: {e}", ty.ty().name));
    assert_eq!(
        String::from_utf8_lossy(&encode::json(ty, &back)),
        String::from_utf8_lossy(&encode::json(ty, value)),
        "{}",
        ty.ty().name
    );
    assert_eq!(proto::encode(ty, &back), wire, "{}", ty.ty().name);
}

#[test]
fn full_objects_survive_every_codec() {
    let mut count = 0;
    for (_, ty) in kinds() {
        let json = through_json(ty, &fixtures::full(ty));
        through_yaml(ty, &json);
        through_cbor(ty, &json);
        if has_protobuf(ty) {
            through_protobuf(ty, &fixtures::on_the_wire(ty, None));
        }
        count += 1;
    }
    assert!(count > 300, "only {count} kinds");
}

#[test]
fn decoding_reports_a_field_too_many_in_every_kind() {
    for (kind, ty) in kinds() {
        let mut value = fixtures::full(ty);
        value.as_object_mut().unwrap().insert("fieldTooMany".into(), 1.into());
        let bytes = serde_json::to_vec(&value).unwrap();
        let error = decode::decode(ty, &bytes, Mode::Strict).unwrap_err();
        assert_eq!(
            error.to_string(),
            "strict decoding error: unknown field \"fieldTooMany\"",
            "{}",
            kind.kind
        );
    }
}

#[test]
fn objects_at_rest_are_the_objects() {
    for (kind, ty) in kinds().filter(|(k, _)| k.item.is_none()) {
        if ty.member("metadata").is_none_or(|m| m.member("resourceVersion").is_none()) {
            continue;
        }
        let value = fixtures::full(ty);
        let (mut bytes, at) = encode::at_rest_as(ty, &value);
        let version = value["metadata"]["resourceVersion"].as_str().unwrap();
        let mut escaped = Vec::new();
        encode::write_string(version, &mut escaped);
        bytes.splice(at..at, escaped[1..escaped.len() - 1].iter().copied());
        assert_eq!(bytes, encode::json(ty, &value), "{}", kind.kind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sparse_objects_survive_every_codec(seed in 1_u64..1_000_000) {
        for (_, ty) in kinds() {
            let json = through_json(ty, &fixtures::sparse(ty, seed));
            if seed % 4 == 0 {
                through_yaml(ty, &json);
            }
            through_cbor(ty, &json);
            if has_protobuf(ty) {
                through_protobuf(ty, &fixtures::on_the_wire(ty, Some(seed)));
            }
        }
    }

    #[test]
    fn cut_and_damaged_bytes_never_panic(seed in 1_u64..1_000_000, cut in 0_usize..4000, flip in 0_usize..4000) {
        let pod = builtin().lookup("", "v1", "Pod").unwrap();
        let value = fixtures::on_the_wire(pod, Some(seed));
        let json = encode::json(pod, &value);
        let mut packed = cbor::SELF_DESCRIBED.to_vec();
        cbor::write(Some(pod), &json, &mut packed).unwrap();
        for bytes in [json, proto::encode(pod, &value), packed] {
            let mut bytes = bytes[..cut.min(bytes.len())].to_vec();
            let length = bytes.len();
            if length > 0 {
                bytes[flip % length] ^= 0x55;
            }
            let _ = decode::decode(pod, &bytes, Mode::Warn);
            let _ = decode::yaml_to_json(&bytes);
            let _ = proto::decode(pod, &bytes);
            let _ = decode::decode_as(pod, &bytes, Syntax::Cbor, Mode::Warn);
            let _ = decode::decode_untyped_as(&bytes, Syntax::Cbor, Mode::Warn);
            let _ = cbor::type_meta(&bytes);
        }
    }
}
