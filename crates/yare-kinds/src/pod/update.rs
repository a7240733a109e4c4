//! What may change in a pod: almost nothing of its specification; its ephemeral containers through their
//! subresource. Its status is in [`super::status`], its resources are in [`super::resize`].

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{
    affinity,
    annotations::{self, APP_ARMOR, MIRROR},
    spec::check_pod,
};
use crate::{
    check::{Check, Errors, annotation},
    meta, names, shown,
    view::{View, ViewMut, same},
};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Errors of an update of the pod itself.
pub fn check_update(errs: &mut Errors, new: &Value, old: &Value) {
    check_pod(errs, new);
    check_annotation_update(errs, new, old);
    let path = Path::new("spec");
    let (new, old) = (new.at("spec"), old.at("spec"));
    for list in ["containers", "initContainers"] {
        let p = path.child(list);
        if new.items(list).len() != old.items(list).len() {
            return errs.forbidden(&p, "pod updates may not add or remove containers");
        }
        for (i, container) in new.items(list).iter().enumerate() {
            let image = container.str_at("image");
            let p = p.index(i);
            let p = p.child("image");
            errs.non_empty(&p, image);
            if image.trim() != image {
                errs.invalid(&p, image, "must not have leading or trailing whitespace");
            }
        }
    }
    let p = path.child("activeDeadlineSeconds");
    match (new.int_opt("activeDeadlineSeconds"), old.int_opt("activeDeadlineSeconds")) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            return errs.invalid(&p, now, names::range_message(0, i64::from(i32::MAX)));
        }
        (Some(now), Some(before)) if before < now => {
            return errs.invalid(&p, now, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errs.invalid(&p, Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
    check_tolerations_update(errs, &path.child("tolerations"), new, old);
    check_gates_update(errs, &path.child("schedulingGates"), new, old);
    if same(new, old) {
        return;
    }
    // What may change is set back to what it was; nothing else may differ then.
    let mut rest = new.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in rest.items_mut(list).iter_mut().zip(old.items(list)) {
            container.copy_from(before, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        rest.copy_from(old, field);
    }
    if old.int_at("terminationGracePeriodSeconds") < 0 && rest.int_at("terminationGracePeriodSeconds") == 1 {
        rest.copy_from(old, "terminationGracePeriodSeconds");
    }
    if old.is_set("schedulingGates") {
        check_gated_update(errs, &path, &mut rest, old);
    }
    if !same(&rest, old) {
        errs.forbidden(
            &path,
            format!("pod updates may not change fields other than {UPDATABLE}\n{}", difference(&rest, old)),
        );
    }
}

/// The fields of `new` that differ from `old`, one a line.
pub fn difference(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    let mut keys: Vec<&str> = new.entries("").chain(old.entries("")).map(|(k, _)| k).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (now, before) = (new.at(key), old.at(key));
        if !same(now, before) {
            lines.push(format!("  - {key}: {before}\n  + {key}: {now}"));
        }
    }
    lines.join("\n")
}

/// Errors in the annotations of a pod after an update.
pub fn check_annotation_update(errs: &mut Errors, pod: &Value, old: &Value) {
    let path = Path::new("metadata");
    let path = path.child("annotations");
    let (new, old) = (pod.at("metadata.annotations"), old.at("metadata.annotations"));
    let mut check = |key: &str, app_armor: &str, mirror: &str| {
        if key.starts_with(APP_ARMOR) {
            errs.forbidden(&path.key(key), app_armor);
        }
        if key == MIRROR {
            errs.forbidden(&path.key(key), mirror);
        }
    };
    for (key, _) in old.entries("").filter(|(key, value)| new.get(key) != Some(value)) {
        check(
            key,
            "may not remove or update AppArmor annotations",
            "may not remove or update mirror pod annotation",
        );
    }
    for (key, _) in new.entries("").filter(|(key, _)| old.get(key).is_none()) {
        check(key, "may not add AppArmor annotations", "may not add mirror pod annotation");
    }
    annotations::check(errs, &path, pod);
}

fn check_tolerations_update(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.remove("tolerationSeconds");
        toleration
    };
    let now: Vec<Value> = new.items("tolerations").iter().map(without_seconds).collect();
    let kept = old.items("tolerations").iter().map(without_seconds).all(|t| now.iter().any(|n| same(n, &t)));
    if kept {
        affinity::check_tolerations(errs, path, new.items("tolerations"));
    } else {
        errs.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn check_gates_update(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let before: Vec<&str> = old.items("schedulingGates").iter().map(|g| g.str_at("name")).collect();
    for (i, gate) in new.items("schedulingGates").iter().enumerate() {
        let name = gate.str_at("name");
        if !before.contains(&name) {
            errs.forbidden(
                &path.index(i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
}

/// A pod behind a scheduling gate may still narrow where it runs (KEP-3838).
fn check_gated_update(errs: &mut Errors, path: &Path<'_>, rest: &mut Value, old: &Value) {
    let widened =
        old.entries("nodeSelector").any(|(key, value)| rest.at("nodeSelector").get(key) != Some(value));
    if widened {
        errs.invalid(
            &path.child("nodeSelector"),
            rest.at("nodeSelector").clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    rest.copy_from(old, "nodeSelector");

    const TERMS: &str =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    if same(rest.at("affinity.nodeAffinity"), old.at("affinity.nodeAffinity")) {
        return;
    }
    let (now, before) = (rest.items(TERMS), old.items(TERMS));
    let p = path.child("affinity");
    let p = p.child("nodeAffinity");
    let p = p.child("requiredDuringSchedulingIgnoredDuringExecution");
    let p = p.child("nodeSelectorTerms");
    if !before.is_empty() && before.len() != now.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        let shown = shown::show(rest.at(TERMS), shown::NODE_TERM);
        errs.push(FieldError::invalid(&p, Value::Null, detail).showing(shown));
    } else {
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            if !only_adds(now, before) {
                let detail = "only additions are allowed (no mutations or deletions)";
                let shown = shown::show(now, shown::NODE_TERM);
                errs.push(FieldError::invalid(&p.index(i), Value::Null, detail).showing(shown));
            }
        }
    }
    let had_affinity = old.has("affinity");
    rest.copy_from(old, "affinity.nodeAffinity");
    if !had_affinity && !rest.has("affinity.podAffinity") && !rest.has("affinity.podAntiAffinity") {
        rest.remove("affinity");
    }
}

fn only_adds(new: &Value, old: &Value) -> bool {
    let lists = ["matchExpressions", "matchFields"];
    if lists.iter().all(|l| old.items(l).is_empty()) {
        return lists.iter().all(|l| new.items(l).is_empty());
    }
    lists.iter().all(|list| {
        let (now, before) = (new.items(list), old.items(list));
        now.len() >= before.len() && now.iter().zip(before).all(|(n, b)| same(n, b))
    })
}

/// Keeps of an update through `ephemeralcontainers` only those.
pub fn prepare_ephemeral_containers(new: &mut Value, old: &Value) {
    let containers = new.at("spec.ephemeralContainers").clone();
    reset_to(new, old);
    if containers.is_null() {
        new.remove("spec.ephemeralContainers");
    } else {
        new.set("spec.ephemeralContainers", containers);
    }
    if !same(new.at("spec"), old.at("spec")) {
        meta::bump_generation(new, old);
    }
}

/// Everything as it was, but for managed fields and the resource version.
pub fn reset_to(new: &mut Value, old: &Value) {
    let kept = ["metadata.managedFields", "metadata.resourceVersion"].map(|p| (p, new.at(p).clone()));
    new.clone_from(old);
    for (path, value) in kept {
        if !value.is_null() {
            new.set(path, value);
        }
    }
}

/// Errors of an update through `ephemeralcontainers`.
pub fn check_ephemeral_containers_update(errs: &mut Errors, new: &Value, old: &Value) {
    if annotation(old, MIRROR).is_some() {
        return errs.forbidden(&Path::WHOLE, "static pods do not support ephemeral containers");
    }
    check_pod(errs, new);
    check_annotation_update(errs, new, old);
    let path = Path::new("spec");
    let path = path.child("ephemeralContainers");
    for before in old.items("spec.ephemeralContainers") {
        let name = before.str_at("name");
        match new.items("spec.ephemeralContainers").iter().find(|c| c.str_at("name") == name) {
            None => {
                errs.forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(now) if !same(now, before) => errs.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    difference(now, before)
                ),
            ),
            Some(_) => {}
        }
    }
}
