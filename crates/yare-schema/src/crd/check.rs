//! What a definition's schema must keep to besides being structural: unsupported keywords, list and map
//! types, places where defaults make no sense.

use serde_json::Value;

use super::{AdditionalProperties, Kept, Keywords, MAX_ERRORS, is_said};
use crate::{
    constraints::JsonType,
    field::{FieldError, Path},
};

/// What a definition's schema must keep to besides being structural.
pub(super) fn open_api(schema: &Value, path: &Path<'_>, kept: Kept) -> Vec<FieldError> {
    let mut errors = Vec::new();
    open_api_at(Keywords(schema), path, Place { root: true, kept, ..Place::default() }, &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

/// What the root of a schema may say if `status` is a subresource, by Go's names of the keywords, which the
/// message lists: whatever else stood there would not hold for `status` alone.
const ROOT_WITH_STATUS: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields"),
    ("XValidations", "x-kubernetes-validations"),
];

pub(super) fn root_with_status(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let s = Keywords(schema);
    let said = |name: &str| s.get(name).is_some_and(|value| is_said(name, value));
    let allowed = |name: &str| ROOT_WITH_STATUS.iter().any(|(_, keyword)| *keyword == name);
    let ty = s.text("type");
    // Keywords are looked at in the order of Go's fields, up to the first that is wrong.
    let before_type = ["id", "$schema", "$ref"].iter().any(|name| said(name));
    if !before_type && !ty.is_empty() && ty != "object" {
        return vec![FieldError::invalid(
            &path.child("type"),
            ty,
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
        )];
    }
    if schema.as_object().is_some_and(|map| map.keys().any(|name| !allowed(name) && said(name))) {
        let names: Vec<&str> = ROOT_WITH_STATUS.iter().map(|(name, _)| *name).collect();
        return vec![FieldError::invalid(
            path,
            schema.clone(),
            format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                names.join(" ")
            ),
        )];
    }
    Vec::new()
}

#[derive(Clone, Copy, Default)]
struct Place {
    root: bool,
    inside_meta: bool,
    /// Why defaults may not be set here.
    no_defaults: Option<&'static str>,
    kept: Kept,
}

/// Keywords of JSON Schema that a definition must not use.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("id", "id is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("$ref", "$ref is not supported"),
];

