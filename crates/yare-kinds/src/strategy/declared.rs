//! Rules that upstream declares as tags on the fields of a type (KEP-5073, declarative validation), as data.
//!
//! A kind is a list of [`Field`]s with their [`Rule`]s; [`check`] holds an object against it. What an update
//! leaves as it was is not looked at again.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::rules::check_items;
use crate::{
    check::{Check, Errors},
    view::{View, same},
};

/// One field of a struct, or of the structs in a list.
#[derive(Clone, Copy)]
pub struct Field {
    name: &'static str,
    rules: &'static [Rule],
    /// What holds of each item of a list.
    each: &'static [Rule],
    /// The fields of what is in it.
    fields: &'static [Field],
}

/// One declaration.
#[derive(Clone, Copy)]
pub enum Rule {
    /// Has to be there and not be empty.
    Required,
    /// Stays as it was created.
    Immutable,
    /// Text of a form; the function says what is wrong with it.
    Format(fn(&str) -> Vec<String>),
    /// Not less.
    Minimum(i64),
    /// Not more.
    Maximum(i64),
    /// Not longer, in bytes.
    MaxBytes(usize),
    /// Not more items.
    MaxItems(usize),
    /// A list of structs that differ in this field.
    Keyed(&'static str),
    /// Exactly one of these fields of the struct.
    OneOf(&'static [&'static str]),
    /// One of these.
    Enum(&'static [&'static str]),
}

/// A field with its rules.
pub const fn field(name: &'static str, rules: &'static [Rule]) -> Field {
    Field { name, rules, each: &[], fields: &[] }
}

impl Field {
    /// What holds of each item.
    pub const fn each(mut self, rules: &'static [Rule]) -> Self {
        self.each = rules;
        self
    }

    /// What holds inside of it.
    pub const fn of(mut self, fields: &'static [Field]) -> Self {
        self.fields = fields;
        self
    }
}

/// Errors in the fields of the struct `value`; `old` is what it was before an update.
pub fn check(errs: &mut Errors, path: &Path<'_>, fields: &[Field], value: &Value, old: Option<&Value>) {
    for field in fields {
        let (value, old) = (value.at(field.name), old.map(|old| old.at(field.name)));
        if !old.is_some_and(|old| same(value, old)) {
            check_field(errs, &path.child(field.name), field, value, old);
        }
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}

fn check_field(errs: &mut Errors, path: &Path<'_>, field: &Field, value: &Value, old: Option<&Value>) {
    let before = errs.len();
    for rule in field.rules {
        match rule {
            Rule::Immutable if old.is_some() => errs.invalid(path, Value::Null, "field is immutable"),
            Rule::MaxItems(max) => check_items(errs, path, value.items("").len(), *max),
            Rule::Required if is_unset(value) => errs.required(path, ""),
            _ => {}
        }
    }
    if errs.len() > before || is_unset(value) {
        return;
    }
    for rule in field.rules {
        check_value(errs, path, rule, value, old);
    }
    let Value::Array(items) = value else {
        return check(errs, path, field.fields, value, old);
    };
    let key = field.rules.iter().find_map(|rule| match rule {
        Rule::Keyed(key) => Some(*key),
        _ => None,
    });
    for (i, item) in items.iter().enumerate() {
        let before = old.and_then(|old| {
            old.items("").iter().find(|before| match key {
                Some(key) => before.at(key) == item.at(key),
                None => same(before, item),
            })
        });
        if !before.is_some_and(|before| same(before, item)) {
            for rule in field.each {
                check_value(errs, &path.index(i), rule, item, before);
            }
            check(errs, &path.index(i), field.fields, item, before);
        }
    }
}

fn check_value(errs: &mut Errors, path: &Path<'_>, rule: &Rule, value: &Value, old: Option<&Value>) {
    match rule {
        Rule::Format(rule) => {
            let text = value.as_str().unwrap_or_default();
            errs.each(path, text, rule(text));
        }
        Rule::Minimum(min) if value.as_i64().is_some_and(|n| n < *min) => {
            errs.invalid(path, value.clone(), format!("must be greater than or equal to {min}"));
        }
        Rule::Maximum(max) if value.as_i64().is_some_and(|n| n > *max) => {
            errs.invalid(path, value.clone(), format!("must be less than or equal to {max}"));
        }
        Rule::MaxBytes(max) if value.as_str().is_some_and(|text| text.len() > *max) => {
            errs.push(FieldError::too_long(path, *max));
        }
        Rule::Keyed(key) => {
            let items = value.items("");
            for (i, item) in items.iter().enumerate() {
                if items[..i].iter().any(|before| before.at(key) == item.at(key)) {
                    errs.duplicate(&path.index(i), item.clone());
                }
            }
        }
        Rule::OneOf(members) => check_union(errs, path, members, value, old),
        Rule::Enum(allowed) => errs.one_of(path, value.as_str().unwrap_or_default(), allowed),
        _ => {}
    }
}

fn check_union(errs: &mut Errors, path: &Path<'_>, members: &[&str], value: &Value, old: Option<&Value>) {
    let is_set = |of: &Value, member: &str| of.has(member);
    // The choice is looked at again only where it changes.
    if old.is_some_and(|old| !old.is_null() && members.iter().all(|m| is_set(old, m) == is_set(value, m))) {
        return;
    }
    let set: Vec<&str> = members.iter().copied().filter(|m| is_set(value, m)).collect();
    let quoted = |names: &[&str]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match set.len() {
        0 => errs.invalid(path, "", format!("must specify one of: {}", quoted(members))),
        1 => {}
        _ => errs.invalid(
            path,
            format!("{{{}}}", set.join(", ")),
            format!("must specify exactly one of: {}", quoted(members)),
        ),
    }
}
