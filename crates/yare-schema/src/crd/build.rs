//! From schemas to types, with the rules and defaults that stand in them.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Map as Fields, Value, json};

use super::{AdditionalProperties, Compiled, Kept, Keywords};
use crate::{
    builtin::builtin,
    coerce::{self, Misfits},
    constraints::{Constraints, JsonType, Pattern, Rule, Rules},
    field::{FieldError, Path},
    model::{
        Additional, Field, List, ListKind, Map, Scalar, Schema, Shape, Slot, Struct, Type, TypeId, TypeRef,
    },
    prune::prune_value,
    validate::{embedded, formats, validate_value},
};

/// Most properties of one object.
const MAX_PROPERTIES: usize = 10_000;

/// The types of a schema. What makes no sense in it is passed over.
pub(super) fn build(schema: &Value) -> Compiled {
    let mut builder = Builder::default();
    let root = builder.slot(Keywords(schema), &Path::ROOT, true);
    builder.schema.types.shrink_to_fit();
    Compiled { schema: Arc::new(builder.schema), root: root.ty }
}

/// Errors in the defaults of a structural schema.
pub(super) fn check_defaults(schema: &Value, path: &Path<'_>, kept: Kept) -> Vec<FieldError> {
    let mut builder = Builder { checks: Some(kept), ..Builder::default() };
    builder.slot(Keywords(schema), path, true);
    builder.errors
}

/// What all objects have.
const OBJECT_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A step from a value to one in it.
#[derive(Clone)]
enum Step {
    Field(Box<str>),
    Item,
}

/// An error in a value that stands at `at`.
fn moved(mut error: FieldError, at: &str) -> FieldError {
    error.field = match error.field.as_str() {
        "<nil>" => at.to_owned(),
        rest => format!("{at}.{rest}"),
    };
    error
}

#[derive(Default)]
struct Builder {
    schema: Schema,
    /// Scalars without constraints, which all places share.
    plain: Vec<(Scalar, TypeId)>,
    object_meta: Option<TypeId>,
    /// Whether defaults are checked here, and what for not.
    checks: Option<Kept>,
    /// The way from an object to what is looked at, where that is part of what all objects have.
    within: Option<Vec<Step>>,
    errors: Vec<FieldError>,
}

impl Builder {
    fn push(&mut self, shape: Shape, constraints: Constraints) -> TypeId {
        let constraints = (!constraints.is_empty()).then(|| Box::new(constraints));
        if let (Shape::Scalar(scalar), None) = (&shape, &constraints) {
            if let Some((_, id)) = self.plain.iter().find(|(s, _)| s == scalar) {
                return *id;
            }
            let scalar = *scalar;
            let id = self.schema.push(Type::new("", shape));
            self.plain.push((scalar, id));
            return id;
        }
        self.schema.push(Type { constraints, ..Type::new("", shape) })
    }

    fn slot(&mut self, s: Keywords<'_>, path: &Path<'_>, root: bool) -> Slot {
        let ty = self.ty(s, path, root);
        let mut default = s.get("default").cloned();
        match (&mut default, self.checks) {
            (Some(default), Some(kept)) => self.check_default(ty, default, path, kept, root),
            // Definitions of the past may have defaults with more in them than there may be.
            (Some(default), None) if self.within.is_none() => {
                prune_value(self.schema.at(ty), default);
                // What does not fit is dropped, so that nothing is refused.
                let _ = coerce::coerce_value(self.schema.at(ty), default, path, Misfits::Drop);
            }
            _ => {}
        }
        Slot { ty, default: default.map(Arc::new), nullable: s.flag("nullable") }
    }

