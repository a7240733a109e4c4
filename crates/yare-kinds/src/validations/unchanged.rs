//! Whether an update left a value as it was (KEP-4008).
//!
//! Fields are compared with fields, and items of lists of type `map` with those of the same keys. What the
//! schema does not describe counts as changed; so does, in effect, a resource as a whole, whose metadata it does
//! not describe.

use std::{cell::Cell, collections::HashMap};

use serde_json::Value;
use yare_schema::model::{ListKind, Shape, TypeRef};

/// A value beside the one it succeeds.
pub(super) struct Pair<'a> {
    ty: TypeRef<'a>,
    new: &'a Value,
    old: &'a Value,
    same: Cell<Option<bool>>,
}

impl<'a> Pair<'a> {
    pub fn new(ty: TypeRef<'a>, new: &'a Value, old: &'a Value) -> Self {
        Self { ty, new, old, same: Cell::new(None) }
    }

    fn is_same(&self) -> bool {
        self.same.get().unwrap_or_else(|| {
            let same = same(self.ty, self.new, self.old);
            self.same.set(Some(same));
            same
        })
    }

    fn member(&self, name: &str) -> Option<Pair<'a>> {
        Some(Pair::new(self.ty.member(name)?, self.new.get(name)?, self.old.get(name)?))
    }

    fn item(&self, index: usize, old: Option<&'a Value>) -> Option<Pair<'a>> {
        Some(Pair::new(self.ty.item()?, self.new.get(index)?, old?))
    }
}

/// Where a walk through an object is, in what the object was before.
#[derive(Clone, Copy, Default)]
pub(super) struct Trail<'p, 'a> {
    /// The value; `None` where nothing corresponds to it.
    here: Option<&'p Pair<'a>>,
    /// The nearest value above that something corresponds to.
    above: Option<&'p Pair<'a>>,
}

impl<'p, 'a> Trail<'p, 'a> {
    pub fn root(pair: &'p Pair<'a>) -> Self {
        Self { here: Some(pair), above: None }
    }

    /// Whether what fails here failed before the update already, which did not touch it.
    pub fn forgives(self) -> bool {
        self.here.or(self.above).is_some_and(Pair::is_same)
    }

    /// The pair that [`Trail::below`] wants for a field or an entry.
    pub fn member(self, name: &str) -> Option<Pair<'a>> {
        self.here?.member(name)
    }

    /// The pair that [`Trail::below`] wants for an item, which succeeds `old`.
    pub fn item(self, index: usize, old: Option<&'a Value>) -> Option<Pair<'a>> {
        self.here?.item(index, old)
    }

    /// One step down.
    pub fn below(self, pair: Option<&'p Pair<'a>>, name: &str) -> Self {
        if self.here.is_none() {
            return self;
        }
        // Both objects are read in the version that is asked for, so that these two never seem to change.
        if self.above.is_none() && matches!(name, "apiVersion" | "kind") {
            return Self::default();
        }
        Self { here: pair, above: self.here }
    }
}

fn same(ty: TypeRef<'_>, new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            new.len() == old.len()
                && new.iter().all(|(name, new)| match (ty.member(name), old.get(name)) {
                    (Some(ty), Some(old)) => same(ty, new, old),
                    _ => false,
                })
        }
        (Value::Array(new), Value::Array(old)) => {
            let Shape::List(list) = ty.shape() else { return new == old };
            let ListKind::Map(keys) = &list.kind else { return new == old };
            let before = ByKey::new(keys, old);
            new.len() == old.len()
                && new.iter().all(|new| before.get(new).is_some_and(|old| same(ty.to(&list.item), new, old)))
        }
        _ => new == old,
    }
}

/// The items of a list of type `map`.
pub(super) struct ByKey<'k, 'a> {
    keys: &'k [Box<str>],
    items: HashMap<String, &'a Value>,
}

impl<'k, 'a> ByKey<'k, 'a> {
    pub fn new(keys: &'k [Box<str>], list: &'a [Value]) -> Self {
        let mut items = HashMap::with_capacity(list.len());
        for item in list {
            if let Some(key) = key_of(keys, item) {
                // Of items with the same keys, the first counts.
                items.entry(key).or_insert(item);
            }
        }
        Self { keys, items }
    }

    /// The item with the keys of this one.
    pub fn get(&self, item: &Value) -> Option<&'a Value> {
        self.items.get(&key_of(self.keys, item)?).copied()
    }
}

/// `None` where a key is absent or no scalar.
fn key_of(keys: &[Box<str>], item: &Value) -> Option<String> {
    use std::fmt::Write as _;

    let mut out = String::new();
    for key in keys {
        let part = item.get(&**key)?;
        if part.is_null() || part.is_object() || part.is_array() {
            return None;
        }
        // JSON text has no raw line breaks. Writing to a string cannot fail.
        let _ = writeln!(out, "{part}");
    }
    Some(out)
}
