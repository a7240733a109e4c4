//! Declarations from OpenAPI v3 schemas, with the sizes that upstream derives from them.

use serde_json::Value as Json;

use crate::{
    decl::{Decl, DeclKind, Field, ListKind, MAX_REQUEST_SIZE_BYTES, ObjectDecl},
    escape::escape,
};

/// How deep a schema is followed.
const MAX_DEPTH: usize = 200;

/// The declaration of a structural schema given as JSON; `None` when it is not exposed to expressions
/// (no type, or items that are not exposed). Objects are called `object`: see [`Decl::named`].
///
/// `resource_root`: `apiVersion`, `kind`, `metadata.name` and `metadata.generateName` are there whatever the
/// schema says.
pub fn decl(schema: &Json, resource_root: bool) -> Option<Decl> {
    at_depth(schema, resource_root, 0)
}

fn flag(schema: &Json, name: &str) -> bool {
    schema.get(name).and_then(Json::as_bool).unwrap_or(false)
}

fn number(schema: &Json, name: &str) -> Option<u64> {
    schema.get(name)?.as_i64().map(|value| value.max(0) as u64)
}

fn embedded(schema: &Json) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
}

fn at_depth(schema: &Json, root: bool, depth: usize) -> Option<Decl> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut decl = of_type(schema, root, depth)?;
    decl.nullable = flag(schema, "nullable");
    Some(decl)
}

fn of_type(schema: &Json, root: bool, depth: usize) -> Option<Decl> {
    if flag(schema, "x-kubernetes-int-or-string") {
        let decl = Decl::int_or_string();
        return Some(match number(schema, "maxLength") {
            Some(max) => decl.max_elements(max.saturating_mul(4)),
            None => decl,
        });
    }
    match schema.get("type").and_then(Json::as_str) {
        Some("array") => {
            let items = schema.get("items")?;
            let list = Decl::list(at_depth(items, embedded(items), depth + 1)?);
            let list = match number(schema, "maxItems") {
                Some(max) => list.max_elements(max),
                None => list,
            };
            Some(list.list_kind(list_kind(schema)))
        }
        Some("object") => {
            if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
                let map = Decl::map(at_depth(values, embedded(values), depth + 1)?);
                return Some(match number(schema, "maxProperties") {
                    Some(max) => map.max_elements(max),
                    None => map,
                });
            }
            Some(object(schema, root || embedded(schema), depth))
        }
        Some("string") => Some(string(schema)),
        Some("boolean") => Some(Decl::bool()),
        Some("number") => Some(Decl::double()),
        Some("integer") => Some(Decl::int()),
        _ => None,
    }
}

fn list_kind(schema: &Json) -> ListKind {
    match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
            ListKind::Map(keys.into_iter().flatten().filter_map(Json::as_str).map(Into::into).collect())
        }
        _ => ListKind::Atomic,
    }
}

fn string(schema: &Json) -> Decl {
    let max_length = number(schema, "maxLength");
    match schema.get("format").and_then(Json::as_str) {
        Some("byte") => match max_length {
            Some(max) => Decl::bytes().max_elements(max),
            None => Decl::bytes(),
        },
        Some("duration") => Decl::duration(),
        Some("date") => Decl::date(),
        Some("date-time") => Decl::date_time(),
        _ => {
            // Lengths are told in characters, and a character takes up to four bytes.
            if let Some(max) = max_length {
                return Decl::string().max_elements(max.saturating_mul(4));
            }
            match schema.get("enum").and_then(Json::as_array) {
                Some(values) if !values.is_empty() => {
                    let longest = values.iter().filter_map(Json::as_str).map(str::len).max().unwrap_or(0);
                    Decl::string().max_elements(longest as u64)
                }
                _ => Decl::string().max_elements(MAX_REQUEST_SIZE_BYTES - 2),
            }
        }
    }
}

fn object(schema: &Json, root: bool, depth: usize) -> Decl {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
        .collect();
    let mut decl = ObjectDecl { name: "object".into(), ..ObjectDecl::default() };
    let mut min = 2;
    let properties = schema.get("properties").and_then(Json::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let Some(field) = at_depth(property, embedded(property), depth + 1) else { continue };
        let required = required.contains(&name.as_str());
        // What has a default is filled in by the server.
        if required && property.get("default").is_none_or(Json::is_null) {
            min += name.len() as u64 + field.min_serialized_size + 4;
        }
        if let Some(escaped) = escape(name) {
            decl.fields.insert(escaped.into(), Field { decl: field, required });
        }
    }
    if root {
        complete_root(&mut decl);
    }
    Decl { kind: DeclKind::Object(decl.into()), nullable: false, max_elements: 0, min_serialized_size: min }
}

/// If any of what every resource has is missing, all of it is put in anew.
fn complete_root(decl: &mut ObjectDecl) {
    let is_string = |decl: Option<&Field>| decl.is_some_and(|field| field.decl.kind == DeclKind::String);
    let metadata_complete = match decl.fields.get("metadata").map(|field| &field.decl.kind) {
        Some(DeclKind::Object(metadata)) => {
            is_string(metadata.fields.get("name")) && is_string(metadata.fields.get("generateName"))
        }
        _ => false,
    };
    if metadata_complete && is_string(decl.fields.get("kind")) && is_string(decl.fields.get("apiVersion")) {
        return;
    }
    let text = || Field::optional(Decl::string());
    decl.fields.insert("kind".into(), text());
    decl.fields.insert("apiVersion".into(), text());
    let metadata = Decl::object("object", [("name", text()), ("generateName", text())]);
    decl.fields.insert("metadata".into(), Field::optional(metadata));
}
