//! OpenAPI of other servers beside this one's: the part about one version cut out of a v2 document, put into
//! another without two things of one name, and turned into v3 where a server has only v2.
//!
//! What comes in was written by somebody else: whatever its shape, nothing here fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Map, Value, json};

const DEFINITIONS: &str = "#/definitions/";
const PARAMETERS: &str = "#/parameters/";
const GROUP_VERSION_KIND: &str = "x-kubernetes-group-version-kind";
/// References to parameters are written out; one that refers to itself ends here.
const MAX_DEPTH: usize = 64;

/// Calls `each` with every reference.
fn references(value: &Value, depth: usize, each: &mut dyn FnMut(&str)) {
    if depth > MAX_DEPTH {
        return;
    }
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                each(target);
            }
            map.values().for_each(|v| references(v, depth + 1, each));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, depth + 1, each)),
        _ => {}
    }
}

/// Gives every reference another target where `rename` has one.
fn rename_references(value: &mut Value, depth: usize, rename: &dyn Fn(&str) -> Option<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref")
                && let Some(new) = rename(target)
            {
                *target = new;
            }
            map.values_mut().for_each(|v| rename_references(v, depth + 1, rename));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename_references(v, depth + 1, rename)),
        _ => {}
    }
}

/// Writes shared parameters out where they are used.
fn inline_parameters(item: &mut Value, shared: &Value) {
    let inline = |list: Option<&mut Value>| {
        for parameter in list.and_then(Value::as_array_mut).into_iter().flatten() {
            let name = parameter.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(PARAMETERS));
            if let Some(found) = name.and_then(|n| shared.get(n)) {
                *parameter = found.clone();
            }
        }
    };
    inline(item.get_mut("parameters"));
    for operation in item.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        inline(operation.get_mut("parameters"));
    }
}

/// The part of a v2 document that is about paths with this prefix: they, and the definitions that they need.
pub fn about(mut document: Value, prefix: &str) -> Value {
    let take = |document: &mut Value, name: &str| match document.get_mut(name).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let shared = Value::Object(take(&mut document, "parameters"));
    let mut paths = take(&mut document, "paths");
    let definitions = take(&mut document, "definitions");
    paths.retain(|path, _| path.starts_with(prefix));
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut queue: Vec<String> = Vec::new();
    let name = |target: &str| target.strip_prefix(DEFINITIONS).map(str::to_owned);
    for item in paths.values_mut() {
        inline_parameters(item, &shared);
        // What an operation inherits from the document, it says for itself in another one.
        for operation in item.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
            for inherited in ["consumes", "produces"] {
                if operation.get("responses").is_some()
                    && operation.get(inherited).is_none()
                    && let Some(all) = document.get(inherited)
                {
                    operation[inherited] = all.clone();
                }
            }
        }
        references(item, 0, &mut |target| queue.extend(name(target)));
    }
    while let Some(next) = queue.pop() {
        if let Some(definition) = definitions.get(&next)
            && wanted.insert(next)
        {
            references(definition, 0, &mut |target| queue.extend(name(target)));
        }
    }
    let definitions: Map<String, Value> =
        definitions.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
    json!({ "paths": paths, "definitions": definitions })
}

/// What other documents add to one.
#[derive(Default)]
pub(super) struct Additions {
    pub(super) paths: BTreeMap<String, Value>,
    pub(super) definitions: BTreeMap<String, Value>,
}

/// What `others` (each as [`about`] made it) add to a document whose paths and definitions are looked up by
/// `path` and `definition`. A path that is there stays as it is. A definition of the same name is the same, but
/// for the kinds that it stands for, or gets another name: `…_v2`.
pub(super) fn additions(
    others: &[Arc<Value>],
    path: impl Fn(&str) -> bool,
    definition: impl Fn(&str) -> Option<Value>,
) -> Additions {
    let mut out = Additions::default();
    for other in others {
        let mut renames: BTreeMap<&str, String> = BTreeMap::new();
        let definitions = other.get("definitions").and_then(Value::as_object);
        for (name, new) in definitions.into_iter().flatten() {
            let have = |name: &str| out.definitions.get(name).cloned().or_else(|| definition(name));
            let Some(existing) = have(name) else { continue };
            if same_but_kinds(&existing, new) {
                continue;
            }
            // Another server may have brought the same already, under the name it got then.
            let mut at = 2;
            let mut candidate = format!("{name}_v{at}");
            while have(&candidate).is_some_and(|e| !same_but_kinds(&e, new))
                || definitions.is_some_and(|d| d.contains_key(&candidate))
            {
                at += 1;
                candidate = format!("{name}_v{at}");
            }
            renames.insert(name, candidate);
        }
        let rename = |target: &str| {
            let name = target.strip_prefix(DEFINITIONS)?;
            Some(format!("{DEFINITIONS}{}", renames.get(name)?))
        };
        for (name, new) in definitions.into_iter().flatten() {
            let name = renames.get(name.as_str()).map_or(name.as_str(), String::as_str);
            let mut new = new.clone();
            rename_references(&mut new, 0, &rename);
            let existing = out.definitions.get(name).cloned().or_else(|| definition(name));
            match existing {
                Some(existing) => {
                    if let Some(merged) = merge_kinds(existing, &new) {
                        out.definitions.insert(name.to_owned(), merged);
                    }
                }
                None => {
                    out.definitions.insert(name.to_owned(), new);
                }
            }
        }
        for (at, item) in other.get("paths").and_then(Value::as_object).into_iter().flatten() {
            if !path(at) && !out.paths.contains_key(at) {
                let mut item = item.clone();
                rename_references(&mut item, 0, &rename);
                out.paths.insert(at.clone(), item);
            }
        }
    }
    out
}

