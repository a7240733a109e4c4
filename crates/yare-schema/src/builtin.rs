//! The built-in kinds: the tables in `tables/` read into one [`Schema`], once, when first asked for.
//!
//! A table is a text file, one per API group, written by `cargo xtask schema`. Lines:
//!
//! ```text
//! package REF OPENAPI [GROUP/VERSION]   what follows belongs to this package; others call it REF
//! kind NAME [list] [as=GROUP/VERSION] [introduced=1.N] [deprecated=1.N] [removed=1.N] [replacement=G/V/K]
//!                                       a registered kind; list: NAMEList exists and is an ordinary list;
//!                                       as=*: registered in every group version
//! struct NAME [atomic]                  followed by its fields:
//!   TypeMeta                            kind and apiVersion
//!   FIELD[!|?|??] TYPE PROTO [merge] [retainKeys] [replace] [key=K] [granular|atomic] [default=JSON]
//! string NAME [VALUE…]                  a string type; the values, where it is an enumeration
//! alias NAME TYPE | items NAME TYPE     a named list or map; items: a protobuf message of its own
//! schemaOrBool NAME (also schemaOrArray, schemaOrStrings)
//! ```
//!
//! `!` required, `?` omitempty, `??` omitzero. PROTO: field number, `2.1` where Go inlines in JSON what
//! protobuf nests, `-` where protobuf has no such field. TYPE: a scalar, a name, `REF.NAME`, `*TYPE`,
//! `[]TYPE`, `map[TYPE]`; lists and maps may end in `{atomic}`, `{set}` or `{key,key}`.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use crate::model::{
    Field, List, ListKind, Map, PatchStrategy, Scalar, Schema, Shape, Slot, Struct, Type, TypeId, TypeRef, Wire,
};

/// The tables, by group.
pub(crate) const TABLES: &[(&str, &str)] = &[
    ("meta", include_str!("../tables/meta.txt")),
    ("admission", include_str!("../tables/admission.txt")),
    ("admissionregistration", include_str!("../tables/admissionregistration.txt")),
    ("apidiscovery", include_str!("../tables/apidiscovery.txt")),
    ("apiextensions", include_str!("../tables/apiextensions.txt")),
    ("apiregistration", include_str!("../tables/apiregistration.txt")),
    ("apiserverinternal", include_str!("../tables/apiserverinternal.txt")),
    ("apps", include_str!("../tables/apps.txt")),
    ("audit", include_str!("../tables/audit.txt")),
    ("authentication", include_str!("../tables/authentication.txt")),
    ("authorization", include_str!("../tables/authorization.txt")),
    ("autoscaling", include_str!("../tables/autoscaling.txt")),
    ("batch", include_str!("../tables/batch.txt")),
    ("certificates", include_str!("../tables/certificates.txt")),
    ("coordination", include_str!("../tables/coordination.txt")),
    ("core", include_str!("../tables/core.txt")),
    ("discovery", include_str!("../tables/discovery.txt")),
    ("events", include_str!("../tables/events.txt")),
    ("extensions", include_str!("../tables/extensions.txt")),
    ("flowcontrol", include_str!("../tables/flowcontrol.txt")),
    ("imagepolicy", include_str!("../tables/imagepolicy.txt")),
    ("networking", include_str!("../tables/networking.txt")),
    ("node", include_str!("../tables/node.txt")),
    ("policy", include_str!("../tables/policy.txt")),
    ("rbac", include_str!("../tables/rbac.txt")),
    ("resource", include_str!("../tables/resource.txt")),
    ("scheduling", include_str!("../tables/scheduling.txt")),
    ("storage", include_str!("../tables/storage.txt")),
    ("storagemigration", include_str!("../tables/storagemigration.txt")),
];

/// A release, such as (1, 36).
pub type Release = (u16, u16);

/// How settled a version is, read off its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stability {
    /// `v1alpha1`
    Alpha,
    /// `v1beta1`
    Beta,
    /// `v1`
    Stable,
}

/// A registered kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// API group, empty for core. `*` (with version `*`): every group version has this kind.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind; ends in `List` for lists.
    pub kind: &'static str,
    /// Its type in the built-in schema.
    pub ty: TypeId,
    /// The type of the items, for ordinary lists.
    pub item: Option<TypeId>,
    /// First release with it.
    pub introduced: Option<Release>,
    /// First release in which its use draws a warning.
    pub deprecated: Option<Release>,
    /// First release without it.
    pub removed: Option<Release>,
    /// Group, version and kind to use instead.
    pub replacement: Option<(&'static str, &'static str, &'static str)>,
}

