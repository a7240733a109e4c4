//! `HorizontalPodAutoscaler` between `autoscaling/v1` and `v2`. What `v1` has no fields for travels as JSON in
//! annotations, which only exist in `v1`.

use serde_json::{Map, Value, json};

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
    if let Some(conditions) = conditions.filter(Value::is_array) {
        object.set("status.conditions", conditions);
    }
}

pub fn v2_to_v1(object: &mut Value) {
    let mut annotations: Map<String, Value> =
        object.at("metadata.annotations").as_object().cloned().unwrap_or_default();
    for key in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
        annotations.remove(key);
    }
    let mut keep = |key: &str, value: Value| {
        if value.as_array().is_none_or(|a| !a.is_empty()) && !value.is_null() {
            annotations.insert(key.to_owned(), Value::from(value.to_string()));
        }
    };
    let metrics = object.remove("spec.metrics").unwrap_or_default();
    let (cpu, others): (Vec<&Value>, Vec<&Value>) =
        metrics.items("").iter().partition(|m| is_cpu_utilization(m));
    keep(METRICS, others.into_iter().map(spec_to_v1).collect());
    let cpu = cpu.first().map(|m| m.int_at("resource.target.averageUtilization"));
    keep(BEHAVIOR, object.remove("spec.behavior").unwrap_or_default());
    let current = object.remove("status.currentMetrics").unwrap_or_default();
    keep(CURRENT_METRICS, current.items("").iter().map(status_to_v1).collect());
    let current_cpu = current
        .items("")
        .iter()
        .filter(|m| m.str_at("type") == "Resource" && m.str_at("resource.name") == "cpu")
        .find_map(|m| m.int_opt("resource.current.averageUtilization"));
    keep(CONDITIONS, object.remove("status.conditions").unwrap_or_default());

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

/// One kind of metric: its field, and pairs of places of the same value in `v1` and `v2`.
struct Shape {
    kind: &'static str,
    field: &'static str,
    spec: &'static [(&'static str, &'static str)],
    status: &'static [(&'static str, &'static str)],
}

const RESOURCE_SPEC: &[(&str, &str)] = &[
    ("name", "name"),
    ("container", "container"),
    ("targetAverageUtilization", "target.averageUtilization"),
    ("targetAverageValue", "target.averageValue"),
];
const RESOURCE_STATUS: &[(&str, &str)] = &[
    ("name", "name"),
    ("container", "container"),
    ("currentAverageUtilization", "current.averageUtilization"),
    ("currentAverageValue", "current.averageValue"),
];

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
        spec: &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("targetAverageValue", "target.averageValue"),
        ],
        status: &[
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("currentAverageValue", "current.averageValue"),
        ],
    },
    Shape {
        kind: "Object",
        field: "object",
        spec: &[
            ("target", "describedObject"),
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("targetValue", "target.value"),
            ("averageValue", "target.averageValue"),
        ],
        status: &[
            ("target", "describedObject"),
            ("metricName", "metric.name"),
            ("selector", "metric.selector"),
            ("currentValue", "current.value"),
            ("averageValue", "current.averageValue"),
        ],
    },
    Shape {
        kind: "External",
        field: "external",
        spec: &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("targetValue", "target.value"),
            ("targetAverageValue", "target.averageValue"),
        ],
        status: &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("currentValue", "current.value"),
            ("currentAverageValue", "current.averageValue"),
        ],
    },
];

fn shape(metric: &Value) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.kind == metric.str_at("type"))
}

fn moved(metric: &Value, field: &str, pairs: impl Iterator<Item = (&'static str, &'static str)>) -> Value {
    let source = metric.at(field);
    let mut out = json!({});
    for (from, to) in pairs {
        if source.has(from) {
            out.set(to, source.at(from).clone());
        }
    }
    json!({"type": metric.str_at("type"), field: out})
}

fn spec_to_v2(metric: &Value) -> Value {
    let Some(shape) = shape(metric) else { return metric.clone() };
    let mut out = moved(metric, shape.field, shape.spec.iter().copied());
    let target = out.at(shape.field).at("target");
    let kind = if target.has("averageUtilization") {
        "Utilization"
    } else if target.has("value") && !(shape.kind == "Object" && target.has("averageValue")) {
        "Value"
    } else {
        "AverageValue"
    };
    out.set(&format!("{}.target.type", shape.field), kind);
    out
}

fn spec_to_v1(metric: &Value) -> Value {
    let Some(shape) = shape(metric) else { return metric.clone() };
    moved(metric, shape.field, shape.spec.iter().map(|(v1, v2)| (*v2, *v1)))
}

fn status_to_v2(metric: &Value) -> Value {
    shape(metric).map_or_else(|| metric.clone(), |s| moved(metric, s.field, s.status.iter().copied()))
}

fn status_to_v1(metric: &Value) -> Value {
    shape(metric).map_or_else(
        || metric.clone(),
        |s| moved(metric, s.field, s.status.iter().map(|(v1, v2)| (*v2, *v1))),
    )
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
    fn without_metrics_cpu_is_the_default() {
        let mut object = json!({"spec": {}});
        v1_to_v2(&mut object);
        assert_eq!(object.items("spec.metrics"), [cpu_metric(80)]);
    }
}
