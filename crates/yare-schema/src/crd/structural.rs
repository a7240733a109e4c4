//! What makes a schema structural.
//!
//! A structural schema says the type of everything outside of `allOf`, `anyOf`, `oneOf` and `not`; what stands
//! inside of those only constrains values of what is defined outside (KEP-1904).

use serde_json::Value;

use super::{AdditionalProperties, Keywords, MAX_ERRORS, is_said, is_zero};
use crate::{
    constraints::Pattern,
    field::{FieldError, Path},
};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Why a schema cannot be read as a structural one, for one of the keywords that those do not have.
pub(super) fn unsupported(schema: &Value) -> Option<&'static str> {
    let s = Keywords(schema);
    let said = |name: &str| s.get(name).is_some_and(|v| !is_zero(v));
    let why = if said("id") {
        "OpenAPIV3Schema 'id' is not supported"
    } else if said("$schema") {
        "OpenAPIV3Schema 'schema' is not supported"
    } else if said("$ref") {
        "OpenAPIV3Schema '$ref' is not supported"
    } else if said("patternProperties") {
        "OpenAPIV3Schema 'patternProperties' is not supported"
    } else if said("dependencies") {
        "OpenAPIV3Schema 'dependencies' is not supported"
    } else if s.get("additionalItems").is_some() {
        "OpenAPIV3Schema 'additionalItems' is not supported"
    } else if said("definitions") {
        "OpenAPIV3Schema 'definitions' is not supported"
    } else {
        let clauses =
            s.get("not").into_iter().chain(["allOf", "anyOf", "oneOf"].iter().flat_map(|n| s.list(n)));
        if let Some(why) = clauses.filter(|c| c.is_object()).find_map(unsupported) {
            return Some(why);
        }
        if s.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            return Some("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined");
        }
        if s.get("items").is_some_and(Value::is_array) {
            return Some("OpenAPIV3Schema 'items' must be a schema, but is an array");
        }
        let values = match s.additional() {
            AdditionalProperties::Schema(schema) => Some(schema),
            _ => None,
        };
        let below = s.items().into_iter().chain(s.properties().map(|(_, p)| p)).chain(values);
        return below.filter(|c| c.is_object()).find_map(unsupported);
    };
    Some(why)
}

/// Whether a schema is not structural.
pub(super) fn violated(schema: &Value) -> bool {
    unsupported(schema).is_some() || !check(schema, &Path::ROOT).is_empty()
}

