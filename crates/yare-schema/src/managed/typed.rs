//! Objects as field management sees them: which paths they have (`extract`), and how two of them differ
//! (`compare`). In: a type and JSON. Out: sets of field paths.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::{Map, Value};

use super::set::{Node, Set, field_key, item_key, value_key};
use crate::{
    encode,
    model::{Field, List, ListKind, Scalar, Shape, Struct, TypeRef},
};

/// A type, or `None` for untyped JSON (whose objects are granular and whose lists are atomic).
pub(crate) type Ty<'a> = Option<TypeRef<'a>>;

/// How a value at a type is walked.
pub(crate) enum Walk<'a> {
    /// Owned as a whole.
    Leaf,
    /// Member by member.
    Members(Members<'a>),
    /// Item by item.
    Items(&'a List, TypeRef<'a>),
}

/// Where members of an object get their types from.
#[derive(Clone, Copy)]
pub(crate) enum Members<'a> {
    Struct(&'a Struct, TypeRef<'a>),
    Map(Ty<'a>),
}

impl<'a> Members<'a> {
    /// The declared field and the type of a member.
    pub fn member(self, name: &str) -> (Option<&'a Field>, Ty<'a>) {
        match self {
            Self::Struct(s, ty) => match s.field(name) {
                Some(field) => (Some(field), Some(ty.to(&field.slot))),
                None => (None, None),
            },
            Self::Map(ty) => (None, ty),
        }
    }

    /// What Go writes of a field that is not set, if it does.
    fn unset(self, field: &Field) -> Option<Value> {
        match self {
            Self::Struct(_, ty) if ty.schema.typed => encode::unset(ty, field),
            _ => None,
        }
    }

    /// Whether Go writes fields that are not set.
    fn any_filled(self) -> bool {
        match self {
            Self::Struct(s, ty) if ty.schema.typed => s.fields.iter().any(|f| encode::filled(ty, f)),
            _ => false,
        }
    }

    /// Calls `visit` with the fields that Go writes beside those of `map`.
    fn filled(self, map: &Map<String, Value>, mut visit: impl FnMut(&Field, &Value)) {
        let Self::Struct(s, _) = self else { return };
        for field in s.fields.iter().filter(|f| !map.contains_key(&*f.name)) {
            if let Some(value) = self.unset(field) {
                visit(field, &value);
            }
        }
    }
}

/// How `value` is walked; the value decides only where the type does not.
pub(crate) fn walk<'a>(ty: Ty<'a>, value: &Value) -> Walk<'a> {
    let Some(ty) = ty else {
        return if value.is_object() { Walk::Members(Members::Map(None)) } else { Walk::Leaf };
    };
    match ty.shape() {
        Shape::Scalar(_) => Walk::Leaf,
        Shape::Struct(s) if s.atomic => Walk::Leaf,
        Shape::Struct(_) if !value.is_object() && !value.is_null() && ty.is_untyped() => Walk::Leaf,
        Shape::Struct(s) => Walk::Members(Members::Struct(s, ty)),
        Shape::Map(m) if m.atomic => Walk::Leaf,
        Shape::Map(m) => Walk::Members(Members::Map(Some(ty.to(&m.value)))),
        Shape::List(list) if list.kind == ListKind::Atomic => Walk::Leaf,
        Shape::List(list) => Walk::Items(list, ty.to(&list.item)),
        Shape::Any if ty.is_opaque() => Walk::Leaf,
        Shape::Any => walk(None, value),
    }
}

/// What a key is that an item does not say: its default, or Go's zero value of what Go always writes, which upstream's
/// schemas have as the default.
fn key_default<'a>(item_ty: TypeRef<'a>, field: &'a Field) -> Option<&'a Value> {
    static ZERO: LazyLock<Value> = LazyLock::new(|| Value::from(0));
    static EMPTY: Value = Value::String(String::new());
    if field.slot.default.is_some() || !item_ty.schema.typed || !encode::filled(item_ty, field) {
        return field.slot.default.as_deref();
    }
    match item_ty.to(&field.slot).shape() {
        Shape::Scalar(Scalar::String) => Some(&EMPTY),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64) => Some(&ZERO),
        _ => None,
    }
}