    /// A default must be a value of its type, and part of an object that can be where it stands in what all have.
    fn check_default(&mut self, ty: TypeId, default: &Value, path: &Path<'_>, kept: Kept, root: bool) {
        let at = path.child("default");
        if let Some(steps) = &self.within {
            if let Some(why) = meta_errors(steps, default) {
                let detail = format!("must result in valid metadata: {why}");
                self.errors.push(FieldError::invalid(&at, default.clone(), detail));
                return;
            }
        } else {
            let ty = self.schema.at(ty);
            let mut fit = default.clone();
            prune_value(ty, &mut fit);
            if fit != *default && !kept.unpruned_defaults {
                self.errors.push(FieldError::invalid(&at, default.clone(), "must not have unknown fields"));
            }
            fit.clone_from(default);
            let mut found = Vec::new();
            match coerce::coerce_value(ty, &mut fit, &at, Misfits::Refuse) {
                Ok(_) => {
                    // One of the whole is an object in its own right.
                    if let Value::Object(map) = default
                        && root
                    {
                        embedded::resource(map, &at, &mut found);
                    }
                    embedded::check(ty, default, root, &at, &mut found);
                }
                Err(error) => found.push(error),
            }
            if !found.is_empty() {
                self.errors.extend(found);
                return;
            }
        }
        let at = at.to_string();
        let found = validate_value(self.schema.at(ty), default);
        self.errors.extend(found.into_iter().map(|error| moved(error, &at)));
    }

    /// [`Builder::slot`] of what stands one step further inside.
    fn inner(&mut self, step: Step, s: Keywords<'_>, path: &Path<'_>) -> Slot {
        if let Some(steps) = &mut self.within {
            steps.push(step);
        }
        let slot = self.slot(s, path, false);
        if let Some(steps) = &mut self.within {
            steps.pop();
        }
        slot
    }

    fn ty(&mut self, s: Keywords<'_>, path: &Path<'_>, root: bool) -> TypeId {
        let mut constraints = Constraints { rules: value_rules(s), untyped: false };
        let preserve = s.flag("x-kubernetes-preserve-unknown-fields");
        let shape = if s.flag("x-kubernetes-int-or-string") {
            Shape::Scalar(Scalar::IntOrString)
        } else {
            match s.text("type") {
                "object" => self.object(s, path, root, preserve, &mut constraints),
                "array" => self.list(s, path),
                "string" => Shape::Scalar(Scalar::String),
                "integer" => Shape::Scalar(Scalar::Int64),
                "number" => Shape::Scalar(Scalar::Float64),
                "boolean" => Shape::Scalar(Scalar::Bool),
                _ if s.properties().next().is_some() || root => {
                    constraints.untyped = !root;
                    self.object(s, path, root, preserve, &mut constraints)
                }
                _ => Shape::Any,
            }
        };
        self.push(shape, constraints)
    }

    fn list(&mut self, s: Keywords<'_>, path: &Path<'_>) -> Shape {
        let item = match s.items() {
            Some(items) => self.inner(Step::Item, Keywords(items), &path.child("items")),
            None => Slot::new(self.push(Shape::Any, Constraints::default())),
        };
        let kind = match s.text("x-kubernetes-list-type") {
            "map" => ListKind::Map(s.names("x-kubernetes-list-map-keys").map(Into::into).collect()),
            "set" => ListKind::Set,
            _ => ListKind::Atomic,
        };
        Shape::List(List { item, kind })
    }

