//! `HorizontalPodAutoscaler` between `autoscaling/v1` and `v2`. What `v1` has no fields for travels as JSON in
//! annotations, which only exist in `v1`.

use serde_json::{Map, Value, json};

use yare_schema::encode;

use crate::view::{View, ViewMut};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// What is scaled on when nothing else is said: this share of the requested CPU, in percent.
const DEFAULT_CPU_PERCENT: i64 = 80;

fn cpu_metric(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// Whether `v1` has a field of its own for this metric.
fn is_cpu_utilization(metric: &Value) -> bool {
    metric.str_at("type") == "Resource"
        && metric.str_at("resource.name") == "cpu"
        && metric.has("resource.target.averageUtilization")
}

pub fn v1_to_v2(object: &mut Value) {
    let mut from_annotation = |key: &str| -> Option<Value> {
        let annotations = object.at_mut("metadata.annotations")?.as_object_mut()?;
        let text = annotations.remove(key)?;
        if annotations.is_empty() {
            object.remove("metadata.annotations");
        }
        serde_json::from_str(text.as_str()?).ok()
    };
    let [metrics, current, conditions, behavior] =
        [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR].map(&mut from_annotation);

    let mut all: Vec<Value> = metrics.iter().flat_map(|m| m.items("")).map(spec_to_v2).collect();
    if let Some(percent) = object.remove("spec.targetCPUUtilizationPercentage").and_then(|v| v.as_i64()) {
        all.push(cpu_metric(percent));
    }
    if all.is_empty() {
        all.push(cpu_metric(DEFAULT_CPU_PERCENT));
    }
    object.set("spec.metrics", all);
    let behavior = behavior.map(|b| as_field(&b));
    if let Some(behavior) = behavior.filter(|b| b.as_object().is_some_and(|o| !o.is_empty())) {
        object.set("spec.behavior", behavior);
    }
    let percent = object.remove("status.currentCPUUtilizationPercentage").and_then(|v| v.as_i64());
    if let Some(current) = current.filter(Value::is_array) {
        let current: Vec<Value> = current.items("").iter().map(status_to_v2).collect();
        object.set("status.currentMetrics", current);
    } else if let Some(percent) = percent {
        object.set(
            "status.currentMetrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]),
        );
    }
    if let Some(mut conditions) = conditions.filter(Value::is_array) {
        for condition in conditions.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.retain(|_, value| !value.is_null());
        }
        object.set("status.conditions", conditions);
    }
}

pub fn v2_to_v1(object: &mut Value) {
    let mut annotations: Map<String, Value> =
        object.at("metadata.annotations").as_object().cloned().unwrap_or_default();
    for key in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
        annotations.remove(key);
    }
    let mut keep = |key: &str, texts: Vec<String>| {
        if !texts.is_empty() {
            annotations.insert(key.to_owned(), Value::from(format!("[{}]", texts.join(","))));
        }
    };
    let metrics = object.remove("spec.metrics").unwrap_or_default();
    let (cpu, others): (Vec<&Value>, Vec<&Value>) =
        metrics.items("").iter().partition(|m| is_cpu_utilization(m));
    keep(METRICS, others.into_iter().map(|m| to_v1(m, |s| &s.spec)).collect());
    let cpu = cpu.first().map(|m| m.int_at("resource.target.averageUtilization"));
    let current = object.remove("status.currentMetrics").unwrap_or_default();
    keep(CURRENT_METRICS, current.items("").iter().map(|m| to_v1(m, |s| &s.status)).collect());
    let current_cpu = current
        .items("")
        .iter()
        .filter(|m| m.str_at("type") == "Resource" && m.str_at("resource.name") == "cpu")
        .find_map(|m| m.int_opt("resource.current.averageUtilization"));
    let conditions = object.remove("status.conditions").unwrap_or_default();
    keep(CONDITIONS, conditions.items("").iter().map(condition_text).collect());
    if let Some(behavior) = object.remove("spec.behavior") {
        annotations.insert(BEHAVIOR.to_owned(), behavior_text(&behavior).into());
    }

    if let Some(percent) = cpu {
        object.set("spec.targetCPUUtilizationPercentage", percent);
    }
    if let Some(percent) = current_cpu {
        object.set("status.currentCPUUtilizationPercentage", percent);
    }
    if annotations.is_empty() {
        object.remove("metadata.annotations");
    } else {
        object.set("metadata.annotations", annotations);
    }
}

/// Places of the same value in `v1` and `v2`, in the order of `v1`'s fields.
struct Places {
    pairs: &'static [(&'static str, &'static str)],
    /// A quantity that `v1` cannot leave out: it is zero where it is not set.
    required: &'static str,
}

/// One kind of metric.
struct Shape {
    kind: &'static str,
    field: &'static str,
    spec: Places,
    status: Places,
}

