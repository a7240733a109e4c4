//! Label selectors and field selectors: how requests, controllers and services pick objects.
//!
//! In: the string form of query parameters or a `LabelSelector` object. Out: a selector that matches over
//! sorted slices of pairs (what the store keeps of an object), JSON objects, or a look-up function.

mod field;
mod label;
mod label_parse;
mod shard;

pub use field::{FieldOperator, FieldRequirement, FieldSelector, FieldSelectorError};
pub use label::{LabelSelector, Operator, Requirement, SelectorError};
pub use shard::{ShardField, ShardSelector};

/// The value of `key` among pairs sorted by key.
pub(crate) fn look_up<'a, K: AsRef<str>, V: AsRef<str>>(pairs: &'a [(K, V)], key: &str) -> Option<&'a str> {
    let found = if pairs.len() <= 8 {
        pairs.iter().position(|(k, _)| k.as_ref() == key)
    } else {
        pairs.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()
    };
    found.map(|i| pairs[i].1.as_ref())
}
