//! Definitions of custom resources: their schemas as they are published, with what every object has.

use serde_json::{Map, Value, json};

use super::{Dialect, Resource, schema::Definitions};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The definitions of a kind and of its list. `version`: the entry in `spec.versions`.
pub(super) fn definitions(
    definitions: &mut Definitions<'_>,
    resource: &Resource<'_>,
    version: &Value,
) -> (Value, Value) {
    let mut object = object(definitions, version.pointer("/schema/openAPIV3Schema"));
    let mut list = list(definitions, resource);
    let selectable: Vec<Value> = version
        .get("selectableFields")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|field| field.get("jsonPath")?.as_str())
        .map(|path| json!({ "fieldPath": path.strip_prefix('.').unwrap_or(path) }))
        .collect();
    for (out, kind) in [(&mut object, resource.kind), (&mut list, resource.list_kind)] {
        let gvk = json!([{"group": resource.group, "kind": kind, "version": resource.version}]);
        out.insert("x-kubernetes-group-version-kind".into(), gvk);
        if !selectable.is_empty() {
            out.insert("x-kubernetes-selectable-fields".into(), selectable.clone().into());
        }
    }
    (object.into(), list.into())
}

fn list(definitions: &mut Definitions<'_>, resource: &Resource<'_>) -> Map<String, Value> {
    let reference = definitions.reference_to(&resource.definition());
    let Resource { kind, list_kind, plural, .. } = resource;
    let mut out = Map::new();
    out.insert("description".into(), format!("{list_kind} is a list of {kind}").into());
    out.insert("type".into(), "object".into());
    out.insert("required".into(), json!(["items"]));
    add_type_meta(definitions, &mut out, "ListMeta", "io.k8s.List");
    let doc = format!(
        "List of {plural}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"
    );
    out["properties"]["items"] = json!({"type": "array", "description": doc, "items": reference});
    out
}

fn object(definitions: &mut Definitions<'_>, schema: Option<&Value>) -> Map<String, Value> {
    let v2 = definitions.dialect == Dialect::V2;
    let mut out = match schema {
        // Clients of v2 take listed properties for all there are, so that an open object lists none.
        Some(Value::Object(map)) if !(v2 && is_set(map, "x-kubernetes-preserve-unknown-fields")) => {
            let mut out = map.clone();
            let mut change: fn(&mut Map<String, Value>) = if v2 { simplify } else { unfold };
            each(&mut out, &mut change);
            add_object_meta(definitions, &mut out);
            each(&mut out, &mut |map| embedded(definitions, map));
            out
        }
        _ => Map::new(),
    };
    out.insert("type".into(), "object".into());
    out
}

fn is_set(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

/// Calls `change` with a schema, then with the schemas that it is made of then.
fn each(map: &mut Map<String, Value>, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    change(map);
    for word in ["items", "additionalProperties"] {
        if let Some(Value::Object(inner)) = map.get_mut(word) {
            each(inner, change);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for inner in properties.values_mut().filter_map(Value::as_object_mut) {
            each(inner, change);
        }
    }
}

/// Adds kind, apiVersion and metadata; the last one's type is `meta`, and its prose that of the definition `like`.
fn add_type_meta(definitions: &mut Definitions<'_>, schema: &mut Map<String, Value>, meta: &str, like: &str) {
    let mut metadata = definitions.reference(&format!("{META}.{meta}"));
    if definitions.dialect == Dialect::V3 {
        metadata = json!({ "allOf": [metadata] });
    }
    if let Some(doc) = definitions.docs.field(like, "metadata") {
        metadata["description"] = doc.into();
    }
    let text = |name: &str| json!({"type": "string", "description": definitions.docs.field("", name)});
    let properties = schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(properties) = properties {
        properties.insert("apiVersion".into(), text("apiVersion"));
        properties.insert("kind".into(), text("kind"));
        properties.insert("metadata".into(), metadata);
    }
}

fn add_object_meta(definitions: &mut Definitions<'_>, schema: &mut Map<String, Value>) {
    add_type_meta(definitions, schema, "ObjectMeta", "io.k8s.api.core.v1.ConfigMap");
}

/// Adds what every object has to a whole object within another (`x-kubernetes-embedded-resource`).
fn embedded(definitions: &mut Definitions<'_>, schema: &mut Map<String, Value>) {
    let open = is_set(schema, "x-kubernetes-preserve-unknown-fields") && definitions.dialect == Dialect::V2;
    if open || !is_set(schema, "x-kubernetes-embedded-resource") {
        return;
    }
    add_object_meta(definitions, schema);
    let required = schema.entry("required").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(required) = required {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
    }
}

/// Takes out what OpenAPI v2 has no words for, and what clients cannot cope with in it.
fn simplify(map: &mut Map<String, Value>) {
    let mut remove = |words: &[&str]| words.iter().for_each(|word| drop(map.remove(*word)));
    remove(&["oneOf", "anyOf", "allOf", "not", "default"]);
    if is_set(map, "nullable") {
        // What has no type lists nothing, either.
        ["nullable", "type", "items", "properties"].iter().for_each(|word| drop(map.remove(*word)));
    }
    let open = is_set(map, "x-kubernetes-preserve-unknown-fields");
    if open {
        map.remove("items");
        map.remove("properties");
    }
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    if (kind == "array" && !map.contains_key("items")) || (kind == "object" && open) {
        map.remove("type");
    }
    let may_be_null = |schema: &Value| schema.get("nullable") == Some(&Value::Bool(true));
    if map.get("additionalProperties").is_some_and(may_be_null) {
        map.remove("required");
    }
    let Some(Value::Object(properties)) = map.get("properties") else { return };
    let null: Vec<String> =
        properties.iter().filter(|(_, schema)| may_be_null(schema)).map(|(name, _)| name.clone()).collect();
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| !null.iter().any(|n| name == n));
        if required.is_empty() {
            map.remove("required");
        }
    }
}

