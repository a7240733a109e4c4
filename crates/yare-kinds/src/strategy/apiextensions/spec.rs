//! The specification of a `CustomResourceDefinition`: names, versions, conversion.
//!
//! What all versions say alike, upstream moves to the top of the specification before it looks for errors,
//! so that such errors stand at `spec.validation`, not at `spec.versions[0].schema`. So they do here.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    crd,
    field::{ErrorKind, FieldError, Path},
};

use super::{check_kind, joined};
use crate::{
    check::{Check, Errors},
    names,
    strategy::{
        rules::check_items,
        webhook::{check_client_config, check_review_versions},
    },
    validations,
    view::{View, same},
};

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] =
    &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const MAX_SELECTABLE: usize = 8;
const MAX_WARNING: usize = 256;

/// Errors in `spec`; `old` is what it was.
pub fn check(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: Option<&Value>) {
    let (p, group) = (path.child("group"), spec.str_at("group"));
    let messages = names::dns1123_subdomain(group);
    if group.is_empty() {
        errs.required(&p, "");
    } else if !messages.is_empty() {
        joined(errs, &p, group, messages);
    } else if !group.contains('.') {
        errs.invalid(&p, group, "should be a domain with at least one dot");
    }
    errs.required_one_of(&path.child("scope"), spec.str_at("scope"), &["Cluster", "Namespaced"]);
    let versions = spec.items("versions");
    let list = path.child("versions");
    for (i, version) in versions.iter().enumerate() {
        if !version.has("schema.openAPIV3Schema") {
            errs.required(&list.index(i).child("schema.openAPIV3Schema"), "");
        }
    }
    for (i, version) in versions.iter().enumerate() {
        check_version(errs, &list.index(i), version);
    }
    check_parts(errs, path, spec, old);
    let all: HashSet<&str> = versions.iter().map(|v| v.str_at("name")).collect();
    if all.len() < versions.len() {
        errs.invalid(&list, spec.at("versions").clone(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.bool_at("storage")).count() != 1 {
        errs.invalid(
            &list,
            spec.at("versions").clone(),
            "must have exactly one version marked as storage version",
        );
    }
    let p = path.child("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        errs.non_empty(&p.child(field), spec.at("names").str_at(field));
    }
    check_names(errs, &p, spec.at("names"));
    check_conversion(errs, &path.child("conversion"), spec);
}

fn check_version(errs: &mut Errors, path: &Path<'_>, version: &Value) {
    let name = version.str_at("name");
    joined(errs, &path.child("name"), name, names::dns1035_label(name));
    let Some(warning) = version.str_opt("deprecationWarning") else { return };
    let p = path.child("deprecationWarning");
    if !version.bool_at("deprecated") {
        return errs.invalid(&p, warning, "can only be set for deprecated versions");
    }
    if warning.len() > MAX_WARNING {
        errs.invalid(&p, warning, "must be <= 256 characters long");
    }
    if warning.is_empty() {
        errs.invalid(&p, warning, "must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        errs.invalid(
            &p,
            warning,
            format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {i}"
            ),
        );
    }
}

/// What versions may say alike: once at the top where they do, else per version.
fn check_parts(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: Option<&Value>) {
    let versions = spec.items("versions");
    let list = path.child("versions");
    let Some(first) = versions.first() else { return };
    let alike = |field: &str| versions.iter().all(|v| same(v.at(field), first.at(field)));
    let status = versions.iter().any(|v| v.has("subresources.status"));
    for (field, top) in [
        ("schema", "validation"),
        ("subresources", "subresources"),
        ("additionalPrinterColumns", "additionalPrinterColumns"),
        ("selectableFields", "selectableFields"),
    ] {
        if alike(field) {
            check_part(errs, &path.child(top), field, first, status, old);
            continue;
        }
        for (i, version) in versions.iter().enumerate() {
            let status = version.has("subresources.status");
            check_part(errs, &list.index(i).child(field), field, version, status, old);
        }
    }
}

fn check_part(
    errs: &mut Errors,
    path: &Path<'_>,
    field: &str,
    version: &Value,
    status: bool,
    old: Option<&Value>,
) {
    match field {
        "schema" => check_schema(errs, &path.child("openAPIV3Schema"), version, status, old),
        "subresources" => check_scale(errs, &path.child("scale"), version.at("subresources.scale")),
        "additionalPrinterColumns" => {
            for (i, column) in version.items(field).iter().enumerate() {
                check_column(errs, &path.index(i), column);
            }
        }
        _ => check_selectable(errs, path, version, old),
    }
}

/// The same version in `old`.
fn before<'a>(version: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    old?.items("versions").iter().find(|v| v.at("name") == version.at("name"))
}