/// The step to an item of a list with keys or of a set; why not, where there is none.
pub(crate) fn item_step(list: &List, item_ty: TypeRef<'_>, item: &Value) -> Result<String, String> {
    match &list.kind {
        ListKind::Map(keys) => {
            let Some(map) = item.as_object() else {
                let what = if item.is_null() { "a null element" } else { "non-map elements" };
                return Err(format!("associative list with keys may not have {what}"));
            };
            let mut fields: Vec<(&str, &Value)> = Vec::with_capacity(keys.len());
            for key in keys {
                let default = || item_ty.field(key).and_then(|field| key_default(item_ty, field));
                if let Some(value) = map.get(&**key).or_else(default) {
                    fields.push((key, value));
                }
            }
            if fields.is_empty() && !keys.is_empty() {
                let keys: Vec<String> = keys.iter().map(|k| format!("{k:?}")).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    keys.join(" ")
                ));
            }
            fields.sort_unstable_by_key(|(name, _)| *name);
            Ok(item_key(fields.into_iter()))
        }
        _ => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            scalar => Ok(value_key(scalar)),
        },
    }
}

/// The paths of an object: its leaves, and the items of its lists.
pub(crate) fn extract(ty: Ty<'_>, value: &Value) -> Set {
    extract_node(ty, value).into_set()
}

fn extract_node(ty: Ty<'_>, value: &Value) -> Node {
    let mut node = Node::default();
    match (walk(ty, value), value) {
        (Walk::Leaf, _) => node.own = true,
        (Walk::Members(members), Value::Object(map)) => {
            for (name, member) in map {
                let (field, ty) = members.member(name);
                let mut child = extract_node(ty, member);
                child.own |= field.is_none() || is_empty_object(member);
                node.put(field_key(name), child);
            }
        }
        (Walk::Items(list, item_ty), Value::Array(items)) => {
            for item in items {
                let Ok(step) = item_step(list, item_ty, item) else { continue };
                // Of items that share a key only the key is owned, not what is in one or the other.
                let twice = node.children.remove(&step).is_some();
                let mut child = if twice { Node::default() } else { extract_node(Some(item_ty), item) };
                child.own = true;
                node.put(step, child);
            }
        }
        _ => {}
    }
    node
}

fn is_empty_object(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// What `config` says of atomic values just as `live` has it, and yet otherwise: Go writes fields in `live` that nobody
/// set, as `apiGroup` in a reference, and the configuration does not.
pub(crate) fn shorter(ty: TypeRef<'_>, live: &Value, config: &Value) -> Set {
    if ty.schema.typed { shorter_node(Some(ty), live, config).into_set() } else { Set::new() }
}

fn shorter_node(ty: Ty<'_>, live: &Value, config: &Value) -> Node {
    let mut node = Node::default();
    match (walk(ty, config), live, config) {
        (Walk::Leaf, ..) => {
            node.own = ty.is_some_and(|ty| !is_written_as_is(ty, live)) && same(live, config);
        }
        (Walk::Members(members), Value::Object(live), Value::Object(config)) => {
            for (name, config) in config {
                let Some(live) = live.get(name) else { continue };
                node.put(field_key(name), shorter_node(members.member(name).1, live, config));
            }
        }
        (Walk::Items(list, item_ty), Value::Array(live), Value::Array(config)) => {
            let step = |item| item_step(list, item_ty, item).ok();
            let live: HashMap<String, &Value> =
                live.iter().filter_map(|item| Some((step(item)?, item))).collect();
            for config in config {
                let Some((step, live)) = step(config).and_then(|step| live.get_key_value(&step)) else {
                    continue;
                };
                node.put(step.clone(), shorter_node(Some(item_ty), live, config));
            }
        }
        _ => {}
    }
    node
}

/// Whether Go writes a value as it is here, without further fields.
fn is_written_as_is(ty: TypeRef<'_>, value: &Value) -> bool {
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => s.fields.iter().all(|field| match map.get(&*field.name) {
            Some(value) => is_written_as_is(ty.to(&field.slot), value),
            None => !encode::filled(ty, field),
        }),
        (Shape::List(list), Value::Array(items)) => {
            items.iter().all(|item| is_written_as_is(ty.to(&list.item), item))
        }
        (Shape::Map(map), Value::Object(values)) => {
            values.values().all(|value| is_written_as_is(ty.to(&map.value), value))
        }
        _ => true,
    }
}

/// How two objects differ.
#[derive(Default)]
pub(crate) struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Comparison {
    /// What the new object has that the old one did not have like this.
    pub fn changed(self) -> Set {
        let Self { added, mut modified, .. } = self;
        // Of a new object everything is added.
        if modified.is_empty() {
            return added;
        }
        modified.union(&added);
        modified
    }
}