/// Says in OpenAPI's own words what `x-kubernetes-int-or-string` means, where the schema does not.
fn unfold(map: &mut Map<String, Value>) {
    if !is_set(map, "x-kubernetes-int-or-string") {
        return;
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    let in_first = map.get("allOf").and_then(|all| all.get(0)) == Some(&json!({ "anyOf": either }));
    match map.get("anyOf") {
        Some(any) if *any == either => {}
        _ if in_first => {}
        None => {
            map.insert("anyOf".into(), either);
        }
        Some(_) => {
            let all = map.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(all) = all {
                all.insert(0, json!({ "anyOf": either }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openapi::{Source, docs::Docs, schema::GroupVersions};

    fn publish(dialect: Dialect, schema: Value) -> (Value, Value) {
        let docs = Docs::default();
        let version = json!({
            "name": "v1", "schema": {"openAPIV3Schema": schema},
            "selectableFields": [{"jsonPath": ".spec.color"}],
        });
        let resource = Resource {
            group: "example.com",
            version: "v1",
            kind: "Thing",
            list_kind: "ManyThings",
            plural: "things",
            namespaced: true,
            verbs: Vec::new(),
            subresources: Vec::new(),
            source: Source::Custom(&version),
            returns_deleted: false,
        };
        let mut all = Definitions::new(dialect, &docs, true, GroupVersions::OfCustom);
        definitions(&mut all, &resource, &version)
    }

    #[test]
    fn what_every_object_has() {
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"spec": {"type": "object"}}});
        // Nothing is said in v2 of what an open object may have; v3 has words for it.
        let bare = json!({
            "type": "object", "x-kubernetes-selectable-fields": [{"fieldPath": "spec.color"}],
            "x-kubernetes-group-version-kind": [{"group": "example.com", "kind": "Thing", "version": "v1"}],
        });
        assert_eq!(publish(Dialect::V2, Value::Null).0, bare);
        assert_eq!(publish(Dialect::V3, Value::Null).0, bare);
        assert_eq!(publish(Dialect::V2, open.clone()).0, bare);
        let (v3, list) = publish(Dialect::V3, open);
        assert_eq!(v3["x-kubernetes-preserve-unknown-fields"], true);
        let described = |field: &str| v3["properties"][field]["description"].as_str().unwrap_or_default();
        assert!(described("apiVersion").starts_with("APIVersion defines"));
        assert!(described("metadata").starts_with("Standard object's"));
        assert_eq!(list["description"], "ManyThings is a list of Thing");
        assert_eq!(
            list["properties"]["items"]["items"],
            json!({"$ref": "#/components/schemas/com.example.v1.Thing"})
        );
        assert_eq!(list["x-kubernetes-group-version-kind"][0]["kind"], "ManyThings");
        // An object within an object has the same three fields, and must name its kind.
        let embedding = json!({"type": "object", "properties": {"inner": {
            "type": "object", "x-kubernetes-embedded-resource": true,
            "properties": {"spec": {"type": "object"}}}}});
        let (v2, _) = publish(Dialect::V2, embedding);
        let inner = &v2["properties"]["inner"];
        assert_eq!(inner["required"], json!(["kind", "apiVersion"]));
        assert!(inner["properties"]["metadata"]["$ref"].is_string());
    }

    #[test]
    fn version_two_has_fewer_words() {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        for (schema, v2, v3) in [
            (
                json!({"type": "integer", "nullable": true, "default": 1, "minimum": 0}),
                json!({"minimum": 0}),
                json!({"type": "integer", "nullable": true, "default": 1, "minimum": 0}),
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!({"x-kubernetes-int-or-string": true}),
                json!({"x-kubernetes-int-or-string": true, "anyOf": either}),
            ),
            (
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"pattern": "^a"}, {"minimum": 1}]}),
                json!({"x-kubernetes-int-or-string": true}),
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"pattern": "^a"}, {"minimum": 1}],
                    "allOf": [{"anyOf": either}]}),
            ),
            (
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"a": {"type": "string"}}}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"a": {"type": "string"}}}),
            ),
            (
                json!({"type": "array", "items": {"type": "string"},
                    "x-kubernetes-preserve-unknown-fields": true}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
                json!({"type": "array", "items": {"type": "string"},
                    "x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"type": "object", "required": ["a", "b"], "properties": {
                    "a": {"type": "string", "nullable": true}, "b": {"type": "string"}}}),
                json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string"}}}),
                json!({"type": "object", "required": ["a", "b"], "properties": {
                    "a": {"type": "string", "nullable": true}, "b": {"type": "string"}}}),
            ),
            (
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}),
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}),
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}),
            ),
        ] {
            let whole = json!({"type": "object", "properties": {"it": schema}});
            assert_eq!(publish(Dialect::V2, whole.clone()).0["properties"]["it"], v2, "{schema}");
            assert_eq!(publish(Dialect::V3, whole).0["properties"]["it"], v3, "{schema}");
        }
    }
}
