//! `resize`: CPU and memory of a pod that runs (KEP-1287, KEP-5419).

use serde_json::{Map, Value};
use yare_schema::{features::Gates, field::Path};

use super::{annotations::MIRROR, resources, spec::check_pod, update::reset_to};
use crate::{
    check::{Check, Errors, annotation},
    meta,
    view::{View, ViewMut, same},
};

const LISTS: [&str; 2] = ["containers", "initContainers"];
const RESIZED: [&str; 2] = ["cpu", "memory"];

/// Keeps of an update through `resize` only resources and resize policies.
pub fn prepare(new: &mut Value, old: &Value, gates: &Gates) {
    let wanted = new.at("spec").clone();
    let before = old.at("spec");
    // Another number of containers is left for validation to refuse.
    if LISTS.iter().all(|list| wanted.items(list).len() == before.items(list).len()) {
        reset_to(new, old);
        if let Some(spec) = new.at_mut("spec") {
            if gates.is_on("InPlacePodLevelResourcesVerticalScaling") {
                spec.copy_from(&wanted, "resources");
            }
            for list in LISTS {
                let (now, before) = (wanted.items(list), before.items(list));
                if now.iter().zip(before).any(|(n, b)| n.str_at("name") != b.str_at("name")) {
                    // So are other names.
                    spec.copy_from(&wanted, list);
                    continue;
                }
                for (container, wanted) in spec.items_mut(list).iter_mut().zip(now) {
                    container.copy_from(wanted, "resources");
                    container.copy_from(wanted, "resizePolicy");
                }
            }
        }
    }
    meta::restore_system_fields(new, old);
    if !same(new.at("spec"), old.at("spec")) {
        meta::bump_generation(new, old);
    }
}

/// Errors of an update through `resize`.
pub fn check(errs: &mut Errors, new: &Value, old: &Value, gates: &Gates) {
    if annotation(old, MIRROR).is_some() {
        return errs.forbidden(&Path::WHOLE, "static pods cannot be resized");
    }
    if old.str_at("spec.os.name") == "windows" {
        return errs.forbidden(&Path::WHOLE, "windows pods cannot be resized");
    }
    let found = errs.len();
    check_pod(errs, new);
    let path = Path::new("spec");
    let class = match old.str_at("status.qosClass") {
        "" => resources::qos_class(old.at("spec")),
        class => class,
    };
    if class != resources::qos_class(new.at("spec")) {
        errs.invalid(
            &path,
            new.str_at("status.qosClass"),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let running = old.items("status.containerStatuses").iter().find(|c| c.has("state.running"));
    if running.is_some_and(|c| !c.has("resources")) {
        errs.forbidden(&path, "Pod running on node without support for resize");
    }
    let (now, before) = (new.at("spec"), old.at("spec"));
    let mut rest = now.clone();
    let of_pod = |spec: &Value| spec.is_set("resources.requests") || spec.is_set("resources.limits");
    if of_pod(now) || of_pod(before) {
        if !gates.is_on("InPlacePodLevelResourcesVerticalScaling") {
            return errs.forbidden(
                &Path::WHOLE,
                "resize of pods with pod-level resources is forbidden when InPlacePodLevelResourcesVerticalScalingEnabled feature gate is disabled",
            );
        }
        check_pod_level(errs, &path, &mut rest, before);
    }
    if old.is_set("status.nodeAllocatableResourceClaimStatuses") {
        errs.forbidden(&path, "pods with node allocatable resource claims cannot be resized");
    }
    let ordered = errs.len();
    check_order(errs, &path, now, before);
    if errs.len() > ordered {
        return;
    }
    let all_init = gates.is_on("InPlacePodVerticalScalingInitContainers");
    let resizable = |list: &str, container: &Value| {
        list == "containers" || all_init || container.str_at("restartPolicy") == "Always"
    };
    for list in ["initContainers", "containers"] {
        let p = path.child(list);
        for (i, (now, before)) in now.items(list).iter().zip(before.items(list)).enumerate() {
            let p = p.index(i);
            let p = p.child("resources");
            for (of, detail) in [
                ("requests", "resource requests cannot be removed"),
                ("limits", "resource limits cannot be removed"),
            ] {
                if resizable(list, before) && is_removed(now, before, of) {
                    errs.forbidden(&p.child(of), detail);
                }
            }
        }
    }
    for list in LISTS {
        let p = path.child(list);
        for (i, (container, before)) in rest.items_mut(list).iter_mut().zip(before.items(list)).enumerate() {
            let changed = !same(container, before);
            if !resizable(list, container) {
                if changed {
                    errs.forbidden(&path, "resources for non-sidecar init containers are immutable");
                }
                continue;
            }
            // Of the resources only amounts are kept: a container with claims is never what it was.
            container.remove("resources.claims");
            put_back(container, before);
            let p = p.index(i);
            if !same(container, before) {
                if list == "containers" {
                    errs.forbidden(&path, "only cpu and memory resources are mutable");
                } else {
                    errs.forbidden(
                        &p,
                        "only cpu and memory resources for init or sidecar containers are mutable",
                    );
                }
            }
            if changed && list == "initContainers" && container.str_at("restartPolicy") != "Always" {
                let policies = container.items("resizePolicy").iter();
                for _ in policies.filter(|p| p.str_at("restartPolicy") == "RestartContainer") {
                    errs.forbidden(
                        &p,
                        "non-sidecar init containers with a resize policy of RestartContainer cannot be resized",
                    );
                }
            }
        }
    }
    if errs.len() == found && !same(&rest, before) {
        errs.forbidden(&path, "only cpu and memory resources are mutable");
    }
}

fn check_order(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    for list in LISTS {
        let p = path.child(list);
        let (now, before) = (new.items(list), old.items(list));
        if now.len() != before.len() {
            errs.forbidden(&p, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            if now.str_at("name") != before.str_at("name") {
                errs.forbidden(
                    &p.index(i).child("name"),
                    format!("{list} may not be renamed or reordered on resize"),
                );
            }
        }
    }
}

/// Whether an amount that was in the list `of` is gone.
fn is_removed(new: &Value, old: &Value, of: &str) -> bool {
    old.at("resources").entries(of).any(|(name, _)| new.at("resources").at(of).get(name).is_none())
}

/// Puts the amounts of CPU and memory back to what they were.
fn put_back(of: &mut Value, before: &Value) {
    for list in ["resources.requests", "resources.limits"] {
        let mut amounts: Map<String, Value> = of.at(list).as_object().cloned().unwrap_or_default();
        for name in RESIZED {
            match before.at(list).get(name) {
                Some(amount) => drop(amounts.insert(name.to_owned(), amount.clone())),
                None => drop(amounts.remove(name)),
            }
        }
        if amounts.is_empty() {
            of.remove(list);
        } else {
            of.set(list, amounts);
        }
    }
}

/// Errors in the pod's own resources, which become in `rest` what they were.
fn check_pod_level(errs: &mut Errors, path: &Path<'_>, rest: &mut Value, old: &Value) {
    let p = path.child("resources");
    if old.has("resources") && !rest.has("resources") {
        return errs.forbidden(&p, "pod-level resources cannot be removed");
    }
    for of in ["requests", "limits"] {
        if is_removed(rest, old, of) {
            errs.forbidden(&p.child(of), format!("pod-level resource {of} cannot be removed"));
        }
    }
    put_back(rest, old);
    if !old.has("resources") && same(rest.at("resources"), &Value::Null) {
        rest.remove("resources");
    }
    if !same(rest.at("resources"), old.at("resources")) {
        errs.forbidden(path, "only cpu and memory resources are mutable at pod-level");
    }
}
