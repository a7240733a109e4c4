//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

/// The patch is neither an object nor a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Invalid JSON Patch")]
pub struct InvalidPatch;

/// Applies `patch` to `document`: members of `patch` replace, merge with, or (as `null`) remove the
/// document's. Depth is that of the arguments, which the JSON parser bounds.
pub fn apply(document: Value, patch: Value) -> Result<Value, InvalidPatch> {
    match (document, patch) {
        (Value::Object(mut document), Value::Object(patch)) => {
            merge(&mut document, patch);
            Ok(Value::Object(document))
        }
        (_, mut patch @ (Value::Object(_) | Value::Array(_))) => {
            prune_nulls(&mut patch);
            Ok(patch)
        }
        _ => Err(InvalidPatch),
    }
}

fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, change) in patch {
        match (document.get_mut(&key), change) {
            (_, Value::Null) => {
                document.remove(&key);
            }
            (Some(Value::Object(current)), Value::Object(change)) => merge(current, change),
            (current, mut change) => {
                // What takes the place of an object is taken as it is; upstream prunes everything else.
                if !current.as_ref().is_some_and(|c| c.is_object()) {
                    prune_nulls(&mut change);
                }
                match current {
                    Some(current) => *current = change,
                    None => {
                        document.insert(key, change);
                    }
                }
            }
        }
    }
}

/// Drops members that are `null`, of objects in lists too, but keeps `null` items of lists.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn cases() {
        // The first half is RFC 7386's appendix A.
        #[rustfmt::skip]
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": {"b": "c"}}), json!({"a": [{"b": null}]}), json!({"a": [{"b": null}]})),
            (json!({"a": "b"}), json!({"a": [{"b": null}]}), json!({"a": [{}]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": 1}), json!({"a": {"b": null, "c": [null, {"d": null}]}}), json!({"a": {"c": [null, {}]}})),
        ];
        for (document, patch, expect) in cases {
            assert_eq!(apply(document.clone(), patch.clone()).unwrap(), expect, "{document} + {patch}");
        }
        assert_eq!(apply(json!({}), json!(null)), Err(InvalidPatch));
        assert_eq!(apply(json!({}), json!("x")).unwrap_err().to_string(), "Invalid JSON Patch");
    }

    /// Any JSON of moderate size.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0i64..5).prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        // The second time may prune what took the place of an object the first time.
        fn applying_thrice_is_applying_twice(document in any_json(), patch in any_json()) {
            if let Ok(once) = apply(document, patch.clone()) {
                let twice = apply(once, patch.clone()).unwrap();
                prop_assert_eq!(apply(twice.clone(), patch).unwrap(), twice);
            }
        }
    }
}