const RESOURCE_SPEC: Places = Places {
    pairs: &[
        ("name", "name"),
        ("targetAverageUtilization", "target.averageUtilization"),
        ("targetAverageValue", "target.averageValue"),
        ("container", "container"),
    ],
    required: "",
};
const RESOURCE_STATUS: Places = Places {
    pairs: &[
        ("name", "name"),
        ("currentAverageUtilization", "current.averageUtilization"),
        ("currentAverageValue", "current.averageValue"),
        ("container", "container"),
    ],
    required: "currentAverageValue",
};

const SHAPES: &[Shape] = &[
    Shape { kind: "Resource", field: "resource", spec: RESOURCE_SPEC, status: RESOURCE_STATUS },
    Shape {
        kind: "ContainerResource",
        field: "containerResource",
        spec: RESOURCE_SPEC,
        status: RESOURCE_STATUS,
    },
    Shape {
        kind: "Pods",
        field: "pods",
        spec: Places {
            pairs: &[
                ("metricName", "metric.name"),
                ("targetAverageValue", "target.averageValue"),
                ("selector", "metric.selector"),
            ],
            required: "targetAverageValue",
        },
        status: Places {
            pairs: &[
                ("metricName", "metric.name"),
                ("currentAverageValue", "current.averageValue"),
                ("selector", "metric.selector"),
            ],
            required: "currentAverageValue",
        },
    },
    Shape {
        kind: "Object",
        field: "object",
        spec: Places {
            pairs: &[
                ("target", "describedObject"),
                ("metricName", "metric.name"),
                ("targetValue", "target.value"),
                ("selector", "metric.selector"),
                ("averageValue", "target.averageValue"),
            ],
            required: "targetValue",
        },
        status: Places {
            pairs: &[
                ("target", "describedObject"),
                ("metricName", "metric.name"),
                ("currentValue", "current.value"),
                ("selector", "metric.selector"),
                ("averageValue", "current.averageValue"),
            ],
            required: "currentValue",
        },
    },
    Shape {
        kind: "External",
        field: "external",
        spec: Places {
            pairs: &[
                ("metricName", "metric.name"),
                ("metricSelector", "metric.selector"),
                ("targetValue", "target.value"),
                ("targetAverageValue", "target.averageValue"),
            ],
            required: "",
        },
        status: Places {
            pairs: &[
                ("metricName", "metric.name"),
                ("metricSelector", "metric.selector"),
                ("currentValue", "current.value"),
                ("currentAverageValue", "current.averageValue"),
            ],
            required: "currentValue",
        },
    },
];

fn shape(metric: &Value) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.kind == metric.str_at("type"))
}

fn to_v2(metric: &Value, field: &str, places: &Places) -> Value {
    let source = metric.at(field);
    let mut out = json!({});
    for (from, to) in places.pairs {
        if source.has(from) {
            out.set(to, source.at(from).clone());
        } else if *from == places.required {
            out.set(to, "0");
        }
    }
    json!({"type": metric.str_at("type"), field: out})
}

fn spec_to_v2(metric: &Value) -> Value {
    let Some(shape) = shape(metric) else { return metric.clone() };
    let mut out = to_v2(metric, shape.field, &shape.spec);
    let averaged = out.at(shape.field).has("target.averageValue");
    let kind = if out.at(shape.field).has("target.averageUtilization") {
        "Utilization"
    } else if out.at(shape.field).has("target.value") && !(shape.kind == "Object" && averaged) {
        "Value"
    } else {
        "AverageValue"
    };
    // An object's value is zero in `v1` where there is none.
    if shape.kind == "Object" && averaged && out.at(shape.field).str_at("target.value") == "0" {
        out.remove("object.target.value");
    }
    out.set(&format!("{}.target.type", shape.field), kind);
    out
}

fn status_to_v2(metric: &Value) -> Value {
    shape(metric).map_or_else(|| metric.clone(), |s| to_v2(metric, s.field, &s.status))
}

