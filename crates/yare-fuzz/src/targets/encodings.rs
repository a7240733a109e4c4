//! JSON, YAML, protobuf and CBOR: any bytes are read or refused, and what was read can be written and read again.

use serde_json::Value;
use yare_schema::{
    builtin::{Kind, builtin},
    cbor as c,
    crd::{Compiled, load},
    decode::{self, DecodeError, Decoded, Mode, Syntax},
    defaults, encode, fixtures,
    model::TypeRef,
    proto, prune,
};

use crate::input::{check_size, kind, of_rich_kinds, shown};

pub const JSON_WORDS: &[&str] = &[
    "null",
    "true",
    "{}",
    "[]",
    "[null]",
    ",",
    ":",
    "\"metadata\":",
    "\"name\":",
    "\"spec\":",
    "\"\\ud800\"",
    "\\u0000",
    "\u{2028}",
    "\"\"",
    "{\"\":",
    "1.5",
    "\"kind\":",
    "\"apiVersion\":",
    "\"2020-01-01T00:00:00Z\"",
    "\"1Ki\"",
    "\"AA==\"",
];
pub const YAML_WORDS: &[&str] = &[
    "- ",
    ": ",
    "\n",
    "\n  ",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!!binary ",
    "|\n ",
    ">-\n ",
    "---\n",
    "...\n",
    "# ",
    "? ",
    "'",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "yes",
    "~",
    "0o7",
    "0x1F",
    "1_000",
    ".inf",
    ".nan",
    "%YAML 1.1\n",
    "\t",
];

/// The modes differ in what they report, not in what they read.
fn read(ty: Option<TypeRef<'_>>, bytes: &[u8], syntax: Syntax) -> Option<Value> {
    let decode = |mode| match ty {
        Some(ty) => decode::decode_as(ty, bytes, syntax, mode),
        None => decode::decode_untyped_as(bytes, syntax, mode),
    };
    let (strict, warn, ignore) = (decode(Mode::Strict), decode(Mode::Warn), decode(Mode::Ignore));
    match (&strict, &warn, &ignore) {
        (Ok(strict), Ok(warn), Ok(ignore)) => {
            assert!(strict.warnings.is_empty() && warn.warnings.is_empty() && ignore.warnings.is_empty());
            assert_eq!(strict.value, warn.value);
            assert_eq!(strict.value, ignore.value);
        }
        (Err(DecodeError::Strict(reports)), Ok(warn), Ok(ignore)) => {
            assert_eq!(*reports, warn.warnings, "strict errors are the warnings");
            assert!(!reports.is_empty() && ignore.warnings.is_empty());
            assert_eq!(warn.value, ignore.value);
        }
        (Err(strict), Err(warn), Err(ignore)) => {
            assert_eq!(strict, ignore);
            assert_eq!(warn, ignore);
        }
        other => panic!("modes disagree: {other:?}"),
    }
    let Decoded { value, .. } = ignore.ok()?;
    check_size(&value, bytes.len());
    Some(value)
}

/// Writes a value as JSON; reading and writing that must change nothing.
fn settle(ty: Option<TypeRef<'_>>, value: &Value) -> Vec<u8> {
    let write = |value: &Value| ty.map_or_else(|| encode::any(value), |ty| encode::json(ty, value));
    let json = write(value);
    let again = match ty {
        Some(ty) => decode::decode(ty, &json, Mode::Strict),
        None => decode::decode_untyped(&json, Mode::Strict),
    };
    let again = again.unwrap_or_else(|e| panic!("what was written is refused: {e}\n{}", shown(&json)));
    assert_eq!(unsigned(&write(&again.value)), unsigned(&json));
    json
}

/// JSON in which no zero has a sign. A float keeps it; what is written of it, upstream too, is the integer that has none.
fn unsigned(json: &[u8]) -> String {
    shown(json).replace("-0", "0")
}

fn is_resource(kind: &Kind, ty: TypeRef<'_>) -> bool {
    kind.item.is_none() && ty.member("metadata").is_some_and(|m| m.member("resourceVersion").is_some())
}

/// A definition with a bit of everything that types of definitions have.
fn custom() -> &'static Compiled {
    static CUSTOM: std::sync::OnceLock<Compiled> = std::sync::OnceLock::new();
    CUSTOM.get_or_init(|| {
        load(&serde_json::json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "name": {"type": "string", "default": "x"},
                "ports": {"type": "array", "items": {"type": "object", "properties": {"p": {"x-kubernetes-int-or-string": true}}}},
                "free": {"x-kubernetes-preserve-unknown-fields": true},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"d": {"type": "integer", "default": 2}}}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                "nullable": {"type": "string", "nullable": true},
            }},
        }}))
    })
}

