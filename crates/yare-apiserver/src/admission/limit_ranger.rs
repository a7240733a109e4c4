//! LimitRanger: a namespace's LimitRanges give containers their default requests and limits and bound them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use yare_kinds::view::{View, ViewMut};
use yare_schema::quantity::Quantity;

use super::{Attributes, Operation};
use crate::status::ApiResult;

const CONTAINERS: [&str; 2] = ["spec.initContainers", "spec.containers"];

fn ranges(attributes: &Attributes<'_>) -> Vec<Value> {
    let snapshot = attributes.call.core.store().snapshot("limitranges");
    let prefix = format!("{}/", attributes.namespace);
    snapshot
        .range(std::ops::Bound::Unbounded, &prefix)
        .filter_map(|o| serde_json::from_slice(&o.bytes).ok())
        .collect()
}

/// Gives containers of new pods the defaults of the namespace.
pub fn mutate(attributes: &Attributes<'_>, pod: &mut Value, _old: Option<&Value>) -> ApiResult<()> {
    if !attributes.is("", "pods") || attributes.operation != Operation::Create {
        return Ok(());
    }
    let ranges = ranges(attributes);
    let items =
        || ranges.iter().flat_map(|r| r.items("spec.limits")).filter(|l| l.str_at("type") == "Container");
    let mut notes: Vec<String> = Vec::new();
    for limit in items() {
        for path in CONTAINERS {
            for container in pod.items_mut(path) {
                let name = container.str_at("name").to_owned();
                for (field, defaults) in [("limits", "default"), ("requests", "defaultRequest")] {
                    let mut set = Vec::new();
                    for (resource, value) in limit.entries(defaults) {
                        let have = container.at("resources").at(field).get(resource).is_some();
                        // A limit alone is also the request.
                        let implied = field == "requests"
                            && container.at("resources.limits").get(resource).is_some()
                            && !set.contains(&resource)
                            && limit.at("default").get(resource).is_none();
                        if have || implied {
                            continue;
                        }
                        if !container.has("resources") {
                            container.set("resources", Map::new());
                        }
                        if let Some(resources) = container.at_mut("resources").and_then(Value::as_object_mut)
                            && let Some(map) = resources
                                .entry(field)
                                .or_insert_with(|| Value::Object(Map::new()))
                                .as_object_mut()
                        {
                            map.insert(resource.to_owned(), value.clone());
                            set.push(resource);
                        }
                    }
                    if !set.is_empty() {
                        let what = if field == "limits" { "limit" } else { "request" };
                        notes.push(format!("{} {what} for container {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        if !pod.has("metadata.annotations") {
            pod.set("metadata.annotations", Map::new());
        }
        if let Some(annotations) = pod.at_mut("metadata.annotations").and_then(Value::as_object_mut) {
            annotations.insert("kubernetes.io/limit-ranger".into(), text.into());
        }
    }
    Ok(())
}

/// Refuses what is out of the namespace's bounds.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(object) = object else { return Ok(()) };
    let pod = attributes.is("", "pods");
    // Updates of pods cannot change what is bounded here (resize is its own subresource).
    if pod && attributes.operation != Operation::Create {
        return Ok(());
    }
    let mut wrong: Vec<String> = Vec::new();
    for limit in ranges(attributes).iter().flat_map(|r| r.items("spec.limits")) {
        match (limit.str_at("type"), pod) {
            ("Container", true) => {
                for path in CONTAINERS {
                    for container in object.items(path) {
                        check(limit, "Container", container.at("resources"), &mut wrong);
                    }
                }
            }
            ("Pod", true) => check(limit, "Pod", &pod_total(object), &mut wrong),
            ("PersistentVolumeClaim", false) => {
                let resources = serde_json::json!({ "requests": object.at("spec.resources.requests") });
                check(limit, "PersistentVolumeClaim", &resources, &mut wrong);
            }
            _ => {}
        }
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(attributes.forbidden(one)),
        many => Err(attributes.forbidden(format!("[{}]", many.join(", ")))),
    }
}

fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

fn check(limit: &Value, kind: &str, resources: &Value, wrong: &mut Vec<String>) {
    let get = |field: &str, resource: &str| amount(&resources.at(field)[resource]);
    for (resource, bound) in limit.entries("min") {
        let Some(min) = amount(bound) else { continue };
        match get("requests", resource) {
            None => wrong.push(format!(
                "minimum {resource} usage per {kind} is {bound}.  No request is specified",
                bound = text(bound)
            )),
            Some(have) if have < min => {
                wrong.push(format!(
                    "minimum {resource} usage per {kind} is {}, but request is {have}",
                    text(bound)
                ));
            }
            Some(_) => {}
        }
        if let Some(have) = get("limits", resource)
            && have < min
        {
            wrong
                .push(format!("minimum {resource} usage per {kind} is {}, but limit is {have}", text(bound)));
        }
    }
    for (resource, bound) in limit.entries("max") {
        let Some(max) = amount(bound) else { continue };
        if kind == "PersistentVolumeClaim" {
            if let Some(have) = get("requests", resource)
                && have > max
            {
                wrong.push(format!(
                    "maximum {resource} usage per {kind} is {}, but request is {have}",
                    text(bound)
                ));
            }
            continue;
        }
        match get("limits", resource) {
            None => wrong.push(format!(
                "maximum {resource} usage per {kind} is {}.  No limit is specified",
                text(bound)
            )),
            Some(have) if have > max => {
                wrong.push(format!(
                    "maximum {resource} usage per {kind} is {}, but limit is {have}",
                    text(bound)
                ));
            }
            Some(_) => {}
        }
        if let Some(have) = get("requests", resource)
            && have > max
        {
            wrong.push(format!(
                "maximum {resource} usage per {kind} is {}, but request is {have}",
                text(bound)
            ));
        }
    }
    for (resource, bound) in limit.entries("maxLimitRequestRatio") {
        let Some(ratio) = amount(bound) else { continue };
        let (Some(high), Some(low)) = (get("limits", resource), get("requests", resource)) else {
            wrong.push(format!("{resource} max limit to request ratio per {kind} is {}, but no request is specified or request is 0", text(bound)));
            continue;
        };
        let (high, low, ratio) = (high.as_f64(), low.as_f64(), ratio.as_f64());
        if low <= 0.0 || high / low > ratio {
            wrong.push(format!(
                "{resource} max limit to request ratio per {kind} is {}, but provided ratio is {:.6}",
                text(bound),
                high / low
            ));
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a pod's containers ask for together.
fn pod_total(pod: &Value) -> Value {
    let mut out = Map::new();
    for field in ["requests", "limits"] {
        let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
        for container in pod.items("spec.containers") {
            for (resource, value) in container.at("resources").entries(field) {
                if let Some(value) = amount(value) {
                    let total = match sum.remove(resource) {
                        Some(have) => have + value,
                        None => value,
                    };
                    sum.insert(resource.to_owned(), total);
                }
            }
        }
        let sum: Map<String, Value> = sum.into_iter().map(|(k, v)| (k, v.to_string().into())).collect();
        out.insert(field.into(), Value::Object(sum));
    }
    Value::Object(out)
}
