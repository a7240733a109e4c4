//! `metadata`: what the server restores on updates, and the validation that every kind shares
//! (labels, annotations, owners, finalizers, immutable fields).

use std::collections::HashSet;

use serde_json::Value;
pub use yare_schema::metadata::{
    FIELD_MANAGER_MAX, NON_NEGATIVE, TOTAL_ANNOTATION_SIZE_LIMIT_B, invalid_each, non_negative,
    validate_annotations, validate_field_manager, validate_labels,
};
use yare_schema::{
    field::{FieldError, Path},
    metadata::{validate_common, validate_what_clients_write},
};

use crate::{
    names,
    strategy::Strategy,
    view::{View, ViewMut, same},
};

/// What an update of a field that cannot change says.
pub const IMMUTABLE: &str = "field is immutable";

/// Restores what no update of the main resource may change: system metadata always, and `status` where it
/// is a subresource of its own. With `generation`, bumps `metadata.generation` when anything but metadata
/// and status changed.
pub fn prepare_for_update(new: &mut Value, old: &Value, has_status: bool, generation: bool) {
    restore_system_fields(new, old);
    if has_status {
        new.copy_from(old, "status");
    }
    if generation && changed_beside_status(new, old) {
        bump_generation(new, old);
    }
}

/// Restores everything but `status` and the metadata that clients own.
pub fn prepare_for_status_update(new: &mut Value, old: &Value) {
    restore_system_fields(new, old);
    let (Some(map), Some(before)) = (new.as_object_mut(), old.as_object()) else { return };
    map.retain(|k, _| before.contains_key(k) || k == "status" || k == "metadata");
    for (key, value) in before {
        if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
            map.insert(key.clone(), value.clone());
        }
    }
}

/// Restores the metadata that clients own.
pub fn restore_client_metadata(new: &mut Value, old: &Value) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        new.copy_from(old, &format!("metadata.{field}"));
    }
}

/// `metadata.generation` of `old`, plus one.
pub fn bump_generation(new: &mut Value, old: &Value) {
    new.set("metadata.generation", old.int_at("metadata.generation") + 1);
}

/// Whether anything but metadata and status differs.
pub fn changed_beside_status(new: &Value, old: &Value) -> bool {
    let body = |v: &'_ Value, other: &Value| {
        v.entries("")
            .filter(|(k, _)| !matches!(*k, "apiVersion" | "kind" | "metadata" | "status"))
            .any(|(k, v)| !same(v, other.get(k).unwrap_or(&Value::Null)))
    };
    body(new, old) || body(old, new)
}

/// Restores the metadata that no update changes.
pub(crate) fn restore_system_fields(new: &mut Value, old: &Value) {
    new.copy_from(old, "metadata.generation");
    new.default_zero("metadata.uid", old.at("metadata.uid").clone());
    for path in ["metadata.creationTimestamp", "metadata.deletionTimestamp"] {
        if old.has(path) {
            new.copy_from(old, path);
        }
    }
    if !new.has("metadata.deletionGracePeriodSeconds") {
        new.copy_from(old, "metadata.deletionGracePeriodSeconds");
    }
}

/// Errors in the metadata of a new object.
pub fn validate_create(object: &Value, namespaced: bool, strategy: &dyn Strategy) -> Vec<FieldError> {
    validate_whole(object, namespaced, &|name, is_prefix| {
        let messages = of_kind(strategy, object, name, is_prefix);
        if messages.is_empty() { names::path_segment_begun(name, is_prefix) } else { messages }
    })
}

/// Errors in an object's metadata by its own kind's rule for names.
pub fn validate_own(object: &Value, namespaced: bool, strategy: &dyn Strategy) -> Vec<FieldError> {
    validate_whole(object, namespaced, &|name, is_prefix| of_kind(strategy, object, name, is_prefix))
}

fn of_kind(strategy: &dyn Strategy, object: &Value, name: &str, is_prefix: bool) -> Vec<String> {
    match is_prefix {
        true if strategy.judges_prefix() => {
            strategy.validate_name_of(&names::mask_trailing_dash(name), object)
        }
        true => Vec::new(),
        false => strategy.validate_name_of(name, object),
    }
}

/// What is wrong with a name, or with what one is to begin with.
type NameRule<'a> = &'a dyn Fn(&str, bool) -> Vec<String>;