#[derive(Default)]
struct Diff {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Diff {
    fn put(&mut self, step: impl Fn() -> String, child: Diff) {
        for (into, child) in [
            (&mut self.added, child.added),
            (&mut self.modified, child.modified),
            (&mut self.removed, child.removed),
        ] {
            if !child.is_empty() {
                into.put(step(), child);
            }
        }
    }

    fn merge(&mut self, other: Diff) {
        for (into, other) in [
            (&mut self.added, other.added),
            (&mut self.modified, other.modified),
            (&mut self.removed, other.removed),
        ] {
            into.own |= other.own;
            into.children.extend(other.children);
        }
    }
}

/// Which of two compared objects are Go structs upstream, where fields that nobody set are there all the same:
/// `"resources":{}`, `"selector":null`, `"replicas":0`. Such a field never comes or goes by itself. What a patch
/// or a configuration was merged into is not one until it is decoded.
#[derive(Clone, Copy)]
pub(crate) struct Structs {
    pub old: bool,
    pub new: bool,
}

impl Structs {
    /// Both are.
    pub const BOTH: Self = Self { old: true, new: true };
    /// The live object is, the one that a configuration makes of it is not.
    pub const OLD: Self = Self { old: true, new: false };
    /// The live object is, a configuration of old is not.
    pub const NEW: Self = Self { old: false, new: true };
}

/// An object without members.
pub(crate) static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// Compares two objects of one type. Unchanged parts cost a walk and no allocation.
pub(crate) fn compare(ty: Ty<'_>, old: &Value, new: &Value, structs: Structs) -> Comparison {
    match diff(ty, Some(old), Some(new), structs) {
        None => Comparison::default(),
        Some(diff) => Comparison {
            added: diff.added.into_set(),
            modified: diff.modified.into_set(),
            removed: diff.removed.into_set(),
        },
    }
}

/// `None`: nothing differs.
fn diff(ty: Ty<'_>, old: Option<&Value>, new: Option<&Value>, structs: Structs) -> Option<Box<Diff>> {
    let sample = match (old, new) {
        (None, None) => return None,
        (Some(old), None) => old,
        // Untyped values decide by themselves how they are walked, and `null` goes with anything.
        (Some(old), Some(new)) if new.is_null() => old,
        (_, Some(new)) => new,
    };
    if ty.is_none_or(|ty| matches!(ty.shape(), Shape::Any) || ty.is_untyped())
        && let (Some(old), Some(new)) = (old, new)
        && old.is_object() != new.is_object()
        && !old.is_null()
        && !new.is_null()
    {
        // One is an object and the other is not: a change of the value and of the members.
        let mut out = Diff::default();
        out.modified.own = true;
        for (old, new) in [(Some(old), None), (None, Some(new))] {
            if let Some(mut side) = diff(ty, old, new, structs) {
                (side.added.own, side.removed.own) = (false, false);
                out.merge(*side);
            }
        }
        return Some(Box::new(out));
    }
    match walk(ty, sample) {
        Walk::Leaf => leaf(old, new),
        Walk::Members(members) => {
            let (old_map, new_map) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let empty = |map: Option<&Map<String, Value>>, is_struct: bool| {
                map.is_none_or(|map| map.is_empty() && !(is_struct && members.any_filled()))
            };
            if empty(old_map, structs.old) && empty(new_map, structs.new) {
                return leaf(old, new);
            }
            presence(old, new, diff_members(members, old_map, new_map, structs))
        }
        Walk::Items(list, item_ty) => {
            let items = |v: Option<&'_ Value>| v.and_then(Value::as_array).map_or(0, Vec::len);
            if items(old) == 0 && items(new) == 0 {
                return leaf(old, new);
            }
            let old_items = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let new_items = new.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let inner = if old_items == new_items {
                None
            } else {
                diff_items(list, item_ty, old_items, new_items, structs)
            };
            presence(old, new, inner)
        }
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Option<Box<Diff>> {
    let mut out = Diff::default();
    match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => out.added.own = true,
        (Some(_), None) => out.removed.own = true,
        (Some(old), Some(new)) if same(old, new) => return None,
        _ => out.modified.own = true,
    }
    Some(Box::new(out))
}

/// Equality that takes `1` for `1.0`.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            x == y || (x.is_f64() != y.is_f64() && x.as_f64() == y.as_f64())
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|((k, x), (l, y))| k == l && same(x, y))
        }
        _ => a == b,
    }
}

