//! The versions of a `CustomResourceDefinition`: schemas, subresources, columns, selectable fields.
//!
//! What all versions say alike, upstream moves to the top of the specification before it looks for errors, so that such
//! errors stand at `spec.validation`, not at `spec.versions[0].schema`, and are told once. So they do here.

use std::{cell::OnceCell, collections::HashSet};

use serde_json::Value;
use yare_schema::{
    crd::{self, Kept},
    field::Path,
    goprint,
    release::Emulation,
};

use super::joined;
use crate::{
    check::{Check, Errors},
    names,
    strategy::rules::check_items,
    validations,
    view::View,
};

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] =
    &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const MAX_SELECTABLE: usize = 8;
const MAX_WARNING: usize = 256;

/// What versions may say alike: the field of a version, and where it stands then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Schema,
    Subresources,
    Columns,
    Selectable,
}

const PARTS: [Part; 4] = [Part::Schema, Part::Subresources, Part::Columns, Part::Selectable];

impl Part {
    fn field(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Subresources => "subresources",
            Self::Columns => "additionalPrinterColumns",
            Self::Selectable => "selectableFields",
        }
    }

    /// The name at the top of the specification.
    fn shared(self) -> &'static str {
        if self == Self::Schema { "validation" } else { self.field() }
    }
}

/// What is checked, and what was there before.
pub struct Terms<'a> {
    spec: &'a Value,
    old: Option<&'a Value>,
    /// As which release the server behaves.
    emulation: Emulation,
    kept: OnceCell<Kept>,
}

/// The schemas of a specification's versions.
fn schemas(spec: &Value) -> impl Iterator<Item = &Value> {
    spec.items("versions").iter().map(|v| v.at("schema.openAPIV3Schema")).filter(|schema| !schema.is_null())
}

impl<'a> Terms<'a> {
    /// `spec` replaces `old`.
    pub fn new(spec: &'a Value, old: Option<&'a Value>, emulation: Emulation) -> Self {
        Self { spec, old, emulation, kept: OnceCell::new() }
    }

    fn versions(&self) -> &'a [Value] {
        self.spec.items("versions")
    }

    /// The version that all say alike, where they do.
    fn alike(&self, part: Part) -> Option<&'a Value> {
        let (first, rest) = self.versions().split_first()?;
        rest.iter().all(|v| v.at(part.field()) == first.at(part.field())).then_some(first)
    }

    /// The same version as it was.
    fn before(&self, version: &Value) -> Option<&'a Value> {
        self.old?.items("versions").iter().find(|v| v.at("name") == version.at("name"))
    }

    /// Rules that schemas need not keep to, because the old ones did not.
    fn kept(&self) -> Kept {
        *self.kept.get_or_init(|| {
            let mut kept = self.old.map(|old| Kept::of(schemas(old))).unwrap_or_default();
            // Nothing can be pruned, set by default or said in Kubernetes' own words without structure.
            kept.unstructural &= self.spec.bool_at("preserveUnknownFields")
                && !schemas(self.spec).any(|schema| crd::has_defaults(schema) || crd::has_extensions(schema));
            kept
        })
    }
}

/// The formats that no value is checked for, each once.
pub fn unknown_formats(crd: &Value) -> Vec<&str> {
    let mut out = Vec::new();
    for format in schemas(crd.at("spec")).flat_map(crd::unknown_formats) {
        if !out.contains(&format) {
            out.push(format);
        }
    }
    out
}

/// Errors in each version by itself; `path` is that of the specification.
pub fn check(errs: &mut Errors, path: &Path<'_>, terms: &Terms<'_>) {
    let list = path.child("versions");
    check_presence(errs, &list, terms);
    if terms.spec.bool_at("preserveUnknownFields") && schemas(terms.spec).any(crd::has_defaults) {
        let detail = "must be false in order to use defaults in the schema";
        errs.invalid(&path.child("preserveUnknownFields"), true, detail);
    }
    for (i, version) in terms.versions().iter().enumerate() {
        let path = list.index(i);
        let name = version.str_at("name");
        joined(errs, &path.child("name"), name, names::dns1035_label(name));
        check_warning(errs, &path.child("deprecationWarning"), version);
        for part in PARTS.into_iter().filter(|part| terms.alike(*part).is_none()) {
            let status = version.has("subresources.status");
            let path = path.child(part.field());
            if part == Part::Selectable {
                let schema = version.at("schema.openAPIV3Schema");
                let schema = Some(schema).filter(|s| !s.is_null() && terms.alike(Part::Schema).is_none());
                let missing = "may only be set when `version.schema.openAPIV3Schema` is not included";
                check_selectable(errs, &path, version, schema.ok_or(missing), terms);
            } else {
                check_part(errs, &path, part, version, status, terms);
            }
        }
    }
}