impl Kind {
    /// How settled the version is.
    pub fn stability(&self) -> Stability {
        if self.version.contains("alpha") {
            Stability::Alpha
        } else if self.version.contains("beta") {
            Stability::Beta
        } else {
            Stability::Stable
        }
    }
}

/// The built-in kinds and their shapes.
#[derive(Debug)]
pub struct Builtin {
    schema: Schema,
    kinds: Vec<Kind>,
    by_name: HashMap<(&'static str, &'static str, &'static str), u32>,
    definitions: HashMap<Box<str>, TypeId>,
}

static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| {
    let mut reader = Reader::default();
    match reader.read(TABLES.iter().map(|(_, text)| *text)) {
        Ok(()) => reader.finish(),
        // The tables are part of the program and a test reads them all.
        Err(message) => unreachable!("schema tables: {message}"),
    }
});

/// The built-in kinds, read from the tables at the first call.
pub fn builtin() -> &'static Builtin {
    &BUILTIN
}

impl Builtin {
    /// The arena that all built-in types live in.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// A walkable reference to a type of this schema.
    pub fn at(&self, id: TypeId) -> TypeRef<'_> {
        self.schema.at(id)
    }

    /// The shape of a kind; lists (`PodList`) and the kinds that every group version has
    /// (`DeleteOptions`, `WatchEvent`) included.
    pub fn lookup(&self, group: &str, version: &str, kind: &str) -> Option<TypeRef<'_>> {
        self.kind(group, version, kind).map(|k| self.schema.at(k.ty))
    }

    /// What is known of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        let by_name: &HashMap<(&str, &str, &str), u32> = &self.by_name;
        let at = by_name.get(&(group, version, kind)).or_else(|| by_name.get(&("*", "*", kind)))?;
        Some(&self.kinds[*at as usize])
    }

    /// Every registered kind, group by group.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The type with this OpenAPI definition name, for example `io.k8s.api.core.v1.PodSpec`.
    pub fn definition(&self, name: &str) -> Option<TypeRef<'_>> {
        self.definitions.get(name).map(|&id| self.schema.at(id))
    }

    /// `ObjectMeta`, which CustomResourceDefinitions share.
    pub fn object_meta(&self) -> TypeRef<'_> {
        self.definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("meta.txt declares ObjectMeta")
    }

    /// `ListMeta`, which lists of CustomResourceDefinitions share.
    pub fn list_meta(&self) -> TypeRef<'_> {
        self.definition("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").expect("meta.txt declares ListMeta")
    }
}

/// Scalars and other types that the tables name without declaring them: spelling, definition, shape.
const SCALARS: &[(&str, &str, Scalar)] = &[
    ("string", "", Scalar::String),
    ("bool", "", Scalar::Bool),
    ("int32", "", Scalar::Int32),
    ("int64", "", Scalar::Int64),
    ("float64", "", Scalar::Float64),
    ("bytes", "", Scalar::Bytes),
    ("uid", "io.k8s.apimachinery.pkg.types.UID", Scalar::String),
    ("nodeName", "io.k8s.apimachinery.pkg.types.NodeName", Scalar::String),
    ("time", "io.k8s.apimachinery.pkg.apis.meta.v1.Time", Scalar::Time),
    ("microTime", "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", Scalar::MicroTime),
    ("duration", "io.k8s.apimachinery.pkg.apis.meta.v1.Duration", Scalar::Duration),
    ("quantity", "io.k8s.apimachinery.pkg.api.resource.Quantity", Scalar::Quantity),
    ("intOrString", "io.k8s.apimachinery.pkg.util.intstr.IntOrString", Scalar::IntOrString),
];

