//! Whether JSON has the shape of a type, as server-side apply asks before it merges: unknown fields, scalars of
//! the wrong kind, list items that share a key. Pruning and validation, which come later, ask more.

use std::{collections::HashSet, fmt};

use serde_json::Value;

use super::{
    set::Shown,
    typed::{Ty, item_step},
};
use crate::{
    constraints::Rule,
    goprint::{GoSyntax, GoValue, type_name},
    model::{Additional, ListKind, Scalar, Shape, TypeRef},
};

/// Most mistakes that are told at once.
const MAX_ERRORS: usize = 100;

/// What of a value does not fit the type, each with its path. `duplicates`: several items of a list may share
/// a key, as they may in objects that were created.
pub(crate) fn check(ty: Ty<'_>, value: &Value, duplicates: bool) -> Vec<String> {
    let mut check = Check { duplicates, path: String::new(), errors: Vec::new() };
    if let Some(ty) = ty {
        check.value(ty, value, false);
    }
    check.errors
}

/// Several mistakes in one text.
pub(crate) fn joined(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

/// A value as Go's `%v` shows upstream's wrapper around it.
struct Wrapped<'a>(&'a Value);

impl fmt::Display for Wrapped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "&{{{}}}", GoValue(self.0))
    }
}

struct Check {
    duplicates: bool,
    path: String,
    errors: Vec<String>,
}

impl Check {
    fn fail(&mut self, message: impl fmt::Display) {
        let path = &self.path;
        self.errors.push(if path.is_empty() { message.to_string() } else { format!("{path}: {message}") });
    }

    fn below(&mut self, step: &str, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(step);
        then(self);
        self.path.truncate(length);
    }

    /// `preserve`: a type above keeps fields that it does not know, and so does everything in it.
    fn value(&mut self, ty: TypeRef<'_>, value: &Value, preserve: bool) {
        if value.is_null() || self.errors.len() >= MAX_ERRORS {
            return;
        }
        // Types that others refer to by name are never looser for where they stand.
        let preserve = preserve && ty.ty().name.is_empty();
        let constraints = ty.ty().constraints.as_deref();
        match (ty.shape(), value) {
            (Shape::Any, _) => {}
            (_, other) if !other.is_object() && ty.is_untyped() => {}
            // A text with a format is any scalar to upstream, like times.
            (Shape::Scalar(Scalar::String), _)
                if constraints.is_some_and(|c| c.format().is_some_and(|f| f != "byte")) =>
            {
                self.scalar(Scalar::Time, value);
            }
            (Shape::Scalar(scalar), _) => self.scalar(*scalar, value),
            (Shape::Struct(s), Value::Object(map)) => {
                let preserve = preserve || !matches!(s.additional, Additional::Prune);
                // An object of nothing known may hold anything, unless that is forbidden.
                let closed = constraints
                    .is_some_and(|c| c.rules.iter().any(|rule| matches!(rule, Rule::OnlyProperties(_))));
                let open = !closed && (preserve || s.fields.is_empty());
                for (name, member) in map {
                    match s.field(name) {
                        Some(field) => self.below(&format!(".{name}"), |check| {
                            check.value(ty.to(&field.slot), member, preserve);
                        }),
                        // The first one ends the look at this object.
                        None if !open => {
                            self.below(&format!(".{name}"), |check| {
                                check.fail("field not declared in schema")
                            });
                            return;
                        }
                        None => {}
                    }
                }
            }
            (Shape::Map(m), Value::Object(map)) => {
                for (name, member) in map {
                    self.below(&format!(".{name}"), |check| check.value(ty.to(&m.value), member, preserve));
                }
            }
            (Shape::List(list), Value::Array(items)) => {
                let item_ty = ty.to(&list.item);
                let mut seen = HashSet::new();
                for (i, item) in items.iter().enumerate() {
                    let shown = if list.kind == ListKind::Atomic {
                        format!("[{i}]")
                    } else {
                        match item_step(list, item_ty, item) {
                            Ok(step) => {
                                let shown = Shown(&[step.as_str()]).to_string();
                                if !seen.insert(step) && !self.duplicates {
                                    self.fail(format_args!("duplicate entries for key {shown}"));
                                }
                                shown
                            }
                            Err(wrong) => return self.fail(format_args!("element {i}: {wrong}")),
                        }
                    };
                    self.below(&shown, |check| check.value(item_ty, item, preserve));
                }
            }
            (Shape::Struct(_) | Shape::Map(_), other) => {
                self.fail(format_args!("expected map, got {}", Wrapped(other)));
            }
            (Shape::List(_), other) => self.fail(format_args!("expected list, got {}", Wrapped(other))),
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        match scalar {
            Scalar::Bool if !value.is_boolean() => {
                self.fail(format_args!("expected boolean, got {}", Wrapped(value)));
            }
            Scalar::Int32 | Scalar::Int64 | Scalar::Float64 if !value.is_number() => {
                self.fail(format_args!("expected numeric (int or float), got {}", type_name(value)));
            }
            Scalar::String | Scalar::Bytes | Scalar::Duration if !value.is_string() => {
                let shown = GoSyntax(value);
                self.fail(format_args!("expected string, got &value.valueUnstructured{{Value:{shown}}}"));
            }
            Scalar::Quantity | Scalar::Time | Scalar::MicroTime if value.is_array() || value.is_object() => {
                self.fail(format_args!("expected any scalar, got {}", Wrapped(value)));
            }
            _ => {}
        }
    }
}
