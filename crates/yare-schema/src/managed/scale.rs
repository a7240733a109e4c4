//! Ownership through `scale`: who owns the replicas of an object owns those of its scale, and the other way
//! round.

use serde_json::Value;

use super::{
    array,
    entries::{Entry, Operation, decode, encode},
    set::{Set, field_key},
};

/// The API version of scales.
pub const API_VERSION: &str = "autoscaling/v1";
const REPLICAS: &[&str] = &["spec", "replicas"];

/// Where each API version of a kind keeps its replicas.
pub trait ReplicasPaths {
    /// The names on the way to them. `None`: the version is not known; no names: it has no scale.
    fn path(&self, api_version: &str) -> Option<Vec<String>>;
}

fn steps(path: &[String]) -> Vec<String> {
    path.iter().map(|name| field_key(name)).collect()
}

fn owns(entry: &Entry, path: &[String]) -> bool {
    let steps = steps(path);
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    entry.fields.has(&steps)
}

fn of_path(path: &[String]) -> Set {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    Set::of_fields(&[&names])
}

/// The `managedFields` of an object's scale.
///
/// # Errors
/// The object's own cannot be read.
pub fn of_object(object: &Value, paths: &dyn ReplicasPaths) -> Result<Option<Value>, String> {
    let mut entries = decode(array(object.pointer("/metadata/managedFields")).to_vec(), true)?;
    entries.retain_mut(|entry| {
        let owner = paths.path(&entry.api_version).is_some_and(|p| !p.is_empty() && owns(entry, &p));
        if owner {
            entry.fields = Set::of_fields(&[REPLICAS]);
            API_VERSION.clone_into(&mut entry.api_version);
        }
        owner
    });
    Ok(encode(entries))
}

/// The `managedFields` of an object whose scale, once written, is `scale`. `api_version`: the object's in the
/// request.
///
/// # Errors
/// Those of either cannot be read.
pub fn to_object(
    object: &Value,
    scale: &Value,
    api_version: &str,
    paths: &dyn ReplicasPaths,
) -> Result<Option<Value>, String> {
    let mut entries = decode(array(object.pointer("/metadata/managedFields")).to_vec(), true)?;
    let mut owners = decode(array(scale.pointer("/metadata/managedFields")).to_vec(), true)?;
    entries.retain_mut(|entry| {
        let Some(path) = paths.path(&entry.api_version) else { return false };
        if path.is_empty() || !owns(entry, &path) {
            return true;
        }
        let same = |owner: &Entry| {
            (&owner.manager, owner.operation, &owner.subresource)
                == (&entry.manager, entry.operation, &entry.subresource)
        };
        match owners.iter().position(same) {
            Some(at) => {
                owners.remove(at);
                true
            }
            None => {
                entry.fields.difference(&of_path(&path));
                !entry.fields.is_empty()
            }
        }
    });
    let replicas: Vec<String> = REPLICAS.iter().map(|&name| name.to_owned()).collect();
    let path = paths.path(api_version).unwrap_or_default();
    for mut owner in owners.into_iter().filter(|owner| owns(owner, &replicas)) {
        owner.fields = of_path(&path);
        api_version.clone_into(&mut owner.api_version);
        // Upstream knows no time of an owner that comes by the scale.
        owner.time = None;
        let version_counts = owner.operation == Operation::Update;
        match entries.iter_mut().find(|e| e.same_manager(&owner)) {
            // The same manager wrote the object in another version of its own.
            Some(same) if version_counts => same.fields.union(&owner.fields),
            Some(same) => *same = owner,
            None => entries.push(owner),
        }
    }
    Ok(encode(entries))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Versions;

    impl ReplicasPaths for Versions {
        fn path(&self, api_version: &str) -> Option<Vec<String>> {
            let names: &[&str] = match api_version {
                "v1" => &["spec", "replicas"],
                "v2" => &["spec", "the", "replicas"],
                "v3" => &[],
                _ => return None,
            };
            Some(names.iter().map(|&n| n.to_owned()).collect())
        }
    }

    fn entry(manager: &str, operation: &str, version: &str, sub: &str, fields: Value) -> Value {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": version,
            "fieldsType": "FieldsV1", "fieldsV1": fields, "time": "2026-01-01T00:00:00Z"});
        if !sub.is_empty() {
            entry["subresource"] = json!(sub);
        }
        entry
    }

    fn object(entries: Vec<Value>) -> Value {
        json!({"metadata": {"managedFields": entries}})
    }

    /// Managers with versions and fields, without their times.
    fn shown(entries: Option<Value>) -> Vec<String> {
        array(entries.as_ref())
            .iter()
            .map(|e| {
                let text = |name: &str| e[name].as_str().unwrap_or("-").to_owned();
                format!(
                    "{} {} {} {} {}{}",
                    text("manager"),
                    text("operation"),
                    text("apiVersion"),
                    text("subresource"),
                    e["fieldsV1"],
                    if e["time"].is_string() { "" } else { " timeless" }
                )
            })
            .collect()
    }

    #[test]
    fn owners_of_replicas_own_the_scale() {
        let fields = |path: Value| json!({"f:spec": path});
        let live = object(vec![
            entry("a", "Apply", "v1", "", fields(json!({"f:replicas": {}, "f:other": {}}))),
            entry("b", "Update", "v2", "", fields(json!({"f:the": {"f:replicas": {}}}))),
            entry("c", "Update", "v1", "", fields(json!({"f:other": {}}))),
            entry("d", "Update", "v3", "", fields(json!({"f:replicas": {}}))),
            entry("e", "Update", "v9", "", fields(json!({"f:replicas": {}}))),
        ]);
        let scale = of_object(&live, &Versions).unwrap();
        let both = r#"{"f:spec":{"f:replicas":{}}}"#;
        assert_eq!(
            shown(scale.clone()),
            [format!("a Apply autoscaling/v1 - {both}"), format!("b Update autoscaling/v1 - {both}")]
        );
        // Nothing changed: the same owners, but for the version that is not known.
        let same = object(scale.unwrap().as_array().unwrap().clone());
        assert_eq!(
            shown(to_object(&live, &same, "v1", &Versions).unwrap()),
            [
                r#"a Apply v1 - {"f:spec":{"f:other":{},"f:replicas":{}}}"#.to_owned(),
                r#"b Update v2 - {"f:spec":{"f:the":{"f:replicas":{}}}}"#.to_owned(),
                r#"c Update v1 - {"f:spec":{"f:other":{}}}"#.to_owned(),
                format!("d Update v3 - {both}"),
            ]
        );
        // Somebody scaled: nobody else owns the replicas any more.
        let scaled = object(vec![
            entry("s", "Update", API_VERSION, "scale", fields(json!({"f:replicas": {}}))),
            entry("t", "Apply", API_VERSION, "scale", fields(json!({"f:replicas": {}}))),
            entry("u", "Update", API_VERSION, "scale", json!({"f:metadata": {"f:labels": {}}})),
        ]);
        assert_eq!(
            shown(to_object(&live, &scaled, "v2", &Versions).unwrap()),
            [
                r#"t Apply v2 scale {"f:spec":{"f:the":{"f:replicas":{}}}} timeless"#.to_owned(),
                r#"a Apply v1 - {"f:spec":{"f:other":{}}}"#.to_owned(),
                r#"s Update v2 scale {"f:spec":{"f:the":{"f:replicas":{}}}} timeless"#.to_owned(),
                r#"c Update v1 - {"f:spec":{"f:other":{}}}"#.to_owned(),
                format!("d Update v3 - {both}"),
            ]
        );
    }
}
