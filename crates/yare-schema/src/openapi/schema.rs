//! Definitions: one JSON schema for each type.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Dialect, docs::Docs};
use crate::{
    builtin::{Kind, builtin},
    encode,
    model::{Field, ListKind, Scalar, Shape, TypeId, TypeRef, Wire},
};

/// Collects definitions as they are referred to.
pub(super) struct Definitions<'a> {
    dialect: Dialect,
    docs: &'a Docs,
    /// Group versions that a document is about; kinds that every group version has list them.
    group_versions: BTreeSet<(String, String)>,
    kinds: BTreeMap<TypeId, Vec<&'static Kind>>,
    todo: Vec<TypeId>,
    seen: BTreeSet<TypeId>,
}

impl<'a> Definitions<'a> {
    pub(super) fn new(dialect: Dialect, docs: &'a Docs, group_versions: BTreeSet<(String, String)>) -> Self {
        let mut kinds: BTreeMap<TypeId, Vec<&'static Kind>> = BTreeMap::new();
        for kind in builtin().kinds() {
            kinds.entry(kind.ty).or_default().push(kind);
        }
        Self { dialect, docs, group_versions, kinds, todo: Vec::new(), seen: BTreeSet::new() }
    }

    /// The next definition that was referred to: its name and schema.
    pub(super) fn next(&mut self) -> Option<(String, Value)> {
        let id = self.todo.pop()?;
        let ty = builtin().at(id);
        Some((ty.ty().name.to_string(), self.definition(ty)))
    }