    fn object(
        &mut self,
        s: Keywords<'_>,
        path: &Path<'_>,
        root: bool,
        preserve: bool,
        constraints: &mut Constraints,
    ) -> Shape {
        let atomic = s.text("x-kubernetes-map-type") == "atomic";
        let embedded = root || s.flag("x-kubernetes-embedded-resource");
        self.schema.embeds |= embedded && !root;
        let has_properties = s.properties().next().is_some();
        if !has_properties && !embedded {
            match s.additional() {
                AdditionalProperties::Schema(schema) => {
                    // Upstream does not look at defaults of what stands under free keys.
                    let checks = self.checks.take();
                    let value = self.slot(Keywords(schema), &path.child("additionalProperties"), false);
                    self.checks = checks;
                    return Shape::Map(Map { value, atomic });
                }
                AdditionalProperties::Bool(true) if !preserve => {
                    // Anything may be there, but objects in it have no known fields.
                    let untyped = Constraints { untyped: true, ..Constraints::default() };
                    let value = Slot::new(self.push(Shape::Struct(Struct::default()), untyped));
                    return Shape::Map(Map { value, atomic });
                }
                _ => {}
            }
        }
        let additional = match s.additional() {
            AdditionalProperties::Absent if !preserve => Additional::Prune,
            AdditionalProperties::Bool(false) => {
                let known = s.properties().map(|(name, _)| name.as_str().into()).collect();
                constraints.rules.push(Rule::OnlyProperties(known));
                Additional::Preserve
            }
            _ => Additional::Preserve,
        };
        let required: Vec<&str> = s.names("required").collect();
        let properties_path = path.child("properties");
        let mut fields = Vec::new();
        let mut metadata = None;
        if s.properties().count() > MAX_PROPERTIES {
            self.errors.push(FieldError::too_many(&properties_path, s.properties().count(), MAX_PROPERTIES));
        }
        for (name, property) in s.properties().take(MAX_PROPERTIES) {
            let slot = if embedded && name == "metadata" {
                // Metadata has its own type; what the schema says of it only constrains it.
                let clause = clause_rules(Keywords(property));
                if !clause.is_empty() {
                    constraints.rules.push(Rule::Properties(Box::new([("metadata".into(), clause)])));
                }
                let path = properties_path.key(name);
                if !root {
                    let said = self.of_meta(name, Keywords(property), &path);
                    metadata = Some(said.ty);
                    Slot { default: said.default, ..Slot::new(self.object_meta()) }
                } else {
                    // No default may stand there; what is wrong with one is told nevertheless.
                    if self.checks.is_some() {
                        self.of_meta(name, Keywords(property), &path);
                    }
                    Slot::new(self.object_meta())
                }
            } else if embedded && OBJECT_META.contains(&name.as_str()) {
                self.of_meta(name, Keywords(property), &properties_path.key(name))
            } else {
                self.inner(Step::Field(name.as_str().into()), Keywords(property), &properties_path.key(name))
            };
            fields.push(Field {
                required: required.contains(&name.as_str()),
                ..Field::new(name.as_str(), slot)
            });
        }
        if embedded {
            for name in ["apiVersion", "kind", "metadata"] {
                if !fields.iter().any(|f| &*f.name == name) {
                    let ty = if name == "metadata" {
                        self.object_meta()
                    } else {
                        self.push(Shape::Scalar(Scalar::String), Constraints::default())
                    };
                    fields.push(Field::new(name, Slot::new(ty)));
                }
            }
        }
        fields.shrink_to_fit();
        Shape::Struct(Struct { fields, atomic, additional, embedded, metadata, ..Struct::default() }.index())
    }

    /// What the schema of an object says of a part that all objects have.
    fn of_meta(&mut self, name: &str, s: Keywords<'_>, path: &Path<'_>) -> Slot {
        let outside = self.within.replace(vec![Step::Field(name.into())]);
        let slot = self.slot(s, path, false);
        self.within = outside;
        slot
    }

    fn object_meta(&mut self) -> TypeId {
        if let Some(id) = self.object_meta {
            return id;
        }
        let id = copy(builtin().object_meta(), &mut self.schema, &mut HashMap::new());
        self.object_meta = Some(id);
        id
    }
}

