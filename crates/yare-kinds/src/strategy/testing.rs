//! Cases for strategies as data: an object in, `field: message` out.

use serde_json::{Value, json};
use yare_schema::features::{self, Gates};

use super::{Context, Strategy};
use crate::{table, view::ViewMut};

/// A request that the tests make.
pub const CONTEXT: Context<'static> =
    Context { now: "2026-01-02T03:04:05Z", namespace: "ns", user: "jane", gates: &features::DEFAULT };

/// The strategy of a kind.
pub fn strategy(group: &str, kind: &str) -> &'static dyn Strategy {
    table::find_kind(group, kind).expect("the table has the kind").strategy
}

/// Gates for a whole run of tests.
pub fn gates(text: &str) -> Gates {
    Gates::parse(text).expect("good gates")
}

/// The errors of a new object under other gates, or of an update where there is an old one.
pub fn gated_errors(group: &str, kind: &str, gates: &Gates, old: Option<&Value>, new: &Value) -> Vec<String> {
    let ctx = Context { gates, ..CONTEXT };
    let resource = table::find_kind(group, kind).expect("the table has the kind");
    let new = defaulted(group, kind, new.clone());
    let old = old.map(|old| defaulted(group, kind, old.clone()));
    let errs = match &old {
        None => resource.strategy.validate(&new, &ctx),
        Some(old) => resource.strategy.validate_update(&new, old, &ctx),
    };
    let errs = errs.into_iter().chain(resource.check_switched(&new, old.as_ref(), &ctx));
    errs.map(|e| e.to_string().lines().next().unwrap_or_default().to_owned()).collect()
}

/// `object` with defaults.
pub fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
    strategy(group, kind).default(&mut object);
    object
}

/// `object` with what `patch` says (RFC 7386).
pub fn patched(object: &Value, patch: Value) -> Value {
    let mut object = object.clone();
    merge(&mut object, patch);
    object
}

fn merge(to: &mut Value, patch: Value) {
    let Value::Object(members) = patch else {
        *to = patch;
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (key, value) in members {
        let map = to.as_object_mut().expect("made an object above");
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The errors of a new object, after defaults.
pub fn create_errors(group: &str, kind: &str, object: Value) -> Vec<String> {
    let object = defaulted(group, kind, object);
    strategy(group, kind).validate(&object, &CONTEXT).iter().map(ToString::to_string).collect()
}

/// The errors of an update, after defaults and what an update may not change.
pub fn update_errors(group: &str, kind: &str, old: Value, new: Value) -> Vec<String> {
    let (old, mut new) = (defaulted(group, kind, old), defaulted(group, kind, new));
    let strategy = strategy(group, kind);
    strategy.prepare_for_update(&mut new, &old, &CONTEXT);
    strategy.validate_update(&new, &old, &CONTEXT).iter().map(ToString::to_string).collect()
}

/// The errors of an update of `status`.
pub fn status_errors(group: &str, kind: &str, old: Value, new: Value) -> Vec<String> {
    let strategy = strategy(group, kind);
    strategy.validate_status_update(&new, &old, &CONTEXT).iter().map(ToString::to_string).collect()
}

/// Each case: what is changed in `base` (as a merge patch), and the errors that follow.
pub fn check_create(group: &str, kind: &str, base: &Value, cases: &[(Value, &[&str])]) {
    for (patch, expected) in cases {
        let errs = create_errors(group, kind, patched(base, patch.clone()));
        assert_eq!(errs, *expected, "{kind} {patch}");
    }
}

/// [`check_create`] for updates of `base`.
pub fn check_update(group: &str, kind: &str, base: &Value, cases: &[(Value, &[&str])]) {
    for (patch, expected) in cases {
        let errs = update_errors(group, kind, base.clone(), patched(base, patch.clone()));
        assert_eq!(errs, *expected, "{kind} {patch}");
    }
}

/// A template whose pods have the label `app: a`.
pub fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

/// An object of the name `a` with `body`.
pub fn named(mut body: Value) -> Value {
    body.set("metadata.name", "a");
    body.set("metadata.namespace", "ns");
    body
}