    /// A reference to the built-in definition `name`.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if let Some(ty) = builtin().definition(name)
            && self.seen.insert(ty.id)
        {
            self.todo.push(ty.id);
        }
        json!({ "$ref": format!("{}{name}", self.dialect.prefix()) })
    }

    fn definition(&mut self, ty: TypeRef<'static>) -> Value {
        let name = &ty.ty().name;
        let mut out = Map::new();
        if let Some(doc) = self.docs.of(name).or_else(|| list_doc(name)) {
            out.insert("description".into(), doc.into());
        }
        match ty.shape() {
            Shape::Struct(s) => {
                out.insert("type".into(), "object".into());
                let mut properties = Map::new();
                let mut required = Vec::new();
                for field in &s.fields {
                    properties.insert(field.name.to_string(), self.field(ty, field));
                    if field.required {
                        required.push(field.name.to_string());
                    }
                }
                if !properties.is_empty() {
                    out.insert("properties".into(), properties.into());
                }
                if !required.is_empty() {
                    required.sort_unstable();
                    out.insert("required".into(), required.into());
                }
                if s.atomic {
                    out.insert("x-kubernetes-map-type".into(), "atomic".into());
                }
            }
            Shape::Any => {
                if ty.ty().wire == Wire::Raw && !name.ends_with(".JSON") {
                    out.insert("type".into(), "object".into());
                }
            }
            _ => self.inline(ty, &mut out),
        }
        let kinds = self.group_version_kinds(ty.id);
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".into(), kinds.into());
        }
        Value::Object(out)
    }

    fn group_version_kinds(&self, id: TypeId) -> Vec<Value> {
        let mut out = Vec::new();
        for kind in self.kinds.get(&id).into_iter().flatten() {
            if kind.group == "*" {
                for (group, version) in &self.group_versions {
                    out.push(json!({"group": group, "kind": kind.kind, "version": version}));
                }
            } else {
                out.push(json!({"group": kind.group, "kind": kind.kind, "version": kind.version}));
            }
        }
        out
    }

    fn field(&mut self, owner: TypeRef<'static>, field: &Field) -> Value {
        let ty = owner.to(&field.slot);
        let mut out = Map::new();
        if let Some(doc) = self.docs.field(&owner.ty().name, &field.name) {
            out.insert("description".into(), doc.into());
        }
        self.slot(ty, &mut out);
        if self.dialect == Dialect::V3 {
            if let Some(default) = &field.slot.default {
                out.insert("default".into(), (**default).clone());
            } else if !field.pointer && !field.omit_zero {
                match ty.shape() {
                    Shape::Struct(_) => {
                        out.insert("default".into(), json!({}));
                    }
                    Shape::Scalar(s) if !field.omit_empty && plain(*s) => {
                        out.insert("default".into(), encode::zero(ty));
                    }
                    _ => {}
                }
            }
        }
        if let Shape::Struct(s) = ty.shape() {
            // A field may see an atomic type as granular, or the other way round.
            if builtin().definition(&ty.ty().name).is_some_and(|d| d.id != ty.id) {
                let kind = if s.atomic { "atomic" } else { "granular" };
                out.insert("x-kubernetes-map-type".into(), kind.into());
            }
        }
        let patch = field.patch;
        let strategy = match (patch.merge, patch.retain_keys, patch.replace) {
            (true, true, _) => "merge,retainKeys",
            (true, false, _) => "merge",
            (false, true, _) => "retainKeys",
            (false, false, true) => "replace",
            (false, false, false) => "",
        };
        if !strategy.is_empty() {
            out.insert("x-kubernetes-patch-strategy".into(), strategy.into());
        }
        if let Some(key) = &field.merge_key {
            out.insert("x-kubernetes-patch-merge-key".into(), key.to_string().into());
        }
        Value::Object(out)
    }

    /// The schema of a value of the type in some place: a reference where the type has a definition.
    fn slot(&mut self, ty: TypeRef<'static>, out: &mut Map<String, Value>) {
        let name = &ty.ty().name;
        let referable = match ty.shape() {
            Shape::Struct(_) | Shape::Any => !name.is_empty(),
            Shape::Scalar(s) => !plain(*s),
            Shape::List(_) | Shape::Map(_) => false,
        };
        if !referable {
            return self.inline(ty, out);
        }
        let reference = self.reference(name);
        match self.dialect {
            // Beside `$ref` nothing counts in OpenAPI 3.0.
            Dialect::V3 => {
                out.insert("allOf".into(), json!([reference]));
            }
            Dialect::V2 => {
                if let Value::Object(reference) = reference {
                    out.extend(reference);
                }
            }
        }
    }

    fn item(&mut self, ty: TypeRef<'static>) -> Value {
        let mut out = Map::new();
        self.slot(ty, &mut out);
        if self.dialect == Dialect::V3 {
            match ty.shape() {
                Shape::Struct(_) => {
                    out.insert("default".into(), json!({}));
                }
                Shape::Scalar(s) if plain(*s) && *s != Scalar::Bytes => {
                    out.insert("default".into(), encode::zero(ty));
                }
                _ => {
                    // `allOf` of one without siblings is the reference itself.
                    if let Some(Value::Array(all)) = out.remove("allOf") {
                        return all.into_iter().next().unwrap_or_default();
                    }
                }
            }
        }
        Value::Object(out)
    }

    fn inline(&mut self, ty: TypeRef<'static>, out: &mut Map<String, Value>) {
        match ty.shape() {
            Shape::Scalar(scalar) => {
                self.scalar(*scalar, out);
                if !ty.ty().enumeration.is_empty() && self.dialect == Dialect::V3 {
                    let values: Vec<Value> =
                        ty.ty().enumeration.iter().map(|v| Value::from(v.to_string())).collect();
                    out.insert("enum".into(), values.into());
                }
            }
            Shape::List(l) => {
                out.insert("type".into(), "array".into());
                let items = self.item(ty.to(&l.item));
                out.insert("items".into(), items);
                let kind = match &l.kind {
                    ListKind::Atomic => "atomic",
                    ListKind::Set => "set",
                    ListKind::Map(keys) => {
                        let keys: Vec<Value> = keys.iter().map(|k| Value::from(k.to_string())).collect();
                        out.insert("x-kubernetes-list-map-keys".into(), keys.into());
                        "map"
                    }
                };
                out.insert("x-kubernetes-list-type".into(), kind.into());
            }
            Shape::Map(m) => {
                out.insert("type".into(), "object".into());
                let value = self.item(ty.to(&m.value));
                out.insert("additionalProperties".into(), value);
                if m.atomic {
                    out.insert("x-kubernetes-map-type".into(), "atomic".into());
                }
            }
            Shape::Struct(_) => {
                out.insert("type".into(), "object".into());
            }
            Shape::Any => {}
        }
    }

    fn scalar(&self, scalar: Scalar, out: &mut Map<String, Value>) {
        let (kind, format) = match scalar {
            Scalar::Bool => ("boolean", ""),
            Scalar::Int32 => ("integer", "int32"),
            Scalar::Int64 => ("integer", "int64"),
            Scalar::Float64 => ("number", "double"),
            Scalar::String | Scalar::Duration => ("string", ""),
            Scalar::Bytes => ("string", "byte"),
            Scalar::Time | Scalar::MicroTime => ("string", "date-time"),
            Scalar::Quantity if self.dialect == Dialect::V3 => {
                out.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
                return;
            }
            Scalar::IntOrString if self.dialect == Dialect::V3 => {
                out.insert("format".into(), "int-or-string".into());
                out.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
                return;
            }
            Scalar::Quantity => ("string", ""),
            Scalar::IntOrString => ("string", "int-or-string"),
        };
        out.insert("type".into(), kind.into());
        if !format.is_empty() {
            out.insert("format".into(), format.into());
        }
    }
}

