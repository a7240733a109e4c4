//! Field management: server-side apply, and the sets of fields it keeps.

use serde_json::{Value, json};
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode},
    encode,
    managed::{self, ManagerInfo, OneType, Set},
};

use crate::input::{joined, kind, of_kind, parts};

pub const WORDS: &[&str] = &[
    "\"f:spec\":{",
    "\"k:{\\\"name\\\":\\\"a\\\"}\":{",
    "\"v:\\\"a\\\"\":{}",
    "\"i:0\":{}",
    "\".\":{}",
    "{}",
    "}",
    "\"f:\":{}",
    "\"k:{}\":{}",
    "\"operation\":\"Apply\",",
    "\"operation\":\"Update\",",
    "\"manager\":\"m\",",
    "\"apiVersion\":\"v1\",",
    "\"containers\":",
    "\"name\":\"a\"",
    "null",
    "[]",
    "\"finalizers\":[\"a\",\"a\"]",
    "\"ports\":[{\"containerPort\":80}]",
];
const TIME: &str = "2026-01-02T03:04:05Z";

fn by<'a>(manager: &'a str, api_version: &'a str) -> ManagerInfo<'a> {
    ManagerInfo { manager, api_version, subresource: "", time: TIME }
}

/// Input: the live object, a configuration and what an update makes of the object, with zero bytes between.
pub fn apply(bytes: &[u8]) {
    let Some((kind, ty, bytes)) = kind(bytes) else { return };
    let [live, config, update] = parts(bytes);
    let version = if kind.group.is_empty() {
        kind.version.to_owned()
    } else {
        format!("{}/{}", kind.group, kind.version)
    };
    let read = |bytes: &[u8]| {
        // Objects and configurations as clients of upstream's write them: with what Go does not leave out, keys of
        // list items among it. Without those upstream too finds another item each time.
        let value = decode::decode(ty, bytes, Mode::Ignore).ok()?.value;
        let mut value = decode::decode(ty, &encode::json(ty, &value), Mode::Ignore).ok()?.value;
        value.as_object_mut()?.insert("apiVersion".into(), version.as_str().into());
        Some(value)
    };
    let of = OneType { ty, api_versions: &[&version], evolves: false };
    let live = read(live).map(|mut live| {
        // What is stored was written by this very code.
        managed::update(&of, None, &mut live, &by("creator", &version), None);
        live
    });
    if let (Some(live), Some(mut new)) = (&live, read(update)) {
        managed::update(&of, Some(live), &mut new, &by("updater", &version), None);
        well_formed(&new);
        let mut created = new.clone();
        managed::update(&of, None, &mut created, &by("creator", &version), None);
        well_formed(&created);
    }
    let Some(mut config) = read(config) else { return };
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let info = by("applier", &version);
    for (live, force) in [(None, false), (live.as_ref(), false), (live.as_ref(), true)] {
        let Ok(applied) = managed::apply(&of, live, &config, &info, force, None) else { continue };
        well_formed(&applied.object);
        // It is stored as the type writes it, and read back.
        let Ok(stored) = decode::decode(ty, &encode::json(ty, &applied.object), Mode::Ignore) else {
            continue;
        };
        let again = managed::apply(&of, Some(&stored.value), &config, &info, false, None);
        let again = again.unwrap_or_else(|e| panic!("applying again is refused: {e}\n{}", stored.value));
        assert!(!again.changed, "applying again changes {}\nto {}", stored.value, again.object);
    }
}

fn well_formed(object: &Value) {
    managed::check_entries(object).unwrap_or_else(|e| panic!("{e}: {object}"));
    for entry in object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten() {
        let Some(fields) = entry.get("fieldsV1") else { continue };
        let set = Set::parse(fields).unwrap_or_else(|e| panic!("{e}: {fields}"));
        assert_eq!(&set.into_value(), fields, "sets are kept in their normal form");
    }
}

