//! What may change in a pod: almost nothing of its specification; its status by the node; its resources and ephemeral
//! containers through their subresources.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{features::Gates, field::Path};

use super::{
    affinity, resources,
    spec::{check_annotations, check_pod},
};
use crate::{
    check::{Check, Errors, annotation, quantity},
    meta, names, net,
    view::{View, ViewMut, same},
};

const MIRROR: &str = "kubernetes.io/config.mirror";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

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
fn difference(new: &Value, old: &Value) -> String {
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

fn check_annotation_update(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("metadata");
    let path = path.child("annotations");
    let (new, old) = (new.at("metadata.annotations"), old.at("metadata.annotations"));
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
        errs.invalid(
            &p,
            now.to_vec(),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        );
    } else {
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            if !only_adds(now, before) {
                errs.invalid(
                    &p.index(i),
                    now.clone(),
                    "only additions are allowed (no mutations or deletions)",
                );
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

/// Errors of an update of the pod's status.
pub fn check_status_update(errs: &mut Errors, new: &Value, old: &Value, gates: &Gates) {
    check_annotation_update(errs, new, old);
    let meta_path = Path::new("metadata");
    check_annotations(errs, &meta_path.child("annotations"), new);
    let path = Path::new("status");
    let p = path.child("conditions");
    for (i, condition) in new.items("status.conditions").iter().enumerate() {
        let p = p.index(i);
        let observed = condition.int_at("observedGeneration");
        if observed < 0 {
            errs.invalid(&p.child("observedGeneration"), observed, "must be a non-negative integer");
        }
        let kind = condition.str_at("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errs.each(&p.child("Type"), kind, names::qualified_name(kind));
        }
    }
    let nominated = new.str_at("status.nominatedNodeName");
    if nominated != old.str_at("status.nominatedNodeName") && !nominated.is_empty() {
        let p = path.child("nominatedNodeName");
        errs.each(&p, nominated, names::dns1123_subdomain(nominated));
        if old.is_set("spec.nodeName") && gates.is_on("ClearingNominatedNodeNameAfterBinding") {
            errs.forbidden(&p, "may not be set on pods that are already bound to a node");
        }
    }
    let observed = new.int_at("status.observedGeneration");
    if observed < 0 {
        errs.invalid(&path.child("observedGeneration"), observed, "must be a non-negative integer");
    }
    errs.immutable(&path.child("qosClass"), new.at("status.qosClass"), old.at("status.qosClass"));
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        check_transitions(errs, &path.child(list), list, new, old);
    }
    check_addresses(errs, &path, new, old);
    let claims: Vec<&str> = new.items("spec.resourceClaims").iter().map(|c| c.str_at("name")).collect();
    let p = path.child("resourceClaimStatuses");
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, status) in new.items("status.resourceClaimStatuses").iter().enumerate() {
        let name = status.str_at("name");
        let p = p.index(i);
        if !claims.contains(&name) {
            errs.invalid(&p.child("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name) {
            errs.duplicate(&p.child("name"), name);
        }
        seen.insert(name);
        if let Some(claim) = status.str_opt("resourceClaimName") {
            errs.each(&p.child("resourceClaimName"), claim, names::dns1123_subdomain(claim));
        }
    }
}

/// A container that has ended for good stays so.
fn check_transitions(errs: &mut Errors, path: &Path<'_>, list: &str, new: &Value, old: &Value) {
    let spec = old.at("spec");
    let statuses = format!("status.{list}");
    for (i, before) in old.items(&statuses).iter().enumerate() {
        if !before.has("state.terminated") {
            continue;
        }
        let name = before.str_at("name");
        let exit_code = before.int_at("state.terminated.exitCode");
        let revived =
            new.items(&statuses).iter().any(|now| now.str_at("name") == name && !now.has("state.terminated"));
        if revived && !may_restart(spec, list, name, exit_code) {
            errs.forbidden(&path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// Whether a container that ended with `exit_code` is to be started again.
fn may_restart(spec: &Value, list: &str, name: &str, exit_code: i64) -> bool {
    let containers = match list {
        "containerStatuses" => "containers",
        "initContainerStatuses" => "initContainers",
        _ => return false,
    };
    let restarts_all = ["containers", "initContainers"].iter().any(|l| {
        spec.items(l).iter().any(|c| {
            c.items("restartPolicyRules").iter().any(|r| r.str_at("action") == "RestartAllContainers")
        })
    });
    let Some(container) = spec.items(containers).iter().find(|c| c.str_at("name") == name) else {
        return restarts_all;
    };
    let matched = container.items("restartPolicyRules").iter().any(|rule| {
        let listed = rule.items("exitCodes.values").iter().any(|v| v.as_i64() == Some(exit_code));
        match rule.str_at("exitCodes.operator") {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    });
    let policy = container.str_opt("restartPolicy").unwrap_or_else(|| spec.str_at("restartPolicy"));
    restarts_all
        || matched
        || match policy {
            "Always" => true,
            "OnFailure" => exit_code != 0,
            _ => false,
        }
}

fn check_addresses(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    for (field, single) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        let all = |pod: &'_ Value| -> Vec<String> {
            pod.at("status").items(field).iter().map(|ip| ip.str_at("ip").to_owned()).collect()
        };
        let (now, before) = (all(new), all(old));
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let p = path.child(field);
        if field == "hostIPs"
            && let Some(first) = now.first()
            && first != new.at("status").str_at(single)
        {
            errs.invalid(&p.index(0).child("ip"), first.as_str(), "must be equal to `hostIP`");
        }
        for (i, ip) in now.iter().enumerate() {
            net::check_legacy_ip(errs, &p.index(i), ip, &before);
        }
        let families = now.iter().any(|ip| net::is_ipv4(ip)) && now.iter().any(|ip| net::is_ipv6(ip));
        if now.len() > 1 && (!families || now.len() > 2) {
            errs.invalid(
                &p,
                new.at("status").at(field).clone(),
                "may specify no more than one IP for each IP family",
            );
        }
    }
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
fn reset_to(new: &mut Value, old: &Value) {
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
        return errs.forbidden(&Path::ROOT, "static pods do not support ephemeral containers");
    }
    check_pod(errs, new);
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

/// Keeps of an update through `resize` only resources and resize policies.
pub fn prepare_resize(new: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    let comparable = lists.iter().all(|list| {
        let path = format!("spec.{list}");
        let (now, before) = (new.items(&path), old.items(&path));
        now.len() == before.len() && now.iter().zip(before).all(|(n, b)| n.str_at("name") == b.str_at("name"))
    });
    if comparable {
        let wanted = new.at("spec").clone();
        reset_to(new, old);
        if let Some(spec) = new.at_mut("spec") {
            spec.copy_from(&wanted, "resources");
            for list in lists {
                for (container, wanted) in spec.items_mut(list).iter_mut().zip(wanted.items(list)) {
                    container.copy_from(wanted, "resources");
                    container.copy_from(wanted, "resizePolicy");
                }
            }
        }
    }
    new.copy_from(old, "metadata.generation");
    if !same(new.at("spec"), old.at("spec")) {
        meta::bump_generation(new, old);
    }
}

/// Errors of an update through `resize`.
pub fn check_resize(errs: &mut Errors, new: &Value, old: &Value, gates: &Gates) {
    let all_init = gates.is_on("InPlacePodVerticalScalingInitContainers");
    if annotation(old, MIRROR).is_some() {
        return errs.forbidden(&Path::ROOT, "static pods cannot be resized");
    }
    if old.str_at("spec.os.name") == "windows" {
        return errs.forbidden(&Path::ROOT, "windows pods cannot be resized");
    }
    check_pod(errs, new);
    let path = Path::new("spec");
    let class = match old.str_at("status.qosClass") {
        "" => resources::qos_class(old.at("spec")),
        class => class,
    };
    if class != resources::qos_class(new.at("spec")) {
        errs.invalid(&path, class, "Pod QOS Class may not change as a result of resizing");
    }
    let running = old.items("status.containerStatuses").iter().find(|c| c.has("state.running"));
    if running.is_some_and(|c| !c.has("resources")) {
        errs.forbidden(&path, "Pod running on node without support for resize");
    }
    if old.is_set("status.nodeAllocatableResourceClaimStatuses") {
        errs.forbidden(&path, "pods with node allocatable resource claims cannot be resized");
    }
    check_pod_level_resize(errs, &path, new.at("spec"), old.at("spec"));
    for list in ["containers", "initContainers"] {
        let p = path.child(list);
        let (now, before) = (new.at("spec").items(list), old.at("spec").items(list));
        if now.len() != before.len() {
            return errs.forbidden(&p, format!("{list} may not be added or removed on resize"));
        }
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            let p = p.index(i);
            if now.str_at("name") != before.str_at("name") {
                errs.forbidden(&p.child("name"), format!("{list} may not be renamed or reordered on resize"));
                continue;
            }
            let sidecar = before.str_at("restartPolicy") == "Always";
            if list == "initContainers" && !sidecar && !all_init {
                if !same(now, before) {
                    errs.forbidden(&path, "resources for non-sidecar init containers are immutable");
                }
                continue;
            }
            let removed = |of: &str| {
                before.at("resources").entries(of).any(|(k, _)| now.at("resources").at(of).get(k).is_none())
            };
            let p = p.child("resources");
            if removed("requests") {
                errs.forbidden(&p.child("requests"), "resource requests cannot be removed");
            }
            if removed("limits") {
                errs.forbidden(&p.child("limits"), "resource limits cannot be removed");
            }
            if !same(&without_cpu_and_memory(now), &without_cpu_and_memory(before)) {
                errs.forbidden(&path, "only cpu and memory resources are mutable");
            }
        }
    }
}

fn check_pod_level_resize(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let p = path.child("resources");
    if old.is_set("resources") && !new.has("resources") {
        return errs.forbidden(&p, "pod-level resources cannot be removed");
    }
    for of in ["requests", "limits"] {
        let before = old.at("resources").entries(of).map(|(k, _)| k);
        if before.into_iter().any(|k| new.at("resources").at(of).get(k).is_none()) {
            errs.forbidden(&p.child(of), format!("pod-level resource {of} cannot be removed"));
        }
    }
    let wrap = |spec: &Value| serde_json::json!({"resources": spec.at("resources")});
    if !same(&without_cpu_and_memory(&wrap(new)), &without_cpu_and_memory(&wrap(old))) {
        errs.forbidden(path, "only cpu and memory resources are mutable at pod-level");
    }
}

/// A container without its amounts of CPU and memory and without its resize policy; other amounts in one form.
fn without_cpu_and_memory(container: &Value) -> Value {
    let mut rest = container.clone();
    for list in ["resources.requests", "resources.limits"] {
        if let Some(amounts) = rest.at_mut(list).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
            amounts.values_mut().for_each(|v| *v = Value::from(quantity(v).to_string()));
        }
    }
    rest
}
