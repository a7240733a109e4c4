//! A small builder of types for this crate's tests.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

use crate::model::*;

/// Builds a [`Schema`] from a compact JSON notation.
///
/// A type is a string (`"string"`, `"int"`, `"bool"`, `"float"`, `"quantity"`, `"any"`, or the name of a
/// named type as `"#Name"`) or an object:
/// `{"struct": {field: type…}, "atomic": true}`, `{"map": type}`, `{"list": type, "set": true}`,
/// `{"list": type, "keys": ["name"]}`. A field's type may be an object with `"type"` and any of
/// `"default"`, `"mergeKey"`, `"merge"`, `"retainKeys"`, `"nullable"`, `"required"`.
pub(crate) fn schema(named: Value) -> (Arc<Schema>, HashMap<String, TypeId>) {
    let mut build = Builder { schema: Schema::default(), names: HashMap::new() };
    let named = named.as_object().expect("an object of named types").clone();
    for name in named.keys() {
        let id = build.push(name, Shape::Any);
        build.names.insert(name.clone(), id);
    }
    for (name, ty) in &named {
        let shape = build.shape(ty);
        let id = build.names[name];
        build.schema.types[id.0 as usize].shape = shape;
    }
    (Arc::new(build.schema), build.names)
}

struct Builder {
    schema: Schema,
    names: HashMap<String, TypeId>,
}

impl Builder {
    fn push(&mut self, name: &str, shape: Shape) -> TypeId {
        self.schema.push(Type::new(name, shape))
    }

    fn slot(&mut self, ty: &Value) -> Slot {
        let flag = |name: &str| ty.get(name).and_then(Value::as_bool).unwrap_or(false);
        let inner = ty.get("type").unwrap_or(ty);
        let id = match inner.as_str().and_then(|s| s.strip_prefix('#')) {
            Some(name) => self.names[name],
            None => {
                let shape = self.shape(inner);
                self.push("", shape)
            }
        };
        Slot { ty: id, default: ty.get("default").cloned().map(Arc::new), nullable: flag("nullable") }
    }

    fn shape(&mut self, ty: &Value) -> Shape {
        let flag = |name: &str| ty.get(name).and_then(Value::as_bool).unwrap_or(false);
        match ty {
            Value::String(name) => match name.as_str() {
                "string" => Shape::Scalar(Scalar::String),
                "int" => Shape::Scalar(Scalar::Int32),
                "bool" => Shape::Scalar(Scalar::Bool),
                "float" => Shape::Scalar(Scalar::Float64),
                "quantity" => Shape::Scalar(Scalar::Quantity),
                "any" => Shape::Any,
                other => panic!("unknown type {other}"),
            },
            _ if ty.get("struct").is_some() => {
                let fields = ty["struct"]
                    .as_object()
                    .expect("fields")
                    .iter()
                    .map(|(name, ty)| {
                        let text = |key: &str| ty.get(key).and_then(Value::as_str).map(Into::into);
                        let flag = |key: &str| ty.get(key).and_then(Value::as_bool).unwrap_or(false);
                        let mut field = Field::new(name.as_str(), self.slot(ty));
                        field.required = flag("required");
                        field.patch = PatchStrategy {
                            merge: flag("merge"),
                            retain_keys: flag("retainKeys"),
                            replace: flag("replace"),
                        };
                        field.merge_key = text("mergeKey");
                        field
                    })
                    .collect();
                let additional = if flag("preserve") { Additional::Preserve } else { Additional::Prune };
                let embedded = flag("embedded");
                Shape::Struct(
                    Struct { fields, atomic: flag("atomic"), additional, embedded, ..Default::default() }
                        .index(),
                )
            }
            _ if ty.get("map").is_some() => {
                let value = self.slot(&ty["map"]);
                Shape::Map(Map { value, atomic: flag("atomic") })
            }
            _ if ty.get("list").is_some() => {
                let item = self.slot(&ty["list"]);
                let kind = match ty.get("keys").and_then(Value::as_array) {
                    Some(keys) => {
                        ListKind::Map(keys.iter().map(|k| k.as_str().expect("key").into()).collect())
                    }
                    None if flag("set") => ListKind::Set,
                    None => ListKind::Atomic,
                };
                Shape::List(List { item, kind })
            }
            other => panic!("unknown type {other}"),
        }
    }
}

/// Types much like a pod's.
pub(crate) fn pod_like() -> (Arc<Schema>, TypeId) {
    let (schema, names) = schema(serde_json::json!({
        "Pod": {"struct": {
            "apiVersion": "string", "kind": "string",
            "metadata": "#ObjectMeta",
            "spec": "#PodSpec",
            "status": {"struct": {"phase": "string", "conditions": {"type": {"list": {"struct": {
                "type": "string", "status": "string"}}, "keys": ["type"]}, "merge": true, "mergeKey": "type"}}},
        }},
        "ObjectMeta": {"struct": {
            "name": "string", "namespace": "string", "uid": "string", "resourceVersion": "string",
            "generation": "int", "creationTimestamp": "string", "managedFields": {"list": "any"},
            "labels": {"map": "string"}, "annotations": {"map": "string"},
            "finalizers": {"type": {"list": "string", "set": true}, "merge": true},
            "ownerReferences": {"type": {"list": {"struct": {"uid": "string", "name": "string"}, "atomic": true},
                "keys": ["uid"]}, "merge": true, "mergeKey": "uid"},
        }},
        "PodSpec": {"struct": {
            "replicas": "int",
            "containers": {"type": {"list": "#Container", "keys": ["name"]}, "merge": true, "mergeKey": "name"},
            "volumes": {"type": {"list": "#Volume", "keys": ["name"]}, "merge": true, "mergeKey": "name", "retainKeys": true},
            "strategy": {"type": {"struct": {"type": "string", "rollingUpdate": {"struct": {"maxSurge": "int"}}}}, "retainKeys": true},
            "selector": {"struct": {"matchLabels": {"map": "string"}}, "atomic": true},
            "nodeSelector": {"map": "string", "atomic": true},
            "tolerations": {"list": {"struct": {"key": "string"}}},
        }},
        "Container": {"struct": {
            "name": "string", "image": "string",
            "command": {"list": "string"},
            "env": {"type": {"list": {"struct": {"name": "string", "value": "string"}}, "keys": ["name"]},
                "merge": true, "mergeKey": "name"},
            "ports": {"type": {"list": {"struct": {"containerPort": "int",
                "protocol": {"type": "string", "default": "TCP"}, "name": "string"}},
                "keys": ["containerPort", "protocol"]}, "merge": true, "mergeKey": "containerPort"},
            "resources": {"struct": {"limits": {"map": "quantity"}}},
        }},
        "Volume": {"struct": {"name": "string", "emptyDir": {"struct": {"medium": "string"}}, "hostPath": {"struct": {"path": "string"}}}},
    }));
    let id = names["Pod"];
    (schema, id)
}