/// Violations of structure, sorted by their text.
pub(super) fn check(schema: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(Keywords(schema), Level::Root, path, &mut errors);
    completeness(Keywords(schema), Some(Keywords(schema)), path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors.truncate(MAX_ERRORS);
    errors
}

fn invariants(s: Keywords<'_>, level: Level, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let ty = s.text("type");
    if ty == "array" && s.items().is_none() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = s.items() {
        invariants(Keywords(items), Level::Item, &path.child("items"), errors);
    }
    let properties_path = path.child("properties");
    for (name, property) in s.properties() {
        invariants(Keywords(property), Level::Field, &properties_path.key(name), errors);
    }
    let additional_path = path.child("additionalProperties");
    let additional = s.additional();
    let has_additional = !matches!(additional, AdditionalProperties::Absent);
    if has_additional && level == Level::Root {
        errors.push(FieldError::forbidden(&additional_path, "must not be used at the root"));
    }
    if let AdditionalProperties::Schema(schema) = additional {
        invariants(Keywords(schema), Level::Field, &additional_path, errors);
    }

    let int_or_string = s.flag("x-kubernetes-int-or-string");
    let preserve = s.flag("x-kubernetes-preserve-unknown-fields");
    let embedded = s.flag("x-kubernetes-embedded-resource");
    for (name, set) in
        [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
    {
        if int_or_string && set {
            errors.push(FieldError::invalid(
                &path.child(name),
                true,
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
    }

    let skip_any_of = is_int_or_string_any_of(s);
    let skip_first_all_of = s.list("allOf").first().is_some_and(|f| is_int_or_string_any_of(Keywords(f)));
    clauses(s, skip_any_of, skip_first_all_of, path, errors);

    let type_path = path.child("type");
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            FieldError::required(&type_path, detail)
        } else {
            FieldError::invalid(&type_path, ty, detail)
        });
    } else if ty.is_empty() && !int_or_string && !preserve {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&type_path, detail));
    }
    if embedded && has_additional {
        errors.push(FieldError::forbidden(
            &additional_path,
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(&type_path, ty, "must be object at the root"));
    }
    let is_resource = level == Level::Root || embedded;
    if is_resource {
        for name in ["kind", "apiVersion"] {
            if let Some(property) = s.property(name)
                && Keywords(property).text("type") != "string"
            {
                let have = Keywords(property).text("type");
                errors.push(FieldError::invalid(
                    &properties_path.key(name).child("type"),
                    have,
                    "must be string",
                ));
            }
        }
    }
    if let Some(metadata) = s.property("metadata") {
        let metadata = Keywords(metadata);
        let metadata_path = properties_path.key("metadata");
        if is_resource && metadata.text("type") != "object" {
            errors.push(FieldError::invalid(
                &metadata_path.child("type"),
                metadata.text("type"),
                "must be object",
            ));
        }
        if level == Level::Root && !says_names_only(metadata) {
            errors.push(FieldError::forbidden(
                &metadata_path,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
    if embedded && !preserve && s.properties().next().is_none() {
        errors.push(FieldError::required(
            &properties_path,
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

/// Whether a schema for the metadata of a resource only constrains names.
fn says_names_only(metadata: Keywords<'_>) -> bool {
    let other_keyword = |name: &String| !matches!(name.as_str(), "type" | "properties" | "default");
    let keywords_ok = metadata
        .0
        .as_object()
        .is_none_or(|map| !map.iter().any(|(name, value)| other_keyword(name) && is_said(name, value)));
    keywords_ok && metadata.properties().all(|(name, _)| name == "name" || name == "generateName")
}

/// `anyOf: [{type: integer}, {type: string}]`, which is how int-or-string is written for other tools.
fn is_int_or_string_any_of(s: Keywords<'_>) -> bool {
    let only = |clause: &Value, ty: &str| {
        Keywords(clause).text("type") == ty && clause.as_object().is_some_and(|map| map.len() == 1)
    };
    matches!(s.list("anyOf"), [a, b] if only(a, "integer") && only(b, "string"))
}

fn clauses(
    s: Keywords<'_>,
    skip_any_of: bool,
    skip_first_all_of: bool,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    for name in ["anyOf", "allOf", "oneOf"] {
        if name == "anyOf" && skip_any_of {
            continue;
        }
        let list_path = path.child(name);
        for (i, clause) in s.list(name).iter().enumerate() {
            let skip = name == "allOf" && skip_first_all_of && i == 0;
            nested(Keywords(clause), skip, &list_path.index(i), errors);
        }
    }
    if let Some(not) = s.get("not") {
        nested(Keywords(not), false, &path.child("not"), errors);
    }
    let pattern = s.text("pattern");
    if !pattern.is_empty()
        && let Err(why) = Pattern::check(pattern)
    {
        errors.push(FieldError::invalid(
            &path.child("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {why}"),
        ));
    }
}

/// What a clause of a junctor must not say.
const FORBIDDEN_IN_CLAUSES: [(&str, &str); 11] = [
    ("type", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

fn nested(s: Keywords<'_>, skip_any_of: bool, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    clauses(s, skip_any_of, false, path, errors);
    if let Some(items) = s.items() {
        nested(Keywords(items), false, &path.child("items"), errors);
    }
    let properties_path = path.child("properties");
    for (name, property) in s.properties() {
        nested(Keywords(property), false, &properties_path.key(name), errors);
    }
    for (name, detail) in FORBIDDEN_IN_CLAUSES {
        if s.get(name).is_some_and(|v| is_said(name, v)) {
            errors.push(FieldError::forbidden(&path.child(name), detail));
        }
    }
    if matches!(s.additional(), AdditionalProperties::Schema(_) | AdditionalProperties::Bool(true)) {
        errors.push(FieldError::forbidden(
            &path.child("additionalProperties"),
            "must be undefined to be structural",
        ));
    }
    if !s.list("x-kubernetes-validations").is_empty() {
        errors.push(FieldError::forbidden(
            &path.child("x-kubernetes-validations"),
            "must be empty to be structural",
        ));
    }
    if s.property("metadata").is_some() {
        errors.push(FieldError::forbidden(
            &properties_path.key("metadata"),
            "must not be specified in a nested context",
        ));
    }
}

/// Whatever a clause constrains must be defined outside of clauses.
fn completeness(
    v: Keywords<'_>,
    s: Option<Keywords<'_>>,
    s_path: &Path<'_>,
    v_path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    if let Some(not) = v.get("not") {
        nested_completeness(Keywords(not), s, s_path, &v_path.child("not"), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let list_path = v_path.child(name);
        for (i, clause) in v.list(name).iter().enumerate() {
            nested_completeness(Keywords(clause), s, s_path, &list_path.index(i), errors);
        }
    }
}

fn nested_completeness(
    v: Keywords<'_>,
    s: Option<Keywords<'_>>,
    s_path: &Path<'_>,
    v_path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let Some(s) = s else {
        errors.push(FieldError::required(s_path, format!("because it is defined in {v_path}")));
        return;
    };
    completeness(v, Some(s), s_path, v_path, errors);
    if let Some(items) = v.items() {
        let structural = s.items().map(Keywords);
        nested_completeness(
            Keywords(items),
            structural,
            &s_path.child("items"),
            &v_path.child("items"),
            errors,
        );
    }
    let (s_properties, v_properties) = (s_path.child("properties"), v_path.child("properties"));
    for (name, property) in v.properties() {
        let structural = s.property(name).map(Keywords);
        nested_completeness(
            Keywords(property),
            structural,
            &s_properties.key(name),
            &v_properties.key(name),
            errors,
        );
    }
}
