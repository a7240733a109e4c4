//! Tests of strategic merge patches.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{patch::merge::tests::any_json, testing::pod_like};

fn check(document: Value, patch: Value, expect: Value) {
    let (schema, pod) = pod_like();
    let shown = format!("{document} + {patch}");
    assert_eq!(apply(schema.at(pod), document, patch).unwrap(), expect, "{shown}");
}

fn check_error(document: Value, patch: Value, expect: &str) {
    let (schema, pod) = pod_like();
    assert_eq!(apply(schema.at(pod), document, patch).unwrap_err().to_string(), expect);
}

fn spec(spec: Value) -> Value {
    json!({"spec": spec})
}

#[test]
fn objects_merge_and_lists_without_strategy_are_replaced() {
    check(
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"b": null, "c": "3"}}}),
        json!({"metadata": {"labels": {"a": "1", "c": "3"}}}),
    );
    check(
        spec(json!({"tolerations": [{"key": "a"}]})),
        spec(json!({"tolerations": [{"key": "b"}]})),
        spec(json!({"tolerations": [{"key": "b"}]})),
    );
    // A value of another type replaces; nulls and directives in what is new are dropped.
    check(spec(json!({"x": 1})), spec(json!({"x": {"y": null, "z": 1}})), spec(json!({"x": {"z": 1}})));
    check(
        json!({}),
        spec(json!({"containers": [{"$patch": "delete", "name": "a"}]})),
        spec(json!({"containers": []})),
    );
}

#[test]
fn lists_merge_by_key() {
    let live = spec(json!({"containers": [
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]}));
    check(
        live.clone(),
        spec(json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "1"}]})),
        spec(json!({"containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]},
            {"name": "b", "image": "2"}, {"name": "c", "image": "1"}]})),
    );
    check(
        live.clone(),
        spec(json!({"containers": [{"name": "a", "$patch": "delete"}]})),
        spec(json!({"containers": [{"name": "b", "image": "1"}]})),
    );
    check(
        live.clone(),
        spec(json!({"containers": [{"$patch": "replace"}, {"name": "n"}]})),
        spec(json!({"containers": [{"name": "n"}]})),
    );
    check(
        live.clone(),
        spec(json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y"}]}]})),
        spec(json!({"containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "2"}, {"name": "Y"}]},
            {"name": "b", "image": "1"}]})),
    );
    check_error(
        live,
        spec(json!({"containers": [{"image": "2"}]})),
        "map: map[image:2] does not contain declared merge key: name",
    );
}

#[test]
fn scalar_lists_merge_as_sets() {
    let live = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    check(
        live.clone(),
        json!({"metadata": {"finalizers": ["d", "b"]}}),
        json!({"metadata": {"finalizers": ["d", "a", "b", "c"]}}),
    );
    check(
        live.clone(),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b", "x"]}}),
        json!({"metadata": {"finalizers": ["a", "c"]}}),
    );
    check(
        live.clone(),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b", "d"],
                            "finalizers": ["d"]}}),
        json!({"metadata": {"finalizers": ["c", "b", "d"]}}),
    );
    check_error(
        live,
        json!({"metadata": {"$deleteFromPrimitiveList": ["a"]}}),
        "invalid patch format of primitive list",
    );
}

#[test]
fn deleted_items_leave_their_places_to_new_ones() {
    let items = |names: &[&str]| Value::from_iter(names.iter().map(|name| json!({"name": name})));
    // The live list, what goes, what comes, the order that is asked for, and what is made of it.
    #[rustfmt::skip]
    let cases: &[[&[&str]; 5]] = &[
        [&["b", "d"], &["d"], &["a"], &["a"], &["b", "a"]],
        [&["c", "a"], &["c"], &["n"], &["n"], &["a", "n"]],
        [&["a", "b", "c"], &["a", "b"], &["n"], &["n"], &["c", "n"]],
        [&["a", "b", "c"], &["b"], &["n", "m"], &["n", "m"], &["a", "c", "n", "m"]],
        [&["a", "b", "c"], &["b"], &["n", "m"], &["m", "n"], &["a", "c", "m", "n"]],
        [&["a", "b", "c"], &[], &["n"], &["n"], &["n", "a", "b", "c"]],
    ];
    for [live, gone, new, order, expect] in cases {
        let mut patch: Vec<Value> =
            gone.iter().map(|name| json!({"$patch": "delete", "name": name})).collect();
        // Those that come stand as the order has them.
        let mut new = new.to_vec();
        new.sort_by_key(|name| order.iter().position(|o| o == name));
        patch.extend(new.iter().map(|name| json!({"name": name})));
        check(
            spec(json!({"containers": items(live)})),
            spec(json!({"$setElementOrder/containers": items(order), "containers": patch})),
            spec(json!({"containers": items(expect)})),
        );
    }
}

