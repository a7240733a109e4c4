//! Every built-in resource between every two of its versions, with objects made from the schema tables.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use yare_kinds::{
    convert,
    table::{RESOURCES, Resource},
};
use yare_schema::{
    builtin::builtin,
    decode::{self, Mode},
    encode, fixtures,
    model::TypeRef,
};

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// How many objects of each pair are tried.
const SEEDS: u64 = 48;

/// The type that the resource's objects are stored as.
fn stored(row: &Resource) -> TypeRef<'static> {
    let group = row.stored_as.map_or(row.group, |(group, _)| group);
    builtin().lookup(group, row.storage_version(), row.kind).expect("a type for what is stored")
}

/// Rows with each of their versions that have a type.
fn pairs() -> Vec<(&'static Resource, &'static str, TypeRef<'static>)> {
    RESOURCES
        .iter()
        .flat_map(|row| row.versions.iter().map(move |version| (row, version.name)))
        .filter_map(|(row, version)| {
            builtin().lookup(row.group, version, row.kind).map(|ty| (row, version, ty))
        })
        .collect()
}

/// An object of the type as it would be read from a request.
fn object(ty: TypeRef<'_>, group: &str, version: &str, kind: &str, seed: Option<u64>) -> Value {
    let mut value = match seed {
        Some(seed) => fixtures::sparse(ty, seed),
        None => fixtures::full(ty),
    };
    let map = value.as_object_mut().expect("kinds are objects");
    map.insert("apiVersion".into(), api_version(group, version).into());
    map.insert("kind".into(), kind.into());
    map.entry("metadata").or_insert_with(|| json!({}));
    decode::normalize(ty, value, Mode::Strict).expect("fixtures fit their types").value
}

/// The value in the type's own words, where it has no others.
fn fits(ty: TypeRef<'_>, value: &Value, what: &str) -> Result<String, String> {
    let decoded = decode::normalize(ty, value.clone(), Mode::Strict).map_err(|e| format!("{what}: {e}"))?;
    Ok(String::from_utf8(encode::json(ty, &decoded.value)).expect("JSON is text"))
}

/// From a version to storage and back.
fn to_storage_and_back(
    row: &Resource,
    version: &str,
    ty: TypeRef<'_>,
    seed: Option<u64>,
) -> Result<(), String> {
    let before = object(ty, row.group, version, row.kind, seed);
    let mut value = before.clone();
    convert::to_storage(row, &mut value);
    fits(stored(row), &value, "stored")?;
    convert::from_storage(row, &mut value, version);
    let (mut before, mut after) = (before, value);
    match (row.kind, version) {
        // What `v1` has no fields for stands in annotations, and so does what it has: upstream keeps the raw values.
        // Without any metric upstream scales on CPU.
        ("HorizontalPodAutoscaler", "v1") => {
            [&mut before, &mut after].into_iter().for_each(without_annotations);
            if let Some(spec) = before["spec"].as_object_mut() {
                spec.entry("targetCPUUtilizationPercentage").or_insert_with(|| 80.into());
            }
            if !before["spec"].is_object() {
                before["spec"] = json!({"targetCPUUtilizationPercentage": 80});
            }
        }
        // A device always has its part of that name when it comes back.
        ("ResourceSlice", "v1beta1") => {
            for device in
                before.pointer_mut("/spec/devices").and_then(Value::as_array_mut).into_iter().flatten()
            {
                device
                    .as_object_mut()
                    .expect("devices are objects")
                    .entry("basic")
                    .or_insert_with(|| json!({}));
            }
        }
        _ => {}
    }
    same(&fits(ty, &after, "served again")?, &fits(ty, &before, "")?)
}

fn without_annotations(object: &mut Value) {
    if let Some(map) = object["metadata"].as_object_mut() {
        map.remove("annotations");
    }
}

/// From storage to a version and back.
fn from_storage_and_back(
    row: &Resource,
    version: &str,
    ty: TypeRef<'_>,
    seed: Option<u64>,
) -> Result<(), String> {
    let group = row.stored_as.map_or(row.group, |(group, _)| group);
    let before = object(stored(row), group, row.storage_version(), row.kind, seed);
    let mut value = before.clone();
    convert::from_storage(row, &mut value, version);
    fits(ty, &value, "served")?;
    convert::to_storage(row, &mut value);
    let (mut before, mut after) = (before, value);
    if (row.kind, version) == ("HorizontalPodAutoscaler", "v1") {
        // On the way through `v1`, metrics get upstream's default and fixed types, and quantities that it cannot
        // leave out become zero: the tests beside the conversion have these. All else comes back.
        for object in [&mut before, &mut after] {
            for (at, field) in [("spec", "metrics"), ("status", "currentMetrics")] {
                object[at].as_object_mut().map(|map| map.remove(field));
            }
            // Behaviour that says nothing is none.
            if let Some(spec) = object["spec"].as_object_mut()
                && spec.get("behavior").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty)
            {
                spec.remove("behavior");
            }
        }
    }
    same(&fits(stored(row), &after, "stored again")?, &fits(stored(row), &before, "")?)
}

fn same(after: &str, before: &str) -> Result<(), String> {
    if after == before {
        return Ok(());
    }
    let at = after.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count().saturating_sub(80);
    let shown = |text: &str| {
        String::from_utf8_lossy(&text.as_bytes()[at.min(text.len())..]).chars().take(400).collect::<String>()
    };
    Err(format!("became\n{}\nwas\n{}", shown(after), shown(before)))
}

type Way = fn(&Resource, &str, TypeRef<'_>, Option<u64>) -> Result<(), String>;
const WAYS: [(&str, Way); 2] = [("to", to_storage_and_back), ("from", from_storage_and_back)];

#[test]
fn objects_come_back() {
    let pairs = pairs();
    assert!(pairs.len() > 90, "only {} pairs", pairs.len());
    let mut failed = BTreeMap::new();
    for (row, version, ty) in pairs {
        for (name, way) in WAYS {
            // Fixtures of a seed are the same every time.
            for seed in std::iter::once(None).chain((1..=SEEDS).map(Some)) {
                if let Err(why) = way(row, version, ty, seed) {
                    let what = format!("{}/{version} {} {name} storage and back", row.group, row.kind);
                    failed.entry(what).or_insert(format!("seed {seed:?}: {why}"));
                }
            }
        }
    }
    let told: Vec<String> = failed.iter().map(|(what, why)| format!("{what}: {why}")).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}