fn check_schema(errs: &mut Errors, path: &Path<'_>, version: &Value, status: bool, old: Option<&Value>) {
    let schema = version.at("schema.openAPIV3Schema");
    // A schema that was once accepted stays so.
    let kept = before(version, old).is_some_and(|b| {
        same(b.at("schema"), version.at("schema")) && same(b.at("subresources"), version.at("subresources"))
    });
    if schema.is_null() || kept {
        return;
    }
    if status {
        errs.extend(crd::check_root_with_status(schema, path));
    }
    if schema.bool_at("nullable") {
        errs.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
    }
    let found = crd::compile(schema, path).err().unwrap_or_default();
    let rules = check_rules(path, version, &found, old);
    for error in found.into_iter().chain(rules) {
        if !errs.contains(&error) {
            errs.push(error);
        }
    }
}

/// Errors in validation rules. They are not looked at where the schema is not structural, or has defaults that
/// are no values of theirs.
fn check_rules(
    path: &Path<'_>,
    version: &Value,
    found: &[FieldError],
    old: Option<&Value>,
) -> Vec<FieldError> {
    let schema = version.at("schema.openAPIV3Schema");
    let bad_default =
        |error: &FieldError| error.kind != ErrorKind::Forbidden && error.field.contains(".default");
    if found.iter().any(bad_default)
        || (!found.is_empty() && !crd::structural_violations(schema, path).is_empty())
    {
        return Vec::new();
    }
    let before = old.map(validations::Before::of).unwrap_or_default();
    let unchanged = self::before(version, old).is_some_and(|b| same(b.at("schema"), version.at("schema")));
    validations::check(schema, path, found, &before, unchanged)
}

fn check_scale(errs: &mut Errors, path: &Path<'_>, scale: &Value) {
    if scale.is_null() {
        return;
    }
    for (field, root) in [("specReplicasPath", "spec"), ("statusReplicasPath", "status")] {
        let (p, value) = (path.child(field), scale.str_at(field));
        if value.is_empty() {
            errs.required(&p, "");
        } else if check_json_path(errs, &p, value) && !value.starts_with(&format!(".{root}.")) {
            errs.invalid(&p, value, format!("should be a json path under .{root}"));
        }
    }
    let (p, value) = (path.child("labelSelectorPath"), scale.str_at("labelSelectorPath"));
    if !value.is_empty()
        && check_json_path(errs, &p, value)
        && !value.starts_with(".spec.")
        && !value.starts_with(".status.")
    {
        errs.invalid(&p, value, "should be a json path under either .spec or .status");
    }
}

fn check_json_path(errs: &mut Errors, path: &Path<'_>, value: &str) -> bool {
    let good = value.starts_with('.');
    if !good {
        errs.invalid(path, value, "must be a simple json path starting with .");
    }
    good
}

