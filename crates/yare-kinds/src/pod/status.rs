//! What a node, a scheduler or a controller may write into the status of a pod.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use super::{resources::is_native, update::check_annotation_update};
use crate::{
    check::{Check, Errors, quantity},
    names, net, shown,
    view::View,
};

const CONTAINERS: &str = "containerStatuses";
const INIT_CONTAINERS: &str = "initContainerStatuses";
const EPHEMERAL_CONTAINERS: &str = "ephemeralContainerStatuses";
const LISTS: [&str; 3] = [CONTAINERS, INIT_CONTAINERS, EPHEMERAL_CONTAINERS];

/// The longest text about the health of a device, in bytes.
const MAX_HEALTH_BYTES: usize = 1024;
/// The longest reference of an image in a volume, in bytes.
const MAX_IMAGE_BYTES: usize = 256;

/// Errors of an update of the pod's status.
pub fn check_update(errs: &mut Errors, new: &Value, old: &Value, gates: &Gates) {
    check_annotation_update(errs, new, old);
    let path = Path::new("status");
    let (status, before) = (new.at("status"), old.at("status"));
    let p = path.child("conditions");
    for (i, condition) in status.items("conditions").iter().enumerate() {
        let p = p.index(i);
        check_generation(errs, &p, condition);
        let kind = condition.str_at("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errs.each(&p.child("Type"), kind, names::qualified_name(kind));
        }
    }
    let nominated = status.str_at("nominatedNodeName");
    if nominated != before.str_at("nominatedNodeName") && !nominated.is_empty() {
        let p = path.child("nominatedNodeName");
        errs.each(&p, nominated, names::dns1123_subdomain(nominated));
        if old.is_set("spec.nodeName") && gates.is_on("ClearingNominatedNodeNameAfterBinding") {
            errs.forbidden(&p, "may not be set on pods that are already bound to a node");
        }
    }
    check_generation(errs, &path, status);
    errs.immutable(&path.child("qosClass"), status.at("qosClass"), before.at("qosClass"));
    for list in LISTS {
        check_transitions(errs, &path.child(list), list, new, old, gates);
    }
    check_claims(errs, &path.child("resourceClaimStatuses"), new);
    check_extended(errs, &path.child("extendedResourceClaimStatus"), new);
    check_allocatable(errs, &path.child("nodeAllocatableResourceClaimStatuses"), new);
    check_addresses(errs, &path, status, before, gates);
    for list in LISTS {
        check_users(errs, &path.child(list), list, new);
    }
    for list in LISTS {
        check_health(errs, &path.child(list), list, new);
    }
    if gates.is_on("ImageVolumeWithDigest") {
        for list in LISTS {
            check_images(errs, &path.child(list), status.items(list));
        }
    }
}

fn check_generation(errs: &mut Errors, path: &Path<'_>, of: &Value) {
    let generation = of.int_at("observedGeneration");
    if generation < 0 {
        errs.invalid(&path.child("observedGeneration"), generation, "must be a non-negative integer");
    }
}