fn same_but_kinds(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let rest = |m: &Map<String, Value>| m.keys().filter(|k| *k != GROUP_VERSION_KIND).count();
    rest(a) == rest(b) && a.iter().filter(|(k, _)| *k != GROUP_VERSION_KIND).all(|(k, v)| b.get(k) == Some(v))
}

/// The definition with the kinds of both, where that is more than it has.
fn merge_kinds(mut have: Value, new: &Value) -> Option<Value> {
    let more = new.get(GROUP_VERSION_KIND)?.as_array()?;
    let mut all = have.get(GROUP_VERSION_KIND).and_then(Value::as_array).cloned().unwrap_or_default();
    let before = all.len();
    for kind in more {
        if !all.contains(kind) {
            all.push(kind.clone());
        }
    }
    if all.len() == before {
        return None;
    }
    let key =
        |kind: &Value| ["group", "version", "kind"].map(|f| kind[f].as_str().unwrap_or_default().to_owned());
    all.sort_by_key(key);
    have.as_object_mut()?.insert(GROUP_VERSION_KIND.into(), all.into());
    Some(have)
}

/// A v3 document made of a part of a v2 document (as [`about`] makes it).
pub fn to_v3(document: &Value) -> Value {
    let empty = Map::new();
    let map = |name: &str| document.get(name).and_then(Value::as_object).unwrap_or(&empty);
    let paths: Map<String, Value> =
        map("paths").iter().map(|(path, item)| (path.clone(), path_item(item))).collect();
    let mut out = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "unversioned" },
        "paths": paths,
        "components": { "schemas": map("definitions") },
    });
    rename_references(&mut out, 0, &|target| {
        target.strip_prefix(DEFINITIONS).map(|name| format!("#/components/schemas/{name}"))
    });
    out
}