const FREE: &[(&str, &str, Wire)] = &[
    ("any", "", Wire::Plain),
    ("rawExtension", "io.k8s.apimachinery.pkg.runtime.RawExtension", Wire::Raw),
    ("fieldsV1", "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", Wire::Raw),
    ("json", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", Wire::Raw),
];

type Outcome<T> = Result<T, String>;

#[derive(Default)]
struct Reader {
    schema: Schema,
    kinds: Vec<Kind>,
    definitions: HashMap<Box<str>, TypeId>,
    /// `REF.NAME`, and scalars by their spelling.
    names: HashMap<String, TypeId>,
    /// Lists and maps without a name, shared: `[]`, `map` or a clone's mark, of what, how.
    anonymous: HashMap<(char, TypeId, String), TypeId>,
    strings: Vec<&'static str>,
}

/// Where a line belongs.
#[derive(Clone, Copy, Default)]
struct Package {
    reference: &'static str,
    openapi: &'static str,
    group: &'static str,
    version: &'static str,
}

impl Package {
    fn parse(rest: &'static str) -> Self {
        let mut words = rest.split(' ');
        let reference = words.next().unwrap_or_default();
        let openapi = words.next().unwrap_or_default();
        let (group, version) = split_group_version(words.next().unwrap_or("*/*"));
        Self { reference, openapi, group, version }
    }
}

fn split_group_version(text: &'static str) -> (&'static str, &'static str) {
    if text == "*" { ("*", "*") } else { text.split_once('/').unwrap_or(("", text)) }
}

impl Reader {
    fn read(&mut self, texts: impl Iterator<Item = &'static str> + Clone) -> Outcome<()> {
        self.schema.typed = true;
        for (spelling, name, scalar) in SCALARS {
            self.declare("", spelling, Type::new(*name, Shape::Scalar(*scalar)));
        }
        for (spelling, name, wire) in FREE {
            let ty = Type { wire: *wire, ..Type::new(*name, Shape::Any) };
            self.declare("", spelling, ty);
        }
        self.declare_all(texts.clone())?;
        self.fill_aliases(texts.clone())?;
        self.fill_structs(texts.clone())?;
        self.read_kinds(texts)
    }

    fn finish(mut self) -> Builtin {
        self.schema.types.shrink_to_fit();
        self.kinds.shrink_to_fit();
        let by_name =
            self.kinds.iter().enumerate().map(|(i, k)| ((k.group, k.version, k.kind), i as u32)).collect();
        Builtin { schema: self.schema, kinds: self.kinds, by_name, definitions: self.definitions }
    }

    fn declare(&mut self, reference: &str, name: &str, ty: Type) -> TypeId {
        let definition = ty.name.clone();
        let id = self.schema.push(ty);
        if !definition.is_empty() {
            self.definitions.insert(definition, id);
        }
        let name = if reference.is_empty() { name.to_owned() } else { format!("{reference}.{name}") };
        self.names.insert(name, id);
        id
    }

    /// First pass: every name gets its place, so that later ones may refer forward.
    fn declare_all(&mut self, texts: impl Iterator<Item = &'static str>) -> Outcome<()> {
        let mut package = Package::default();
        for line in texts.flat_map(str::lines) {
            if line.starts_with("  ") || line.starts_with('#') {
                continue;
            }
            let (word, rest) = line.split_once(' ').ok_or_else(|| format!("odd line {line:?}"))?;
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let shape = match word {
                "package" => {
                    package = Package::parse(line.strip_prefix("package ").unwrap_or_default());
                    continue;
                }
                "kind" => continue,
                "struct" => Shape::Struct(Struct { atomic: rest == "atomic", ..Struct::default() }),
                "string" => Shape::Scalar(Scalar::String),
                "alias" | "items" | "schemaOrBool" | "schemaOrArray" | "schemaOrStrings" => Shape::Any,
                _ => return Err(format!("odd line {line:?}")),
            };
            let mut ty = Type::new(format!("{}.{name}", package.openapi), shape);
            if word == "string" && !rest.is_empty() {
                ty.enumeration = rest.split(' ').map(Into::into).collect();
            }
            self.declare(package.reference, name, ty);
        }
        Ok(())
    }

    /// Second pass: named lists and maps, and the unions of CustomResourceDefinitions.
    fn fill_aliases(&mut self, texts: impl Iterator<Item = &'static str>) -> Outcome<()> {
        let mut package = Package::default();
        for line in texts.flat_map(str::lines) {
            let Some((word, rest)) = line.split_once(' ') else { continue };
            if word == "package" {
                package = Package::parse(rest);
                continue;
            }
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            if !matches!(word, "alias" | "items" | "schemaOrBool" | "schemaOrArray" | "schemaOrStrings") {
                continue;
            }
            let id = self.resolve(package, name)?;
            if word.starts_with("schemaOr") {
                let schema = self.resolve(package, "JSONSchemaProps")?;
                self.schema.types[id.0 as usize].wire = match word {
                    "schemaOrBool" => Wire::SchemaOrBool(schema),
                    "schemaOrArray" => Wire::SchemaOrArray(schema),
                    _ => Wire::SchemaOrStrings(schema),
                };
                continue;
            }
            let (ty, pointer) = self.type_expr(package, rest)?;
            debug_assert!(!pointer);
            let shape = match &self.schema.types[ty.0 as usize].shape {
                Shape::List(l) => Shape::List(List { item: l.item.clone(), kind: l.kind.clone() }),
                Shape::Map(m) => Shape::Map(Map { value: m.value.clone(), atomic: m.atomic }),
                Shape::Scalar(s) => Shape::Scalar(*s),
                _ => return Err(format!("{name} is an alias of something odd")),
            };
            let ty = &mut self.schema.types[id.0 as usize];
            ty.shape = shape;
            if word == "items" {
                ty.wire = Wire::Items;
            }
        }
        Ok(())
    }

    /// Third pass: fields.
    fn fill_structs(&mut self, texts: impl Iterator<Item = &'static str>) -> Outcome<()> {
        let mut package = Package::default();
        let mut current: Option<(TypeId, Vec<Field>)> = None;
        let mut clones = Vec::new();
        for line in texts.flat_map(str::lines) {
            if let Some(line) = line.strip_prefix("  ") {
                let (id, fields) = current.as_mut().ok_or_else(|| format!("field outside of a struct: {line:?}"))?;
                if line == "TypeMeta" {
                    let string = self.names["string"];
                    fields.extend(["kind", "apiVersion"].map(|name| {
                        let field = Field::new(name, Slot::new(string));
                        Field { pointer: false, ..field }
                    }));
                    continue;
                }
                let (field, atomic) = self.field(package, line)?;
                if let Some(atomic) = atomic {
                    clones.push((*id, fields.len(), atomic));
                }
                fields.push(field);
                continue;
            }
            if let Some((id, fields)) = current.take() {
                self.close(id, fields);
            }
            let Some((word, rest)) = line.split_once(' ') else { continue };
            match word {
                "package" => package = Package::parse(rest),
                "struct" => {
                    let name = rest.split(' ').next().unwrap_or_default();
                    current = Some((self.resolve(package, name)?, Vec::new()));
                }
                _ => {}
            }
        }
        if let Some((id, fields)) = current.take() {
            self.close(id, fields);
        }
        for (id, at, atomic) in clones {
            self.relate(id, at, atomic)?;
        }
        Ok(())
    }

    fn close(&mut self, id: TypeId, mut fields: Vec<Field>) {
        fields.shrink_to_fit();
        if let Shape::Struct(s) = &mut self.schema.types[id.0 as usize].shape {
            *s = Struct { fields, atomic: s.atomic, ..Struct::default() }.index();
        }
    }

    /// Gives one field a copy of its struct type that is (or is not) atomic.
    fn relate(&mut self, id: TypeId, at: usize, atomic: bool) -> Outcome<()> {
        let Shape::Struct(owner) = &self.schema.types[id.0 as usize].shape else { return Ok(()) };
        let target = owner.fields[at].slot.ty;
        let ty = &self.schema.types[target.0 as usize];
        let Shape::Struct(s) = &ty.shape else { return Err(format!("{} is no struct", ty.name)) };
        let copy = Struct { fields: s.fields.clone(), atomic, ..Struct::default() }.index();
        let copy = Type::new(ty.name.clone(), Shape::Struct(copy));
        let copy = self.schema.push(copy);
        if let Shape::Struct(owner) = &mut self.schema.types[id.0 as usize].shape {
            owner.fields[at].slot.ty = copy;
        }
        Ok(())
    }

    /// One field, and whether it is marked atomic or granular.
    fn field(&mut self, package: Package, line: &'static str) -> Outcome<(Field, Option<bool>)> {
        let (line, default) = match line.split_once(" default=") {
            Some((line, json)) => {
                let value = serde_json::from_str(json).map_err(|e| format!("default in {line:?}: {e}"))?;
                (line, Some(Arc::new(value)))
            }
            None => (line, None),
        };
        let mut words = line.split(' ');
        let (Some(name), Some(ty), Some(proto)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("odd field {line:?}"));
        };
        let bare = name.trim_end_matches(['!', '?']);
        let (id, pointer) = self.type_expr(package, ty)?;
        let slot = Slot { ty: id, default, nullable: false };
        let mut field = Field {
            pointer,
            required: name.ends_with('!'),
            omit_empty: name.ends_with('?'),
            omit_zero: name.ends_with("??"),
            ..Field::new(bare, slot)
        };
        if proto != "-" {
            let numbers: Result<Box<[u32]>, _> = proto.split('.').map(str::parse).collect();
            field.proto = numbers.map_err(|e| format!("numbers in {line:?}: {e}"))?;
        }
        let mut atomic = None;
        for word in words {
            match word {
                "merge" => field.patch.merge = true,
                "retainKeys" => field.patch.retain_keys = true,
                "replace" => field.patch.replace = true,
                "atomic" => atomic = Some(true),
                "granular" => atomic = Some(false),
                _ => match word.strip_prefix("key=") {
                    Some(key) => field.merge_key = Some(key.into()),
                    None => return Err(format!("odd word {word:?} in {line:?}")),
                },
            }
        }
        self.associate(&mut field, ty);
        Ok((field, atomic))
    }

    /// A list without `listType` that strategic merge patch merges is associative in server-side apply too
    /// (as upstream's OpenAPI conversion decides it).
    fn associate(&mut self, field: &mut Field, spelled: &str) {
        let PatchStrategy { merge: true, .. } = field.patch else { return };
        let Shape::List(list) = &self.schema.types[field.slot.ty.0 as usize].shape else { return };
        if spelled.ends_with('}') {
            return;
        }
        let (item, how) = match &field.merge_key {
            Some(key) => (list.item.ty, key.to_string()),
            None => (list.item.ty, "set".to_owned()),
        };
        field.slot.ty = self.list(item, &how);
    }

    fn resolve(&self, package: Package, name: &str) -> Outcome<TypeId> {
        let found = if name.contains('.') {
            self.names.get(name)
        } else {
            self.names.get(&format!("{}.{name}", package.reference)).or_else(|| self.names.get(name))
        };
        found.copied().ok_or_else(|| format!("{name} is not declared in {}", package.reference))
    }

    /// The type that `text` spells, and whether it is a pointer to it.
    fn type_expr(&mut self, package: Package, text: &str) -> Outcome<(TypeId, bool)> {
        if let Some(rest) = text.strip_prefix('*') {
            return Ok((self.type_expr(package, rest)?.0, true));
        }
        let (text, how) = match text.split_once('{') {
            Some((text, how)) => (text, how.trim_end_matches('}')),
            None => (text, ""),
        };
        if let Some(item) = text.strip_prefix("[]") {
            let (item, _) = self.type_expr(package, item)?;
            return Ok((self.list(item, how), false));
        }
        if let Some(value) = text.strip_prefix("map[").and_then(|t| t.strip_suffix(']')) {
            let (value, _) = self.type_expr(package, value)?;
            return Ok((self.map(value, how), false));
        }
        let id = self.resolve(package, text)?;
        if how.is_empty() {
            return Ok((id, false));
        }
        let related = match &self.schema.types[id.0 as usize].shape {
            Shape::List(l) => {
                let item = l.item.ty;
                self.list(item, how)
            }
            Shape::Map(m) => {
                let value = m.value.ty;
                self.map(value, how)
            }
            _ => id,
        };
        Ok((related, false))
    }

    fn list(&mut self, item: TypeId, how: &str) -> TypeId {
        let kind = match how {
            "" | "atomic" => ListKind::Atomic,
            "set" => ListKind::Set,
            keys => ListKind::Map(keys.split(',').map(Into::into).collect()),
        };
        let how = if how == "atomic" { "" } else { how };
        let schema = &mut self.schema;
        *self.anonymous.entry(('[', item, how.to_owned())).or_insert_with(|| {
            schema.push(Type::new("", Shape::List(List { item: Slot::new(item), kind })))
        })
    }

    fn map(&mut self, value: TypeId, how: &str) -> TypeId {
        let schema = &mut self.schema;
        *self.anonymous.entry(('m', value, how.to_owned())).or_insert_with(|| {
            let map = Map { value: Slot::new(value), atomic: how == "atomic" };
            schema.push(Type::new("", Shape::Map(map)))
        })
    }

    /// Last pass: kinds, and the lists of them.
    fn read_kinds(&mut self, texts: impl Iterator<Item = &'static str>) -> Outcome<()> {
        let mut package = Package::default();
        for line in texts.flat_map(str::lines) {
            if let Some(rest) = line.strip_prefix("package ") {
                package = Package::parse(rest);
            }
            let Some(rest) = line.strip_prefix("kind ") else { continue };
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default();
            let mut kind = Kind {
                group: package.group,
                version: package.version,
                kind: name,
                ty: self.resolve(package, name)?,
                item: None,
                introduced: None,
                deprecated: None,
                removed: None,
                replacement: None,
            };
            let mut list = false;
            for word in words {
                match word.split_once('=') {
                    None if word == "list" => list = true,
                    Some(("as", gv)) => (kind.group, kind.version) = split_group_version(gv),
                    Some(("introduced", v)) => kind.introduced = release(v),
                    Some(("deprecated", v)) => kind.deprecated = release(v),
                    Some(("removed", v)) => kind.removed = release(v),
                    Some(("replacement", v)) => {
                        let mut parts = v.split('/');
                        kind.replacement = parts.next().zip(parts.next()).zip(parts.next()).map(|((g, v), k)| (g, v, k));
                    }
                    _ => return Err(format!("odd word {word:?} in {line:?}")),
                }
            }
            self.kinds.push(kind);
            if list {
                let ty = self.list_of(package, name, kind.ty)?;
                let name = self.list_name(name);
                self.kinds.push(Kind { kind: name, ty, item: Some(kind.ty), ..kind });
            }
        }
        Ok(())
    }

    /// `PodList` for `Pod`, as a string that lives as long as the tables do.
    fn list_name(&mut self, name: &str) -> &'static str {
        let wanted = format!("{name}List");
        if let Some(known) = self.strings.iter().find(|s| **s == wanted) {
            return known;
        }
        let name: &'static str = Box::leak(wanted.into_boxed_str());
        self.strings.push(name);
        name
    }

    fn list_of(&mut self, package: Package, name: &str, item: TypeId) -> Outcome<TypeId> {
        let string = self.names["string"];
        let meta = *self.names.get("meta/v1.ListMeta").ok_or("no ListMeta")?;
        let items = self.list(item, "");
        let plain = |name: &str, ty| Field { pointer: false, ..Field::new(name, Slot::new(ty)) };
        let fields = vec![
            plain("kind", string),
            plain("apiVersion", string),
            Field { proto: Box::new([1]), ..plain("metadata", meta) },
            Field { proto: Box::new([2]), required: true, omit_empty: false, ..plain("items", items) },
        ];
        let shape = Shape::Struct(Struct { fields, ..Struct::default() }.index());
        let ty = Type::new(format!("{}.{name}List", package.openapi), shape);
        Ok(self.declare(package.reference, &format!("{name}List"), ty))
    }
}

