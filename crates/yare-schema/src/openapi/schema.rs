//! Definitions: one JSON schema for each type.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    Dialect,
    docs::Docs,
    operation::{PATCH_BODY, camel},
    pages::{VERSION_INFO, version_info},
};
use crate::{
    builtin::{Kind, builtin},
    encode,
    model::{Field, ListKind, Scalar, Shape, TypeId, TypeRef, Wire},
};

/// Groups of the tables whose kinds are files, logs and answers of machinery, and no objects of servers ...
const APART: [&str; 4] = ["apidiscovery.k8s.io", "apiserver.config.k8s.io", "audit.k8s.io", "meta.k8s.io"];

/// ... versions that upstream's servers know, though the tables do not any more ...
const KNOWN: [(&str, &str); 2] = [("apiextensions.k8s.io", "v1beta1"), ("apiregistration.k8s.io", "v1beta1")];

/// ... and groups that are unknown where documents of custom resources are made.
const UNKNOWN: [&str; 4] =
    ["admission.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "imagepolicy.k8s.io"];

/// Markers that say nothing new of a field, and are published all the same.
const MARKED: [(&str, &str, &str, &str); 2] = [
    (
        "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
        "allocatedResourceStatuses",
        "x-kubernetes-map-type",
        "granular",
    ),
    (
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec",
        "caBundle",
        "x-kubernetes-list-type",
        "atomic",
    ),
];

/// Types of whose fields one is set (KEP-1027), whatever their version: package, name, the field that says which one,
/// and those that it is about.
const UNIONS: [(&str, &str, &str, &[&str]); 8] = [
    ("io.k8s.api.core.", "AppArmorProfile", "type", &["localhostProfile"]),
    ("io.k8s.api.core.", "PodSchedulingGroup", "", &["podGroupName"]),
    ("io.k8s.api.core.", "SeccompProfile", "type", &["localhostProfile"]),
    ("io.k8s.api.flowcontrol.", "LimitResponse", "type", &["queuing"]),
    ("io.k8s.api.flowcontrol.", "PriorityLevelConfigurationSpec", "type", &["exempt", "limited"]),
    ("io.k8s.api.flowcontrol.", "Subject", "kind", &["group", "serviceAccount", "user"]),
    ("io.k8s.api.scheduling.", "PodGroupSchedulingPolicy", "", &["basic", "gang"]),
    ("io.k8s.api.scheduling.", "PodGroupTemplateReference", "", &["workload"]),
];

/// The group versions in which a document has the kinds that all of them have.
#[derive(Clone, Copy)]
pub(super) enum GroupVersions<'a> {
    /// Those that a server knows.
    All,
    /// Those that are known where documents of custom resources are made.
    OfCustom,
    /// The document's own one, and the first of all.
    Own(&'a str, &'a str),
}

impl GroupVersions<'_> {
    fn list(self) -> BTreeSet<(String, String)> {
        if let Self::Own(group, version) = self {
            return [("", "v1"), (group, version)].map(|(g, v)| (g.to_owned(), v.to_owned())).into();
        }
        let of_tables = builtin().kinds().iter().map(|kind| (kind.group, kind.version));
        let all = of_tables.filter(|(group, _)| *group != "*" && !APART.contains(group)).chain(KNOWN);
        let known = |group: &str| matches!(self, Self::All) || !UNKNOWN.contains(&group);
        all.filter(|(group, _)| known(group)).map(|(g, v)| (g.to_owned(), v.to_owned())).collect()
    }
}

/// Definitions of what is no kind, and in no table.
const NO_KINDS: [&str; 2] = [PATCH_BODY, VERSION_INFO];

/// Collects definitions as they are referred to.
pub(super) struct Definitions<'a> {
    pub(super) dialect: Dialect,
    pub(super) docs: &'a Docs,
    /// Whether enumerated strings list their values.
    enums: bool,
    /// What the kinds that every group version has list.
    group_versions: BTreeSet<(String, String)>,
    kinds: BTreeMap<TypeId, Vec<&'static Kind>>,
    todo: Vec<TypeId>,
    seen: BTreeSet<TypeId>,
    /// Which of those that no table has are referred to.
    apart: BTreeSet<&'static str>,
}

