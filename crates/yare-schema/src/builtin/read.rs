//! Reading schema tables.
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
//!   inline NAME … end                   the fields between come from a Go struct that is inlined here
//!   FIELD[!][?|??] TYPE PROTO [merge] [retainKeys] [replace] [key=K] [granular|atomic] [default=JSON]
//! string NAME [VALUE…]                  a string type; its values, where it is an enumeration: all in
//!                                       quotes if one has a space
//! alias NAME TYPE | items NAME TYPE     a named list or map; items: a protobuf message of its own
//! schemaOrBool NAME (also schemaOrArray, schemaOrStrings)
//! ```
//!
//! `!` required, `?` omitempty, `??` omitzero. PROTO: field number, `2.1` where Go inlines in JSON what
//! protobuf nests, `-` where protobuf has no such field. TYPE: a scalar, a name, `REF.NAME`, `*TYPE`,
//! `[]TYPE`, `map[TYPE]`; lists and maps may end in `{atomic}`, `{set}` or `{key,key}`.

use std::{collections::HashMap, sync::Arc};

use super::{Builtin, Kind, Release};
use crate::model::{
    Field, List, ListKind, Map, PatchStrategy, Scalar, Schema, Shape, Slot, Struct, Type, TypeId, Wire,
};

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

/// Reads tables; [`Reader::finish`] gives what was read.
#[derive(Default)]
pub(super) struct Reader {
    schema: Schema,
    kinds: Vec<Kind>,
    definitions: HashMap<Box<str>, TypeId>,
    /// By REF and NAME; scalars by their spelling alone.
    names: HashMap<(&'static str, &'static str), TypeId>,
    /// Lists and maps without a name, shared: `[` or `m`, of what, how.
    anonymous: HashMap<(char, TypeId, &'static str), TypeId>,
    strings: Vec<&'static str>,
}

/// A struct whose fields are being read.
struct Open {
    id: TypeId,
    fields: Vec<Field>,
    inlined: Vec<(u16, u16, Box<str>)>,
    /// Inlined structs that have not ended: first field and name.
    begun: Vec<(u16, &'static str)>,
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
    /// Reads all tables, which may refer to each other.
    pub(super) fn read(&mut self, texts: impl Iterator<Item = &'static str> + Clone) -> Outcome<()> {
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

    /// What was read.
    pub(super) fn finish(mut self) -> Builtin {
        self.schema.types.shrink_to_fit();
        self.kinds.shrink_to_fit();
        let by_name =
            self.kinds.iter().enumerate().map(|(i, k)| ((k.group, k.version, k.kind), i as u32)).collect();
        Builtin { schema: self.schema, kinds: self.kinds, by_name, definitions: self.definitions }
    }

    fn declare(&mut self, reference: &'static str, name: &'static str, ty: Type) -> TypeId {
        let definition = ty.name.clone();
        let id = self.schema.push(ty);
        if !definition.is_empty() {
            self.definitions.insert(definition, id);
        }
        self.names.insert((reference, name), id);
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
                ty.enumeration = values(rest).map(Into::into).collect();
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
        let mut current: Option<Open> = None;
        let mut clones = Vec::new();
        for line in texts.flat_map(str::lines) {
            if let Some(line) = line.strip_prefix("  ") {
                let Open { id, fields, inlined, begun } =
                    current.as_mut().ok_or_else(|| format!("field outside of a struct: {line:?}"))?;
                if let Some(name) = line.strip_prefix("inline ").filter(|n| !n.contains(' ')) {
                    begun.push((fields.len() as u16, name));
                    continue;
                }
                if line == "end" {
                    let (from, name) = begun.pop().ok_or("end without inline")?;
                    inlined.push((from, fields.len() as u16, name.into()));
                    continue;
                }
                if line == "TypeMeta" {
                    let string = self.names[&("", "string")];
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
            if let Some(open) = current.take() {
                self.close(open);
            }
            let Some((word, rest)) = line.split_once(' ') else { continue };
            match word {
                "package" => package = Package::parse(rest),
                "struct" => {
                    let name = rest.split(' ').next().unwrap_or_default();
                    let id = self.resolve(package, name)?;
                    current = Some(Open { id, fields: Vec::new(), inlined: Vec::new(), begun: Vec::new() });
                }
                _ => {}
            }
        }
        if let Some(open) = current.take() {
            self.close(open);
        }
        for (id, at, atomic) in clones {
            self.relate(id, at, atomic)?;
        }
        Ok(())
    }

    fn close(&mut self, open: Open) {
        let Open { id, mut fields, mut inlined, .. } = open;
        fields.shrink_to_fit();
        // Outer ones first, as paths name them.
        inlined.sort_by_key(|(from, to, _)| (*from, std::cmp::Reverse(*to)));
        if let Shape::Struct(s) = &mut self.schema.types[id.0 as usize].shape {
            let inlined = inlined.into_boxed_slice();
            *s = Struct { fields, inlined, atomic: s.atomic, ..Struct::default() }.index();
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
            required: name.contains('!'),
            omit_empty: name.ends_with('?'),
            omit_zero: name.ends_with("??"),
            ..Field::new(bare, slot)
        };
        if proto != "-" {
            let numbers: Result<Box<[u32]>, _> = proto.split('.').map(str::parse).collect();
            field.proto = numbers.map_err(|e| format!("numbers in {line:?}: {e}"))?;
        }
        let mut atomic = None;
        let mut key = None;
        for word in words {
            match word {
                "merge" => field.patch.merge = true,
                "retainKeys" => field.patch.retain_keys = true,
                "replace" => field.patch.replace = true,
                "atomic" => atomic = Some(true),
                "granular" => atomic = Some(false),
                _ => match word.strip_prefix("key=") {
                    Some(name) => key = Some(name),
                    None => return Err(format!("odd word {word:?} in {line:?}")),
                },
            }
        }
        field.merge_key = key.map(Into::into);
        self.associate(&mut field, ty, key.unwrap_or("set"));
        Ok((field, atomic))
    }

    /// A list without `listType` that strategic merge patch merges is associative in server-side apply too
    /// (as upstream's OpenAPI conversion decides it).
    fn associate(&mut self, field: &mut Field, spelled: &str, how: &'static str) {
        let PatchStrategy { merge: true, .. } = field.patch else { return };
        let Shape::List(list) = &self.schema.types[field.slot.ty.0 as usize].shape else { return };
        if spelled.ends_with('}') {
            return;
        }
        let item = list.item.ty;
        field.slot.ty = self.list(item, how);
    }

    fn resolve(&self, package: Package, name: &'static str) -> Outcome<TypeId> {
        let found = match name.split_once('.') {
            Some(qualified) => self.names.get(&qualified),
            None => self.names.get(&("", name)).or_else(|| self.names.get(&(package.reference, name))),
        };
        found.copied().ok_or_else(|| format!("{name} is not declared in {}", package.reference))
    }

    /// The type that `text` spells, and whether it is a pointer to it.
    fn type_expr(&mut self, package: Package, text: &'static str) -> Outcome<(TypeId, bool)> {
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

    fn list(&mut self, item: TypeId, how: &'static str) -> TypeId {
        let kind = match how {
            "" | "atomic" => ListKind::Atomic,
            "set" => ListKind::Set,
            keys => ListKind::Map(keys.split(',').map(Into::into).collect()),
        };
        let how = if how == "atomic" { "" } else { how };
        let schema = &mut self.schema;
        *self
            .anonymous
            .entry(('[', item, how))
            .or_insert_with(|| schema.push(Type::new("", Shape::List(List { item: Slot::new(item), kind }))))
    }

    fn map(&mut self, value: TypeId, how: &'static str) -> TypeId {
        let schema = &mut self.schema;
        *self.anonymous.entry(('m', value, how)).or_insert_with(|| {
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
                        kind.replacement =
                            parts.next().zip(parts.next()).zip(parts.next()).map(|((g, v), k)| (g, v, k));
                    }
                    _ => return Err(format!("odd word {word:?} in {line:?}")),
                }
            }
            self.kinds.push(kind);
            if list {
                let name = self.list_name(name);
                let ty = self.list_of(package, name, kind.ty);
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

    fn list_of(&mut self, package: Package, name: &'static str, item: TypeId) -> TypeId {
        let string = self.names[&("", "string")];
        let meta = self.names[&("meta/v1", "ListMeta")];
        let items = self.list(item, "");
        let plain = |name: &str, ty| Field { pointer: false, ..Field::new(name, Slot::new(ty)) };
        let fields = vec![
            plain("kind", string),
            plain("apiVersion", string),
            Field { proto: Box::new([1]), ..plain("metadata", meta) },
            Field { proto: Box::new([2]), required: true, omit_empty: false, ..plain("items", items) },
        ];
        let shape = Shape::Struct(Struct { fields, ..Struct::default() }.index());
        let ty = Type::new(format!("{}.{name}", package.openapi), shape);
        self.declare(package.reference, name, ty)
    }
}

/// The values of an enumeration. Where they are quoted, what is between them lies at even places.
fn values(text: &'static str) -> Box<dyn Iterator<Item = &'static str>> {
    match text.starts_with('"') {
        true => Box::new(text.split('"').skip(1).step_by(2)),
        false => Box::new(text.split(' ')),
    }
}

fn release(text: &str) -> Option<Release> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