/// A metric as `v1` writes it into its annotation.
fn to_v1(metric: &Value, places: fn(&'static Shape) -> &'static Places) -> String {
    let Some(shape) = shape(metric) else { return text(metric, &[]) };
    let (source, places) = (metric.at(shape.field), places(shape));
    let mut members: Vec<(&str, String)> = Vec::new();
    for (to, from) in places.pairs {
        if source.has(from) {
            members.push((to, text(source.at(from), &["kind", "name", "apiVersion", "matchLabels"])));
        } else if *to == places.required {
            members.push((to, text(&"0".into(), &[])));
        } else if matches!(*to, "name" | "metricName") || (*to == "container" && shape.kind != "Resource") {
            members.push((to, text(&"".into(), &[])));
        }
    }
    object_text(&[("type", text(&shape.kind.into(), &[])), (shape.field, object_text(&members))])
}

fn condition_text(condition: &Value) -> String {
    let mut condition = condition.clone();
    if let Some(map) = condition.as_object_mut() {
        map.entry("lastTransitionTime").or_insert(Value::Null);
    }
    text(&condition, &["type", "status", "lastTransitionTime", "reason", "message"])
}

fn object_text(members: &[(&str, String)]) -> String {
    let members: Vec<String> =
        members.iter().map(|(key, value)| format!("{}:{value}", text(&(*key).into(), &[]))).collect();
    format!("{{{}}}", members.join(","))
}

/// JSON with these members of the outermost object first.
fn text(value: &Value, first: &[&str]) -> String {
    let plain = |value: &Value| String::from_utf8(encode::any(value)).unwrap_or_default();
    let Some(map) = value.as_object() else { return plain(value) };
    let ranked = |key: &str| first.iter().position(|f| *f == key).unwrap_or(first.len());
    let mut members: Vec<(&str, String)> = map.iter().map(|(k, v)| (k.as_str(), plain(v))).collect();
    members.sort_by_key(|(key, _)| ranked(key));
    let members: Vec<String> =
        members.iter().map(|(key, value)| format!("{}:{value}", plain(&(*key).into()))).collect();
    format!("{{{}}}", members.join(","))
}

/// Upstream writes behaviour as its internal type, whose fields have other names and are never left out.
fn behavior_text(behavior: &Value) -> String {
    let rules = |field: &str| {
        let rules = behavior.at(field);
        if !rules.is_object() {
            return "null".to_owned();
        }
        let policies = rules.at("policies").as_array().map(|policies| {
            let policies: Vec<String> = policies
                .iter()
                .map(|p| {
                    object_text(&[
                        ("Type", text(&p.str_at("type").into(), &[])),
                        ("Value", p.int_at("value").to_string()),
                        ("PeriodSeconds", p.int_at("periodSeconds").to_string()),
                    ])
                })
                .collect();
            format!("[{}]", policies.join(","))
        });
        object_text(&[
            ("StabilizationWindowSeconds", text(rules.at("stabilizationWindowSeconds"), &[])),
            ("SelectPolicy", text(rules.at("selectPolicy"), &[])),
            ("Policies", policies.unwrap_or_else(|| "null".to_owned())),
            ("Tolerance", text(rules.at("tolerance"), &[])),
        ])
    };
    object_text(&[("ScaleUp", rules("scaleUp")), ("ScaleDown", rules("scaleDown"))])
}

/// Behaviour as it stands in the annotation, by whoever wrote it, as the field is.
fn as_field(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| {
                let mut chars = key.chars();
                let first = chars.next().map(|c| c.to_ascii_lowercase());
                (first.into_iter().chain(chars).collect(), as_field(value))
            })
            .collect::<Map<String, Value>>()
            .into(),
        Value::Array(items) => items.iter().map(as_field).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_a_field() {
        let v1 = json!({"spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}, "status": {"currentCPUUtilizationPercentage": 40}});
        let mut object = v1.clone();
        v1_to_v2(&mut object);
        assert_eq!(object.items("spec.metrics"), [cpu_metric(50)]);
        v2_to_v1(&mut object);
        assert_eq!(object.at("spec"), v1.at("spec"));
        assert_eq!(object.int_at("status.currentCPUUtilizationPercentage"), 40);
    }

    #[test]
    fn the_rest_travels_in_annotations() {
        let v2 = json!({"metadata": {"name": "h"}, "spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 1}}, "metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "K", "name": "n"}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "5"}}},
            cpu_metric(10)]}, "status": {"conditions": [{"type": "AbleToScale", "status": "True"}]}});
        let mut object = v2.clone();
        v2_to_v1(&mut object);
        assert_eq!(object.at("metadata.annotations").as_object().map(serde_json::Map::len), Some(3));
        assert_eq!(object.int_at("spec.targetCPUUtilizationPercentage"), 10);
        v1_to_v2(&mut object);
        assert_eq!(object, v2);
    }

    #[test]
    fn annotations_are_upstreams() {
        let mut object = json!({"spec": {
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 1, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 3}]}},
            "metrics": [{"type": "Object", "object": {"describedObject": {"apiVersion": "v1", "kind": "K", "name": "<n>"},
                "metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}}]},
            "status": {"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "r"}]}});
        v2_to_v1(&mut object);
        for (key, want) in [
            (
                BEHAVIOR,
                r#"{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":1,"SelectPolicy":null,"Policies":[{"Type":"Pods","Value":2,"PeriodSeconds":3}],"Tolerance":null}}"#,
            ),
            (
                METRICS,
                r#"[{"type":"Object","object":{"target":{"kind":"K","name":"\u003cn\u003e","apiVersion":"v1"},"metricName":"m","targetValue":"0","averageValue":"5"}}]"#,
            ),
            (
                CURRENT_METRICS,
                r#"[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":40,"currentAverageValue":"0"}}]"#,
            ),
            (
                CONDITIONS,
                r#"[{"type":"AbleToScale","status":"True","lastTransitionTime":null,"reason":"r"}]"#,
            ),
        ] {
            assert_eq!(object["metadata"]["annotations"][key], want);
        }
    }

    #[test]
    fn without_metrics_cpu_is_the_default() {
        let mut object = json!({"spec": {}});
        v1_to_v2(&mut object);
        assert_eq!(object.items("spec.metrics"), [cpu_metric(80)]);
    }
}