/// A container that has ended for good stays so.
fn check_transitions(
    errs: &mut Errors,
    path: &Path<'_>,
    list: &str,
    new: &Value,
    old: &Value,
    gates: &Gates,
) {
    let spec = old.at("spec");
    let after = new.at("status").items(list);
    for (i, before) in old.at("status").items(list).iter().enumerate() {
        if !before.has("state.terminated") {
            continue;
        }
        let name = before.str_at("name");
        let exit_code = before.int_at("state.terminated.exitCode");
        let revived = after.iter().any(|now| now.str_at("name") == name && !now.has("state.terminated"));
        if revived && !may_restart(spec, list, name, exit_code, gates) {
            errs.forbidden(&path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// Whether a container that ended with `exit_code` is to be started again.
fn may_restart(spec: &Value, list: &str, name: &str, exit_code: i64, gates: &Gates) -> bool {
    let containers = match list {
        CONTAINERS => "containers",
        INIT_CONTAINERS => "initContainers",
        _ => return false,
    };
    let all_at_once = gates.is_on("RestartAllContainersOnContainerExits");
    let restarts_all = all_at_once
        && ["containers", "initContainers"].iter().flat_map(|l| spec.items(l)).any(|c| {
            c.items("restartPolicyRules").iter().any(|r| r.str_at("action") == "RestartAllContainers")
        });
    if restarts_all {
        return true;
    }
    let Some(container) = spec.items(containers).iter().find(|c| c.str_at("name") == name) else {
        return false;
    };
    let policy = match container.str_opt("restartPolicy") {
        None => spec.str_at("restartPolicy"),
        Some(policy) => {
            let matches = |rule: &&Value| {
                let listed = rule.items("exitCodes.values").iter().any(|v| v.as_i64() == Some(exit_code));
                match rule.str_at("exitCodes.operator") {
                    "In" => listed,
                    "NotIn" => !listed,
                    _ => false,
                }
            };
            match container.items("restartPolicyRules").iter().find(matches).map(|r| r.str_at("action")) {
                Some("Restart") => return true,
                Some("RestartAllContainers") if all_at_once => return true,
                _ => policy,
            }
        }
    };
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

fn check_claims(errs: &mut Errors, path: &Path<'_>, pod: &Value) {
    let claims: Vec<&str> = pod.items("spec.resourceClaims").iter().map(|c| c.str_at("name")).collect();
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, status) in pod.items("status.resourceClaimStatuses").iter().enumerate() {
        let name = status.str_at("name");
        let p = path.index(i);
        if !claims.contains(&name) {
            errs.invalid(&p.child("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.insert(name) {
            errs.duplicate(&p.child("name"), name);
        }
        if let Some(claim) = status.str_opt("resourceClaimName") {
            errs.each(&p.child("resourceClaimName"), claim, names::dns1123_subdomain(claim));
        }
    }
}

/// The claim that stands for extended resources (KEP-5004).
fn check_extended(errs: &mut Errors, path: &Path<'_>, pod: &Value) {
    let status = pod.at("status.extendedResourceClaimStatus");
    if status.is_null() {
        return;
    }
    let list = path.child("requestMappings");
    let mappings = status.items("requestMappings");
    if mappings.is_empty() {
        errs.required(&list, "at least one request mapping is required");
    }
    let mut seen: HashSet<[&str; 3]> = HashSet::new();
    for (i, mapping) in mappings.iter().enumerate() {
        let p = list.index(i);
        let [container, resource, request] =
            ["containerName", "resourceName", "requestName"].map(|field| mapping.str_at(field));
        let mut all = ["containers", "initContainers"].iter().flat_map(|l| pod.at("spec").items(l));
        match all.find(|c| c.str_at("name") == container) {
            None => errs.invalid(
                &p.child("containerName"),
                container,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(c) if c.at("resources.requests").get(resource).is_none() => errs.invalid(
                &p.child("resourceName"),
                resource,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        errs.each(&path.child("requestName"), request, names::dns1123_label(request));
        if !seen.insert([container, resource, request]) {
            errs.duplicate(&p.child("containerName"), container);
            errs.duplicate(&p.child("resourceName"), resource);
            errs.duplicate(&p.child("requestName"), request);
        }
    }
    errs.name(&path.child("resourceClaimName"), status.str_at("resourceClaimName"), names::dns1123_subdomain);
}

/// What claims take of the node's own resources (KEP-5517).
fn check_allocatable(errs: &mut Errors, path: &Path<'_>, pod: &Value) {
    let claims = pod.items("spec.resourceClaims").iter().chain(pod.items("status.resourceClaimStatuses"));
    let claims: Vec<&str> = claims.filter_map(|c| c.str_opt("resourceClaimName")).collect();
    for (i, status) in pod.items("status.nodeAllocatableResourceClaimStatuses").iter().enumerate() {
        let p = path.index(i);
        let claim = status.str_at("resourceClaimName");
        let claim_path = p.child("resourceClaimName");
        if claim.is_empty() {
            errs.required(&claim_path, "must not be empty");
        }
        if !claims.contains(&claim) {
            errs.invalid(&claim_path, claim, "no mapping found in pod reference");
        }
        for field in ["containers", "resources"] {
            if !status.is_set(field) {
                errs.required(&p.child(field), "must not be empty");
            }
        }
        let resources = p.child("resources");
        for (name, amount) in status.entries("resources") {
            let (p, amount) = (resources.key(name), quantity(amount));
            if !is_native(name) {
                errs.invalid(&p, name, "must be a node allocatable resource name");
            }
            if amount.signum() < 0 {
                errs.invalid(&p, amount.to_string(), "must be non-negative");
            }
        }
    }
}

fn check_addresses(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value, gates: &Gates) {
    let strict = gates.is_on("StrictIPCIDRValidation");
    for (field, single) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        let all = |status: &'_ Value| -> Vec<String> {
            status.items(field).iter().map(|ip| ip.str_at("ip").to_owned()).collect()
        };
        let (now, before) = (all(new), all(old));
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let p = path.child(field);
        if field == "hostIPs"
            && let Some(first) = now.first()
            && first != new.at(single)
        {
            errs.invalid(&p.index(0).child("ip"), first.as_str(), "must be equal to `hostIP`");
        }
        for (i, ip) in now.iter().enumerate() {
            net::check_old_ip(errs, &p.index(i), ip, &before, strict);
        }
        let families = now.iter().any(|ip| net::is_ipv4(ip)) && now.iter().any(|ip| net::is_ipv6(ip));
        if now.len() > 1 && (!families || now.len() > 2) {
            let detail = "may specify no more than one IP for each IP family";
            let shown = shown::show(new.at(field), shown::ADDRESS);
            errs.push(FieldError::invalid(&p, Value::Null, detail).showing(shown));
        }
    }
}

/// Whom containers run as (KEP-3619).
fn check_users(errs: &mut Errors, path: &Path<'_>, list: &str, pod: &Value) {
    let os = pod.str_opt("spec.os.name").unwrap_or("linux");
    for (i, status) in pod.at("status").items(list).iter().enumerate() {
        let p = path.index(i);
        let p = p.child("user");
        let p = p.child("linux");
        let user = status.at("user.linux");
        match os {
            "windows" if !user.is_null() => errs.forbidden(&p, "cannot be set for a windows pod"),
            "linux" if !user.is_null() => {
                for field in ["uid", "gid"] {
                    let id = user.int_at(field);
                    errs.each(&p.child(field), id, names::user_or_group_id(id));
                }
                let groups = p.child("supplementalGroups");
                for (j, id) in user.items("supplementalGroups").iter().enumerate() {
                    let id = id.as_i64().unwrap_or_default();
                    errs.each(&groups.index(j), id, names::user_or_group_id(id));
                }
            }
            _ => {}
        }
    }
}

/// How the devices of containers are (KEP-4680).
fn check_health(errs: &mut Errors, path: &Path<'_>, list: &str, pod: &Value) {
    const FIELD: &str = "allocatedResourcesStatus";
    let containers = if list == CONTAINERS { "containers" } else { "initContainers" };
    let containers = pod.at("spec").items(containers);
    for (i, status) in pod.at("status").items(list).iter().enumerate() {
        let p = path.index(i);
        let p = p.child(FIELD);
        if list == EPHEMERAL_CONTAINERS {
            if status.is_set(FIELD) {
                errs.forbidden(&p, "must not be specified in container status");
            }
            continue;
        }
        let container = containers.iter().find(|c| c.str_at("name") == status.str_at("name"));
        for (j, allocated) in status.items(FIELD).iter().enumerate() {
            let p = p.index(j);
            if let Some(container) = container {
                check_health_name(errs, &p.child("name"), allocated.str_at("name"), container);
            }
            let p = p.child("resources");
            let mut seen: HashSet<&str> = HashSet::new();
            for (k, resource) in allocated.items("resources").iter().enumerate() {
                let p = p.index(k);
                errs.one_of(
                    &p.child("health"),
                    resource.str_at("health"),
                    &["Healthy", "Unhealthy", "Unknown"],
                );
                match resource.str_opt("message") {
                    Some("") => errs.required(&p.child("message"), "must be non-empty if specified"),
                    Some(text) if text.len() > MAX_HEALTH_BYTES => {
                        errs.push(FieldError::too_long(&p.child("message"), MAX_HEALTH_BYTES));
                    }
                    _ => {}
                }
                let id = resource.str_at("resourceID");
                if !seen.insert(id) {
                    errs.duplicate(&p.child("resourceID"), id);
                }
            }
        }
    }
}

fn check_health_name(errs: &mut Errors, path: &Path<'_>, name: &str, container: &Value) {
    let (found, detail) = match name.strip_prefix("claim:") {
        Some(name) => {
            let is = |claim: &Value| match claim.str_at("request") {
                "" => name == claim.str_at("name"),
                request => name.split_once('/') == Some((claim.str_at("name"), request)),
            };
            (
                container.items("resources.claims").iter().any(is),
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
            )
        }
        None => (
            container.at("resources.requests").get(name).is_some(),
            "must match one of the container's resource requests",
        ),
    };
    if !found {
        errs.invalid(path, name, detail);
    }
}

/// Which images volumes hold.
fn check_images(errs: &mut Errors, path: &Path<'_>, statuses: &[Value]) {
    for (i, status) in statuses.iter().enumerate() {
        let p = path.index(i);
        let list = p.child("volumeMounts");
        for (j, mount) in status.items("volumeMounts").iter().enumerate() {
            if !mount.has("volumeStatus.image") {
                continue;
            }
            let image = mount.str_at("volumeStatus.image.imageRef");
            let p = list.index(j);
            let p = p.child("volumeStatus");
            let p = p.child("imageVolumeStatus");
            let p = p.child("imageRef");
            if image.is_empty() {
                errs.required(&p, "imageRef must not be empty");
            }
            if image.len() > MAX_IMAGE_BYTES {
                errs.push(FieldError::too_long(&p, MAX_IMAGE_BYTES));
            }
        }
    }
}