/// Errors in what all versions say alike; `path` is that of the specification.
pub fn check_shared(errs: &mut Errors, path: &Path<'_>, terms: &Terms<'_>) {
    let status = terms.versions().iter().any(|v| v.has("subresources.status"));
    for part in PARTS {
        let Some(version) = terms.alike(part) else { continue };
        let path = path.child(part.shared());
        if part == Part::Selectable {
            let schema = terms.alike(Part::Schema).map(|v| v.at("schema")).filter(|s| !s.is_null());
            let missing = "may only be set when validations.schema is included";
            let schema = schema.map(|s| s.at("openAPIV3Schema")).ok_or(missing);
            check_selectable(errs, &path, version, schema, terms);
        } else {
            check_part(errs, &path, part, version, status, terms);
        }
    }
}

/// Every version has a schema, or those that are served have one.
fn check_presence(errs: &mut Errors, list: &Path<'_>, terms: &Terms<'_>) {
    let has_schema = |version: &Value| version.has("schema.openAPIV3Schema");
    let some_had_none = terms.old.is_some_and(|old| !old.items("versions").iter().all(has_schema));
    let lacking = terms.versions().iter().enumerate().filter(|(_, v)| !has_schema(v));
    for (i, version) in lacking {
        let path = list.index(i);
        let path = path.child("schema.openAPIV3Schema");
        if !some_had_none {
            errs.required(&path, "");
        } else if !terms.spec.bool_at("preserveUnknownFields") && version.bool_at("served") {
            errs.required(&path, "because otherwise all fields are pruned");
        }
    }
}

fn check_warning(errs: &mut Errors, path: &Path<'_>, version: &Value) {
    let Some(warning) = version.str_opt("deprecationWarning") else { return };
    if !version.bool_at("deprecated") {
        return errs.invalid(path, warning, "can only be set for deprecated versions");
    }
    if warning.len() > MAX_WARNING {
        errs.invalid(path, warning, "must be <= 256 characters long");
    }
    if warning.is_empty() {
        errs.invalid(path, warning, "must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| !goprint::prints(*c)) {
        let what = "must only contain printable UTF-8 characters; non-printable character found at index";
        errs.invalid(path, warning, format!("{what} {i}"));
    }
}

fn check_part(
    errs: &mut Errors,
    path: &Path<'_>,
    part: Part,
    version: &Value,
    status: bool,
    terms: &Terms<'_>,
) {
    match part {
        Part::Schema => check_schema(errs, &path.child("openAPIV3Schema"), version, status, terms),
        Part::Subresources => check_scale(errs, &path.child("scale"), version.at("subresources.scale")),
        Part::Columns => {
            for (i, column) in version.items(part.field()).iter().enumerate() {
                check_column(errs, &path.index(i), column);
            }
        }
        Part::Selectable => {}
    }
}

fn check_schema(errs: &mut Errors, path: &Path<'_>, version: &Value, status: bool, terms: &Terms<'_>) {
    let schema = version.at("schema.openAPIV3Schema");
    if schema.is_null() {
        return;
    }
    // What was once accepted is judged again, by what `kept` leaves of the rules; only single expressions may cost
    // what they did.
    let is_unchanged = terms.before(version).is_some_and(|b| b.at("schema") == version.at("schema"));
    if status {
        errs.extend(crd::check_root_with_status(schema, path));
    }
    if schema.bool_at("nullable") {
        errs.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
    }
    let found = crd::check(schema, path, terms.kept());
    let rules = if found.is_sound {
        let before = validations::Before::of(terms.old, terms.emulation);
        validations::check(schema, path, &found.errors, &before, is_unchanged)
    } else {
        Vec::new()
    };
    errs.extend(found.errors);
    errs.extend(rules);
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

/// `schema`: where paths lead, or why there is none.
fn check_selectable(
    errs: &mut Errors,
    path: &Path<'_>,
    version: &Value,
    schema: Result<&Value, &str>,
    terms: &Terms<'_>,
) {
    let fields = version.items("selectableFields");
    if fields.is_empty() {
        return;
    }
    let schema = match schema {
        Ok(schema) => schema,
        Err(missing) => return errs.invalid(path, "", missing),
    };
    let mut seen: HashSet<String> = HashSet::new();
    for (i, field) in fields.iter().enumerate() {
        let (p, value) = (path.index(i), field.str_at("jsonPath"));
        let p = p.child("jsonPath");
        if value.is_empty() {
            errs.required(&p, "");
            continue;
        }
        let (to, found) = match crd::resolve(schema, value, false) {
            Ok(found) => found,
            Err(why) => {
                errs.invalid(&p, value, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if to.split(['.', '[']).next() == Some("metadata") {
            errs.invalid(&p, value, "must not point to fields in metadata");
        }
        if !found.is_some_and(|found| matches!(found.str_at("type"), "string" | "boolean" | "integer")) {
            errs.invalid(
                &p,
                value,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            );
        }
        if !seen.insert(to) {
            errs.duplicate(&p, value);
        }
    }
    let before = terms.before(version).map_or(&Value::Null, |b| b.at("selectableFields"));
    let had_too_many = before.items("").len() > MAX_SELECTABLE && before == version.at("selectableFields");
    if !had_too_many {
        check_items(errs, path, seen.len(), MAX_SELECTABLE);
    }
}