/// Input: two sets, with a zero byte between.
pub fn sets(bytes: &[u8]) {
    let sets = parts::<2>(bytes).map(|bytes| {
        let value = decode::decode_untyped(bytes, Mode::Ignore).ok()?.value;
        Set::parse(&value).ok()
    });
    let [Some(a), b] = sets else { return };
    let b = b.unwrap_or_default();
    for set in [&a, &b] {
        assert_eq!(Set::parse(&set.clone().into_value()).as_ref(), Ok(set));
        let mut same = set.clone();
        same.union(set);
        assert_eq!(&same, set);
        assert_eq!(&set.intersection(set), set);
        let mut none = set.clone();
        none.difference(set);
        assert!(none.is_empty(), "{none:?}");
        let mut count = 0;
        set.for_each(|path| {
            assert!(set.has(path), "{path:?}");
            count += 1;
        });
        assert_eq!(count, set.len());
    }
    let mut union = a.clone();
    union.union(&b);
    let mut other = b.clone();
    other.union(&a);
    assert_eq!(union, other);
    let common = a.intersection(&b);
    assert_eq!(common, b.intersection(&a));
    assert_eq!(union.len() + common.len(), a.len() + b.len());
    let mut only = a.clone();
    only.difference(&b);
    assert_eq!(only.len() + common.len(), a.len());
    only.union(&common);
    assert_eq!(only, a);
    let mut below = a.clone();
    below.recursive_difference(&b);
    b.for_each(|path| assert!(!below.has(path), "{path:?}"));
}

pub fn apply_seeds() -> Vec<Vec<u8>> {
    let live = r#"{"metadata":{"name":"p","uid":"u","labels":{"a":"b"},"finalizers":["x"],"managedFields":[{"manager":"applier","operation":"Apply","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{"f:a":{}}}}},{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}}}}}}]},"spec":{"containers":[{"name":"a","image":"i"}]}}"#;
    let config = r#"{"metadata":{"name":"p","labels":{"c":"d"},"finalizers":["y"]},"spec":{"containers":[{"name":"a","image":"j","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}}},{"name":"b"}],"nodeSelector":{"k":"v"}}}"#;
    let update = r#"{"metadata":{"name":"p","uid":"u","labels":{}},"spec":{"containers":[{"name":"b","image":"k"}],"volumes":[{"name":"v"}]}}"#;
    let mut seeds = vec![
        of_kind("", "v1", "Pod", &joined(&[live, config, update])),
        of_kind("", "v1", "Pod", &joined(&["{}", config, "{}"])),
        of_kind("", "v1", "Pod", &joined(&[update, live, config])),
    ];
    for (group, version, name) in [
        ("", "v1", "Service"),
        ("apps", "v1", "Deployment"),
        ("networking.k8s.io", "v1", "Ingress"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ] {
        // The kinds are of the tables.
        let ty = builtin().lookup(group, version, name).expect("a built-in kind");
        let [a, b, c] = [2, 3, 4].map(|seed| {
            let mut object = yare_schema::fixtures::sparse(ty, seed);
            object["metadata"] = json!({"name": "n", "labels": {"a": "b"}});
            encode::json(ty, &object)
        });
        seeds.push(of_kind(group, version, name, &[a, vec![0], b, vec![0], c].concat()));
    }
    seeds
}

pub fn set_seeds() -> Vec<Vec<u8>> {
    let a = r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{}},"k:{\"name\":\"b\",\"port\":1}":{}},"f:list":{"v:\"x\"":{},"v:1.5":{},"i:3":{}}}}"#;
    let b = r#"{"f:metadata":{"f:labels":{}},"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:image":{}}},"f:other":{}}}"#;
    // Read inexactly, this number is another one each time.
    let float = r#"{"f:a":{"v:8888888888888888888888888888888888888888888881.5":{}}}"#;
    vec![
        joined(&[a, b]),
        joined(&[b, a]),
        joined(&[float, b]),
        joined(&[r#"{".":{},"f:a":{"f:b":{".":{}}}}"#, r#"{"f:a":{}}"#]),
    ]
}