fn check_column(errs: &mut Errors, path: &Path<'_>, column: &Value) {
    errs.non_empty(&path.child("name"), column.str_at("name"));
    let (p, kind) = (path.child("type"), column.str_at("type"));
    let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errs.required(&p, detail);
    } else if !COLUMN_TYPES.contains(&kind) {
        errs.invalid(&p, kind, detail);
    }
    let format = column.str_at("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errs.invalid(&path.child("format"), format, detail);
    }
    let (p, value) = (path.child("JSONPath"), column.str_at("jsonPath"));
    if value.is_empty() {
        errs.required(&p, "");
    } else {
        check_json_path(errs, &p, value);
    }
}

fn check_selectable(errs: &mut Errors, path: &Path<'_>, version: &Value, old: Option<&Value>) {
    let fields = version.items("selectableFields");
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, field) in fields.iter().enumerate() {
        let (p, value) = (path.index(i), field.str_at("jsonPath"));
        let p = p.child("jsonPath");
        if value.is_empty() {
            errs.required(&p, "");
            continue;
        }
        let Some(schema) = schema_at(version.at("schema.openAPIV3Schema"), value) else {
            errs.invalid(&p, value, "is an invalid path: does not refer to a valid field");
            continue;
        };
        if value.starts_with(".metadata") {
            errs.invalid(&p, value, "must not point to fields in metadata");
        }
        if !matches!(schema.str_at("type"), "string" | "boolean" | "integer") {
            errs.invalid(
                &p,
                value,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            );
        }
        if seen.contains(&value) {
            errs.duplicate(&p, value);
        } else {
            seen.insert(value);
        }
    }
    let kept =
        before(version, old).is_some_and(|b| same(b.at("selectableFields"), version.at("selectableFields")));
    if !kept {
        check_items(errs, path, seen.len(), MAX_SELECTABLE);
    }
}

/// The schema of the field at `path` (`.spec.color`).
fn schema_at<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.strip_prefix('.')?.split('.').try_fold(schema, |schema, name| schema.get("properties")?.get(name))
}

/// Errors in the names of a resource.
pub fn check_names(errs: &mut Errors, path: &Path<'_>, of: &Value) {
    for field in ["plural", "singular"] {
        let name = of.str_at(field);
        if !name.is_empty() {
            joined(errs, &path.child(field), name, names::dns1035_label(name));
        }
    }
    for field in ["kind", "listKind"] {
        check_kind(errs, &path.child(field), of.str_at(field));
    }
    let label = |errs: &mut Errors, field: &str| {
        let list = path.child(field);
        for (i, name) in of.strings(field).iter().enumerate() {
            joined(errs, &list.index(i), name, names::dns1035_label(name));
        }
    };
    label(errs, "shortNames");
    let (kind, list_kind) = (of.str_at("kind"), of.str_at("listKind"));
    if !kind.is_empty() && kind == list_kind {
        errs.invalid(&path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
    label(errs, "categories");
}

fn check_conversion(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let conversion = spec.at("conversion");
    if conversion.is_null() {
        return;
    }
    let strategy = conversion.str_at("strategy");
    if strategy != "None" && spec.bool_at("preserveUnknownFields") {
        errs.invalid(&path.child("strategy"), strategy, "must be None if spec.preserveUnknownFields is true");
    }
    errs.required_one_of(&path.child("strategy"), strategy, &["None", "Webhook"]);
    let (config, versions) =
        (conversion.at("webhook.clientConfig"), conversion.strings("webhook.conversionReviewVersions"));
    let (config_path, versions_path) =
        (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if strategy == "Webhook" {
        if config.is_null() {
            errs.required(&config_path, "required when strategy is set to Webhook");
        } else {
            check_client_config(errs, &config_path, config);
        }
        check_review_versions(errs, &versions_path, &versions, "");
        return;
    }
    const UNUSED: &str = "should not be set when strategy is not set to Webhook";
    if !config.is_null() {
        errs.push(FieldError::forbidden(&config_path, UNUSED));
    }
    if !versions.is_empty() {
        errs.push(FieldError::forbidden(&versions_path, UNUSED));
    }
}
