//! What an object was before an update, as far as the update may go on violating its schema like that (KEP-4008).
//!
//! A value and what it was are tied together by the schema: by the names that it declares and by the keys of lists.
//! What it does not declare is tied to nothing, and an object with such members counts as changed. In the clauses of
//! junctors (`allOf` and the like) upstream does not look at what was.

use std::collections::HashMap;

use serde_json::Value;

use crate::{
    managed::same_value,
    model::{List, ListKind, Shape, TypeRef},
};

/// What a value was; nothing, if it is created or cannot be tied to anything.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    was: Option<(TypeRef<'a>, &'a Value)>,
    is_root: bool,
}

impl<'a> Before<'a> {
    pub const NOTHING: Self = Self { was: None, is_root: false };

    pub fn root(ty: TypeRef<'a>, old: Option<&'a Value>) -> Self {
        Self { was: old.map(|old| (ty, old)), is_root: true }
    }

    fn of(was: Option<(TypeRef<'a>, &'a Value)>) -> Self {
        Self { was, is_root: false }
    }

    pub fn member(self, name: &str) -> Self {
        // Both are read as the version of the request has them.
        if self.is_root && matches!(name, "apiVersion" | "kind") {
            return Self::NOTHING;
        }
        Self::of(self.was.and_then(|(ty, old)| Some((declared(ty, name)?, old.get(name)?))))
    }

    /// What the items of a list were.
    pub fn items(self) -> Items<'a> {
        Items(self.was.and_then(|(ty, old)| match ty.shape() {
            Shape::List(list) => Some((ty.to(&list.item), Keyed::of(list, old)?)),
            _ => None,
        }))
    }

    /// Whether the value is what it was.
    pub fn keeps(self, value: &Value) -> bool {
        self.was.is_some_and(|(ty, old)| is_kept(ty, old, value))
    }
}

/// The type that a schema declares for a member.
fn declared<'a>(ty: TypeRef<'a>, name: &str) -> Option<TypeRef<'a>> {
    ty.member(name).filter(|member| !member.is_unspecified())
}

/// What the items of a list were, each known by its keys.
pub(super) struct Items<'a>(Option<(TypeRef<'a>, Keyed<'a>)>);

impl<'a> Items<'a> {
    pub fn of(&self, item: &Value) -> Before<'a> {
        Before::of(self.0.as_ref().and_then(|(ty, old)| Some((*ty, old.predecessor(item)?))))
    }
}

/// The items of a list by their keys, which alone tell what an item was.
struct Keyed<'a> {
    keys: &'a [Box<str>],
    items: HashMap<String, &'a Value>,
}

impl<'a> Keyed<'a> {
    fn of(list: &'a List, old: &'a Value) -> Option<Self> {
        let ListKind::Map(keys) = &list.kind else { return None };
        let mut items = HashMap::new();
        for item in old.as_array()? {
            if let Some(id) = identity(keys, item) {
                items.entry(id).or_insert(item);
            }
        }
        Some(Self { keys, items })
    }

    fn predecessor(&self, item: &Value) -> Option<&'a Value> {
        self.items.get(&identity(self.keys, item)?).copied()
    }
}

/// The values of an item's keys; nothing, if one is missing or is none.
fn identity(keys: &[Box<str>], item: &Value) -> Option<String> {
    let is_scalar = |v: &&Value| !(v.is_null() || v.is_array() || v.is_object());
    let values = keys.iter().map(|key| item.get(&**key).filter(is_scalar).map(Value::to_string));
    values.collect::<Option<Vec<_>>>().map(|values| values.join(","))
}

fn is_kept(ty: TypeRef<'_>, old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            // What objects have beside their schema is declared nowhere.
            let embedded = ty.as_struct().is_some_and(|s| s.embedded);
            !embedded
                && old.len() == new.len()
                && new.iter().all(|(name, new)| match (declared(ty, name), old.get(name)) {
                    (Some(ty), Some(old)) => is_kept(ty, old, new),
                    _ => false,
                })
        }
        (Value::Array(items), Value::Array(new)) => match ty.shape() {
            Shape::List(list) if matches!(list.kind, ListKind::Map(_)) => {
                let item_ty = ty.to(&list.item);
                items.len() == new.len()
                    && Keyed::of(list, old).is_some_and(|old| {
                        new.iter()
                            .all(|item| old.predecessor(item).is_some_and(|old| is_kept(item_ty, old, item)))
                    })
            }
            _ => items.len() == new.len() && items.iter().zip(new).all(|(old, new)| same_value(old, new)),
        },
        _ => same_value(old, new),
    }
}