fn validate_whole(object: &Value, namespaced: bool, rule: NameRule<'_>) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errs = Vec::new();
    let prefix = object.str_at("metadata.generateName");
    if !prefix.is_empty() {
        errs.extend(invalid_each(&path.child("generateName"), prefix, rule(prefix, true)));
    }
    let name = object.str_at("metadata.name");
    let p = path.child("name");
    if name.is_empty() {
        errs.push(FieldError::required(&p, "name or generateName is required"));
    } else {
        errs.extend(invalid_each(&p, name, rule(name, false)));
    }
    errs.extend(validate_common(object.at("metadata"), namespaced, &path));
    errs
}

/// Errors of an update's metadata by the rules of all kinds. Whether an update may omit `resourceVersion` is the
/// server's question ([`Strategy::allow_unconditional_update`]) and not looked at here.
pub fn validate_update(new: &Value, old: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errs = validate_whole(new, namespaced, &names::path_segment_begun);
    errs.extend(validate_change(new, old));
    errs
}

/// Errors of what an update makes of the metadata.
pub fn validate_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errs = Vec::new();
    if old.has("metadata.deletionTimestamp") {
        let before = old.strings("metadata.finalizers");
        let mut extra: Vec<&str> =
            new.strings("metadata.finalizers").into_iter().filter(|f| !before.contains(f)).collect();
        extra.sort_unstable();
        if !extra.is_empty() {
            let listed: Vec<String> = extra.iter().map(|f| format!("{f:?}")).collect();
            errs.push(FieldError::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    listed.join(", ")
                ),
            ));
        }
    }
    let generation = new.int_at("metadata.generation");
    if generation < old.int_at("metadata.generation") {
        errs.push(FieldError::invalid(&path.child("generation"), generation, "must not be decremented"));
    }
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        errs.extend(immutable(
            new.at("metadata").at(field),
            old.at("metadata").at(field),
            &path.child(field),
        ));
    }
    errs.extend(validate_what_clients_write(new.at("metadata"), &path));
    errs
}

/// An error where `new` differs from `old`.
pub fn immutable(new: &Value, old: &Value, path: &Path<'_>) -> Option<FieldError> {
    (!same(new, old)).then(|| FieldError::invalid(path, new.clone(), IMMUTABLE))
}

/// Errors in the finalizers of built-in kinds, which are of the project's own or have a domain.
pub fn validate_kube_finalizers(object: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let path = path.child("finalizers");
    object
        .strings("metadata.finalizers")
        .iter()
        .enumerate()
        .filter(|(_, f)| !f.contains('/') && !matches!(**f, "kubernetes" | "orphan" | "foregroundDeletion"))
        .map(|(i, f)| {
            FieldError::invalid(
                &path.index(i),
                *f,
                "name is neither a standard finalizer name nor is it fully qualified",
            )
        })
        .collect()
}

/// Errors in a list of `metav1.Condition`.
pub fn validate_conditions(conditions: &[Value], path: &Path<'_>) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let p = path.index(i);
        let kind = condition.str_at("type");
        if seen.contains(&kind) {
            errs.push(FieldError::duplicate(&p.child("type"), kind));
        }
        seen.insert(kind);
        errs.extend(invalid_each(&p.child("type"), kind, names::qualified_name(kind)));
        let status = condition.str_at("status");
        if !matches!(status, "True" | "False" | "Unknown") {
            errs.push(FieldError::not_supported(&p.child("status"), status, &["True", "False", "Unknown"]));
        }
        let observed = condition.int_at("observedGeneration");
        if observed < 0 {
            errs.push(FieldError::invalid(
                &p.child("observedGeneration"),
                observed,
                "must be greater than or equal to zero",
            ));
        }
        if !condition.has("lastTransitionTime") {
            errs.push(FieldError::required(&p.child("lastTransitionTime"), ""));
        }
        let reason = condition.str_at("reason");
        if reason.is_empty() {
            errs.push(FieldError::required(&p.child("reason"), ""));
        } else {
            if !is_condition_reason(reason) {
                errs.push(FieldError::invalid(
                    &p.child("reason"),
                    reason,
                    names::regex_message(
                        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
                        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
                    ),
                ));
            }
            if reason.len() > 1024 {
                errs.push(FieldError::too_long(&p.child("reason"), 1024));
            }
        }
        if condition.str_at("message").len() > 32 * 1024 {
            errs.push(FieldError::too_long(&p.child("message"), 32 * 1024));
        }
    }
    errs
}

fn is_condition_reason(reason: &str) -> bool {
    let b = reason.as_bytes();
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    b.first().is_some_and(u8::is_ascii_alphabetic)
        && b.last().is_some_and(|&c| word(c))
        && b.iter().all(|&c| word(c) || c == b',' || c == b':')
}