pub fn json(bytes: &[u8]) {
    let Some((kind, ty, bytes)) = kind(bytes) else { return };
    if let Some(value) = read(None, bytes, Syntax::Json) {
        settle(None, &value);
        type_meta(&value, decode::type_meta(bytes));
    }
    if let Some(value) = read(Some(ty), bytes, Syntax::Json) {
        settle(Some(ty), &value);
        if is_resource(kind, ty) {
            let (at_rest, at) = encode::at_rest_as(ty, &value);
            assert_eq!(at_rest.get(at - 1..=at), Some(&b"\"\""[..]));
            decode::decode(ty, &at_rest, Mode::Strict).expect("objects at rest can be read");
        }
    }
    if let Some(mut value) = read(Some(custom().ty()), bytes, Syntax::Json) {
        prune::prune(custom().ty(), &mut value);
        assert_eq!(prune::prune(custom().ty(), &mut value), Vec::<String>::new());
        defaults::apply(custom().ty(), &mut value);
        let once = value.clone();
        defaults::apply(custom().ty(), &mut value);
        assert_eq!(value, once);
    }
}

/// What is said of an object's type without reading it is what reading it says.
fn type_meta(value: &Value, found: Result<(String, String), DecodeError>) {
    let text = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Some(""),
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => None,
    };
    if let (true, Some(api_version), Some(kind), Ok(found)) =
        (value.is_object(), text("apiVersion"), text("kind"), found)
    {
        assert_eq!((found.0.as_str(), found.1.as_str()), (api_version, kind));
    }
}

pub fn yaml(bytes: &[u8]) {
    let Some((_, ty, bytes)) = kind(bytes) else { return };
    if let Ok((json, _)) = decode::yaml_to_json(bytes) {
        match decode::yaml_to_json(&json) {
            Ok((again, duplicates)) => {
                assert_eq!(unsigned(&again), unsigned(&json));
                assert_eq!(duplicates, Vec::<String>::new());
            }
            // JSON may have characters in it that YAML must have escaped.
            Err(error) => {
                assert!(shown(&json).contains(|c: char| c.is_control() || c >= '\u{fffe}'), "{error}")
            }
        }
        if let Ok(decoded) = decode::decode_untyped(&json, Mode::Strict) {
            settle(None, &decoded.value);
        }
    }
    // Aliases let a text stand for more than itself, so its size says nothing here.
    for mode in [Mode::Strict, Mode::Warn, Mode::Ignore] {
        if let Ok(decoded) = decode::decode_as(ty, bytes, Syntax::Yaml, mode) {
            settle(Some(ty), &decoded.value);
        }
    }
}

pub fn protobuf(bytes: &[u8]) {
    let Some((_, ty, bytes)) = kind(bytes) else { return };
    if let Ok(value) = proto::decode(ty, bytes) {
        check_size(&value, bytes.len());
        let wire = proto::encode(ty, &value);
        let again = proto::decode(ty, &wire).unwrap_or_else(|e| panic!("what was written is refused: {e}"));
        assert_eq!(shown(&encode::json(ty, &again)), shown(&encode::json(ty, &value)));
        assert_eq!(proto::encode(ty, &again), wire);
        settle(Some(ty), &value);
    }
    if let Ok(value) = proto::from_wire(builtin(), bytes) {
        check_size(&value, bytes.len());
    }
    let _ = proto::unwrap(bytes);
}

pub fn cbor(bytes: &[u8]) {
    let Some((_, ty, bytes)) = kind(bytes) else { return };
    let well_formed = c::check(bytes);
    for ty in [None, Some(ty)] {
        let Some(value) = read(ty, bytes, Syntax::Cbor) else { continue };
        assert_eq!(well_formed, Ok(()));
        let json = settle(ty, &value);
        let mut packed = c::SELF_DESCRIBED.to_vec();
        c::write(ty, &json, &mut packed).expect("JSON becomes CBOR");
        let again = match ty {
            Some(ty) => decode::decode_as(ty, &packed, Syntax::Cbor, Mode::Strict),
            None => decode::decode_untyped_as(&packed, Syntax::Cbor, Mode::Strict),
        };
        let again =
            again.unwrap_or_else(|e| panic!("what was written is refused: {e}\n{}", shown(&json))).value;
        assert_eq!(shown(&settle(ty, &again)), shown(&json));
        if ty.is_none() {
            type_meta(&value, c::type_meta(bytes));
        }
    }
    let _ = c::type_meta(bytes);
    let _ = c::first(bytes);
}

