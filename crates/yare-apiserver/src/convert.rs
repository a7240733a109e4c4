//! Between the version an object rests in and the versions it is served in.
//!
//! Where shapes are identical only `apiVersion` changes; the few kinds whose versions differ have a row with
//! two functions. Objects move through here as JSON values.

use serde_json::{Map, Value, json};

use crate::registry::Stored;

/// How one served version relates to the storage version.
#[derive(Clone, Copy)]
pub enum Convert {
    /// It is the storage version.
    None,
    /// Same shape: only `apiVersion` (and `kind`) change.
    Same,
    /// Different shape.
    Shape(&'static Shapes),
}

/// One pair of functions.
pub struct Shapes {
    /// Group, plural and version served.
    pub served: (&'static str, &'static str, &'static str),
    /// Storage version → served version.
    pub from_storage: fn(&mut Map<String, Value>),
    /// Served version → storage version.
    pub to_storage: fn(&mut Map<String, Value>),
}

/// Versions whose shape is not that of the storage version.
pub const SHAPES: &[Shapes] = &[
    Shapes {
        served: ("events.k8s.io", "events", "v1"),
        from_storage: |event| rename(event, EVENT_FIELDS, false),
        to_storage: |event| rename(event, EVENT_FIELDS, true),
    },
    Shapes {
        served: ("autoscaling", "horizontalpodautoscalers", "v1"),
        from_storage: hpa_to_v1,
        to_storage: hpa_from_v1,
    },
];

/// How `version` of the resource relates to how it is stored.
pub fn of(group: &str, plural: &str, version: &str, stored: &Stored) -> Convert {
    if &*stored.group == group && &*stored.version == version {
        return Convert::None;
    }
    SHAPES.iter().find(|s| s.served == (group, plural, version)).map_or(Convert::Same, Convert::Shape)
}

impl Convert {
    /// Storage version → served version.
    pub fn from_storage(&self, api_version: &str, kind: &str, object: &mut Value) {
        self.run(api_version, kind, object, |s| s.from_storage);
    }

    /// Served version → storage version.
    pub fn to_storage(&self, api_version: &str, kind: &str, object: &mut Value) {
        self.run(api_version, kind, object, |s| s.to_storage);
    }

    fn run(
        &self,
        api_version: &str,
        kind: &str,
        object: &mut Value,
        pick: impl Fn(&Shapes) -> fn(&mut Map<String, Value>),
    ) {
        let Some(map) = object.as_object_mut() else { return };
        if let Self::Shape(shapes) = self {
            pick(shapes)(map);
        }
        if !matches!(self, Self::None) {
            map.insert("apiVersion".into(), api_version.into());
            map.insert("kind".into(), kind.into());
        }
    }
}

/// core/v1 name and events.k8s.io/v1 name of each field that differs.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("reportingComponent", "reportingController"),
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(map: &mut Map<String, Value>, fields: &[(&str, &str)], back: bool) {
    for (a, b) in fields {
        let (from, to) = if back { (b, a) } else { (a, b) };
        if let Some(value) = map.remove(*from) {
            map.insert((*to).into(), value);
        }
    }
}

/// Annotations in which autoscaling/v1 carries what it has no fields for, and where that lives in v2.
const HPA_ANNOTATIONS: [(&str, &str, &str); 4] = [
    ("autoscaling.alpha.kubernetes.io/metrics", "spec", "metrics"),
    ("autoscaling.alpha.kubernetes.io/behavior", "spec", "behavior"),
    ("autoscaling.alpha.kubernetes.io/current-metrics", "status", "currentMetrics"),
    ("autoscaling.alpha.kubernetes.io/conditions", "status", "conditions"),
];

fn is_cpu_resource(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn hpa_to_v1(hpa: &mut Map<String, Value>) {
    let mut saved: Vec<(&str, Value)> = Vec::new();
    for (annotation, part, field) in HPA_ANNOTATIONS {
        let Some(part) = hpa.get_mut(part).and_then(Value::as_object_mut) else { continue };
        let Some(mut value) = part.remove(field) else { continue };
        if let Some(items) = value.as_array_mut()
            && field != "conditions"
        {
            let (cpu, number) = if field == "metrics" {
                ("targetCPUUtilizationPercentage", ("target", "averageUtilization"))
            } else {
                ("currentCPUUtilizationPercentage", ("current", "averageUtilization"))
            };
            items.retain(|metric| {
                let utilization = &metric["resource"][number.0][number.1];
                if is_cpu_resource(metric) && utilization.is_number() && !part.contains_key(cpu) {
                    part.insert(cpu.into(), utilization.clone());
                    return false;
                }
                true
            });
            if items.is_empty() {
                continue;
            }
        }
        if value.as_array().is_some_and(Vec::is_empty) {
            continue;
        }
        saved.push((annotation, value));
    }
    if saved.is_empty() {
        return;
    }
    let Some(metadata) = hpa.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        for (name, value) in saved {
            annotations.insert(name.into(), value.to_string().into());
        }
    }
}

fn hpa_from_v1(hpa: &mut Map<String, Value>) {
    for (annotation, part, field) in HPA_ANNOTATIONS {
        let text = hpa
            .get_mut("metadata")
            .and_then(|m| m.get_mut("annotations"))
            .and_then(Value::as_object_mut)
            .and_then(|a| a.remove(annotation));
        // What does not parse is dropped, as upstream does: it was only ever written by a server.
        let Some(value) = text.as_ref().and_then(Value::as_str).and_then(|t| serde_json::from_str::<Value>(t).ok())
        else {
            continue;
        };
        let part = hpa.entry(part).or_insert_with(|| json!({}));
        if let Some(part) = part.as_object_mut() {
            part.insert(field.into(), value);
        }
    }
    for (part, cpu, list, number) in [
        ("spec", "targetCPUUtilizationPercentage", "metrics", "target"),
        ("status", "currentCPUUtilizationPercentage", "currentMetrics", "current"),
    ] {
        let Some(part) = hpa.get_mut(part).and_then(Value::as_object_mut) else { continue };
        let Some(utilization) = part.remove(cpu) else { continue };
        let mut value = json!({ "averageUtilization": utilization });
        if number == "target" {
            value["type"] = "Utilization".into();
        }
        let metric = json!({ "type": "Resource", "resource": { "name": "cpu", number: value } });
        let metrics = part.entry(list).or_insert_with(|| json!([]));
        if let Some(metrics) = metrics.as_array_mut() {
            metrics.insert(0, metric);
        }
    }
    let empty = hpa
        .get("metadata")
        .and_then(|m| m.get("annotations"))
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty);
    if empty && let Some(metadata) = hpa.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hpa_round_trip() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            ]},
        });
        let convert = Convert::Shape(&SHAPES[1]);
        let mut object = v2.clone();
        convert.from_storage("autoscaling/v1", "HorizontalPodAutoscaler", &mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 70);
        assert!(object["spec"].get("metrics").is_none());
        convert.to_storage("autoscaling/v2", "HorizontalPodAutoscaler", &mut object);
        assert_eq!(object, v2);
    }

    #[test]
    fn event_round_trip() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"}, "message": "m", "count": 2});
        let convert = Convert::Shape(&SHAPES[0]);
        let mut object = core.clone();
        convert.from_storage("events.k8s.io/v1", "Event", &mut object);
        assert_eq!(object["note"], "m");
        assert_eq!(object["deprecatedCount"], 2);
        convert.to_storage("v1", "Event", &mut object);
        assert_eq!(object, core);
    }
}