#[test]
fn malformed_orders_are_refused_in_upstreams_words() {
    let a = json!([{"name": "a"}]);
    #[rustfmt::skip]
    let cases = [
        (json!({"$setElementOrder/containers": a, "containers": [{"name": "a"}, {"$patch": "replace"}]}),
         "The order in patch list:\n[map[name:a] map[$patch:replace]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n"),
        (json!({"$setElementOrder/containers": a, "containers": [{"name": "a"}, {}]}),
         "The order in patch list:\n[map[name:a] map[]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n"),
        (json!({"$setElementOrder/containers": [{"name": "x"}, 1]}), "value for key 1 is not a map"),
        (json!({"$setElementOrder/containers": a, "containers": [null]}),
         "expected a map[string]interface {}, but received a %!s(<nil>)"),
        (json!({"containers": [{"$patch": true}]}), "unknown patch type: %!s(bool=true) in map: map[$patch:true]"),
    ];
    for (patch, message) in cases {
        check_error(spec(json!({"containers": [{"name": "a"}, {"name": "b"}]})), spec(patch), message);
    }
    // An order whose items need not be looked at.
    let whole = json!({"$setElementOrder/containers": [{"name": "a"}, {"$patch": "replace"}],
        "containers": [{"$patch": "replace"}, {"name": "a"}]});
    let message = "map: map[$patch:replace] does not contain declared merge key: name";
    check_error(spec(json!({"containers": [{"name": "b"}]})), spec(whole), message);
}

#[test]
fn element_order_is_enforced() {
    let live = spec(json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}));
    check(
        live.clone(),
        spec(json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
            "containers": [{"name": "n", "image": "1"}],
        })),
        spec(
            json!({"containers": [{"name": "s"}, {"name": "b"}, {"name": "n", "image": "1"}, {"name": "a"}]}),
        ),
    );
    check(
        live.clone(),
        spec(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})),
        spec(json!({"containers": [{"name": "s"}, {"name": "b"}, {"name": "a"}]})),
    );
    check_error(
        live,
        spec(json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]})),
        "The order in patch list:\n[map[name:b]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n",
    );
}

#[test]
fn directives_among_plain_values_have_no_order() {
    let order = |finalizers: Value| json!({"metadata": {"$setElementOrder/finalizers": ["a"], "finalizers": finalizers}});
    for (patch, error) in [
        (
            json!([{"$patch": "replace"}, "a"]),
            "list element types are not identical: [[] [map[$patch:replace] a]]",
        ),
        (json!([{"$patch": "replace"}]), "expected a map[string]interface {}, but received a string"),
        (json!([]), "no elements in any of the given slices"),
    ] {
        check_error(json!({"metadata": {}}), order(patch), error);
    }
    check_error(
        json!({"metadata": {"finalizers": ["b"]}}),
        order(json!([{"$patch": "replace"}, "a"])),
        "list element types are not identical: [[b] [map[$patch:replace] a]]",
    );
}

#[test]
fn retain_keys_clears_the_rest() {
    let live = spec(json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}));
    check(
        live.clone(),
        spec(json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}})),
        spec(json!({"strategy": {"type": "Recreate"}})),
    );
    check_error(
        live,
        spec(json!({"strategy": {"$retainKeys": ["other"], "type": "Recreate"}})),
        "invalid patch format of retainKeys",
    );
    check(
        spec(json!({"volumes": [{"name": "v", "emptyDir": {}}]})),
        spec(
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        ),
        spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
    );
}

#[test]
fn directives_on_objects() {
    let live = spec(json!({"strategy": {"type": "a", "rollingUpdate": {"maxSurge": 1}}}));
    check(
        live.clone(),
        spec(json!({"strategy": {"$patch": "replace", "type": "b"}})),
        spec(json!({"strategy": {"type": "b"}})),
    );
    check(live.clone(), spec(json!({"strategy": {"$patch": "delete"}})), spec(json!({"strategy": {}})));
    check_error(
        live,
        spec(json!({"strategy": {"$patch": "what"}})),
        "unknown patch type: what in map: map[$patch:what]",
    );
}

#[test]
fn unknown_fields_that_would_merge_are_errors() {
    check_error(
        json!({"spec": {"odd": {"a": 1}}}),
        json!({"spec": {"odd": {"a": 2}}}),
        "unable to find api field in struct PodSpec for the json field \"odd\"",
    );
}

proptest! {
    #[test]
    fn never_panics(document in any_json(), patch in any_json()) {
        let (schema, pod) = pod_like();
        let _ = apply(schema.at(pod), json!({"spec": {"containers": document.clone()}, "metadata": document}),
                      json!({"spec": {"containers": patch.clone()}, "metadata": patch}));
    }

    #[test]
    fn merging_twice_is_merging_once(names in prop::collection::vec("[a-d]", 0..5), changes in prop::collection::vec(("[a-d]", "[xyz]"), 0..4)) {
        let (schema, pod) = pod_like();
        let mut seen = std::collections::BTreeSet::new();
        let live: Vec<Value> = names.iter().filter(|n| seen.insert(n.as_str())).map(|n| json!({"name": n, "image": "0"})).collect();
        let patch: Vec<Value> = changes.iter().map(|(n, i)| json!({"name": n, "image": i})).collect();
        let patch = json!({"spec": {"containers": patch}});
        let once = apply(schema.at(pod), json!({"spec": {"containers": live}}), patch.clone()).unwrap();
        let twice = apply(schema.at(pod), once.clone(), patch).unwrap();
        let sorted = |v: &Value| {
            let mut items: Vec<String> = v["spec"]["containers"].as_array().unwrap().iter().map(Value::to_string).collect();
            items.sort();
            items
        };
        prop_assert_eq!(sorted(&once), sorted(&twice));
    }
}
