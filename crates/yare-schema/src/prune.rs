//! Pruning: what a schema does not know is taken out of an object, and named.

use serde_json::Value;

use crate::model::{Additional, Shape, TypeRef};

/// What every object has, whether its schema says so or not.
const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Most unknown fields that are named; all of them are taken out.
const MAX_NAMED: usize = 100;

/// Takes fields that `ty` does not know out of `object`, the whole of a resource. Returns their paths,
/// sorted: `spec.containers[0].colour`.
pub fn prune(ty: TypeRef<'_>, object: &mut Value) -> Vec<String> {
    let mut run = Run { path: String::new(), unknown: Vec::new(), root: true };
    run.visit(ty, object);
    run.unknown.sort_unstable();
    run.unknown
}

/// [`prune`] for a value inside of an object, such as a default.
pub fn prune_value(ty: TypeRef<'_>, value: &mut Value) -> Vec<String> {
    let mut run = Run { path: String::new(), unknown: Vec::new(), root: false };
    run.visit(ty, value);
    run.unknown.sort_unstable();
    run.unknown
}

struct Run {
    path: String,
    unknown: Vec<String>,
    root: bool,
}

impl Run {
    fn within(&mut self, step: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if !step.starts_with('[') && length > 0 {
            self.path.push('.');
        }
        self.path.push_str(step);
        visit(self);
        self.path.truncate(length);
    }

    fn visit(&mut self, ty: TypeRef<'_>, value: &mut Value) {
        let root = std::mem::replace(&mut self.root, false);
        match (ty.shape(), value) {
            (Shape::Struct(s), Value::Object(map)) => {
                let keep_all = matches!(s.additional, Additional::Preserve);
                let meta = |name: &str| (root || s.embedded) && META_FIELDS.contains(&name);
                map.retain(|name, member| match s.field(name) {
                    // It has a type of its own, that it is read as ([`crate::coerce`]).
                    Some(_) if s.embedded && name == "metadata" => true,
                    Some(field) => {
                        self.within(name, |run| run.visit(ty.to(&field.slot), member));
                        true
                    }
                    None if keep_all || meta(name) => true,
                    None => {
                        if self.unknown.len() < MAX_NAMED {
                            self.within(name, |run| run.unknown.push(run.path.clone()));
                        }
                        false
                    }
                });
            }
            (Shape::Map(m), Value::Object(map)) => {
                for (name, member) in map {
                    self.within(name, |run| run.visit(ty.to(&m.value), member));
                }
            }
            (Shape::List(l), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.within(&format!("[{i}]"), |run| run.visit(ty.to(&l.item), item));
                }
            }
            // What should be no object at all has no fields either.
            (Shape::Scalar(_) | Shape::List(_), Value::Object(map)) => self.strip(map),
            // Where no type is demanded, a list may stand in the place of an object.
            (Shape::Struct(_), Value::Array(items))
                if ty.ty().constraints.as_ref().is_some_and(|c| c.untyped) =>
            {
                for (i, item) in items.iter_mut().enumerate() {
                    self.within(&format!("[{i}]"), |run| run.visit(ty, item));
                }
            }
            (Shape::Struct(s), Value::Array(items)) if !matches!(s.additional, Additional::Preserve) => {
                self.strip_items(items);
            }
            (Shape::Map(_) | Shape::Scalar(_), Value::Array(items)) => self.strip_items(items),
            _ => {}
        }
    }

    /// Of the items of what should be no list nothing is known.
    fn strip_items(&mut self, items: &mut [Value]) {
        for (i, item) in items.iter_mut().enumerate() {
            self.within(&format!("[{i}]"), |run| match item {
                Value::Object(map) => run.strip(map),
                Value::Array(items) => run.strip_items(items),
                _ => {}
            });
        }
    }

    fn strip(&mut self, map: &mut serde_json::Map<String, Value>) {
        for name in std::mem::take(map).keys().take(MAX_NAMED.saturating_sub(self.unknown.len())) {
            self.within(name, |run| run.unknown.push(run.path.clone()));
        }
    }
}