/// Errors in a `metav1.LabelSelector`.
pub fn validate_label_selector(selector: &Value, path: &Path<'_>) -> Vec<FieldError> {
    selector_errors(selector, path, true)
}

/// [`validate_label_selector`] without a look at the values of its expressions.
pub fn validate_label_selector_form(selector: &Value, path: &Path<'_>) -> Vec<FieldError> {
    selector_errors(selector, path, false)
}

/// How the selectors of one object are judged.
pub type JudgeSelector = fn(&Value, &Path<'_>) -> Vec<FieldError>;

/// How selectors are judged where one `was_wrong` before.
pub fn judge(was_wrong: bool) -> JudgeSelector {
    if was_wrong { validate_label_selector_form } else { validate_label_selector }
}

/// How selectors are judged in an update of what had the selectors `before`. Where one of those was wrong, objects
/// of the past had values that no label can have, and may keep them.
pub fn judge_selectors_after<'a>(before: impl IntoIterator<Item = &'a Value>) -> JudgeSelector {
    let root = Path::ROOT;
    judge(before.into_iter().any(|selector| !validate_label_selector(selector, &root).is_empty()))
}

fn selector_errors(selector: &Value, path: &Path<'_>, values_too: bool) -> Vec<FieldError> {
    let mut errs = validate_labels(selector.at("matchLabels"), &path.child("matchLabels"));
    let list = path.child("matchExpressions");
    for (i, requirement) in selector.items("matchExpressions").iter().enumerate() {
        let p = list.index(i);
        let values = requirement.strings("values");
        let operator = requirement.str_at("operator");
        match operator {
            "In" | "NotIn" if values.is_empty() => errs.push(FieldError::required(
                &p.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.push(FieldError::forbidden(
                        &p.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            _ => errs.push(FieldError::invalid(
                &p.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        let key = requirement.str_at("key");
        errs.extend(invalid_each(&p.child("key"), key, names::qualified_name(key)));
        let list = p.child("values");
        for (j, value) in values.iter().enumerate().filter(|_| values_too) {
            errs.extend(invalid_each(&list.index(j), *value, names::label_value(value)));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::Neutral;

    fn check(object: Value, expected: &[&str]) {
        let errs: Vec<String> =
            validate_create(&object, true, &Neutral).iter().map(ToString::to_string).collect();
        assert_eq!(errs, expected, "{object}");
    }

    #[test]
    fn create() {
        check(json!({"metadata": {"name": "a", "namespace": "b"}}), &[]);
        check(
            json!({"metadata": {}}),
            &[
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value",
            ],
        );
        check(
            json!({"metadata": {"name": "a", "namespace": "b", "labels": {"a/b/c": "x y"}}}),
            &[
                "metadata.labels: Invalid value: \"a/b/c\": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                "metadata.labels: Invalid value: \"x y\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ],
        );
        check(
            json!({"metadata": {"name": "a", "namespace": "b", "annotations": {"x": "y".repeat(TOTAL_ANNOTATION_SIZE_LIMIT_B)}}}),
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        );
        check(
            json!({"metadata": {"name": "a", "namespace": "b", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "K", "name": "n", "uid": "u"},
                {"apiVersion": "", "kind": "K", "name": "n", "uid": ""}]}}),
            &[
                "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
                "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
            ],
        );
    }

    #[test]
    fn update() {
        let old = json!({"metadata": {"name": "a", "namespace": "b", "uid": "u", "generation": 3, "deletionTimestamp": "t"},
            "spec": {"x": 1}, "status": {"s": 1}});
        let mut new = json!({"metadata": {"name": "a", "namespace": "b", "finalizers": ["x/y"], "generation": 9}, "spec": {"x": 2}});
        prepare_for_update(&mut new, &old, true, true);
        assert_eq!(new.int_at("metadata.generation"), 4);
        assert_eq!(new.str_at("metadata.uid"), "u");
        assert_eq!(new.int_at("status.s"), 1);
        let errs: Vec<String> = validate_update(&new, &old, true).iter().map(ToString::to_string).collect();
        assert_eq!(
            errs,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/y\"}"
            ]
        );
        let mut new =
            json!({"metadata": {"name": "a", "labels": {"l": "v"}}, "spec": {"x": 5}, "status": {"s": 2}});
        prepare_for_status_update(&mut new, &old);
        assert_eq!(
            (new.int_at("spec.x"), new.int_at("status.s"), new.int_at("metadata.generation")),
            (1, 2, 3)
        );
    }
}
