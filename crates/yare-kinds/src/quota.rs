//! What an object counts for in a ResourceQuota, and which quotas it falls under
//! (`k8s.io/kubernetes/pkg/quota/v1/evaluator/core`). Admission and the quota controller agree because both
//! ask here.

use std::collections::BTreeMap;

use serde_json::Value;
use yare_schema::quantity::Quantity;

use crate::view::View;

/// Amounts by resource: `pods`, `requests.cpu`, `count/deployments.apps`.
pub type Usage = BTreeMap<String, Quantity>;

/// Core resources that quotas know by their plain name as well.
const PLAIN_COUNTS: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Resources that containers must ask for where a quota bounds them: the quota's name, and where it stands.
const COMPUTE: [(&str, &str, &str); 6] = [
    ("cpu", "requests", "cpu"),
    ("memory", "requests", "memory"),
    ("requests.cpu", "requests", "cpu"),
    ("requests.memory", "requests", "memory"),
    ("limits.cpu", "limits", "cpu"),
    ("limits.memory", "limits", "memory"),
];

fn one() -> Quantity {
    whole(1)
}

fn whole(n: i64) -> Quantity {
    Quantity::from_scaled(n, 0, yare_schema::quantity::Format::DecimalSi)
}

fn amount(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

fn add(usage: &mut Usage, name: impl Into<String>, value: Quantity) {
    let name = name.into();
    let sum = usage.get(&name).map_or(value, |have| have.plus(value));
    usage.insert(name, sum);
}

/// What the object counts for.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let dot = if group.is_empty() { "" } else { "." };
    usage.insert(format!("count/{plural}{dot}{group}"), one());
    if !group.is_empty() {
        return usage;
    }
    if PLAIN_COUNTS.contains(&plural) {
        usage.insert(plural.to_owned(), one());
    }
    match plural {
        "pods" if !has_ended(object) => pod(object, &mut usage),
        "services" => service(object, &mut usage),
        "persistentvolumeclaims" => claim(object, &mut usage),
        _ => {}
    }
    usage
}

/// Whether the pod needs nothing any more.
fn has_ended(pod: &Value) -> bool {
    matches!(pod.str_at("status.phase"), "Succeeded" | "Failed")
}

fn pod(pod: &Value, usage: &mut Usage) {
    usage.insert("pods".into(), one());
    for (field, prefix) in [("requests", "requests."), ("limits", "limits.")] {
        for (resource, value) in pod_resources(pod, field) {
            let native = !resource.contains('/');
            if field == "requests" && native {
                add(usage, resource.clone(), value);
            }
            if native || field == "requests" {
                add(usage, format!("{prefix}{resource}"), value);
            }
        }
    }
}

/// What a pod asks for as a whole: its containers together, or the largest initialization step, plus overhead.
pub fn pod_resources(pod: &Value, field: &str) -> Usage {
    let of = |container: &Value| -> Usage {
        container
            .at("resources")
            .entries(field)
            .filter_map(|(k, v)| Some((k.to_owned(), amount(v)?)))
            .collect()
    };
    let mut total = Usage::new();
    for container in pod.items("spec.containers") {
        for (k, v) in of(container) {
            add(&mut total, k, v);
        }
    }
    let mut peak = Usage::new();
    let mut sidecars = Usage::new();
    for container in pod.items("spec.initContainers") {
        let mut step = of(container);
        if container.str_at("restartPolicy") == "Always" {
            for (k, v) in &step {
                add(&mut total, k.clone(), *v);
                add(&mut sidecars, k.clone(), *v);
            }
            step = sidecars.clone();
        } else {
            for (k, v) in &sidecars {
                add(&mut step, k.clone(), *v);
            }
        }
        raise(&mut peak, step);
    }
    raise(&mut total, peak);
    // Resources of the pod as a whole take the place of its containers'.
    for (k, v) in pod.at("spec.resources").entries(field) {
        if let Some(v) = amount(v) {
            total.insert(k.to_owned(), v);
        }
    }
    for (k, v) in pod.entries("spec.overhead") {
        if let Some(v) = amount(v)
            && (field == "requests" || total.contains_key(k))
        {
            add(&mut total, k, v);
        }
    }
    total
}

fn raise(total: &mut Usage, other: Usage) {
    for (k, v) in other {
        if total.get(&k).is_none_or(|have| *have < v) {
            total.insert(k, v);
        }
    }
}

