//! What an update of a definition need not keep to, because the definition did not before: rules that upstream came to
//! later than some of the definitions that there are.

use serde_json::Value;

use super::{AdditionalProperties, Keywords, check, structural, unpruned_defaults};
use crate::constraints::JsonType;

/// Rules that are not held against a schema.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Schemas need not be structural.
    pub unstructural: bool,
    /// Types may be others than those of JSON.
    pub odd_types: bool,
    /// Defaults may have fields that the schema does not.
    pub unpruned_defaults: bool,
    /// Items of sets may be structures whose fields have owners of their own.
    pub granular_sets: bool,
    /// Items of sets and maps may be null, and their keys be missing.
    pub loose_keys: bool,
}

impl Kept {
    /// What one of these schemas does already.
    pub fn of<'a>(schemas: impl Iterator<Item = &'a Value>) -> Self {
        let mut kept = Self::default();
        for schema in schemas.filter(|schema| schema.is_object()) {
            kept.unstructural |= structural::violated(schema);
            kept.unpruned_defaults |= !structural::violated(schema) && unpruned_defaults(schema);
            any(Keywords(schema), &mut |s| {
                let ty = s.text("type");
                kept.odd_types |= !ty.is_empty() && JsonType::parse(ty).is_none();
                kept.granular_sets |= check::has_granular_items(s);
                kept.loose_keys |= check::has_loose_keys(s);
                false
            });
        }
        kept
    }
}

/// Whether `found` says so of a schema or of one below it, clauses and what is not supported included.
pub(super) fn any<'s>(s: Keywords<'s>, found: &mut dyn FnMut(Keywords<'s>) -> bool) -> bool {
    if found(s) {
        return true;
    }
    let mut below: Vec<&'s Value> = Vec::new();
    match s.get("items") {
        Some(Value::Array(items)) => below.extend(items),
        items => below.extend(items),
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        below.extend(s.list(name));
    }
    below.extend(s.get("not"));
    if let AdditionalProperties::Schema(schema) = s.additional() {
        below.push(schema);
    }
    for name in ["properties", "patternProperties", "definitions", "dependencies"] {
        below.extend(s.get(name).and_then(Value::as_object).into_iter().flat_map(|map| map.values()));
    }
    below.extend(s.get("additionalItems"));
    below.into_iter().filter(|schema| schema.is_object()).any(|schema| any(Keywords(schema), found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_schemas_do_already() {
        let one = |spec: Value| {
            Kept::of([&json!({"type": "object", "properties": {"spec": spec}}), &Value::Null].into_iter())
        };
        let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}});
        let map = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}});
        for (spec, want) in [
            (json!({"type": "object"}), Kept::default()),
            (json!({}), Kept { unstructural: true, ..Kept::default() }),
            (json!({"type": "object", "$ref": "x"}), Kept { unstructural: true, ..Kept::default() }),
            (json!({"type": "odd"}), Kept { odd_types: true, ..Kept::default() }),
            (
                json!({"type": "object", "default": {"a": 1}}),
                Kept { unpruned_defaults: true, ..Kept::default() },
            ),
            (set, Kept { granular_sets: true, ..Kept::default() }),
            (map, Kept { loose_keys: true, ..Kept::default() }),
        ] {
            assert_eq!(one(spec.clone()), want, "{spec}");
        }
    }
}