/// Notes that a granular object or list itself came or went.
fn presence(old: Option<&Value>, new: Option<&Value>, inner: Option<Box<Diff>>) -> Option<Box<Diff>> {
    if old.is_some() && new.is_some() {
        return inner;
    }
    let mut out = inner.unwrap_or_default();
    out.added.own |= old.is_none();
    out.removed.own |= new.is_none();
    Some(out)
}

fn diff_members(
    members: Members<'_>,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    structs: Structs,
) -> Option<Box<Diff>> {
    let mut out: Option<Box<Diff>> = None;
    let sides = (old, new);
    let mut visit = |name: &str, old_member: Option<&Value>, new_member: Option<&Value>| {
        let (field, ty) = members.member(name);
        let unset = |is_struct: bool| if is_struct { members.unset(field?) } else { None };
        let child = match (old_member, new_member) {
            (None, Some(new)) if old.is_some() => diff(ty, unset(structs.old).as_ref(), Some(new), structs),
            (Some(old), None) if new.is_some() => diff(ty, Some(old), unset(structs.new).as_ref(), structs),
            _ => diff(ty, old_member, new_member, structs),
        };
        if let Some(child) = child {
            out.get_or_insert_default().put(|| field_key(name), *child);
        }
    };
    // Both maps iterate in key order.
    let mut old = old.into_iter().flatten().peekable();
    let mut new = new.into_iter().flatten().peekable();
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some((a, va)), Some((b, vb))) if a == b => {
                visit(a, Some(va), Some(vb));
                old.next();
                new.next();
            }
            (Some((a, va)), other) if other.is_none_or(|(b, _)| a < b) => {
                visit(a, Some(va), None);
                old.next();
            }
            (_, Some((b, vb))) => {
                visit(b, None, Some(vb));
                new.next();
            }
            (Some(_), None) => {
                old.next();
            }
        }
    }
    // A struct that comes or goes does so with all of its fields.
    match sides {
        (Some(old), None) if structs.old => {
            members.filled(old, |field, value| visit(&field.name, Some(value), None));
        }
        (None, Some(new)) if structs.new => {
            members.filled(new, |field, value| visit(&field.name, None, Some(value)));
        }
        _ => {}
    }
    out
}

fn diff_items(
    list: &List,
    item_ty: TypeRef<'_>,
    old: &[Value],
    new: &[Value],
    structs: Structs,
) -> Option<Box<Diff>> {
    let mut order: Vec<String> = Vec::new();
    let mut by_step: HashMap<String, (Vec<&Value>, Vec<&Value>)> =
        HashMap::with_capacity(old.len().max(new.len()));
    for (items, is_new) in [(old, false), (new, true)] {
        for item in items {
            let Ok(step) = item_step(list, item_ty, item) else { continue };
            let entry = match by_step.get_mut(&step) {
                Some(entry) => entry,
                None => {
                    order.push(step.clone());
                    by_step.entry(step).or_default()
                }
            };
            let side = if is_new { &mut entry.1 } else { &mut entry.0 };
            side.push(item);
        }
    }
    let mut out: Option<Box<Diff>> = None;
    for step in order {
        let Some((old, new)) = by_step.get(&step) else { continue };
        let child = match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => diff(Some(item_ty), old.first().copied(), new.first().copied(), structs),
            // Items that share a key are one leaf.
            ([_, _, ..], [_, _, ..]) => {
                let equal = old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same(a, b));
                (!equal).then(|| {
                    Box::new(Diff { modified: Node { own: true, ..Node::default() }, ..Diff::default() })
                })
            }
            ([_, _, ..], rest) => {
                let mut child = rest
                    .first()
                    .and_then(|item| diff(Some(item_ty), None, Some(item), structs))
                    .unwrap_or_default();
                child.removed.own = true;
                Some(child)
            }
            (rest, _) => {
                let mut child = rest
                    .first()
                    .and_then(|item| diff(Some(item_ty), Some(item), None, structs))
                    .unwrap_or_default();
                child.added.own = true;
                Some(child)
            }
        };
        if let Some(child) = child {
            out.get_or_insert_default().put(|| step.clone(), *child);
        }
    }
    out
}