fn service(service: &Value, usage: &mut Usage) {
    let kind = service.str_at("spec.type");
    let ports = i64::try_from(service.items("spec.ports").len()).unwrap_or(i64::MAX);
    let allocate = service.bool_opt("spec.allocateLoadBalancerNodePorts").unwrap_or(true);
    let node_ports = match kind {
        "NodePort" => ports,
        "LoadBalancer" if allocate => ports,
        "LoadBalancer" => {
            i64::try_from(service.items("spec.ports").iter().filter(|p| p.int_at("nodePort") != 0).count())
                .unwrap_or(i64::MAX)
        }
        _ => 0,
    };
    usage.insert("services.nodeports".into(), whole(node_ports));
    usage.insert("services.loadbalancers".into(), whole(i64::from(kind == "LoadBalancer")));
}

fn claim(claim: &Value, usage: &mut Usage) {
    let storage = amount(claim.at("spec.resources.requests.storage"));
    let class = match claim.at("metadata.annotations").get("volume.beta.kubernetes.io/storage-class") {
        Some(Value::String(class)) => class.as_str(),
        _ => claim.str_at("spec.storageClassName"),
    };
    if let Some(storage) = storage {
        usage.insert("requests.storage".into(), storage);
    }
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{prefix}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{prefix}/requests.storage"), storage);
        }
    }
}

/// Whether the quota's scopes take the object in. Scopes are about pods only.
pub fn matches(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = quota.strings("spec.scopes");
    let expressions = quota.items("spec.scopeSelector.matchExpressions");
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    if !group.is_empty() || plural != "pods" {
        return false;
    }
    scopes.iter().all(|scope| in_scope(object, scope))
        && expressions.iter().all(|expression| {
            let scope = expression.str_at("scopeName");
            if scope != "PriorityClass" {
                return in_scope(object, scope);
            }
            let class = object.str_at("spec.priorityClassName");
            let values = expression.strings("values");
            match expression.str_at("operator") {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                _ => false,
            }
        })
}

fn in_scope(pod: &Value, scope: &str) -> bool {
    let terminating = pod.int_opt("spec.activeDeadlineSeconds").is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => pod.is_set("spec.priorityClassName"),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let asks = |field: &str| {
        pod_resources(pod, field).iter().any(|(k, v)| matches!(k.as_str(), "cpu" | "memory") && !v.is_zero())
    };
    !asks("requests") && !asks("limits")
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = pod.at("spec.affinity").at(kind);
        let required = affinity.items("requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = affinity
            .items("preferredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .map(|p| p.at("podAffinityTerm"));
        required.chain(preferred).any(|term| term.is_set("namespaces") || term.has("namespaceSelector"))
    })
}

/// Compute resources that the quota bounds and containers of the pod do not ask for: resource and containers.
pub fn unspecified(quota: &Value, pod: &Value) -> BTreeMap<String, Vec<String>> {
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, _) in quota.entries("spec.hard") {
        let Some((_, field, resource)) = COMPUTE.iter().find(|(n, ..)| *n == name) else { continue };
        if pod.at("spec.resources").at(field).get(*resource).is_some() {
            continue;
        }
        for path in ["spec.containers", "spec.initContainers"] {
            for container in pod.items(path) {
                if container.at("resources").at(field).get(*resource).is_none() {
                    missing.entry(name.to_owned()).or_default().push(container.str_at("name").to_owned());
                }
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(usage: &Usage) -> Vec<String> {
        usage.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn counts() {
        let pod = json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"cpu": "2"}}}],
            "initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
        }});
        assert_eq!(
            shown(&usage("", "pods", &pod)),
            [
                "count/pods=1",
                "cpu=3",
                "limits.cpu=2",
                "pods=1",
                "requests.cpu=3",
                "requests.example.com/gpu=2",
            ]
        );
        let ended = json!({"status": {"phase": "Failed"}});
        assert_eq!(shown(&usage("", "pods", &ended)), ["count/pods=1"]);
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(
            shown(&usage("", "services", &service)),
            ["count/services=1", "services=1", "services.loadbalancers=0", "services.nodeports=2",]
        );
        assert_eq!(shown(&usage("apps", "deployments", &json!({}))), ["count/deployments.apps=1"]);
    }

    #[test]
    fn scopes() {
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let plain = json!({"spec": {"containers": [{}]}});
        let ends = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        for (scope, first, second) in [
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
            ("Terminating", false, true),
            ("NotTerminating", true, false),
        ] {
            assert_eq!(matches(&quota(scope), "", "pods", &plain), first, "{scope}");
            assert_eq!(matches(&quota(scope), "", "pods", &ends), second, "{scope}");
        }
        assert!(!matches(&quota("BestEffort"), "", "services", &json!({})));
    }
}