fn open_api_at(s: Keywords<'_>, path: &Path<'_>, place: Place, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    let place_here = Place { root: false, ..place };
    let ty = s.text("type");
    let type_path = path.child("type");
    if !place.kept.odd_types && !ty.is_empty() && JsonType::parse(ty).is_none() {
        let all = ["array", "boolean", "integer", "number", "object", "string"];
        errors.push(FieldError::not_supported(&type_path, ty, &all));
    }
    if s.get("default").is_some()
        && let Some(why) = place.no_defaults
    {
        errors.push(FieldError::forbidden(&path.child("default"), format!("must not be set {why}")));
    }
    for (name, detail) in UNSUPPORTED {
        if s.get(name).is_some_and(|v| is_said(name, v) || name == "dependencies") {
            errors.push(FieldError::forbidden(&path.child(name), detail));
        }
    }
    if ty == "null" {
        errors.push(FieldError::forbidden(
            &type_path,
            "type cannot be set to null, use nullable as an alternative",
        ));
    }
    let items_path = path.child("items");
    if s.get("items").is_some_and(Value::is_array) {
        errors.push(FieldError::forbidden(&items_path, "items must be a schema object and not an array"));
    }
    if place.inside_meta && s.flag("x-kubernetes-embedded-resource") {
        errors.push(FieldError::forbidden(
            &path.child("x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        ));
    }
    if s.flag("uniqueItems") {
        errors.push(FieldError::forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let additional_path = path.child("additionalProperties");
    let has_properties = s.properties().next().is_some();
    match s.additional() {
        AdditionalProperties::Absent => {}
        AdditionalProperties::Bool(true) => {}
        _ if has_properties => errors.push(FieldError::forbidden(
            &additional_path,
            "additionalProperties and properties are mutual exclusive",
        )),
        _ => {}
    }
    if let AdditionalProperties::Schema(schema) = s.additional() {
        let mut place = place_here;
        if place.inside_meta {
            place.no_defaults = Some("inside additionalProperties applying to object metadata");
        }
        open_api_at(Keywords(schema), &additional_path, place, errors);
    }
    let properties_path = path.child("properties");
    for (name, property) in s.properties() {
        let mut place_there = place_here;
        if place.root || s.flag("x-kubernetes-embedded-resource") {
            let why = match name.as_str() {
                "apiVersion" => Some("in top-level apiVersion"),
                "kind" => Some("in top-level kind"),
                "metadata" => Some("in top-level metadata"),
                _ => None,
            };
            if why.is_some() {
                place_there.inside_meta = true;
                if place.root {
                    place_there.no_defaults = why;
                }
            }
        }
        open_api_at(Keywords(property), &properties_path.key(name), place_there, errors);
    }
    if let Some(not) = s.get("not") {
        open_api_at(Keywords(not), &path.child("not"), place_here, errors);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        let list_path = path.child(name);
        for (i, clause) in s.list(name).iter().enumerate() {
            open_api_at(Keywords(clause), &list_path.index(i), place_here, errors);
        }
    }
    for name in ["definitions", "dependencies"] {
        let list_path = path.child(name);
        for (name, schema) in s.get(name).and_then(Value::as_object).into_iter().flatten() {
            open_api_at(Keywords(schema), &list_path.key(name), place_here, errors);
        }
    }
    if let Some(items) = s.items() {
        open_api_at(Keywords(items), &items_path, place_here, errors);
    }
    for (i, items) in s.list("items").iter().enumerate() {
        open_api_at(Keywords(items), &items_path.index(i), place_here, errors);
    }
    if s.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.push(FieldError::invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    list_and_map_types(s, path, place.kept, errors);
    if !place.kept.loose_keys {
        list_keys(s, path, errors);
    }
    validation_rules(s, path, errors);
}

fn typed_as(s: Keywords<'_>, keyword: &str, wanted: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let ty = s.text("type");
    if s.get(keyword).is_some() && ty != wanted {
        let detail = format!("must be {wanted} if {keyword} is specified");
        let type_path = path.child("type");
        errors.push(if ty.is_empty() {
            FieldError::required(&type_path, detail)
        } else {
            FieldError::invalid(&type_path, ty, detail)
        });
    }
}

fn one_of(s: Keywords<'_>, keyword: &str, allowed: &[&str], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if s.get(keyword).is_some() && !allowed.contains(&s.text(keyword)) {
        errors.push(FieldError::not_listed(&path.child(keyword), s.text(keyword), allowed));
    }
}

const LIST_TYPE: &str = "x-kubernetes-list-type";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const MAP_KEYS: &str = "x-kubernetes-list-map-keys";

/// The items of a set, where they are no values that are set as a whole.
fn granular_items(s: Keywords<'_>) -> Option<Keywords<'_>> {
    let items = s.items().map(Keywords).filter(|_| s.text(LIST_TYPE) == "set")?;
    let granular = match items.text("type") {
        "array" => !matches!(items.text(LIST_TYPE), "" | "atomic"),
        "object" => items.text(MAP_TYPE) != "atomic",
        _ => false,
    };
    granular.then_some(items)
}

pub(super) fn has_granular_items(s: Keywords<'_>) -> bool {
    granular_items(s).is_some()
}

pub(super) fn has_loose_keys(s: Keywords<'_>) -> bool {
    let mut errors = Vec::new();
    list_keys(s, &Path::ROOT, &mut errors);
    !errors.is_empty()
}

/// Items of sets and maps are there, and so are the keys of those of maps.
fn list_keys(s: Keywords<'_>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let list_type = s.text(LIST_TYPE);
    let Some(items) = s.items().map(Keywords).filter(|_| matches!(list_type, "set" | "map")) else { return };
    let items_path = path.child("items");
    if items.flag("nullable") {
        errors.push(FieldError::forbidden(
            &items_path.child("nullable"),
            format!("cannot be nullable when x-kubernetes-list-type is {list_type}"),
        ));
    }
    if list_type != "map" {
        return;
    }
    let properties_path = items_path.child("properties");
    for key in s.names(MAP_KEYS) {
        let Some(property) = items.property(key).map(Keywords) else { continue };
        let key_path = properties_path.key(key);
        if !items.names("required").any(|r| r == key) && property.get("default").is_none() {
            errors.push(FieldError::required(
                &key_path.child("default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
        if property.flag("nullable") {
            errors.push(FieldError::forbidden(
                &key_path.child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ));
        }
    }
}

fn list_and_map_types(s: Keywords<'_>, path: &Path<'_>, kept: Kept, errors: &mut Vec<FieldError>) {
    typed_as(s, MAP_TYPE, "object", path, errors);
    one_of(s, MAP_TYPE, &["atomic", "granular"], path, errors);
    typed_as(s, LIST_TYPE, "array", path, errors);
    one_of(s, LIST_TYPE, &["atomic", "set", "map"], path, errors);

    let list_type = s.text(LIST_TYPE);
    let items_path = path.child("items");
    let items = s.items().map(Keywords);
    if !kept.granular_sets
        && s.text("type") == "array"
        && let Some(items) = granular_items(s)
    {
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        errors.push(if items.text("type") == "array" {
            FieldError::invalid(&items_path.child(LIST_TYPE), items.text(LIST_TYPE), detail)
        } else {
            // Upstream shows the type of a list here, which there seldom is.
            let shown = items.get(LIST_TYPE).cloned().unwrap_or_default();
            FieldError::invalid(&items_path.child(MAP_TYPE), shown, detail)
        });
    }
    let keys: Vec<&str> = s.names(MAP_KEYS).collect();
    if !keys.is_empty() && list_type != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        let type_path = path.child(LIST_TYPE);
        errors.push(if s.get(LIST_TYPE).is_none() {
            FieldError::required(&type_path, detail)
        } else {
            FieldError::invalid(&type_path, list_type, detail)
        });
    }
    if list_type != "map" {
        return;
    }
    let keys_path = path.child(MAP_KEYS);
    if keys.is_empty() {
        errors.push(FieldError::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = items else {
        errors.push(match s.get("items") {
            None => FieldError::required(&items_path, "must have a schema if x-kubernetes-list-type is map"),
            Some(several) => FieldError::invalid(
                &items_path,
                several.clone(),
                "must only have a single schema if x-kubernetes-list-type is map",
            ),
        });
        return;
    };
    if items.text("type") != "object" {
        errors.push(FieldError::invalid(
            &items_path.child("type"),
            items.text("type"),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let shown = || Value::from(keys.iter().map(|k| Value::from(*k)).collect::<Vec<_>>());
    let properties_path = items_path.child("properties");
    for (i, key) in keys.iter().enumerate() {
        let key_path = properties_path.key(key);
        match items.property(key).map(Keywords) {
            None => errors.push(FieldError::invalid(
                &keys_path,
                shown(),
                "entries must all be names of item properties",
            )),
            Some(property) => {
                if matches!(property.text("type"), "array" | "object") {
                    errors.push(FieldError::invalid(
                        &key_path.child("type"),
                        items.text("type"),
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    ));
                }
            }
        }
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(&keys_path, shown(), "must not contain duplicate entries"));
        }
    }
}

/// What can be said of validation rules without compiling them.
fn validation_rules(s: Keywords<'_>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let list_path = path.child("x-kubernetes-validations");
    let has_newline = |text: &str| text.contains(['\n', '\r']);
    for (i, rule) in s.list("x-kubernetes-validations").iter().enumerate() {
        let (rule, path) = (Keywords(rule), list_path.index(i));
        let (expression, message) = (rule.text("rule").trim(), rule.text("message"));
        if expression.is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(
                &path.child("message"),
                message,
                "must be non-empty if specified",
            ));
        } else if has_newline(message.trim()) {
            errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
        } else if has_newline(expression) && message.trim().is_empty() {
            errors.push(FieldError::required(
                &path.child("message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        let message_expression = rule.text("messageExpression");
        if !message_expression.is_empty() && message_expression.trim().is_empty() {
            errors.push(FieldError::required(
                &path.child("messageExpression"),
                "messageExpression must be non-empty if specified",
            ));
        }
        one_of(rule, "reason", &REASONS, &path, errors);
        let field_path = rule.text("fieldPath");
        if !field_path.is_empty() && field_path.trim().is_empty() {
            errors.push(FieldError::invalid(
                &path.child("fieldPath"),
                field_path,
                "must be non-empty if specified",
            ));
        }
        if has_newline(field_path) {
            errors.push(FieldError::invalid(
                &path.child("fieldPath"),
                field_path,
                "must not contain line breaks",
            ));
        }
        if !field_path.is_empty() && super::field_path(s.0, field_path).is_err() {
            errors.push(FieldError::invalid(&path.child("fieldPath"), field_path, "must be a valid path"));
        }
    }
}