pub fn json_seeds() -> Vec<Vec<u8>> {
    let mut seeds = of_rich_kinds(encode::json);
    let custom = r#"{"apiVersion":"e.com/v1","kind":"C","metadata":{"name":"n"},"spec":{"name":null,"ports":[{"p":1},{"p":"x"}],"free":[{}],"map":{"k":{}},"template":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"n"}},"nullable":null},"x":1}"#;
    let nested = format!("{}{}", "[".repeat(201), "]".repeat(201));
    for text in [custom, &nested, r#"{"a":1,"a":{"b":"\ud83d\ude00\ud800"}}"#, "-0", "1e999", "\u{feff}{}"] {
        seeds.push([&[0, 0], text.as_bytes()].concat());
    }
    // A null is a short word for a whole object.
    seeds.push(crate::input::of_kind(
        "",
        "v1",
        "PodList",
        format!("{{\"items\":[{}null]}}", "null,".repeat(999)).as_bytes(),
    ));
    seeds
}

pub fn yaml_seeds() -> Vec<Vec<u8>> {
    // A lease is short, and so is most YAML that people write.
    let lease = builtin().lookup("coordination.k8s.io", "v1", "Lease").expect("a built-in kind");
    let text = encode::indent(&encode::json(lease, &fixtures::full(lease)));
    let mut seeds = vec![crate::input::of_kind("coordination.k8s.io", "v1", "Lease", &text)];
    for text in [
        "kind: Pod\nmetadata:\n  name: a\n  labels: {a: 'yes', b: yes, c: 0x1F, d: 1_0, e: .5, f: ~}\nspec:\n  containers:\n  - name: c\n    args: [a, \"b\\n\"]\n    env: # note\n    - {name: X, value: |\n        text\n        more\n      }\n",
        "a: &a {x: 1}\nb: &b\n  <<: *a\n  y: 2\nc:\n  <<: [*a, *b]\n  x: 3\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\ne: [*d, *d]\n",
        "? a\n: >-\n  folded\n  text\n\n  more\nb: !!binary aGk=\nc: !!str 1\nd: !t x\n1: 2\ntrue: 3\n",
        "%YAML 1.1\n---\na: 1\na: 2\n...\n---\nsecond: document\n",
        "[]",
        "\u{feff}a: \"\\u2028\\x41\\e\"",
    ] {
        seeds.push([&[0, 0], text.as_bytes()].concat());
    }
    // Merges of large mappings, again and again.
    let keys: String = (0..40).map(|n| format!("k{n}: {n}, ")).collect();
    let merges = "- {<<: *a}\n".repeat(30);
    seeds.push(format!("\0\0- &a {{{keys}}}\n{merges}").into_bytes());
    seeds
}

pub fn protobuf_seeds() -> Vec<Vec<u8>> {
    let mut seeds = of_rich_kinds(|ty, _| proto::encode(ty, &fixtures::on_the_wire(ty, None)));
    seeds.extend(of_rich_kinds(|ty, _| proto::encode(ty, &fixtures::on_the_wire(ty, Some(3)))));
    seeds.extend(of_rich_kinds(proto::to_wire));
    seeds
}

pub fn cbor_seeds() -> Vec<Vec<u8>> {
    let mut seeds = of_rich_kinds(|ty, value| {
        let mut packed = c::SELF_DESCRIBED.to_vec();
        // Objects from the tables are JSON.
        c::write(Some(ty), &encode::json(ty, value), &mut packed).expect("seeds become CBOR");
        packed
    });
    for bytes in [
        &b"\x9f\x01\x02\xff"[..],
        b"\xbf\x41a\x01\xff",
        b"\x5f\x41a\x41b\xff",
        b"\xd5\x42hi\x00",
        b"\xc0\x54\x32\x30\x31\x33\x2d\x30\x33\x2d\x32\x31\x54\x32\x30\x3a\x30\x34\x3a\x30\x30\x5a",
        b"\xfb\x3f\xf1\x99\x99\x99\x99\x99\x9a",
        b"\xf9\x7e\x00",
        b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x3b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x41a\x01\x61a\x02",
    ] {
        seeds.push([&[0, 0], bytes].concat());
    }
    // A null is one byte.
    let nulls = [&b"\xa1\x45items\x99\x03\xe8"[..], &[0xf6; 1_000]].concat();
    seeds.push(crate::input::of_kind("", "v1", "PodList", &nulls));
    seeds
}