impl<'a> Definitions<'a> {
    pub(super) fn new(
        dialect: Dialect,
        docs: &'a Docs,
        enums: bool,
        group_versions: GroupVersions<'_>,
    ) -> Self {
        let mut kinds: BTreeMap<TypeId, Vec<&'static Kind>> = BTreeMap::new();
        for kind in builtin().kinds() {
            kinds.entry(kind.ty).or_default().push(kind);
        }
        let group_versions = group_versions.list();
        Self {
            dialect,
            docs,
            enums,
            group_versions,
            kinds,
            todo: Vec::new(),
            seen: BTreeSet::new(),
            apart: BTreeSet::new(),
        }
    }

    /// The next definition that was referred to: its name and schema.
    pub(super) fn next(&mut self) -> Option<(String, Value)> {
        if let Some(id) = self.todo.pop() {
            let ty = builtin().at(id);
            return Some((ty.ty().name.to_string(), self.definition(ty)));
        }
        let name = self.apart.pop_first()?;
        let mut schema = match name {
            VERSION_INFO => version_info(self.dialect, self.docs),
            _ => json!({"type": "object"}),
        };
        if let Some(doc) = self.docs.of(name) {
            schema["description"] = doc.into();
        }
        Some((name.to_owned(), schema))
    }

    /// A reference to the built-in definition `name`.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        match builtin().definition(name) {
            Some(ty) if self.seen.insert(ty.id) => self.todo.push(ty.id),
            Some(_) => {}
            None => self.apart.extend(NO_KINDS.iter().find(|apart| **apart == name)),
        }
        self.reference_to(name)
    }

    /// A reference to the definition `name` of somebody else's.
    pub(super) fn reference_to(&self, name: &str) -> Value {
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
        if let Some(union) = union_of(name) {
            out.insert("x-kubernetes-unions".into(), json!([union]));
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
        let mut doc = self.docs.field(&owner.ty().name, &field.name).unwrap_or_default();
        if self.enums && !ty.ty().enumeration.is_empty() {
            doc.push_str("\n\nPossible enum values:");
            ty.ty().enumeration.iter().for_each(|value| doc.push_str(&format!("\n - `\"{value}\"`")));
        }
        if !doc.is_empty() {
            out.insert("description".into(), doc.trim_start().into());
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
                    Shape::Scalar(s) if !field.omit_empty && plain(*s) && *s != Scalar::Bytes => {
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
        let of = (&*owner.ty().name, &*field.name);
        if of.1 == "items" && of.0.ends_with("List") {
            // Nobody owns the items of a list, so that upstream does not say how.
            out.remove("x-kubernetes-list-type");
        }
        for (.., word, value) in MARKED.iter().filter(|(definition, field, ..)| (*definition, *field) == of) {
            out.insert((*word).to_owned(), (*value).into());
        }
        unwrapped(out)
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
        unwrapped(out)
    }

    fn inline(&mut self, ty: TypeRef<'static>, out: &mut Map<String, Value>) {
        match ty.shape() {
            Shape::Scalar(scalar) => {
                self.scalar(*scalar, out);
                if self.enums && !ty.ty().enumeration.is_empty() {
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
                if ty.ty().wire != Wire::Items {
                    out.insert("x-kubernetes-list-type".into(), kind.into());
                }
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

/// The schema; `allOf` of one without siblings is the reference itself.
fn unwrapped(mut out: Map<String, Value>) -> Value {
    if out.len() == 1
        && let Some(Value::Array(all)) = out.get_mut("allOf")
        && let Some(reference) = all.pop()
    {
        return reference;
    }
    out.into()
}

fn union_of(definition: &str) -> Option<Value> {
    let (_, _, discriminator, fields) = UNIONS.iter().find(|(package, name, ..)| {
        definition.starts_with(package) && definition.rsplit('.').next() == Some(*name)
    })?;
    // Fields go by their names in Go.
    let fields: Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), camel(field, true).into())).collect();
    let mut out = json!({ "fields-to-discriminateBy": fields });
    if !discriminator.is_empty() {
        out["discriminator"] = (*discriminator).into();
    }
    Some(out)
}

fn list_doc(name: &str) -> Option<String> {
    let kind = name.rsplit('.').next()?.strip_suffix("List")?;
    Some(format!("{kind}List is a list of {kind} objects."))
}