fn release(text: &str) -> Option<Release> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_read() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tables");
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if path.extension().is_some_and(|e| e == "txt") {
                assert!(TABLES.iter().any(|(n, _)| *n == name), "{name} is not in TABLES");
            }
        }
    }

    #[test]
    fn kinds_are_found() {
        let b = builtin();
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("", "v1", "PodList"),
            ("apps", "v1", "Deployment"),
            ("apps", "v1", "DeleteOptions"),
            ("", "v1", "Status"),
            ("meta.k8s.io", "v1", "Table"),
            ("apiregistration.k8s.io", "v1", "APIServiceList"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("autoscaling", "v1", "Scale"),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"),
            ("", "v1", "List"),
        ] {
            assert!(b.lookup(group, version, kind).is_some(), "{group}/{version} {kind}");
        }
        assert!(b.lookup("", "v1", "Nonsense").is_none());
        let removed = b.kind("apps", "v1beta1", "Deployment").unwrap();
        assert_eq!(removed.removed, Some((1, 16)));
        assert_eq!(removed.replacement, Some(("apps", "v1", "Deployment")));
        assert_eq!(removed.stability(), Stability::Beta);
    }

    #[test]
    fn shapes_are_upstreams() {
        let b = builtin();
        let spec = b.definition("io.k8s.api.core.v1.PodSpec").unwrap();
        let Shape::List(containers) = spec.member("containers").unwrap().shape() else { panic!() };
        assert_eq!(containers.kind, ListKind::Map(["name".into()].into()));
        let volume = b.definition("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(&*volume.field("hostPath").unwrap().proto, &[2, 1]);
        let port = b.definition("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().slot.default.as_deref(), Some(&serde_json::json!("TCP")));
        let claim = b.definition("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap().member("claimRef").unwrap();
        assert!(!claim.as_struct().unwrap().atomic);
        assert!(b.definition("io.k8s.api.core.v1.ObjectReference").unwrap().as_struct().unwrap().atomic);
    }
}
