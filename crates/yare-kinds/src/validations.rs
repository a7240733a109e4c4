//! `x-kubernetes-validations`: rules in CEL that stand in the schemas of CustomResourceDefinitions
//! (KEP-2876, KEP-4008).
//!
//! | When | File | In | Out |
//! |---|---|---|---|
//! | A definition is written | `check.rs` | schema, what it was | field errors: types, costs, places of `oldSelf` |
//! | Its objects are written | `run.rs` | [`Rules`], object, old object | field errors, warnings |
//! | Both | `compile.rs` | a rule and the schema it stands in | programs and their estimated costs |
//! | An update leaves a value as it was | `unchanged.rs` | new and old value | whether a failure is forgiven |
//!
//! [`Rules`] lie beside the types of a version. They keep a short text until the first object is written, and
//! programs from then on.

mod check;
mod compile;
mod run;
#[cfg(test)]
mod tests;
mod unchanged;

use serde_json::Value;

pub use self::{
    check::{Before, check},
    run::{Rules, Verdict},
};
use crate::view::View;

const KEYWORD: &str = "x-kubernetes-validations";

/// The most that evaluating one expression may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// The most that all rules may cost for one object.
pub const RUNTIME_COST_BUDGET: u64 = 10_000_000;
/// The most that one expression may be estimated to cost, over all places where its value may stand.
pub const STATIC_COST_LIMIT: u64 = 10_000_000;
/// The most that all rules of a schema may be estimated to cost.
pub const STATIC_TOTAL_COST_LIMIT: u64 = 100_000_000;
/// The longest message that an expression may make, in bytes.
const MAX_MESSAGE_BYTES: usize = 5 * 1024;

/// The rules that stand in a schema itself.
fn rules(schema: &Value) -> &[Value] {
    schema.get(KEYWORD).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The schema of values under free keys.
fn values(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|s| s.is_object())
}

/// The schema of a list's items.
fn items(schema: &Value) -> Option<&Value> {
    schema.get("items").filter(|s| s.is_object())
}

/// The schemas of an object's fields.
fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// Whether values are resources of their own.
fn is_embedded(schema: &Value) -> bool {
    schema.bool_at("x-kubernetes-embedded-resource")
}

/// Whether there are rules here or below, outside of `allOf` and the like, where they are not allowed.
fn has_rules(schema: &Value) -> bool {
    !rules(schema).is_empty()
        || items(schema).is_some_and(has_rules)
        || values(schema).is_some_and(has_rules)
        || properties(schema).any(|(_, property)| has_rules(property))
}
