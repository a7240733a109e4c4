//! Requests and limits: names of resources, sums over containers, QoS classes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    quantity::Quantity,
};

use crate::{
    check::{Check, Errors, quantity},
    names,
    view::View,
};

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// `hugepages-2Mi`, …
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Without a domain, or of the project's own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more may be promised than there is.
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// `example.com/gpu`: counted in whole units, never overcommitted.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Resources that a pod as a whole can have.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

const INTEGERS: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const COMPUTE: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Resources that a ResourceQuota can limit without a domain.
pub fn is_standard_quota(name: &str) -> bool {
    COMPUTE.contains(&name)
        || INTEGERS.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

/// Resources that stand without a domain.
fn is_standard(name: &str) -> bool {
    name == "storage" || is_standard_quota(name)
}

/// Errors in the name of a resource.
pub fn check_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        errs.each(path, name, messages);
    } else if !name.contains('/') && !is_standard(name) {
        errs.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

/// Errors in the name of a resource that a container asks for.
pub fn check_container_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    check_name(errs, path, name);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
            errs.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn check_pod_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    let before = errs.len();
    check_name(errs, path, name);
    if errs.len() == before && !is_pod_level(name) {
        errs.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
    }
}

/// Errors in an amount of a resource: negative, or a fraction of what has none.
pub fn check_amount(errs: &mut Errors, path: &Path<'_>, name: &str, amount: Quantity) {
    non_negative(errs, path, amount);
    if (INTEGERS.contains(&name) || is_extended(name)) && amount.milli_value() % 1000 != 0 {
        errs.invalid(path, amount.to_string(), "must be an integer");
    }
}

/// An error where `amount` is negative.
pub fn non_negative(errs: &mut Errors, path: &Path<'_>, amount: Quantity) {
    if amount.signum() < 0 {
        errs.invalid(path, amount.to_string(), crate::meta::NON_NEGATIVE);
    }
}

/// Errors in the `ResourceRequirements` of a container.
pub fn check_container(errs: &mut Errors, path: &Path<'_>, requirements: &Value, claims: &[&str]) {
    check(errs, path, requirements, check_container_name, claims);
}

fn check(
    errs: &mut Errors,
    path: &Path<'_>,
    requirements: &Value,
    check_name: fn(&mut Errors, &Path<'_>, &str),
    claims: &[&str],
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut cpu_or_memory, mut huge_pages) = (false, false);
    let mut amount = |errs: &mut Errors, path: &Path<'_>, name: &str, value: &Value| {
        let amount = quantity(value);
        check_name(errs, path, name);
        check_amount(errs, path, name, amount);
        // Whether the amount may be odd depends on what the object had: `switched` judges that.
        huge_pages |= is_huge_page(name);
        cpu_or_memory |= matches!(name, "cpu" | "memory");
        amount
    };
    for (name, value) in requirements.entries("limits") {
        amount(errs, &limits_path.key(name), name, value);
    }
    for (name, value) in requirements.entries("requests") {
        let request = amount(errs, &requests_path.key(name), name, value);
        match requirements.at("limits").get(name).map(quantity) {
            Some(limit) if request != limit && !is_overcommit_allowed(name) => errs.invalid(
                &requests_path,
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            ),
            Some(limit) if request > limit => errs.invalid(
                &requests_path,
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            ),
            None if !is_overcommit_allowed(name) => {
                errs.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge_pages && !cpu_or_memory {
        errs.forbidden(path, "HugePages require cpu or memory");
    }
    check_claims(errs, &path.child("claims"), requirements.items("claims"), claims);
}

/// Whether `amount` is a whole number of the pages that `name` names.
pub fn divides_into_pages(name: &str, amount: Quantity) -> bool {
    let Some(Ok(page)) = name.strip_prefix("hugepages-").map(Quantity::parse) else { return false };
    page.signum() > 0 && page.milli_value() % 1000 == 0 && amount.value() % page.value() == 0
}

fn check_claims(errs: &mut Errors, path: &Path<'_>, claims: &[Value], pod_claims: &[&str]) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let p = path.index(i);
        let (name, request) = (claim.str_at("name"), claim.str_at("request"));
        if name.is_empty() {
            errs.required(&p, "");
            continue;
        }
        if seen.contains(name) {
            errs.duplicate(&p, name);
        } else {
            let key = if request.is_empty() {
                name.to_owned()
            } else {
                errs.each(&p.child("request"), request, names::dns1123_label(request));
                format!("{name}/{request}")
            };
            if seen.contains(&key) {
                errs.duplicate(&p, key.clone());
            } else if request.is_empty() {
                let covered = seen.iter().filter(|s| s.split_once('/').is_some_and(|(head, _)| head == name));
                for _ in 0..covered.count() {
                    errs.duplicate(&p, name);
                }
            }
            seen.insert(key);
        }
        if !pod_claims.contains(&name) {
            let mut known = pod_claims.to_vec();
            known.sort_unstable();
            let detail = if known.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", "))
            };
            errs.push(FieldError { detail, ..FieldError::not_found(&p, name) });
        }
    }
}

