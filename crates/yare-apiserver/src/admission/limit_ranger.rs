//! LimitRanger: a namespace's LimitRanges give containers their default requests and limits and bound them.

use serde_json::{Map, Value};
use yare_kinds::{
    quota::{self, Usage},
    view::{View, ViewMut},
};
use yare_schema::quantity::Quantity;

use super::{Attributes, Operation};
use crate::status::ApiResult;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Lists of containers, and what the annotation calls one of them.
const CONTAINERS: [(&str, &str); 2] =
    [("spec.containers", "container"), ("spec.initContainers", "init container")];

/// Above this, milli-units no longer fit 64 bits, and whole units are compared.
const MAX_MILLI_VALUE: i64 = i64::MAX / 1000;

/// Whether limits apply: to new pods, to resized ones, and to claims.
fn applies(attributes: &Attributes<'_>, old: Option<&Value>) -> bool {
    if old.is_some_and(|old| old.has("metadata.deletionTimestamp")) {
        return false;
    }
    match attributes.subresource {
        "" => !(attributes.is("", "pods") && attributes.operation == Operation::Update),
        _ => attributes.is("", "pods") && attributes.operation == Operation::Update,
    }
}

fn ranges(attributes: &Attributes<'_>) -> Vec<Value> {
    let snapshot = attributes.call.core.store().snapshot("limitranges");
    if snapshot.is_empty() {
        return Vec::new();
    }
    let prefix = format!("{}/", attributes.namespace);
    snapshot
        .range(std::ops::Bound::Unbounded, &prefix)
        .filter_map(|o| serde_json::from_slice(&o.bytes).ok())
        .collect()
}

/// Gives containers the defaults of the namespace.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    if !attributes.is("", "pods") || !applies(attributes, old) {
        return Ok(());
    }
    for range in ranges(attributes) {
        let notes = complete(pod, &range);
        if !notes.is_empty() {
            if !pod.has("metadata.annotations") {
                pod.set("metadata.annotations", Map::new());
            }
            if let Some(annotations) = pod.at_mut("metadata.annotations").and_then(Value::as_object_mut) {
                let text = format!("LimitRanger plugin set: {}", notes.join("; "));
                annotations.insert(ANNOTATION.into(), text.into());
            }
        }
    }
    Ok(())
}

/// Sets what a range has defaults for; says what.
fn complete(pod: &mut Value, range: &Value) -> Vec<String> {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for limit in range.items("spec.limits").iter().filter(|l| l.str_at("type") == "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            to.extend(limit.entries(from).map(|(k, v)| (k.to_owned(), v.clone())));
        }
    }
    let mut notes = Vec::new();
    if requests.is_empty() && limits.is_empty() {
        return notes;
    }
    for (list, what) in CONTAINERS {
        for container in pod.items_mut(list) {
            let name = container.str_at("name").to_owned();
            for (field, defaults) in [("requests", &requests), ("limits", &limits)] {
                let have = container.at("resources").at(field);
                let mut missing: Vec<&String> =
                    defaults.keys().filter(|k| have.get(k.as_str()).is_none()).collect();
                if missing.is_empty() {
                    continue;
                }
                missing.sort();
                let path = format!("resources.{field}");
                if !container.has(&path) {
                    container.set(&path, Map::new());
                }
                if let Some(map) = container.at_mut(&path).and_then(Value::as_object_mut) {
                    map.extend(missing.iter().map(|k| ((*k).clone(), defaults[k.as_str()].clone())));
                }
                let list = missing.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
                notes.push(format!("{list} {} for {what} {name}", field.trim_end_matches('s')));
            }
        }
    }
    notes
}

