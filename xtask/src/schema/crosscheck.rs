//! The tables against two other publications of the same facts: client-go's structured-merge schema, and
//! the OpenAPI definitions. What a marker was misread for shows here.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;
use yare_schema::{
    builtin::builtin,
    decode,
    model::{Field, ListKind, Scalar, Shape, TypeRef},
};

use super::tables::GOPATH;

/// Compares with `client-go/applyconfigurations/internal`; returns how many types, and differences.
pub fn merge_schema(packages: &Path) -> Result<(usize, Vec<String>)> {
    let path = packages.join(GOPATH).join("k8s.io/client-go/applyconfigurations/internal/internal.go");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let yaml = text.split('`').nth(1).context("no YAML in internal.go")?;
    let (json, _) = decode::yaml_to_json(yaml.as_bytes())?;
    let document: Value = serde_json::from_slice(&json)?;
    let mut problems = Vec::new();
    let mut count = 0;
    for theirs in document["types"].as_array().into_iter().flatten() {
        let name = theirs["name"].as_str().unwrap_or_default();
        if name.starts_with("__") {
            continue;
        }
        count += 1;
        let Some(ours) = builtin().definition(name) else {
            problems.push(format!("{name} is not in the tables"));
            continue;
        };
        let Some(ours_struct) = ours.as_struct() else { continue };
        let fields = theirs["map"]["fields"].as_array().cloned().unwrap_or_default();
        let names: BTreeSet<&str> = fields.iter().filter_map(|f| f["name"].as_str()).collect();
        let our_names: BTreeSet<&str> = ours_struct.fields.iter().map(|f| &*f.name).collect();
        if names != our_names {
            problems.push(format!("{name}: fields differ: {:?}", names.symmetric_difference(&our_names)));
        }
        if ours_struct.atomic != (theirs["map"]["elementRelationship"] == "atomic") {
            problems.push(format!("{name}: atomic is {}", ours_struct.atomic));
        }
        for theirs in &fields {
            let Some(field) = theirs["name"].as_str().and_then(|n| ours_struct.field(n)) else { continue };
            let ours = relation(ours.to(&field.slot), true);
            let theirs = their_relation(&theirs["type"]);
            if ours != theirs {
                problems.push(format!("{name}.{}: {ours}, upstream has {theirs}", field.name));
            }
        }
    }
    Ok((count, problems))
}

/// Our type in words that both sides have.
fn relation(ty: TypeRef<'_>, in_field: bool) -> String {
    let name = &ty.ty().name;
    match ty.shape() {
        Shape::Scalar(scalar) => match scalar {
            Scalar::Int32 | Scalar::Int64 | Scalar::Float64 => "numeric".into(),
            Scalar::Bool => "boolean".into(),
            Scalar::String | Scalar::Bytes => "string".into(),
            _ => name.to_string(),
        },
        Shape::List(l) => {
            let item = relation(ty.to(&l.item), false);
            match &l.kind {
                ListKind::Atomic => format!("atomic list of {item}"),
                ListKind::Set => format!("associative list of {item} by []"),
                ListKind::Map(keys) => format!("associative list of {item} by {keys:?}"),
            }
        }
        Shape::Map(m) => {
            let how = if m.atomic { "atomic" } else { "separable" };
            format!("{how} map of {}", relation(ty.to(&m.value), false))
        }
        Shape::Struct(s) => {
            let own = builtin().definition(name).and_then(TypeRef::as_struct).is_some_and(|d| d.atomic);
            match (in_field && own != s.atomic, s.atomic) {
                (true, true) => format!("atomic {name}"),
                (true, false) => format!("separable {name}"),
                _ => name.to_string(),
            }
        }
        Shape::Any if name.is_empty() || name.ends_with(".RawExtension") => "__untyped_atomic_".into(),
        Shape::Any => name.to_string(),
    }
}

fn their_relation(ty: &Value) -> String {
    if let Some(name) = ty["namedType"].as_str() {
        return match ty["elementRelationship"].as_str() {
            Some(word) => format!("{word} {name}"),
            None => name.to_owned(),
        };
    }
    if let Some(scalar) = ty["scalar"].as_str() {
        return scalar.to_owned();
    }
    if let Some(list) = ty.get("list") {
        let item = their_relation(&list["elementType"]);
        let keys: Vec<&str> =
            list["keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        return match list["elementRelationship"].as_str() {
            Some("associative") => format!("associative list of {item} by {keys:?}"),
            word => format!("{} list of {item}", word.unwrap_or_default()),
        };
    }
    if let Some(map) = ty.get("map") {
        let item = their_relation(&map["elementType"]);
        return format!("{} map of {item}", map["elementRelationship"].as_str().unwrap_or("separable"));
    }
    ty.to_string()
}

/// Compares with OpenAPI definitions; returns how many types, and differences.
pub fn openapi(definitions: &Value) -> (usize, Vec<String>) {
    let mut problems = Vec::new();
    let mut count = 0;
    for (name, theirs) in definitions.as_object().into_iter().flatten() {
        let Some(ours) = builtin().definition(name) else {
            // The answer of `/version` is no API object.
            if theirs.get("properties").is_some() && !name.ends_with(".version.Info") {
                problems.push(format!("{name} is not in the tables"));
            }
            continue;
        };
        let (Some(ours), Some(properties)) = (ours.as_struct(), theirs["properties"].as_object()) else {
            continue;
        };
        count += 1;
        let names: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        let our_names: BTreeSet<&str> = ours.fields.iter().map(|f| &*f.name).collect();
        if names != our_names {
            problems.push(format!("{name}: fields differ: {:?}", names.symmetric_difference(&our_names)));
        }
        let strings = |v: &Value| -> BTreeSet<String> {
            v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
        };
        let required = strings(&theirs["required"]);
        let our_required: BTreeSet<String> =
            ours.fields.iter().filter(|f| f.required).map(|f| f.name.to_string()).collect();
        if required != our_required {
            problems
                .push(format!("{name}: required differ: {:?}", required.symmetric_difference(&our_required)));
        }
        for field in &ours.fields {
            if let Some(theirs) = properties.get(&*field.name) {
                patch(name, field, theirs, &mut problems);
            }
        }
    }
    (count, problems)
}

fn patch(owner: &str, field: &Field, theirs: &Value, problems: &mut Vec<String>) {
    let mut words = Vec::new();
    for (set, word) in [
        (field.patch.merge, "merge"),
        (field.patch.retain_keys, "retainKeys"),
        (field.patch.replace, "replace"),
    ] {
        if set {
            words.push(word);
        }
    }
    let ours = (words.join(","), field.merge_key.as_deref().unwrap_or_default().to_owned());
    let text = |name: &str| theirs[name].as_str().unwrap_or_default().to_owned();
    let theirs = (text("x-kubernetes-patch-strategy"), text("x-kubernetes-patch-merge-key"));
    if ours != theirs {
        problems.push(format!("{owner}.{}: patch {ours:?}, upstream has {theirs:?}", field.name));
    }
}
