//! Validation against a structural schema, with the errors of upstream's OpenAPI validation.
//!
//! In: a type with [`Constraints`](crate::constraints::Constraints) and a value that has been pruned and
//! defaulted. Out: field errors. Built-in types have no constraints; their rules are in their strategies.

mod before;
pub(crate) mod embedded;
pub(crate) mod formats;
mod numbers;

use std::collections::HashSet;

use serde_json::Value;

use self::before::Before;
use crate::{
    constraints::{Constraints, JsonType, Rule},
    field::{ErrorKind, FieldError, Path},
    managed::same_value,
    model::{ListKind, Scalar, Shape, TypeRef},
};

/// Most errors that are told at once.
const MAX_ERRORS: usize = 200;

/// What is wrong with `object`: values against the schema first, then embedded resources, then lists against
/// their list types.
pub fn validate(ty: TypeRef<'_>, object: &Value) -> Vec<FieldError> {
    run(ty, object, None)
}

/// What is wrong with `object` that was not wrong with `old` already: what an update leaves as it is may
/// violate a schema that was tightened since (KEP-4008, ratcheting).
pub fn validate_update(ty: TypeRef<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
    run(ty, object, Some(old))
}

fn run(ty: TypeRef<'_>, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    values(ty, Slot::default(), object, Before::root(ty, old), &Path::ROOT, &mut errors);
    once(&mut errors);
    embedded::check(ty, object, true, &Path::ROOT, &mut errors);
    lists(ty, object, old, &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

/// What is wrong with a value against its schema is said once.
fn once(errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    errors.retain(|error| seen.insert(error.to_string()));
}

/// What is known of a value beside its type.
#[derive(Clone, Copy, Default)]
struct Slot {
    nullable: bool,
    /// It is (part of) a default, where upstream lets what may be a number or a text be anything.
    default: bool,
}

impl Slot {
    fn to(self, nullable: bool) -> Self {
        Self { nullable, ..self }
    }
}

/// What is wrong with a value against its schema alone, as with a default.
pub(crate) fn validate_value(ty: TypeRef<'_>, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = Slot { default: true, ..Slot::default() };
    values(ty, at, value, Before::NOTHING, &Path::ROOT, &mut errors);
    once(&mut errors);
    errors
}

/// [`validate_update`] for a write of `status` alone: the rest of the object is what it was.
pub fn validate_status_update(ty: TypeRef<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let slot = ty.field("status").map(|field| &field.slot);
    if let (Some(slot), Some(status)) = (slot, object.get("status")) {
        // Messages name what is wrong as seen from `status`.
        let nullable = Slot::default().to(slot.nullable);
        let before = Before::root(ty, Some(old)).member("status");
        values(ty.to(slot), nullable, status, before, &Path::ROOT, &mut errors);
        once(&mut errors);
        for error in &mut errors {
            error.field = match &*error.field {
                "<nil>" => "status".into(),
                field => format!("status.{field}"),
            };
        }
    }
    lists(ty, object, Some(old), &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

/// Lists against their list types. An object that broke them before may go on doing so.
fn lists(ty: TypeRef<'_>, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut found = Vec::new();
    list_types(ty, object, &Path::ROOT, &mut found);
    if !found.is_empty()
        && let Some(old) = old
    {
        let mut before = Vec::new();
        list_types(ty, old, &Path::ROOT, &mut before);
        if !before.is_empty() {
            return;
        }
    }
    errors.extend(found);
}

/// The path as messages show it, where the root is nothing.
fn shown(path: &Path<'_>) -> String {
    let text = path.to_string();
    if text == "<nil>" { String::new() } else { text }
}

/// The JSON type that a type demands; `None` if any will do.
fn demanded(ty: TypeRef<'_>) -> Option<JsonType> {
    if ty.ty().constraints.as_ref().is_some_and(|c| c.untyped) {
        return None;
    }
    Some(match ty.shape() {
        Shape::Any => return None,
        Shape::Struct(_) | Shape::Map(_) => JsonType::Object,
        Shape::List(_) => JsonType::Array,
        Shape::Scalar(scalar) => match scalar {
            Scalar::Bool => JsonType::Boolean,
            Scalar::Int32 | Scalar::Int64 => JsonType::Integer,
            Scalar::Float64 => JsonType::Number,
            Scalar::IntOrString | Scalar::Quantity => JsonType::IntOrString,
            _ => JsonType::String,
        },
    })
}

fn values(
    ty: TypeRef<'_>,
    at: Slot,
    value: &Value,
    before: Before<'_>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if errors.len() >= MAX_ERRORS || before.keeps(value) {
        return;
    }
    let constraints = ty.ty().constraints.as_deref();
    let format = constraints.and_then(Constraints::format);
    let wanted = demanded(ty);
    if let Some(wanted) = wanted.filter(|wanted| !at.default || *wanted != JsonType::IntOrString) {
        check_type(wanted, at.nullable, format, value, path, errors);
    }
    if let (Some(JsonType::Integer), Value::Number(number)) = (wanted, value) {
        numbers::check_whole(number, "Checked", format, path, errors);
    }
    if let Some(constraints) = constraints {
        rules(&constraints.rules, value, before, path, wanted, errors);
    }
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => {
            for (name, member) in map {
                // Metadata is not the schema's to judge.
                let meta = s.embedded && name == "metadata";
                if let Some(field) = s.field(name).filter(|_| !meta) {
                    let slot = &field.slot;
                    let before = before.member(name);
                    values(ty.to(slot), at.to(slot.nullable), member, before, &path.child(name), errors);
                }
            }
        }
        (Shape::Map(m), Value::Object(map)) => {
            for (name, member) in map {
                let slot = &m.value;
                let before = before.member(name);
                values(ty.to(slot), at.to(slot.nullable), member, before, &path.child(name), errors);
            }
        }
        (Shape::List(l), Value::Array(items)) => {
            let were = before.items();
            for (i, item) in items.iter().enumerate() {
                let before = were.of(item);
                values(ty.to(&l.item), at.to(l.item.nullable), item, before, &path.index(i), errors);
            }
        }
        _ => {}
    }
}

fn type_name(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        // What does not fit is read as a float, in Go.
        Value::Number(n) if n.as_i64().is_none() => ("number", "float64"),
        Value::Number(_) => ("integer", "int64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// Whole numbers beyond it are not whole to upstream where they are read as floats: doubles do not hold all of them.
const MAX_WHOLE: f64 = 9_007_199_254_740_991.0;

fn wrong_type(path: &Path<'_>, wanted: &str, have: &str) -> FieldError {
    let detail = format!("{} in body must be of type {wanted}: {have:?}", shown(path));
    FieldError::type_invalid(path, have, detail)
}

fn check_type(
    wanted: JsonType,
    nullable: bool,
    format: Option<&str>,
    value: &Value,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if value.is_null() {
        if !nullable {
            errors.push(wrong_type(path, wanted.name(), "null"));
        }
        return;
    }
    let (have, have_format) = type_name(value);
    let whole = value.as_f64().is_some_and(|x| x.fract() == 0.0 && x.abs() <= MAX_WHOLE);
    let fits = match wanted {
        JsonType::Number => value.is_number(),
        JsonType::Integer => value.is_number() && (have == "integer" || whole),
        JsonType::IntOrString => value.is_string() || (value.is_number() && (have == "integer" || whole)),
        other => other.name() == have,
    };
    if fits {
        return;
    }
    match format {
        Some(format) if !value.is_string() && !value.is_array() => {
            errors.push(wrong_type(path, format, have_format));
        }
        // Upstream leaves strings and lists with a format to the format's own check.
        Some(_) if !matches!(wanted, JsonType::Number | JsonType::Integer | JsonType::IntOrString) => {}
        _ => errors.push(wrong_type(path, wanted.name(), have)),
    }
}

fn invalid(path: &Path<'_>, value: impl Into<Value>, what: &str) -> FieldError {
    FieldError::invalid(path, value, format!("{} in body {what}", shown(path)))
}

/// An error that upstream cannot tie to a field.
fn loose(message: String) -> FieldError {
    FieldError::invalid(&Path::ROOT, "", message)
}

fn run_clause(clause: &[Rule], value: &Value, before: Before<'_>, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let wanted = clause.iter().find_map(|r| match r {
        Rule::Type(t, _) => Some(*t),
        _ => None,
    });
    rules(clause, value, before, path, wanted, &mut errors);
    errors
}

/// Of clauses that do not hold, the one that upstream tells of: the first of those that looked at most of the value.
#[derive(Default)]
struct Nearest {
    weight: usize,
    errors: Vec<FieldError>,
}

impl Nearest {
    /// Always `false`: the clause does not hold.
    fn see(&mut self, clause: &[Rule], value: &Value, wrong: Vec<FieldError>) -> bool {
        let weight = weight(clause, value);
        if weight > self.weight {
            *self = Self { weight, errors: wrong };
        }
        false
    }
}

/// How many checks upstream makes of the value for this clause.
fn weight(clause: &[Rule], value: &Value) -> usize {
    if value.is_null() {
        return 1;
    }
    let own = if value.is_array() { 6 } else { 5 };
    let more = clause.iter().map(|rule| match (rule, value) {
        (Rule::Format(_), Value::String(_)) => 1,
        (Rule::Properties(clauses), Value::Object(map)) => clauses
            .iter()
            .filter_map(|(name, clause)| map.get(&**name).map(|member| weight(clause, member)))
            .sum(),
        (Rule::Items(clause), Value::Array(items)) => items.iter().map(|item| weight(clause, item)).sum(),
        _ => 0,
    });
    own + more.sum::<usize>()
}

fn rules(
    rules: &[Rule],
    value: &Value,
    before: Before<'_>,
    path: &Path<'_>,
    wanted: Option<JsonType>,
    errors: &mut Vec<FieldError>,
) {
    let format = rules.iter().find_map(|rule| match rule {
        Rule::Format(format) => Some(&**format),
        _ => None,
    });
    let mut is_text_wrong = false;
    for rule in rules {
        if errors.len() >= MAX_ERRORS {
            return;
        }
        match rule {
            // Of a text's length and pattern one mistake is told.
            Rule::MaxLength(_) | Rule::MinLength(_) | Rule::Pattern(_) if is_text_wrong => {}
            Rule::Type(wanted, nullable) => {
                check_type(*wanted, *nullable, None, value, path, errors);
                if let (JsonType::Integer, Value::Number(number)) = (wanted, value) {
                    numbers::check_whole(number, "Checked", format, path, errors);
                }
            }
            Rule::Enum(allowed) => check_enum(allowed, value, path, errors),
            // `null` is checked for its type and against enumerations only.
            _ if value.is_null() => {}
            Rule::AnyOf(clauses) => {
                let mut nearest = Nearest::default();
                let valid = clauses.iter().any(|clause| {
                    let wrong = run_clause(clause, value, Before::NOTHING, path);
                    wrong.is_empty() || nearest.see(clause, value, wrong)
                });
                if !valid {
                    errors
                        .push(loose(format!("{:?} must validate at least one schema (anyOf)", shown(path))));
                    errors.append(&mut nearest.errors);
                }
            }
            Rule::OneOf(clauses) => {
                let mut nearest = Nearest::default();
                let mut valid = 0;
                for clause in clauses {
                    let wrong = run_clause(clause, value, Before::NOTHING, path);
                    if wrong.is_empty() {
                        valid += 1;
                    } else {
                        nearest.see(clause, value, wrong);
                    }
                }
                if valid != 1 {
                    let found = if valid == 0 {
                        "Found none valid".to_owned()
                    } else {
                        format!("Found {valid} valid alternatives")
                    };
                    errors.push(loose(format!(
                        "{:?} must validate one and only one schema (oneOf). {found}",
                        shown(path)
                    )));
                    if valid == 0 {
                        errors.append(&mut nearest.errors);
                    }
                }
            }
            Rule::AllOf(clauses) => {
                let mut valid = 0;
                for clause in clauses {
                    let wrong = run_clause(clause, value, Before::NOTHING, path);
                    valid += usize::from(wrong.is_empty());
                    errors.extend(wrong);
                }
                if valid != clauses.len() {
                    let none = if valid == 0 { ". None validated" } else { "" };
                    errors.push(loose(format!(
                        "{:?} must validate all the schemas (allOf){none}",
                        shown(path)
                    )));
                }
            }
            Rule::Not(clause) => {
                if run_clause(clause, value, Before::NOTHING, path).is_empty() {
                    errors.push(loose(format!("{:?} must not validate the schema (not)", shown(path))));
                }
            }
            _ => match value {
                Value::String(text) => {
                    let count = errors.len();
                    check_string(rule, text, wanted, path, errors);
                    is_text_wrong |= errors.len() > count && !matches!(rule, Rule::Format(_));
                }
                Value::Number(number) => numbers::check_number(rule, number, wanted, format, path, errors),
                Value::Array(items) => check_list(rule, items, path, errors),
                Value::Object(map) => check_object(rule, map, before, path, errors),
                _ => {}
            },
        }
    }
}

fn check_enum(allowed: &[Value], value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    // Upstream takes a number for what its whole part is, where a whole one is allowed.
    let truncated = value.as_f64().filter(|x| x.fract() != 0.0).map(|x| Value::from(x as i64));
    let is = |a: &Value| same_value(a, value) || (a.is_i64() && truncated.as_ref() == Some(a));
    if !value.is_null() && allowed.iter().any(is) {
        return;
    }
    let texts: Vec<String> =
        allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    errors.push(FieldError::not_listed(path, value.clone(), &texts));
}

fn check_string(
    rule: &Rule,
    text: &str,
    wanted: Option<JsonType>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let length = || text.chars().count() as u64;
    match rule {
        // The byte length bounds the number of characters, and mostly decides.
        Rule::MaxLength(max) if text.len() as u64 > *max && length() > *max => {
            errors.push(FieldError::too_long(path, usize::try_from(*max).unwrap_or(usize::MAX)));
        }
        Rule::MinLength(min) if length() < *min => {
            errors.push(invalid(path, text, &format!("should be at least {min} chars long")));
        }
        Rule::Pattern(pattern) if pattern.matches(text) != Some(true) => {
            errors.push(invalid(path, text, &format!("should match '{}'", pattern.source())));
        }
        Rule::Format(format)
            if !matches!(wanted, Some(JsonType::Integer | JsonType::Number))
                && !formats::matches(format, text) =>
        {
            let detail = format!("{} in body must be of type {format}: {text:?}", shown(path));
            errors.push(FieldError::type_invalid(path, text, detail));
        }
        _ => {}
    }
}

fn check_list(rule: &Rule, items: &[Value], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let count = items.len() as u64;
    match rule {
        Rule::Items(clause) => {
            for (i, item) in items.iter().enumerate() {
                errors.extend(run_clause(clause, item, Before::NOTHING, &path.index(i)));
            }
        }
        Rule::MinItems(min) if count < *min => {
            errors.push(invalid(path, count, &format!("should have at least {min} items")));
        }
        Rule::MaxItems(max) if count > *max => {
            errors.push(FieldError::too_many(path, items.len(), usize::try_from(*max).unwrap_or(usize::MAX)));
        }
        Rule::UniqueItems => {
            let mut seen = HashSet::new();
            if !items.iter().all(|item| seen.insert(item.to_string())) {
                errors.push(invalid(path, "", "shouldn't contain duplicates"));
            }
        }
        _ => {}
    }
}

fn check_object(
    rule: &Rule,
    map: &serde_json::Map<String, Value>,
    before: Before<'_>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let count = map.len() as u64;
    match rule {
        Rule::MinProperties(min) if count < *min => {
            errors.push(invalid(path, count, &format!("should have at least {min} properties")));
        }
        Rule::MaxProperties(max) if count > *max => {
            errors.push(FieldError::too_many(path, map.len(), usize::try_from(*max).unwrap_or(usize::MAX)));
        }
        Rule::OnlyProperties(known) => {
            for name in map.keys().filter(|n| !known.iter().any(|k| **k == **n)) {
                let detail = format!("{}.{name} in body is a forbidden property", shown(path));
                errors.push(FieldError::invalid(path, name.as_str(), detail));
            }
        }
        Rule::Properties(clauses) => {
            for (name, clause) in clauses {
                let before = before.member(name);
                if let Some(member) = map.get(&**name).filter(|member| !before.keeps(member)) {
                    errors.extend(run_clause(clause, member, before, &path.child(name)));
                }
            }
        }
        Rule::Required(names) => {
            for name in names.iter().filter(|n| !map.contains_key(&***n)) {
                errors.push(FieldError::required(&path.child(name), ""));
            }
        }
        _ => {}
    }
}

/// Items of sets and of lists with keys must differ.
fn list_types(ty: TypeRef<'_>, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    match (ty.shape(), value) {
        (Shape::Struct(s), Value::Object(map)) => {
            for (name, member) in map {
                if let Some(field) = s.field(name) {
                    list_types(ty.to(&field.slot), member, &path.child(name), errors);
                }
            }
        }
        (Shape::Map(m), Value::Object(map)) => {
            for (name, member) in map {
                list_types(ty.to(&m.value), member, &path.key(name), errors);
            }
        }
        (Shape::List(list), Value::Array(items)) => {
            match &list.kind {
                ListKind::Atomic => {}
                ListKind::Set => report_duplicates(items.iter().cloned(), path, errors),
                ListKind::Map(keys) => {
                    if let Some(i) = items.iter().position(|v| !v.is_object() && !v.is_null()) {
                        errors.push(FieldError::invalid(
                            &path.index(i),
                            items[i].clone(),
                            "must be an object for an array of list-type map",
                        ));
                        return;
                    }
                    let of = |item: &Value| {
                        let picked =
                            keys.iter().filter_map(|k| item.get(&**k).map(|v| (k.to_string(), v.clone())));
                        Value::Object(picked.collect())
                    };
                    report_duplicates(items.iter().map(of), path, errors);
                }
            }
            for (i, item) in items.iter().enumerate() {
                list_types(ty.to(&list.item), item, &path.index(i), errors);
            }
        }
        _ => {}
    }
}

/// Reports the second of each group of equal items.
fn report_duplicates(items: impl Iterator<Item = Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen: std::collections::HashMap<String, u32> = std::collections::HashMap::new();
    for (i, item) in items.enumerate() {
        let times = seen.entry(item.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            errors.push(FieldError {
                kind: ErrorKind::Duplicate,
                field: path.index(i).to_string(),
                value: Some(item.into()),
                detail: String::new(),
            });
        }
    }
}