/// What is wrong with an object for having a default there, in one line.
fn meta_errors(steps: &[Step], default: &Value) -> Option<String> {
    let part = steps.iter().rev().fold(default.clone(), |inner, step| match step {
        Step::Field(name) => json!({ &**name: inner }),
        Step::Item => json!([inner]),
    });
    let mut object = Fields::from_iter([
        ("apiVersion".to_owned(), "validation/v1".into()),
        ("kind".to_owned(), "Validation".into()),
    ]);
    if let Value::Object(part) = part {
        object.extend(part);
    }
    let mut errors = Vec::new();
    match coerce::object(&mut object) {
        Ok(()) => embedded::resource(&object, &Path::ROOT, &mut errors),
        Err(error) => errors.push(error),
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}

/// Copies a type with all it refers to into another schema.
fn copy(from: TypeRef<'_>, into: &mut Schema, done: &mut HashMap<TypeId, TypeId>) -> TypeId {
    if let Some(id) = done.get(&from.id) {
        return *id;
    }
    // The place is taken first, for types that refer to themselves.
    let id = into.push(Type::new(from.ty().name.clone(), Shape::Any));
    done.insert(from.id, id);
    let mut slot = |slot: &Slot| Slot { ty: copy(from.to(slot), into, done), ..slot.clone() };
    let shape = match from.shape() {
        Shape::Scalar(scalar) => Shape::Scalar(*scalar),
        Shape::Any => Shape::Any,
        Shape::List(l) => Shape::List(List { item: slot(&l.item), kind: l.kind.clone() }),
        Shape::Map(m) => Shape::Map(Map { value: slot(&m.value), atomic: m.atomic }),
        Shape::Struct(s) => {
            let fields = s.fields.iter().map(|f| Field { slot: slot(&f.slot), ..f.clone() }).collect();
            let copy = Struct {
                fields,
                atomic: s.atomic,
                additional: s.additional.clone(),
                embedded: s.embedded,
                ..Struct::default()
            };
            Shape::Struct(copy.index())
        }
    };
    let ty = &mut into.types[id.0 as usize];
    ty.shape = shape;
    ty.wire = from.ty().wire;
    ty.enumeration = from.ty().enumeration.clone();
    id
}

fn count(s: Keywords<'_>, name: &str) -> Option<u64> {
    let number = s.get(name)?;
    number.as_u64().or_else(|| number.as_f64().filter(|x| *x >= 0.0).map(|x| x as u64))
}

fn clause_list(s: Keywords<'_>, name: &str) -> Option<Box<[Rules]>> {
    let clauses = s.list(name);
    (!clauses.is_empty()).then(|| clauses.iter().map(|c| clause_rules(Keywords(c))).collect())
}

/// The constraints that a schema puts on values itself, in the order in which they are reported.
fn value_rules(s: Keywords<'_>) -> Rules {
    let mut rules = Rules::new();
    let mut put = |rule: Option<Rule>| rules.extend(rule);
    put(clause_list(s, "anyOf").map(Rule::AnyOf));
    put(clause_list(s, "oneOf").map(Rule::OneOf));
    put(clause_list(s, "allOf").map(Rule::AllOf));
    put(s.get("not").map(|not| Rule::Not(clause_rules(Keywords(not)))));
    put(count(s, "maxLength").map(Rule::MaxLength));
    put(count(s, "minLength").filter(|n| *n > 0).map(Rule::MinLength));
    put(Some(s.text("pattern")).filter(|p| !p.is_empty()).map(|p| Rule::Pattern(Box::new(Pattern::new(p)))));
    put(Some(s.text("format")).filter(|f| is_checked(s.text("type"), f)).map(|f| Rule::Format(f.into())));
    let number = |name: &str| s.get(name).and_then(Value::as_number).cloned();
    put(number("multipleOf").map(Rule::MultipleOf));
    put(number("maximum").map(|n| Rule::Maximum(n, s.flag("exclusiveMaximum"))));
    put(number("minimum").map(|n| Rule::Minimum(n, s.flag("exclusiveMinimum"))));
    put(count(s, "minItems").filter(|n| *n > 0).map(Rule::MinItems));
    put(count(s, "maxItems").map(Rule::MaxItems));
    put(s.flag("uniqueItems").then_some(Rule::UniqueItems));
    put(s.get("enum").and_then(Value::as_array).map(|values| Rule::Enum(values.clone().into())));
    put(count(s, "minProperties").filter(|n| *n > 0).map(Rule::MinProperties));
    put(count(s, "maxProperties").map(Rule::MaxProperties));
    let required: Box<[Box<str>]> = s.names("required").map(Into::into).collect();
    put((!required.is_empty()).then_some(Rule::Required(required)));
    rules.shrink_to_fit();
    rules
}

/// Which formats are checked depends on the type they stand beside.
pub(super) fn is_checked(ty: &str, format: &str) -> bool {
    match ty {
        "" | "string" => !format.is_empty() && formats::is_known(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// All that a clause of a junctor says, also of what lies below.
fn clause_rules(s: Keywords<'_>) -> Rules {
    let mut rules = Rules::new();
    let ty = if s.flag("x-kubernetes-int-or-string") {
        Some(JsonType::IntOrString)
    } else {
        JsonType::parse(s.text("type"))
    };
    rules.extend(ty.map(|ty| Rule::Type(ty, s.flag("nullable"))));
    rules.extend(value_rules(s));
    if let Some(items) = s.items() {
        rules.push(Rule::Items(clause_rules(Keywords(items))));
    }
    let properties: Box<[(Box<str>, Rules)]> = s
        .properties()
        .map(|(name, p)| (name.as_str().into(), clause_rules(Keywords(p))))
        .filter(|(_, rules): &(Box<str>, Rules)| !rules.is_empty())
        .collect();
    if !properties.is_empty() {
        rules.push(Rule::Properties(properties));
    }
    rules
}