/// Errors in a pod's own `resources`.
pub fn check_pod(errs: &mut Errors, spec_path: &Path<'_>, spec: &Value, claims: &[&str]) {
    let resources = spec.at("resources");
    if resources.is_null() {
        return;
    }
    let path = spec_path.child("resources");
    if spec.str_at("os.name") == "windows" {
        errs.forbidden(&path, "may not be set for a windows pod");
        return;
    }
    if resources.has("claims") {
        errs.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    check(errs, &path, resources, check_pod_name, claims);

    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (name, sum) in of_containers(spec, "requests") {
        if let Some(whole) = resources.at("requests").get(&name).map(quantity)
            && sum > whole
        {
            errs.invalid(
                &requests_path.key(&name),
                whole.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
    for (name, sum) in of_containers(spec, "limits") {
        if is_huge_page(&name)
            && let Some(whole) = resources.at("limits").get(&name).map(quantity)
            && sum > whole
        {
            errs.invalid(
                &limits_path.key(&name),
                whole.to_string(),
                format!("must be greater than or equal to aggregate container limits of {sum}"),
            );
        }
    }
    let containers_path = path.child("containers");
    for (i, container) in spec.items("containers").iter().enumerate() {
        for (name, limit) in container.entries("resources.limits") {
            let limit = quantity(limit);
            if let Some(whole) = resources.at("limits").get(name).map(quantity)
                && limit > whole
            {
                errs.invalid(
                    &containers_path.index(i).key(name).child("limits"),
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {whole}"),
                );
            }
        }
    }
}

fn add(into: &mut Amounts, from: &Amounts) {
    for (name, amount) in from {
        into.entry(name.clone()).and_modify(|a| *a += *amount).or_insert(*amount);
    }
}

fn max(into: &mut Amounts, from: &Amounts) {
    for (name, amount) in from {
        into.entry(name.clone()).and_modify(|a| *a = (*a).max(*amount)).or_insert(*amount);
    }
}

/// What the containers of a pod need together (`list`: `requests` or `limits`): the sum of those that run side by side, or the
/// most that any init container needs beside the sidecars started before it.
pub fn of_containers(spec: &Value, list: &str) -> Amounts {
    let of = |container: &Value| -> Amounts {
        container.at("resources").entries(list).map(|(name, v)| (name.to_owned(), quantity(v))).collect()
    };
    let mut total = Amounts::new();
    for container in spec.items("containers") {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for container in spec.items("initContainers") {
        let mut needs = of(container);
        if container.str_at("restartPolicy") == "Always" {
            add(&mut total, &needs);
            add(&mut sidecars, &needs);
            needs.clone_from(&sidecars);
        } else {
            add(&mut needs, &sidecars);
        }
        max(&mut init, &needs);
    }
    max(&mut total, &init);
    total
}

/// The QoS class of a pod.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let mut guaranteed = true;
    let mut take = |resources: &Value| {
        let positive = |list: &str| -> Amounts {
            resources
                .entries(list)
                .filter(|(name, _)| matches!(*name, "cpu" | "memory"))
                .map(|(name, v)| (name.to_owned(), quantity(v)))
                .filter(|(_, amount)| amount.signum() > 0)
                .collect()
        };
        let own_limits = positive("limits");
        guaranteed &= own_limits.len() == 2;
        add(&mut requests, &positive("requests"));
        add(&mut limits, &own_limits);
    };
    let own = spec.at("resources");
    if !own.is_null() {
        take(own);
    } else {
        spec.items("containers")
            .iter()
            .chain(spec.items("initContainers"))
            .for_each(|c| take(c.at("resources")));
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn qos() {
        let pod = |resources: Value| json!({"containers": [{"resources": resources}]});
        for (spec, class) in [
            (pod(json!({})), "BestEffort"),
            (pod(json!({"requests": {"cpu": "1"}})), "Burstable"),
            (
                pod(
                    json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}),
                ),
                "Guaranteed",
            ),
            (
                pod(
                    json!({"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
                ),
                "Burstable",
            ),
            (
                json!({"containers": [{}], "resources": {"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1", "memory": "1"}}}),
                "Guaranteed",
            ),
        ] {
            assert_eq!(qos_class(&spec), class, "{spec}");
        }
    }

    #[test]
    fn sums() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}});
        let spec = json!({"containers": [c("1"), c("500m")], "initContainers": [c("3"), sidecar, c("2")]});
        assert_eq!(of_containers(&spec, "requests")["cpu"].to_string(), "3");
    }

    #[test]
    fn requirements() {
        let check = |requirements: Value| {
            let mut errs = Errors::new();
            check_container(&mut errs, &Path::new("resources"), &requirements, &[]);
            errs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            check(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}})),
            ["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
        );
        assert_eq!(
            check(json!({"requests": {"example.com/gpu": "1"}})),
            ["resources.limits: Required value: Limit must be set for non overcommitable resources"]
        );
        assert_eq!(
            check(json!({"limits": {"disk": "1"}})),
            [
                "resources.limits[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                "resources.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
            ]
        );
        assert_eq!(
            check(json!({"limits": {"cpu": "-1"}})),
            ["resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
    }
}