fn path_item(item: &Value) -> Value {
    let mut out = Map::new();
    for (name, value) in item.as_object().into_iter().flatten() {
        let value = match name.as_str() {
            "parameters" => parameters(value).0.into(),
            _ if value.get("responses").is_some() => operation(value),
            _ => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    out.into()
}

/// Those that are not bodies, and the body.
fn parameters(list: &Value) -> (Vec<Value>, Option<&Value>) {
    let mut out = Vec::new();
    let mut body = None;
    for parameter in list.as_array().into_iter().flatten() {
        if parameter.get("in").and_then(Value::as_str) == Some("body") {
            body = Some(parameter);
            continue;
        }
        let (mut new, mut schema) = (Map::new(), Map::new());
        for (name, value) in parameter.as_object().into_iter().flatten() {
            let about =
                matches!(name.as_str(), "name" | "in" | "description" | "required" | "allowEmptyValue");
            let target = if about || name.starts_with("x-") { &mut new } else { &mut schema };
            target.insert(name.clone(), value.clone());
        }
        new.insert("schema".into(), schema.into());
        out.push(new.into());
    }
    (out, body)
}

fn operation(operation: &Value) -> Value {
    let content = |schema: &Value, media: &str| -> Map<String, Value> {
        let types = operation.get(media).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let types: Vec<&str> = match types {
            [] => vec!["application/json"],
            some => some.iter().filter_map(Value::as_str).collect(),
        };
        types.into_iter().map(|t| (t.to_owned(), json!({ "schema": schema }))).collect()
    };
    let mut out = Map::new();
    for (name, value) in operation.as_object().into_iter().flatten() {
        match name.as_str() {
            "consumes" | "produces" | "schemes" => {}
            "parameters" => {
                let (list, body) = parameters(value);
                if !list.is_empty() {
                    out.insert("parameters".into(), list.into());
                }
                if let Some(body) = body {
                    let mut new = Map::new();
                    for field in ["description", "required"] {
                        new.extend(body.get(field).map(|v| (field.to_owned(), v.clone())));
                    }
                    let content = content(body.get("schema").unwrap_or(&Value::Null), "consumes");
                    new.insert("content".into(), content.into());
                    out.insert("requestBody".into(), new.into());
                }
            }
            "responses" => {
                let mut responses = Map::new();
                for (code, response) in value.as_object().into_iter().flatten() {
                    let mut new = Map::new();
                    for (name, value) in response.as_object().into_iter().flatten() {
                        match name.as_str() {
                            "schema" => new.insert("content".into(), content(value, "produces").into()),
                            _ => new.insert(name.clone(), value.clone()),
                        };
                    }
                    responses.insert(code.clone(), new.into());
                }
                out.insert("responses".into(), responses.into());
            }
            _ => {
                out.insert(name.clone(), value.clone());
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({
            "swagger": "2.0", "produces": ["application/json"],
            "parameters": {"pretty-x": {"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}},
            "paths": {
                "/apis/g/v1/things": {
                    "parameters": [{"$ref": "#/parameters/pretty-x"}],
                    "post": {
                        "operationId": "create",
                        "consumes": ["application/json", "application/yaml"],
                        "parameters": [{"in": "body", "name": "body", "required": true,
                                        "schema": {"$ref": "#/definitions/Thing"}}],
                        "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}},
                    },
                },
                "/apis/other/v1/": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Other"}}}}},
            },
            "definitions": {
                "Thing": {"properties": {"meta": {"$ref": "#/definitions/Meta"}}},
                "Meta": {"type": "object", GROUP_VERSION_KIND: [{"group": "g", "version": "v1", "kind": "Meta"}]},
                "Other": {"type": "string"},
            },
        })
    }

    #[test]
    fn a_part() {
        let part = about(document(), "/apis/g/v1/");
        let names = |of: &str| part[of].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names("paths"), ["/apis/g/v1/things"]);
        assert_eq!(names("definitions"), ["Meta", "Thing"]);
        let item = &part["paths"]["/apis/g/v1/things"];
        assert_eq!(item["parameters"][0]["name"], "pretty");
        assert_eq!(item["post"]["produces"], json!(["application/json"]));
        for odd in [json!(null), json!({"paths": 7, "definitions": []}), json!({"paths": {"/apis/g/v1/": 7}})]
        {
            about(odd, "/apis/g/v1/");
        }
    }

    #[test]
    fn names_that_are_taken() {
        let part = Arc::new(about(document(), "/apis/g/v1/"));
        let ours = |name: &str| match name {
            "Meta" => Some(
                json!({"type": "object", GROUP_VERSION_KIND: [{"group": "", "version": "v1", "kind": "Meta"}]}),
            ),
            "Thing" => Some(json!({"type": "integer"})),
            _ => None,
        };
        let added = additions(&[part.clone(), part.clone()], |_| false, ours);
        // The same kind in two groups, and another thing of the same name: once, though two servers have it.
        assert_eq!(added.definitions.keys().collect::<Vec<_>>(), ["Meta", "Thing_v2"]);
        assert_eq!(added.definitions["Meta"][GROUP_VERSION_KIND].as_array().unwrap().len(), 2);
        let schema = &added.paths["/apis/g/v1/things"]["post"]["responses"]["200"]["schema"];
        assert_eq!(schema["$ref"], "#/definitions/Thing_v2");
        assert!(additions(&[part], |_| true, ours).paths.is_empty());
    }

    #[test]
    fn version_three() {
        let v3 = to_v3(&about(document(), "/apis/g/v1/"));
        let item = &v3["paths"]["/apis/g/v1/things"];
        assert_eq!(
            item["parameters"][0],
            json!({"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": true}})
        );
        let body = &item["post"]["requestBody"];
        assert_eq!(body["required"], true);
        assert_eq!(body["content"]["application/yaml"]["schema"]["$ref"], "#/components/schemas/Thing");
        assert!(item["post"].get("consumes").is_none());
        let answer = &item["post"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(answer["$ref"], "#/components/schemas/Thing");
        assert_eq!(
            v3["components"]["schemas"]["Thing"]["properties"]["meta"]["$ref"],
            "#/components/schemas/Meta"
        );
    }
}