/// Refuses what is out of the namespace's bounds.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(object) = object.filter(|_| applies(attributes, old)) else { return Ok(()) };
    let is_pod = attributes.is("", "pods");
    for range in ranges(attributes) {
        let mut wrong = Wrong::default();
        for limit in range.items("spec.limits") {
            match (limit.str_at("type"), is_pod) {
                ("Container", true) => {
                    for (list, _) in CONTAINERS {
                        for container in object.items(list) {
                            let amounts = |field: &str| quota::amounts(container.at("resources").at(field));
                            wrong.check(limit, &amounts("requests"), &amounts("limits"));
                        }
                    }
                }
                ("Pod", true) => {
                    let total = |field: &str| quota::pod_resources_of_spec(object, field);
                    wrong.check(limit, &total("requests"), &total("limits"));
                }
                ("PersistentVolumeClaim", false) => {
                    wrong.check_claim(limit, &quota::amounts(object.at("spec.resources.requests")));
                }
                _ => {}
            }
        }
        match wrong.0.as_slice() {
            [] => {}
            [one] => return Err(attributes.forbidden_object(object, one)),
            many => return Err(attributes.forbidden_object(object, format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

/// What is out of bounds. Equal complaints are made once.
#[derive(Default)]
struct Wrong(Vec<String>);

/// Amounts in a common unit: milli-units, or whole ones where those would not fit.
fn compared<const N: usize>(amounts: [Quantity; N]) -> [i64; N] {
    if amounts.iter().all(|a| a.value() <= MAX_MILLI_VALUE) {
        amounts.map(Quantity::milli_value)
    } else {
        amounts.map(Quantity::value)
    }
}

impl Wrong {
    fn say(&mut self, text: String) {
        if !self.0.contains(&text) {
            self.0.push(text);
        }
    }

    fn check(&mut self, limit: &Value, requests: &Usage, limits: &Usage) {
        let kind = limit.str_at("type");
        for (resource, bound) in quota::amounts(limit.at("min")) {
            self.at_least(kind, &resource, bound, requests, limits);
        }
        for (resource, bound) in quota::amounts(limit.at("max")) {
            self.at_most(kind, &resource, bound, requests, limits);
        }
        for (resource, bound) in quota::amounts(limit.at("maxLimitRequestRatio")) {
            self.ratio(kind, &resource, bound, requests, limits);
        }
    }

    /// Claims have no limits: their requests are bounded on both sides.
    fn check_claim(&mut self, limit: &Value, requests: &Usage) {
        let kind = limit.str_at("type");
        for (resource, bound) in quota::amounts(limit.at("min")) {
            self.at_least(kind, &resource, bound, requests, &Usage::new());
        }
        for (resource, bound) in quota::amounts(limit.at("max")) {
            let head = format!("maximum {resource} usage per {kind} is {bound}");
            match requests.get(&resource) {
                None => self.say(format!("{head}.  No request is specified")),
                Some(request) => {
                    let [have, most] = compared([*request, bound]);
                    if have > most {
                        self.say(format!("{head}, but request is {request}"));
                    }
                }
            }
        }
    }

    fn at_least(&mut self, kind: &str, resource: &str, bound: Quantity, requests: &Usage, limits: &Usage) {
        let head = format!("minimum {resource} usage per {kind} is {bound}");
        let (request, limit) = (requests.get(resource), limits.get(resource));
        let zero = Quantity::default();
        let [asked, limited, least] =
            compared([request.copied().unwrap_or(zero), limit.copied().unwrap_or(zero), bound]);
        match (request, limit) {
            (None, _) => self.say(format!("{head}.  No request is specified")),
            (Some(request), _) if asked < least => self.say(format!("{head}, but request is {request}")),
            (_, Some(limit)) if limited < least => self.say(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }

    fn at_most(&mut self, kind: &str, resource: &str, bound: Quantity, requests: &Usage, limits: &Usage) {
        let head = format!("maximum {resource} usage per {kind} is {bound}");
        let (request, limit) = (requests.get(resource), limits.get(resource));
        let zero = Quantity::default();
        let [asked, limited, most] =
            compared([request.copied().unwrap_or(zero), limit.copied().unwrap_or(zero), bound]);
        match (limit, request) {
            (None, _) => self.say(format!("{head}.  No limit is specified")),
            (Some(limit), _) if limited > most => self.say(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if asked > most => self.say(format!("{head}, but request is {request}")),
            _ => {}
        }
    }

    fn ratio(&mut self, kind: &str, resource: &str, bound: Quantity, requests: &Usage, limits: &Usage) {
        let head = format!("{resource} max limit to request ratio per {kind} is {bound}");
        let zero = Quantity::default();
        let amount = |of: &Usage| of.get(resource).copied().unwrap_or(zero);
        let [request, limit, _] = compared([amount(requests), amount(limits), bound]);
        if request == 0 {
            return self.say(format!("{head}, but no request is specified or request is 0"));
        }
        if limit == 0 {
            return self.say(format!("{head}, but no limit is specified or limit is 0"));
        }
        let have = limit as f64 / request as f64;
        let is_over = if bound.value() <= MAX_MILLI_VALUE {
            have * 1000.0 > bound.milli_value() as f64
        } else {
            have > bound.value() as f64
        };
        if is_over {
            self.say(format!("{head}, but provided ratio is {have:.6}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_noted() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod = json!({"spec": {
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}}}, {"name": "b", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1"}}}],
            "initContainers": [{"name": "i"}],
        }});
        assert_eq!(
            complete(&mut pod, &range),
            [
                "cpu request for container a",
                "memory limit for container a",
                "cpu request for init container i",
                "cpu, memory limit for init container i",
            ]
        );
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert!(complete(&mut pod, &range).is_empty());
    }

    #[test]
    fn bounds() {
        let limit = |field: &str, value: &str| json!({"type": "Container", field: {"cpu": value}});
        for (limit, requests, limits, expect) in [
            (
                limit("min", "100m"),
                json!({}),
                json!({}),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                limit("min", "100m"),
                json!({"cpu": "50m"}),
                json!({}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                limit("min", "100m"),
                json!({"cpu": "1"}),
                json!({"cpu": "99m"}),
                "minimum cpu usage per Container is 100m, but limit is 99m",
            ),
            (
                limit("max", "1"),
                json!({"cpu": "1"}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                limit("max", "1"),
                json!({}),
                json!({"cpu": "1500m"}),
                "maximum cpu usage per Container is 1, but limit is 1500m",
            ),
            (
                limit("max", "1"),
                json!({"cpu": "2"}),
                json!({"cpu": "1"}),
                "maximum cpu usage per Container is 1, but request is 2",
            ),
            (limit("maxLimitRequestRatio", "2"), json!({"cpu": "1"}), json!({"cpu": "2"}), ""),
            (
                limit("maxLimitRequestRatio", "1500m"),
                json!({"cpu": "1"}),
                json!({"cpu": "2"}),
                "cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000",
            ),
            (
                limit("maxLimitRequestRatio", "2"),
                json!({}),
                json!({"cpu": "2"}),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (
                limit("maxLimitRequestRatio", "2"),
                json!({"cpu": "1"}),
                json!({}),
                "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
            ),
        ] {
            let mut wrong = Wrong::default();
            wrong.check(&limit, &quota::amounts(&requests), &quota::amounts(&limits));
            assert_eq!(wrong.0.join("; "), expect);
        }
        let mut wrong = Wrong::default();
        let claim =
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
        wrong.check_claim(&claim, &quota::amounts(&json!({"storage": "3Gi"})));
        assert_eq!(wrong.0, ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]);
    }
}