/// Whether the scalar is written out in its place instead of being referred to.
fn plain(scalar: Scalar) -> bool {
    !matches!(
        scalar,
        Scalar::Time | Scalar::MicroTime | Scalar::Duration | Scalar::Quantity | Scalar::IntOrString
    )
}

fn list_doc(name: &str) -> Option<String> {
    let kind = name.rsplit('.').next()?.strip_suffix("List")?;
    Some(format!("{kind}List is a list of {kind} objects."))
}

/// The schema of a CustomResourceDefinition's kind, as it is published: with what every object has.
pub(super) fn custom(
    definitions: &mut Definitions<'_>,
    group: &str,
    version: &str,
    kind: &str,
    schema: Option<&Value>,
) -> Value {
    let v2 = definitions.dialect == Dialect::V2;
    let mut out = match schema {
        // Clients of v2 take listed properties for all there are, so that an open object lists none.
        Some(Value::Object(map)) if !(v2 && is_set(map, "x-kubernetes-preserve-unknown-fields")) => {
            let mut out = map.clone();
            if v2 {
                simplify(&mut out);
            }
            add_embedded(definitions, &mut out);
            add_type_meta(definitions, &mut out);
            out
        }
        _ => Map::new(),
    };
    out.insert("type".into(), "object".into());
    out.insert(
        "x-kubernetes-group-version-kind".into(),
        json!([{"group": group, "kind": kind, "version": version}]),
    );
    Value::Object(out)
}

fn is_set(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

/// Adds what every object has to a schema of objects.
fn add_type_meta(definitions: &mut Definitions<'_>, schema: &mut Map<String, Value>) {
    let mut meta = definitions.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    if definitions.dialect == Dialect::V3 {
        meta = json!({ "allOf": [meta] });
    }
    meta["description"] = "Standard object's metadata: name, labels and the like.".into();
    let text = |name: &str| json!({"type": "string", "description": definitions.docs.field("", name).unwrap_or_default()});
    let properties = schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(properties) = properties {
        properties.insert("apiVersion".into(), text("apiVersion"));
        properties.insert("kind".into(), text("kind"));
        properties.insert("metadata".into(), meta);
    }
}

/// Does the same for whole objects within a schema (`x-kubernetes-embedded-resource`).
fn add_embedded(definitions: &mut Definitions<'_>, schema: &mut Map<String, Value>) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for inner in properties.values_mut().filter_map(Value::as_object_mut) {
            add_embedded(definitions, inner);
        }
    }
    for word in ["items", "additionalProperties"] {
        if let Some(Value::Object(inner)) = schema.get_mut(word) {
            add_embedded(definitions, inner);
        }
    }
    let open = is_set(schema, "x-kubernetes-preserve-unknown-fields") && definitions.dialect == Dialect::V2;
    if open || !is_set(schema, "x-kubernetes-embedded-resource") {
        return;
    }
    add_type_meta(definitions, schema);
    let required = schema.entry("required").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(required) = required {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
    }
}

/// Takes out what OpenAPI v2 has no words for.
fn simplify(map: &mut Map<String, Value>) {
    for word in ["oneOf", "anyOf", "allOf", "not", "default", "x-kubernetes-validations"] {
        map.remove(word);
    }
    if map.remove("nullable") == Some(Value::Bool(true)) {
        for word in ["type", "items", "properties", "additionalProperties", "format"] {
            map.remove(word);
        }
        return;
    }
    if is_set(map, "x-kubernetes-int-or-string") {
        map.remove("type");
        map.remove("format");
    }
    if is_set(map, "x-kubernetes-preserve-unknown-fields") {
        map.remove("items");
        map.remove("properties");
        return;
    }
    for word in ["items", "additionalProperties"] {
        if let Some(Value::Object(inner)) = map.get_mut(word) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for value in properties.values_mut() {
            if let Value::Object(inner) = value {
                simplify(inner);
            }
        }
    }
}
