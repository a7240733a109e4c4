//! Rules of kinds as data: what is sent, and what the server says of it in upstream's words.
//!
//! Every file in `tables/` holds YAML documents. Each is a case: a `kind`, a `new` object as a merge patch of
//! the file's first document, perhaps an `old` one (likewise) and the subresource `through` which it is updated,
//! the `gates` that differ, and the `errors` or `warnings` that follow, one a line. `keeps` is what must stand in
//! the object that is stored.

use serde_json::{Map, Value};
use yare_kinds::{gated, strategy::Context, table::find_kind, view::ViewMut};
use yare_schema::{decode::yaml_to_json, features::Gates, patch::merge::apply};

fn merged(base: &Value, patch: &Value) -> Value {
    apply(base.clone(), patch.clone()).expect("a merge patch of an object")
}

/// The first line of each message.
fn lines<T: ToString>(all: &[T]) -> String {
    all.iter().map(|e| e.to_string().lines().next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Whether all that `wanted` says is in `found`; `null` says that nothing is there.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (found, Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| holds(found.get(key).unwrap_or(&Value::Null), value))
        }
        (found, wanted) => found == wanted,
    }
}

/// What differs from what the case says.
fn run(file: &str, case: &Map<String, Value>, base: &Value) -> Vec<String> {
    let text = |key: &str| case.get(key).and_then(Value::as_str).unwrap_or_default();
    let title = format!("{file}: {}", text("case"));
    let group =
        base.get("apiVersion").and_then(Value::as_str).and_then(|v| v.split_once('/')).map_or("", |v| v.0);
    let kind = find_kind(group, text("kind")).unwrap_or_else(|| panic!("{title}: no such kind"));
    let gates = Gates::parse(text("gates")).unwrap_or_else(|e| panic!("{title}: {e}"));
    let ctx = Context { now: "2026-01-02T03:04:05Z", namespace: "ns", user: "jane", gates: &gates };
    let mut base = base.clone();
    base.default_zero("metadata.name", "x");
    if kind.is_namespaced() {
        base.default_zero("metadata.namespace", "ns");
    }
    let defaulted = |mut object: Value| {
        kind.strategy.default(&mut object);
        kind.strategy.default_in(&mut object, &ctx);
        object
    };
    let old = case.get("old").map(|patch| {
        let mut old = defaulted(merged(&base, patch));
        let status = old.get("status").cloned();
        kind.strategy.prepare_for_create(&mut old, &ctx);
        if let Some(status) = status {
            old["status"] = status;
        }
        old
    });
    let mut new = defaulted(merged(old.as_ref().unwrap_or(&base), &case["new"]));
    let through = text("through");
    gated::of(kind, &gates).drop(&mut new, old.as_ref());
    let errors = match &old {
        None => {
            kind.strategy.prepare_for_create(&mut new, &ctx);
            kind.validate_create(&new, &ctx)
        }
        Some(old) if through.is_empty() => {
            kind.strategy.prepare_for_update(&mut new, old, &ctx);
            kind.validate_update(&new, old, &ctx)
        }
        Some(old) => {
            kind.strategy.prepare_for_subresource_update(through, &mut new, old, &ctx);
            kind.validate_subresource_update(through, &new, old, &ctx)
        }
    };
    let mut differs = Vec::new();
    if lines(&errors) != text("errors") {
        differs.push(format!("{title}: errors\n{}wanted\n{}", lines(&errors), text("errors")));
    }
    if let Some(wanted) = case.get("keeps")
        && !holds(&new, wanted)
    {
        differs.push(format!("{title}: keeps\n{wanted:#} in {new:#}"));
    }
    if case.contains_key("warnings") {
        let warnings = if through.is_empty() {
            kind.strategy.warnings(&new, old.as_ref())
        } else {
            kind.strategy.subresource_warnings(through, &new)
        };
        if lines(&warnings) != text("warnings") {
            differs.push(format!("{title}: warnings\n{}wanted\n{}", lines(&warnings), text("warnings")));
        }
    }
    differs
}

fn table(file: &str, text: &str) {
    let mut documents = text.split("\n---\n").map(|document| {
        let (json, _) =
            yaml_to_json(document.as_bytes()).unwrap_or_else(|e| panic!("{file}: {e}\n{document}"));
        serde_json::from_slice::<Value>(&json).expect("what became JSON is JSON")
    });
    let base = documents.next().expect("a file has a first document");
    let differs: Vec<String> =
        documents.flat_map(|case| run(file, case.as_object().expect("a case is an object"), &base)).collect();
    assert!(differs.is_empty(), "{}", differs.join("\n"));
}

macro_rules! tables {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                table(stringify!($name), include_str!(concat!("tables/", stringify!($name), ".yaml")));
            }
        )*
    };
}

tables! {
    claim definition definition_schema node others pod_changes pod_spec service volume
    admission apps batch flowcontrol networking resource runtime_class storage
}
